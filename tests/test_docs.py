"""The documentation says what is so: its commands, outputs, plans, examples, tables and links.

In a `console` block a line `$ COMMAND` is run, in the order of the page and in one directory per page; what follows
must be its output, line by line, where `…` stands for anything: alone for any lines, in a line for any text. A comment
`# exit code N` says how the command ends if not with 0. A `yaml` block that begins with `# NAME.yaml` is that file; a
list of steps is checked as a plan on the checkpoint `llama`, a configuration of a merge as the plan that it becomes.
`python` blocks with prompts are doctests.

    python tests/test_docs.py --write     renews the tables that are made from the registry
"""

from __future__ import annotations

import ast
import doctest
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from forking import forking
from running import assert_same_bits, read_checkpoint, write_checkpoint

from surgery_jax import Options, batch, check, load_plan, merge_plan, run

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PLANS = sorted(path.name for path in (ROOT / "plans").glob("*.yaml"))

# Not run here: they install, fetch, or run this test. The pages show them as they are, and CI runs the two scripts.
NOT_RUN = {
    "git clone <this repository> surgery_jax && cd surgery_jax",
    "python -m venv environment && . environment/bin/activate",
    "pip install .",
    "pip install '.[torch]'",
    "scripts/demo",
    "scripts/test",
    "scripts/test tests/ops",
    "python benchmarks/run.py --suite storage --size 1b",
    "python benchmarks/run.py --suite orbax --size 1b",
    "python benchmarks/run.py --suite lowrank --size 1b",
    "python benchmarks/run.py --suite batch",
    "python benchmarks/run.py --suite bulk --name bulk --repeats 2",
    "python benchmarks/run.py --suite digests --size 1b",
    "python benchmarks/run.py --suite upcycle --size 1b --mergekit-moe PATH",
    "python benchmarks/run.py --suite merges --size 1b --repeats 2 --mergekit PATH",
    "python benchmarks/run.py --suite places --size 1b",
    'python benchmarks/run.py --suite storage --size 1b --only rename cast "task arithmetic" --earlier PATH'
    " --name earlier-1b",
    "python benchmarks/simulate.py",
    "surgery-jax completion fish > ~/.config/fish/completions/surgery-jax.fish",
}


class Block(NamedTuple):
    page: str
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that it shows."""
        found = re.match(r"# (\S+\.(?:ya?ml|py))\n", self.text)
        return found[1] if found else None


def blocks(page: str) -> list[Block]:
    found: list[Block] = []
    kind, begin, lines = None, 0, []
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif kind is None:
            kind, begin, lines = line[3:].strip(), number + 1, []
        else:
            found.append(Block(page, begin, kind, "\n".join(lines) + "\n"))
            kind = None
    assert kind is None, f"{page}: a block is not closed"
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]


def of_kind(kind: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind == kind]


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = {"console", "yaml", "python", "text", "toml"}  # text: what is not to be run; toml: by a test of its own
    assert not [block.place for block in BLOCKS if block.kind not in kinds]


# ------------------------------------------------------------------------------------------------ a place to work in


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints that the pages use: `llama`, its fine-tunes `math` and `code`, and `gpt2`."""
    place = tmp_path_factory.mktemp("checkpoints")
    make(place, "llama")
    make(place, "math", "--base", "llama", "--seed", "1", "--rank", "4")
    make(place, "code", "--base", "llama", "--seed", "2", "--rank", "4")
    make(place, "deep", "--layers", "22")
    return place


def make(place: Path, *arguments: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "make_llama.py"), *arguments]
    subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the commands: this Python's programs first, one cache for all, and the width of the pages."""
    scripts = Path(sys.executable).parent
    assert (scripts / "surgery-jax").exists(), f"surgery-jax is not installed in {scripts}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SURGERY_JAX_", "COLUMNS"))}
    return kept | {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "SURGERY_JAX_CACHE": str(tmp_path_factory.mktemp("compiled")),
        "COLUMNS": "100",
        "JAX_PLATFORMS": "cpu",
    }


@pytest.fixture(scope="session")
def forked(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The same, where `surgery-jax` need not import anything."""
    with forking(tmp_path_factory.mktemp("forking"), environment) as programs:
        yield environment | {"PATH": f"{programs}{os.pathsep}{environment['PATH']}"}


@pytest.fixture
def place(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the checkpoints, and with what a clone of the project has."""
    shutil.copytree(checkpoints, tmp_path, dirs_exist_ok=True)
    for name in ("plans", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(page: str) -> None:
    for block in blocks(page):
        if block.file is not None:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- commands


class Call(NamedTuple):
    place: str
    command: str
    code: int
    shown: list[str]


def calls(block: Block) -> Iterator[Call]:
    lines = block.text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    assert starts[:1] == [0], f"{block.place}: a console block begins with a command"
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        after = start + 1
        command = lines[start][2:]
        while command.endswith("\\"):  # the shell joins such lines
            command += "\n" + lines[after]
            after += 1
        code = re.search(r"\s+# exit code (\d+)$", command)
        shown = lines[after:end]
        while shown and not shown[-1]:
            shown.pop()
        yield Call(
            f"{block.page}:{block.line + start}",
            command[: code.start()] if code else command,
            int(code[1]) if code else 0,
            shown,
        )


def matches(shown: list[str], printed: list[str]) -> str | None:
    """None, or the shown line that was not printed in its place."""
    if not shown:
        return None  # the page leaves it out
    at, free = 0, False
    for line in shown:
        if line.strip() == "…":
            free = True
            continue
        pattern = ".*".join(re.escape(part) for part in line.rstrip().split("…"))
        while at < len(printed):
            at += 1
            if re.fullmatch(pattern, printed[at - 1].rstrip()):
                break
            if not free:
                return f"{line!r}\n  printed here: {printed[at - 1]!r}"
        else:
            return f"{line!r}\n  is not printed any more"
        free = False
    return None if free or at == len(printed) else f"the end\n  printed here: {printed[at]!r}"


@pytest.mark.parametrize("page", sorted({block.page for block in of_kind("console")}))
def test_commands_print_what_the_page_shows(page: str, place: Path, request: pytest.FixtureRequest) -> None:
    """Of the first page with the program as it is installed."""
    environment = request.getfixturevalue("environment" if page == "README.md" else "forked")
    write_files(page)
    wrong = []
    for block in of_kind("console"):
        if block.page != page or block.text.startswith("$ scripts/demo\n$"):  # the second is what that script prints
            continue
        for call in calls(block):
            if call.command in NOT_RUN:
                continue
            done = subprocess.run(
                ["bash", "-c", call.command],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
            )  # fmt: skip
            missing = matches(call.shown, done.stdout.rstrip("\n").split("\n"))
            if done.returncode != call.code:
                wrong.append(f"{call.place}: $ {call.command}\n  exit code {done.returncode}\n{done.stdout}")
            elif missing is not None:
                wrong.append(f"{call.place}: $ {call.command}\n  shown: {missing}\n--- all:\n{done.stdout}")
    assert not wrong, "\n".join(wrong)


def test_shown_lines_are_compared() -> None:
    printed = ["a 1", "b 2", "c 3"]
    assert matches(["a …", "…", "c 3"], printed) is None
    assert matches(["…"], printed) is None
    assert matches(["a 1", "c 3"], printed)
    assert matches(["a 1"], printed)
    assert matches(["…", "c 4"], printed)
    assert matches(["…", "c 3", "d"], printed)


# ----------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("block", of_kind("yaml"), ids=lambda block: block.place)
def test_yaml_of_the_pages_is_a_sound_plan(block: Block, place: Path) -> None:
    write_files(block.page)
    if block.file is not None and block.file.startswith("wrong"):
        return  # the page shows what is said of it
    if "negate_" in block.text:
        return  # its transform is in the page, too; it has a test of its own
    content = yaml.safe_load(block.text)
    if "plan" in content:
        Path("jobs.yaml").write_text(block.text, encoding="utf-8")
        assert not batch("jobs.yaml", only_check=True).has_failed
        return
    if isinstance(content, dict) and content.keys() & {"merge_method", "experts"}:
        Path("config.yml").write_text(block.text, encoding="utf-8")
        check(merge_plan("config.yml", "out")[0])
        return
    if isinstance(content, list):
        Path("steps.yaml").write_text('inputs: [ "llama::llama" ]\ntransforms:\n' + block.text + "\n", encoding="utf-8")
    else:
        assert {"inputs", "transforms"} & content.keys(), "neither a plan nor a list of steps"
        Path("steps.yaml").write_text(block.text, encoding="utf-8")
    check(load_plan("steps.yaml"), Options(overwrite=True))


def result(name: str, *overrides: str) -> dict[str, np.ndarray]:
    run(load_plan(f"plans/{name}", *overrides, "output=result"), Options(sync=False))
    return read_checkpoint(Path("result"))


def test_task_arithmetic(place: Path) -> None:
    after = result("task_arithmetic.yaml", "inputs=[base::llama, a::math, b::code]")
    base, a, b = (
        {k: v.astype(np.float32) for k, v in read_checkpoint(Path(p)).items()} for p in ("llama", "math", "code")
    )
    assert after.keys() == base.keys()
    for name, found in after.items():
        first = np.float32(0.6) * (a[name] - base[name])
        second = np.float32(0.4) * (b[name] - base[name])
        assert_same_bits(found, (base[name] + first + second).astype(found.dtype), name)


def test_rename_gpt2(place: Path) -> None:
    rng = np.random.default_rng(1)

    def some(*shape: int) -> np.ndarray:
        return rng.integers(0, 2**15, shape, np.uint16).view(np.float16)

    linear = {"attn.c_attn": (768, 2304), "attn.c_proj": (768, 768), "mlp.c_fc": (768, 3072), "mlp.c_proj": (3072, 768)}
    before = {
        "wte.weight": some(50, 768),
        "wpe.weight": some(16, 768),
        "ln_f.weight": some(768),
        "ln_f.bias": some(768),
    }
    for layer in (0, 11):
        for norm in ("ln_1", "ln_2"):
            before |= {f"h.{layer}.{norm}.{part}": some(768) for part in ("weight", "bias")}
        for name, shape in linear.items():
            before |= {f"h.{layer}.{name}.weight": some(*shape), f"h.{layer}.{name}.bias": some(shape[1])}
    before["h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.uint8)  # a mask, as older files have
    write_checkpoint(place / "gpt2.safetensors", before)
    after = result("rename_gpt2.yaml", "inputs=[gpt2.safetensors]")
    assert len(after) == 4 + 2 * (4 + 2 * 6)
    block = "model.layers.11"
    assert_same_bits(after[f"{block}.self_attn.k_proj.weight"], before["h.11.attn.c_attn.weight"][:, 768:1536].T)
    assert_same_bits(after[f"{block}.self_attn.v_proj.bias"], before["h.11.attn.c_attn.bias"][1536:])
    assert_same_bits(after[f"{block}.mlp.up_proj.weight"], before["h.11.mlp.c_fc.weight"].T)
    assert_same_bits(after[f"{block}.post_attention_layernorm.bias"], before["h.11.ln_2.bias"])
    assert_same_bits(after["model.embed_positions.weight"], before["wpe.weight"])


def test_every_plan_of_the_project_is_run() -> None:
    run_here = {name.removeprefix("test_") + ".yaml" for name in globals()}
    elsewhere = {
        "demo_minilm.yaml",  # by scripts/demo, and checked in tests/plans/test_plans.py
        "lora_extract.yaml",  # both in tests/plans/test_lora.py
        "lora_merge.yaml",
        "llama_to_maxtext.yaml",  # both in tests/plans/test_maxtext.py
        "maxtext_to_llama.yaml",
        "branch_train_mix.yaml",  # the rest in tests/plans/test_upcycling.py
        "low_rank_expert.yaml",
        "low_rank_factors.yaml",
        "two_experts.yaml",
        "upcycle_drop.yaml",
        "upcycle_flex_olmo.yaml",
        "upcycle_mixtral.yaml",
        "upcycle_qwen2_moe.yaml",
        "upcycle_qwen3_moe.yaml",
        "cast.yaml",  # the rest in tests/plans/test_library.py
        "depth_upscale.yaml",
        "extend_vocab.yaml",
        "fuse_experts.yaml",
        "fuse_qkv.yaml",
        "prune_layers.yaml",
        "split_experts.yaml",
        "split_qkv.yaml",
        "tie.yaml",
        "untie.yaml",
    }
    assert set(PLANS) - run_here == elsewhere


# --------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("page", sorted({block.page for block in of_kind("python")}))
def test_python_of_the_pages(page: str, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SURGERY_JAX_CACHE", "off")
    write_files(page)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    names: dict[str, object] = {}
    for block in (block for block in of_kind("python") if block.page == page):
        if ">>>" not in block.text:
            ast.parse(block.text)
            continue
        example = doctest.DocTestParser().get_doctest(block.text, names, block.place, block.page, block.line - 1)
        output: list[str] = []
        doctest.DocTestRunner(optionflags=flags).run(example, out=output.append, clear_globs=False)
        names = example.globs  # a page is one session
        assert not output, "".join(output)


def test_the_transform_of_the_architecture_page_works(place: Path, environment: dict[str, str]) -> None:
    """Run as the file that the page says it is, in a process of its own."""
    (block,) = [block for block in of_kind("python") if block.file == "surgery_jax/ops/negate.py"]
    Path("negate.txt").write_text(block.text, encoding="utf-8")
    (plan,) = [block for block in of_kind("yaml") if block.file == "opposite.yaml"]
    Path("opposite.yaml").write_text(plan.text, encoding="utf-8")
    script = """
import sys, types
module = types.ModuleType("surgery_jax.ops.negate")
module.__package__ = "surgery_jax.ops"
sys.modules[module.__name__] = module
exec(compile(open("negate.txt").read(), "surgery_jax/ops/negate.py", "exec"), module.__dict__)
from surgery_jax.cli.main import main
sys.exit(main(["ops", "negate_"]) or main(["run", "opposite.yaml", "--quiet"]))
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "negate_: { target: 'delta" in done.stdout
    before, after = read_checkpoint(Path("llama")), read_checkpoint(Path("opposite"))
    for name, array in after.items():
        assert_same_bits(array, -before[name], name)


# ------------------------------------------------------------------------------------------------- tables and links


def tables() -> dict[str, str]:
    """What the registry says, by the place in its page."""
    from surgery_jax.kit.base import REQUIRED, fields_of, words
    from surgery_jax.kit.predicates import predicates
    from surgery_jax.merging.method import methods, told

    def row(name: str, doc: str, declared: dict, bare: bool = False) -> str:
        keys = [f"`{key}`" if field.default is REQUIRED else f"[`{key}`]" for key, (_, field) in declared.items()]
        if bare:
            keys = [("an " if field.kind[0] in "aeiou" else "a ") + field.kind for _, field in declared.values()]
        return f"| `{name}` | {doc.replace('|', chr(92) + '|')} | {', '.join(keys)} |"

    transforms = [row(name, word.doc, dict(word.fields)) for name, word in words().items()]
    assertions = [
        row(
            name,
            " ".join((cls.__doc__ or "").split("\n\n")[0].split()),
            dict(fields_of(cls)),
            bare=bool(cls.takes) and len(fields_of(cls)) == 1,
        )
        for name, cls in predicates().items()
    ]
    merges = [
        row(name, " ".join((cls.__doc__ or "").split("\n\n")[0].split()), told(cls)) for name, cls in methods().items()
    ]
    head = "| {} | what it does | keys |\n|---|---|---|\n"
    return {
        "transforms": head.format("transform") + "\n".join(transforms),
        "assertions": head.format("assertion") + "\n".join(assertions),
        "methods": head.format("method") + "\n".join(merges),
    }


def page_of(table: str) -> Path:
    return ROOT / "docs" / ("methods.md" if table == "methods" else "plans.md")


def test_the_tables_are_those_of_the_registry() -> None:
    for name, table in tables().items():
        page = page_of(name).read_text(encoding="utf-8")
        found = re.search(rf"<!-- {name} -->\n\n(.*?)\n\n<!-- end -->", page, re.DOTALL)
        assert found, f"{page_of(name).name} has no place for the table of {name}"
        assert found[1] == table, "renew it: python tests/test_docs.py --write"


MARKED = re.compile(r"(<!-- parameters of (\w+) -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)


def parameter_table(name: str) -> str:
    """What a plan declares, for docs/library.md."""
    from surgery_jax.language.document import Mapping, parse_plan_file
    from surgery_jax.language.parameters import declarations

    root = parse_plan_file(str(ROOT / "plans" / f"{name}.yaml"), interpolate=False)
    assert isinstance(root, Mapping)
    rows = [f"| `{p.name}` | {p.facts.replace('|', ' or ')} | {p.help} |" for p in declarations(root).values()]
    return "| parameter | takes | |\n|---|---|---|\n" + "\n".join(rows)


def test_the_tables_of_parameters_are_those_of_the_plans() -> None:
    found = MARKED.findall((ROOT / "docs" / "library.md").read_text(encoding="utf-8"))
    assert found
    for _, name, table, _ in found:
        assert table == parameter_table(name), f"{name}: renew it: python tests/test_docs.py --write"


def test_the_table_lists_what_the_command_lists(environment: dict[str, str]) -> None:
    printed = subprocess.run(["surgery-jax", "ops"], env=environment, capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"^  (\w+)", printed, re.MULTILINE)
    shown = [re.findall(r"^\| `(\w+)`", tables()[name], re.MULTILINE) for name in ("transforms", "assertions")]
    assert listed == shown[0] + shown[1]


def test_every_command_and_option_is_described() -> None:
    from surgery_jax.cli.command import commands

    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `(\S+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(commands())
    for name, command in commands().items():
        for argument in command.arguments:
            for word in argument.spellings if argument.is_option else ():
                assert f"`{word}" in sections[name], f"{name} {word}"


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, fragment = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), f"{page}: {target}"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page}: {target}"


MADE = {
    "surgery_jax/ops/negate.py",
    "surgery_jax/asserts/square.py",
    "surgery_jax/storage/flat.py",
    "surgery_jax/compiled",
    "benchmarks/results/",
}  # by examples, users or programs


def test_named_files_exist() -> None:
    """Paths of the project in backquotes."""
    for page in PAGES:
        for path in re.findall(
            r"`((?:surgery_jax|tests|docs|plans|scripts|benchmarks)/[\w./]+)`", (ROOT / page).read_text()
        ):
            made = path in MADE
            assert made or (ROOT / path).exists(), f"{page}: {path}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [page for page in PAGES[1:] if f"]({page})" not in readme]


def write_tables() -> None:
    for name, table in tables().items():
        page = re.sub(
            rf"(<!-- {name} -->\n\n).*?(\n\n<!-- end -->)",
            lambda found, table=table: found[1] + table + found[2],
            page_of(name).read_text(encoding="utf-8"),
            flags=re.DOTALL,
        )
        page_of(name).write_text(page, encoding="utf-8")
    path = ROOT / "docs" / "library.md"
    page = path.read_text(encoding="utf-8")
    page = MARKED.sub(lambda found: found[1] + parameter_table(found[2]) + found[4], page)
    path.write_text(page, encoding="utf-8")


if __name__ == "__main__" and "--write" in sys.argv:
    write_tables()
