"""Documents beside tensors: which files they are, in directories of every format, and that they are read once."""

import json
from pathlib import Path

import numpy as np
import pytest
from running import write_checkpoint

from surgery_jax.api import inspect
from surgery_jax.cli.main import main
from surgery_jax.core.errors import StorageError
from surgery_jax.storage.documents import read_document
from surgery_jax.storage.formats import open_checkpoint
from surgery_jax.storage.identity import check_all

DOCUMENTS = {
    "config.json": '{"model_type": "llama"}',
    "generation_config.json": "{}",
    "preprocessor_config.json": "{}",
    "tokenizer.json": "{}",
    "tokenizer.model": "pieces",
    "tokenizer_config.json": "{}",
    "special_tokens_map.json": "{}",
    "vocab.json": "{}",
    "merges.txt": "a b",
    "qwen.tiktoken": "IQ== 0",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tool.jinja": "{{ tools }}",
    "modeling_own.py": "class Own: pass",
    "LICENSE": "do what you like",
    "LICENSE-MODEL.txt": "and this",
    "README.md": "# a model",
}
OTHERS = {
    "extra.bin.index.json": "{}",
    "extra.safetensors.index.fp16.json": "{}",
    "trainer_state.json": "{}",
    "training_args.bin": "x",
    "optimizer.pt": "x",
    ".gitattributes": "x",
    ".cache/config.json": "{}",
    "notes/README.md": "x",
    "image.png": "x",
}


def lay(directory: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "t.safetensors", {"a": np.arange(6, dtype=np.float32), "b": np.ones(3)})


@pytest.mark.parametrize("format", ["safetensors", "torch", "dcp", "flax", "orbax"])
def test_the_documents_of_a_directory_are_the_files_that_tell_of_the_model(
    format: str, tensors: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch" if format == "dcp" else "numpy")
    path = tmp_path / ("m/flax_model.msgpack" if format == "flax" else "m")
    path.parent.mkdir(exist_ok=True)
    assert main(["convert", str(tensors), str(path), "--format", format, "--quiet"]) == 0
    lay(tmp_path / "m", DOCUMENTS | OTHERS)
    found = open_checkpoint(str(tmp_path / "m"))
    assert list(found.entries) == ["a", "b"]
    assert found.documents == {name: str(tmp_path / "m" / name) for name in sorted(DOCUMENTS, key=_in_order)}
    assert not set(found.documents.values()) & {*found.files, *found.identities}


def _in_order(name: str) -> tuple[bool, str]:
    return "/" in name, name


def test_beside_a_single_file_documents_count_only_where_a_model_is_configured(tensors: Path) -> None:
    lay(tensors.parent, {"notes.txt": "mine", "script.py": "pass"})
    assert open_checkpoint(str(tensors)).documents == {}
    lay(tensors.parent, {"config.json": "{}"})
    assert list(open_checkpoint(str(tensors)).documents) == ["config.json", "notes.txt", "script.py"]


def test_a_document_that_was_read_may_not_change_any_more(tmp_path: Path) -> None:
    lay(tmp_path, {"config.json": "{}"})
    found = read_document(tmp_path / "config.json")
    assert found.text == "{}"
    check_all(found.identities)
    lay(tmp_path, {"config.json": '{"more": 1}'})
    with pytest.raises(StorageError, match="changed after") as caught:
        check_all(found.identities)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_inspect_lists_documents_with_their_sizes(tensors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(tensors.parent, {"config.json": "{}"})
    (tensors.parent / "vocab.json").symlink_to("nowhere")
    assert main(["inspect", str(tensors), "--documents"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["document config.json: 2 B", "document vocab.json: No such file or directory"]
    assert main(["inspect", str(tensors), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["documents"]
    assert (
        listed
        == dict(inspect(tensors).documents)
        == {n: str(tensors.parent / n) for n in ("config.json", "vocab.json")}
    )
