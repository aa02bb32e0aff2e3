"""Promises of references: parsing, matching by regex, and new names."""

import re
import time
import warnings

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from surgery_jax.core.errors import Mark, PlanError
from surgery_jax.language.document import node_of
from surgery_jax.language.names import (
    NameIndex,
    Selector,
    Stride,
    could_produce,
    literal,
    parse_reference,
    parse_slice,
    placeholder,
)
from surgery_jax.language.nodes import Scalar

HERE = Mark("p.yaml", 3, 7)


def ref(value, default="model"):
    return parse_reference(node_of(value, HERE), default)


def matches(value, names):
    return Selector(ref(value)).match(NameIndex(names))


def rewrite(source, template, name):
    return Selector(ref(source)).rewrite(name, ref(template))


# -- references


def outcome(text, default):
    found = ref(text, default)
    return found.alias, found.expr, found.slice


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("w", "d", ("d", "w", None)),
        ("::w", "d", ("d", "w", None)),
        ("a::w", "d", ("a", "w", None)),
        ("a::w", None, ("a", "w", None)),
        ("w::[0]", "d", ("d", "w", (0,))),
        ("w::[0]", None, ("w", "[0]", None)),
        ("a::[ab]", None, ("a", "[ab]", None)),
        ("[ab]", "d", ("d", "[ab]", None)),
        ("a::w::[0]", "d", ("a", "w", (0,))),
        ("::w::[0]", "d", ("d", "w", (0,))),
        ("a::w::[0]", None, ("a", "w", (0,))),
        ("w::[::2]", "d", ("d", "w", (Stride(None, None, 2),))),
        ("a::w::[0, 1::2]", None, ("a", "w", (0, Stride(1, None, 2)))),
        (" w ", "d", ("d", " w ", None)),
        ("[::2]", None, ("[", "2]", None)),
    ],
)
def test_references_are_split_at_double_colons(text, default, expected):
    assert outcome(text, default) == expected


def documented_split(text, default):
    """Section 2.1 of the plan language, word for word; None where it is an error."""
    parts = text.split("::")
    if len(parts) == 1:
        alias, expr, sliced = default, text, None
    elif len(parts) == 2:
        head, tail = parts
        if default is not None and tail.startswith("[") and tail.endswith("]"):
            alias, expr, sliced = default, head, tail
        else:
            alias, expr, sliced = head or default, tail, None
    elif len(parts) == 3 and parts[2].startswith("[") and parts[2].endswith("]"):
        alias, expr, sliced = parts[0] or default, parts[1], parts[2]
    else:
        return None
    if not alias or not expr:
        return None
    try:
        return alias, expr, None if sliced is None else parse_slice(sliced)
    except PlanError:
        return None


@settings(max_examples=500)
@given(st.lists(st.sampled_from(["::", "::", "[", "]", "w", ":", "0", "[0]", ",", "::["]), max_size=8), st.booleans())
def test_stepped_slices_change_the_meaning_of_no_reference_that_was_valid(pieces, has_default):
    text, default = "".join(pieces), "d" if has_default else None
    expected = documented_split(text, default)
    if expected is not None and text:
        assert outcome(text, default) == expected


@pytest.mark.parametrize(
    ("value", "default", "words"),
    [
        ("", "d", "must not be empty"),
        ("m::", "d", "names no tensor"),
        ("::[0]", "d", "names no tensor"),
        ("w", None, "no default alias"),
        ("::w", None, "no default alias"),
        ("w::[::2]", None, "no default alias"),
        (["a"], None, "no default alias"),
        ("a::b::c::d", "d", "too many parts"),
        ("a::b::c::[::2]", "d", "too many parts"),
        ("a::w::0", "d", "invalid slice '0'"),
        ("w::[0,]", "d", "an empty component"),
        ([], "d", "must not be empty"),
        (["a", ""], "d", "non-empty strings"),
        (["a", 0], "d", "non-empty strings"),
        (["a", ["b"]], "d", "non-empty strings"),
        (3, "d", "a string or a list"),
        (True, "d", "a string or a list"),
        (None, "d", "a string or a list"),
        ({"a": 1}, "d", "a string or a list"),
    ],
)
def test_bad_references_are_refused_at_their_place(value, default, words):
    with pytest.raises(PlanError, match=words) as caught:
        ref(value, default)
    assert caught.value.where == HERE


def test_a_class_mistaken_for_a_slice_is_explained():
    with pytest.raises(PlanError, match=r"'ab' is not an integer") as caught:
        ref("model::[ab]")
    assert "model::(?:[ab])" in str(caught.value)


def test_a_reference_typed_on_the_command_line_is_taken_as_typed():
    assert parse_reference(Scalar(True, HERE, "on"), "d").expr == "on"


# -- names in order

NAMES = st.lists(st.text(alphabet="ab.0", max_size=4), max_size=12)


@given(
    st.lists(st.tuples(st.sampled_from(["add", "discard", "look"]), st.text(alphabet="ab", max_size=2)), max_size=40)
)
def test_an_index_keeps_arrival_and_sorted_order_through_any_changes(changes):
    index, model = NameIndex(["b", "a"]), {"b": None, "a": None}
    for change, name in changes:
        if change == "add":
            index.add(name)
            model.setdefault(name)
        elif change == "discard":
            index.discard(name)
            model.pop(name, None)
        else:
            assert index.sorted() == sorted(model)
        assert (name in index) == (name in model)
    assert list(index) == list(model) and len(index) == len(model)
    assert index.sorted() == sorted(model)


@given(NAMES, st.text(alphabet="ab.0", max_size=3))
def test_names_with_a_prefix_are_those_that_begin_with_it(names, prefix):
    assert NameIndex(names).with_prefix(prefix) == sorted({name for name in names if name.startswith(prefix)})


# -- regex sources

REGEX_PIECES = st.sampled_from(
    ["a", "b", ".", r"\.", "0", "|", "(", ")", "(?:", "(?i:", "(?i)", "(?x)", "(?x: # [\n", "(?#|)", "[", "]", "[ab]",
     "[^|]", "[]|]", "*", "+", "?", "{0}", "{1,2}", "{", "}", "\\", r"\|", r"\\", r"\d", r"\Z", "^", "$", "(?=",
     "(?P<x>", r"\1", "-", " "]
)  # fmt: skip
REGEXES = st.lists(REGEX_PIECES, min_size=1, max_size=7).map("".join)


@settings(max_examples=600, suppress_health_check=[HealthCheck.filter_too_much])
@given(REGEXES, st.lists(st.text(alphabet="abA.0|\\[]{} -", max_size=4), max_size=12))
def test_narrowing_finds_exactly_the_names_that_match_in_full(expr, names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            regex = re.compile(expr)
        except (re.error, OverflowError):
            assume(False)
    assume("::" not in expr)
    names = [*names, expr, re.sub(r"\\(.)", r"\1", expr), "a", "b", "ab"]
    assert matches(expr, names) == sorted({name for name in names if regex.fullmatch(name)})


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("h.0.w", ["h.0.w", "hx0yw"]),
        (r"h\.0\.w", ["h.0.w"]),
        (r"h\.\d+\.w", ["h.0.w", "h.10.w", "h.2.w"]),
        ("h", []),
        (r"h\.0\.w|ln", ["h.0.w", "ln"]),
        (r"ln|h\.(0|2)\.w", ["h.0.w", "h.2.w", "ln"]),
        (r"lnx?", ["ln"]),
        (r"(?i)LN", ["ln"]),
        (r"[[l]n", ["ln"]),
        (r"(?!h).+", ["ln"]),
    ],
)
def test_a_regex_matches_whole_names_in_code_point_order(expr, expected):
    assert matches(expr, ["ln", "h.2.w", "h.10.w", "hx0yw", "h.0.w"]) == expected


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        ("enc.(", r"invalid regex 'enc.\(': missing \), unterminated subpattern at position 4"),
        ("w{99999999999}", "invalid regex .* too large"),
        ("(" * 5000 + ")" * 5000, "invalid regex"),
    ],
)
def test_an_invalid_regex_is_a_plan_error(expr, words):
    with pytest.raises(PlanError, match=words) as caught:
        Selector(ref(expr))
    assert caught.value.where == HERE


TEMPLATES = st.lists(
    st.sampled_from(["a", ".", r"\1", r"\2", r"\g<0>", r"\g<1>", r"\g<x>", r"\n", r"\.", r"\d", "\\", r"\0", r"\012",
                     r"\\"]),
    min_size=1, max_size=4,
).map("".join)  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.filter_too_much])  # most random regexes are invalid
@given(REGEXES, TEMPLATES, st.lists(st.text(alphabet="ab.0", max_size=4), max_size=5))
def test_a_string_template_is_re_sub_exactly(expr, template, names):
    assume("::" not in expr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = [name for name in [*names, "a", "ab"] if re.fullmatch(expr, name)]
        except (re.error, OverflowError):
            assume(False)
    assume(found)
    selector, target = Selector(ref(expr)), ref(template)
    for name in found:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = re.sub(expr, template, name)
        except (re.error, IndexError):
            with pytest.raises(PlanError, match="invalid destination"):
                selector.rewrite(name, target)
        else:
            assert selector.rewrite(name, target) == expected


@pytest.mark.parametrize(
    ("source", "template", "name", "expected"),
    [
        (".*", r"p.\g<0>", "w", "p.wp."),
        ("(.+)", r"m.\1", "w", "m.w"),
        ("(.+?)", r"<\1>", "f32", "<f><3><2>"),
        (r"h|h\.0\.w", "Z", "h.0.w", "Z.0.w"),
        (r"(a)|b", r"x\1y", "b", "xy"),
        ("w", r"a\.b", "w", r"a\.b"),
    ],
)
def test_string_templates_replace_globally(source, template, name, expected):
    assert rewrite(source, template, name) == expected


def test_source_and_destination_must_be_of_the_same_kind():
    for source, template in [("w", ["x"]), (["w"], "x")]:
        with pytest.raises(PlanError, match="same kind"):
            rewrite(source, template, "w")


# -- guesses and literals


def test_a_literal_name_is_taken_as_it_stands():
    assert literal(ref(r"a::\1.x")) == r"\1.x"
    with pytest.raises(PlanError, match="single name"):
        literal(ref(["a", "b"]))


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (r"blocks.\1.w\g<x>", "blocks.0.w0"),
        (r"a\\1", r"a\1"),
        ("plain", "plain"),
        (["d", "$i", "*r", "p${i}q"], "d.0.0.p0q"),
    ],
)
def test_a_placeholder_stands_for_the_names_that_a_template_makes(template, name):
    assert placeholder(ref(template)) == name
    assert could_produce(ref(template), name)
    assert not could_produce(ref(template), "other")


def test_selection_of_many_names_is_fast():
    names = NameIndex(f"h.{layer}.{part}.weight" for layer in range(1000) for part in range(100))
    start = time.process_time()
    for step in range(20):
        selector = Selector(
            ref(rf"h\.{step + 10}\d\.(\d+)\.weight" if step % 2 else rf"h\.(\d+)\.{step}[0-4]?\.weight")
        )
        found = selector.match(names)
        for name in found:
            new = selector.rewrite(name, ref(rf"new.{step}.\g<0>"))
            names.discard(name)
            names.add(new)
    assert time.process_time() - start < 4  # a tenth of that on a quiet machine
