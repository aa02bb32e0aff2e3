"""What holds for the files of the project, whatever they contain."""

import ast
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Spelt in pieces, so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.~}*-])/(?:" + "|".join(["home", "root", "work", "Users", "mnt"]) + r")/\w")
REGISTRY_HOST = re.compile("|".join([r"pypi\." + "org", r"python" + "hosted", r"npm" + r"js\.", r"debian\." + "org"]))
REGISTRY_OPTION = re.compile(r"(?:extra-)?index-" + "url")


TOP = {"benchmarks", "docs", "plans", "pyproject.toml", "scripts", "surgery_jax", "tests"}
LARGEST = 1 << 20  # bytes


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git work tree")
    return [name for name in listing.stdout.split("\0") if name]


def tracked_texts() -> list[tuple[str, str]]:
    texts = []
    for name in tracked():
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content:
            texts.append((name, content.decode()))
    return texts


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST, REGISTRY_OPTION], ids=["path", "host", "option"])
def test_tracked_files_name_no_machine(pattern: re.Pattern[str]) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_nothing_is_tracked_that_was_only_left_lying_around() -> None:
    names = tracked()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.startswith(".") and not name.endswith((".md", "LICENSE"))} == TOP
    assert [name for name in names if (ROOT / name).is_file() and (ROOT / name).stat().st_size > LARGEST] == []


def test_the_patterns_find_what_they_are_for() -> None:
    assert MACHINE_PATH.search('open("' + "/ho" + 'me/ann/x")')
    assert not MACHINE_PATH.search("benchmarks/" + "work/1b")
    assert REGISTRY_HOST.search("https://py" + "pi.org/simple")
    assert REGISTRY_OPTION.search("--extra-index" + "-url x")


def test_the_name_of_a_class_means_one_thing_in_the_whole_package() -> None:
    homes = defaultdict(list)
    for path in sorted((ROOT / "surgery_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(homes) > 300
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}
