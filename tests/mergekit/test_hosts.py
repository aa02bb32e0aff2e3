"""Merges that several processes or devices share."""

from __future__ import annotations

from pathlib import Path

from pods import Pod
from running import assert_same_bits, read_checkpoint
from tiny_models import Tensors

from surgery_jax import merge

CONFIG = """
    models:
      - model: one
        parameters: { density: 0.4, weight: 0.7 }
      - model: two
        parameters: { density: 0.6, weight: 0.3 }
    merge_method: della
    base_model: base
    parameters: { epsilon: 0.1 }
    dtype: bfloat16
"""


def test_two_processes_write_the_files_of_one(models: dict[str, Tensors], tmp_path: Path) -> None:
    config = tmp_path / "della.yml"
    config.write_text(CONFIG)
    merge(config, "alone/made")
    with Pod(2, config, "shared/made", "--memory", "64MiB", cwd=tmp_path, verb="merge") as pod:
        ends = pod.start().ends(within_s=240)
    assert [end.code for end in ends] == [0, 0], [end.err for end in ends]
    assert "wrote shared/made" in ends[0].err and not ends[1].err
    assert _documents("shared/made") == _documents("alone/made")
    found, wanted = (read_checkpoint(Path(name)) for name in ("shared/made", "alone/made"))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert_same_bits(found[name], array, name)


def _documents(folder: str) -> dict[str, bytes]:
    """What lies beside the tensors, but for the receipt, which tells of the run."""
    kept = (path for path in Path(folder).iterdir() if path.suffix != ".safetensors" and "surgery." not in path.name)
    return {path.name: path.read_bytes() for path in kept}
