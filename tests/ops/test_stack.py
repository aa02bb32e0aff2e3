"""`stack` and `unstack`: against `numpy.stack`, in the order of the numbers, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cases import References, ordinary
from running import Bench, assert_same_bits, read_checkpoint

from surgery_jax import Problems
from surgery_jax.ops.stack import Stack

REFERENCES: References = {
    "Stack": (
        [(Stack(axis), [ordinary("int16", 2, 2)] * 2 + [ordinary("int16", 2, 2) + 1]) for axis in (0, 1, 2, -1, -3)],
        lambda op, *parts: np.stack(parts, op.dim),
        "bits",
    ),
}

RNG = np.random.default_rng(5)
LAYERS = {
    f"model.layers.{n}.{part}": RNG.standard_normal((3, 4)).astype("f4") for n in range(12) for part in ("q", "k")
}
STRINGS = (r"model\.layers\.(?P<index>\d+)\.(.+)", r"layers.\2", r"layers\.(.+)", r"model.layers.\g<index>.\1")
LISTS = (
    ["model", "layers", "$index", "*rest"], ["layers", "*rest"],
    ["layers", "*rest"], ["model", "layers", "$index", "*rest"],
)  # fmt: skip


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("names", [STRINGS, LISTS], ids=["strings", "lists"])
def test_layers_are_stacked_in_the_order_of_their_numbers_and_taken_apart_again(
    tmp_path: Path, names: tuple, dim: int
) -> None:
    bench = Bench(tmp_path, m=LAYERS)
    many, one, stacked, back = names
    stack = [{"stack": {"from": many, "to": one, "dim": dim}}, {"delete": {"target": r"model\..+"}}]
    found = bench.tensors(stack)
    assert found.keys() == {"layers.q", "layers.k"}
    for part in ("q", "k"):
        expected = np.stack([LAYERS[f"model.layers.{n}.{part}"] for n in range(12)], dim)
        assert_same_bits(found[f"layers.{part}"], expected, part)
    apart = [{"unstack": {"from": stacked, "to": back, "dim": dim}}, {"delete": {"target": r"layers\..+"}}]
    found = bench.tensors([*stack, *apart])
    assert found.keys() == LAYERS.keys()
    for name, array in LAYERS.items():
        assert_same_bits(found[name], array, name)


def test_along_the_leading_axis_bytes_are_only_moved(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m=LAYERS)
    report = bench.report([{"stack": {"from": STRINGS[0], "to": STRINGS[1]}}, {"delete": {"target": r"model\..+"}}])
    assert report.bytes_moved == sum(array.nbytes for array in LAYERS.values()) and report.num_groups == 0
    report = bench.report([{"unstack": {"from": r"(model\.layers\.0\.q)", "to": r"\1.\g<index>"}}])
    assert report.num_groups == 0


def test_a_single_layer_is_a_stack_and_so_are_scalars_and_slices(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, m={"l.0": np.float32(1), "l.1": np.float32(2), "w.0": np.arange(6.0), "e": np.zeros((2, 0))}
    )
    found = bench.tensors(
        [
            {"stack": {"from": r"l\.(?P<index>\d)", "to": "l"}},
            {"stack": {"from": r"w\.(?P<index>\d)::[1:3]", "to": "w", "dim": 1}},
            {"unstack": {"from": "w.0::[:2]", "to": r"v.\g<index>"}},
            {"unstack": {"from": "e", "to": r"e.\g<index>"}},
        ]
    )
    assert_same_bits(found["l"], np.array([1, 2], "f4"), "l")
    assert_same_bits(found["w"], np.array([[1.0], [2.0]]), "w")
    assert_same_bits(found["v.1"], np.float64(1), "v")
    assert found["e.1"].shape == (0,)


@pytest.mark.parametrize(
    ("tensors", "step", "words"),
    [
        ({"l.0": "f4", "l.1": "f2"}, {"stack": {"from": r"l\.(?P<index>.+)", "to": "l"}}, "l.1 is not like l.0"),
        ({"l.1": "f4"}, {"stack": {"from": r"l\.(?P<index>.+)", "to": "l"}}, "number 0 of l is missing"),
        ({"l.1": "f4", "l.01": "f4"}, {"stack": {"from": r"l\.(?P<index>.+)", "to": "l"}}, "two tensors are number 1"),
        ({"l.x": "f4"}, {"stack": {"from": r"l\.(?P<index>.+)", "to": "l"}}, "is no number"),
        ({"l.x": "f4"}, {"stack": {"from": ["l", "$i"], "to": ["l"]}}, r"\$index"),
        ({"l.0": "f4"}, {"stack": {"from": r"l\.(?P<index>.+)", "to": "l", "dim": 2}}, "no axis 2"),
        ({"l.0": "f4"}, {"stack": {"from": r"l\.(?P<index>.+)", "to": "l.0"}}, "already exists"),
        ({"l.0": "f4"}, {"unstack": {"from": r"l\.0", "to": r"n.\g<index>", "dim": 1}}, "no axis 1"),
        ({"l.0": "f4", "l.1": "f4"}, {"unstack": {"from": r"l\.\d", "to": r"n.\g<index>"}}, "collision"),
        ({"l.0": "f4"}, {"unstack": {"from": ["l", "$i"], "to": ["n", "$i"]}}, r"\$index"),
        ({"l.0": "f4"}, {"unstack": {"from": r"l\.0::[:0]", "to": r"n.\g<index>"}}, "nothing along axis 0"),
    ],
)
def test_what_cannot_be_put_together_or_taken_apart_is_refused(
    tmp_path: Path, tensors: dict[str, str], step: dict, words: str
) -> None:
    bench = Bench(tmp_path, m={name: np.ones(3, kind) for name, kind in tensors.items()})
    with pytest.raises(Problems, match=words):
        bench.compile([step])


@pytest.mark.parametrize("word", ["stack", "concat"])
def test_large_computed_parts_are_put_together_without_being_in_memory_at_once(tmp_path: Path, word: str) -> None:
    parts = {f"w.{n}": RNG.standard_normal((2000, 1100)).astype("f4") for n in range(4)}
    bench = Bench(tmp_path, m=parts)
    join: dict = (
        {"stack": {"from": r"t\.(?P<index>\d+)", "to": "all", "dim": 1}}
        if word == "stack"
        else {"concat": {"from": [f"t.{n}" for n in range(4)], "to": "all", "dim": 1}}
    )
    steps = [
        {"permute": {"from": r"w\.(\d)", "to": r"t.\1", "order": [1, 0]}},
        join,
        {"delete": {"target": r"[wt]\..+"}},
    ]
    whole = sum(part.nbytes for part in parts.values())
    report = bench.report(steps, workers=1, memory="40MB")
    assert report.peak_buffer_bytes < whole
    turned = [parts[f"w.{n}"].T for n in range(4)]
    expected = np.stack(turned, 1) if word == "stack" else np.concatenate(turned, 1)
    assert_same_bits(read_checkpoint(bench.out)["all"], np.ascontiguousarray(expected), "all")
    again = bench.tensors(
        [*steps, {"unstack": {"from": "all", "to": r"v.\g<index>", "dim": 1}}] if word == "stack" else steps
    )
    if word == "stack":
        assert_same_bits(again["v.2"], np.ascontiguousarray(turned[2]), "v.2")
