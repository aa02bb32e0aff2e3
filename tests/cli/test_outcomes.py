"""Exit codes, and what goes to stdout and what to stderr."""

import json
import os
import signal
import subprocess
import sys

import pytest

from surgery_jax.cli import failures
from surgery_jax.cli.main import main

from .conftest import environment

MOVES = """\
inputs: [ a.safetensors ]
transforms:
  - dump: { target: norm }
  - move: { from: norm, to: ln }
output: out.safetensors
"""
FAILS = """\
inputs: [ a.safetensors ]
transforms:
  - dump: { target: norm, verbosity: stat }
  - assert: { iszero: norm }
  - dump: { target: 'h\\.0\\.up' }
output: out.safetensors
"""
KILLED = """\
import os, sys
os.fsync = lambda descriptor: os._exit(9)
from surgery_jax.storage.files import write_whole
write_whole(sys.argv[1], "text")
"""


def test_success_is_0_with_results_on_stdout_and_the_account_on_stderr(surgery, plan, place):
    done = surgery("run", plan(MOVES), "--no-sync")
    assert done.returncode == 0
    assert done.stdout.startswith("└── norm  shape=[6]\ntransforms:\n- dump:")
    assert done.stderr.count("\n") == 1
    assert "wrote out.safetensors: 7 tensors" in done.stderr
    assert (place / "out.safetensors").exists()


def test_what_a_run_left_that_was_killed_while_it_wrote_a_text_is_named_and_removed(surgery, plan, place):
    plan(MOVES)
    before = {path.name for path in place.iterdir()}
    texts = (("run", "plan.yaml", "--summary", "steps.yaml"), ("spectrum", "a.safetensors", "--html", "page.html"))
    for *words, name in texts:
        command = [sys.executable, "-c", KILLED, name]
        assert subprocess.run(command, cwd=place, env=environment()).returncode == 9
        (left,) = {path.name for path in place.iterdir()} - before
        done = surgery(*words, name)
        assert done.returncode == 0, done.stderr
        assert f"{left}: " in done.stderr and "left by a run that did not come to its end" in done.stderr
        before |= {"out.safetensors", name}
        assert {path.name for path in place.iterdir()} <= before


def test_a_failed_assertion_is_1_and_leaves_nothing(surgery, plan, place):
    before = sorted(place.iterdir())
    done = surgery("run", plan(FAILS))
    assert done.returncode == 1
    assert done.stdout == "└── norm  shape=[6] min=0 max=5 mean=2.5 reads=1 writes=1\n"
    told = done.stderr.splitlines()[-1]  # a loaded machine is told before how far it is
    assert told.startswith("error: plan.yaml:4:5: assertion failed: iszero: norm: 5 of 6 elements are off")
    assert sorted(place.iterdir()) == sorted([*before, place / "plan.yaml"])


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("rnu",),
        ("run",),
        ("run", "missing.yaml"),
        ("run", "no-equals-sign"),
        ("run", "--memroy", "1GB", "plan.yaml"),
        ("run", "--mem", "1GB", "plan.yaml"),
        ("run", "--memory", "3", "plan.yaml"),
        ("run", "--workers", "-1", "plan.yaml"),
        ("run", "--summary-mode", "rwa", "plan.yaml"),
        ("inspect", "--format", "xml", "a.safetensors"),
        ("inspect", "--filter", "(", "a.safetensors"),
        ("diff", "a.safetensors", "b.safetensors", "--eps", "-1"),
        ("convert", "a.safetensors", "out.foo"),
        ("ops", "scael"),
    ],
)
def test_a_wrong_command_line_is_2_and_prints_no_traceback(words, plan, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    plan(MOVES)
    assert main([str(word) for word in words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: " if words else "usage: ")


@pytest.mark.parametrize("words", [("inspect", "nothing"), ("convert", "nothing", "x"), ("diff", "a.safetensors", "x")])
def test_an_unreadable_checkpoint_is_3(words, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert main(list(words)) == 3
    assert capsys.readouterr().err.startswith("error: ")


def test_an_existing_output_is_3_and_may_be_overwritten(plan, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    (place / "out.safetensors").write_text("mine")
    assert main(["run", plan(MOVES)]) == 3
    assert "--overwrite" in capsys.readouterr().err
    assert (place / "out.safetensors").read_text() == "mine"
    assert main(["run", "--overwrite", "plan.yaml", "--no-sync"]) == 0


@pytest.mark.parametrize("command", ["run", "check"])
def test_work_that_cannot_fit_the_budget_is_4_before_anything_is_read(command, plan, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    name = plan("inputs: [a.safetensors]\ntransforms:\n  - scale_: { target: norm, by: 2 }\noutput: out\n")
    assert main([command, name, "--memory", "4KB"]) == 4
    assert "--memory of at least" in capsys.readouterr().err
    assert not (place / "out").exists()


def test_options_and_plans_come_in_any_order(plan, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    plan(MOVES)
    words = [
        "run",
        "--quiet",
        "plan.yaml",
        "--memory",
        "1GiB",
        "transforms[1].move.to=ln2",
        "--no-sync",
        "output=x.safetensors",
    ]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "to: ln2" in printed.out
    assert printed.err == ""
    assert (place / "x.safetensors").exists()


def test_json_errors_carry_every_problem_with_its_place(plan, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    name = plan("inputs: [a.safetensors]\ntransforms:\n  - nope\n  - copy: { from: x, to: y }\n")
    assert main(["check", name, "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 2
    assert [(p["file"], p["line"], p["kind"]) for p in told["problems"]] == [
        ("plan.yaml", 3, "PlanError"),
        ("plan.yaml", 4, "PlanError"),
    ]
    assert main(["check", name, "--json", "--nope"]) == 2
    assert "--nope" in json.loads(capsys.readouterr().out)["error"]


def test_what_leaks_is_told_in_one_line(capsys):
    told = [
        (MemoryError(), 4, "out of memory"),
        (RuntimeError("can't start new thread"), 4, "the system allows no more threads"),
        (PermissionError(13, "Permission denied", "/some/file"), 3, "/some/file: Permission denied"),
        (KeyError("x"), 70, "this is a bug; run with SURGERY_JAX_TRACEBACK=1"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ]
    for error, code, text in told:
        assert failures.report(error, as_json=False) == code
        printed = capsys.readouterr()
        assert text in printed.err
        assert "Traceback" not in printed.err


def test_a_traceback_is_shown_on_request(capsys, monkeypatch):
    monkeypatch.setenv("SURGERY_JAX_TRACEBACK", "1")
    assert failures.report(KeyError("x"), as_json=False) == 70
    assert "KeyError" in capsys.readouterr().err


def test_names_cannot_steer_the_terminal(capsys):
    from surgery_jax.core.errors import PlanError

    failures.report(PlanError("no \x1b[2J tensor"), as_json=False)
    assert "\x1b" not in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(place, surgery):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = surgery("ops", capture_output=False, stdout=writing, stderr=-1)
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE


def test_calls_leave_signal_handlers_as_they_were(capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    for words in (["--help"], ["ops", "scale"], ["nope"], ["ops", "--help"]):
        main(words)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_what_is_left_out_is_told_once_on_stderr_also_quietly_and_beside_json(surgery, place):
    (place / "m").mkdir()
    (place / "a.safetensors").rename(place / "m/model.safetensors")
    (place / "b.safetensors").rename(place / "m/consolidated.safetensors")
    for words in (("inspect", "m", "--json"), ("convert", "m", "out.safetensors", "--quiet")):
        done = surgery(*words)
        assert done.returncode == 0
        assert done.stderr == "note: m: not a part of the checkpoint and left out: consolidated.safetensors\n"
        assert done.stdout == "" or json.loads(done.stdout)
