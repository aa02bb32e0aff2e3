"""`preserves`: blocks of experts against the dense block, with PyTorch as the judge of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import Bench, dtype

from surgery_jax import Problems
from surgery_jax.asserts.preserves import DenseAndMixture
from surgery_jax.numerics.host_kernel import HostKernel

RNG = np.random.default_rng(4)
H, F = 8, 12


def normal(name: str, *shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.3).astype(dtype(name))


def torch_mlp(act: str, x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    acts = {
        "silu": torch.nn.functional.silu,
        "gelu_tanh": lambda v: torch.nn.functional.gelu(v, approximate="tanh"),
        "relu": torch.relu,
    }
    return (acts[act](x @ gate.T) * (x @ up.T)) @ down.T


def blocks(op: DenseAndMixture, *arrays: np.ndarray) -> np.ndarray:
    """As transformers routes: scores, the best of them, divided by their sum."""
    x, router, *given = (torch.tensor(array.astype(np.float64)) for array in arrays)
    scores = torch.softmax(x @ router.T, -1) if op.scores == "softmax" else torch.sigmoid(x @ router.T)
    weights, places = torch.topk(scores, op.top_k, -1)
    if op.normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    gates, triples = given[: op.is_gated], [given[at : at + 3] for at in range(op.is_gated, len(given), 3)]
    mixed = torch.zeros(*x.shape, dtype=torch.float64)
    for token in range(len(x)):
        for weight, place in zip(weights[token] * op.scale, places[token].tolist(), strict=True):
            mixed[token] += weight * (torch_mlp(op.act, x[token], *triples[op.experts[place]]) if triples else x[token])
    if op.shared is not None:
        gate = torch.sigmoid(x @ gates[0].T) if gates else 1
        mixed += gate * torch_mlp(op.act, x, *triples[op.shared])
    dense = torch_mlp(op.act, x, *triples[0]) if triples else x
    return np.array([float((mixed - dense).abs().max()), float(dense.abs().max())])


def operands(name: str, experts: int, *widths: int, gated: bool = False) -> list[np.ndarray]:
    """Tokens, routers, the dense MLP, and others of these widths."""
    found = [normal("float32", 5, H), normal(name, experts, H)] + [normal(name, 1, H)] * gated
    for width in (F, *widths):
        found += [normal(name, width, H), normal(name, width, H), normal(name, H, width)]
    return found


REFERENCES = {
    "DenseAndMixture": (
        [
            (
                DenseAndMixture(2, "silu", True, "softmax", 1.0, (1, 2, 0, 3), None, False),
                operands("float64", 4, F, F, F),
            ),
            (
                DenseAndMixture(3, "gelu_tanh", False, "softmax", 2.5, (1, 2, 1, 2), None, False),
                operands("float64", 4, 6, 6),
            ),
            (DenseAndMixture(1, "relu", True, "sigmoid", 1.0, (1, 2, 3), 4, False), operands("float64", 3, 6, 6, 6, 4)),
            (
                DenseAndMixture(2, "silu", True, "softmax", 1.0, (1, 1, 2), 0, True),
                operands("float64", 3, 6, 6, gated=True),
            ),
            (DenseAndMixture(2, "silu", False, "softmax", 1.0, (0, 0, 0), None, False), operands("float64", 3)[:2]),
        ],
        blocks,
        "single",
    )
}


def test_an_mlp_of_many_places_is_worked_off_in_pieces() -> None:
    shapes = [(3, 4096), (2, 4096), *[(1500, 4096), (1500, 4096), (4096, 1500)] * 2]
    given = [RNG.standard_normal(shape, "f4").astype("f8") for shape in shapes]
    op = DenseAndMixture(1, "silu", True, "softmax", 1.0, (0, 1), None, False)
    np.testing.assert_allclose(op.apply(HostKernel(), *given), blocks(op, *given), rtol=1e-12)


def dense_model(name: str, layers: int = 2) -> dict[str, np.ndarray]:
    shapes = {"gate": (F, H), "up": (F, H), "down": (H, F)}
    return {f"l.{n}.{part}": normal(name, *shape) for n in range(layers) for part, shape in shapes.items()}


def upcycled(dense: dict[str, np.ndarray], experts: int, granularity: int, factor: float) -> dict[str, np.ndarray]:
    """Copies, each cut along the intermediate axis; shards of one copy share a row of the router."""
    found = {}
    for n in range(2):
        gate, up, down = (dense[f"l.{n}.{part}"] for part in ("gate", "up", "down"))
        rows = RNG.standard_normal((experts // granularity, H)).astype(gate.dtype)
        found[f"l.{n}.router"] = np.repeat(rows, granularity, 0)
        width = F // granularity
        for e in range(experts):
            part = slice(e % granularity * width, (e % granularity + 1) * width)
            found[f"l.{n}.e.{e}.gate"], found[f"l.{n}.e.{e}.up"] = gate[part], up[part]
            found[f"l.{n}.e.{e}.down"] = (down[:, part].astype("f4") * factor).astype(down.dtype)
    return found


def expression(top_k: int, **more: Any) -> dict[str, Any]:
    dense = {"gate": "d::(l\\.\\d+)\\.gate", "up": "d::\\1.up", "down": "d::\\1.down"}
    experts = {part: f"m::\\1.e.\\g<index>.{part}" for part in ("gate", "up", "down")}
    given = {"dense": dense, "experts": experts, "router": "m::\\1.router", "top_k": top_k}
    return {"assert": {"preserves": given | more}}


def said(bench: Bench, step: dict[str, Any]) -> str | None:
    try:
        bench.report([step], output=False)
    except Problems as failed:
        return str(failed)
    return None


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64"])
def test_copies_preserve_and_those_that_add_up_to_less_do_not(tmp_path: Path, name: str) -> None:
    dense = dense_model(name)
    copies = Bench(tmp_path, d=dense, m=upcycled(dense, 4, 1, 1))
    assert said(copies, expression(2)) is None
    assert "the blocks differ by" in str(said(copies, expression(2, normalize=False)))


def test_scaled_shards_preserve_and_others_do_not(tmp_path: Path) -> None:
    dense = dense_model("float32")
    shards = Bench(tmp_path / "shards", d=dense, m=upcycled(dense, 8, 2, 2))
    assert said(shards, expression(4)) is None
    assert said(shards, expression(3)) is not None
    wrong = Bench(tmp_path / "wrong", d=dense, m=upcycled(dense, 8, 2, 1))
    assert "preserves: l.0.gate: the blocks differ by 0.5 of the largest element, tolerance 1e-05" in str(
        said(wrong, expression(4))
    )
    assert said(wrong, expression(4, tolerance=0.51)) is None
    assert said(wrong, expression(4, scale=2)) is None


def test_fused_experts_and_a_shared_one_are_taken_apart(tmp_path: Path) -> None:
    dense = dense_model("float32")
    found = {}
    for n in range(2):
        gate, up, down = (dense[f"l.{n}.{part}"] for part in ("gate", "up", "down"))
        found[f"l.{n}.router"] = normal("float32", 3, H)
        found[f"l.{n}.gate_up"] = np.stack([np.concatenate([gate, up])] * 3)
        found[f"l.{n}.down"] = np.stack([down / 2] * 3)
        found |= {f"l.{n}.s.gate": gate, f"l.{n}.s.up": up, f"l.{n}.s.down": down}
        found[f"l.{n}.s.router"] = np.zeros((1, H), "f4")  # one half
        found |= {f"l.{n}.z.gate": gate[:0], f"l.{n}.z.up": up[:0], f"l.{n}.z.down": down[:, :0]}
    bench = Bench(tmp_path, d=dense, m=found)
    fused = {"gate_up": "m::\\1.gate_up", "down": "m::\\1.down"}
    shared = {part: f"m::\\1.s.{part}" for part in ("gate", "up", "down", "router")}
    assert said(bench, expression(2, experts=fused, shared=shared)) is None
    empty = {part: f"m::\\1.z.{part}" for part in ("gate", "up", "down")}
    assert "differ by 0.5" in str(said(bench, expression(2, experts=fused, shared=empty)))
    swapped = {name: np.concatenate([array[:, F:], array[:, :F]], 1) if "gate_up" in name else array
               for name, array in found.items()}  # fmt: skip
    assert (
        said(Bench(tmp_path / "swapped", d=dense, m=swapped), expression(2, experts=fused, shared=shared)) is not None
    )


def test_what_is_computed_in_the_plan_is_what_is_judged(tmp_path: Path) -> None:
    dense = dense_model("float32")
    bench = Bench(tmp_path, d=dense)
    steps: list[dict[str, Any]] = [{"prefixes": {"mode": "add", "alias": "m"}}]
    for e in range(2):
        steps.append({"copy": {"from": "d::(l\\.\\d+)\\.(gate|up|down)", "to": f"m::\\1.e.{e}.\\2"}})
    steps.append({"normal": {"from": "d::(l\\.\\d+)\\.gate::[:2, :]", "to": "m::\\1.router", "std": 0.02}})
    bench.report([*steps, expression(1)], output=False)
    reinit = {"reinit_": {"target": "m::(l\\.1\\.e\\.1)\\.up", "ratio": 0.5}}
    with pytest.raises(Problems, match=r"preserves: l\.1\.gate: the blocks differ"):
        bench.report([*steps, reinit, expression(1)], output=False)


def test_what_is_missing_or_does_not_fit_is_named(tmp_path: Path) -> None:
    dense = dense_model("float32")
    whole = upcycled(dense, 4, 1, 1)
    less = {name: array for name, array in whole.items() if name != "l.1.e.2.up"}
    assert "there is no m::l.1.e.2.up" in str(said(Bench(tmp_path / "less", d=dense, m=less), expression(2)))
    bench = Bench(tmp_path / "whole", d=dense, m=whole)
    assert "at least 9 rows" in str(said(bench, expression(9)))
    for more, problem in [
        ({"experts": {"gate": "m::\\1.e.\\g<index>.gate"}}, "needs gate, up and down, or gate_up and down"),
        ({"experts": {part: "m::\\1.e.0.gate" for part in ("gate", "up", "down")}}, "where the number goes"),
        ({"dense": {"gate": "d::(.+)\\.gate"}}, "preserves.dense needs"),
        ({"dense": "d::x"}, "not a mapping"),
        ({"experts": {part: "m::\\1.e.\\g<index>.down" for part in ("gate", "up", "down")}}, "do not fit"),
    ]:
        with pytest.raises(Problems, match=problem):
            bench.compile([expression(2, **more)])
    assert "matched zero tensors" in str(
        said(bench, expression(2, dense={part: f"d::x\\.{part}" for part in ("gate", "up", "down")}))
    )
