"""All that headers can tell is reported together, in order, with places and nearest names, and nothing more."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import read_checkpoint, write_checkpoint

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


def test_a_plan_refuses_in_its_own_words_and_nothing_follows(bench: Path) -> None:
    (error,) = problems("  - fail: { problem: never, expected: a, found: b, hint: c }\n  - delete: { target: nothing }")
    assert isinstance(error, PlanError) and str(error).splitlines() == [
        "plan.yaml:3:5: never",
        "    expected: a",
        "    found: b",
        "    try: c",
    ]
    (error,) = problems("  - fail: just so")
    assert str(error) == "plan.yaml:3:5: just so"


def test_a_note_is_told_once_and_is_no_error(bench: Path) -> None:
    Path("plan.yaml").write_text("inputs: [m.safetensors]\ntransforms: [note: mind it, note: mind it]\noutput: out\n")
    assert [str(notice) for notice in check(load_plan("plan.yaml")).symbolic.warnings] == [
        "plan.yaml:2:14: mind it",
        "plan.yaml:2:29: mind it",
    ]


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
    with pytest.raises(SurgeryError, match="NUL") as found:
        check(load_plan("plan.yaml"))
    assert str(found.value).startswith("plan.yaml:")
    assert found.value.exit_code == 2


@pytest.mark.parametrize("shape", [f"[ {10**290} ]", f"[ {10**290}, {10**290} ]", "[ 4611686018427387904 ]"])
@pytest.mark.parametrize("step", ["zeroes", "ones", "rand"])
def test_a_tensor_that_is_larger_than_any_file_is_an_error_of_the_plan(step: str, shape: str, bench: Path) -> None:
    (error,) = problems(f"  - {step}: {{ target: x, shape: {shape} }}")
    assert isinstance(error, PlanError) and ("too large" in str(error) or "not an integer of 64 bits" in str(error))
    assert len(str(error)) < 500


@pytest.mark.parametrize("place", ["input", "output"])
def test_a_name_that_is_too_long_for_the_system_is_an_error(place: str, bench: Path) -> None:
    long = "n" * 4000
    names = {"input": f"inputs: [ {long} ]\noutput: out\n", "output": f"inputs: [ m.safetensors ]\noutput: {long}\n"}
    Path("plan.yaml").write_text(names[place] + "transforms: []\n")
    with pytest.raises(SurgeryError, match="File name too long") as found:
        check(load_plan("plan.yaml"))
    assert found.value.exit_code == 3


def test_after_a_hundred_errors_the_rest_is_not_looked_at(bench: Path) -> None:
    wrong = [f"  - copy: {{ from: none.{n}, to: new.{n} }}" for n in range(4000)]
    began = time.process_time()
    found = problems("\n".join(wrong))
    assert time.process_time() - began < 10  # 4 000 take minutes
    assert len(found) == 101
    assert found[-1].where.line == 102 and "not looked at" in found[-1].problem
    nested = problems("  - execute:\n      transforms:\n" + "\n".join(f"    {step}" for step in wrong))
    assert len(nested) == 101


def test_a_step_that_does_not_exist_is_told_before_its_variables(bench: Path) -> None:
    found = problems(
        "  - for_all: { n: [0, 1], do: { copy: { from: 'h.${n}.w', to: x } } }\n"
        "  - copy: { from: 'h.${m}.w', to: y }\n"
        "  - execute: { transforms: [ { iterate: { times: '${t}' } }, { delete: { target: '${u}' } } ] }"
    )
    assert [error.problem.split(":")[0] for error in found] == [
        "unknown transform 'for_all'",
        "unknown reference ${m}",
        "unknown transform 'iterate'",
        "unknown reference ${u}",
    ]


def test_a_step_with_an_unknown_variable_is_wrong_even_where_it_is_merged(bench: Path) -> None:
    Path("plan.yaml").write_text("inputs: [ m.safetensors ]\ntransforms: [ { copy: { from: embed, to: '${x}' } } ]\n")
    with pytest.raises(SurgeryError, match=r"unknown reference \$\{x\}"):
        check(load_plan("plan.yaml", "transforms[0].copy.from=ids"))


def test_patterns_in_double_quotes_are_told_to_take_single_ones(bench: Path) -> None:
    for pattern in ('"h\\.0"', '"\\bh"'):
        (error,) = problems(f"  - delete: {{ target: {pattern} }}")
        assert "single quotes" in str(error.hint)
    assert not [error for error in problems("  - delete: { target: '\\bh' }") if "quotes" in str(error.hint)]


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("{ exists: '.+weight' }", ["h.0.attn.k_proj.weight", "ln.weight"]),
        ("{ count: { of: embed, is: 1 } }", ["embed"]),
        ("{ dimensions: { of: 'embed|ids', ge: 1 } }", ["embed", "ids"]),
        ("{ all: [ { exists: ids }, { dtype: { of: embed, is: float16 } } ] }", ["embed", "ids"]),
    ],
)
def test_a_negation_that_fails_names_what_matches(bench: Path, expression: str, names: list[str]) -> None:
    (error,) = problems(f"  - assert: {{ not: {expression} }}")
    assert all(name in error.problem for name in names)


def test_a_negation_names_at_most_a_dozen(bench: Path) -> None:
    write_checkpoint(bench / "m.safetensors", {f"layer.{n}": np.zeros(1) for n in range(24)})
    (error,) = problems("  - assert: { not: { exists: 'layer.+' } }")
    assert error.problem.count("layer.") == 13 and error.problem.endswith("and 12 more")  # the pattern too


SLICES = {
    "embed::[..., 0]": "write a : for every axis",
    "m::[ab]": "m::(?:[ab])",
}


@pytest.mark.parametrize("text", SLICES)
def test_what_is_no_slice_is_advised_by_what_it_looks_like(bench: Path, text: str) -> None:
    (error,) = problems(f"  - copy: {{ from: '{text}', to: part }}")
    assert SLICES[text] in str(error.hint)
    assert ("character class" in str(error.hint)) == ("ab" in text)


def test_a_list_of_indices_chooses_along_its_axis(bench: Path) -> None:
    embed = np.arange(48, dtype=np.float16).reshape(8, 6)
    write_checkpoint(bench / "m.safetensors", {"embed": embed})
    steps = "{ copy: { from: 'embed::[[3, 7, -1], 0:2]', to: part } }"
    steps += ", { scale_: { target: 'embed::[[6, 1], [5]]', by: 2 } }"
    Path("good.yaml").write_text(f"inputs: [ m.safetensors ]\ntransforms: [ {steps} ]\noutput: out.safetensors\n")
    run(load_plan("good.yaml"))
    found = read_checkpoint(bench / "out.safetensors")
    np.testing.assert_array_equal(found["part"], embed[[3, 7, -1], 0:2])
    embed[[6, 1], 5] *= 2
    np.testing.assert_array_equal(found["embed"], embed)
    (error,) = problems("  - scale_: { target: 'embed::[[1, 3, 1]]', by: 2 }")
    assert "has a place twice" in error.problem


IMPOSSIBLE = [
    "  - zeroes: { target: x, shape: [1" + "0" * 290 + "] }",
    "  - zeroes: { target: x, shape: [4611686018427387904, 4611686018427387904] }",
    "  - scale: { from: embed, to: x, by: 1" + "0" * 400 + " }",
    "  - fill: { from: embed, to: x, mode: tensor, values: [1" + "0" * 100 + "] }",
    "  - rand: { target: x, shape: [2], seed: 1" + "0" * 100 + " }",
    "  - concat: { from: [embed, embed], to: x, dim: 1" + "0" * 100 + " }",
    '  - save: { path: "a\\0b" }',
    '  - load: { path: "a\\0b", alias: x }',
    '  - execute: { path: "a\\0b" }',
    "  - save: { path: x, shard: " + "9" * 5000 + "GB }",
    "  - scale: { from: embed, to: x, by: 0x" + "f" * 4200 + " }",
    '  - move: { from: embed, to: "\\ud800" }',
]


@pytest.mark.parametrize("step", IMPOSSIBLE, ids=lambda step: step[:40])
def test_what_no_machine_can_hold_or_no_file_be_called_is_an_error_of_the_plan(bench: Path, step: str) -> None:
    (error,) = problems(step)
    assert isinstance(error, PlanError) and str(error.where).startswith("plan.yaml:3:")
    assert len(str(error)) < 1500


def test_products_larger_than_any_file_are_refused(bench: Path) -> None:
    steps = (
        "  - zeroes: { target: x, shape: [1099511627776, 1] }\n  - zeroes: { target: y, shape: [1, 1099511627776] }\n"
    )
    (error,) = problems(steps + "  - matmul: { from_a: x, from_b: y, to: z }")
    assert "larger than any file can be" in error.problem


@pytest.mark.parametrize("output", ["'output=a\0b'", "inputs[0]=a\0b", "output.path=a\0b", "output=a\udcffb"])
def test_paths_of_overrides_that_no_file_has_are_errors(bench: Path, output: str) -> None:
    Path("plan.yaml").write_text("inputs: [ m.safetensors ]\n")
    with pytest.raises(PlanError, match=r"NUL|half a character"):
        check(load_plan("plan.yaml", output.strip("'")))


WARNED = {
    "'(.*)', to: 'x.\\1x.'": "'(.+)'",
    "'.*', to: 'p.\\g<0>'": "'.+'",
    "'e|embed', to: 'z'": "'^(?:e|embed)$'",
    "'(.+?)', to: '<\\1>'": "'^(?:(.+?))$'",
}


@pytest.mark.parametrize("step", WARNED)
def test_a_pattern_that_is_replaced_in_pieces_keeps_its_meaning_and_warns_with_a_remedy(bench: Path, step: str) -> None:
    def compiled(text: str) -> Any:
        plan = f"inputs: [ m.safetensors ]\ntransforms: [ {{ copy: {{ from: {text} }} }} ]\noutput: out.safetensors\n"
        Path("plan.yaml").write_text(plan)
        return check(load_plan("plan.yaml"))

    found = compiled(step)
    (warning,) = found.symbolic.warnings
    assert str(warning.where).startswith("plan.yaml:2:") and f"write {WARNED[step]}" in str(warning.hint)
    regex, template = re.fullmatch(r"'(.+)', to: '(.+)'", step).groups()
    names = {name for name, _ in found.symbolic.saves[0].tensors}
    old = [name for name in names if re.fullmatch(regex, name) and re.sub(regex, template, name) in names]
    assert old
    remedy = WARNED[step].replace("\\\\", "\\")
    again = compiled(step.replace(f"'{regex}'", remedy))
    assert not again.symbolic.warnings
    for name in old:
        assert re.fullmatch(regex, name).expand(template) in {name for name, _ in again.symbolic.saves[0].tensors}


@pytest.mark.parametrize("step", ["'(.*)', to: 'y::\\1'", "'(.+)', to: 'x.\\1'", "'embed', to: 'e'"])
def test_ordinary_templates_do_not_warn(bench: Path, step: str) -> None:
    Path("plan.yaml").write_text(
        "inputs: [ m.safetensors ]\ntransforms: [ { prefixes: { mode: add, alias: y } }, "
        f"{{ copy: {{ from: {step} }} }} ]\n"
    )
    assert not check(load_plan("plan.yaml")).symbolic.warnings


def test_a_backslash_that_a_destination_keeps_is_warned_of(bench: Path) -> None:
    Path("plan.yaml").write_text("inputs: [ m.safetensors ]\ntransforms: [ { copy: { from: embed, to: 'a\\.b' } } ]\n")
    (warning,) = check(load_plan("plan.yaml")).symbolic.warnings
    assert "backslash" in warning.problem


def test_an_error_of_a_step_that_read_many_tensors_names_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = {f"layer.{n}.weight": np.ones((2, 3 + n // 29), np.float32) for n in range(30)}
    write_checkpoint(tmp_path / "m.safetensors", tensors)
    names = ", ".join(f"'layer\\.{n}\\.weight'" for n in range(30))
    (error,) = problems(f"  - concat: {{ from: [ {names} ], to: all }}")
    assert "concat: layer.0.weight, layer.1.weight, layer.2.weight and 27 more: parts differ" in str(error)
