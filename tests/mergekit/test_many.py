"""Many configurations in one start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import assert_same_bits, read_checkpoint
from tiny_models import Tensors, merged

from surgery_jax.cli.main import main

MORE = {"slerp": {"t": 0.3}, "sce": {"select_topk": 0.5}, "della": {"epsilon": 0.1}}


def config_of(method: str, number: int) -> str:
    """A configuration of a method; the number decides its weights and densities."""
    own = {"weight": 0.3 + 0.05 * number, "density": 0.4 + 0.04 * number}
    names = ["base", "one"] if method == "slerp" else ["one", "two"]
    models = [{"model": name, "parameters": own} for name in names]
    found = {"merge_method": method, "models": models, "dtype": "bfloat16", "parameters": MORE.get(method, {})}
    return json.dumps(found if method == "linear" else found | {"base_model": "base"})


@pytest.mark.parametrize("method", ["della", "model_stock", "sce", "slerp", "ties"])
def test_configurations_share_a_start_and_two_compilations(
    models: dict[str, Tensors], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        Path(f"{number}.yml").write_text(config_of(method, number))
    code = main(["merge", "0.yml", "1.yml", "2.yml", "out", "--json", "--no-sync", "--quiet"])
    out, err = capsys.readouterr()
    assert code == 0, err
    decoder, at, reports = json.JSONDecoder(), 0, []
    while at < len(out.rstrip()):
        report, at = decoder.raw_decode(out, at + (out[at] == "\n"))
        reports.append(report)
    assert len(reports) == 3
    assert sum(report["num_compilations"] for report in reports) <= 2
    alone = read_checkpoint(merged(config_of(method, 2), "alone"))
    for name, array in read_checkpoint(Path("out/2")).items():
        assert_same_bits(array, alone[name], name)


def test_one_that_fails_leaves_the_others_alone(models: dict[str, Tensors], capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.yml").write_text(config_of("linear", 0))
    Path("bad.yml").write_text(config_of("ties", 0).replace('"two"', '"three"'))
    assert main(["merge", "bad.yml", "good.yml", "out", "--no-sync"]) == 3
    said = capsys.readouterr().err
    assert "three" in said and "wrote out/good" in said
    assert Path("out/good/config.json").exists() and not Path("out/bad").exists()


def test_two_of_one_name_are_refused(models: dict[str, Tensors], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "a/x.yml", "b/x.yml", "out"]) == 2
    assert "a/x.yml and b/x.yml would both be written to out/x" in capsys.readouterr().err
