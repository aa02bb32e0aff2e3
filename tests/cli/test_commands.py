"""What every command answers, as text and as JSON."""

import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from surgery_jax.cli.main import main
from surgery_jax.storage.proofs import PROOFS

PLAN = """\
inputs: [ a.safetensors ]
factor: 0.5
transforms:
  - scale_: { target: 'h\\.(\\d+)\\.up', by: '${factor}' }
  - cast: { from: norm, to: norm16, dtype: half }
  - move: { from: 'h\\.(\\d+)\\.down', to: 'layer.\\1.down' }
  - copy: { from: [h, '$i', up], to: [x, '\\${i}', up] }
  - assert: { all: [ { dtype: { of: norm16, is: fp16 } }, { reads: { of: norm, at_least: 1 } }, { exists: norm } ] }
  - fill: { from: norm, to: noise, mode: rand, seed: 3 }
  - set: { verbose: true }
  - exit
output: { path: out, shard: 1KB }
"""


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def answer(here, capsys):
    """Run a command in this process; gives its exit code and stdout."""

    def call(*words):
        code = main([str(word) for word in words])
        return code, capsys.readouterr().out

    return call


def bytes_in(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name not in PROOFS}


def test_explain_predicts_the_bytes_that_run_reports(answer, plan):
    name = plan(PLAN)
    _, text = answer("explain", name, "--json", "--workers", 2)
    predicted = json.loads(text)
    code, text = answer("run", name, "--json", "--workers", 2, "--no-sync")
    assert code == 0
    report = json.loads(text)
    for key in ("bytes_moved", "bytes_read", "bytes_computed"):
        assert predicted[key] == report[key] > 0
    assert report["num_compilations"] <= predicted["num_compilations"]
    assert 0 < report["peak_buffer_bytes"] <= predicted["peak_buffer_bytes"]
    assert len(predicted["groups"]) == report["num_groups"]
    assert sum(group["bytes_out"] for group in predicted["groups"]) == predicted["bytes_computed"]
    assert sum(move["nbytes"] for move in predicted["moves"]) == predicted["bytes_moved"]


def test_explain_names_groups_by_patterns_and_plan_lines(answer, plan):
    code, text = answer("explain", plan(PLAN))
    assert code == 0
    assert "plan.yaml:4" in text
    assert "scale(float32) -> float32" in text
    assert "h.{0-2}.up" in text
    assert "h.{0-2}.down -> layer.{0-2}.down" in text


def test_check_counts_what_it_would_do(answer, plan):
    assert answer("check", plan(PLAN)) == (0, "ok: 8 steps, 7 tensors read (600 B), 12 written to out (924 B)\n")
    _, text = answer("check", "plan.yaml", "--json")
    assert json.loads(text)["ok"] is True


@pytest.mark.parametrize("mode", ["raw", "resolve"])
def test_the_summary_is_a_plan_that_gives_the_same_bytes(mode, answer, plan, here):
    code, text = answer("run", plan(PLAN), "--summary", "logs/done.yaml", "--summary-mode", mode, "--no-sync")
    assert code == 0
    assert "transforms:" not in text
    summary = yaml.safe_load((here / "logs/done.yaml").read_text())
    assert summary["transforms"][-1] == {"exit": {}}
    if mode == "resolve":
        assert summary["inputs"] == ["model::a.safetensors"]
        assert summary["output"] == {"path": "out", "shard": "1KB"}
        assert summary["transforms"][4]["assert"]["all"] == [
            {"dtype": {"of": "model::norm16", "is": "float16"}},
            {"reads": {"of": "model::norm", "ge": 1}},
            {"exists": "model::norm"},
        ]
        fill = summary["transforms"][5]["fill"]
        assert (fill["low"], fill["high"], fill["distribution"]) == (0.0, 1.0, "uniform")
    more = [] if mode == "resolve" else [plan("inputs: [ a.safetensors ]\noutput: { shard: 1KB }\n", "rest.yaml")]
    assert answer("run", "logs/done.yaml", *more, "output.path=again", "--quiet", "--no-sync")[0] == 0
    assert bytes_in(here / "again") == bytes_in(here / "out")


def test_run_prints_nothing_but_what_is_asked_for(answer, plan):
    plain = plan("inputs: [ a.safetensors ]\ntransforms: []\noutput: o\n")
    assert answer("run", plain, "--no-summary", "--no-sync") == (0, "")


def test_inspect_shows_trees_tables_and_statistics(answer):
    code, text = answer("inspect", "a.safetensors", "--metadata")
    assert code == 0
    head, metadata, *tree = text.splitlines()
    assert head == "safetensors: 1 file, 7 tensors, 150 parameters, 600 B; float32 x 7"
    assert metadata == "metadata made: here"
    assert "│   └── [0-2]" in tree
    _, text = answer("inspect", "a.safetensors", "--format", "table", "--filter", "^norm", "--stats")
    assert text.splitlines()[-1].split() == ["norm", "float32", "[6]", "24", "0", "5", "2.5"]
    _, text = answer("inspect", "b.safetensors", "--json", "--stats")
    told = json.loads(text)
    assert told["num_parameters"] == 127
    assert {t["name"]: t["statistics"]["mean"] for t in told["tensors"]}["new"] == "nan"


def test_diff_is_1_and_names_the_largest_differences_first(answer):
    code, text = answer("diff", "a.safetensors", "b.safetensors")
    assert code == 1
    assert text.splitlines() == [
        "only in a.safetensors: 1 tensor",
        "  h.2.down",
        "only in b.safetensors: 1 tensor",
        "  new",
        "changed: 2 tensors",
        "  norm: shape: float32[6] against float32[5]",
        "  h.1.up: 4 of 24 elements differ, the most by 0.25 at [0, 0]",
        "4 equal, 2 changed, 1 missing, 1 added",
    ]
    code, text = answer("diff", "a.safetensors", "b.safetensors", "--filter", "up", "--eps", 0.5)
    assert (code, text) == (0, "no differences: 3 equal tensors\n")
    code, text = answer("diff", "a.safetensors", "b.safetensors", "--json")
    assert (code, json.loads(text)["changed"][1]["index"]) == (1, [0, 0])


def test_a_checkpoint_does_not_differ_from_its_copy_even_with_nan(answer, here):
    bits = np.arange(256, dtype=np.uint8)
    save_file({"f16": np.tile(bits, 2).view(np.float16), "c": np.full(3, np.nan, np.complex64)}, "nan.safetensors")
    assert answer("diff", "nan.safetensors", "nan.safetensors")[0] == 0


def test_convert_keeps_every_bit(answer, here):
    assert answer("convert", "a.safetensors", "shards", "--shard-size", "200B", "--no-sync")[0] == 0
    assert len(list((here / "shards").glob("*.safetensors"))) > 1
    assert answer("convert", "shards", "back.safetensors", "--no-sync")[0] == 0
    want, got = load_file("a.safetensors"), load_file("back.safetensors")
    assert {name: array.tobytes() for name, array in want.items()} == {n: a.tobytes() for n, a in got.items()}
    assert answer("convert", "a.safetensors", "x.safetensors", "--shard-size", "1KB")[0] == 2


def test_ops_describes_itself(answer):
    assert "scale_" in answer("ops")[1]
    assert answer("ops", "scale")[1].startswith("scale\n")
    assert answer("ops", "equal")[1].startswith("assert: equal\n")


def test_a_dry_run_writes_no_summary_file(answer, plan, here):
    dry = "inputs: [ a.safetensors ]\ntransforms:\n  - set: { dry-run: true }\n  - move: { from: norm, to: x }\n"
    assert answer("run", plan(dry), "--summary", "s.yaml")[0] == 0
    assert not (here / "s.yaml").exists()


@pytest.mark.parametrize(
    ("summary", "more", "says"),
    [
        ("notes.yaml", (), "exists already"),
        ("notes.yaml", ("--overwrite", "--no-sync"), None),
        ("a.safetensors", ("--overwrite",), "would replace a file of the plan"),
        ("out.safetensors", ("--overwrite",), "would replace a file of the plan"),
        (".", (), "not a file that could be written"),
    ],
)
def test_a_summary_replaces_nothing_unasked_and_never_what_the_plan_reads_or_writes(
    here, plan, capsys, summary, more, says
):
    (here / "notes.yaml").write_text("mine\n")
    before = bytes_in(here)
    name = plan("inputs: [ a.safetensors ]\ntransforms:\n  - move: { from: norm, to: x }\noutput: out.safetensors\n")
    assert main(["run", name, "--summary", summary, *more]) == (3 if says else 0)
    assert (says or "") in capsys.readouterr().err
    if says:
        assert {path: content for path, content in bytes_in(here).items() if path != name} == before
    else:
        (step,) = yaml.safe_load((here / "notes.yaml").read_text())["transforms"]
        assert step == {"move": {"from": "norm", "to": "x"}}


def test_a_summary_that_cannot_be_written_at_the_end_says_that_the_output_is_there(here, plan, capsys, monkeypatch):
    name = plan("inputs: [ a.safetensors ]\ntransforms:\n  - move: { from: norm, to: x }\noutput: out.safetensors\n")

    def full(descriptor):
        assert (here / "out.safetensors").exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main(["run", name, "--summary", "s.yaml", "--no-sync"]) == 5
    assert "the output of the plan is there" in capsys.readouterr().err
    assert "x" in load_file("out.safetensors") and not (here / "s.yaml").exists()


TWICE = "inputs: [ a.safetensors ]\ntransforms: [ { move: { from: '(.*)', to: 'x.\\1' } } ]\noutput: o.safetensors\n"


@pytest.mark.parametrize("command", ["check", "explain", "run"])
def test_a_warning_is_told_once_on_stderr_and_is_no_failure(command, plan, here, capsys):
    assert main([command, plan(TWICE)]) == 0
    told = capsys.readouterr().err
    assert told.count("warning: plan.yaml:2:") == 1 and "write '(.+)'" in told
    (here / "o.safetensors").unlink(missing_ok=True)


@pytest.mark.parametrize("command", ["check", "run"])
def test_json_has_the_warnings(command, plan, here, capsys):
    assert main([command, plan(TWICE), "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert (warning["file"], warning["line"]) == ("plan.yaml", 2) and "(.+)" in warning["hint"]


def test_a_batch_tells_the_warnings_of_its_jobs(plan, here, capsys):
    plan(TWICE)
    assert main(["batch", plan("plan: plan.yaml\njobs: [ { name: one } ]\n", "jobs.yaml"), "--json", "--no-sync"]) == 0
    told = capsys.readouterr()
    assert told.err.count("warning: job one: plan.yaml:2:") == 1
    assert len(json.loads(told.out)["jobs"][0]["warnings"]) == 1
