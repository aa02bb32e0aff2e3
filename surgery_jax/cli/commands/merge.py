"""`surgery-jax merge`."""

from __future__ import annotations

from argparse import Namespace

from ..command import (
    BUDGETS,
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
from ..streams import emit, name_leftovers, note
from ..text import json_text
from .run import account


def _kmb(word: str) -> str:
    """A size as mergekit spells it (K, M and B are powers of 1000), as plans do."""
    number, unit = (word[:-1], word[-1].upper()) if word[-1:].isalpha() else (word, "")
    size = int(number) * {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}[unit] if unit in ("", *"KMB") else 0
    if size <= 0:
        raise ValueError(word)
    return f"{size}B"


def _ignored(why: str, *names: str, takes: str = "", negated: bool = False) -> list[Argument]:
    """Flags of mergekit that change nothing here."""
    return [Argument(name, f"accepted, changes nothing: {why}", takes, negated=negated) for name in names]


class MergeCommand(Command):
    """Merge models as a configuration of mergekit says, into a directory.

    The file is one of mergekit-yaml, mergekit-multi, mergekit-pytorch or mergekit-moe, unchanged; its content tells
    which.
    """

    name = "merge"
    arguments = (
        Argument("config", "the configuration", "CONFIG", completes="file"),
        Argument("out", "directory to write", "OUTPUT", completes="file"),
        Argument("--print-plan", "print the plan that the configuration becomes, which runs by itself; merge nothing"),
        Argument(
            "--copy-tokenizer", "copy the tokenizer of the base or first model (default)", default=True, negated=True
        ),
        Argument("--write-model-card", "write README.md and the configuration (default)", default=True, negated=True),
        Argument(
            "--out-shard-size", "largest shard in bytes, such as 5B, 500M or 40K (default 5GB)", "SIZE", parse=_kmb
        ),
        Argument("--random-seed", "of random masks and routers (default 0)", "N", parse=whole),
        Argument("--allow-crimes", "merge models of different architectures", negated=True),
        Argument(
            "--unsafe-truncate-embeddings", "cut vocabularies to the smallest, by number of the token", negated=True
        ),
        Argument("--tensor-intersection", "of files, merge the tensors that all have"),
        Argument("--tensor-union", "of files, merge every tensor from those that have it"),
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
        QUIET,
        JSON,
        *_ignored(
            "adapters are applied while the plan runs", "--lora-merge-cache", "--lora-merge-dtype", takes="VALUE"
        ),
        *_ignored("models are read from the disk", "--transformers-cache", takes="DIR"),
        *_ignored("models run no code", "--trust-remote-code", negated=True),
        *_ignored("JAX chooses the device", "--device", takes="DEVICE"),
        *_ignored("JAX chooses the device", "--cuda", "--read-to-gpu", "--multi-gpu", "--low-cpu-memory", negated=True),
        *_ignored("JAX chooses the device", "--gpu-rich"),
        *_ignored("tensors are streamed", "--lazy-unpickle", "--clone-tensors", "--async-write", negated=True),
        *_ignored("--workers says how many threads there are", "--write-threads", "--num-threads", takes="N"),
        *_ignored("tensors are always written as safetensors", "--safe-serialization", negated=True),
        *_ignored("--json tells all there is to tell", "-v"),
    )

    def run(self, args: Namespace) -> int:
        from ...api import merge_plan, run
        from ...language.writing import plan_text
        from ...mergekit.options import MergeOptions
        from ...mergekit.plans import each_once
        from ..failures import warn
        from ..progress import shown

        tensors = "union" if args.tensor_union else "intersection" if args.tensor_intersection else "all"
        plan, notices = merge_plan(
            args.config,
            args.out,
            MergeOptions(
                copy_tokenizer=args.copy_tokenizer,
                model_card=args.write_model_card,
                allow_crimes=bool(args.allow_crimes),
                truncate=bool(args.unsafe_truncate_embeddings),
                tensors=tensors,
                allow_same=args.i_understand_this_is_not_useful_without_training,
                gates=args.gates,
                shard=args.out_shard_size,
                seed=args.random_seed,
            ),
        )
        warn(notices)
        if args.print_plan:
            emit(plan_text(plan), end="")
            return 0
        with shown(args.quiet) as display, each_once():
            report = run(plan, options_of(args), progress=display)
        warn(report.warnings)
        if args.json:
            emit(json_text(report.as_json()))
        else:
            name_leftovers(report.leftovers)
            if not args.quiet:
                note(account(report))
        return 0
