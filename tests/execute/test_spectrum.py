"""Spectra of checkpoints and of what fine-tuning changed, against NumPy in float64; and the page that shows them."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pytest
from cases import References, gaussian, gaussian_pair
from running import read_checkpoint, write_checkpoint

from surgery_jax import AssertionFailed, BudgetError, Options, PlanError, Spectrum, spectrum
from surgery_jax.cli.main import main
from surgery_jax.reports.spectrum import SingularValues

REFERENCES: References = {
    "SingularValues": (
        [
            (SingularValues(True), [gaussian("float32", 5, 6, 4)]),
            (SingularValues(False), gaussian_pair("bfloat16", 4, 7)),
        ],
        lambda op, *arrays: np.linalg.svd(
            arrays[0].astype(np.float64) - (0 if op.alone else arrays[1].astype(np.float64)), compute_uv=False
        ),
        "single",
    ),
}

SHAPES = {"model.layers.{}.q.weight": (12, 8), "model.layers.{}.down.weight": (6, 20)}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and a fine-tune that adds rank 2 and a little noise, in bfloat16, with one matrix left alone."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    base = {name.format(layer): rng.normal(size=shape) for layer in range(3) for name, shape in SHAPES.items()}
    tuned = {}
    for name, array in base.items():
        m, n = array.shape
        tuned[name] = array + rng.normal(size=(m, 2)) @ rng.normal(size=(2, n)) + 0.01 * rng.normal(size=(m, n))
    tuned["model.layers.1.q.weight"] = base["model.layers.1.q.weight"]
    for path, arrays in (("base", base), ("tuned", tuned)):
        arrays["head.weight"] = rng.normal(size=(5, 5))
        arrays["norm"] = np.ones(8)
        write_checkpoint(tmp_path / f"{path}.safetensors", {k: v.astype(ml_dtypes.bfloat16) for k, v in arrays.items()})
    return tmp_path


def arrays(name: str) -> dict[str, np.ndarray]:
    return {key: value.astype(np.float64) for key, value in read_checkpoint(Path(name)).items()}


def both() -> Spectrum:
    return spectrum("base.safetensors", "tuned.safetensors")


def test_the_values_are_those_of_the_difference_before_any_rounding(place):
    base, tuned = arrays("base.safetensors"), arrays("tuned.safetensors")
    found = both()
    assert [module.name for module in found.modules] == [name for name in tuned if name != "norm"]
    for module in found.modules:
        delta = tuned[module.name] - base[module.name]
        expected = np.linalg.svd(delta, compute_uv=False)
        np.testing.assert_allclose(module.values, expected, rtol=1e-6, atol=1e-7 * max(expected[0], 1e-30))
        assert module.norm == pytest.approx(np.linalg.norm(delta), rel=1e-6, abs=1e-30)
        assert module.base_norm == pytest.approx(np.linalg.norm(base[module.name]), rel=1e-6)
        assert module.shape == delta.shape


def test_ranks_are_the_least_that_keep_the_energy(place):
    base, tuned = arrays("base.safetensors"), arrays("tuned.safetensors")
    for module in both().modules:
        energy = np.linalg.svd(tuned[module.name] - base[module.name], compute_uv=False) ** 2
        for fraction in (0.1, 0.9, 0.95, 0.99, 1.0):
            rank = module.rank_for(fraction)
            if not energy.any():
                assert rank == 0
                continue
            assert energy[:rank].sum() >= fraction * energy.sum() * (1 - 1e-6)
            assert fraction == 1.0 or energy[: rank - 1].sum() < fraction * energy.sum()
        if energy.any():
            assert module.stable_rank == pytest.approx(energy.sum() / energy[0], rel=1e-5)
            assert module.kept(2) == pytest.approx(energy[:2].sum() / energy.sum(), rel=1e-5)


def test_one_checkpoint_is_measured_itself_and_a_filter_chooses(place):
    found = spectrum("base.safetensors", filter=r"layers\.[02]\.q")
    assert [module.name for module in found.modules] == ["model.layers.0.q.weight", "model.layers.2.q.weight"]
    module = found.modules[1]
    np.testing.assert_allclose(module.values, np.linalg.svd(arrays("base.safetensors")[module.name])[1], rtol=1e-6)
    assert (module.layer, module.kind, module.base_norm) == (2, "model.layers.*.q.weight", None)


def test_dtypes_may_differ_and_wide_ones_keep_their_digits(place):
    rng = np.random.default_rng(2)
    base = rng.normal(size=(7, 9))
    tuned = base + np.outer(rng.normal(size=7), rng.normal(size=9)) * 1e-9
    write_checkpoint(place / "b.safetensors", {"w": base, "v": base.astype(np.float16)})
    write_checkpoint(place / "t.safetensors", {"w": tuned, "v": tuned.astype(np.float32)})
    found = spectrum("b.safetensors", "t.safetensors").modules
    np.testing.assert_allclose(found[0].values[0], np.linalg.svd(tuned - base)[1][0], rtol=1e-6)
    assert found[0].rank_for(0.99) == 1
    expected = np.linalg.svd(tuned.astype(np.float32) - base.astype(np.float16).astype(np.float32))[1]
    np.testing.assert_allclose(found[1].values, expected, rtol=1e-5)


def test_what_is_not_measured_is_told(place):
    kept, whole = np.ones((2, 3)), np.ones((2, 2), np.int32)
    write_checkpoint(place / "b.safetensors", {"a": kept, "b": kept, "c": kept, "i": whole, "d": kept})
    others = {"b": np.ones((3, 2)), "new": np.ones((4, 4)), "d": np.ones((2, 3), np.int8)}
    write_checkpoint(place / "t.safetensors", {"a": kept, "i": whole} | others)
    found = spectrum("b.safetensors", "t.safetensors")
    assert [module.name for module in found.modules] == ["a"]
    assert found.left_out == {
        "of another shape in the base": ("b",),
        "no floating-point matrix": ("i", "d"),
        "not in b.safetensors": ("new",),
        "not in t.safetensors": ("c",),
    }


def test_checkpoints_that_do_not_match_at_all_are_refused(place):
    write_checkpoint(place / "other.safetensors", {"x": np.ones((2, 2), np.float32), "norm": np.ones(8, np.float32)})
    with pytest.raises(PlanError, match=r"there is no matrix to look at[^$]*1 not in base\.safetensors: x"):
        spectrum("base.safetensors", "other.safetensors")
    with pytest.raises(PlanError, match="there is no matrix to look at"):
        spectrum("base.safetensors", filter="norm")


def test_nan_is_an_error_that_names_the_tensor(place):
    write_checkpoint(place / "nan.safetensors", {"fine": np.ones((2, 2)), "bad": np.full((3, 2), np.nan)})
    with pytest.raises(AssertionFailed, match="bad holds NaN or infinity"):
        spectrum("nan.safetensors")


def test_work_that_does_not_fit_the_budget_is_refused(place):
    with pytest.raises(BudgetError):
        spectrum("base.safetensors", options=Options(memory="4KiB", workers=1))


def test_extreme_numbers_neither_overflow_nor_vanish(place):
    write_checkpoint(place / "x.safetensors", {
        "huge": np.diag([1e37, 1e36]).astype(np.float32), "tiny": np.diag([1e-36, 1e-37]).astype(np.float32),
        "zero": np.zeros((2, 3), np.float32), "row": np.ones((1, 4), np.float32),
    })  # fmt: skip
    found = {module.name: module for module in spectrum("x.safetensors").modules}
    assert found["huge"].norm == pytest.approx(math.hypot(1e37, 1e36), rel=1e-6)
    assert [found[name].rank_for(0.95) for name in ("huge", "tiny", "zero", "row")] == [1, 1, 0, 1]
    assert found["huge"].rank_for(0.995) == found["tiny"].rank_for(0.995) == 2
    json.dumps(spectrum("x.safetensors").as_json(), allow_nan=False)


def test_what_a_rank_keeps_of_all_is_weighed_by_energy(place):
    found = both()
    base, tuned = arrays("base.safetensors"), arrays("tuned.safetensors")
    energies = [np.linalg.svd(tuned[m.name] - base[m.name], compute_uv=False) ** 2 for m in found.changed]
    least, median, together = found.kept(3)
    shares = [energy[:3].sum() / energy.sum() for energy in energies]
    assert least == pytest.approx(min(shares), rel=1e-5)
    assert median == pytest.approx(np.median(shares), rel=1e-5)
    assert together == pytest.approx(sum(e[:3].sum() for e in energies) / sum(e.sum() for e in energies), rel=1e-5)


# -------------------------------------------------------------------------------------------------------- the page


class Strict(HTMLParser):
    """Every element is closed in turn, and nothing is loaded or executed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe", "object"), tag
        for name, value in attrs:
            assert name not in ("src", "href", "style", "onload") or tag == "text", (tag, name)
            assert "url(" not in (value or "") or value == "url(#ramp)"
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()


def test_the_page_is_well_formed_and_loads_nothing(place):
    page = both().as_html()
    parser = Strict()
    parser.feed(page)
    assert parser.open == []
    assert "http" not in page
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)


def test_the_heat_map_has_a_cell_per_matrix_with_its_rank_in_its_row_and_column(place):
    page = both().as_html()
    svgs = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    cells = {
        group.find("title").text: group for svg in svgs for group in svg.findall("g") if group.find("rect") is not None
    }
    assert len(cells) == 7
    places = {}
    for module in both().modules:
        (title,) = (title for title in cells if title.startswith(module.name + ":"))
        rect, text = cells[title].find("rect"), cells[title].find("text")
        places[module.name] = float(rect.get("x")), float(rect.get("y"))
        assert text.text == ("–" if module.norm == 0 else str(module.rank_for(0.95)))
    rows = [places[f"model.layers.{layer}.q.weight"] for layer in range(3)]
    assert len({x for x, _ in rows}) == 1 and rows[0][1] < rows[1][1] < rows[2][1]
    assert places["model.layers.0.q.weight"][1] == places["model.layers.0.down.weight"][1]


def test_names_in_the_page_are_text(place):
    evil = "<script>alert(1)</script>.0.\"&'"
    write_checkpoint(place / "evil.safetensors", {evil: np.eye(3, dtype=np.float32), "w": np.eye(3, dtype=np.float32)})
    page = spectrum("evil.safetensors").as_html()
    Strict().feed(page)
    assert "&lt;script&gt;" in page


def test_many_experts_are_folded_into_one_column_of_their_layer(place):
    rng = np.random.default_rng(0)
    names = [f"layers.{layer}.experts.{expert}.w1" for layer in range(2) for expert in range(60)]
    write_checkpoint(place / "moe.safetensors", {name: rng.normal(size=(4, 4)).astype(np.float32) for name in names})
    page = spectrum("moe.safetensors").as_html()
    assert page.count("60 matrices such as") == 2
    assert page.count("<polyline") == 2


@pytest.mark.parametrize("count", [1, 2, 14])
def test_a_page_can_be_made_of_any_number_of_kinds(place, count):
    content = {f"kind{number}.w": np.diag(np.arange(1.0, 4)).astype(np.float32) for number in range(count)}
    write_checkpoint(place / "k.safetensors", content | {"still": np.zeros((2, 2), np.float32)})
    Strict().feed(spectrum("k.safetensors").as_html())
    write_checkpoint(place / "z.safetensors", {"still": np.zeros((2, 2), np.float32)})
    Strict().feed(spectrum("z.safetensors").as_html())


# ----------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_a_table_and_writes_the_page(place, capsys):
    words = ["spectrum", "base.safetensors", "tuned.safetensors", "--html", "page.html"]
    assert main(words) == 0
    printed = capsys.readouterr()
    head, row = printed.out.splitlines()[:2]
    assert head.split() == ["module", "shape", "norm", "of", "base", "decay", "90%", "95%", "99%", "of"]
    assert row.startswith("model.layers.0.q.weight")
    assert re.search(r"12x8 .* 2    2    2   8$", row)
    assert "1 matrix without any energy" in printed.out
    assert "1 tensor left out, no floating-point matrix: norm" in printed.out
    assert printed.err == "wrote page.html\n"
    assert Path("page.html").read_text(encoding="utf-8") == both().as_html()
    assert main(words) == 3
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--quiet"]) == 0


def test_the_command_gives_everything_as_json(place, capsys):
    assert main(["spectrum", "base.safetensors", "tuned.safetensors", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(both().as_json()))
    assert told["modules"][0]["rank_for"] == {"0.90": 2, "0.95": 2, "0.99": 2}
    assert [point["rank"] for point in told["modules"][0]["curve"]] == [1, 2, 4, 8]


@pytest.mark.parametrize("page", ["nowhere/page.html", "."])
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(place, page, capsys):
    Path("base.safetensors").write_bytes(b"would be an error of its own")
    assert main(["spectrum", "base.safetensors", "--html", page]) == 3
    assert page.split("/")[0] in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["base.safetensors", "tuned.safetensors"]


def test_a_page_is_not_written_if_the_measuring_fails(place):
    write_checkpoint(place / "nan.safetensors", {"bad": np.full((3, 2), np.nan)})
    assert main(["spectrum", "nan.safetensors", "--html", "page.html", "--quiet"]) == 1
    assert not Path("page.html").exists()
