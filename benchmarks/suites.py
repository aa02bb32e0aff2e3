"""What is measured, against what, and how good it must be. Data only: `run.py` does the work.

A command is one line. `{ours}`, `{brainsurgery}`, `{mergekit}` and those of this folder are programs, `{plan}` is the
row's plan, `{expected}` a file with the row's output, made once. A line with `>` or `&&` is for the shell. Commands run
in a directory that holds the inputs; outputs lie in its folder `out`, which is removed before every run. What is
compiled is kept from the untimed run on, as it is between the runs of a user.

Copies and BrainSurgery leave their bytes to the operating system; ours waits until they are on the disk unless told
`--no-sync`. Each is compared with its like: `ours` with a copy that is synced too, `ours --no-sync` with the rest. An
output that is a directory gets a receipt unless told `--no-receipt`; one file does not. `earlier` is another version of
ours, if one is given.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

OURS = "{ours} run --quiet --json {plan}"
OURS_NO_SYNC = "{ours} run --quiet --json --no-sync {plan}"
BRAINSURGERY = "{brainsurgery} cli --no-summarize --log-level error {plan}"
COPY = "mkdir out && cp {expected} out/copy"
COPY_SYNC = COPY + " && sync out/copy"
COPIES = {"cp": COPY, "cp && sync": COPY_SYNC}
SIDES = ("ours", "ours --no-sync")
EARLIER = {"earlier": OURS.replace("ours", "earlier"), "earlier --no-sync": OURS_NO_SYNC.replace("ours", "earlier")}
EDITORS = {"ours": OURS, "ours --no-sync": OURS_NO_SYNC} | EARLIER | {"brainsurgery": BRAINSURGERY}


@dataclass(frozen=True, slots=True)
class Target:
    """`measure` of side `of`, divided by that of side `per` if there is one, lies within the bounds, or is recorded
    where there are none.

    Before that `less` and `per_less` are subtracted, sides with start-up alone, and the rest is divided by `count` and
    `per_count`, what was done in it.
    """

    measure: str  # of run.MEASURES
    of: str
    per: str | None = None
    at_most: float | None = None
    at_least: float | None = None
    less: str | None = None
    per_less: str | None = None
    count: int = 1
    per_count: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: commands by name, in the order of the first round."""

    name: str
    about: str
    sides: dict[str, str]
    targets: tuple[Target, ...]
    inputs: tuple[str, ...] = ()  # of the suite
    plan: str | None = None  # in plans/
    identical: bool = False  # all sides but copies must write the same names, dtypes, shapes and bits
    size: str | None = None  # of the models, instead of the one that is asked for
    cold: bool = False  # inputs are dropped from the page cache before every run
    disk_bytes: float = 0.0  # that inputs and outputs take; the row is left out where they do not fit
    once: tuple[str, ...] = ()  # sides that take so long that each runs once, without a run that is not timed


@dataclass(frozen=True, slots=True)
class Suite:
    """Rows over the same inputs. An input is a directory, and the program with arguments that makes it."""

    about: str
    inputs: dict[str, str]
    rows: tuple[Row, ...]


def no_slower(limit: float, synced: str, unsynced: str) -> tuple[Target, ...]:
    """At most `limit` times as long as the baselines of the same kind; and as an earlier version, which is recorded."""
    return (
        Target("wall_s", "ours", per=synced, at_most=limit),
        Target("wall_s", "ours --no-sync", per=unsynced, at_most=limit),
        *(Target(of, side, per=side.replace("ours", "earlier")) for of in ("wall_s", "cpu_s") for side in SIDES),
    )


def faster(limit: float) -> tuple[Target, ...]:
    """BrainSurgery takes at least `limit` times as long; and as much processor time, where the disk is what both wait
    for."""
    return tuple(Target(of, "brainsurgery", per="ours --no-sync", at_least=limit) for of in ("wall_s", "cpu_s"))


def input_of(name: str, number: int = 0, alias: str = "model") -> str:
    """Takes another input than the plan says, as the end of a command."""
    return f" inputs[{number}]={alias}::{name}/model.safetensors"


READ_TWO = "cat base/model.safetensors same/model.safetensors > /dev/null"
READ_THREE = "cat base/model.safetensors first/model.safetensors second/model.safetensors > /dev/null"

MODELS = {
    "base": "make_llama.py --size {size} --seed 0",
    "same": "make_llama.py --size {size} --seed 0",
    "first": "make_llama.py --size {size} --base base --seed 1",
    "second": "make_llama.py --size {size} --base base --seed 2",
    "tiny": "make_llama.py --size tiny --seed 0",
}
TINY_PAIR = input_of("tiny", 0, "left") + input_of("tiny", 1, "right")
TINY_TRIPLE = input_of("tiny", 0, "base") + input_of("tiny", 1, "first") + input_of("tiny", 2, "second")
LIMITED = "{ours} run --quiet --json --memory 512MiB {plan}"
MANY = {
    f"{command} {name}": f"{line} {{plan}}" + input_of(f"many_{name}")
    for command, line in {"check": "{ours} check --json", "run": "{ours} run --quiet --json --no-sync"}.items()
    for name in ("1k", "10k", "100k")
}

STORAGE = Suite(
    about="Work that is bound by the storage: the engine should be as fast as copying the same bytes.",
    inputs=MODELS
    | {
        "large": "make_llama.py --size 8b --seed 0",
        "one_large": "make_tensors.py --shape 25000 15000",
        "many_1k": "make_tensors.py --count 1000 --shape 64",
        "many_10k": "make_tensors.py --count 10000 --shape 64",
        "many_100k": "make_tensors.py --count 100000 --shape 64",
    },
    rows=(
        Row(
            "upcycle",
            "dense model to two experts; bytes are only moved",
            COPIES | EDITORS,
            (
                *no_slower(1.3, "cp && sync", "cp"),
                *faster(6),
                Target("rss_bytes", "ours", at_most=300e6),
                Target("rss_bytes", "ours --no-sync", at_most=300e6),
            ),
            inputs=("base",),
            plan="upcycle.yaml",
            identical=True,
        ),
        Row(
            "rename",
            "every tensor under another name",
            COPIES | EDITORS,
            no_slower(1.1, "cp && sync", "cp"),
            inputs=("base",),
            plan="rename.yaml",
            identical=True,
        ),
        Row(
            "cast",
            "bfloat16 to float32",
            COPIES | EDITORS,
            (*no_slower(1.6, "cp && sync", "cp"), *faster(4)),
            inputs=("base",),
            plan="cast.yaml",
            identical=True,
        ),
        Row(
            "task arithmetic",
            "base + 0.3 of one difference + 0.7 of another, in bfloat16",
            {"cat, cp": f"{READ_THREE} && {COPY}", "cat, cp && sync": f"{READ_THREE} && {COPY_SYNC}"} | EDITORS,
            (*no_slower(2, "cat, cp && sync", "cat, cp"), *faster(5)),
            inputs=("base", "first", "second"),
            plan="task_arithmetic.yaml",
            identical=True,
        ),
        Row(
            "equal",
            "every tensor of two models is asserted to be equal; the target is for the time beyond start-up",
            {"cat": READ_TWO, "ours": OURS, "ours, tiny": OURS + TINY_PAIR, "brainsurgery": BRAINSURGERY},
            (Target("wall_s", "ours", less="ours, tiny", per="cat", at_most=2),),
            inputs=("base", "same", "tiny"),
            plan="equal.yaml",
        ),
        Row(
            "cold upcycle",
            "the same upcycling of a model that is not in the page cache",
            {"cat, cp && sync": f"cat base/model.safetensors > /dev/null && {COPY_SYNC}", "ours": OURS},
            (Target("wall_s", "ours", per="cat, cp && sync", at_most=1.3),),
            inputs=("base",),
            plan="upcycle.yaml",
            cold=True,
        ),
        Row(
            "memory limit",
            "the same task arithmetic within 512 MiB of host memory",
            {"ours": OURS, "ours --memory": LIMITED},
            (
                Target("rss_bytes", "ours --memory", at_most=762e6),
                Target("wall_s", "ours --memory", per="ours", at_most=1.3),
            ),
            inputs=("base", "first", "second"),
            plan="task_arithmetic.yaml",
        ),
        Row(
            "large tensor",
            "one float32 tensor of 1.5 GB is scaled and cast within 256 MiB of host memory",
            {"ours --memory": "{ours} run --quiet --json --memory 256MiB {plan}"},
            (Target("rss_bytes", "ours --memory", at_most=256 * 2**20 + 250e6),),
            inputs=("one_large",),
            plan="large_tensor.yaml",
            disk_bytes=2.5e9,
        ),
        Row(
            "small tensors",
            "1 000, 10 000 and 100 000 tensors of 256 bytes, 20 steps that each rename a twentieth",
            MANY,
            (
                Target("wall_s", "check 100k", at_most=3),
                Target(
                    "wall_s",
                    "check 100k",
                    less="check 1k",
                    count=99_000,
                    per="check 10k",
                    per_less="check 1k",
                    per_count=9_000,
                    at_most=1.3,
                ),
                Target("wall_s", "run 100k", less="run 1k", count=99_000, at_most=1 / 20_000),
            ),
            inputs=("many_1k", "many_10k", "many_100k"),
            plan="small_tensors.yaml",
        ),
        Row(
            "1b to 8b",
            "every tensor under another name within 512 MiB of host memory, read from the disk",
            {"ours 1b": LIMITED, "ours 8b": LIMITED + input_of("large")},
            (
                Target("rss_bytes", "ours 8b", per="ours 1b", at_most=1.05),
                Target("s_per_gb", "ours 8b", per="ours 1b", at_most=1.3),
            ),
            inputs=("base", "large"),
            plan="rename.yaml",
            size="1b",
            cold=True,
            disk_bytes=33e9,
        ),
        Row(
            "compilations",
            "the same task arithmetic: how often it compiles, and how long that takes a second process",
            {"ours": OURS, "ours, none kept": "env SURGERY_JAX_CACHE=off " + OURS},
            (
                Target("compilations_per_group", "ours", at_most=1, at_least=1),
                Target("compile_share", "ours", at_most=0.02),
            ),
            inputs=("base", "first", "second"),
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

TUNED = tuple(f"tuned{number}" for number in range(1, 9))


def in_batch(name: str, about: str, plan: str, output: str) -> Row:
    """One plan for every fine-tune of a base: as jobs of one batch, and by itself eight times over."""
    single = "{ours} run --quiet --json {plan} tuned=%s output.path=" + output
    lines = [
        "echo plan: {plan} > jobs.yaml",
        f"echo 'matrix: {{{{ tuned: [{', '.join(TUNED)}] }}}}' >> jobs.yaml",
        "echo 'set: {{ output.path: \"" + output.replace("%s", "${{job}}") + "\" }}' >> jobs.yaml",
        "{ours} batch --quiet --json --again jobs.yaml",
    ]
    sides = {"batch": " && ".join(lines), "single runs": " && ".join(single % (name, name) for name in TUNED)}
    target = Target("wall_s", "batch", per="single runs", at_most=0.6)
    return Row(name, about, sides, (target,), inputs=("base", *TUNED), plan=plan, size="160m", disk_bytes=7e9)


BATCH = Suite(
    about="Fine-tunes of one base: the jobs of a batch against runs of their own.",
    inputs={"base": MODELS["base"]}
    | {name: f"make_llama.py --size {{size}} --base base --rank 8 --seed {at}" for at, name in enumerate(TUNED, 1)},
    rows=(
        in_batch("eight merges", "base + 0.7 of the difference", "task_vector.yaml", "out/%s.safetensors"),
        in_batch("eight adapters", "LoRA adapters of rank 16 of all projections", "adapter.yaml", "out/%s"),
    ),
)

FORTY = tuple(f"shallow-{number}" for number in range(1, 41))


def by_tasks(*counts: int) -> Row:
    """Adapters of forty fine-tunes as one batch, by one process with one core, and by so many tasks with one each."""
    sides = {"one process": 1} | {f"{count} tasks": count for count in counts}
    cores = os.cpu_count() or 1
    targets = [
        target
        for side, count in sides.items()
        if count > 1
        for target in (
            Target("wall_s", "one process", per=side, at_least=0.8 * min(count, cores)),
            Target("cpu_s", side, per="one process"),
            Target("read_ratio", side, at_most=1.1),
        )
    ]
    return Row(
        "forty adapters",
        "LoRA adapters of rank 16 of forty fine-tunes of one base; each process has one core, if there are so many",
        {side: f"{{by_tasks}} {count} {{plan}} --base shallow --tuned {len(FORTY)}" for side, count in sides.items()},
        tuple(targets),
        inputs=("shallow", *FORTY),
        plan="adapter.yaml",
        size="160m",
        disk_bytes=8e9,
    )


_SIX_LAYERS = "make_llama.py --size {size} --layers 6"

BULK = Suite(
    about="Fine-tunes of one base: the tasks that share a batch, against one process that does all of it.",
    inputs={"shallow": _SIX_LAYERS}
    | {name: f"{_SIX_LAYERS} --base shallow --rank 8 --seed {at}" for at, name in enumerate(FORTY, 1)},
    rows=(by_tasks(2, 4),),
)

CONVERT = "{ours} convert --quiet --json --memory 512MiB"
TO_ORBAX = CONVERT + " base/model.safetensors out --format orbax --options compression="
FROM_ORBAX = CONVERT.replace("convert", "convert --format safetensors --shard-size none")
WITH_ORBAX = "{with_orbax} out"
LEAST_RSS = (512 + 34 + 130) << 20  # the budget, the program, and TensorStore with its threads


def beside_orbax(ours: str, theirs: str) -> tuple[dict[str, str], tuple[Target, ...]]:
    """Sides and targets of a conversion. Orbax brings what it writes to the disk; safetensors does not."""
    sides = {"ours": ours, "ours --no-sync": f"{ours} --no-sync", "orbax": theirs}
    kind = "ours --no-sync" if " export " in theirs else "ours"
    return sides, (
        Target("wall_s", "orbax", per=kind, at_least=1.5),
        Target("rss_bytes", "ours", at_most=LEAST_RSS),
    )


def loaded(name: str) -> str:
    """Loads an input onto a mesh of 8 devices."""
    return f"{WITH_ORBAX} load {name}"


ORBAX = Suite(
    about="Conversions to and from Orbax, against Orbax with safetensors; loading what each has written.",
    inputs={
        "base": MODELS["base"],
        "saved": "with_orbax.py save base/model.safetensors",
        "saved_plain": "with_orbax.py save base/model.safetensors --plain --compression none",
        "meshed": "with_orbax.py save base/model.safetensors --mesh",
        "meshed_plain": "with_orbax.py save base/model.safetensors --mesh --plain --compression none",
        "converted": "with_orbax.py ours base/model.safetensors",
    },
    rows=(
        Row(
            "to orbax",
            "safetensors to Orbax, not compressed",
            *beside_orbax(TO_ORBAX + "none", WITH_ORBAX + " save base/model.safetensors --compression none"),
            inputs=("base",),
        ),
        Row(
            "to orbax, zstd",
            "safetensors to Orbax, compressed",
            *beside_orbax(TO_ORBAX + "zstd", WITH_ORBAX + " save base/model.safetensors --compression zstd"),
            inputs=("base",),
        ),
        Row(
            "from orbax",
            "what Orbax saves by default (OCDBT, zarr 3, zstd) to safetensors",
            *beside_orbax(FROM_ORBAX + " saved out", WITH_ORBAX + " export saved"),
            inputs=("base", "saved"),
            identical=True,
        ),
        Row(
            "from orbax, plain",
            "the same without OCDBT and compression",
            *beside_orbax(FROM_ORBAX + " saved_plain out", WITH_ORBAX + " export saved_plain"),
            inputs=("base", "saved_plain"),
            identical=True,
        ),
        Row(
            "load",
            "`ocp.load` onto a mesh of 8 devices, of our conversion and of what Orbax saved from such a mesh",
            {"ours": loaded("converted"), "orbax": loaded("meshed"), "orbax, plain": loaded("meshed_plain")},
            (
                Target("stream_s", "ours", per="orbax", at_most=1.0),
                Target("stream_s", "ours", per="orbax, plain", at_most=1.0),
            ),
            inputs=("base", "converted", "meshed", "meshed_plain"),
        ),
    ),
)

FACTORING = {
    "ours": "ours-auto",
    "ours randomized": "ours-randomized",
    "svd_lowrank, 1.001": "torch-lowrank",
    "randomized_svd, 1.001": "sklearn-randomized",
}
EQUAL = {"svd_lowrank": "torch-lowrank --equal", "randomized_svd": "sklearn-randomized --equal"}
WHOLE = {"ours": "ours-auto", "ours exact": "ours-exact", "torch svd": "torch-svd", "numpy svd": "numpy-svd"}


def kernel(
    name: str, about: str, options: str, programs: dict[str, str], *targets: Target, once: tuple[str, ...] = ()
) -> Row:
    """Matrices in memory by every program; each says how long one takes."""
    sides = {side: f"{{factor}} {program} {options}" for side, program in programs.items()}
    return Row(
        name, about, sides, (Target("residual", "ours", at_most=1.001), *targets), once=tuple(sides) if once else ()
    )


def quicker(times: float, *sides: str) -> tuple[Target, ...]:
    """Our kernel than others."""
    return tuple(Target("kernel_s", side, per="ours", at_least=times) for side in sides)


# Without a network it ends with an error once the adapter is written: it asks for the model's page on the hub.
MERGEKIT = (
    "env HF_HUB_OFFLINE=1 {mergekit} --quiet --model %s_tuned --base-model %s --out-path out/adapter --max-rank 16 "
    "--exclude-regex 'lm_head|embed_tokens' > /dev/null 2>&1 ; test -f out/adapter/adapter_model.safetensors"
)
EXTRACT = OURS + " base=%s tuned=%s_tuned"


def layers(count: int, inputs: str, times: float) -> tuple[Row, ...]:
    """Whole checkpoints, start-up included."""
    is_long, disk = count > 2, 10e9 if count > 2 else 3e9
    extract, mergekit = EXTRACT % (inputs, inputs), MERGEKIT % (inputs, inputs)
    residual = f"{{residual}} {inputs} {inputs}_tuned out/adapter"
    measured = (
        Target("wall_s", "mergekit", per="ours", at_least=times),
        Target("cpu_s", "mergekit", per="ours", at_least=times),
        Target("rss_bytes", "ours", at_most=1.5e9),
    )
    found = (
        Row(
            f"{count} layers",
            f"every matrix of {count} layers replaced by its best approximation of rank 16, in float32",
            {"ours": OURS, "brainsurgery": BRAINSURGERY},
            (
                Target("wall_s", "brainsurgery", per="ours", at_least=times),
                Target("cpu_s", "brainsurgery", per="ours", at_least=times),
                Target("rss_bytes", "ours", at_most=1.5e9),
            ),
            inputs=(inputs,),
            plan=f"low_rank_{count}.yaml",
            disk_bytes=disk,
            once=("ours", "brainsurgery") if is_long else (),
        ),
        Row(
            f"extract {count} layers",
            f"a LoRA adapter of rank 16 of {count} layers in float32",
            {"ours": extract, "mergekit": mergekit},
            measured,
            inputs=(inputs, f"{inputs}_tuned"),
            plan="adapter.yaml",
            disk_bytes=disk,
            once=("ours", "mergekit") if is_long else (),
        ),
    )
    if is_long:
        return found
    return (
        *found,
        Row(
            f"residual {count} layers",
            "how far the adapters are from the change: the error of all matrices together",
            {"ours": f"{extract} > /dev/null && {residual}", "mergekit": f"{mergekit} && {residual}"},
            (Target("residual", "ours", per="mergekit", at_most=1.001),),
            inputs=(inputs, f"{inputs}_tuned"),
            plan="adapter.yaml",
            once=("ours", "mergekit"),
        ),
    )


LOW_RANK = Suite(
    about="Low-rank factors: the kernel by itself, and on whole checkpoints.",
    inputs={
        "two_layers": "make_llama.py --size 1.1b --layers 2 --dtype float32",
        "two_layers_tuned": "make_llama.py --size 1.1b --layers 2 --dtype float32 --base two_layers --rank 16 --seed 1",
        "sixteen_layers": "make_llama.py --size 1.1b --layers 16 --dtype float32",
        "sixteen_layers_tuned": "make_llama.py --size 1.1b --layers 16 --dtype float32 --base sixteen_layers --rank 16 "
        "--seed 1",
        "bf16": "make_llama.py --size 1.1b --layers 16",
        "bf16_tuned": "make_llama.py --size 1.1b --layers 16 --base bf16 --rank 64 --seed 1",
    },
    rows=(
        kernel(
            "kernel flat",
            "5632 x 2048 normal numbers, rank 16; others with 1.001 of the least error, or with ours",
            "--spectrum flat",
            FACTORING | EQUAL,
            *quicker(1.5, *EQUAL, "svd_lowrank, 1.001", "randomized_svd, 1.001"),
            Target("matmul_share", "ours", at_least=0.5),
        ),
        kernel(
            "kernel delta",
            "5632 x 2048, a difference of rank 16 and noise, rank 16",
            "--spectrum delta",
            FACTORING | EQUAL,
            *quicker(1.5, *EQUAL, "svd_lowrank, 1.001", "randomized_svd, 1.001"),
        ),
        kernel(
            "kernel rank 64",
            "5632 x 2048 normal numbers, rank 64",
            "--spectrum flat --rank 64",
            FACTORING,
            *quicker(1.5, "svd_lowrank, 1.001", "randomized_svd, 1.001"),
        ),
        kernel(
            "kernel, whole",
            "5632 x 2048 normal numbers, rank 16, and full decompositions",
            "--spectrum flat",
            WHOLE,
            *quicker(10, "torch svd", "numpy svd"),
            once=tuple(WHOLE),
        ),
        *layers(2, "two_layers", 5),
        Row(
            "16 layers bfloat16",
            "a LoRA adapter of rank 64 of 16 layers in bfloat16",
            {"ours": (EXTRACT % ("bf16", "bf16")).replace("{plan}", "{plan} rank=64")},
            (Target("rss_bytes", "ours", at_most=1.5e9),),
            inputs=("bf16", "bf16_tuned"),
            plan="adapter.yaml",
            disk_bytes=5e9,
            once=("ours",),
        ),
        *layers(16, "sixteen_layers", 8),
    ),
)

UNPROVEN = "ours --no-sync --no-receipt"
MIXTRAL = "plans/upcycle_mixtral.yaml source=base output=out"
# mergekit says of equal experts that they are not useful without training, and wants a tokenizer.
MERGEKIT_MOE = " && ".join(
    [
        "echo 'base_model: base_tokens' > moe.yaml",
        "echo 'gate_mode: random' >> moe.yaml",
        "echo 'dtype: bfloat16' >> moe.yaml",
        f"echo 'experts: [{', '.join(['{{source_model: base_tokens}}'] * 8)}]' >> moe.yaml",
        "{mergekit_moe} moe.yaml out --i-understand-this-is-not-useful-without-training > /dev/null",
    ]
)

UPCYCLE = Suite(
    about="A dense Llama to a Mixtral of eight experts: against writing as many bytes, and against other programs.",
    inputs={"base": MODELS["base"], "base_tokens": "with_torch.py tokenized base"},
    rows=(
        Row(
            "mixtral",
            "every MLP as eight experts, with routers, config and the proof that it computes what it did",
            {
                "floor, cached": "{floor} out base",
                "floor, direct": "{floor} out base --direct",
                "ours": f"{{ours}} run --quiet --json {MIXTRAL}",
                "ours --no-sync": f"{{ours}} run --quiet --json --no-sync {MIXTRAL}",
                UNPROVEN: f"{{ours}} run --quiet --json --no-sync --no-receipt {MIXTRAL}",
                "transformers": "{with_torch} out mixtral base",
                "mergekit-moe": MERGEKIT_MOE,
            },
            (
                Target("wall_s", UNPROVEN, per="floor, cached", at_most=1.2),
                Target("wall_s", UNPROVEN, per="floor, direct", at_most=1.2),
                Target("wall_s", "ours --no-sync", per=UNPROVEN),
                *(Target("rss_bytes", side, at_most=300e6) for side in ("ours", "ours --no-sync")),
                # nothing beside what they write proves it
                *(Target("wall_s", side, per=UNPROVEN, at_least=4) for side in ("transformers", "mergekit-moe")),
                *(Target("wall_s", side, per="ours --no-sync") for side in ("transformers", "mergekit-moe")),
                *(
                    Target("rss_bytes", side, per="ours --no-sync", at_least=10)
                    for side in ("transformers", "mergekit-moe")
                ),
            ),
            inputs=("base", "base_tokens"),
            disk_bytes=14e9,
        ),
    ),
)


FOUR = ("base", "first", "second", "third")


def proven(plan: str, about: str, *inputs: str, computes: bool, size: str | None = None) -> Row:
    """A plan, or a merge, whose output is a directory, with the receipt that it gets, with one without digests of
    tensors, and without any."""
    plan, _, more = plan.partition(" ")  # its file, and what overrides it
    name, _, suffix = plan.rpartition(".")
    line = "merge --quiet --json {} {plan} out" if suffix == "yml" else "run --quiet --json {} {plan} output=out"
    sides = {
        side: f"{{ours}} {line} {more}".replace(" {} ", f" {options} ").replace("  ", " ").strip()
        for side, options in {
            "ours": "",
            "ours --digest none": "--digest none",
            "ours --no-receipt": "--no-receipt",
        }.items()
    }
    # of bytes that are only moved it is recorded what proof costs
    most = 1.1 if computes else None
    targets = (
        Target("wall_s", "ours", per="ours --digest none", at_most=most),  # what digests of tensors cost
        Target("wall_s", "ours", per="ours --no-receipt", at_most=most),  # and with SHA-256 of files, for signing
    )
    return Row(name.replace("_", " "), about, sides, targets, inputs=inputs, plan=plan, size=size)


EDITED = "{ours} run --quiet --json {plan} factor=0.25"

DIGESTS = Suite(
    about="What receipts cost, whose inputs are known already; and what it takes to verify an output.",
    inputs=MODELS
    | {
        "third": "make_llama.py --size {size} --base base --seed 3",
        "proven": "make_proven.py base",
        "earlier": "make_proven.py base --plan hundred.yaml",
    },
    rows=(
        proven("rename.yaml", "every tensor under another name", "base", computes=False),
        proven("upcycle.yaml", "dense model to two experts", "base", computes=False),
        proven("cast.yaml", "bfloat16 to float32", "base", computes=True),
        proven("task_arithmetic.yaml", "differences of three models", "base", "first", "second", computes=True),
        proven("ties.yaml", "two fine-tunes merged by TIES", "base", "first", "second", computes=True),
        proven("merge_ties.yml", "three fine-tunes merged by TIES, density 0.5", *FOUR, computes=True),
        proven("adapter.yaml tuned=first", "a LoRA adapter of rank 16", "base", "first", computes=True, size="160m"),
        Row(
            "verify",
            "every tensor and file of an output compared with its receipt",
            {"cat": "cat proven/* > /dev/null", "ours": "{ours} verify --quiet --json proven"},
            (Target("wall_s", "ours", per="cat", at_most=1.25),),
            inputs=("base", "proven"),
            cold=True,
        ),
        Row(
            "reuse",
            "one edited step of a hundred: all of it again, and with what an earlier output has of it",
            {"ours": EDITED, "ours --reuse": EDITED + " --reuse earlier"},
            (Target("wall_s", "ours", per="ours --reuse", at_least=10),),
            inputs=("base", "earlier"),
            plan="hundred.yaml",
            disk_bytes=7e9,
        ),
    ),
)

# Models have no tokenizer here, and the card of a model is asked for at the hub.
MERGE = "{ours} merge --quiet --json --memory 512MiB --no-sync --no-receipt {plan} out"
MERGEKIT_YAML = (
    "{mergekit} --quiet --no-copy-tokenizer --no-write-model-card --lazy-unpickle {plan} out > /dev/null 2>&1"
)
MOST_RSS = 700e6


def merges(
    method: str, about: str, inputs: tuple[str, ...], times: float, near: float | None = None, *, once: bool = False
) -> Row:
    """A merge of whole models: against mergekit, and where it is to be `near` so many times that, reading its inputs
    and writing as many bytes. `once`: mergekit takes minutes."""
    sides = {UNPROVEN: MERGE, "mergekit": MERGEKIT_YAML}
    more: tuple[Target, ...] = ()
    if near is not None:
        read = " ".join(f"{name}/model.safetensors" for name in inputs)
        sides = {"floor": f"cat {read} > /dev/null && mkdir out && cp base/model.safetensors out/copy"} | sides
        more = (Target("wall_s", UNPROVEN, per="floor", at_most=near),)
    return Row(
        method.replace("_", " "),
        about,
        sides,
        (
            Target("wall_s", "mergekit", per=UNPROVEN, at_least=times),
            Target("cpu_s", "mergekit", per=UNPROVEN),
            Target("rss_bytes", UNPROVEN, at_most=MOST_RSS),
            *more,
        ),
        inputs=inputs,
        plan=f"merge_{method}.yml",
        disk_bytes=14e9,
        once=("mergekit",) if once else (),
    )


def counted(models: tuple[str, ...]) -> str:
    """A ties merge of so many models."""
    parts = ", ".join(f"{{{{model: {name}, parameters: {{{{weight: 0.5, density: 0.5}}}}}}}}" for name in models)
    config = f"{{{{merge_method: ties, base_model: base, models: [{parts}], dtype: bfloat16}}}}"
    return f"echo '{config}' > config.yml && " + MERGE.format(ours="{ours}", plan="config.yml")


SIX = (*FOUR, "fourth", "fifth")

MERGES = Suite(
    about="Merges by the configurations of mergekit, in bounded memory: against mergekit and plain copies.",
    inputs=MODELS
    | {
        name: f"make_llama.py --size {{size}} --base base --seed {seed}"
        for seed, name in enumerate(("third", "fourth", "fifth"), 3)
    }
    | {"hundred": "hundred.py"},
    rows=(
        merges("ties", "three models, density 0.5", FOUR, 10, 2.5, once=True),
        merges("della_linear", "three models, density 0.5, epsilon 0.1", FOUR, 8, once=True),
        merges("breadcrumbs_ties", "three models, density 0.9, gamma 0.01", FOUR, 8, once=True),
        merges("sce", "three models, half of the elements", FOUR, 8, once=True),
        merges("model_stock", "three models", FOUR, 8, once=True),
        merges("karcher", "three models", FOUR[:3], 8, once=True),
        merges("slerp", "two models", FOUR[:2], 5),
        merges("linear", "three models", FOUR[:3], 5),
        merges("passthrough", "the layers of 1b from three models: bytes that only move", FOUR[:3], 5, 1.3),
        Row(
            "number of models",
            "ties of two and of five models of 160m",
            {"two": counted(SIX[1:3]), "five": counted(SIX[1:])},
            (
                *(Target("rss_bytes", side, at_most=MOST_RSS) for side in ("two", "five")),
                Target("rss_bytes", "five", per="two"),
            ),
            inputs=SIX,
            size="160m",
            disk_bytes=3e9,
        ),
        Row(
            "hundred merges",
            "five configurations of every method, of tiny models, by one start",
            {
                "ours": "{ours} merge --quiet --json --no-sync --no-receipt hundred/*.yml out > told.txt"
                " && {hundred} told.txt --told"
            },
            (
                Target("compilations_per_method", "ours", at_most=2),
                Target("num_merges", "ours", at_least=100, at_most=100),
                Target("wall_s", "ours"),
            ),
            inputs=("base", "first", "second", "hundred"),
            size="tiny",
        ),
    ),
)

_AT_PLACES = "-- {ours} run --quiet --json --memory 1GiB {plan}"
_SLOW = "{with_s3} --latency 0.02 "

PLACES = Suite(
    "object stores, by a local server that speaks S3; times have its start and end in them",
    {
        "base": MODELS["base"],
        "tiny": MODELS["tiny"],
        "shards": "make_shards.py",
    },
    (
        Row(
            "rename at a store",
            "every tensor under another name, from s3 to s3, and a tuned transfer of the same bytes",
            {
                "ours": "{with_s3} " + _AT_PLACES,
                "ours, tiny": "{with_s3} " + _AT_PLACES + input_of("s3://bucket/tiny", 0, "model"),
                "boto3": "{with_s3} -- {with_boto3} base/model.safetensors out/model.safetensors",
                "boto3, tiny": "{with_s3} -- {with_boto3} tiny/model.safetensors out/model.safetensors",
            },
            (
                Target("wall_s", "ours", less="ours, tiny", per="boto3", per_less="boto3, tiny", at_most=1 / 0.9),
                Target("wall_s", "ours", per="boto3"),
                Target("rss_bytes", "ours", at_most=2**30 + 300e6),
                Target("rss_bytes", "boto3"),
            ),
            inputs=("base", "tiny"),
            plan="rename_places.yaml",
        ),
        Row(
            "headers",
            "those of 100 shards of 100 tensors, each request 20 ms",
            {
                "ours": _SLOW + "-- {ours} inspect --json s3://bucket/shards",
                "ours, on the disk": "{with_s3} -- {ours} inspect --json shards",
            },
            (Target("wall_s", "ours", at_most=2.0, less="ours, on the disk"), Target("wall_s", "ours")),
            inputs=("shards",),
        ),
        Row(
            "failures",
            "the same renaming, each request 20 ms, and one of a hundred fails",
            {"ours": _SLOW + "--failing 0.01 " + _AT_PLACES, "ours, no failures": _SLOW + _AT_PLACES},
            (Target("wall_s", "ours", per="ours, no failures", at_most=1 / 0.8),),
            inputs=("base",),
            plan="rename_places.yaml",
        ),
    ),
)

SUITES = {
    "storage": STORAGE,
    "batch": BATCH,
    "bulk": BULK,
    "orbax": ORBAX,
    "lowrank": LOW_RANK,
    "upcycle": UPCYCLE,
    "digests": DIGESTS,
    "merges": MERGES,
    "places": PLACES,
}


def guarded(baseline: str, tiny: str, plan: str, *inputs: str) -> Row:
    """One comparison of the guard: the engine beyond its start-up, measured on a tiny model, against a baseline."""
    sides = {"baseline": baseline, "ours": OURS_NO_SYNC, "ours, tiny": OURS_NO_SYNC + tiny}
    target = Target("wall_s", "ours", less="ours, tiny", per="baseline")
    return Row(plan.removesuffix(".yaml"), "", sides, (target,), inputs=("tiny", *inputs), plan=plan)


GUARD = Suite(
    about="A few comparisons that are quick enough for every change.",
    inputs={name: line.replace("--size {size}", "--size 160m --layers 4") for name, line in MODELS.items()},
    rows=(
        guarded(COPY, input_of("tiny"), "rename.yaml", "base"),
        guarded(COPY, input_of("tiny"), "upcycle.yaml", "base"),
        guarded(COPY, input_of("tiny"), "cast.yaml", "base"),
        guarded(f"{READ_THREE} && {COPY}", TINY_TRIPLE, "task_arithmetic.yaml", "base", "first", "second"),
        guarded(READ_TWO, TINY_PAIR, "equal.yaml", "base", "same"),
    ),
)
