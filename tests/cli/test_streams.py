"""Standard streams that are closed, full or broken: outputs are whole, and the exit code says that they are there."""

import subprocess
import sys

import pytest
from safetensors.numpy import load_file

from .conftest import environment

PLAN = """\
inputs: [ a.safetensors ]
transforms:
  - copy: { from: norm, to: again }
  - dump: { target: norm }
output: out.safetensors
"""
# JAX writes to the descriptor of stderr, whatever that is
COMPUTES = "inputs: [ a.safetensors ]\ntransforms:\n  - scale_: { target: norm, by: 2 }\noutput: out.safetensors\n"
RUN = "run plan.yaml --no-sync"


@pytest.fixture
def shell(place, plan):
    """Run the program with these words of a shell."""
    plan(PLAN)

    def call(words):
        command = f"{sys.executable} -m surgery_jax {words}"
        done = subprocess.run(["bash", "-c", command], cwd=place, env=environment(), capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        return done

    return call


@pytest.mark.parametrize(
    "closed", ["2>&-", ">&-", "2>&- --quiet", "<&- >&- 2>&-", "2>/dev/full", "2>/dev/full >/dev/null"]
)
def test_an_output_is_whole_whatever_is_closed(closed, shell, place):
    done = shell(f"{RUN} {closed}")
    assert done.returncode == 0, done.stderr
    assert load_file(place / "out.safetensors")["again"].tolist() == [0, 1, 2, 3, 4, 5]
    assert done.stderr.startswith("wrote out.safetensors" if closed == ">&-" else "")


def test_nothing_that_is_said_goes_into_an_output(shell, place, plan):
    plan(COMPUTES)
    assert shell(f"{RUN} 2>&-").returncode == 0
    assert load_file(place / "out.safetensors")["norm"].tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("full", [">/dev/full", ">/dev/full --json"])
def test_what_cannot_be_printed_is_5_and_says_that_the_output_is_there(full, shell, place):
    done = shell(f"{RUN} {full}")
    assert done.returncode == 5
    assert done.stderr.startswith("error: cannot print the result: No space left on device\n")
    assert done.stderr.endswith("the outputs are there: out.safetensors\n")
    assert load_file(place / "out.safetensors")["again"].tolist() == [0, 1, 2, 3, 4, 5]


def test_whoever_closes_the_pipe_is_told_that_the_output_is_there(shell, place):
    done = shell(f"{RUN} | exec 0<&-; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 5
    assert done.stderr.endswith("the outputs are there: out.safetensors\n")
    assert (place / "out.safetensors").exists()


def test_a_batch_that_cannot_print_its_table_says_what_is_there(shell, place, plan):
    plan("plan: plan.yaml\nmatrix: { output: [x.safetensors, y.safetensors] }\n", "jobs.yaml")
    done = shell("batch jobs.yaml --no-sync --quiet >/dev/full")
    assert done.returncode == 5
    assert done.stderr.endswith("the outputs are there: x.safetensors, y.safetensors\n")
    assert shell("batch jobs.yaml --quiet").stdout.endswith("2 jobs: 2 skipped\n")


def test_a_command_without_outputs_says_only_that_it_cannot_print(shell):
    done = shell("inspect a.safetensors >/dev/full")
    assert done.returncode == 5
    assert "outputs" not in done.stderr
    assert shell("inspect a.safetensors >&-").returncode == 0


def test_what_a_terminal_cannot_show_is_written_out(shell, place):
    done = shell(f"{RUN} --no-summary --quiet >out.txt")
    assert done.returncode == 0
    (place / "out.safetensors").unlink()
    narrow = subprocess.run(
        [sys.executable, "-m", "surgery_jax", *RUN.split(), "--no-summary", "--quiet"],
        cwd=place,
        env=environment() | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert narrow.returncode == 0
    assert narrow.stdout == (place / "out.txt").read_text(encoding="utf-8").encode("ascii", "backslashreplace").decode()
