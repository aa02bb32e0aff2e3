"""LoRA adapters as PEFT stores them: a directory of `adapter_model.safetensors` and `adapter_config.json`.

Also read is `adapter_model.bin` of older versions, without executing anything, and names are spelled as PEFT spells
them, whoever saved the adapter. The configuration travels as JSON in the text metadata, under the key `adapter_config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..core import adapters
from ..core.adapter_names import spelled
from ..core.errors import StorageError
from ..core.specs import Spec
from .base import Checkpoint, Format, LaidFile, Layout
from .files import read_text
from .safetensors import SafetensorsFormat
from .torch.files import TorchFormat

__all__ = ["PeftFormat"]

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"  # PEFT reads it where the other is not
NOTES = "extraction.json"


class PeftFormat(Format):
    """Directories with `adapter_config.json`."""

    name = "peft"
    writes_files = False
    writes_directories = True
    owns_directories = True
    takes_notes = True

    def probe_directory(self, path: Path) -> bool:
        """Whether both files are there."""
        return (path / CONFIG).is_file() and any((path / name).is_file() for name in (TENSORS, PICKLED))

    def is_document(self, name: str) -> bool:
        """Without what is told of the extraction, which is true of these tensors only."""
        return name != NOTES and super().is_document(name)

    def stale(self, path: Path) -> list[Path]:
        """The files of an adapter, and what was told of them."""
        return [found for name in (CONFIG, TENSORS, PICKLED, NOTES) if (found := path / name).is_file()]

    def read_header(self, path: Path) -> Checkpoint:
        """Tensors under the names that PEFT gives them, and the configuration as metadata."""
        text = read_text(path / CONFIG, "the configuration")
        adapters.parse_config(text, str(path / CONFIG))
        tensors = path / (TENSORS if (path / TENSORS).is_file() else PICKLED)
        found = (SafetensorsFormat() if tensors.name == TENSORS else TorchFormat()).read_header(tensors)
        try:
            names = spelled(found.entries)
        except StorageError as error:
            raise error.located(str(tensors)) from None
        entries = {names[name]: entry for name, entry in found.entries.items()}
        metadata = {**found.metadata, adapters.CONFIG: text}
        files = (str(path / CONFIG), *found.files)
        return replace(found, path=str(path), format=self.name, entries=entries, metadata=metadata, files=files)

    def layout(
        self,
        path: Path,
        tensors: Sequence[tuple[str, Spec]],
        *,
        is_directory: bool,
        shard_bytes: int | None,
        metadata: Mapping[str, str],
    ) -> Layout:
        """The tensors and the configuration, which must speak of the same modules."""
        text = metadata.get(adapters.CONFIG)
        if text is None:
            raise StorageError(
                "these tensors are no adapter",
                where=str(path),
                expected=f"tensors of lora_extract or of an adapter, with {adapters.CONFIG} in their metadata",
                hint="write format: safetensors",
            )
        config = adapters.parse_config(text, str(path))
        check_agreement(config, dict(tensors), str(path))
        rest = {key: value for key, value in metadata.items() if key != adapters.CONFIG}
        made = SafetensorsFormat().layout(
            path / TENSORS, tensors, is_directory=False, shard_bytes=None, metadata={"format": "pt"} | rest
        )
        (file,) = made.files
        shown = (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
        files = (replace(file, name=TENSORS), LaidFile(CONFIG, len(shown), ((0, shown),)))
        return Layout(files, made.places, True)


def check_agreement(config: Mapping[str, object], tensors: Mapping[str, Spec], where: str) -> None:
    """Raise a StorageError unless tensors and configuration speak of the same modules."""
    try:
        pairs, _ = adapters.contents(tensors)
    except StorageError as error:
        raise error.located(where) from None
    targets = config.get("target_modules")
    if isinstance(targets, list) and not config.get("target_parameters") and not config.get("ensure_weight_tying"):
        held, wanted = {pair.module for pair in pairs}, set(targets)
        found = held.union(*map(adapters.endings, held))
        missing = [target for target in targets if target not in found]
        extra = [module for module in held - wanted if wanted.isdisjoint(adapters.endings(module))]
        if missing or extra:
            raise StorageError(
                "the adapter's tensors and its configuration do not agree",
                where=where,
                expected=f"factors of the {len(targets)} target modules",
                found=f"no factors of {missing[0]}" if missing else f"{extra[0]}, which is no target",
                hint="choose modules when extracting, instead of changing the adapter",
            )
