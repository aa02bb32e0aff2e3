"""Promises of the plan reader: what YAML means, where things are, and references between values."""

import os
import re
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax.core.errors import Mark, PlanError
from surgery_jax.language.document import (
    Mapping,
    Scalar,
    Sequence,
    node_of,
    parse_plan_file,
    parse_yaml,
    plain,
)

HERE = Mark("here", 1, 1)


def read(text, interpolate=True):
    return plain(parse_yaml(text, "p.yaml", interpolate=interpolate))


def fails(text, words, at=None, interpolate=True):
    with pytest.raises(PlanError, match=words) as caught:
        parse_yaml(text, "p.yaml", interpolate=interpolate)
    if at is not None:
        assert caught.value.where == Mark("p.yaml", *at)
    return caught.value


# -- YAML


WORDS = st.text(alphabet="abzAZ019 _-+.:~xo\n'\"#é重\\", max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans())
def test_what_pyyaml_writes_is_read_back_as_the_same_values(value, flow):
    text = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True)
    expected = {} if value is None else value
    assert read(text, interpolate=False) == expected


@given(VALUES)
def test_nodes_of_plain_values_are_plain_values_again(value):
    assert plain(node_of(value, HERE)) == value


@given(st.text(alphabet="0123456789abefonxys+-._:~ETNINF", min_size=1, max_size=8))
def test_plain_words_mean_what_pyyaml_says_except_for_floats_and_dates(word):
    try:
        expected = yaml.safe_load(f"a: {word}")["a"]
    except (yaml.YAMLError, ValueError):
        return
    found = read(f"a: {word}")["a"]
    if isinstance(expected, bool | int | float):
        assert repr(found) == repr(expected)
    elif isinstance(expected, str) and isinstance(found, float):
        assert re.fullmatch(r"[-+]?[0-9][0-9_]*\.?[0-9_]*[eE][-+]?[0-9]+", word)
    elif isinstance(expected, str):
        assert found == expected
    elif expected is not None and not isinstance(expected, list):
        assert found == word  # a date


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-6", 1e-6), ("1E3", 1000.0), ("1_6", 16), ("0x10", 16), ("017", 15), ("1:30", 90), ("08", "08"),
        ("yes", True), ("off", False), ("y", "y"), ("2001-01-01", "2001-01-01"), (".inf", float("inf")),
        ("~", None), ("'on'", "on"), ("!!str 3", "3"), ("!!float 3", 3.0), ("=", "="), ("0b_", "0b_"),
        ("+.5", "+.5"), ("1" * 5000, "1" * 5000),
    ],
)  # fmt: skip
def test_words_of_yaml_have_these_values(word, value):
    assert read(f"a: {word}") == {"a": value}


@pytest.mark.parametrize("text", ["", "# only a comment", "---", "null", "--- ~\n..."])
def test_an_empty_document_is_an_empty_mapping(text):
    assert isinstance(parse_yaml(text, "p.yaml", interpolate=True), Mapping)
    assert read(text) == {}


def test_every_value_and_key_knows_its_line_and_column():
    node = parse_yaml("a: 1\nb:\n  - x\n  - { größe: [2, '3'] }\n", "p.yaml", interpolate=True)
    assert isinstance(node, Mapping)
    assert node.mark == Mark("p.yaml", 1, 1)
    assert node.keys["b"] == Mark("p.yaml", 2, 1)
    items = node.entries["b"]
    assert isinstance(items, Sequence) and items.mark == Mark("p.yaml", 3, 3)
    inner = items.items[1]
    assert isinstance(inner, Mapping)
    assert (inner.mark, inner.keys["größe"]) == (Mark("p.yaml", 4, 5), Mark("p.yaml", 4, 7))
    assert inner.entries["größe"].items[1] == Scalar("3", Mark("p.yaml", 4, 18))


def test_anchors_aliases_and_merge_keys_mean_what_pyyaml_says():
    text = """
    a: &a { x: 1, y: 2 }
    b: &b { y: 3, z: 4 }
    c: { <<: *a, y: 9 }
    d: { q: 0, <<: [*a, *b] }
    f: [*a, &k word, *k]
    """
    assert read(text) == yaml.safe_load(text)


def test_keys_that_are_no_strings_become_their_text():
    assert read("0: a\ntrue: b\n1.50: c\n'x y': d") == {"0": "a", "true": "b", "1.50": "c", "x y": "d"}


@pytest.mark.parametrize(
    ("text", "words", "at"),
    [
        ("a: 1\nb: 2\na: 3", r"duplicate key 'a': already at p.yaml:1:1", (3, 1)),
        ("x: { a: 1, 'a': 2 }", r"duplicate key 'a': already at p.yaml:1:6", (1, 12)),
        ("a: !!python/object:os.system x", "unknown tag !!python/object:os.system", (1, 4)),
        ("a: !mine [1]", "unknown tag !mine", (1, 4)),
        ("a: !!binary aGk=", "unknown tag !!binary", (1, 4)),
        ("a: !!int x", "'x' is no value of !!int", (1, 4)),
        ("? [a]\n: 1", "a key must be a word", (1, 3)),
        ("~: 1", "a key must be a word", (1, 1)),
        ("a: *x", r"unknown alias \*x", (1, 4)),
        ("a: &x [*x]", r"alias \*x inside its own anchor", (1, 8)),
        ("a: 1\n<<: 3", "merges mappings only", (2, 5)),
        ("a: &a { x: 1 }\nb: { <<: *a, <<: *a }", r"duplicate key '<<': already at p.yaml:2:6", (2, 14)),
        ("a: 1\n---\nb: 2", "several documents", (2, 1)),
        ("a: [1\nb: 2", "not valid YAML", None),
        ("a: b: c", "not valid YAML: mapping values are not allowed", (1, 5)),
        ("a:\n\t- b", "not valid YAML", None),
        ("a: \x00", "not valid YAML", None),
        ('a: "\\ud800"', "not valid YAML|half a character", None),
        ('a: "\\Uffffffff"', "not valid YAML", None),
    ],
)
def test_bad_documents_are_refused_at_their_place(text, words, at):
    fails(text, words, at)


@given(st.text(alphabet="ab{}[]&*!|>%@`'\"#:-?,<~=\n\t \\U$.0é\ufeff", max_size=40), st.booleans())
def test_any_text_gives_a_document_or_a_plan_error(text, interpolate):
    try:
        parse_yaml(text, "p.yaml", interpolate=interpolate)
    except PlanError as error:
        assert error.problem and "\n" not in error.problem


def test_deep_nesting_is_refused_and_not_a_crash():
    fails("[" * 5000, "nested more than 100 levels deep")
    fails("- " * 5000 + "x", "nested more than 100 levels deep")
    chain = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 120))
    fails(chain, "nested more than 100 levels deep")
    assert read("[" * 90 + "]" * 90)


@pytest.mark.parametrize("form", ["[{}]", "{{ <<: [{}] }}"])
def test_a_billion_laughs_are_refused_at_once(form):
    start = time.process_time()
    lines = ["a0: &a0 " + ("[x, y]" if form[0] == "[" else "{ x: 1 }")]
    lines += [f"a{i}: &a{i} " + form.format(", ".join([f"*a{i - 1}"] * 9)) for i in range(1, 30)]
    fails("\n".join(lines), "more than 2000000 values")
    references = "a0: [x, y]\n" + "\n".join(f"a{i}: ['${{a{i - 1}}}', '${{a{i - 1}}}']" for i in range(1, 60))
    fails(references, "references make more than 2000000 values")
    text = "a0: word\n" + "\n".join(f"a{i}: '${{a{i - 1}}}${{a{i - 1}}}'" for i in range(1, 60))
    fails(text, "references make more than")
    fails("a: " + "x" * 1000 + "\nb: '" + "${a}" * 20000 + "'", "more than 16777216 characters of text")
    assert time.process_time() - start < 5


def test_a_file_that_is_too_large_or_no_text_is_refused(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(PlanError, match="not UTF-8") as caught:
        parse_plan_file(path)
    assert caught.value.where == Mark(str(path), 2, 4)
    path.write_bytes(b"#" * (16 * 2**20 + 1))
    with pytest.raises(PlanError, match="more than 16777216 bytes"):
        parse_plan_file(path)
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert plain(parse_plan_file(path)) == {"a": 1}
    with pytest.raises(PlanError, match="cannot read"):
        parse_plan_file(tmp_path)


# -- references between values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("b: '${a}'", 0.25),
        ("b: x${a}y", "x0.25y"),
        ("b: '${m}'", {"k": [1, {"z": True}]}),
        ("b: '${m.k[0]}'", 1),
        ("b: '${m.k.0}'", 1),
        ("b: '${m[k][1].z}'", True),
        ("b: 'is ${m.k[1].z}'", "is True"),
        ("b: 'l${m.k}'", "l[1, {'z': True}]"),
        ("b: '${m.k[-1].z}'", True),
        ("b: '${n}${n}'", "NoneNone"),
        ("b: '${ a }'", 0.25),
        ("b: '${m.${name}[0]}'", 1),
        ("b: '${${other}}'", "k"),
        ("b: '${via.k[0]}'", 1),
        (r"b: '\${x}'", "${x}"),
        (r"b: 'p\${x}${a}\${y}q'", "p${x}0.25${y}q"),
        (r"b: '\\${a}'", "\\0.25"),
        (r"b: '\\\${a}'", "\\${a}"),
        (r"b: '\1.${a}\d'", r"\1.0.25\d"),
        (r"b: 'a\\b$c{3}'", r"a\\b$c{3}"),
        ("b: '${escaped}'", "${x}"),
        ("b: { c: 7, d: '${.c}', e: ['${..c}'] }", {"c": 7, "d": 7, "e": [7]}),
        ("b: ['${.1}', 5]", [5, 5]),
        ("b: '{${a}}'", "{0.25}"),
        ("b: '${oc.env:SURGERY_SET}'", "3"),
        ("b: '${oc.env:SURGERY_UNSET,4}'", "4"),
        ("b: '${oc.env:SURGERY_UNSET, a b }'", "a b"),
        ("b: '${oc.env:SURGERY_UNSET,null}'", None),
        ("b: '${oc.env:SURGERY_UNSET,1e-3}'", "0.001"),
        ("b: '${oc.env:SURGERY_UNSET,true}'", "True"),
        ("b: '${oc.env:SURGERY_UNSET,}'", ""),
        ("b: '${oc.env:SURGERY_UNSET,${a}z}'", "0.25z"),
        ("b: ${oc.env:SURGERY_UNSET,'a}b'}", "a}b"),
        ("b: p${oc.env:SURGERY_SET}q", "p3q"),
    ],
)  # recorded from OmegaConf 2.4, which the plans were written for
def test_references_mean_what_omegaconf_says(text, value, monkeypatch):
    monkeypatch.setitem(os.environ, "SURGERY_SET", "3")
    monkeypatch.delitem(os.environ, "SURGERY_UNSET", raising=False)
    rest = "a: 0.25\nm: { k: [1, { z: on }] }\nn:\nname: k\nother: name\nvia: '${m}'\nescaped: '\\${x}'\n${a}: key\n"
    result = read(rest + text)
    assert result["b"] == value and type(result["b"]) is type(value)
    assert result["${a}"] == "key"


def test_a_reference_into_its_own_mapping_is_no_circle():
    assert read("a: { x: 1, y: '${b.x}' }\nb: '${a}'") == {"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": 1}}


def test_without_interpolation_references_are_text():
    assert read(r"a: ['${x}', '\${y}']", interpolate=False) == {"a": ["${x}", r"\${y}"]}


def test_the_value_of_a_reference_lies_where_the_reference_stands():
    node = parse_yaml("a: 3\nb:\n  c: ${a}\n", "p.yaml", interpolate=True)
    assert node.entries["b"].entries["c"] == Scalar(3, Mark("p.yaml", 3, 6))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: ${i}", "unknown reference"),
        ("name: 1\na: ${nam}", "unknown reference"),
        ("a: ${a}", "in a circle"),
        ("a: ${b}\nb: x${a}", "in a circle"),
        ("a: ${b.x}\nb: ${a.x}", "in a circle"),
        ("a: { b: '${a}' }", "in a circle"),
        ("a: x${b", "closing brace"),
        ("a: ${}", "not a reference"),
        ("a: ${b:c}", "unknown function 'b'"),
        ("a: ${..b}", "out of the document"),
        ("a: ${oc.env:SURGERY_UNSET}", "'SURGERY_UNSET' is not set"),
        ("a: ${b.c}\nb: 3", "there is no 'c'"),
        ("a: ${b[5]}\nb: [1]", "there is no '5'"),
        ("a: " + "${" * 5000 + "}" * 5000, "levels deep"),
        ("\n".join(f"a{i}: ${{a{i + 1}}}" for i in range(5000)), "levels deep"),
    ],
)
def test_bad_references_are_plan_errors_with_a_place(text, words, monkeypatch):
    monkeypatch.delitem(os.environ, "SURGERY_UNSET", raising=False)
    assert isinstance(fails(text, words).where, Mark)


def test_an_unknown_reference_names_the_nearest_key():
    assert "did you mean factor?" in str(fails("factor: 1\na: ${facto}", "unknown reference", (2, 4)))


def test_a_pipe_is_no_plan_file_and_is_not_waited_for(tmp_path):
    path = tmp_path / "plan.yaml"
    os.mkfifo(path)
    with pytest.raises(PlanError, match="no regular file"):
        parse_plan_file(path)


@pytest.mark.parametrize("word", ['a: "h\\.0"', 'a: "\\d"'])
def test_an_escape_that_yaml_does_not_know_is_advised_to_be_put_in_single_quotes(word):
    with pytest.raises(PlanError) as caught:
        read(word)
    assert "single quotes" in caught.value.hint
    assert read(word.replace('"', "'"))["a"]
