"""A signal is heard wherever it comes, and the exit code says what is true of the outputs."""

import gc
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from surgery_jax import Options, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.cli.signals import interruptible
from surgery_jax.core.interrupts import Interrupted, held

from .conftest import environment

MOVES = "inputs: [ a.safetensors ]\ntransforms:\n  - move: { from: norm, to: ln }\noutput: out\n"
FAULTS = Path(__file__).parents[1] / "storage/faults.c"


def content(place):
    output = str(place / "out.safetensors")
    return plan_of({"inputs": [f"model::{place / 'a.safetensors'}"], "transforms": [], "output": output})


def test_a_signal_that_something_swallows_still_stops_the_run(place):
    before = sorted(place.iterdir())
    with interruptible():
        with suppress(KeyboardInterrupt):  # as callbacks of JAX do it
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            run(content(place), Options(sync=False))
    assert [path for path in place.iterdir() if path not in before and ".surgery-" not in path.name] == []
    run(content(place), Options(sync=False, resume=True))  # the next one does not hear of it
    assert sorted(place.iterdir()) == sorted([*before, place / "out.safetensors"])


def test_a_signal_that_a_callback_of_the_collector_swallows_prints_no_traceback(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: said.append(told.exc_type))

    def interrupt(phase, info):
        signal.raise_signal(signal.SIGTERM)

    def fail(phase, info):
        raise ValueError

    with interruptible() as watch:
        for callback in (interrupt, fail):
            gc.callbacks.append(callback)
            gc.collect()
            gc.callbacks.remove(callback)
    assert watch.asked == signal.SIGTERM
    assert set(said) == {ValueError}  # which is still told


@pytest.mark.parametrize("function", ["notes_shown", "format_usage"])  # at the beginning; where argparse cannot bear it
def test_a_signal_is_an_interrupt_wherever_it_comes(function, place, plan, capsys):
    plan(MOVES)
    came = []

    def interrupt(frame, event, argument):
        if event == "call" and frame.f_code.co_name == function and not came:
            came.append(True)
            signal.raise_signal(signal.SIGTERM)

    sys.setprofile(interrupt)
    try:
        code = main(["check", str(place / "plan.yaml")])
    finally:
        sys.setprofile(None)
    assert came and code == 143
    assert capsys.readouterr().err == "interrupted\n"


def test_a_signal_that_is_held_back_comes_at_the_end():
    done = []
    with pytest.raises(KeyboardInterrupt), held():
        with held():
            signal.raise_signal(signal.SIGINT)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_held_back_does_not_hide_what_went_wrong():
    with interruptible() as watch:
        with pytest.raises(ValueError, match="first"), held():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("first")
        assert watch.asked == signal.SIGTERM


# Sends a signal to itself when a module is looked for, and becomes the program.
AT_IMPORT = """
import importlib.abc, os, signal, sys
module, number = sys.argv[1], int(sys.argv[2])
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder())
from surgery_jax.cli.main import entry
sys.argv[:] = ["surgery-jax", *sys.argv[3:]]
entry()
"""


@pytest.mark.parametrize("module", ["surgery_jax.cli.signals", "surgery_jax.core.errors", "yaml", "numpy"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_imports_ends_without_a_traceback(module, number, code, place, plan):
    plan(MOVES)
    command = [sys.executable, "-c", AT_IMPORT, module, str(int(number)), "run", "plan.yaml"]
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "interrupted\n")
    assert not (place / "out").exists()


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler")
@pytest.mark.parametrize("at", [3, 4, 5, 6, 7])
def test_the_exit_code_of_a_signal_says_whether_the_outputs_are_there(at, place, plan, surgery):
    plan(
        "inputs: [ a.safetensors ]\ntransforms:\n  - save: { path: one.safetensors, alias: model }\n"
        "output: two.safetensors\n"
    )
    library = place / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, FAULTS, "-ldl"], check=True)
    preloaded = environment() | {
        "LD_PRELOAD": str(library),
        "FAULT_AT": str(at),
        "FAULT_SIGNAL": str(int(signal.SIGINT)),
    }
    done = surgery("run", "plan.yaml", "--no-sync", "--quiet", env=preloaded)
    there = sorted(path.name for path in place.glob("*.safetensors")) + [path.name for path in place.glob(".*")]
    inputs = ["a.safetensors", "b.safetensors"]
    assert "Traceback" not in done.stderr
    if done.returncode == 130:
        assert there == inputs
        assert done.stderr == "interrupted\n"
    else:
        assert done.returncode == 5
        assert there == [*inputs, "one.safetensors", "two.safetensors"]
        assert done.stderr == "interrupted\nthe outputs are there: one.safetensors, two.safetensors\n"


def test_an_interrupt_after_the_end_is_told_with_what_is_there(capsys):
    from surgery_jax.cli.failures import report

    assert report(KeyboardInterrupt(), as_json=False, outputs=["out"]) == 5
    assert report(KeyboardInterrupt(), as_json=False, outputs=["out"], is_whole=False) == 130
    assert capsys.readouterr().err == "interrupted\nthe outputs are there: out\n" * 2
