"""What other distributions add by entry points: transforms, assertions and formats that plans use like our own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from safetensors.numpy import save_file

OPS = '''
    """`negate`, `negate_`: the opposite of every element."""

    from dataclasses import dataclass

    from surgery_jax.core.specs import Spec
    from surgery_jax.kit.base import TensorOp
    from surgery_jax.kit.forms import InPlace, New
    from surgery_jax.kit.kernel import Array, Bound, Kernel
    from surgery_jax.kit.rules import check_floats


    @dataclass(frozen=True)
    class Negate(TensorOp):
        """Change the sign of every element.

        source: float, any shape -> the same; exact.
        """

        spellings = (New("negate"), InPlace("negate_"))
        examples = ("negate: { from: delta, to: opposite }", "negate_: { target: 'delta.+' }")

        def infer(self, source: Spec) -> tuple[Spec, ...]:
            check_floats(source)
            return (source,)

        def apply(self, k: Kernel, source: Array) -> Array:
            return k.narrow(-k.widen(source), source)

        def smallest(self, source: Bound) -> Bound:
            return source
'''
ASSERTS = '''
    """`square`: matrices of equal sides."""

    from dataclasses import dataclass

    from surgery_jax.kit.predicates import Known, Outcome
    from surgery_jax.kit.selecting import Selecting
    from surgery_jax.kit.state import State
    from surgery_jax.language.names import Reference


    @dataclass(frozen=True)
    class Square(Selecting):
        """Every match is a square matrix."""

        name = "square"
        takes = "of"
        examples = ("square: '.+weight'",)

        def test(self, state: State, ref: Reference, name: str) -> Outcome:
            shape = state.versions.spec(state.versions.read(ref, name)).shape
            return Known(len(shape) == 2 and shape[0] == shape[1], f"square: {name} is {list(shape)}")
'''
FORMATS = '''
    """`flat`: FLAT, the length of a header of JSON, the header, and the bytes of all tensors."""

    import json
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from surgery_jax.core.dtypes import BY_NAME
    from surgery_jax.core.specs import Spec
    from surgery_jax.storage.base import Checkpoint, Entry, Extent, Format, LaidFile, Layout
    from surgery_jax.storage.files import File


    class FlatFormat(Format):
        """Files `*.flat`."""

        name = "flat"
        suffixes = (".flat",)

        def read_header(self, path: Path) -> Checkpoint:
            with File(path) as file:
                length = int.from_bytes(file.at(4, 4), "little")
                told = json.loads(file.at(8, length))
            entries = {
                name: Entry(Spec(tuple(shape), BY_NAME[dtype]), Extent(str(path), offset))
                for name, (dtype, shape, offset) in told.items()
            }
            return Checkpoint(str(path), self.name, entries, {}, (str(path),))

        def layout(self, path: Path, tensors: Sequence[tuple[str, Spec]], *, is_directory: bool,
                   shard_bytes: int | None, metadata: Mapping[str, str]) -> Layout:
            room = 4096 * (1 + len(tensors))
            places, at = {}, room
            for name, spec in tensors:
                places[name] = (0, at)
                at += spec.nbytes
            told = {name: [spec.dtype.name, spec.shape, places[name][1]] for name, spec in tensors}
            head = json.dumps(told).encode().ljust(room - 8)
            fixed = b"FLAT" + len(head).to_bytes(4, "little") + head
            return Layout((LaidFile("", at, ((0, fixed),)),), places, is_directory)
'''


@pytest.fixture
def site(tmp_path: Path) -> Path:
    place = tmp_path / "site"
    offered = {"ops": "negate = sprout.negate", "asserts": "square = sprout.square", "formats": "flat = sprout.flat"}
    files = {"sprout/negate.py": OPS, "sprout/square.py": ASSERTS, "sprout/flat.py": FORMATS, "sprout/__init__.py": ""}
    install(place, "sprout", {f"surgery_jax.{kind}": line for kind, line in offered.items()}, files)
    save_file({"h.weight": np.arange(-8, 8, dtype=np.float32).reshape(4, 4)}, tmp_path / "m.safetensors")
    return place


def install(place: Path, name: str, offered: Mapping[str, str], files: Mapping[str, str]) -> None:
    """Put a distribution where Python finds it, as an installer does."""
    told = place / f"{name}-1.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("".join(f"[{group}]\n{line}\n" for group, line in offered.items()))
    for path, text in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(dedent(text).lstrip())


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
    assert "Every match is a square matrix." in surgery(site, "ops", "square").stdout
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
    install(tmp_path / "site", "weed", {f"surgery_jax.{group}": "bad = weed"}, {"weed.py": file})
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "m.safetensors")
    (tmp_path / "plan.yaml").write_text(
        "inputs: [ m.safetensors ]\ntransforms: [ { assert: { exists: w } } ]\noutput: o\n"
    )
    done = surgery(tmp_path / "site", "run", "plan.yaml")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert problem in done.stderr and "weed" in done.stderr and "uninstall" in done.stderr
