"""What other distributions add by entry points: transforms, assertions and formats that plans use like our own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")


def shown(path: str) -> str:
    """The file that the page shows under this path."""
    (found,) = re.findall(rf"```\w+\n# {re.escape(path)}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


OPS = shown("surgery_jax/ops/negate.py")
ASSERTS = shown("surgery_jax/asserts/square.py")
FORMATS = shown("surgery_jax/storage/flat.py")


def test_each_file_of_the_exercise_has_at_most_sixty_lines() -> None:
    listed = re.findall(r"^\| (\w+) \| `(\S+)` \| `tests/", PAGE, re.MULTILINE)
    assert [what for what, _ in listed] == ["transform", "assertion", "format", "place", "observer"]
    for _, path in listed:
        file = Path(__file__).parents[2] / path
        text = file.read_text(encoding="utf-8") if file.exists() else shown(path)
        assert text.count("\n") <= 60, path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    place = tmp_path / "site"
    (told,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    offered = tomllib.loads(told)["project"]["entry-points"]
    files = {"sprout/negate.py": OPS, "sprout/square.py": ASSERTS, "sprout/flat.py": FORMATS, "sprout/__init__.py": ""}
    install(place, "sprout", offered, files)
    save_file({"h.weight": np.arange(-8, 8, dtype=np.float32).reshape(4, 4)}, tmp_path / "m.safetensors")
    return place


def install(place: Path, name: str, offered: Mapping[str, Mapping[str, str]], files: Mapping[str, str]) -> None:
    """Put a distribution where Python finds it, as an installer does."""
    told = place / f"{name}-1.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {at}\n" for key, at in named.items()) for group, named in offered.items()
    ]
    (told / "entry_points.txt").write_text("".join(lines))
    for path, text in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)


def surgery(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "surgery_jax", *words]
    return subprocess.run(command, cwd=site.parent, env=environment, capture_output=True, text=True, timeout=120)


def test_a_plan_uses_what_another_distribution_adds(site: Path) -> None:
    (site.parent / "plan.yaml").write_text(
        "inputs: [ m.safetensors ]\n"
        "transforms: [ { assert: { square: h.weight } }, { negate_: { target: h.weight } } ]\n"
        "output: made.flat\n"
    )
    done = surgery(site, "run", "plan.yaml")
    assert done.returncode == 0, done.stderr
    raw = (site.parent / "made.flat").read_bytes()
    np.testing.assert_array_equal(np.frombuffer(raw[-64:], np.float32), -np.arange(-8, 8))
    (site.parent / "back.yaml").write_text(
        "inputs: [ made.flat ]\n"
        "transforms: [ { negate: { from: h.weight, to: again } }, { assert: { not: { square: 'again::[:2]' } } } ]\n"
        "output: back.safetensors\n"
    )
    done = surgery(site, "run", "back.yaml")
    assert done.returncode == 0, done.stderr


def test_help_and_completion_know_what_another_distribution_adds(site: Path) -> None:
    assert "Change the sign of every element." in surgery(site, "ops").stdout
    assert "Every match is a square matrix, after slicing." in surgery(site, "ops", "square").stdout
    script = surgery(site, "completion", "bash").stdout
    assert " negate_ " in script and " square " in script


@pytest.mark.parametrize(
    ("group", "file", "problem"),
    [
        ("ops", OPS.replace('"negate"', '"scale"'), "two transforms are called scale"),
        ("asserts", ASSERTS.replace('name = "square"', 'name = "shape"'), "two assertions are called shape"),
        ("formats", FORMATS.replace('name = "flat"', 'name = "torch"'), "two formats are called torch"),
        ("ops", "import nothing_of_this_name", "weed offers bad of surgery_jax.ops, which cannot be imported"),
        ("asserts", "def", "weed offers bad of surgery_jax.asserts, which cannot be imported"),
        ("formats", "1 / 0", "weed offers bad of surgery_jax.formats, which cannot be imported"),
    ],
)
def test_what_cannot_be_added_is_an_error_that_says_whose_it_is(
    group: str, file: str, problem: str, tmp_path: Path
) -> None:
    install(tmp_path / "site", "weed", {f"surgery_jax.{group}": {"bad": "weed"}}, {"weed.py": file})
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "m.safetensors")
    (tmp_path / "plan.yaml").write_text(
        "inputs: [ m.safetensors ]\ntransforms: [ { assert: { exists: w } } ]\noutput: o\n"
    )
    done = surgery(tmp_path / "site", "run", "plan.yaml")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert problem in done.stderr and "weed" in done.stderr and "uninstall" in done.stderr
