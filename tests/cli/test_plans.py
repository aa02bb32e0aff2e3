"""Parameters on the command line, help on them, and the plans that come with the package."""

import json

import pytest

from surgery_jax.cli.main import main
from surgery_jax.language.library import library_file, library_names, summary

PLAN = """\
params:
  target: { type: str, help: what is scaled }
  by: { type: float, default: 0.5, min: 0 }
inputs: [ a.safetensors ]
transforms:
  - foreach: { i: '${range(2)}', do: [ { scale_: { target: 'h\\.${i}\\.${target}', by: '${by}' } } ] }
output: out
"""


@pytest.fixture
def here(place, plan, monkeypatch):
    monkeypatch.chdir(place)
    plan(PLAN)
    return place


@pytest.mark.parametrize(
    "words", [["target=up", "by=2"], ["--set", "target=up", "--set", "by=2"], ["--params", "v.yaml", "by=2"]]
)
def test_values_are_given_as_words_as_options_or_in_a_file(here, capsys, words):
    (here / "v.yaml").write_text("target: up\nby: 7\n")
    assert main(["run", "plan.yaml", *words, "--quiet", "--no-sync"]) == 0
    printed = capsys.readouterr().out
    assert r"target: h\.1\.up" in printed and printed.count("by: 2") == 2


def test_wrong_words_are_2_and_list_what_there_is(here, capsys):
    for words, told in {
        ("targt=up",): "did you mean target?",
        (): "needs a value for target",
        ("target=up", "by=-1"): "at least 0",
        ("--set", "target"): "--set takes a key and its value",
    }.items():
        assert main(["check", "plan.yaml", *words]) == 2
        assert told in capsys.readouterr().err


def test_errors_in_many_turns_of_a_loop_are_told_a_few_times(here, capsys):
    assert (
        main(["check", "plan.yaml", "target=no", "transforms[0].foreach.i=[0, 1, 2, 3, 4, 5, 6, 7, 8]", "--json"]) == 2
    )
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [problem.get("turn") for problem in problems] == ["i = 0", "i = 1", "i = 2", None]
    assert problems[-1]["problem"] == "errors in 6 more turns of the loop"


def test_help_on_a_plan_shows_its_parameters(here, capsys):
    assert main(["run", "plan.yaml", "--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["target=", "str,", "required", "what", "is", "scaled"] in lines
    assert ["by=", "float,", "at", "least", "0,", "default", "0.5"] in lines


def test_the_library_is_listed_shown_and_run_by_its_name(here, capsys):
    assert main(["plans"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == library_names() and all(len(line.split()) > 3 for line in listed)
    for name in library_names():
        assert main(["plans", name]) == 0
        assert f"file: {library_file(name)}" in capsys.readouterr().out
    assert main(["plans", "unties"]) == 2
    assert "did you mean untie?" in capsys.readouterr().err
    assert main(["check", "plans/cast.yaml", "source=a.safetensors", "output=x"]) == 0
    assert main(["check", "cast", "output=x"]) == 2
    assert "did you mean plans/cast.yaml?" in capsys.readouterr().err


def test_the_summary_of_a_plan_is_the_first_sentence_of_its_comment():
    assert summary("# One two:\n# 1.5 three. Four.\n#\nkey: 1\n# not\n") == "One two: 1.5 three"
    assert summary("key: 1\n") == ""


def test_a_config_that_is_missing_or_broken_is_told_before_anything_is_written(here, plan, capsys):
    name = plan(
        "inputs: [ a.safetensors ]\nn: '${config.n}'\ntransforms:\n - scale_: { target: norm, by: '${n}' }\noutput: o\n"
    )
    assert main(["run", name]) == 2
    assert "plan.yaml:2:4: the input model::a.safetensors has no config.json" in capsys.readouterr().err
    (here / "config.json").write_text('{\n "n": 2,,\n}')
    assert main(["run", name]) == 3
    assert "config.json:2:9: the configuration is no JSON" in capsys.readouterr().err
    (here / "config.json").write_text('{"n": 2, "n": 3}')
    assert main(["run", name]) == 3
    assert "the key 'n' twice" in capsys.readouterr().err
    (here / "config.json").write_text("[1]")
    assert main(["run", name]) == 3
    (here / "config.json").write_text('{"m": 2}')
    assert main(["run", name]) == 2
    assert "unknown key 'n' of config.json" in capsys.readouterr().err
    (here / "config.json").write_text('{"n": 2}')
    assert main(["run", name, "--quiet", "--no-sync"]) == 0 and "by: 2" in capsys.readouterr().out


def test_jobs_set_parameters(here, plan, capsys):
    plan("plan: plan.yaml\nmatrix: { by: [1, 2] }\nset: { target: up, output: 'o/${job}' }\n", "jobs.yaml")
    assert main(["batch", "jobs.yaml", "--quiet", "--no-sync"]) == 0
    plan("plan: plan.yaml\nmatrix: { by: [1, -2] }\nset: { target: up, output: 'p/${job}' }\n", "jobs.yaml")
    assert main(["batch", "jobs.yaml", "--no-sync"]) == 1
    assert "parameter by is out of bounds" in capsys.readouterr().err
