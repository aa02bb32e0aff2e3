"""Promises of structured patterns: names taken apart at their dots, and put together again."""

import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from surgery_jax.core.errors import Mark, PlanError
from surgery_jax.language.document import node_of
from surgery_jax.language.names import NameIndex, Selector, parse_reference

HERE = Mark("p.yaml", 3, 7)


def ref(value, default="model"):
    return parse_reference(node_of(value, HERE), default)


def matches(value, names):
    return Selector(ref(value)).match(NameIndex(names))


def rewrite(source, template, name):
    return Selector(ref(source)).rewrite(name, ref(template))


@pytest.mark.parametrize(
    ("source", "template", "name", "expected"),
    [
        (["enc", "0", "w"], ["dec", "0", "w"], "enc.0.w", "dec.0.w"),
        (["enc", "$i", "w"], ["dec", "${i}", "w"], "enc.0.w", "dec.0.w"),
        (["h", "$i", "*r"], ["l", "$i", "*r"], "h.3.a.b", "l.3.a.b"),
        (["w", "*r"], ["root", "*r", "x"], "w", "root.x"),
        (["*a", "$m", "*b", "w"], ["*a", "<", "$m", ">", "*b"], "x.y.z.w", "x.y.<.z.>"),
        (["enc", r"~n::\d", "w"], ["$n"], "enc.0.w", "0"),
        (["h", "~n::(ln|mlp).*", "*r"], ["new_${n}", "*r"], "h.ln_1.w", "new_ln.w"),
        (["~a,b::c_(.)(.+)"], ["$b", "$a"], "c_attn", "ttn.a"),
        (["enc", "~[02]", "w"], ["q$x", "a.b"], "enc.0.w", "q$x.a.b"),
        (["$", "~", "*"], ["$", "~", "*"], "$.~.*", "$.~.*"),
        (["a", "$e", "b"], ["z", "$e", "q"], "a..b", "z..q"),
        (["enc", "$i", "w"], ["a${}b", "a${1}b", "a${i", "a${ i }"], "enc.0.w", "a${}b.a${1}b.a${i.a${ i }"),
        (["*x", "*x", "w"], ["q"], "w", "q"),
        (["*x", "*x"], ["*x"], "a.b.a.b", "a.b"),
        (["~0(x)?"], ["z"], "0", "z"),
    ],
)  # recorded from the reference tool
def test_structured_patterns_take_names_apart_and_put_them_together(source, template, name, expected):
    assert matches(source, [name, "other.name.of.parts"]) == [name]
    assert rewrite(source, template, name) == expected


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (["enc.0.w"], "enc.0.w"),
        (["q", "$i", "$i"], "q.1.2"),
        (["enc", "$i"], "enc.0.w"),
        (["q$i"], "q0"),
        (["~0"], "00"),
        (["$x", "*x"], "a.a"),
        (["enc", r"~x,x::(.)(.?)"], "enc.0"),
    ],
)
def test_structured_patterns_do_not_match_these(source, name):
    assert matches(source, [name]) == []


SEGMENTS = st.lists(st.sampled_from("ab"), max_size=4)


@given(
    st.lists(st.sampled_from(["a", "b", "$i", "*r", "*s", "~[ab]"]), min_size=1, max_size=4),
    st.lists(SEGMENTS, max_size=8),
)
def test_structured_patterns_agree_with_an_equivalent_regex(tokens, names):
    assume(len(set(tokens)) == len(tokens))  # a name used twice has no simple regex
    forms = {"$i": r"([ab]*)\.", "*r": r"((?:[ab]*\.)*)", "*s": r"((?:[ab]*\.)*)", "~[ab]": r"[ab]\."}
    regex = re.compile("".join(forms.get(token, token + r"\.") for token in tokens))
    texts = sorted({".".join(name) for name in names})
    assert matches(tokens, texts) == [text for text in texts if regex.fullmatch(text + ".")]
    variables = [token for token in tokens if token[0] in "$*"]
    for text in matches(tokens, texts):
        template = [piece for token in variables for piece in ("<", token)] or ["<"]
        groups = zip(variables, regex.fullmatch(text + ".").groups(), strict=True)
        values = [[group] if token == "$i" else group.split(".")[:-1] for token, group in groups]
        expected = [piece for value in values for piece in ("<", *value)] or ["<"]
        assert rewrite(tokens, template, text) == ".".join(expected)


def test_many_stars_end_soon():
    start = time.process_time()
    names = [f"a{i}." + ".".join("b" * 24) for i in range(5)]
    assert matches([f"*v{i}" for i in range(12)] + ["$x", "~c"], names) == []
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (["$1"], "invalid variable name '1'"),
        (["*1"], "invalid variable name"),
        (["${x}"], r"invalid variable name '\{x\}'"),
        (["~ x ::."], "invalid variable name ' x '"),
        (["~::."], "invalid variable name ''"),
        (["~n::("], r"invalid regex '\(' in '~n::\(': missing \)"),
        (["~(?P<a>0)"], "named groups are not allowed"),
        ([r"~a,b::(\d+)"], "2 names for 1 groups"),
        (["~a::(.)(.)"], "1 names for 2 groups"),
        (["a"] * 500, "500 segments"),
    ],
)
def test_bad_source_tokens_are_refused(source, words):
    with pytest.raises(PlanError, match=words) as caught:
        Selector(ref(source))
    assert caught.value.where == HERE


def test_a_bound_group_must_take_part():
    with pytest.raises(PlanError, match="took no part"):
        matches(["~n::0(x)?"], ["0"])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (["$j"], "unknown variable 'j'"),
        (["x${j}"], "unknown variable 'j'"),
        (["*j"], "unknown variable 'j'"),
        (["*i"], "of a single segment"),
        (["$r"], "is a list of segments"),
        (["x${r}"], "is a list of segments"),
        (["~x"], "a regex in a destination"),
        (["${i}x"], "begins with a variable"),
        (["$i_$i"], "begins with a variable"),
        (["$i "], "begins with a variable"),
    ],
)
def test_bad_destination_tokens_are_refused(template, words):
    with pytest.raises(PlanError, match=words):
        rewrite(["enc", "$i", "*r"], template, "enc.0.w")
