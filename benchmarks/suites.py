"""What is measured, against what, and how good it must be. Data only: `run.py` does the work.

A command is one line. `{ours}` and `{brainsurgery}` are the two programs, `{plan}` the row's plan, `{expected}` a file
with the row's output, made once. A line with `>` or `&&` is for the shell. Commands run in a directory that holds the
inputs; outputs lie in its folder `out`, which is removed before every run.

Copies and BrainSurgery leave their bytes to the operating system; ours waits until they are on the disk unless told
`--no-sync`. Each is compared with its like: `ours` with a copy that is synced too, `ours --no-sync` with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

OURS = "{ours} run --quiet {plan}"
OURS_NO_SYNC = "{ours} run --quiet --no-sync {plan}"
BRAINSURGERY = "{brainsurgery} cli --no-summarize --log-level error {plan}"
COPY = "mkdir out && cp {expected} out/copy"
COPY_SYNC = COPY + " && sync out/copy"
COPIES = {"cp": COPY, "cp && sync": COPY_SYNC}
EDITORS = {"ours": OURS, "ours --no-sync": OURS_NO_SYNC, "brainsurgery": BRAINSURGERY}


@dataclass(frozen=True, slots=True)
class Target:
    """`measure` of side `of`, divided by that of side `per` if there is one, lies within the bounds."""

    measure: str  # wall_s, cpu_s or rss_bytes
    of: str
    per: str | None = None
    at_most: float | None = None
    at_least: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: commands by name, in the order of the first round."""

    name: str
    about: str
    sides: dict[str, str]
    targets: tuple[Target, ...]
    plan: str | None = None  # in plans/
    identical: bool = False  # all sides but copies must write the same names, dtypes, shapes and bits


@dataclass(frozen=True, slots=True)
class Suite:
    """Rows over the same inputs. An input is a directory and the arguments of make_llama.py that make it."""

    about: str
    inputs: dict[str, str]
    rows: tuple[Row, ...]


def no_slower(limit: float, synced: str, unsynced: str) -> tuple[Target, ...]:
    """At most `limit` times as long as the baselines of the same kind."""
    return (
        Target("wall_s", "ours", per=synced, at_most=limit),
        Target("wall_s", "ours --no-sync", per=unsynced, at_most=limit),
    )


def faster(limit: float) -> Target:
    """BrainSurgery takes at least `limit` times as long."""
    return Target("wall_s", "brainsurgery", per="ours --no-sync", at_least=limit)


READ_THREE = "cat base/model.safetensors first/model.safetensors second/model.safetensors > /dev/null"

STORAGE = Suite(
    about="Work that is bound by the storage: the engine should be as fast as copying the same bytes.",
    inputs={
        "base": "--seed 0",
        "same": "--seed 0",
        "first": "--base base --seed 1",
        "second": "--base base --seed 2",
    },
    rows=(
        Row(
            "upcycle",
            "dense model to two experts; bytes are only moved",
            COPIES | EDITORS,
            (
                *no_slower(1.3, "cp && sync", "cp"),
                faster(6),
                Target("rss_bytes", "ours", at_most=300e6),
                Target("rss_bytes", "ours --no-sync", at_most=300e6),
            ),
            plan="upcycle.yaml",
            identical=True,
        ),
        Row(
            "rename",
            "every tensor under another name",
            COPIES | EDITORS,
            no_slower(1.1, "cp && sync", "cp"),
            plan="rename.yaml",
            identical=True,
        ),
        Row(
            "cast",
            "bfloat16 to float32",
            COPIES | EDITORS,
            (*no_slower(1.6, "cp && sync", "cp"), faster(4)),
            plan="cast.yaml",
            identical=True,
        ),
        Row(
            "task arithmetic",
            "base + 0.3 of one difference + 0.7 of another, in bfloat16",
            {"cat, cp": f"{READ_THREE} && {COPY}", "cat, cp && sync": f"{READ_THREE} && {COPY_SYNC}"} | EDITORS,
            (*no_slower(2, "cat, cp && sync", "cat, cp"), faster(5)),
            plan="task_arithmetic.yaml",
            identical=True,
        ),
        Row(
            "equal",
            "every tensor of two models is asserted to be equal",
            {
                "cat": "cat base/model.safetensors same/model.safetensors > /dev/null",
                "ours": OURS,
                "brainsurgery": BRAINSURGERY,
            },
            (Target("wall_s", "ours", per="cat", at_most=2),),
            plan="equal.yaml",
        ),
        Row(
            "memory limit",
            "the same task arithmetic within 512 MiB of host memory",
            {"ours": OURS, "ours --memory": "{ours} run --quiet --memory 512MiB {plan}"},
            (
                Target("rss_bytes", "ours --memory", at_most=762e6),
                Target("wall_s", "ours --memory", per="ours", at_most=1.3),
            ),
            plan="task_arithmetic.yaml",
        ),
        Row(
            "start-up",
            "the help text",
            {"ours": "{ours} --help", "brainsurgery": "{brainsurgery} --help"},
            (Target("wall_s", "ours", at_most=0.25),),
        ),
    ),
)

SUITES = {"storage": STORAGE}
