"""Promises of merging: several plan files and overrides give one document."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgery_jax.core.errors import Mark, PlanError
from surgery_jax.language.document import Scalar, plain
from surgery_jax.language.parts import load_document


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return [str(folder / f"{name}.yaml") for name in files]


def load(*arguments):
    return plain(load_document(arguments))


def reference_merge(earlier, later):
    """The rules of the plan language, on plain values."""
    if isinstance(earlier, dict) and isinstance(later, dict):
        return earlier | {k: reference_merge(earlier[k], v) if k in earlier else v for k, v in later.items()}
    if isinstance(earlier, list) and isinstance(later, list):
        kept = [a if b is None else reference_merge(a, b) for a, b in zip(earlier, later, strict=False)]
        return kept + earlier[len(later) :] + later[len(earlier) :]
    return later


TREES = st.recursive(
    st.none() | st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)
ROOTS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


@settings(max_examples=50)
@given(st.lists(ROOTS, min_size=1, max_size=3))
def test_files_are_merged_from_left_to_right_by_key_and_index(tmp_path_factory, roots):
    paths = write(tmp_path_factory.mktemp("m"), **{f"f{i}": yaml.safe_dump(root) for i, root in enumerate(roots)})
    expected = roots[0]
    for root in roots[1:]:
        expected = reference_merge(expected, root)
    assert load(*paths) == expected


def test_merged_values_keep_the_mark_of_their_file(tmp_path):
    one, two = write(tmp_path, one="a: { x: 1, y: 2 }\nl: [1, 2]\n", two="\na: { y: 3 }\nl: [null, 4]\n")
    document = load_document([one, two])
    assert document.entries["a"].entries["x"].mark == Mark(one, 1, 9)
    assert document.entries["a"].entries["y"] == Scalar(3, Mark(two, 2, 9))
    assert document.entries["a"].keys["y"] == Mark(two, 2, 6)
    assert [item.mark.file for item in document.entries["l"].items] == [one, two]


def test_references_are_resolved_in_each_file_before_merging(tmp_path):
    one, two = write(tmp_path, one="n: 2\na: ${n}\n", two="n: 5\nb: ${n}\n")
    assert load(one, two) == {"n": 5, "a": 2, "b": 5}


def test_no_arguments_are_an_empty_document():
    assert load() == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-1", -1), ("0.25", 0.25), ("1e-6", 1e-6), ("true", True), ("0x10", 16), ("[1, 2]", [1, 2]),
        ("{path: out, shard: 1MB}", {"path": "out", "shard": "1MB"}), ("word", "word"), ("", ""), ("null", "null"),
        ("~", "~"), ("'3'", "'3'"), (" 3", " 3"), ("enc.0.w::[0]", "enc.0.w::[0]"), (r"[ab]\.w", r"[ab]\.w"),
        ("{", "{"), ("[*x]", "[*x]"), ("a=b", "a=b"), ("x.yaml", "x.yaml"), ("010", "010"), ("${a}", "${a}"),
        (r"\${a}", "${a}"), ("a: b", "a: b"), ("# x", "# x"),
    ],
)  # fmt: skip
def test_override_values_are_numbers_truth_values_flows_or_text(text, value):
    token = f"x.y={text}"
    node = load_document([token]).entries["x"].entries["y"]
    assert plain(node) == value and type(plain(node)) is type(value)
    assert node.mark == Mark(token, 1, 1)
    if isinstance(value, bool | int | float):
        assert node.text == text


@example("-0")  # an integer, which has no sign of zero
@given(st.text(alphabet="0123456789.eE+-_ xnaif", min_size=1, max_size=7))
def test_an_override_of_a_number_means_the_number_that_python_reads(text):
    try:
        number = float(text)
    except ValueError:
        return
    node = load_document([f"by={text}"]).entries["by"]
    if isinstance(node.value, int):
        number = float(int(text))
    assert repr(float(node.value)) == repr(number) and node.text == text


def test_an_output_can_be_overridden_with_null_or_nothing(tmp_path):
    (path,) = write(tmp_path, one="output: out\n")
    assert load(path, "output=null") == {"output": None}
    assert load(path, "output=") == {"output": ""}


def test_overrides_reach_into_lists_and_mappings(tmp_path):
    (path,) = write(tmp_path, one="transforms: [{ scale_: { by: 2 } }, null]\n")
    assert load(path, "transforms[0].scale_.by=7", "transforms[1]=exit", "output.path=x") == {
        "transforms": [{"scale_": {"by": 7}}, "exit"],
        "output": {"path": "x"},
    }
    assert load(path, "transforms[3]=exit") == {"transforms": [{"scale_": {"by": 2}}, None, None, "exit"]}
    assert load("transforms[0].scale_.by=7", path) == {"transforms": [{"scale_": {"by": 2}}, None]}


def test_an_override_of_a_variable_takes_effect_where_the_variable_is_used(tmp_path):
    text = "w: 0.5\nnames: { a: x }\ntransforms: [{ scale_: { target: '${names.a}', by: '${w}' } }]\n"
    (path,) = write(tmp_path, one=text)
    for tokens in ((path, "w=3", "names.a=y"), ("w=3", "names.a=y", path)):
        assert load(*tokens)["transforms"] == [{"scale_": {"target": "y", "by": 3}}]


def test_an_override_of_a_variable_that_no_file_has_is_refused(tmp_path):
    (path,) = write(tmp_path, one="weight: 0.5\ntransforms: []\n")
    with pytest.raises(PlanError, match="no plan file has a variable 'wieght'") as caught:
        load(path, "wieght=3")
    assert caught.value.hint == "did you mean weight?"


def test_an_override_may_end_in_yaml_unless_that_file_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("output=x.yaml") == {"output": "x.yaml"}
    (tmp_path / "output=x.yaml").write_text("a: 1")
    assert load("output=x.yaml") == {"a": 1}


@pytest.mark.parametrize(
    "token", ["=3", "[0].x=1", "a..b=1", "a[0]b=1", "a[x]=1", "a[-1]=1", "a b=1", "a[=1", "a[9999999]=1",
              "a.b" * 200 + "=1"]
)  # fmt: skip
def test_bad_override_paths_are_refused(token):
    with pytest.raises(PlanError, match="invalid override"):
        load_document([token])


def test_tokens_that_are_neither_files_nor_overrides_are_refused(tmp_path):
    (path,) = write(tmp_path, merge_plan="a: 1")
    with pytest.raises(PlanError, match="neither a plan file nor an override: 'transforms'"):
        load_document(["transforms"])
    with pytest.raises(PlanError, match="plan file does not exist") as caught:
        load_document([path.replace("merge", "merg")])
    assert path in str(caught.value)
    (tmp_path / "list.YAML").write_text("- 1")
    with pytest.raises(PlanError, match="must be a mapping") as caught:
        load_document([str(tmp_path / "list.YAML")])
    assert caught.value.where == Mark(str(tmp_path / "list.YAML"), 1, 1)
