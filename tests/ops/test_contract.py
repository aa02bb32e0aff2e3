"""What every transform and every predicate promises: loops over the registries, so a new one is tested."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import oracle
import pytest
from cases import all_ops, assert_matches, elements, references, spec_of
from running import assert_same_bits, assert_same_values
from strategies import array_of

import surgery_jax.kit.predicates as asserts
from surgery_jax.core.digests import encoded
from surgery_jax.core.errors import Mark, PlanError
from surgery_jax.core.exact import exact
from surgery_jax.graph.build import parse_step
from surgery_jax.kit.base import TensorOp, fields_of, find_word, words
from surgery_jax.kit.made import Made
from surgery_jax.kit.structure import Structure
from surgery_jax.language.document import parse_yaml
from surgery_jax.numerics.host_kernel import HostKernel
from surgery_jax.numerics.kernels import DeviceKernel
from surgery_jax.ops.describe import describe

HERE = Mark("plan.yaml", 1, 1)


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


REFERENCES = references()
COMPUTED = [name for name, (_, _, how) in REFERENCES.items() if how != "made"]


@pytest.mark.parametrize("cls", list(all_ops()), ids=lambda cls: cls.__name__)
def test_every_operation_has_a_reference(cls: type[TensorOp]) -> None:
    if cls.kind == "template":
        assert hasattr(cls, "made")  # it stands for operations of `kit.made`
    elif cls.kind == "composed":
        is_base = not cls.spellings and cls.__subclasses__()  # what some of them have in common
        assert is_base or (cls.compose is not TensorOp.compose and cls.spellings)
    elif cls.spellings or not cls.__subclasses__():  # others are what these have in common
        assert REFERENCES[cls.__name__][0], f"no test of an operation has a case of {cls.__name__}"


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_every_operation_has_a_digest_that_tells_it_from_others(name: str) -> None:
    """Its fields are values that mean the same in every process."""
    operations = [case[0] for case in REFERENCES[name][0]]
    assert len(set(map(encoded, operations))) == len(set(map(exact, operations)))


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
            for made in (compiled[number], results(op.apply(HostKernel(), *arrays))):
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


ELEMENTWISE = [cls.__name__ for cls in all_ops() if cls.kind in ("elementwise", "check") and cls.__name__ in REFERENCES]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_several_tensors_in_one_tile_give_the_bits_that_each_gives_alone(name: str) -> None:
    op, given = REFERENCES[name][0][0]
    operands = [[array_of("float32", (6,), 3 * n + 3 * side) for n in (7, 5)] for side in range(len(given))]
    for side, operand in enumerate(given):
        if operand.dtype == np.uint64:  # positions
            operands[side] = [np.arange(len(array), dtype=np.uint64) for array in operands[0]]
    statistics = [operand for operand in given if operand.shape != given[0].shape]
    operands = operands[: len(given) - len(statistics)]

    jitted = jax.jit(lambda z, *x: op.apply(DeviceKernel(z), *x))

    def call(*arrays: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(jitted((np.int32(0), np.int64(0)), *arrays, *statistics))

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
