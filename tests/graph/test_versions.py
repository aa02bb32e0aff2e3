"""A plan as versions: in-place is only syntax, every root sees the version of its place in the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Bench, assert_same_bits, read_checkpoint, write_checkpoint

from surgery_jax import Options, SurgeryError, plan_of, run

W = np.arange(12, dtype=np.float32).reshape(3, 4) + 1


def node_of(bench: Bench, steps: Any, name: str) -> Any:
    (save,) = bench.compile(steps).symbolic.saves
    return dict(save.tensors)[name]


def structure(node: Any) -> Any:
    return (getattr(node.op, "name", node.op), [structure(operand) for operand in node.operands])


SCALED: list[Any] = [{"scale": {"from": "w", "to": "t", "by": 2}}, {"assign": {"from": "t", "to": "w"}}]
RENAMED: list[Any] = [{"delete": {"target": "w"}}, {"move": {"from": "t", "to": "w"}}]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"scale_": {"target": "w", "by": 2}}, SCALED),
        ({"add_": {"from": "v", "to": "w"}}, [{"add": {"from_a": "w", "from_b": "v", "to": "w"}}]),
        ({"subtract_": {"from": "v", "to": "w"}}, [{"subtract": {"from_a": "w", "from_b": "v", "to": "w"}}]),
        ({"cast_": {"target": "w", "to": "half"}}, [{"cast": {"from": "w", "to": "t", "dtype": "fp16"}}, *RENAMED]),
        ({"clamp_": {"target": "w", "max": 3}}, [{"clamp": {"from": "w", "to": "t", "max": 3}}, *RENAMED]),
        (
            {"reshape_": {"target": "w", "shape": [12]}},
            [{"reshape": {"from": "w", "to": "t", "shape": [12]}}, *RENAMED],
        ),
    ],
)
def test_in_place_and_out_of_place_spellings_make_the_same_version(tmp_path: Path, one: Any, other: Any) -> None:
    bench = Bench(tmp_path, m={"w": W, "v": W * 2})
    assert structure(node_of(bench, one, "w")) == structure(node_of(bench, other, "w"))


def test_moves_copies_and_identities_make_no_new_version(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": W})
    steps = [
        {"copy": {"from": "w", "to": "a"}},
        {"move": {"from": "a", "to": "b"}},
        {"cast": {"from": "b", "to": "c", "dtype": "float32"}},
        {"reshape": {"from": "c", "to": "d", "shape": [3, -1]}},
        {"copy": {"from": "d::[:]", "to": "e"}},
        {"permute": {"from": "e", "to": "f", "order": [0, 1]}},
        {"assign": {"from": "f", "to": "w"}},
    ]
    (save,) = bench.compile(steps).symbolic.saves
    assert len({node.number for _, node in save.tensors}) == 1 and all(node.kind == "read" for _, node in save.tensors)


def test_two_names_never_share_what_a_later_step_changes(tmp_path: Path) -> None:
    steps = [
        {"cast": {"from": "w", "to": "same", "dtype": "float32"}},
        {"copy": {"from": "w::[0]", "to": "row"}},
        {"split": {"from": "w", "to": ["a", "b"], "sizes": [1, 2]}},
        {"scale_": {"target": "w", "by": 0}},
        {"fill_": {"target": "same::[1]", "mode": "constant", "value": 9}},
    ]
    found = Bench(tmp_path, m={"w": W}).tensors(steps)
    assert not found["w"].any() and found["row"].tolist() == W[0].tolist() and found["b"].tolist() == W[1:].tolist()
    assert found["same"].tolist() == [W[0].tolist(), [9] * 4, W[2].tolist()]


def test_saves_assertions_and_dumps_see_the_version_of_their_place(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": W})
    middle = tmp_path / "middle.safetensors"
    report = bench.report(
        [
            {"assert": {"not": {"iszero": "w"}}},
            {"dump": {"target": "w::[0, 0]", "verbosity": "full", "format": "json"}},
            {"save": str(middle)},
            {"scale_": {"target": "w", "by": 0}},
            {"assert": {"iszero": "w"}},
            {"dump": {"target": "w::[0, 0]", "verbosity": "full", "format": "json"}},
        ]
    )
    assert_same_bits(read_checkpoint(middle)["w"], W)
    assert not read_checkpoint(bench.out)["w"].any()
    first, second = (json.loads(line) for line in report.printed.splitlines())
    assert first["w"]["values"] == 1.0 and second["w"]["values"] == 0.0


def test_what_was_saved_can_be_loaded_later_in_the_plan(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": W})
    middle, one = tmp_path / "middle.safetensors", tmp_path / "one.npy"
    bench.report(
        [
            {"scale_": {"target": "w", "by": 2}},
            {"save": {"path": str(middle)}},
            {"save": {"path": str(one), "target": "w", "format": "numpy"}},
            {"scale_": {"target": "w", "by": 5}},
            {"load": {"path": str(middle), "alias": "kept"}},
            {"load": {"path": str(one), "to": "m::again"}},
            {"copy": {"from": "kept::w", "to": "m::before"}},
            {"prefixes": {"mode": "remove", "alias": "kept"}},
        ]
    )
    found = read_checkpoint(bench.out)
    assert_same_bits(found["before"], W * 2)
    assert_same_bits(found["again"], W * 2)
    assert_same_bits(found["w"], W * 10)
    assert_same_bits(np.load(one), W * 2)


def test_an_input_may_be_overwritten_and_is_read_before(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", {"a": W, "b": W * 2})
    steps = [{"move": {"from": "a", "to": "t"}}, {"move": {"from": "b", "to": "a"}}, {"add_": {"from": "t", "to": "a"}}]
    plan = plan_of({"inputs": [str(path)], "transforms": steps, "output": str(path)})
    run(plan, Options(overwrite=True))
    found = read_checkpoint(path)
    assert_same_bits(found["a"], W * 2 + W)
    assert_same_bits(found["t"], W)


# ---------------------------------------------------------------------------------------------- dry run, flags


def test_turning_dry_run_off_restores_everything(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": W, "v": W})
    never = tmp_path / "never.safetensors"
    steps = [
        {"set": {"dry-run": True}},
        {"delete": {"target": "v"}},
        {"scale_": {"target": "w", "by": 0}},
        {"assert": {"iszero": "w"}},
        {"copy": {"from": "w", "to": "x"}},
        {"save": str(never)},
        {"set": {"dry-run": False}},
        {"assert": {"not": {"exists": "x"}}},
        {"assert": {"all": [{"writes": {"of": "w", "is": 1}}, {"reads": {"of": "w", "is": 0}}]}},
        {"assert": {"equal": {"left": "w", "right": "v"}}},
    ]
    found = bench.tensors(steps)
    assert found.keys() == {"w", "v"} and not never.exists()
    assert_same_bits(found["w"], W)


def test_with_dry_run_to_the_end_nothing_is_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": W})
    before = bench.left()
    report = bench.report([{"set": {"dry-run": True, "verbose": True}}, {"scale_": {"target": "w", "by": 2}}])
    assert bench.left() == before and report.outputs == () and report.printed == "dry-run scale_: w"


def test_a_dry_run_still_checks_values(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": W})
    with pytest.raises(SurgeryError) as failed:
        bench.report([{"set": {"dry-run": True}}, {"scale_": {"target": "w", "by": 2}}, {"assert": {"iszero": "w"}}])
    assert failed.value.exit_code == 1


def test_verbose_prints_a_line_per_tensor_that_a_step_touches(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"h.0.w": W, "h.1.w": W})
    steps = [
        {"set": {"verbose": True}},
        {"copy": {"from": r"h\.(\d)\.w::[0]", "to": r"row.\1"}},
        {"scale_": {"target": r"h\..*", "by": 2}},
        {"add": {"from_a": "h.0.w", "from_b": "h.1.w", "to": "h.0.w"}},
        {"move": {"from": "h.1.w", "to": "last"}},
        {"delete": {"target": "row.0"}},
        {"split": {"from": "last", "to": ["q", "k"], "sizes": [1, 2]}},
    ]
    assert bench.report(steps).printed.splitlines() == [
        "copy: h.0.w::[0] -> row.0",
        "copy: h.1.w::[0] -> row.1",
        "scale_: h.0.w",
        "scale_: h.1.w",
        "add: h.0.w, h.1.w -> h.0.w",
        "move: h.1.w -> last",
        "delete: row.0",
        "split: last -> q, k",
    ]


def test_preview_prints_what_a_step_would_touch_and_runs_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"a": W, "b": W})
    steps = [
        {"set": {"preview": True}},
        {"scale_": {"target": ".*", "by": 2}},
        {"copy": {"from": "a", "to": "c"}},
        {"move": {"from": "b", "to": "d"}},
        {"assert": {"exists": "d"}},
    ]
    report = bench.report(steps)
    assert report.printed.splitlines() == [
        "preview: scale_: changed 2 (m::a, m::b)",
        "preview: copy: created 1 (m::c)",
        "preview: move: created 1 (m::d), deleted 1 (m::b)",
        "preview: assert: no tensor impact",
    ]
    assert read_checkpoint(bench.out).keys() == {"a", "c", "d"}


def test_preview_in_a_dry_run_skips_the_steps_that_touch_something(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"a": W})
    steps = [
        {"set": {"preview": True, "dry-run": True}},
        {"move": {"from": "a", "to": "b"}},
        {"assert": {"exists": "a"}},
    ]
    bench.report(steps)


# --------------------------------------------------------------------------------------- exit, execute, prefixes


def test_exit_skips_the_rest_and_writes_the_output(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": W})
    found = bench.tensors([{"scale_": {"target": "w", "by": 2}}, "exit", {"delete": {"target": "nothing there"}}])
    assert_same_bits(found["w"], W * 2)


def test_execute_runs_steps_from_all_its_sources_in_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": W})
    file = tmp_path / "steps.yaml"
    file.write_text("transforms: [ { copy: { from: c, to: d } } ]")
    steps = [
        {
            "execute": {
                "transforms": {"copy": {"from": "w", "to": "a"}},
                "plan": {"transforms": [{"copy": {"from": "a", "to": "b"}}]},
                "plan-yaml": "transforms:\n  - copy: { from: b, to: c }\n",
                "path": str(file),
            }
        },
        {"scale_": {"target": ".", "by": 2}},
    ]
    found = bench.tensors(steps)
    assert found.keys() == {"w", "a", "b", "c", "d"}
    assert_same_bits(found["d"], W * 2)


def test_an_exit_inside_execute_ends_the_plan(tmp_path: Path) -> None:
    steps = [{"scale_": {"target": "w", "by": 2}}, {"execute": {"transforms": ["exit"]}}, {"delete": {"target": "w"}}]
    assert_same_bits(Bench(tmp_path, m={"w": W}).tensors(steps)["w"], W * 2)


def test_execute_inside_execute_is_refused(tmp_path: Path) -> None:
    nested = {"execute": {"transforms": [{"execute": {"transforms": ["exit"]}}]}}
    with pytest.raises(SurgeryError, match="execute inside execute"):
        Bench(tmp_path, m={"w": W}).compile([nested])


def test_a_renamed_input_keeps_its_edits(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": W})
    found = bench.tensors(
        [
            {"fill_": {"target": "w", "mode": "constant", "value": 0}},
            {"prefixes": {"mode": "rename", "from": "m", "to": "n"}},
            {"assert": {"iszero": "n::w"}},
            {"copy": {"from": "n::w", "to": "n::v"}},
        ]
    )
    assert not found["v"].any()


# --------------------------------------------------------------------------------------------- access counters

# step, then (reads, writes) of names after it, each starting at (0, 1): all rows of the table of the plan language
COUNTERS: dict[str, tuple[Any, dict[str, tuple[int, int]]]] = {
    "copy": ({"copy": {"from": "a", "to": "n"}}, {"a": (1, 1), "n": (0, 1)}),
    "scale": ({"scale": {"from": "a", "to": "n", "by": 2}}, {"a": (1, 1), "n": (0, 1)}),
    "cast": ({"cast": {"from": "a", "to": "n", "dtype": "half"}}, {"a": (1, 1), "n": (0, 1)}),
    "clamp": ({"clamp": {"from": "a", "to": "n", "min": 0}}, {"a": (1, 1), "n": (0, 1)}),
    "reshape": ({"reshape": {"from": "a", "to": "n", "shape": [-1]}}, {"a": (1, 1), "n": (0, 1)}),
    "permute": ({"permute": {"from": "a", "to": "n", "order": [1, 0]}}, {"a": (1, 1), "n": (0, 1)}),
    "fill": ({"fill": {"from": "a", "to": "n", "mode": "constant", "value": 1}}, {"a": (1, 1), "n": (0, 1)}),
    "scale_": ({"scale_": {"target": "a", "by": 2}}, {"a": (1, 2)}),
    "clamp_": ({"clamp_": {"target": "a", "min": 2}}, {"a": (1, 2)}),
    "fill_": ({"fill_": {"target": "a", "mode": "constant", "value": 1}}, {"a": (1, 2)}),
    "cast_": ({"cast_": {"target": "a", "to": "half"}}, {"a": (1, 2)}),
    "reshape_": ({"reshape_": {"target": "a", "shape": [-1]}}, {"a": (1, 2)}),
    "phlora_": ({"phlora_": {"target": "a", "rank": 1}}, {"a": (1, 2)}),
    "assign": ({"assign": {"from": "a", "to": "b"}}, {"a": (1, 1), "b": (2, 2)}),
    "add_": ({"add_": {"from": "a", "to": "b"}}, {"a": (1, 1), "b": (2, 2)}),
    "subtract_": ({"subtract_": {"from": "a", "to": "b"}}, {"a": (1, 1), "b": (2, 2)}),
    "add": ({"add": {"from_a": "a", "from_b": "b", "to": "c"}}, {"a": (1, 1), "b": (2, 1), "c": (2, 2)}),
    "subtract": ({"subtract": {"from_a": "a", "from_b": "b", "to": "c"}}, {"a": (1, 1), "b": (2, 1), "c": (2, 2)}),
    "multiply": ({"multiply": {"from_a": "a", "from_b": "b", "to": "a"}}, {"a": (3, 2), "b": (2, 1)}),
    "matmul": ({"matmul": {"from_a": "a", "from_b": "b", "to": "n"}}, {"a": (1, 1), "b": (2, 1), "n": (0, 1)}),
    "move": ({"move": {"from": "a", "to": "n"}}, {"n": (1, 1)}),
    "phlora": (
        {"phlora": {"target": "a", "target_a": "n", "target_b": "o", "rank": 1, "delete_original": False}},
        {"a": (2, 1), "n": (0, 1), "o": (0, 1)},
    ),
    "split": ({"split": {"from": "a", "to": ["n", "o"], "sizes": [1, 2]}}, {"a": (1, 1), "n": (0, 1), "o": (0, 1)}),
    "concat": ({"concat": {"from": ["a", "b"], "to": "n"}}, {"a": (1, 1), "b": (1, 1), "n": (0, 1)}),
    "stack": ({"stack": {"from": r"\w{0}(?P<index>\d)", "to": "n"}}, {"0": (1, 1), "1": (1, 1), "n": (0, 1)}),
    "unstack": ({"unstack": {"from": "a", "to": r"u\g<index>"}}, {"a": (1, 1), "u0": (0, 1), "u2": (0, 1)}),
    "zeroes": ({"zeroes": {"target": "n", "shape": [2]}}, {"n": (0, 1)}),
    "ones": ({"ones": {"target": "n", "shape": [2]}}, {"n": (0, 1)}),
    "rand": ({"rand": {"target": "n", "shape": [2]}}, {"n": (0, 1)}),
    "load": ({"load": {"path": "one.npy", "to": "n"}}, {"n": (0, 1)}),
    "shape": ({"assert": {"shape": {"of": "a", "is": [3, 3]}}}, {"a": (1, 1)}),
    "dtype": ({"assert": {"dtype": {"of": "a", "is": "float"}}}, {"a": (1, 1)}),
    "dimensions": ({"assert": {"dimensions": {"of": "a", "is": 2}}}, {"a": (1, 1)}),
    "iszero": ({"assert": {"not": {"iszero": "a"}}}, {"a": (1, 1)}),
    "dump": ({"dump": {"target": "a"}}, {"a": (1, 1)}),
    "diff": ({"diff": {"left": "a", "right": "[ab]"}}, {"a": (2, 1), "b": (1, 1)}),
    "equal": ({"assert": {"equal": {"left": "a", "right": "b"}}}, {"a": (1, 1), "b": (2, 1)}),
    "exists": ({"assert": {"exists": "a"}}, {"a": (0, 1)}),
    "count": ({"assert": {"count": {"of": "a", "is": 1}}}, {"a": (0, 1)}),
    "reads": ({"assert": {"reads": {"of": "a", "is": 0}}}, {"a": (0, 1)}),
    "writes": ({"assert": {"writes": {"of": "a", "at_least": 1}}}, {"a": (0, 1)}),
    "save one": ({"save": {"path": "saved.npy", "target": "a", "format": "numpy"}}, {"a": (2, 1), "b": (0, 1)}),
    "save all": ({"save": "saved.safetensors"}, {"a": (1, 1), "b": (1, 1)}),
}


@pytest.mark.parametrize("row", COUNTERS)
def test_access_counters_move_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("one.npy", np.ones(2, np.float32))
    square = W[:, :3]
    bench = Bench(tmp_path, m={"a": square, "b": square, "c": square, "0": square, "1": square})
    step, expected = COUNTERS[row]
    counts = [
        {"assert": {kind: {"of": name, "is": count}}}
        for name, pair in expected.items()
        for kind, count in zip(("reads", "writes"), pair, strict=True)
    ]
    bench.report([step, *counts], output=False)


def test_the_order_of_names_is_that_of_arrival(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"c": W, "a": W, "b": W})
    (save,) = bench.compile(
        [
            {"scale_": {"target": "a", "by": 2}},
            {"copy": {"from": "b", "to": "0"}},
            {"move": {"from": "c", "to": "d"}},
        ]
    ).symbolic.saves
    assert [name for name, _ in save.tensors] == ["a", "b", "0", "d"]
