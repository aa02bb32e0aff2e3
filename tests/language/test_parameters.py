"""Promises of parameters: what is declared, what may be given, and what a variable called `params` still is."""

import pytest

from surgery_jax.core.errors import PlanError
from surgery_jax.language.document import plain
from surgery_jax.language.expressions import Named
from surgery_jax.language.parts import load_document, settings, settings_file


class Reading:
    def config(self, path):
        return Named({"layers": 4}, "config.json")

    def names(self, path):
        return []


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(text, *words, more=()):
        (tmp_path / "p.yaml").write_text(text)
        return plain(load_document(["p.yaml", *words], more, Reading()))

    return call


def value(load, declaration, *words):
    return load(f"params: {{ p: {declaration} }}\nused: '${{p}}'\n", *words)["used"]


@pytest.mark.parametrize(
    ("declaration", "word", "found"),
    [
        ("{ type: int }", "p=3", 3),
        ("{ type: int, default: 4 }", None, 4),
        ("{ type: float }", "p=3", 3.0),
        ("{ type: float }", "p=1e-3", 0.001),
        ("{ type: bool }", "p=no", False),
        ("{ type: str }", "p=010", "010"),
        ("{ type: str }", "p=word", "word"),
        ("{ type: path }", "p=runs/1.5", "runs/1.5"),
        ("{ type: dtype }", "p=bf16", "bfloat16"),
        ("{ type: list of int }", "p=[1, 2]", [1, 2]),
        ("{ type: list of int }", "p=3", [3]),
        ("{ type: list of str, default: [] }", None, []),
        ("{ type: choice, values: [a, b] }", "p=b", "b"),
        ("{ type: choice, values: [1, 2, auto] }", "p=2", 2),
        ("{ type: choice, values: [1, 2, auto] }", "p=auto", "auto"),
        ("{ type: list of choice, values: [1, 2, auto] }", "p=[auto, 1]", ["auto", 1]),
        ("{ type: int, values: [1, 2] }", "p=2", 2),
        ("{ type: int, default: null }", None, None),
        ("{ type: int, default: '${config.layers * 2}' }", None, 8),
        ("{ type: int, max: '${config.layers}' }", "p=4", 4),
        ("{ type: str }", "p=a=b", "a=b"),
    ],
)
def test_a_value_has_the_type_that_is_declared(load, declaration, word, found):
    text = "inputs: [ 'm::there' ]\n" + f"params: {{ p: {declaration} }}\nused: '${{p}}'\n"
    got = load(text, *([word] if word else []))["used"]
    assert got == found and type(got) is type(found)


@pytest.mark.parametrize(
    ("declaration", "word", "words"),
    [
        ("{ type: int }", "p=x", "another type"),
        ("{ type: int }", "p=1.5", "another type"),
        ("{ type: int }", "p=true", "another type"),
        ("{ type: float }", "p=x", "another type"),
        ("{ type: bool }", "p=1", "another type"),
        ("{ type: path }", "p=", "another type"),
        ("{ type: dtype }", "p=float33", "another type"),
        ("{ type: list of int }", "p=[1, x]", "another type"),
        ("{ type: str }", "p=[1]", "another type"),
        ("{ type: choice, values: [abc, b] }", "p=abd", "none of its values"),
        ("{ type: int, min: 1 }", "p=0", "out of bounds"),
        ("{ type: int, max: 3 }", "p=4", "out of bounds"),
        ("{ type: list of int, max: 3 }", "p=[1, 4]", "out of bounds"),
        ("{ type: int, default: x }", None, "another type"),
        ("{ type: int }", None, "needs a value for p"),
        ("{ type: int }", "q=1", "no parameter 'q'"),
    ],
)
def test_what_is_given_wrongly_is_refused_with_what_there_is(load, declaration, word, words):
    with pytest.raises(PlanError, match=words) as caught:
        value(load, declaration, *([word] if word else []))
    assert caught.value.expected and caught.value.where
    if word == "q=1":
        assert "p" in caught.value.expected
    if word == "p=abd":
        assert caught.value.hint == "did you mean abc?"


def test_defaults_are_expressions_over_other_parameters_in_any_order(load):
    text = "params: { b: { type: int, default: '${a * 2}' }, a: { type: int, default: 3 } }\nx: '${b + a}'\n"
    assert load(text)["x"] == 9 and load(text, "a=1")["x"] == 3 and load(text, "b=1")["x"] == 4
    with pytest.raises(PlanError, match="circle"):
        load("params: { a: { type: int, default: '${b}' }, b: { type: int, default: '${a}' } }\nx: '${a}'\n")


def test_a_list_is_replaced_and_not_merged(load):
    assert value(load, "{ type: list of int, default: [1, 2, 3] }", "p=[7]") == [7]
    assert value(load, "{ type: list of int, default: [1, 2, 3] }", "p[1]=7") == [1, 7, 3]


def test_values_come_from_a_program_or_a_file_and_the_command_line_comes_after(load, tmp_path):
    text = "params: { a: { type: int, default: 1 }, b: { type: list of str, default: [] } }\nx: ['${a}', '${b}']\n"
    assert load(text, more=settings({"a": 5, "b": ["u", "v"]}))["x"] == [5, ["u", "v"]]
    (tmp_path / "v.yaml").write_text("a: 7\nb: [w]\n")
    assert load(text, "a=8", more=settings_file("v.yaml"))["x"] == [8, ["w"]]
    with pytest.raises(PlanError, match="no parameter 'c'"):
        load(text, more=settings({"c": 5}))


@pytest.mark.parametrize(
    "text",
    [
        "params: { lr: 0.1 }\nx: '${params.lr}'\n",
        "params: 3\nx: '${params}'\n",
        "params: [1, 2]\nx: '${params[0]}'\n",
        "params: { a: { type: int, scale: 0.1 } }\nx: '${params.a.scale}'\n",
        "params: {}\nx: 1\n",
        "params: { a: { type: int, default: 0.1 } }\nx: '${params.a.default}'\n",
        "params: { a: { k: 1 } }\nx: 1\n",
        "params: { a: { type: lora, value: 1 } }\nx: 1\n",
        "params: null\nx: 1\n",
        "params: { a: { type: int } }\nx: '${params}'\n",
    ],
)
def test_a_variable_called_params_is_a_variable(load, text):
    assert load(text)["x"] is not None


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ("{ p: { type: integer }, q: { type: int, default: 1 } }", "unknown type"),
        ("{ p: { type: int, defalt: 1 } }", "unknown key 'defalt'"),
        ("{ p: { type: choice } }", "choice without values"),
        ("{ inputs: { type: int } }", "cannot be the name"),
        ("{ a-b: { type: int } }", "cannot be the name"),
        ("{ len: { type: int } }", "cannot be the name"),
        ("{ p: { type: int, help: [1] } }", "is text"),
        ("{ x: { type: int } }", "a parameter and a variable"),
        ("{ p: { type: int, default: word } }", "parameter p has another type"),
        ("{ p: { type: list of int, max: 3, default: [1, 4] } }", "parameter p is out of bounds"),
        ("{ p: { type: choice, values: [a, b], default: c } }", "parameter p has none of its values"),
    ],
)
def test_a_declaration_that_is_wrong_is_refused(load, params, words):
    with pytest.raises(PlanError, match=words) as caught:
        load(f"params: {params}\nx: 1\n")
    assert str(caught.value.where).startswith("p.yaml:1:") or caught.value.where.line == 2


@pytest.mark.parametrize("words", [(), ("p=3",)])
def test_a_type_that_is_none_is_told_where_the_name_is_not_known(load, words):
    with pytest.raises(PlanError, match=r"'integer' is no type of a parameter; did you mean int\?"):
        load("params: { p: { type: integer, default: 1 } }\nx: '${p}'\n", *words)


def test_a_text_that_is_empty_is_no_path_and_quotes_are_not_what_is_missing(load):
    with pytest.raises(PlanError, match="another type") as caught:
        value(load, "{ type: path }", "p=")
    assert caught.value.hint is None


def test_an_output_that_is_a_mapping_keeps_the_rest_when_its_path_is_given(load):
    text = "output: { path: a, shard: 1MB, options: { k: v } }\n"
    rest = {"shard": "1MB", "options": {"k": "v"}}
    assert load(text, "output=b")["output"] == {"path": "b"} | rest
    assert load(text, "output.path=b")["output"] == {"path": "b"} | rest
    assert load(text, "output={path: b, shard: 2MB}")["output"] == {"path": "b"} | rest | {"shard": "2MB"}
    assert load("output: a\n", "output=b")["output"] == "b"
    assert load("output: a\n", "output.shard=1MB", "output=b")["output"] == {"path": "b", "shard": "1MB"}


def test_a_parameter_called_output_is_the_path_of_the_output(load):
    text = "params: { output: { type: path } }\noutput: { shard: 1MB }\n"
    assert load(text, "output=b")["output"] == {"path": "b", "shard": "1MB"}
    with pytest.raises(PlanError, match="needs a value for output"):
        load(text)
    assert load("params: { output: { type: path, default: d } }\ninputs: []\n")["output"] == "d"
