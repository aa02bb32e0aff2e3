"""`copy`: another name for the same values."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.forms import New
from ..kit.kernel import Array, Kernel
from ..kit.structure import Run, Structure


@dataclass(frozen=True)
class Copy(Structure):
    """Copy tensors or slices of them, within a checkpoint or across.

    source: any dtype, any shape -> the same bits, independent of the source afterwards.
    """

    spellings = (New("copy"),)
    examples = ("copy: { from: 'mlp\\.(.+)', to: 'experts.0.\\1' }", "copy: { from: 'a::emb::[:100]', to: 'b::head' }")

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        return (source,)

    def is_identity(self, source: Spec) -> bool:
        return True

    def runs(self, source: Spec) -> list[Run]:
        return [(0, 0, source.size)] if source.size else []

    def apply(self, k: Kernel, source: Array) -> Array:
        return source
