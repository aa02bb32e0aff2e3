"""`restack`: layers in another order, number and with zeros, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Bench, assert_same_bits

from surgery_jax import Options, Problems, explain, plan_of

NAMES = ("o_proj.weight", "o_proj.bias", "norm.weight")


def model(layers: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(layers)
    named = {f"m.layers.{n}.{name}": rng.standard_normal((3, 2)).astype("f4") for n in range(layers) for name in NAMES}
    return {"embed": np.ones(3, "f4"), **named}


def step(layers: list[int], **more: Any) -> dict[str, Any]:
    given = {"from": "(.+\\.layers\\.)(?P<index>\\d+)\\.(.+)", "to": "\\1\\g<index>.\\3", "layers": layers}
    return {"restack": given | more}


@pytest.mark.parametrize("layers", [[0, 1, 1, 2], [2, 0], [0, 1, 2, 0, 1, 2], [11, 3, 10]])
def test_layers_stand_in_the_order_of_the_list_and_are_only_moved(tmp_path: Path, layers: list[int]) -> None:
    stored = model(12 if max(layers) > 2 else 3)
    bench = Bench(tmp_path, m=stored)
    assert not explain(plan_of(bench.plan([step(layers)])), Options()).groups
    found = bench.tensors([step(layers)])
    expected = {
        f"m.layers.{new}.{name}": stored[f"m.layers.{old}.{name}"] for new, old in enumerate(layers) for name in NAMES
    }
    assert found.keys() == {"embed", *expected}
    for name, array in expected.items():
        assert_same_bits(found[name], array, name)


def test_repeated_layers_write_zeros_with_their_biases_on_request(tmp_path: Path) -> None:
    stored = model(3)
    found = Bench(tmp_path, m=stored).tensors([step([0, 1, 1, 2, 0], zero=".+\\.o_proj")])
    for new, old in enumerate([0, 1, 1, 2, 0]):
        for name in NAMES:
            before = stored[f"m.layers.{old}.{name}"]
            is_zero = new in (2, 4) and "o_proj" in name
            assert_same_bits(found[f"m.layers.{new}.{name}"], np.zeros_like(before) if is_zero else before)
    chosen = Bench(tmp_path / "at", m=stored).tensors([step([0, 1, 1], zero=".+\\.o_proj\\.bias", zero_at=[1])])
    assert not chosen["m.layers.1.o_proj.bias"].any() and chosen["m.layers.2.o_proj.bias"].any()
    assert chosen["m.layers.1.o_proj.weight"].any()


def test_every_layer_with_zeros_has_something_that_is_zero(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m=model(2) | {"m.layers.1.conv.weight": np.ones(3, "f4")})
    with pytest.raises(Problems, match=r"nothing in layer 2, which was 0, matches .+conv"):
        bench.compile([step([0, 1, 0, 1], zero=r".+\.conv")])
    assert not bench.tensors([step([0, 1, 1], zero=r".+\.conv")])["m.layers.2.conv.weight"].any()


def test_layers_go_to_another_checkpoint_and_lists_name_them_too(tmp_path: Path) -> None:
    stored = model(2)
    pattern = ["m", "layers", "$index", "*rest"]
    found = Bench(tmp_path, m=stored).tensors([step([1, 1], **{"from": pattern, "to": ["n", "$index", "*rest"]})])
    assert found.keys() == {"embed", *(f"n.{new}.{name}" for new in range(2) for name in NAMES)}
    assert_same_bits(found["n.0.norm.weight"], stored["m.layers.1.norm.weight"])


def test_gaps_and_unknown_layers_are_refused(tmp_path: Path) -> None:
    gap = {name: array for name, array in model(4).items() if ".layers.2." not in name}
    with pytest.raises(Problems, match="the numbers of the layers have a gap: there is no 2"):
        Bench(tmp_path / "gap", m=gap).compile([step([0, 1])])
    bench = Bench(tmp_path, m=model(3))
    for given, problem in [
        (step([0, 3]), "there is no layer 3"),
        (step([]), "no layer is left"),
        (step([0, 0], zero=".+\\.o_prj"), "nothing in layer 1, which was 0, matches"),
        (step([0, 0], zero=".+\\.o_proj", zero_at=[2]), "there is no layer 2"),
        (step([0], **{"from": "m\\.layers\\.\\d+\\.(.+)"}), "index"),
        (step([0], to="\\1.\\3"), "does not say where the number goes"),
        (step([0], to="m.\\g<index>"), "come to the same name"),
    ]:
        with pytest.raises(Problems, match=problem):
            bench.compile([given])
