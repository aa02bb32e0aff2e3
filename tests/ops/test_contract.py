"""What every transform and every predicate promises: loops over the registries, so a new one is tested."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import oracle
import pytest
from running import assert_same_bits, assert_same_values
from strategies import FLOATS, NUMBERS, SMALL_FLOATS, array_of

import surgery_jax.kit.predicates as asserts
from surgery_jax.asserts.iszero import ZeroMask
from surgery_jax.core.digests import encoded
from surgery_jax.core.dtypes import BY_NAME, by_numpy
from surgery_jax.core.errors import Mark, PlanError
from surgery_jax.core.exact import exact
from surgery_jax.core.specs import Spec
from surgery_jax.graph.build import parse_step
from surgery_jax.kit.base import TensorOp, fields_of, find_word, words
from surgery_jax.kit.made import Constant, Given, Made, Random
from surgery_jax.kit.masks import EqualMask
from surgery_jax.kit.structure import Structure, Update, View
from surgery_jax.language.document import parse_yaml
from surgery_jax.language.slices import Indices
from surgery_jax.lora.factors import AddFactors, ExtractFactors, Spectrum
from surgery_jax.numerics.kernels import DeviceKernel, HostKernel
from surgery_jax.ops.add import Add
from surgery_jax.ops.assign import Assign
from surgery_jax.ops.cast import Cast
from surgery_jax.ops.clamp import Clamp
from surgery_jax.ops.concat import Concat
from surgery_jax.ops.copy import Copy
from surgery_jax.ops.describe import describe
from surgery_jax.ops.fill import Fill
from surgery_jax.ops.matmul import Matmul
from surgery_jax.ops.multiply import Multiply
from surgery_jax.ops.permute import Permute
from surgery_jax.ops.phlora import Factors, LowRank
from surgery_jax.ops.reshape import Reshape
from surgery_jax.ops.scale import Scale
from surgery_jax.ops.stack import Stack
from surgery_jax.ops.subtract import Subtract
from surgery_jax.reports.spectrum import SingularValues

HERE = Mark("plan.yaml", 1, 1)


def all_ops(cls: type = TensorOp) -> Iterator[type[TensorOp]]:
    words(), asserts.predicates()
    for sub in cls.__subclasses__():
        if sub.__module__.startswith("surgery_jax."):
            yield sub
        yield from all_ops(sub)


# ------------------------------------------------------------------------------------------------ declarations


@pytest.mark.parametrize("word", words())
def test_every_word_has_help_and_examples_that_parse(word: str) -> None:
    entry = find_word(word)
    assert entry.doc.endswith((".", ":")) and entry.examples
    for example in entry.examples:
        step = parse_step(parse_yaml(example, "example", interpolate=False))
        assert step.word is entry
        assert example in describe(word)
    for key, (_, field) in entry.fields.items():
        assert field.doc and field.kind and f"  {key}: {field.kind}" in describe(word)


TAKING = [word for word, entry in words().items() if entry.fields and not getattr(entry.cls, "takes", "")]


@pytest.mark.parametrize("word", TAKING)
def test_an_unknown_key_is_refused_with_the_nearest_one(word: str) -> None:
    key = next(iter(find_word(word).fields))
    with pytest.raises(PlanError) as refused:
        parse_step(parse_yaml(f"{word}: {{ {key}s: 1 }}", "p.yaml", interpolate=False))
    assert f"{word} received unknown keys" in refused.value.problem
    assert str(refused.value.hint).startswith("did you mean ") and refused.value.hint != "did you mean ?"
    assert str(refused.value.where) == f"p.yaml:1:{len(word) + 5}"


def test_an_unknown_word_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(PlanError, match="unknown transform 'reshap'") as refused:
        parse_step(parse_yaml("reshap: { from: a }", "p.yaml", interpolate=False))
    assert "reshape" in str(refused.value.hint)


@pytest.mark.parametrize("name", asserts.predicates())
def test_every_predicate_has_help_and_examples_that_parse(name: str) -> None:
    predicate = asserts.predicates()[name]
    assert predicate.__doc__ and predicate.examples
    for example in predicate.examples:
        step = parse_step(parse_yaml(f"assert: {{ {example} }}", "example", interpolate=False))
        assert step.word.name == "assert"
        assert example in describe("assert", name)


@pytest.mark.parametrize("name", [name for name in asserts.predicates() if not asserts.predicates()[name].takes])
def test_an_unknown_key_of_a_predicate_is_refused_with_the_nearest_one(name: str) -> None:
    key = next(key for key, (_, field) in fields_of(asserts.predicates()[name]).items() if field.required)
    with pytest.raises(PlanError) as refused:
        parse_step(parse_yaml(f"assert: {{ {name}: {{ {key}s: 1 }} }}", "p.yaml", interpolate=False))
    assert "received unknown keys" in refused.value.problem and f"did you mean {key}" in str(refused.value.hint)


# ------------------------------------------------------------------------------------------------ computation

Case = tuple[TensorOp, list[np.ndarray]]


def pair(name: str, seed: int = 1) -> list[np.ndarray]:
    return [array_of(name, (5, 7), 3 * seed), array_of(name, (5, 7), 3 * seed + 3)]


def ordinary(name: str, *shape: int) -> np.ndarray:
    return array_of(name, shape, 3)


def spec_of(array: np.ndarray) -> Spec:
    found = by_numpy(array.dtype)
    assert found is not None
    return Spec(array.shape, found)


def spec(name: str, *shape: int) -> Spec:
    return Spec(shape, BY_NAME[name])


VIEW = View(((1, 2, 2), (0, 1, 3), (2, 1, 1)), (False, False, True))
UPDATE = Update(VIEW)


CHOSEN = View((Indices((0, 1, 4)), (2, 1, 1), Indices((3, 1))), (False, True, False))


def indices(view: View) -> Any:
    chosen = (
        axis.places if isinstance(axis, Indices) else range(axis[0], axis[0] + axis[1] * axis[2], axis[1])
        for axis in view.axes
    )
    return np.ix_(*chosen)


def put(op: Update, base: np.ndarray, value: np.ndarray) -> np.ndarray:
    result = base.copy()
    result[indices(op.view)] = value.reshape(op.view.counts)
    return result


def half_equal(name: str) -> list[np.ndarray]:
    a, b = pair(name)
    return [a, np.where(np.arange(35).reshape(5, 7) % 2, a, b)]


def equal(op: EqualMask, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = oracle.real(a), oracle.real(b)
    return (x == y if a.dtype.kind not in "iu" else a == b) if op.eps is None else np.abs(x - y) <= op.eps


def gaussian_pair(name: str, *shape: int) -> list[np.ndarray]:
    return [gaussian(name, seed, *shape) for seed in (3, 4)]


def gaussian(name: str, seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(BY_NAME[name].numpy)


def change(base: np.ndarray, tuned: np.ndarray, turned: bool) -> np.ndarray:
    """[experts, out, in] in float64."""
    made = tuned.astype(np.float64) - base.astype(np.float64)
    made = made.reshape(-1, *made.shape[-2:])
    return made.swapaxes(1, 2) if turned else made


def extracted(op: ExtractFactors, base: np.ndarray, tuned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best approximation of every matrix, and the squared norms of the change and of the remainder."""
    made = change(base, tuned, op.transposed)
    u, s, vt = np.linalg.svd(made, full_matrices=False)
    rank = int(op.rank)
    best = (u[:, :, :rank] * s[:, None, :rank]) @ vt[:, :rank]
    return best, np.array([np.square(s).sum(), np.square(s[:, rank:]).sum()])


def spectrum(count: int, base: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    made = change(base, tuned, False)
    wide = tuned.astype(np.float64).reshape(made.shape)
    step = np.spacing(np.abs(tuned)).astype(np.float64).reshape(made.shape)
    assert (wide != 0).all()
    noise = (np.square(step) / 12 * (made != 0)).sum(axis=(1, 2))
    energies = np.square(np.linalg.svd(made, compute_uv=False))
    return np.concatenate([np.square(made).sum(axis=(1, 2))[:, None], noise[:, None], energies[:, :count]], axis=1)


def added(name: str, experts: int, turned: bool, adapters: int) -> list[np.ndarray]:
    base = gaussian(name, 1, *([experts] if experts else []), *((5, 6) if turned else (6, 5)))
    many = max(experts, 1)
    return [base] + [
        gaussian("float32", seed, *shape)
        for seed, rank in ((5, 2), (7, 4))[:adapters]
        for shape in ((rank * many, 5), (6, rank * many))
    ]


def merged(op: AddFactors, base: np.ndarray, *given: np.ndarray) -> np.ndarray:
    """As PEFT says it (`get_delta_weight`): experts first in A, ranks first in B."""
    many = base.shape[0] if base.ndim == 3 else 1
    total = base.astype(np.float64).reshape(many, *base.shape[-2:])
    for a, b, turned, scale in zip(given[::2], given[1::2], op.transposed, op.scales, strict=True):
        left = b.astype(np.float64).reshape(b.shape[0], -1, many)
        right = a.astype(np.float64).reshape(many, -1, a.shape[1])
        total = total + scale * np.einsum("ore,eri->eio" if turned else "ore,eri->eoi", left, right)
    return oracle.round_float(total, base.dtype).reshape(base.shape)


# class name -> (cases, the same in plain NumPy or in the oracle, how exact)
REFERENCES: dict[str, tuple[list[Case], Callable[..., Any], str]] = {
    "Add": ([(Add(), pair(n)) for n in (*NUMBERS, "bool")], lambda op, a, b: oracle.combine("add", a, b), "values"),
    "Subtract": ([(Subtract(), pair(n)) for n in NUMBERS], lambda op, a, b: oracle.combine("subtract", a, b), "values"),
    "Multiply": (
        [(Multiply(), pair(n)) for n in (*NUMBERS, "bool")],
        lambda op, a, b: oracle.combine("multiply", a, b),
        "values",
    ),
    "Scale": (
        [(Scale(by), pair(n)[:1]) for n in (*FLOATS, *SMALL_FLOATS) for by in (0.1, -3.0)],
        lambda op, x: oracle.scale(x, op.by),
        "values",
    ),
    "Cast": (
        [
            (Cast(BY_NAME[to]), pair(n)[:1])
            for n in (*NUMBERS, "bool")
            for to in ("float16", "bfloat16", "int8", "uint64", "bool")
        ],
        lambda op, x: oracle.cast(x, oracle.dtype_of(op.dtype.name)),
        "values",
    ),
    "Clamp": (
        [(Clamp(-0.3, 1.0), pair(n)[:1]) for n in (*NUMBERS, "bool")] + [(Clamp(None, 0.1), pair("bfloat16")[:1])],
        lambda op, x: oracle.clamp(x, op.min, op.max),
        "values",
    ),
    "Matmul": (
        [
            (Matmul(), [ordinary(n, 2, 3, 4), ordinary(n, 4, 5)])
            for n in ("float32", "bfloat16", "float64", "int8", "int64")
        ]
        + [
            (Matmul(), [ordinary("float32", 4), ordinary("float32", 4)]),
            (Matmul(), [ordinary("int32", 4), ordinary("int32", 4, 2)]),
        ],
        lambda op, a, b: oracle.matmul(a, b),
        "close",
    ),
    "Copy": ([(Copy(), [ordinary(n, 2, 3)]) for n in NUMBERS], lambda op, x: x, "bits"),
    "Assign": ([(Assign(), pair("float16"))], lambda op, a, b: b, "bits"),
    "Reshape": ([(Reshape((7, -1)), pair(n)[:1]) for n in ("int8", "float64")], lambda op, x: x.reshape(7, 5), "bits"),
    "Permute": ([(Permute((2, 0, 1)), [ordinary("bfloat16", 2, 2, 4)])], lambda op, x: x.transpose(2, 0, 1), "bits"),
    "Concat": (
        [(Concat(axis), [ordinary("int16", 2, 3), ordinary("int16", 2, 3)]) for axis in (0, 1, -1)],
        lambda op, *parts: np.concatenate(parts, op.dim),
        "bits",
    ),
    "Stack": (
        [(Stack(axis), [ordinary("int16", 2, 2)] * 2 + [ordinary("int16", 2, 2) + 1]) for axis in (0, 1, 2, -1, -3)],
        lambda op, *parts: np.stack(parts, op.dim),
        "bits",
    ),
    "View": (
        [(view, [ordinary(n, 5, 3, 4)]) for n in ("float8_e4m3fn", "float64") for view in (VIEW, CHOSEN)],
        lambda op, x: x[indices(op)].reshape(op.shape),
        "bits",
    ),
    "Update": (
        [(UPDATE, [ordinary(n, 5, 3, 4), ordinary(n, 2, 3)]) for n in ("int8", "float64")]
        + [(Update(CHOSEN), [ordinary("int16", 5, 3, 4), ordinary("int16", 3, 2)])],
        put,
        "bits",
    ),
    "EqualMask": ([(EqualMask(eps), half_equal(n)) for n in NUMBERS for eps in (None, 0.5)], equal, "bits"),
    "ZeroMask": (
        [(ZeroMask(eps), pair(n)[:1]) for n in NUMBERS for eps in (None, 0.5)],
        lambda op, x: np.abs(oracle.real(x)) <= (op.eps or 0),
        "bits",
    ),
    "LowRank": (
        [(LowRank(2), [ordinary(n, *shape)]) for n in ("float32", "bfloat16", "float64") for shape in ((6, 4), (3, 5))],
        lambda op, x: oracle.round_float(np.matmul(*oracle.factors(x, op.rank)[::-1]), x.dtype),
        "close",
    ),
    "Factors": (
        [(Factors(2), [ordinary(n, *shape)]) for n in ("float32", "float16", "float64") for shape in ((6, 4), (3, 5))],
        lambda op, x: oracle.factors(x, op.rank),
        "product",
    ),
    "ExtractFactors": (
        [
            (ExtractFactors(room, "auto", BY_NAME["float32"], turned, 2.0, width), gaussian_pair(n, *shape))
            for n, shape, room, width, turned in (
                ("bfloat16", (6, 5), 4, 3.0, True),
                ("float32", (3, 6, 5), 3, 3.0, False),
            )
        ],
        lambda op, base, tuned: extracted(op, base, tuned),
        "extracted",
    ),
    "Spectrum": (
        [
            (Spectrum(2, "auto"), gaussian_pair("bfloat16", 6, 5)),
            (Spectrum(5, "auto"), gaussian_pair("float32", 3, 6, 5)),
        ],
        lambda op, base, tuned: spectrum(op.count, base, tuned),
        "single",
    ),
    "SingularValues": (
        [
            (SingularValues(True), [gaussian("float32", 5, 6, 4)]),
            (SingularValues(False), gaussian_pair("bfloat16", 4, 7)),
        ],
        lambda op, *arrays: np.linalg.svd(
            arrays[0].astype(np.float64) - (0 if op.alone else arrays[1].astype(np.float64)), compute_uv=False
        ),
        "single",
    ),
    "AddFactors": (
        [
            (AddFactors((turned,) * adapters, (0.5, -2.0)[:adapters]), added(n, experts, turned, adapters))
            for n, experts in (("bfloat16", 0), ("float32", 3))
            for turned in (False, True)
            for adapters in (1, 2)
        ]
        + [
            (  # square, and of two opinions
                AddFactors((True, False), (0.5, -2.0)),
                [gaussian("float32", seed, *shape) for seed, shape in enumerate([(3, 6, 6), *[(6, 6)] * 4], 1)],
            )
        ],
        lambda op, base, *given: merged(op, base, *given),
        "close",
    ),
    "Constant": (
        [(Constant(spec(n, 3, 4), 2.7), []) for n in NUMBERS],
        lambda op: np.full((3, 4), 2.7 if op.spec.dtype.is_float else 2),
        "made",
    ),
    "Given": (
        [(Given(spec(n, 2, 3), (1.5, -2, 7)), []) for n in FLOATS],
        lambda op: np.array([[1.5, -2, 7]] * 2),
        "made",
    ),
    "Random": (
        [(Random(spec(n, 5, 7), "uniform", -1.0, 2.0, 7), []) for n in FLOATS],
        lambda op: oracle.drawn({"low": -1, "high": 2, "seed": 7}, (5, 7), op.spec.dtype.numpy)[0],
        "made",
    ),
}


def own_references() -> dict[str, tuple[list[Case], Callable[..., Any], str]]:
    """What the tests of single operations and assertions give in their `REFERENCES`: a new one needs no line here."""
    found = {}
    for path in sorted(Path(__file__).parents[1].glob("*/test_*.py")):
        if path != Path(__file__) and "\nREFERENCES" in path.read_text():
            described = importlib.util.spec_from_file_location(f"references_of_{path.stem}", path)
            assert described is not None and described.loader is not None
            module = importlib.util.module_from_spec(described)
            described.loader.exec_module(module)
            found.update(module.REFERENCES)
    return found


REFERENCES |= own_references()
COMPUTED = [name for name, (_, _, how) in REFERENCES.items() if how != "made"]


@pytest.mark.parametrize("cls", list(all_ops()), ids=lambda cls: cls.__name__)
def test_every_operation_has_a_reference(cls: type[TensorOp]) -> None:
    if cls.kind == "template":
        assert hasattr(cls, "made")  # it stands for operations of `kit.made`
    elif cls.kind == "composed":
        assert cls.compose is not TensorOp.compose and cls.spellings
    elif cls.spellings or not cls.__subclasses__():  # others are what these have in common
        assert REFERENCES[cls.__name__][0], f"no test of an operation has a case of {cls.__name__}"


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_every_operation_has_a_digest_that_tells_it_from_others(name: str) -> None:
    """Its fields are values that mean the same in every process."""
    operations = [case[0] for case in REFERENCES[name][0]]
    assert len(set(map(encoded, operations))) == len(set(map(exact, operations)))


def assert_matches(found: Sequence[np.ndarray], expected: Any, how: str) -> None:
    if how == "extracted":
        a, b, norms = (array.astype(np.float64) for array in found)
        best, wanted = expected
        width = 3  # of all cases
        many, out, _ = best.shape
        parts = b[: out * width * many].reshape(out, width, many), a[: many * width].reshape(many, width, -1)
        np.testing.assert_allclose(np.einsum("ore,eri->eoi", *parts), best, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(norms, wanted, rtol=1e-5)
    elif how == "product":
        product = found[1].astype(np.float64) @ found[0].astype(np.float64)
        tolerance = 1e-2 if found[0].dtype.itemsize == 2 else 1e-5
        np.testing.assert_allclose(product, expected[1] @ expected[0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(
            np.linalg.norm(found[0].astype(np.float64), axis=1), np.linalg.norm(found[1].astype(np.float64), axis=0),
            rtol=tolerance, atol=tolerance,
        )  # fmt: skip
    elif how == "single":  # float64 of values computed in float32
        np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    elif how == "close":
        assert (found[0].shape, found[0].dtype) == (expected.shape, expected.dtype)
        tolerance = {1: 0.0, 2: 2e-2, 4: 1e-5, 8: 1e-12}[expected.dtype.itemsize]
        np.testing.assert_allclose(
            found[0].astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance
        )
    else:
        (assert_same_values if how == "values" else assert_same_bits)(found[0], expected)


def results(made: Any) -> tuple[Any, ...]:
    return made if isinstance(made, tuple) else (made,)


@pytest.mark.parametrize("name", COMPUTED)
def test_compiled_traced_and_host_results_equal_the_reference(name: str) -> None:
    cases, reference, how = REFERENCES[name]
    kept = [[array.copy() for array in arrays] for _, arrays in cases]
    for _, arrays in cases:
        for array in arrays:
            array.flags.writeable = False

    def traced(zeros: Any, numbers: Any, inputs: Any) -> list[tuple[Any, ...]]:
        kernel = DeviceKernel(zeros)
        return [
            results(op.with_numbers(iter(given)).apply(kernel, *arrays))
            for (op, _), given, arrays in zip(cases, numbers, inputs, strict=True)
        ]

    zeros = (np.int32(0), np.int64(0))
    numbers = [[np.float64(value) for value in op.numbers()] for op, _ in cases]
    inputs = [arrays for _, arrays in cases]
    with jax.enable_x64(True), np.errstate(all="ignore"):
        shapes = jax.eval_shape(traced, zeros, numbers, inputs)
        options = {"xla_allow_excess_precision": False}
        compiled = jax.jit(traced, compiler_options=options)(zeros, numbers, inputs)
        for number, (op, arrays) in enumerate(cases):
            inferred = op.infer(*map(spec_of, arrays))
            wanted = [(s.shape, np.dtype(bool) if isinstance(op, asserts.Mask) else s.dtype.numpy) for s in inferred]
            assert [(s.shape, s.dtype) for s in shapes[number]] == wanted
            expected = reference(op, *arrays)
            found = [compiled[number], results(op.apply(HostKernel(), *arrays))]
            if number % 4 == 0:  # without jit every primitive is compiled by itself, which takes long
                found.append(results(op.apply(DeviceKernel(zeros), *map(jax.numpy.asarray, arrays))))
            for made in found:
                assert_matches([np.asarray(array) for array in made], expected, how)
    for arrays, before in zip(inputs, kept, strict=True):
        for array, old in zip(arrays, before, strict=True):
            assert_same_bits(array, old, "an input was changed")


MADE = [(name, case) for name, (cases, _, how) in REFERENCES.items() if how == "made" for case in range(len(cases))]


@pytest.mark.parametrize(("name", "number"), MADE)
def test_made_elements_equal_the_reference_whole_and_in_parts(name: str, number: int) -> None:
    cases, reference, _ = REFERENCES[name]
    op = cases[number][0]
    assert isinstance(op, Made)
    dtype, size = op.spec.dtype.numpy, op.spec.size
    whole = elements(op, 0, size)
    expected = reference(op)
    expected = expected if expected.dtype == dtype else oracle.cast(expected, dtype)
    assert_same_values(whole.reshape(op.spec.shape), expected)
    parts = [elements(op, start, min(5, size - start)) for start in range(0, size, 5)]
    assert_same_bits(np.concatenate(parts), whole)


def elements(op: Made, start: int, count: int) -> np.ndarray:
    out = np.empty(count, op.spec.dtype.numpy)
    op.put(start, out)
    return out


ELEMENTWISE = [cls.__name__ for cls in all_ops() if cls.kind in ("elementwise", "check") and cls.__name__ in REFERENCES]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_several_tensors_in_one_tile_give_the_bits_that_each_gives_alone(name: str) -> None:
    op, given = REFERENCES[name][0][0]
    operands = [[array_of("float32", (n,), 3 * n + 3 * side) for n in (1, 7, 4)] for side in range(len(given))]
    for side, operand in enumerate(given):
        if operand.dtype == np.uint64:  # positions
            operands[side] = [np.arange(len(array), dtype=np.uint64) for array in operands[0]]
    statistics = [operand for operand in given if operand.shape != given[0].shape]
    operands = operands[: len(given) - len(statistics)]
    op = Cast(BY_NAME["float16"]) if name == "Cast" else op

    def call(*arrays: np.ndarray) -> np.ndarray:
        zeros = (np.int32(0), np.int64(0))
        with jax.enable_x64(True):
            return np.asarray(jax.jit(lambda z, *x: op.apply(DeviceKernel(z), *x))(zeros, *arrays, *statistics))

    together = call(*(np.concatenate([*side, np.zeros(4, side[0].dtype)]) for side in operands))
    alone = np.concatenate([call(*parts) for parts in zip(*operands, strict=True)])
    assert_same_bits(together[:12], alone)


@pytest.mark.parametrize("cls", [cls for cls in all_ops(Structure)], ids=lambda cls: cls.__name__)
def test_runs_of_a_structural_operation_put_every_element_where_apply_does(cls: type[Structure]) -> None:
    cases = REFERENCES[cls.__name__][0]
    for op, arrays in cases:
        assert isinstance(op, Structure)
        runs = op.runs(*map(spec_of, arrays))
        assert runs is not None, op
        flat = [array.reshape(-1) for array in arrays]
        moved = np.concatenate([flat[operand][start : start + length] for operand, start, length in runs])
        assert_same_bits(moved, np.ascontiguousarray(op.apply(HostKernel(), *arrays)).reshape(-1))


def test_operations_are_values() -> None:
    for name, (cases, _, _) in REFERENCES.items():
        op = cases[0][0]
        assert op == dataclasses.replace(op) and hash(op) == hash(dataclasses.replace(op)), name
        for entry in dataclasses.fields(op):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(op, entry.name, None)


def test_a_constant_that_does_not_fit_is_refused() -> None:
    nan = float("nan")
    for name, value in [("uint8", 300.0), ("float16", 1e6), ("int64", nan), ("int64", 2.0**63), ("uint64", -1.0)]:
        with pytest.raises(PlanError, match="does not fit"):
            Fill("constant", value).made(spec(name, 2))
    assert elements(Fill("constant", 2.0**63 - 1024).made(spec("int64", 2)), 0, 1)[0] == 2**63 - 1024
    assert elements(Fill("constant", float("inf")).made(spec("float16", 2)), 0, 1)[0] == np.inf
    assert float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max) == 448
