"""What the `options` of an output say of how Orbax checkpoints are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...core.errors import PlanError
from ...core.specs import parse_size
from ...core.strict_json import read_json
from ..shards import is_name
from .mesh import Shardings, read_shardings, rules_of
from .tree import OWN

__all__ = ["OPTIONS", "Settings"]

OPTIONS = {
    "chunk": "largest chunk of an array, such as 64MB (default), or none; chunks are cut along the leading axis",
    "compression": "none (default) or zstd, of every chunk",
    "mesh": "the axes of a mesh of devices and their sizes, such as {fsdp: 16, expert: 2}; with shard",
    "shard": "for a mesh: expressions of names and what of the mesh cuts each axis, {'.*kernel': [fsdp, null]}",
    "shardings": "instead of both: a file of shardings, such as _sharding of a checkpoint of Orbax, or its directory",
    "zarr": "2 (default) or 3, the version of the arrays' format",
    "ocdbt": "true to have all arrays in one key-value store (false)",
    "item": "write a step of a CheckpointManager, with this item in it",
    "metadata": "custom metadata of the step, such as {scan_layers: true}",
}
_WORDS = {"compression": ("none", "zstd"), "zarr": ("2", "3"), "ocdbt": ("false", "true")}


@dataclass(frozen=True)
class Settings:
    """The options of one output. `chunk_bytes` None does not cut; `metadata` is added to that of the checkpoint."""

    chunk_bytes: int | None = 64 << 20
    compression: str = "none"
    zarr: int = 2
    is_together: bool = False
    shardings: Shardings | None = None
    item: str = ""
    metadata: Mapping[str, object] | None = None

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Settings:
        """What the words of a plan mean.

        Raises:
            PlanError: one is not understood, or does not go with another.
            StorageError: the file of shardings cannot be read.
        """
        for key, words in _WORDS.items():
            if key in options and options[key] not in words:
                raise PlanError(
                    f"unknown {key} {options[key]!r}", expected=f"one of {', '.join(words)}", found=options[key]
                )
        return cls(
            parse_size(options["chunk"]) if "chunk" in options else cls.chunk_bytes,
            options.get("compression", cls.compression),
            int(options.get("zarr", cls.zarr)),
            options.get("ocdbt") == "true",
            _shardings(options),
            _item(options["item"]) if "item" in options else cls.item,
            _metadata(options["metadata"]) if "metadata" in options else None,
        )


def _shardings(options: Mapping[str, str]) -> Shardings | None:
    ruled = [key for key in ("mesh", "shard") if key in options]
    if "shardings" in options:
        if ruled:
            raise PlanError(
                f"the options 'shardings' and {ruled[0]!r} say the same",
                expected="a file of shardings, or a mesh and rules",
                hint="leave one of them out",
            )
        return read_shardings(options["shardings"])
    return rules_of(options.get("mesh"), options.get("shard")) if ruled else None


def _item(name: str) -> str:
    if not is_name(name) or "/" in name or name[0] in "._" or name in OWN:
        raise PlanError(f"{name!r} cannot be the item of a step", expected="the name of a directory, such as items")
    return name


def _metadata(text: str) -> Mapping[str, object]:
    try:
        found = read_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PlanError("the option 'metadata' is a mapping", expected="{ scan_layers: true }", found=text[:120])
    return found
