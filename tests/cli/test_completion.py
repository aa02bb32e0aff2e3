"""Completion scripts work in the shells they are for."""

import shutil
import subprocess

import pytest

from surgery_jax.cli.main import main
from surgery_jax.kit.base import words as step_words


def complete(script, cwd, *words):
    """What bash offers for the last word."""
    listed = " ".join(f"'{word}'" for word in words)
    typed = f"COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}"
    text = "\n".join([script, typed, "_surgery_jax", "printf '%s\\n' \"${COMPREPLY[@]}\""])
    done = subprocess.run(["bash", "--norc", "-c", text], capture_output=True, text=True, cwd=cwd)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def script(capsys):
    def of(shell):
        assert main(["completion", shell]) == 0
        return capsys.readouterr().out

    return of


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_plans_and_operations(script, place):
    bash = script("bash")
    (place / "plan.yaml").touch()
    (place / "plans").mkdir()
    assert complete(bash, place, "surgery-jax", "ru") == ["run"]
    assert complete(bash, place, "surgery-jax", "ops", "sca") == ["scale", "scale_"]
    assert complete(bash, place, "surgery-jax", "run", "--sum") == ["--summary", "--summary-mode"]
    assert complete(bash, place, "surgery-jax", "run", "--no-sy") == ["--no-sync"]
    assert complete(bash, place, "surgery-jax", "run", "--summary-mode", "r") == ["raw", "resolve"]
    assert sorted(complete(bash, place, "surgery-jax", "check", "p")) == ["plan.yaml", "plans"]
    assert complete(bash, place, "surgery-jax", "inspect", "a") == ["a.safetensors"]
    assert complete(bash, place, "surgery-jax", "completion", "f") == ["fish"]
    assert complete(bash, place, "surgery-jax", "run", "--workers", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_script_knows_every_command_and_operation(shell, script):
    text = script(shell)
    assert all(word in text for word in ("inspect", "convert", "summary-mode", *step_words()))
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)
