"""Damaged inputs: what others wrote, changed in a few places, must be read, or refused with one clear error."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .forgeries import forge
from .harness import MEMORY, Answer, Mode, Point, Server
from .mutations import MUTATIONS
from .scenes import DOCUMENTS, batch, model, plan, tensors

__all__ = ["KINDS", "Mutant", "Mutants", "faults_of", "seeds"]

ANSWERS = ("verify", "replay")  # commands whose exit code 1 says that something differs, on stdout
PROOFS, SPARE = ("receipt", "signed", "stage"), "spare"  # folders of what proves something, and of other runs
CPU_S = 30.0  # that no small input may take


PARAMETERS = r"""
params:
  source: { type: path, default: model, help: what is changed }
  output: { type: path, default: out, help: where the result goes }
  copies: { type: int, default: 2, min: 1, max: 9 }
  kinds: { type: list of str, default: [weight, bias] }
  kept: { type: choice, values: [all, none], default: all }
  factor: { type: float, default: '${1 / sqrt(config.hidden_size)}' }
inputs: [ 'model::${source}' ]
table: { a: 0.5, b: 0.25 }
transforms:
  - foreach:
      'name, by': '${table}'
      do:
        - foreach:
            n: '${range(copies)}'
            do:
              - scale: { from: '${name}\.(weight)', to: 'copy.${n}.${name}.\1', by: '${by * factor + n}' }
  - foreach:
      name: { match: 'model::(.)\.weight' }
      do: [ scale_: { target: '${name}\.weight', by: '${table[name]}' } ]
  - when: kept == 'none' and len(kinds) > 1
    delete: { target: 'big' }
  - include: { path: part.yaml, with: { stop: '${copies - 1}' } }
output: { shard: 1MB }
"""
PART = r"""
params: { stop: { type: int } }
transforms:
  - foreach: { n: '${[i for i in range(stop) if i % 2 == 0]}', do: [ delete: { target: 'copy\.${n}\.a\.weight' } ] }
"""
VALUES = r"""
copies: 3
kinds: [ weight ]
factor: 2.5
"""
VERBS = r"""
inputs: [ "model::model", "other::other" ]
transforms:
  - compute: { from: { w: 'model::(.)\.(weight)' }, to: 'model::made.\1.\2', value: 'w * 0.5 + 1' }
  - add_: { from: 'other::(a\..+)', to: 'model::\1' }
  - reshape: { from: 'model::b\.weight', to: 'model::flat', shape: [2048] }
  - copy: { from: 'model::a.weight::[:4, ::2]', to: 'model::part' }
  - prefixes: { mode: rename, from: other, to: second }
  - assert: { all: [ { shape: { of: 'model::flat', is: [2048] } }, { dtype: { of: 'model::.+', is: float32 } } ] }
  - delete: { target: 'second::.+' }
output: { path: out, shard: 1MB }
"""
MERGE = r"""
inputs: [ "model::model", "adapter::adapter" ]
transforms:
  - lora_merge: { adapters: { adapter: 0.7 }, to: model }
output: out.safetensors
"""
KIT = r"""
merge_method: task_arithmetic
base_model: model
models:
  - model: other
    parameters: { weight: [ 0.1, 0.9 ], density: 1.0 }
  - model: { model: model, override_architecture: null }
    parameters: { weight: [ { filter: bias, value: 0.2 }, { value: 0.5 } ] }
parameters: { lambda: 0.7 }
dtype: float32
out_dtype: float16
"""
PROVEN = r"""
inputs: [ "model::model" ]
transforms:
  - scale_: { target: 'a\.weight', by: 0.5 }
  - assert: { norm: { of: 'b\.weight', ge: 0 } }
output: { path: out, shard: 1MB }
"""


PIECEMEAL = ("run", "plan.yaml", "--no-summary", "--no-sync", "--no-config-check", "--memory", "3MiB", "--workers", "1")


class Seed(NamedTuple):
    """A folder, and a command that reads what is in it. With `stopped` that goes on with a run which was killed at that
    call, and what is damaged is what this has left."""

    folder: Path
    command: tuple[str, ...]
    stopped: int = 0


def seeds(root: Path, server: Server, kinds: Collection[str] = ()) -> list[Seed]:
    """Inputs in folders of their own, with the commands that read each: of these kinds, or of all."""
    found = [seed for kind, build in KINDS.items() if not kinds or kind in kinds for seed in build(root, server)]
    if any(seed.folder.name in PROOFS for seed in found):
        _spare(root / SPARE, server)
    return found


def _spare(folder: Path, server: Server) -> None:
    """What other runs have made and left: proofs of another output, and journals of another plan."""
    folder.mkdir()
    model(folder, seed=9)
    (folder / "stray").write_text("{}")
    plan(folder, PROVEN.replace("a\\.weight", "b\\.weight"))
    _must(server, folder, "run", "plan.yaml", "--no-summary", "--no-sync", *_signing(folder))
    calls = server.run((*PIECEMEAL, "output.path=other"), folder, Point(Mode.COUNT, 0), log=True).calls
    shutil.rmtree(folder / "other")
    writes = [number for number, name in enumerate(calls, 1) if "write" in name]
    server.run((*PIECEMEAL, "output.path=other"), folder, Point(Mode.KILL_AFTER, writes[len(writes) // 2]))


def _signing(folder: Path) -> tuple[str, ...]:
    """Options for signing with a key that is made here, where the package for keys is there."""
    if find_spec("cryptography") is None:
        return ()
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pem").write_bytes(private)
    (folder / "key.pub").write_bytes(public)
    return ("--sign", "key.pem")


def _formats(root: Path, server: Server) -> list[Seed]:
    """Checkpoints of every format, and an adapter."""
    model(root)
    found: list[Seed] = []
    formats = {
        "file": ("model.safetensors",), "shards": ("model", "--shard-size", "700KB"), "torch": ("model.pt",),
        "flax": ("model.msgpack",), "orbax": ("model", "--format", "orbax"), "dcp": ("model", "--format", "dcp"),
    }  # fmt: skip
    for name, (target, *more) in formats.items():
        folder = root / name
        folder.mkdir()
        _must(server, root, "convert", "model", f"{name}/{target}", *more, "--no-sync", "--no-receipt")
        found.append(Seed(folder, ("inspect", target, "--documents")))
        found.append(Seed(folder, ("convert", target, "out.safetensors", "--no-sync")))
    arrays = root / "arrays"
    arrays.mkdir()
    np.savez_compressed(arrays / "model.npz", **tensors(4))  # type: ignore[arg-type]
    found.append(Seed(arrays, ("inspect", "model.npz")))
    adapter = root / "adapter"
    adapter.mkdir()
    found.append(Seed(_adapter(adapter), ("inspect", "adapter")))
    found.append(Seed(adapter, ("check", "plan.yaml")))
    return found


def _stages(root: Path, server: Server) -> list[Seed]:
    """What runs leave that are killed while they write: a head, journals, and what is built."""
    folder = root / "stage"
    folder.mkdir()
    model(folder)
    plan(folder, PROVEN)
    command = PIECEMEAL
    calls = server.run(command, folder, Point(Mode.COUNT, 0), log=True).calls
    shutil.rmtree(folder / "out")
    writes = [number for number, name in enumerate(calls, 1) if "write" in name]
    return [Seed(folder, (*command, "--resume"), writes[len(writes) * part // 8]) for part in (4, 5, 6)]


def _signatures(root: Path, server: Server) -> list[Seed]:
    """Bundles, where the package for keys is there."""
    folder = root / "signed"
    folder.mkdir()
    model(folder)
    plan(folder, PROVEN)
    signing = _signing(folder)
    if not signing:
        return []
    _must(server, folder, "run", "plan.yaml", "--no-summary", "--no-sync", *signing)
    command = ("verify", "out", "--public-key", "key.pub")
    _must(server, folder, *command)
    return [Seed(folder, command)]


def _receipts(root: Path, server: Server) -> list[Seed]:
    """A receipt and its table, with the checkpoint beside them, and with nothing else that could be damaged instead."""
    folder = root / "receipt"
    folder.mkdir()
    model(folder)
    plan(folder, PROVEN)
    _must(server, folder, "run", "plan.yaml", "--no-summary", "--no-sync")
    commands = [("verify", "out"), ("lineage", "out"), ("replay", "out", "--against", "out"), ("replay", "out")]
    for command in commands:
        _must(server, folder, *command)
    taking = (
        "run",
        "plan.yaml",
        "output.path=again",
        "--reuse",
        "out",
        "--no-summary",
        "--no-sync",
        "--no-config-check",
    )
    return [Seed(folder, command) for command in (*commands, taking)]


def _plans(root: Path, server: Server) -> list[Seed]:
    """Plans, values for their parameters, jobs and records."""
    asked = {
        "parameters": ("check", "plan.yaml", "--params", "values.yaml"), "verbs": ("check", "plan.yaml"),
        "documents": ("check", "plan.yaml"), "jobs": ("batch", "jobs.yaml", "--check"),
        "record": ("batch", "jobs.yaml"), "merge": ("merge", "merge.yaml", "out", "--print-plan"),
    }  # fmt: skip
    for name in asked:
        folder = root / name
        folder.mkdir()
        batch(folder)
    for name, text in (("parameters", PARAMETERS), ("verbs", VERBS), ("documents", DOCUMENTS)):
        plan(root / name, text)
    plan(root / "merge", KIT, "merge.yaml")
    plan(root / "parameters", PART, "part.yaml")
    plan(root / "parameters", VALUES, "values.yaml")
    _must(server, root / "record", "batch", "jobs.yaml")
    found = [Seed(root / name, command) for name, command in asked.items()]
    for folder, command, _ in found:
        _must(server, folder, *command)
    return [*found, Seed(root / "documents", ("run", "plan.yaml", "--no-summary", "--no-sync", "--overwrite"))]


def _must(server: Server, cwd: Path, *command: str) -> None:
    done = server.run(command, cwd)
    assert done.code == 0, done


def _adapter(folder: Path) -> Path:
    from running import write_checkpoint

    given = tensors(5)
    names = {
        "base_model.model.a.lora_A.weight": given["a.weight"][:4],
        "base_model.model.a.lora_B.weight": given["a.weight"][:, :4],
    }
    write_checkpoint(folder / "adapter" / "adapter_model.safetensors", names)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["a"], "rank_pattern": {"a": 4}}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    model(folder)
    plan(folder, MERGE)
    return folder


KINDS: dict[str, Callable[[Path, Server], list[Seed]]] = {
    "formats": _formats, "plans": _plans, "receipts": _receipts, "stages": _stages, "signatures": _signatures,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- mutants


@dataclass(frozen=True)
class Mutant:
    """One damaged input: a folder and the command that reads it."""

    folder: Path
    command: tuple[str, ...]
    kind: str
    what: str
    names: frozenset[str]  # of files before


class Mutants:
    """Damaged inputs, each the same whenever it is made, and each in the same place, which is made anew."""

    def __init__(self, found: list[Seed], place: Path, seed: int, server: Server) -> None:
        self.found = found
        self.server = server
        self.place = place
        self.seed = seed

    def make(self, number: int) -> Mutant:
        """One of them."""
        draw = random.Random(f"{self.seed} {number}")
        folder, command, stopped = self.found[number % len(self.found)]
        if self.place.exists():
            shutil.rmtree(self.place)
        shutil.copytree(folder, self.place)
        if stopped:  # what is left is known by numbers in the file system, which no copy has
            self.server.run(command, self.place, Point(Mode.KILL_AFTER, stopped))
        is_proof = folder.name in PROOFS
        victim = self._victim(draw, is_proof)
        if is_proof and draw.random() < 0.5:
            names = [forge(self.place, victim, folder.parent / SPARE, draw)]
        else:
            names = _mutated(victim, draw)
        told = f"{folder.name} {' '.join(command)}: {victim.name} {'+'.join(names)} (number {number})"
        return Mutant(self.place, command, f"{folder.name} {command[0]}", told, _names(self.place))

    def _victim(self, draw: random.Random, is_proof: bool) -> Path:
        files = [path for path in sorted(self.place.rglob("*")) if path.is_file() and path.stat().st_size]
        files = [path for path in files if ".surgery-" in str(path)] or files
        texts = [path for path in files if path.suffix in (".json", ".yaml", ".done", ".sig")]
        proofs = [path for path in texts if path.name.startswith(("surgery.", "model.sig"))]
        texts = proofs if is_proof and proofs and draw.random() < 0.7 else texts
        return draw.choice(texts if texts and draw.random() < 0.5 + 0.4 * is_proof else files)


def _mutated(victim: Path, draw: random.Random) -> list[str]:
    """Damage the bytes of a file in a few ways, whose names are given."""
    data = victim.read_bytes()
    names = []
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        mutation = draw.choice(MUTATIONS)
        head = data[: 1 << 16] if draw.random() < 0.8 else data  # where formats say what follows
        data = mutation(head, draw) + data[len(head) :] if head else b""
        names.append(mutation.__name__.strip("_"))
    victim.write_bytes(data)
    return names


def _names(place: Path) -> frozenset[str]:
    """All files in and beside a folder, but for the undamaged ones."""
    beside = (path.name for path in place.parent.iterdir())
    return frozenset([*beside, *(str(path.relative_to(place)) for path in place.rglob("*"))])


def _is_kept(name: str, done: Answer) -> bool:
    """Whether a run says that it keeps what it had written, for another to go on."""
    return ".surgery-" in name and "is kept: --resume goes on" in done.stderr


def _is_taken_over(name: str, mutant: Mutant) -> bool:
    """Whether a run has gone on with what another one had left, or cleared it away."""
    return ".surgery-" in name and name in mutant.names


def faults_of(mutant: Mutant, done: Answer) -> list[str]:
    """What is wrong with how a damaged input was taken."""
    wrong = []
    if done.code is None:
        wrong.append("it hangs")
    elif done.code not in (0, 1, 2, 3, 4) or "Traceback" in done.stderr:
        wrong.append(f"exit {done.code}: {done.stderr[-300:]}")
    elif done.code == 1 and mutant.command[0] in ANSWERS:
        pass
    elif done.code and not done.stderr.startswith("error: ") and "failed" not in done.stdout:
        wrong.append(f"exit {done.code} without an error: {done.stderr[-300:]}")
    changed = _names(mutant.folder) ^ mutant.names
    new = {name for name in changed if not _is_kept(name, done) and not _is_taken_over(name, mutant)}
    if done.code and "batch" not in mutant.command and new:  # of a batch, some jobs may be done
        wrong.append(f"exit {done.code}, and it leaves {sorted(new)[:4]}")
    hidden = sorted(name for name in new if ".surgery-" in name)
    if hidden:
        wrong.append(f"it leaves {hidden[:4]}")
    if done.cpu_s > CPU_S:
        wrong.append(f"{done.cpu_s:.0f} s of processor time")
    if done.peak > MEMORY:
        wrong.append(f"{done.peak >> 20} MiB")
    return [f"{mutant.what}: {w}" for w in wrong]
