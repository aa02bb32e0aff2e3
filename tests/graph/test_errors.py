"""All that headers can tell is reported together, in order, with places and nearest names, and nothing more."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from running import write_checkpoint

from surgery_jax import AssertionFailed, Options, PlanError, Problems, SurgeryError, check, load_plan, run

SNAPSHOTS = Path(__file__).parent.parent / "snapshots" / "errors"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    w = np.ones((4, 6), np.float32)
    tensors = {f"h.{layer}.attn.{part}.weight": w for layer in range(3) for part in ("q_proj", "k_proj")}
    tensors |= {"embed": np.ones((8, 6), np.float16), "ids": np.arange(6), "ln.weight": np.ones(6, np.float32)}
    write_checkpoint(tmp_path / "m.safetensors", tensors)
    return tmp_path


def problems(text: str) -> list[SurgeryError]:
    """What is wrong with the steps of a plan, which begin on line 3."""
    Path("plan.yaml").write_text(f"inputs: [ m.safetensors ]\ntransforms:\n{text}\noutput: out.safetensors\n")
    with pytest.raises(SurgeryError) as found:
        check(load_plan("plan.yaml"))
    return list(found.value.errors) if isinstance(found.value, Problems) else [found.value]


PLANS = {
    "unknown_transform": "  - scael_: { target: embed, by: 2 }",
    "unknown_key": "  - copy: { form: embed, to: e2 }",
    "missing_key": "  - scale: { from: embed, to: e2 }",
    "no_match": "  - scale_: { target: 'h.0.attn.wq.weight', by: 2 }",
    "exists_already": "  - copy: { from: embed, to: ln.weight }",
    "collision": "  - copy: { from: 'h\\.(\\d)\\.attn\\.(.)_proj\\.weight', to: 'q.\\1' }",
    "shapes_differ": "  - add_: { from: ln.weight, to: 'h.0.attn.q_proj.weight' }",
    "dtypes_differ": "  - add_: { from: 'embed::[0]', to: ln.weight }",
    "inner_axes": "  - matmul: { from_a: embed, from_b: embed, to: product }",
    "bad_slice": "  - copy: { from: 'embed::[9]', to: row }",
    "split_sizes": "  - split: { from: embed, to: [ a, b ], sizes: [ 3, 4 ] }",
    "stack_gap": "  - stack: { from: 'h\\.(?P<index>0|2)\\.attn\\.q_proj\\.weight', to: q }",
    "stack_twice": "  - stack: { from: 'h\\.(?P<index>\\d)\\.attn\\.(.)_proj\\.weight', to: qk }",
    "stack_number": "  - stack: { from: 'h\\.(\\d)\\.attn\\.q_proj\\.weight', to: q }",
    "unstack_number": "  - unstack: { from: embed, to: row }",
    "unknown_alias": "  - copy: { from: 'modle::embed', to: e2 }",
    "destination_missing": "  - assign: { from: ln.weight, to: ln.wieght }",
    "integer_scale": "  - scale_: { target: ids, by: 2 }",
    "shape_assertion": "  - assert: { shape: { of: embed, is: [ 8, 8 ] } }",
    "bad_regex": "  - delete: { target: 'h.(0' }",
    "not_a_number": "  - scale_: { target: embed, by: twice }",
}


@pytest.mark.parametrize("name", PLANS)
def test_the_messages_of_typical_errors_are_as_recorded(bench: Path, name: str) -> None:
    found = "\n".join(map(str, problems(PLANS[name]))) + "\n"
    expected = SNAPSHOTS / f"{name}.txt"
    assert found == expected.read_text(), f"if the new text is better, write it to {expected.name}"


def test_every_recorded_message_belongs_to_a_plan_and_has_a_place() -> None:
    assert {path.stem for path in SNAPSHOTS.glob("*.txt")} == PLANS.keys()
    for path in SNAPSHOTS.glob("*.txt"):
        assert re.match(r"plan\.yaml:3:\d+: \S", path.read_text()), path.name


def test_all_static_errors_are_reported_together_in_the_order_of_the_plan(bench: Path) -> None:
    found = problems(
        "  - copy: { from: nothing, to: n }\n"
        "  - scael_: { target: embed, by: 2 }\n"
        "  - copy: { from: embed, to: ln.weight }\n"
        "  - assert: { count: { of: embed, is: 2 } }\n"
        "  - scale_: { target: ids, by: 2, byy: 3 }\n"
        "  - matmul: { from_a: embed, from_b: embed, to: p }"
    )
    assert [str(error.where).rsplit(":", 1)[0] for error in found] == [f"plan.yaml:{line}" for line in range(3, 9)]
    assert {type(error) for error in found} == {PlanError, AssertionFailed}


def test_steps_after_an_exit_must_still_be_well_formed(bench: Path) -> None:
    (error,) = problems("  - exit\n  - scale_: { target: nothing, by: 2 }\n  - scael_: { target: embed, by: 2 }")
    assert error.where.line == 5


@pytest.mark.parametrize(
    "consequence",
    [
        "  - scale_: { target: 'h2.0.w', by: 2 }",
        "  - assert: { exists: 'h2.0.w' }",
        "  - assert: { shape: { of: 'h2.0.w', is: [ 1 ] } }",
        "  - add_: { from: embed, to: 'h2.0.w' }",
        "  - assert: { equal: { left: embed, right: 'h2.0.w' } }",
        "  - assert: { not: { dtype: { of: 'h2.0.w', is: int8 } } }",
        "  - dump: { target: 'h2.0.w', verbosity: full }\n  - diff: { left: 'h2.0.w', right: embed }",
        "  - concat: { from: [ 'h2.0.w', embed ], to: c }\n  - split: { from: c, to: [ x, y ], sizes: [ 1, 2 ] }",
        "  - stack: { from: 'h2.(?P<index>\\d).w', to: s }\n  - unstack: { from: s, to: 'u.\\g<index>' }",
        "  - unstack: { from: 'h2.0.w', to: 'u.\\g<index>' }\n  - delete: { target: 'u.0' }",
        "  - phlora: { target: 'h2.0.w', target_a: a, target_b: b, rank: 1 }\n  - delete: { target: a }",
        "  - move: { from: 'h2.0.w', to: 'h3' }\n  - delete: { target: h3 }",
    ],
)
@pytest.mark.parametrize(
    "cause",
    [
        "  - copy: { from: 'nothing', to: 'h2.0.w' }",
        "  - scale: { from: ids, to: 'h2.0.w', by: 2 }",
        "  - copy: { from: embed, to: 'h2.0.w', tou: 3 }",
    ],
)
def test_what_only_follows_from_a_failed_step_is_not_reported(bench: Path, cause: str, consequence: str) -> None:
    found = problems(f"{cause}\n{consequence}")
    assert [error.where.line for error in found] == [3]


def test_an_error_after_a_failed_step_that_does_not_follow_is_reported(bench: Path) -> None:
    found = problems("  - copy: { from: nothing, to: n }\n  - copy: { from: also_nothing, to: m }")
    assert [error.where.line for error in found] == [3, 4]


def test_positions_point_at_the_value_that_is_wrong(bench: Path) -> None:
    (error,) = problems("  - scale_:\n      target: embed\n      by: twice")
    assert str(error.where) == "plan.yaml:5:11"
    (error,) = problems("  - scale_:\n      target: nothing\n      by: 2")
    assert str(error.where) == "plan.yaml:4:15"


def test_a_wrong_plan_reads_and_writes_nothing(bench: Path) -> None:
    Path("plan.yaml").write_text("inputs: [ m.safetensors ]\ntransforms: [ { delete: { target: x } } ]\noutput: out\n")
    before = sorted(path.name for path in bench.iterdir())
    with pytest.raises(SurgeryError) as found:
        run(load_plan("plan.yaml"), Options())
    assert found.value.exit_code == 2
    assert sorted(path.name for path in bench.iterdir()) == before


def test_an_input_that_nobody_touches_may_be_missing(bench: Path) -> None:
    Path("plan.yaml").write_text(
        "inputs: [ 'a::m.safetensors', 'b::missing.safetensors' ]\ntransforms:\n  - dump: { target: 'a::embed' }\n"
    )
    check(load_plan("plan.yaml"))


def test_a_missing_input_is_reported_once(bench: Path) -> None:
    Path("plan.yaml").write_text(
        "inputs: [ missing.safetensors ]\n"
        "transforms:\n  - delete: { target: a }\n  - delete: { target: b }\noutput: out\n"
    )
    with pytest.raises(SurgeryError) as found:
        check(load_plan("plan.yaml"))
    assert found.value.exit_code == 3 and str(found.value).count("missing.safetensors") == 1


def test_long_lists_of_names_are_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(Path("m.safetensors"), {f"h.{n}.weight": np.ones(1, np.float32) for n in range(5000)})
    (error,) = problems("  - delete: { target: 'h.77.wieght' }")
    assert len(str(error)) < 500 and "h.77.weight" in str(error) and "5000 tensors" in str(error)


@pytest.mark.parametrize(
    "plan",
    [
        'inputs: [ "a\\0b" ]\ntransforms: [ { delete: { target: x } } ]\noutput: out\n',
        'inputs: [ m.safetensors ]\ntransforms: [ load: { path: "a\\0b", alias: x }, delete: { target: "x::w" } ]\n',
        'inputs: [ m.safetensors ]\ntransforms: [ { load: { path: "a\\0b", to: x } } ]\noutput: out\n',
        'inputs: [ m.safetensors ]\ntransforms: [ { save: { path: "a\\0b" } } ]\noutput: out\n',
        'inputs: [ m.safetensors ]\noutput: "a\\0b"\n',
    ],
    ids=["input", "load", "load a tensor", "save", "output"],
)
def test_a_nul_in_a_path_is_an_error_with_its_place(plan: str, bench: Path) -> None:
    Path("plan.yaml").write_text(plan)
    with pytest.raises(SurgeryError, match="not a path") as found:
        check(load_plan("plan.yaml"))
    assert str(found.value).startswith("plan.yaml:")
    assert found.value.exit_code == 3


@pytest.mark.parametrize("shape", [f"[ {10**290} ]", f"[ {10**290}, {10**290} ]", "[ 4611686018427387904 ]"])
@pytest.mark.parametrize("step", ["zeroes", "ones", "rand"])
def test_a_tensor_that_is_larger_than_any_file_is_an_error_of_the_plan(step: str, shape: str, bench: Path) -> None:
    (error,) = problems(f"  - {step}: {{ target: x, shape: {shape} }}")
    assert isinstance(error, PlanError) and "too large" in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize("place", ["input", "output"])
def test_a_name_that_is_too_long_for_the_system_is_an_error(place: str, bench: Path) -> None:
    long = "n" * 4000
    names = {"input": f"inputs: [ {long} ]\noutput: out\n", "output": f"inputs: [ m.safetensors ]\noutput: {long}\n"}
    Path("plan.yaml").write_text(names[place] + "transforms: []\n")
    with pytest.raises(SurgeryError, match="File name too long") as found:
        check(load_plan("plan.yaml"))
    assert found.value.exit_code == 3
