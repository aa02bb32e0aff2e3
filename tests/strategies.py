"""What Hypothesis draws for the engine's tests: small checkpoints with special values, and steps valid for a state."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from hypothesis import strategies as st
from oracle import Oracle, Tensor, is_float
from running import bits, dtype

FLOATS = ("float32", "bfloat16", "float16", "float64")
SMALL_FLOATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
NUMBERS = (*FLOATS, *SMALL_FLOATS, *INTEGERS)
ALL = (*NUMBERS, "bool", "complex64", "float8_e8m0fnu")

SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    math.inf,
    -math.inf,
    math.nan,
    1e-40,
    -1e-45,
    2.0**-126,
    2.0**-133,
    6e-8,
    3.4e38,
    65504,
    448,
]


def array_of(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Elements of every kind: any bit pattern, special values, ordinary numbers."""
    rng = np.random.default_rng(seed)
    made = dtype(name)
    size = math.prod(shape)
    if name == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if made.kind in "iu":
        info = np.iinfo(made)
        wide = rng.integers(info.min, info.max, size, dtype=made, endpoint=True)
        small = rng.integers(0, 4, size).astype(made)
        edge = rng.choice(np.array([info.min, info.max, info.max - 1, 0, 1], made), size)
        return np.choose(rng.integers(0, 3, size), [wide, small, edge]).astype(made).reshape(shape)
    raw = rng.integers(0, 256, size * made.itemsize, dtype=np.uint8).view(made)
    if made.kind == "c" or name == "float8_e8m0fnu":
        return raw.reshape(shape)
    with np.errstate(all="ignore"):
        plain = rng.standard_normal(size).astype(made)
        special = rng.choice(np.array(SPECIAL), size).astype(made)
        kinds = rng.integers(0, 4, size) if seed % 3 else np.zeros(size, int)  # a third holds ordinary numbers alone
        chosen = np.choose(kinds, [bits(plain), bits(special), bits(raw), bits(plain)])
    return chosen.view(made).reshape(shape)


shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple) | st.just((0, 3)) | st.just((33, 5))


@st.composite
def checkpoints(draw: Any) -> dict[str, np.ndarray]:
    """Equal layers and a few other tensors."""
    tensors = {}
    for part in draw(st.lists(st.sampled_from(["w", "b", "gate"]), min_size=1, max_size=3, unique=True)):
        name, shape = draw(st.sampled_from(ALL + FLOATS * 3)), draw(shapes)
        for layer in (0, 1, 2, 10)[: draw(st.integers(1, 4))]:
            tensors[f"h.{layer}.{part}"] = array_of(name, shape, draw(st.integers(0, 10**6)))
    for extra in draw(st.lists(st.sampled_from(["emb", "ln", "head"]), max_size=3, unique=True)):
        tensors[extra] = array_of(draw(st.sampled_from(ALL + FLOATS * 3)), draw(shapes), draw(st.integers(0, 10**6)))
    return tensors


def slices(draw: Any, shape: tuple[int, ...]) -> str:
    """A slice that selects something, as text."""
    parts = []
    for length in shape[: draw(st.integers(0, len(shape)))]:
        if length and draw(st.booleans()):
            parts.append(str(draw(st.integers(-length, length - 1))))
        else:
            start, stop = draw(st.integers(0, length)), draw(st.integers(0, length + 2))
            step = draw(st.sampled_from(["", ":1", ":2"]))
            parts.append(f"{start}:{stop}{step}" if draw(st.booleans()) else f":{stop}")
    return "[" + ", ".join(parts) + "]"


class Steps:
    """Draws steps that are valid after those before them; `state` runs along."""

    def __init__(self, draw: Any, state: Oracle) -> None:
        self.draw = draw
        self.state = state
        self.made = 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.state.models["m"]

    def pick(self, test: Any = lambda tensor: True) -> str | None:
        names = [name for name, tensor in self.tensors.items() if test(tensor)]
        return self.draw(st.sampled_from(names)) if names else None

    def new(self) -> str:
        self.made += 1
        return f"n.{self.made}"

    def array(self, name: str) -> np.ndarray:
        return self.tensors[name].array

    def sliced(self, name: str) -> str:
        return f"m::{name}::{slices(self.draw, self.array(name).shape)}" if self.draw(st.booleans()) else name

    def either(self, word: str, test: Any, payload: dict[str, Any], slices: bool = True) -> Any:
        """A new tensor or the same; sometimes all layers at once."""
        name = self.pick(test)
        if name is None:
            return None
        in_place = self.draw(st.booleans())
        part = name.split(".")[-1]
        layers = [other for other in self.tensors if other.startswith("h.") and other.split(".")[2] == part]
        if name in layers and len(layers) > 1 and all(test(self.tensors[other]) for other in layers):
            source, dest = rf"h\.(\d+)\.{name.split('.')[-1]}", rf"{self.new()}.\1"
        else:
            source = self.sliced(name) if slices or not in_place else name
            dest = self.new()
        if in_place:
            renamed = {"dtype": "to"} if word == "cast" else {}
            return {f"{word}_": {"target": source, **{renamed.get(key, key): value for key, value in payload.items()}}}
        return {word: {"from": source, "to": dest, **payload}}

    # -- one method per kind of step ---------------------------------------------------------------------------

    def copy(self) -> Any:
        name = self.pick()
        return name and {"copy": {"from": self.sliced(name), "to": self.new()}}

    def move(self) -> Any:
        name = self.pick()
        if name and name.startswith("h.") and self.draw(st.booleans()):
            return {"move": {"from": ["h", "$i", name.split(".")[2]], "to": [self.new(), "x${i}"]}}
        return name and {"move": {"from": name, "to": self.new()}}

    def delete(self) -> Any:
        return {"delete": {"target": self.pick()}} if len(self.tensors) > 2 else None

    def twins(self, test: Any) -> tuple[str, str] | None:
        pairs = [
            (a, b) for a, x in self.tensors.items() for b, y in self.tensors.items()
            if test(x) and test(y) and (x.array.shape, x.array.dtype) == (y.array.shape, y.array.dtype)
        ]  # fmt: skip
        return self.draw(st.sampled_from(pairs)) if pairs else None

    def assign(self) -> Any:
        pair = self.twins(lambda x: True)
        if pair is None:
            return None
        part = f"::{slices(self.draw, self.array(pair[0]).shape)}" if self.draw(st.booleans()) else ""
        return {"assign": {"from": f"m::{pair[0]}{part}", "to": f"m::{pair[1]}{part}"}}

    def arithmetic(self) -> Any:
        def computable(x: Tensor) -> bool:
            return x.array.dtype.kind not in "bc" and x.array.dtype.name != "float8_e8m0fnu" and x.quality != "close"

        pair = self.twins(computable)
        if pair is None:
            return None
        a, b = pair
        word = self.draw(st.sampled_from(["add", "subtract", "multiply", "add_", "subtract_"]))
        part = f"::{slices(self.draw, self.array(a).shape)}" if self.draw(st.booleans()) else ""
        if word.endswith("_"):
            return {word: {"from": f"m::{a}{part}", "to": f"m::{b}{part}"}}
        dest = self.draw(st.sampled_from([a, b]))
        return {word: {"from_a": f"m::{a}{part}", "from_b": f"m::{b}{part}", "to": f"m::{dest}{part}"}}

    def scale(self) -> Any:
        by = self.draw(st.sampled_from([0.5, -1, 3, 0.1, 1e-30, 2.0**-140, 1e30, 0, 1 / 3]))
        return self.either("scale", lambda x: self.plain_float(x) and x.quality != "close", {"by": by})

    @staticmethod
    def plain_float(x: Tensor) -> bool:
        return is_float(x.array.dtype) and x.array.dtype.name != "float8_e8m0fnu"

    def cast(self) -> Any:
        def test(x: Tensor) -> bool:
            return x.array.dtype.kind != "c" and x.array.dtype.name != "float8_e8m0fnu" and x.quality != "close"

        name = self.draw(st.sampled_from((*NUMBERS, *FLOATS, "bool")))
        return self.either("cast", test, {"dtype": name}, slices=False)

    def clamp(self) -> Any:
        low, high = sorted([self.draw(st.sampled_from([-2, -0.1, 0, 1e-42, 0.3, 70000])) for _ in range(2)])
        given = self.draw(st.sampled_from([{"min": low}, {"max": high}, {"min": low, "max": high}]))
        return self.either("clamp", lambda x: self.plain_float(x) and x.quality != "close", given)

    def reshape(self) -> Any:
        name = self.pick(lambda x: x.array.size > 0)
        if name is None:
            return None
        shape = list(self.array(name).shape)[::-1]
        new = self.draw(st.sampled_from([[-1], [1, *shape], [*shape, 1], shape or [1]]))
        word = self.draw(st.sampled_from(["reshape", "reshape_"]))
        return {
            word: {"target": name, "shape": new} if word[-1] == "_" else {"from": name, "to": self.new(), "shape": new}
        }

    def permute(self) -> Any:
        name = self.pick(lambda x: x.array.ndim > 0)
        order = name and self.draw(st.permutations(range(self.array(name).ndim)))
        return name and {"permute": {"from": name, "to": self.new(), "order": list(order)}}

    def fill(self) -> Any:
        how = self.draw(st.integers(0, 2))
        if how == 2:
            seeded = {"mode": "rand", "low": -1, "high": 3, "seed": self.draw(st.integers(-3, 2**33))}
            return self.either("fill", lambda x: x.array.dtype.name in FLOATS, seeded)
        payload = [{"mode": "constant", "value": 2.7}, {"mode": "tensor", "values": [3]}][how]
        return self.either(
            "fill", lambda x: x.array.ndim > 0 and x.array.dtype.kind != "c" and self.no_e8(x), payload, slices=False
        )

    @staticmethod
    def no_e8(x: Tensor) -> bool:
        return x.array.dtype.name != "float8_e8m0fnu"

    def create(self) -> Any:
        word = self.draw(st.sampled_from(["zeroes", "ones", "rand"]))
        shape = self.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        return {word: {"target": self.new(), "shape": shape, **({"seed": 7} if word == "rand" else {})}}

    def split(self) -> Any:
        name = self.pick(lambda x: max(x.array.shape, default=0) > 1)
        if name is None:
            return None
        axes = [axis for axis, length in enumerate(self.array(name).shape) if length > 1]
        axis = self.draw(st.sampled_from(axes))
        at = self.draw(st.integers(1, self.array(name).shape[axis] - 1))
        sizes = [at, self.array(name).shape[axis] - at]
        return {"split": {"from": name, "to": [self.new(), self.new()], "sizes": sizes, "dim": axis}}

    def concat(self) -> Any:
        pair = self.twins(lambda x: x.array.ndim > 0)
        axis = pair and self.draw(st.integers(-self.array(pair[0]).ndim, self.array(pair[0]).ndim - 1))
        return pair and {"concat": {"from": list(pair), "to": self.new(), "dim": axis}}

    def stack(self) -> Any:
        """All layers of a part, if none is missing; or a tensor taken apart."""
        parts = [
            part for part in ("w", "b", "gate")
            if sum(f"h.{layer}.{part}" in self.tensors for layer in range(3)) == len(self.layers(part)) > 0
            and f"h.{len(self.layers(part)) - 1}.{part}" in self.tensors
            and len({(x.array.shape, x.array.dtype) for x in self.layers(part)}) == 1
        ]  # fmt: skip
        if parts and self.draw(st.booleans()):
            part = self.draw(st.sampled_from(parts))
            axis = self.draw(st.integers(-self.layers(part)[0].array.ndim - 1, self.layers(part)[0].array.ndim))
            source: Any = self.draw(st.sampled_from([rf"h\.(?P<index>\d+)\.{part}", ["h", "$index", part]]))
            dest = self.new()
            return {"stack": {"from": source, "to": dest if isinstance(source, str) else [dest], "dim": axis}}
        name = self.pick(lambda x: x.array.ndim > 0 and 0 not in x.array.shape)
        axis = name and self.draw(st.integers(-self.array(name).ndim, self.array(name).ndim - 1))
        return name and {"unstack": {"from": name, "to": rf"{self.new()}.\g<index>", "dim": axis}}

    def layers(self, part: str) -> list[Tensor]:
        return [x for name, x in self.tensors.items() if re.fullmatch(rf"h\.\d+\.{part}", name)]

    def matmul(self) -> Any:
        def test(x: Tensor) -> bool:
            ok = x.array.ndim > 0 and x.array.size > 0 and x.array.dtype.kind not in "bc" and x.quality != "close"
            return ok and (not is_float(x.array.dtype) or (x.array.dtype.itemsize > 1 and small(x.array)))

        pairs = [
            (a, b) for a, x in self.tensors.items() for b, y in self.tensors.items()
            if test(x) and test(y) and x.array.dtype == y.array.dtype and x.array.shape[-1] == y.array.shape[0]
            and y.array.ndim <= 2
        ]  # fmt: skip
        pair = self.draw(st.sampled_from(pairs)) if pairs else None
        return pair and {"matmul": {"from_a": pair[0], "from_b": pair[1], "to": self.new()}}

    def check(self) -> Any:
        """An assertion that holds: one that does not is wrapped in `not`."""
        name = self.pick(lambda x: x.quality != "close" and x.array.dtype.kind != "c" and self.no_e8(x))
        if name is None:
            return None
        pair = self.twins(lambda x: x.quality != "close" and x.array.dtype.kind != "c" and self.no_e8(x))
        other = pair[1] if pair else name
        eps = self.draw(st.sampled_from([None, 0, 1e-45, 1e-3, 5]))
        expression = self.draw(
            st.sampled_from(
                [
                    {"iszero": self.sliced(name)},
                    {"iszero": {"of": self.sliced(name), **({} if eps is None else {"eps": eps})}},
                    {
                        "equal": {
                            "left": pair[0] if pair else name,
                            "right": other,
                            **({} if eps is None else {"eps": eps}),
                        }
                    },
                    {"shape": {"of": name, "is": list(self.array(name).shape)}},
                    {"dimensions": {"of": ".*", "ge": 1}},
                    {"exists": r"h\..*"},
                    {"count": {"of": ".*", "is": len(self.tensors)}},
                    {"all": [{"exists": name}, {"iszero": name}]},
                    {"any": [{"iszero": name}, {"dimensions": {"of": name, "lt": 2}}]},
                ]
            )
        )
        return {"assert": expression if self.state._attempt(expression) else {"not": expression}}

    def next(self) -> Any:
        """The next step, which `state` has run."""
        kinds = [
            self.copy, self.move, self.delete, self.assign, self.arithmetic, self.arithmetic, self.scale, self.cast,
            self.cast, self.clamp, self.reshape, self.permute, self.fill, self.create, self.split, self.concat,
            self.stack, self.matmul, self.check, self.check,
        ]  # fmt: skip
        step = self.draw(st.sampled_from(kinds))()
        if step:
            self.state.step(step)
        return step


def small(x: np.ndarray) -> bool:
    """Finite and moderate, so that sums of products can be compared."""
    with np.errstate(all="ignore"):
        wide = np.abs(x.astype(np.float64))
    return bool(np.all(np.isfinite(wide)) and wide.max(initial=0) < 1e3)


@st.composite
def plans(draw: Any, max_steps: int = 8) -> tuple[dict[str, np.ndarray], list[Any], Oracle]:
    """A checkpoint, steps that are valid on it, and what they give."""
    tensors = draw(checkpoints())
    state = Oracle.of(m={name: array.copy() for name, array in tensors.items()})
    steps = Steps(draw, state)
    drawn = [steps.next() for _ in range(draw(st.integers(1, max_steps)))]
    return tensors, [step for step in drawn if step], state
