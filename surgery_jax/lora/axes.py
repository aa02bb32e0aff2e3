"""Whether a square weight that an adapter changes is stored as [out, in] or as [in, out].

PEFT goes by the class of the module, which no file tells. What tells: weights beside it that are not square; biases,
which are as long as the outputs are many; the version of PEFT; the type of the model. Beyond that nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..core.errors import StorageError
from . import facts as adapter_facts
from .targets import Adapter, Places, Target, is_output

__all__ = ["Asked", "Axes"]


@dataclass(frozen=True)
class Asked:
    """What a plan says of the axes of square weights; None where it leaves that to the evidence."""

    fan_in_fan_out: bool | None
    experts: str | None


class Axes:
    """The evidence of one adapter and its base."""

    def __init__(
        self, adapter: Adapter, targets: Sequence[Target], places: Places, model: adapter_facts.ModelFacts, asked: Asked
    ) -> None:
        self.adapter, self.targets, self.places, self.model, self.asked = adapter, targets, places, model, asked
        self._beside: dict[str, set[bool]] | None = None

    def is_transposed(self, target: Target, shape: Sequence[int]) -> bool:
        """Whether the weight of a target, of this shape, is stored as [in, out].

        Raises:
            StorageError: the factors do not fit it, or nothing tells.
        """
        fits = target.fits(shape)
        if not fits:
            raise self._misfit(target, shape)
        if len(fits) == 1:
            return fits[0]
        if target.is_parameter:
            return self._of_parameter(target)
        return self._of_module(target)

    # -- parameters that PEFT wraps -----------------------------------------------------------------------------------

    def _of_parameter(self, target: Target) -> bool:
        if len(target.base.shape) == 2 or target.many == 1:
            return False  # PEFT computes as with a Linear
        config = self.adapter.config
        others = {
            fits[0] for other in self.targets if other.many > 1 and len(fits := other.fits(other.base.shape)) == 1
        }
        if len(others) == 1:
            return others.pop()
        axis = adapter_facts.axis_of_inputs(config, None)
        if axis is None and self.asked.experts is not None:
            return self.asked.experts == "in_out"
        axis = axis or adapter_facts.axis_of_inputs(config, self._is_transposed_class(target))
        if axis is None:
            raise StorageError(
                f"nothing tells which axis of {target.place} belongs to the inputs",
                expected="an adapter with peft_version, and config.json beside the base",
                found=f"{target.base}, A {target.a}, B {target.b}, peft_version {config.get('peft_version')}",
                hint="experts: out_in, or experts: in_out if PEFT was older than 0.19 or the class of the experts has "
                "is_transposed, as that of gpt-oss",
            )
        return axis == 1

    def _is_transposed_class(self, target: Target) -> bool | None:
        """Whether the class of the experts has `is_transposed`: by the model's type, or what is stored beside them."""
        if self.model.is_transposed is not None:
            return self.model.is_transposed
        module = target.place.rpartition(".")[0]
        shapes: dict[str, tuple[int, ...]] = {}
        for leaf in ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias"):
            name = f"{module}.{leaf}"
            spec = self.places.spec(name) if name in self.places.names else None
            shapes[leaf] = spec.shape if spec is not None else ()
        for leaf in ("gate_up_proj", "down_proj"):
            weight, bias = shapes[leaf], shapes[f"{leaf}_bias"]
            if len(weight) == 3 and len(bias) == 2 and weight[1] != weight[2] and bias[1] in weight[1:]:
                return bias[1] == weight[2]
        up, down = shapes["gate_up_proj"], shapes["down_proj"]
        if len(up) == len(down) == 3 and up[1] == 2 * down[2] and down[1] == up[2]:
            return False  # [2 * inner, hidden] and [hidden, inner]: out first
        return None

    # -- modules ------------------------------------------------------------------------------------------------------

    def _of_module(self, target: Target) -> bool:
        beside = self._shown_beside(target)
        if beside is not None:
            return beside
        leaves = {other.pair.module.rpartition(".")[2] for other in self.targets if not other.pair.is_embedding}
        told = bool(self.adapter.config.get("fan_in_fan_out"))
        is_named_so = target.pair.module.rpartition(".")[2] in adapter_facts.CONV1D_LEAVES
        if not is_named_so and not leaves.isdisjoint(adapter_facts.CONV1D_LEAVES):
            return False  # a Linear beside Conv1D modules
        if self.asked.fan_in_fan_out is not None:
            return self.asked.fan_in_fan_out
        if not is_named_so:
            return told
        if self.model.has_conv1d is not None:
            return self.model.has_conv1d
        if told or leaves <= adapter_facts.CONV1D_LEAVES:  # of one class, so what is told of the last holds for all
            return told
        raise StorageError(
            f"nothing tells whether {target.place} is stored as [out, in] or as [in, out]",
            expected="config.json beside the base, or a weight beside it that is not square",
            found=f"{target.base}, and fan_in_fan_out of the adapter, which is that of another module",
            hint="fan_in_fan_out: true if it is a Conv1D of transformers, as in GPT-2, else fan_in_fan_out: false",
        )

    def _shown_beside(self, target: Target) -> bool | None:
        """How the nearest weights that are not square are stored: of its kind in other layers, of its block."""
        if self._beside is None:
            self._beside = {}
            for name, is_transposed in self._shown():
                for path in _ancestors(name):
                    self._beside.setdefault(path, set()).add(is_transposed)
        for path in _ancestors(target.place.rpartition(".")[0], inside=True):
            found = self._beside.get(path)
            if found:
                return next(iter(found)) if len(found) == 1 else None
        return None

    def _shown(self) -> Iterator[tuple[str, bool]]:
        """Modules of the base whose orientation their shapes tell."""
        for target in self.targets:
            fits = target.fits(target.base.shape)
            module = target.place.rpartition(".")[0]
            if len(fits) == 1 and not target.pair.is_embedding and not target.is_parameter and len(target.a.shape) == 2:
                yield from () if is_output(module) else ((module, fits[0]),)
        for name in self.places.names:
            module, _, leaf = name.rpartition(".")
            if leaf == "bias" and f"{module}.weight" in self.places.names and not is_output(module):
                bias, weight = self.places.spec(name), self.places.spec(f"{module}.weight")
                if bias is None or weight is None or len(bias.shape) != 1 or len(weight.shape) != 2:
                    continue
                if weight.shape[0] != weight.shape[1] and bias.shape[0] in weight.shape:
                    yield module, bias.shape[0] == weight.shape[1]

    def _misfit(self, target: Target, shape: Sequence[int]) -> StorageError:
        """The error of factors that cannot be added to a weight."""
        a, b = target.a.shape, target.b.shape
        shown = f"A {target.a}, B {target.b}"
        if len(a) > 2 or len(b) > 2:
            in_groups = len(shape) == len(a) and len(b) > 1 and (a[1] != shape[1] or b[1] != a[0])
            return StorageError(
                f"the factors of the convolution {target.pair.module} cannot be added to its weight {list(shape)}",
                expected=f"A [rank, {', '.join(map(str, shape[1:]))}] and B [{shape[0]}, rank, 1, ...]",
                found=shown,
                hint="the adapter mixes its groups, so no weight in groups computes the same; PEFT refuses it too"
                if in_groups
                else None,
            )
        return StorageError(
            f"the adapter does not fit the weight {target.place} {list(shape)}",
            expected=" or ".join(_wanted(target, shape)) or "factors of two axes for a weight of two axes",
            found=shown,
            hint="the factors were saved without gathering them from all devices (ZeRO-3): save the adapter again"
            if 0 in (*a, *b)
            else "the vocabulary was another one: give the base as many rows, or use the base that the adapter is for"
            if target.pair.is_embedding
            else None,
        )


def _wanted(target: Target, shape: Sequence[int]) -> list[str]:
    """The shapes of factors that would fit."""
    if len(shape) not in (2, 3) or (len(shape) == 3 and target.many == 1 and not target.is_parameter):
        return []
    rank = "rank" if target.many == 1 else f"{target.many} * rank"
    sides = [tuple(shape[-2:])] if not target.pair.is_embedding else []
    sides += [tuple(shape[-2:])[::-1]] if target.pair.is_embedding or target.many > 1 else []
    return [f"A [{rank}, {inner}] and B [{out}, {rank}]" for out, inner in sides]


def _ancestors(module: str, inside: bool = False) -> Iterable[str]:
    """The path of a module and of those around it, numbers left out, nearest first; with `inside` up to the numbered
    block that it is in."""
    words = ["#" if word.isdigit() else word for word in module.split(".")]
    least = words.index("#") + 1 if inside and "#" in words else 0
    return [".".join(words[:end]) for end in range(len(words), least - 1, -1)]
