"""A slow interpreter of plans: one eager dictionary of arrays per alias, written from the plan language's description.

It shares no code with the engine. Float32 arithmetic is done in float64 and rounded, which is exact for one operation;
bfloat16 is rounded with integers; integers are Python's. `Tensor.quality` says how a result may be compared: by `bits`,
by `values` (NaN payloads are free) or `close` (sums of products, singular values, long normal streams).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import yaml

QUALITIES = ("bits", "values", "close")
EXPAND = re.compile(r"\$\{(\w+)\}")
DTYPES = {
    "half": "float16", "fp16": "float16", "bf16": "bfloat16", "float": "float32", "fp32": "float32",
    "double": "float64", "fp64": "float64",
    "short": "int16", "int": "int32", "long": "int64",
}  # fmt: skip


class Wrong(Exception):
    """The plan is wrong, or an assertion fails."""


class AssertionWrong(Wrong):
    """An assertion fails."""


@dataclass
class Tensor:
    array: np.ndarray
    quality: str = "bits"
    reads: int = 0
    writes: int = 1


@dataclass
class Ref:
    alias: str
    expr: str | list[str]
    index: tuple[Any, ...] | None = None


# ----------------------------------------------------------------------------------------------------- numbers


def dtype_of(name: str) -> np.dtype:
    name = name.strip().lower()
    name = DTYPES.get(name, name)
    return np.dtype(getattr(ml_dtypes, name)) if name.startswith(("bfloat", "float8")) else np.dtype(name)


def is_float(dtype: np.dtype) -> bool:
    return dtype.kind not in "biuc"


def round_bfloat16(x: np.ndarray) -> np.ndarray:
    """Float32 to bfloat16, to nearest even, by adding to the bits."""
    raw = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)
    quiet = ((raw >> 16) | 0x40).astype(np.uint16)
    return np.where(np.isnan(x), quiet, rounded).view(ml_dtypes.bfloat16)


def round_float(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float32 or float64 to another float; narrow ones by way of float32."""
    with np.errstate(all="ignore"):
        if dtype == np.float64:
            return x.astype(np.float64)
        x = x.astype(np.float32)
        if dtype == np.float32:
            return x
        return round_bfloat16(x) if dtype.name == "bfloat16" else x.astype(dtype)


def whole_to_float(number: int, precision: int) -> float:
    """An integer rounded to nearest even to so many significant bits."""
    sign, number = (-1, -number) if number < 0 else (1, number)
    shift = max(number.bit_length() - precision, 0)
    low, half = number & ((1 << shift) - 1), (1 << shift) >> 1
    number >>= shift
    if shift and (low > half or (low == half and number & 1)):
        number += 1
    return float(sign * (number << shift))


def exact(x: np.ndarray) -> np.ndarray:
    """Float64 of the same values; narrow floats by way of float32, which holds them all."""
    with np.errstate(all="ignore"):
        return (x if x.dtype == np.float64 else x.astype(np.float32)).astype(np.float64)


def wrap(number: int, dtype: np.dtype) -> int:
    width = dtype.itemsize * 8
    number &= (1 << width) - 1
    return number - (1 << width) if dtype.kind == "i" and number >> (width - 1) else number


def whole(values: list[int], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.array(values, dtype=object).astype(dtype).reshape(shape) if values else np.zeros(shape, dtype)


def combine(word: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One elementwise operation, rounded once."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise Wrong("shapes or dtypes differ")
    if a.dtype.kind == "b":
        if word == "subtract":
            raise Wrong("booleans cannot be subtracted")
        return a | b if word == "add" else a & b
    if a.dtype.kind in "iu":
        do = {"add": int.__add__, "subtract": int.__sub__, "multiply": int.__mul__}[word]
        pairs = zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True)
        return whole([wrap(do(x, y), a.dtype) for x, y in pairs], a.shape, a.dtype)
    with np.errstate(all="ignore"):
        x, y = exact(a), exact(b)
        result = np.asarray(x + y if word == "add" else x - y if word == "subtract" else x * y)
    return round_float(result, a.dtype)


def scale(x: np.ndarray, by: float) -> np.ndarray:
    if not is_float(x.dtype):
        raise Wrong("only floats are scaled here")
    with np.errstate(all="ignore"):
        factor = np.float64(by) if x.dtype == np.float64 else np.float64(np.float32(by))
        return round_float(np.asarray(exact(x) * factor), x.dtype)


def cast(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if x.dtype == dtype:
        return x
    if dtype.kind == "b":
        return np.asarray(exact(x) != 0) if is_float(x.dtype) else x != 0
    if is_float(x.dtype):
        wide = exact(x)
        if is_float(dtype):
            return round_float(wide, dtype)
        info = np.iinfo(dtype)

        def clip(number: float) -> int:
            if math.isnan(number):
                return 0
            if math.isinf(number):
                return info.max if number > 0 else info.min
            return min(max(int(number), int(info.min)), int(info.max))

        return whole([clip(number) for number in wide.reshape(-1).tolist()], x.shape, dtype)
    numbers = [int(number) for number in x.reshape(-1).tolist()]
    if dtype.kind in "iu":
        return whole([wrap(number, dtype) for number in numbers], x.shape, dtype)
    precision = 53 if dtype == np.float64 else 24
    return round_float(np.array([whole_to_float(n, precision) for n in numbers], np.float64).reshape(x.shape), dtype)


def clamp(x: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    if not is_float(x.dtype):
        x = cast(x, np.dtype(np.float32))
    wide = exact(x)
    with np.errstate(all="ignore"):
        for bound, above in ((low, False), (high, True)):
            if bound is not None:
                limit = exact(round_float(np.asarray(np.float64(bound)), x.dtype))
                wide = np.where(wide > limit if above else wide < limit, limit, wide)
    return round_float(wide, x.dtype)


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind in "iu":
        product = np.matmul(a.astype(object), b.astype(object)) if 0 not in (*a.shape, *b.shape) else np.matmul(a, b)
        flat = [wrap(int(number), a.dtype) for number in np.asarray(product, dtype=object).reshape(-1)]
        return whole(flat, np.shape(np.matmul(np.zeros(a.shape), np.zeros(b.shape))), a.dtype)
    with np.errstate(all="ignore"):
        return round_float(np.asarray(np.matmul(exact(a), exact(b))), a.dtype)


def factors(x: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    u, s, vh = np.linalg.svd(exact(x), full_matrices=False)
    r = min(rank, *x.shape)
    root = np.sqrt(s[:r])
    return root[:, None] * vh[:r], u[:, :r] * root


def drawn(spec: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, str]:
    """The seeded streams of appendix A."""
    source = np.random.MT19937()
    source._legacy_seeding(int(spec["seed"]) & 0xFFFFFFFF)
    n = math.prod(shape)

    def words(count: int) -> np.ndarray:
        return np.asarray(source.random_raw(count), np.uint64).reshape(-1)

    def singles(count: int) -> np.ndarray:
        return ((words(count) & np.uint64((1 << 24) - 1)).astype(np.float32)) * np.float32(2.0**-24)

    def doubles(count: int) -> np.ndarray:
        raw = words(2 * count)
        return ((raw[0::2] << np.uint64(32) | raw[1::2]) & np.uint64((1 << 53) - 1)).astype(np.float64) * 2.0**-53

    if spec.get("distribution", "uniform") == "uniform":
        # torch multiplies and adds with one rounding
        single = dtype != np.float64
        low, high = (float(spec.get(key, default)) for key, default in (("low", 0), ("high", 1)))
        span = Fraction(float(np.float32(high - low))) if single else Fraction(high - low)
        start = Fraction(float(np.float32(low))) if single else Fraction(low)
        made = [Fraction(float(u)) * span + start for u in (singles(n) if single else doubles(n))]
        rounded = round_float(np.array([float(number) for number in made]), dtype)
        first, last = round_float(np.array([low, high]), dtype)
        return np.where(rounded == last, first, rounded).reshape(shape), "values"  # torch keeps clear of `high`
    mean, std = float(spec.get("mean", 0)), float(spec.get("std", 1))
    if n >= 16:
        if dtype != np.float32:
            raise Wrong("not described")
        flat = singles(n)
        starts = [*range(0, n - 15, 16)]
        for start in starts:
            flat[start : start + 16] = _box_muller(flat[start : start + 16], mean, std)
        if n % 16:
            flat[-16:] = _box_muller(singles(16), mean, std)
        return flat.reshape(shape), "close"
    numbers: list[float] = []
    while len(numbers) < n:
        u1, u2 = doubles(2)
        r, t = math.sqrt(-2 * math.log1p(-u2)), 2 * math.pi * u1
        numbers += [r * math.cos(t) * std + mean, r * math.sin(t) * std + mean]
    return round_float(np.array(numbers[:n], np.float64), dtype).reshape(shape), "close"


def _box_muller(block: np.ndarray, mean: float, std: float) -> np.ndarray:
    r, t = np.sqrt(-2 * np.log(1 - block[:8])), np.float32(2 * math.pi) * block[8:]
    return np.concatenate([r * np.cos(t), r * np.sin(t)]).astype(np.float32) * np.float32(std) + np.float32(mean)


# ---------------------------------------------------------------------------------------------- names and slices


def parse_slice(text: str) -> tuple[Any, ...]:
    parts = [part.strip() for part in text[1:-1].split(",")] if text[1:-1].strip() else []
    found: list[Any] = []
    for part in parts:
        if ":" in part:
            found.append(slice(*(int(number) if number else None for number in part.split(":"))))
        else:
            found.append(int(part))
    return tuple(found)


def match_segments(pattern: list[str], segments: list[str], bound: dict[str, Any]) -> dict[str, Any] | None:
    """Structured patterns: the longest `*` first, with backtracking."""
    if not pattern:
        return bound if not segments else None
    token, rest = pattern[0], pattern[1:]
    if len(token) > 1 and token[0] == "*":
        for count in range(len(segments), -1, -1):
            taken = segments[:count]
            if bound.get(token[1:], taken) == taken:
                found = match_segments(rest, segments[count:], bound | {token[1:]: taken})
                if found is not None:
                    return found
        return None
    if not segments:
        return None
    given: dict[str, str] = {}
    if len(token) > 1 and token[0] == "$":
        given = {token[1:]: segments[0]}
    elif len(token) > 1 and token[0] == "~":
        names, separator, regex = token[1:].partition("::")
        regex = regex if separator else names
        hit = re.fullmatch(regex, segments[0])
        if hit is None:
            return None
        if separator:
            values = hit.groups() or (segments[0],)
            given = dict(zip(names.split(","), values, strict=True))
    elif token != segments[0]:
        return None
    if any(bound.get(name, value) != value for name, value in given.items()):
        return None
    return match_segments(rest, segments[1:], bound | given)


def rewrite_segments(template: list[str], bound: dict[str, Any]) -> str:
    out: list[str] = []
    for token in template:
        if len(token) > 1 and token[0] == "*":
            out += bound[token[1:]]
        elif len(token) > 1 and token[0] == "$":
            out.append(bound[token[1:].strip("{}")])
        else:
            out.append(EXPAND.sub(lambda hit: bound[hit[1]], token))
    return ".".join(out)


# ------------------------------------------------------------------------------------------------------- plans


@dataclass
class Oracle:
    """The state of a plan after some steps."""

    models: dict[str, dict[str, Tensor]]
    default: str | None = None
    stopped: bool = False
    contributed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, **inputs: dict[str, np.ndarray]) -> Oracle:
        models = {alias: {name: Tensor(array) for name, array in tensors.items()} for alias, tensors in inputs.items()}
        return cls(models, next(iter(models)) if len(models) == 1 else None)

    def run(self, plan: str) -> dict[str, Tensor]:
        """Every step of a plan; gives the model that is written."""
        for step in yaml.safe_load(plan)["transforms"]:
            self.step(step)
        offered = [alias for alias in self.contributed if self.models.get(alias)]
        if len(offered) != 1:
            raise Wrong("cannot infer the output")
        return self.models[offered[0]]

    def step(self, step: Any) -> None:
        ((word, payload),) = {step: {}}.items() if isinstance(step, str) else step.items()
        payload = {} if payload is None else payload
        if not self.stopped:
            with np.errstate(all="ignore"):
                getattr(self, f"do_{word.rstrip('_')}")(word, payload)
        for key in ("to", "target"):
            given = payload.get(key) if isinstance(payload, dict) else None
            if word in ("assert", "dump", "diff", "set", "help", "execute", "prefixes", "save") or given is None:
                continue
            if word == "cast_" and key == "to":
                continue
            alias = self.ref(given[0] if word == "split" else given).alias
            if alias not in self.contributed:
                self.contributed.append(alias)

    def ref(self, given: str | list[str], default: str | None = None) -> Ref:
        default = default or self.default
        if isinstance(given, list):
            return Ref(str(default), given)
        parts = given.split("::")
        if len(parts) == 1:
            return Ref(str(default), given)
        if len(parts) == 2:
            if default and parts[1].startswith("[") and parts[1].endswith("]"):
                return Ref(default, parts[0], parse_slice(parts[1]))
            return Ref(parts[0] or str(default), parts[1])
        return Ref(parts[0] or str(default), parts[1], parse_slice(parts[2]))

    def matches(self, ref: Ref) -> list[tuple[str, dict[str, Any]]]:
        found = []
        for name in sorted(self.models[ref.alias]):
            if isinstance(ref.expr, list):
                bound = match_segments(ref.expr, name.split("."), {})
                if bound is not None:
                    found.append((name, bound))
            elif re.fullmatch(ref.expr, name):
                found.append((name, {}))
        return found

    def select(self, ref: Ref) -> list[str]:
        found = [name for name, _ in self.matches(ref)]
        if not found:
            raise Wrong(f"matched zero tensors: {ref}")
        return found

    def rows(self, source: Ref, *templates: Ref) -> list[list[str]]:
        rows = []
        for name, bound in self.matches(source):
            row = [name]
            for template in templates:
                if isinstance(template.expr, list):
                    row.append(rewrite_segments(template.expr, bound))
                else:
                    row.append(re.sub(str(source.expr), template.expr, name))
            rows.append(row)
        if not rows:
            raise Wrong(f"matched zero tensors: {source}")
        if len({row[-1] for row in rows}) < len(rows):
            raise Wrong("destination collision")
        return rows

    def get(self, alias: str, name: str, ref: Ref | None = None, reads: int = 1) -> Tensor:
        if name not in self.models[alias]:
            raise Wrong(f"missing: {name}")
        tensor = self.models[alias][name]
        tensor.reads += reads
        array = tensor.array if ref is None or ref.index is None else np.asarray(tensor.array[ref.index])
        return Tensor(np.ascontiguousarray(array).reshape(array.shape), tensor.quality)

    def create(self, alias: str, name: str, array: np.ndarray, quality: str, reads: int = 0) -> None:
        if name in self.models[alias]:
            raise Wrong(f"destination already exists: {name}")
        self.models[alias][name] = Tensor(np.array(array), quality, reads, 1)

    def put(self, ref: Ref, name: str, array: np.ndarray, quality: str, reads: int) -> None:
        """A new version of an existing name, or of a part of it."""
        tensor = self.models[ref.alias].get(name)
        if tensor is None:
            raise Wrong(f"destination missing: {name}")
        tensor.reads += reads
        tensor.writes += 1
        if ref.index is None:
            tensor.array = np.array(array)
        else:
            if tensor.array[ref.index].shape != array.shape or tensor.array.dtype != array.dtype:
                raise Wrong("shapes or dtypes differ")
            tensor.array = np.array(tensor.array)
            tensor.array[ref.index] = array
        tensor.quality = max(tensor.quality, quality, key=QUALITIES.index) if ref.index is not None else quality

    # -- transforms ----------------------------------------------------------------------------------------------

    def _new(self, payload: dict[str, Any], compute: Any) -> None:
        source, dest = self.ref(payload["from"]), self.ref(payload["to"])
        rows = self.rows(source, dest)
        if any(new in self.models[dest.alias] for _, new in rows):
            raise Wrong("destination already exists")
        for name, new in rows:
            array, quality = compute(self.get(source.alias, name, source))
            self.create(dest.alias, new, array, quality)

    def _in_place(self, payload: dict[str, Any], compute: Any) -> None:
        target = self.ref(payload["target"])
        for name in self.select(target):
            array, quality = compute(self.get(target.alias, name, target, reads=0))
            self.put(target, name, array, quality, reads=1)

    def _either(self, word: str, payload: dict[str, Any], compute: Any) -> None:
        (self._in_place if word.endswith("_") else self._new)(payload, compute)

    def do_copy(self, word: str, payload: dict[str, Any]) -> None:
        self._new(payload, lambda x: (x.array, x.quality))

    def do_move(self, word: str, payload: dict[str, Any]) -> None:
        source, dest = self.ref(payload["from"]), self.ref(payload["to"])
        rows = self.rows(source, dest)
        if any(new in self.models[dest.alias] for _, new in rows):
            raise Wrong("destination already exists")
        for name, new in rows:
            tensor = self.models[source.alias].pop(name)
            self.create(dest.alias, new, tensor.array, tensor.quality, reads=1)

    def do_delete(self, word: str, payload: dict[str, Any]) -> None:
        target = self.ref(payload["target"])
        for name in self.select(target):
            del self.models[target.alias][name]

    def do_assign(self, word: str, payload: dict[str, Any]) -> None:
        source, dest = self.ref(payload["from"]), self.ref(payload["to"])
        for name, changed in self.rows(source, dest):
            x, old = self.get(source.alias, name, source), self.get(dest.alias, changed, dest, reads=0)
            if (x.array.shape, x.array.dtype) != (old.array.shape, old.array.dtype):
                raise Wrong("shapes or dtypes differ")
            self.put(dest, changed, x.array, x.quality, reads=2)

    def _combined(self, word: str, a: Tensor, b: Tensor) -> tuple[np.ndarray, str]:
        quality = "close" if "close" in (a.quality, b.quality) else "values"
        return combine(word, a.array, b.array), quality

    def _arithmetic(self, word: str, payload: dict[str, Any]) -> None:
        kind = word.rstrip("_")
        if word.endswith("_"):
            source, dest = self.ref(payload["from"]), self.ref(payload["to"])
            for name, changed in self.rows(source, dest):
                x = self.get(source.alias, name, source)
                old = self.get(dest.alias, changed, dest, reads=0)
                self.put(dest, changed, *self._combined(kind, old, x), reads=2)
            return
        first, second, dest = (self.ref(payload[key]) for key in ("from_a", "from_b", "to"))
        for a, b, name in self.rows(first, second, dest):
            x, y = self.get(first.alias, a, first), self.get(second.alias, b, second, reads=2)
            self.put(dest, name, *self._combined(kind, x, y), reads=2)

    do_add = do_subtract = do_multiply = _arithmetic

    def do_matmul(self, word: str, payload: dict[str, Any]) -> None:
        first, second, dest = (self.ref(payload[key]) for key in ("from_a", "from_b", "to"))
        for a, b, name in self.rows(first, second, dest):
            x, y = self.get(first.alias, a, first), self.get(second.alias, b, second, reads=2)
            quality = "close" if is_float(x.array.dtype) else "bits"
            self.create(dest.alias, name, matmul(x.array, y.array), quality)

    def do_scale(self, word: str, payload: dict[str, Any]) -> None:
        by = float(payload["by"])
        self._either(word, payload, lambda x: (scale(x.array, by), max(x.quality, "values", key=QUALITIES.index)))

    def do_cast(self, word: str, payload: dict[str, Any]) -> None:
        dtype = dtype_of(payload["to"] if word == "cast_" else payload["dtype"])

        def compute(x: Tensor) -> tuple[np.ndarray, str]:
            same = x.array.dtype == dtype
            return cast(x.array, dtype), x.quality if same else max(x.quality, "values", key=QUALITIES.index)

        self._either(word, payload, compute)

    def do_clamp(self, word: str, payload: dict[str, Any]) -> None:
        low, high = (None if key not in payload else float(payload[key]) for key in ("min", "max"))

        def compute(x: Tensor) -> tuple[np.ndarray, str]:
            if word == "clamp_" and not is_float(x.array.dtype):
                raise Wrong("would become float32")
            return clamp(x.array, low, high), max(x.quality, "values", key=QUALITIES.index)

        self._either(word, payload, compute)

    def do_reshape(self, word: str, payload: dict[str, Any]) -> None:
        self._either(word, payload, lambda x: (x.array.reshape(payload["shape"]), x.quality))

    def do_permute(self, word: str, payload: dict[str, Any]) -> None:
        self._either(word, payload, lambda x: (x.array.transpose(payload["order"]), x.quality))

    def do_fill(self, word: str, payload: dict[str, Any]) -> None:
        mode = payload["mode"].strip().lower()

        def compute(x: Tensor) -> tuple[np.ndarray, str]:
            shape, dtype = x.array.shape, x.array.dtype
            if mode == "rand":
                return drawn(payload, shape, dtype)
            given = float(payload["value"]) if mode == "constant" else payload["values"]
            flat = np.array(given, dtype=object).reshape(-1).tolist()
            if dtype.kind in "iu":
                made = np.array([int(number) for number in flat], dtype=object).astype(dtype)
            else:
                made = cast(np.array(flat, np.float64), dtype)
            return np.broadcast_to(made.reshape(np.shape(given)), shape), "values"

        self._either(word, payload, compute)

    def _make(self, payload: dict[str, Any], array: np.ndarray, quality: str = "bits") -> None:
        ref = self.ref(payload["target"])
        self.create(ref.alias, str(ref.expr), array, quality)

    def do_zeroes(self, word: str, payload: dict[str, Any]) -> None:
        self._make(payload, np.zeros(payload["shape"], np.float32))

    def do_ones(self, word: str, payload: dict[str, Any]) -> None:
        self._make(payload, np.ones(payload["shape"], np.float32))

    def do_rand(self, word: str, payload: dict[str, Any]) -> None:
        self._make(payload, *drawn(payload, tuple(payload["shape"]), np.dtype(np.float32)))

    def do_split(self, word: str, payload: dict[str, Any]) -> None:
        source = self.ref(payload["from"])
        (name,) = self.select(source)
        x = self.get(source.alias, name, source)
        ends = np.cumsum(payload["sizes"])[:-1]
        for part, array in zip(payload["to"], np.split(x.array, ends, axis=payload.get("dim", 0)), strict=True):
            ref = self.ref(part)
            self.create(ref.alias, str(ref.expr), array, x.quality)

    def do_stack(self, word: str, payload: dict[str, Any]) -> None:
        source, dest = self.ref(payload["from"]), self.ref(payload["to"])
        stacks: dict[str, dict[int, Tensor]] = {}
        for name, bound in self.matches(source):
            if isinstance(source.expr, list):
                new, number = rewrite_segments(list(dest.expr), bound), int(bound["index"])
            else:
                hit = re.fullmatch(source.expr, name)
                assert hit is not None
                new, number = re.sub(source.expr, str(dest.expr), name), int(hit["index"])
            if number in stacks.setdefault(new, {}):
                raise Wrong("a number comes twice")
            stacks[new][number] = self.get(source.alias, name, source)
        for new, parts in stacks.items():
            if sorted(parts) != list(range(len(parts))):
                raise Wrong("a number is missing")
            ordered = [parts[number] for number in sorted(parts)]
            array = np.stack([part.array for part in ordered], payload.get("dim", 0))
            self.create(dest.alias, new, array, max((part.quality for part in ordered), key=QUALITIES.index))

    def do_unstack(self, word: str, payload: dict[str, Any]) -> None:
        source, dest = self.ref(payload["from"]), self.ref(payload["to"])
        for name, bound in self.matches(source):
            x = self.get(source.alias, name, source)
            for number, array in enumerate(np.moveaxis(x.array, payload.get("dim", 0), 0)):
                if isinstance(source.expr, list):
                    new = rewrite_segments(list(dest.expr), bound | {"index": str(number)})
                else:
                    template = str(dest.expr).replace("\\g<index>", f"\\g<0>{number}\\g<0>")
                    new = re.sub(source.expr, template, name).replace(f"{name}{number}{name}", str(number))
                self.create(dest.alias, new, array, x.quality)

    def do_concat(self, word: str, payload: dict[str, Any]) -> None:
        parts = []
        for given in payload["from"]:
            ref = self.ref(given)
            (name,) = self.select(ref)
            parts.append(self.get(ref.alias, name, ref))
        dest = self.ref(payload["to"])
        array = np.concatenate([part.array for part in parts], axis=payload.get("dim", 0))
        self.create(dest.alias, str(dest.expr), array, max((part.quality for part in parts), key=QUALITIES.index))

    def do_phlora(self, word: str, payload: dict[str, Any]) -> None:
        rank = int(float(payload["rank"]))
        target = self.ref(payload["target"])
        if word == "phlora_":

            def compute(x: Tensor) -> tuple[np.ndarray, str]:
                a, b = factors(x.array, rank)
                return round_float(b @ a, x.array.dtype), "close"

            self._in_place(payload, compute)
            return
        sides = [self.ref(payload[key], target.alias) for key in ("target_a", "target_b")]
        rows = [self.rows(target, side) for side in sides]
        for (name, a), (_, b) in zip(*rows, strict=True):
            x = self.get(target.alias, name, reads=2)
            for side, dest, factor in zip(sides, (a, b), factors(x.array, rank), strict=True):
                self.create(side.alias, dest, round_float(factor, x.array.dtype), "close")
            if payload.get("delete_original", True):
                del self.models[target.alias][name]

    # -- other steps ---------------------------------------------------------------------------------------------

    def do_prefixes(self, word: str, payload: dict[str, Any]) -> None:
        mode = payload.get("mode", "list")
        if mode == "add":
            self.models[payload["alias"]] = {}
        elif mode == "remove":
            del self.models[payload["alias"]]
        elif mode == "rename":
            self.models = {payload["to"] if key == payload["from"] else key: m for key, m in self.models.items()}

    def do_execute(self, word: str, payload: dict[str, Any]) -> None:
        steps = payload["transforms"]
        for step in steps if isinstance(steps, list) else [steps]:
            ((inner, content),) = {step: {}}.items() if isinstance(step, str) else step.items()
            if not self.stopped:
                getattr(self, f"do_{inner.rstrip('_')}")(inner, content or {})

    def do_exit(self, word: str, payload: dict[str, Any]) -> None:
        self.stopped = True

    def do_help(self, word: str, payload: Any) -> None:
        pass

    do_set = do_help

    def do_dump(self, word: str, payload: dict[str, Any]) -> None:
        ref = self.ref(payload.get("target", ".*"))
        for name in self.select(ref):
            self.get(ref.alias, name)

    def do_diff(self, word: str, payload: dict[str, Any]) -> None:
        for key in ("left", "right"):
            ref = self.ref(payload[key])
            for name, _ in self.matches(ref):
                self.get(ref.alias, name)

    # -- assertions ----------------------------------------------------------------------------------------------

    def do_assert(self, word: str, payload: dict[str, Any]) -> None:
        if not self.holds(payload):
            raise AssertionWrong(str(payload))

    def holds(self, expression: dict[str, Any]) -> bool:
        ((name, payload),) = expression.items()
        if name == "all":
            return all(self.holds(part) for part in payload)
        if name in ("any", "not"):
            outcomes = (self._attempt(part) for part in ([payload] if name == "not" else payload))
            return any(outcomes) if name == "any" else not next(outcomes)
        return bool(getattr(self, f"holds_{name}")(payload))

    def _attempt(self, expression: dict[str, Any]) -> bool:
        try:
            with np.errstate(all="ignore"):
                return self.holds(expression)
        except (Wrong, IndexError, re.error):
            return False

    def _of(self, payload: Any) -> tuple[Ref, list[str]]:
        ref = self.ref(payload["of"] if isinstance(payload, dict) else payload)
        return ref, [name for name, _ in self.matches(ref)]

    def holds_exists(self, payload: Any) -> bool:
        return bool(self._of(payload)[1])

    def holds_count(self, payload: Any) -> bool:
        return 0 < len(self._of(payload)[1]) == payload["is"]

    def _every(self, payload: Any, test: Any) -> bool:
        ref, names = self._of(payload)
        return bool(names) and all([test(self.get(ref.alias, name, ref).array) for name in names])

    def holds_shape(self, payload: Any) -> bool:
        return self._every(payload, lambda x: x.shape == tuple(payload["is"]))

    def holds_dtype(self, payload: Any) -> bool:
        return self._every(payload, lambda x: x.dtype == dtype_of(payload["is"]))

    @staticmethod
    def _within(count: int, payload: dict[str, Any]) -> bool:
        tests = {
            "is": int.__eq__, "ge": int.__ge__, "gt": int.__gt__, "le": int.__le__, "lt": int.__lt__,
            "at_least": int.__ge__, "at_most": int.__le__,
        }  # fmt: skip
        return all(tests[key](count, bound) for key, bound in payload.items() if key != "of" and bound is not None)

    def holds_dimensions(self, payload: Any) -> bool:
        return self._every(payload, lambda x: self._within(x.ndim, payload))

    def holds_reads(self, payload: Any) -> bool:
        ref, names = self._of(payload)
        return bool(names) and all(self._within(self.models[ref.alias][name].reads, payload) for name in names)

    def holds_writes(self, payload: Any) -> bool:
        ref, names = self._of(payload)
        return bool(names) and all(self._within(self.models[ref.alias][name].writes, payload) for name in names)

    def holds_iszero(self, payload: Any) -> bool:
        eps = payload.get("eps") if isinstance(payload, dict) else None
        return self._every(payload, lambda x: bool(np.all(np.abs(real(x)) <= (0 if eps is None else eps))))

    def holds_equal(self, payload: Any) -> bool:
        left, right, eps = self.ref(payload["left"]), self.ref(payload["right"]), payload.get("eps")
        outcomes = []
        for name, other in self.rows(left, right):
            if other not in self.models[right.alias]:
                return False
            a = self.get(left.alias, name, left).array
            b = self.get(right.alias, other, right, reads=2).array
            if a.shape != b.shape or a.dtype != b.dtype:
                return False
            with np.errstate(all="ignore"):
                if eps is not None:
                    outcomes.append(bool(np.all(np.abs(real(a) - real(b)) <= eps)))
                else:
                    outcomes.append(bool(np.all(real(a) == real(b) if is_float(a.dtype) else a == b)))
        return all(outcomes)


def real(x: np.ndarray) -> np.ndarray:
    """Float64, or complex128."""
    if x.dtype.kind == "c":
        return x.astype(np.complex128)
    return exact(x) if is_float(x.dtype) else x.astype(np.float64)
