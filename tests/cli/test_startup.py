"""Help, mistakes and checks are answered at once: nothing heavy is imported for them."""

import re
import resource
import subprocess
import sys

import pytest

from .conftest import environment

MISTAKES = """\
inputs: [ a.safetensors ]
transforms:
  - scael: { from: norm, to: n, by: 2 }
  - copy: { from: norm, too: n }
  - cast: { from: 'nrom', to: n, dtype: float16 }
  - reshape: { from: norm, to: n2, shape: [7] }
output: out
"""
GOOD = """\
inputs: [ a.safetensors ]
transforms:
  - scale_: { target: 'h\\..*', by: 2 }
output: out
"""


def imported(stderr):
    """The modules that `-X importtime` names."""
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in stderr.splitlines() if "|" in line}


def cpu_seconds(call):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_imports_nothing_heavy(surgery):
    done = surgery("--help", python=("-X", "importtime"))
    assert done.returncode == 0
    assert not imported(done.stderr) & {"jax", "numpy", "yaml", "ml_dtypes"}
    for command in ("run", "check", "explain", "inspect", "diff", "convert", "ops", "completion"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


def test_help_is_fast(surgery):
    assert min(cpu_seconds(lambda: surgery("--help")) for _ in range(3)) < 0.25


def test_check_reports_all_mistakes_with_their_lines_without_jax(surgery, plan):
    name = plan(MISTAKES)
    done = surgery("check", name, python=("-X", "importtime"))
    assert done.returncode == 2
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [re.match(r"error: plan.yaml:(\d+):", line)[1] for line in errors[:4]] == ["3", "4", "5", "6"]
    assert errors[4:] == ["error: 4 problems"]
    assert "jax" not in imported(done.stderr)
    assert min(cpu_seconds(lambda: surgery("check", name)) for _ in range(2)) < 1


@pytest.mark.parametrize("words", [("check",), ("explain",), ("explain", "--json")])
def test_a_good_plan_is_checked_and_explained_without_jax(words, surgery, plan):
    done = surgery(*words, plan(GOOD), python=("-X", "importtime"))
    assert done.returncode == 0, done.stderr
    assert "jax" not in imported(done.stderr)


def test_inspect_reads_headers_without_jax(surgery):
    done = surgery("inspect", "a.safetensors", python=("-X", "importtime"))
    assert done.returncode == 0
    assert "jax" not in imported(done.stderr)


def test_version_and_module(surgery):
    from surgery_jax import __version__

    assert surgery("--version").stdout == f"surgery-jax {__version__}\n"


END = """
import atexit, sys, threading, time
from surgery_jax.cli.main import entry

class Late:
    def __del__(self):
        print("taken apart")

def work():
    time.sleep(0.2)
    atexit.register(print, "heard")
    print("worked")

late = Late()
if sys.argv[1] == "before":
    atexit.register(print, "waited")
threading.Thread(target=work).start()
sys.argv[1:] = ["--frobnicate"]
entry()
"""


@pytest.mark.parametrize(
    ("who", "told"), [("nobody", ["worked", "heard"]), ("before", ["worked", "heard", "waited", "taken apart"])]
)
def test_a_process_ends_when_threads_and_those_who_wait_for_its_end_are_done(who, told, place):
    done = subprocess.run(
        [sys.executable, "-c", END, who], cwd=place, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.splitlines()) == (2, told)
