"""Promises of loops, conditions and fragments: the steps they stand for, where they are, and bounds."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery_jax.core.errors import Mark, PlanError
from surgery_jax.language.document import plain
from surgery_jax.language.expressions import Named
from surgery_jax.language.parts import load_document


class Reading:
    """Answers for inputs that are on no disk."""

    def __init__(self, configs=(), names=()):
        self.configs, self.tensors = dict(configs), dict(names)
        self.asked = []

    def config(self, path):
        self.asked.append(path)
        found = self.configs.get(path)
        return None if found is None else Named(found, f"{path}/config.json")

    def names(self, path):
        return self.tensors[path]


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(text, *words, reading=None, **files):
        (tmp_path / "p.yaml").write_text(text)
        for name, content in files.items():
            (tmp_path / f"{name}.yaml").write_text(content)
        return plain(load_document(["p.yaml", *words], reading=reading))

    return call


def steps(document):
    """The targets of steps that delete."""
    return [step["delete"]["target"] for step in document["transforms"]]


def faults():
    """What is wrong with the steps of the plan that was loaded last."""
    return [step.fault for step in load_document(["p.yaml"]).entries["transforms"].items if step.fault]


def loop(binding, target="x${e}", before=""):
    return f"{before}transforms:\n  - foreach: {{ {binding}, do: [ {{ delete: {{ target: '{target}' }} }} ] }}\n"


@pytest.mark.parametrize(
    ("binding", "target", "found"),
    [
        ("e: '${range(3)}'", "x${e}", ["x0", "x1", "x2"]),
        ("e: [a, 2, 1.5]", "x${e}", ["xa", "x2", "x1.5"]),
        ("e: '${range(0)}'", "x${e}", []),
        ("e: { a: 1, b: 2 }", "${e.key}${e.value + 1}", ["a2", "b3"]),
        ("'k, v': { a: 1, b: 2 }", "${k}${v}", ["a1", "b2"]),
        ("'k, v': [[a, 1], [b, 2]]", "${k}${v}", ["a1", "b2"]),
        ("e: [1, 2], f: [a, b]", "${e}${f}", ["1a", "1b", "2a", "2b"]),
        ("e: [1, 2], f: '${range(e)}'", "${e}${f}", ["10", "20", "21"]),
        ("e: ['${n}', '${n * 2}']", "x${e}", ["x3", "x6"]),
    ],
)
def test_a_loop_stands_for_its_steps_once_per_value(load, binding, target, found):
    assert steps(load("n: 3\n" + loop(binding, target))) == found


def test_loops_nest_and_see_the_variables_around_them(load):
    text = """
n: 2
transforms:
  - foreach:
      a: '${range(n)}'
      do:
        - foreach: { b: '${range(a + 1)}', do: [ { delete: { target: '${a}.${b}.${n}' } } ] }
        - delete: { target: 'end${a}' }
"""
    assert steps(load(text)) == ["0.0.2", "end0", "1.0.2", "1.1.2", "end1"]


def test_a_variable_of_a_loop_hides_one_of_the_file_which_does_not_see_it(load):
    text = "e: outer\nseen: 'sees ${e}'\n" + loop("e: [1]", "${e}; ${seen}")
    assert steps(load(text)) == ["1; sees outer"]
    with pytest.raises(PlanError, match="unknown reference"):
        load("seen: '${i}'\n" + loop("i: [1]", "${seen}"))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_nested_loops_are_the_product_in_order(tmp_path_factory, counts):
    path = tmp_path_factory.mktemp("loops") / "p.yaml"
    names = [f"v{i}" for i in range(len(counts))]
    body = f"{{ delete: {{ target: 'x{'.'.join(f'${{{name}}}' for name in names)}' }} }}"
    for name, count in reversed(list(zip(names, counts, strict=True))):
        body = f"{{ foreach: {{ {name}: '${{range({count})}}', do: [ {body} ] }} }}"
    path.write_text(f"transforms: [ {body} ]\n")
    expected = [[]]
    for count in counts:
        expected = [[*row, str(i)] for row in expected for i in range(count)]
    assert steps(plain(load_document([str(path)]))) == ["x" + ".".join(row) for row in expected]


def test_a_condition_keeps_or_drops_a_step_a_loop_or_several_steps(load):
    text = """
tied: true
transforms:
  - { when: tied, delete: { target: a } }
  - { when: '${not tied}', delete: { target: '${nothing}' } }
  - { when: tied and 1 < 2, foreach: { e: [b, c], do: [ { when: "e != 'b'", delete: { target: '${e}' } } ] } }
  - { when: tied, do: [ { delete: { target: d } }, { delete: { target: e } } ] }
  - { when: '${tied}', include: f.yaml }
"""
    assert steps(load(text, f="- delete: { target: f }\n")) == list("acdef")


def test_captured_groups_of_names_are_values_in_their_order(load):
    names = [f"layers.{i}.{w}.w" for i in (10, 9, 2) for w in ("up", "down")]
    reading = Reading(names={"there": names})
    text = "inputs: [ 'm::there' ]\n" + loop(r"e: { match: 'layers\.(\d+)\..+' }", "x${e + 0}")
    assert steps(load(text, reading=reading)) == ["x2", "x9", "x10"]
    text = "inputs: [ 'm::there' ]\n" + loop(r"'a, b': { match: 'm::layers\.(\d+)\.(up|down)\.w' }", "${a}${b}")
    assert steps(load(text, reading=reading)) == ["2down", "2up", "9down", "9up", "10down", "10up"]
    with pytest.raises(PlanError, match="nothing matches"):
        load("inputs: [ 'm::there' ]\n" + loop(r"e: { match: 'blocks\.(\d+)' }"), reading=reading)
    with pytest.raises(PlanError, match="no input has the alias 'n'"):
        load("inputs: [ 'm::there' ]\n" + loop(r"e: { match: 'n::(.+)' }"), reading=reading)


def test_the_config_of_inputs_is_read_when_it_is_used_and_from_where_the_input_is_in_the_end(load):
    reading = Reading(configs={"a": {"n": 2, "deep": {"k": 5}}, "b": {"n": 3}})
    text = "inputs: [ 'm::a' ]\n" + loop("e: '${range(config.n)}'", "x${e}")
    assert steps(load(text, reading=reading)) == ["x0", "x1"]
    assert steps(load(text, "inputs[0]=m::b", reading=reading)) == ["x0", "x1", "x2"]
    two = "inputs: [ 'p::a', 'q::b' ]\n" + loop("e: [0]", "${p.config.deep.k}${config.q.n}${q.config.n}")
    assert steps(load(two, reading=reading)) == ["533"]
    reading.asked.clear()
    load("inputs: [ 'm::nowhere' ]\n" + loop("e: [1]"), reading=reading)
    assert reading.asked == []
    with pytest.raises(PlanError, match="m::nowhere has no config"):
        load(text, "inputs[0]=m::nowhere", reading=reading)
    with pytest.raises(PlanError, match="unknown key 'k' of a/config"):
        load("inputs: [ 'm::a' ]\nv: '${config.k}'\n", reading=reading)
    with pytest.raises(PlanError, match="inputs cannot depend on the config"):
        load("inputs: [ 'm::${config.n}' ]\n", reading=reading)


def test_inputs_are_made_by_loops_and_expressions(load):
    text = """
experts: [a, b]
inputs:
  - base::x
  - foreach: { i: '${range(len(experts))}', do: [ 'e${i}::${experts[i]}' ] }
"""
    assert load(text)["inputs"] == ["base::x", "e0::a", "e1::b"]
    text = "experts: [a, b]\ninputs: \"${['e' + str(i) + '::' + experts[i] for i in range(len(experts))]}\"\n"
    assert load(text)["inputs"] == ["e0::a", "e1::b"]


def test_the_steps_of_execute_are_expanded_too(load):
    text = """
transforms:
  - execute: { transforms: [ { foreach: { e: [1, 2], do: [ { delete: { target: 'a${e}' } } ] } } ] }
  - execute: { plan: { transforms: { foreach: { e: [3], do: [ { delete: { target: 'a${e}' } } ] } } } }
  - foreach: { e: [4], do: [ { execute: { transforms: [ { when: true, delete: { target: 'a${e}' } } ] } } ] }
"""
    one, two, three = (step["execute"] for step in load(text)["transforms"])
    assert steps(one) == ["a1", "a2"] and steps(two["plan"]) == ["a3"] and steps(three) == ["a4"]


def test_a_fragment_gets_its_arguments_and_sees_nothing_else(load):
    text = """
mine: 1
transforms:
  - include: { path: sub/../f.yaml, with: { n: '${mine + 1}' } }
  - foreach: { e: [a], do: [ { include: { path: f.yaml, with: { n: 1, word: 'lit\\${e}${e}' } } } ] }
"""
    fragment = """
params: { n: { type: int, min: 1 }, word: { type: str, default: 'w${n}' } }
own: x
transforms:
  - foreach: { i: '${range(n)}', do: [ { delete: { target: '${own}${i}${word}' } } ] }
"""
    Path("sub").mkdir()
    assert steps(load(text, f=fragment)) == ["x0w2", "x1w2", "x0lit${e}a"]
    with pytest.raises(PlanError, match="there is no 'mine'"):
        load(text, f="- delete: { target: '${mine}' }\n")
        raise faults()[0]
    with pytest.raises(PlanError, match="needs a value for n"):
        load("transforms: [ { include: f.yaml } ]", f=fragment)
    with pytest.raises(PlanError, match="no parameter 'm'"):
        load("transforms: [ { include: { path: f.yaml, with: { n: 1, m: 2 } } } ]", f=fragment)
    with pytest.raises(PlanError, match="n is out of bounds"):
        load("transforms: [ { include: { path: f.yaml, with: { n: 0 } } } ]", f=fragment)


def test_a_fragment_that_cannot_be_taken_says_why_and_where(load):
    text = "transforms:\n  - include: f.yaml\n"
    for fragment, words in {
        "- include: f.yaml\n": "includes itself",
        "- include: p.yaml\n": "includes itself",
        "x: 1\n": "a fragment is a list of steps",
        "inputs: [a]\ntransforms: []\n": "a fragment has no inputs",
    }.items():
        with pytest.raises(PlanError, match=words) as caught:
            load(text, f=fragment)
        assert isinstance(caught.value.where, Mark)
    with pytest.raises(PlanError, match="needs a value for n") as caught:
        load(text, f="params: { n: { type: int } }\ntransforms: []\n")
    assert str(caught.value.where) == "f.yaml:1:11 (included at p.yaml:2)"
    with pytest.raises(PlanError, match="no parameter 'm'") as caught:
        load(
            "transforms: [ { include: { path: f.yaml, with: { m: 1 } } } ]",
            f="params: { n: { type: int } }\ntransforms: []\n",
        )
    assert caught.value.expected == "parameters n"
    with pytest.raises(PlanError, match=r"plan file does not exist: g\.yaml") as caught:
        load("transforms:\n  - include: g.yaml\n")
    assert str(caught.value.where).startswith("p.yaml:2:")


def test_what_is_wrong_in_a_loop_is_told_with_its_line_and_the_values_of_its_variables(load):
    text = loop("e: [0, 1, 2], f: [a]", "${10 // (1 - e)}")
    load(text)
    (fault,) = faults()
    assert "division" in fault.problem and str(fault.where).startswith("p.yaml:2:")
    assert fault.where.turn == "e = 1, f = a"
    assert len(load_document(["p.yaml"]).entries["transforms"].items) == 2  # the turn that fails is the last
    load("transforms:\n  - foreach: { e: [7], do: [ { include: f.yaml } ] }\n", f="\n- delete: { target: x }\n")
    (step,) = load_document(["p.yaml"]).entries["transforms"].items
    assert str(step.mark) == "f.yaml:2:3 (e = 7; included at p.yaml:2)"


def test_overrides_count_steps_as_they_are_written(load):
    text = loop("e: [1, 2]") + "  - delete: { target: last }\n"
    assert steps(load(text, "transforms[1].delete.target=y")) == ["x1", "x2", "y"]
    assert steps(load(text, "transforms[0].foreach.e=[7]")) == ["x7", "x2", "last"]
    assert steps(load(text, r"transforms[0].foreach.do[0].delete.target=\${e}")) == ["${e}", "${e}", "last"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("transforms: [ { foreach: { e: '${range(999)}', f: '${range(999)}', do: [] } } ]", "loops of more than"),
        (loop("e: '${range(10 ** 9)}'"), "range of more than"),
        (loop("e: 3"), r"list or a mapping"),
        (loop("range: [1]"), "cannot be a variable of a loop"),
        (loop("'a, b': [[1]]", "x"), "is a list of 2"),
        ("transforms: [ { foreach: { e: [1] } } ]", "names a variable, its values"),
        ("transforms: [ { foreach: 3 } ]", "names a variable, its values"),
        ("transforms: [ { when: 1, delete: { target: x } } ]", "true or false"),
        ("transforms: [ { when: true } ]", "exactly one transform, and a condition"),
        ("transforms: [ { when: nothing, delete: {} } ]", "unknown name 'nothing'"),
        ("transforms: [ " + "{ foreach: { e: [1], do: [ " * 20 + "exit" + " ] } }" * 20 + " ]", "nested more than 16"),
    ],
)  # fmt: skip
def test_a_loop_without_end_or_of_the_wrong_form_is_refused_soon(load, text, words):
    began = time.process_time()
    try:
        load(text)
        found = faults()[0]
    except PlanError as error:
        found = error
    assert re.search(words, found.problem)
    assert time.process_time() - began < 20


def test_32_layers_of_64_experts_are_expanded_within_a_second_or_two(load):
    text = "experts: 64\n" + loop("l: '${range(32)}', p: [gate, up, down], e: '${range(experts)}'", "${l}.${p}.${e}")
    began = time.process_time()
    assert len(load(text)["transforms"]) == 32 * 3 * 64
    assert time.process_time() - began < 2
