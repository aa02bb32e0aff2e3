"""`surgery-jax merge`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..command import (
    BUDGETS,
    CLUSTER,
    CONFIG_CHECK,
    JSON,
    OVERWRITE,
    PROOF,
    QUIET,
    RESUME,
    REUSE,
    SYNC,
    Argument,
    Command,
    options_of,
    whole,
)
from ..streams import emit, note
from .run import tell_report

if TYPE_CHECKING:
    from ...compile.functions import Functions
    from ...execute.options import Options
    from ...execute.report import Report
    from ...hosts.peers import Peers
    from ...mergekit.options import MergeOptions


def _kmb(word: str) -> str:
    """A size as mergekit spells it (K, M and B are powers of 1000), as plans do."""
    from ...core.errors import PlanError

    number, unit = (word[:-1], word[-1].upper()) if word[-1:].isalpha() else (word, "")
    if not number.isdecimal() or int(number) == 0 or unit not in ("", *"KMB"):
        raise PlanError(f"{word!r} is no size", expected="bytes, such as 5B (5 GB), 500M or 40K")
    return f"{int(number) * {'': 1, 'K': 10**3, 'M': 10**6, 'B': 10**9}[unit]}B"


def _ignored(why: str, *names: str, takes: str = "", negated: bool = False, short: str = "") -> list[Argument]:
    """Flags of mergekit that change nothing here."""
    return [Argument(name, f"accepted, changes nothing: {why}", takes, negated=negated, short=short) for name in names]


def _floating(word: str) -> str:
    from ...core.dtypes import BY_NAME
    from ...core.errors import PlanError

    found = BY_NAME.get(word.removeprefix("torch."))
    if found is None or not found.is_float:
        raise PlanError(f"{word!r} is no floating dtype", expected="float32, bfloat16 or float16")
    return found.name


def _no_option(word: str) -> str:
    """Refuse mergekit-multi's way to name the output.

    Raises:
        PlanError: always.
    """
    from ...core.errors import PlanError

    raise PlanError("the output has no option", expected=f"it as the last word: surgery-jax merge CONFIG {word}")


class MergeCommand(Command):
    """Merge models as a configuration of mergekit says, into a directory.

    The file is one of mergekit-yaml, mergekit-multi, mergekit-pytorch or mergekit-moe, unchanged; its content tells
    which. Several configurations share one start and what it compiles; each goes to a directory in OUTPUT that has
    the name of its file.
    """

    name = "merge"
    arguments = (
        Argument(
            "config", "the configuration; of several each is a merge by itself", "CONFIG", completes="file", many=True
        ),
        Argument(
            "out", "directory to write; for several configurations, one in it for each", "OUTPUT", completes="file"
        ),
        Argument("--print-plan", "print the plan that the configuration becomes, which runs by itself; merge nothing"),
        Argument(
            "--copy-tokenizer", "copy the tokenizer of the base or first model (default)", default=True, negated=True
        ),
        Argument("--write-model-card", "write README.md and the configuration (default)", default=True, negated=True),
        Argument(
            "--out-shard-size", "largest shard in bytes, such as 5B, 500M or 40K (default 5GB)", "SIZE", parse=_kmb
        ),
        Argument("--random-seed", "of random masks and routers (default 0)", "NUMBER", parse=whole),
        Argument("--allow-crimes", "merge models of different architectures", negated=True),
        Argument(
            "--unsafe-truncate-embeddings", "cut vocabularies to the smallest, by number of the token", negated=True
        ),
        Argument("--tensor-intersection", "of files, merge the tensors that all have", short="-i"),
        Argument("--tensor-union", "of files, merge every tensor from those that have it", short="-u"),
        Argument(
            "--lora-merge-dtype", "cast models to this before adapters are applied to them", "DTYPE", parse=_floating
        ),
        Argument(
            "--safe-serialization", "write safetensors (default); otherwise files of torch", default=True, negated=True
        ),
        Argument(
            "--gates", "a file with the vectors of prompts, from scripts/gate_vectors.py", "FILE", completes="file"
        ),
        Argument("--i-understand-this-is-not-useful-without-training", "allow experts that are all alike"),
        OVERWRITE,
        CONFIG_CHECK,
        *BUDGETS,
        SYNC,
        RESUME,
        REUSE,
        *PROOF,
        *CLUSTER,
        replace(QUIET, negated=True),
        JSON,
        Argument("--out-path", "refused: OUTPUT is the last word", "PATH", parse=_no_option),
        *_ignored("adapters are applied while the plan runs", "--lora-merge-cache", takes="DIR"),
        *_ignored("models are read from the disk", "--transformers-cache", takes="DIR"),
        *_ignored("models run no code", "--trust-remote-code", negated=True),
        *_ignored("JAX chooses the device", "--device", takes="DEVICE"),
        *_ignored("JAX chooses the device", "--cuda", "--read-to-gpu", "--multi-gpu", "--low-cpu-memory", negated=True),
        *_ignored("JAX chooses the device", "--gpu-rich"),
        *_ignored("tensors are streamed", "--lazy-unpickle", "--clone-tensors", "--async-write", negated=True),
        *_ignored("--workers says how many threads there are", "--write-threads", takes="N"),
        *_ignored("--workers says how many threads there are", "--num-threads", takes="N", short="-j"),
        *_ignored("what is between exists only while it runs", "--intermediate-dir", takes="DIR", short="-I"),
        *_ignored("what is between exists only while it runs", "--lazy", negated=True),
        *_ignored("hidden states come from scripts/gate_vectors.py", "--load-in-4bit", "--load-in-8bit"),
        *_ignored("--json tells all there is to tell", "-v"),
    )

    def run(self, args: Namespace) -> int:
        from ...api import join, merge_plan
        from ...compile.functions import Functions
        from ...language.writing import plan_text
        from ..failures import warn

        places = _places(args)
        if args.print_plan:
            plan, notices = merge_plan(args.config[0], args.out, _merge_options(args))
            warn(notices)
            emit(plan_text(plan), end="")
            return 0
        options, functions = options_of(args), Functions()
        with join(options, note) as peers:
            if len(places) == 1:
                report = _merged(args.config[0], args.out, args, options, peers, functions)
                return _tell(report, args) if peers.rank == 0 else 0
            return _all(places, args, options, peers, functions)


def _places(args: Namespace) -> dict[str, str]:
    """Where the merge of each configuration goes: to the directory that is named, or where there are several to one in
    it with the name of the file.

    Raises:
        PlanError: two go to one place, or there are several where there can be one only.
    """
    from ...core.errors import PlanError

    if len(args.config) == 1:
        return {args.config[0]: args.out}
    for word, value in (("--print-plan", args.print_plan), ("--receipt", args.receipt)):
        if value:
            raise PlanError(f"{word} is for one configuration", found=f"{len(args.config)} configurations")
    found: dict[str, str] = {}
    for config in args.config:
        place = str(Path(args.out) / Path(config).stem)
        other = next((known for known, taken in found.items() if taken == place), None)
        if other is not None:
            raise PlanError(f"{other} and {config} would both be written to {place}", hint="rename one of the files")
        found[config] = place
    return found


def _merged(config: str, out: str, args: Namespace, options: Options, peers: Peers, functions: Functions) -> Report:
    """The report of one merge; what is ignored of its configuration is told."""
    from ...api import merge_plan, run
    from ...mergekit.plans import each_once
    from ..failures import warn
    from ..progress import shown

    plan, notices = merge_plan(config, out, _merge_options(args))
    if peers.rank == 0:
        warn(notices)
    with shown(args.quiet or peers.rank > 0) as display, each_once():
        return run(plan, options, progress=display, peers=peers, functions=functions)


def _tell(report: Report, args: Namespace) -> int:
    """Tell what was done, and give the exit code."""
    from ..failures import warn

    warn(report.warnings)
    tell_report(report, args)
    return 0


def _all(places: Mapping[str, str], args: Namespace, options: Options, peers: Peers, functions: Functions) -> int:
    """One merge after the other, each for itself: one that fails is told, and the others go on. The exit code is that
    of the first that failed."""
    from ...core.errors import SurgeryError
    from ..failures import report as failed

    code = 0
    for config, out in places.items():
        try:
            done = _merged(config, out, args, options, peers, functions)
        except SurgeryError as error:
            if peers.size > 1:  # the others may be elsewhere
                raise
            found = failed(error, as_json=args.json)
            code = code or found
            continue
        if peers.rank == 0:
            _tell(done, args)
    return code


def _merge_options(args: Namespace) -> MergeOptions:
    """What the words of mergekit ask for."""
    from ...core.errors import PlanError
    from ...mergekit.options import MergeOptions

    if args.tensor_union and args.tensor_intersection:
        raise PlanError("--tensor-union and --tensor-intersection at once", hint="leave one out")
    tensors = "union" if args.tensor_union else "intersection" if args.tensor_intersection else "all"
    return MergeOptions(
        copy_tokenizer=args.copy_tokenizer,
        model_card=args.write_model_card,
        allow_crimes=bool(args.allow_crimes),
        truncate=bool(args.unsafe_truncate_embeddings),
        tensors=tensors,
        allow_same=args.i_understand_this_is_not_useful_without_training,
        gates=args.gates,
        shard=args.out_shard_size,
        seed=args.random_seed,
        lora_dtype=args.lora_merge_dtype,
        format=None if args.safe_serialization else "torch",
    )
