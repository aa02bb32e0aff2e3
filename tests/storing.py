"""Helpers of the storage tests: tensors as bytes, and writing as the engine does it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.core.ranges import ranges
from surgery_jax.core.specs import Spec
from surgery_jax.storage.base import Entry, Layout
from surgery_jax.storage.commits import commit_all
from surgery_jax.storage.formats import OutputPlan, resolve_output
from surgery_jax.storage.publish import Staging, check_space, check_target

Tensors = Mapping[str, tuple[Spec, bytes]]


def spec(dtype: str, *shape: int) -> Spec:
    return Spec(shape, BY_NAME[dtype])


def sample(dtype: str, *shape: int) -> tuple[Spec, bytes]:
    """A tensor of every bit pattern that its dtype allows."""
    made = spec(dtype, *shape)
    seed = sum(dtype.encode()) + sum(shape)
    top = 2 if dtype == "bool" else 256
    return made, np.random.default_rng(seed).integers(0, top, made.nbytes, dtype=np.uint8).tobytes()


def fill(staging: Staging, layout: Layout, tensors: Tensors) -> None:
    for name, (file, offset) in layout.places.items():
        data, at = tensors[name][1], 0
        for number, place, count in ranges(file, offset, layout.rest.get(name, ()), 0, len(data)):
            put(staging, number, data[at : at + count], place)
            at += count


def put(staging: Staging, number: int, data: bytes, offset: int) -> None:
    """Write bytes to a file of an output."""
    with Path(staging.place(number)).open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def write(
    plan: OutputPlan | str | Path,
    tensors: Tensors,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    shard: str | None = None,
) -> Layout:
    """Check, stage, fill and commit one output."""
    if not isinstance(plan, OutputPlan):
        plan = resolve_output(str(plan), None, shard, "5GB")
    check_target(plan, overwrite)
    layout = plan.layout([(name, made) for name, (made, _) in tensors.items()], metadata or {})
    check_space([(plan, layout)])
    staging = Staging(plan, layout)
    try:
        fill(staging, layout, tensors)
        commit_all([staging], sync=False)
    finally:
        staging.abort()
    return layout


def bytes_of(entry: Entry) -> bytes:
    """The bytes of a tensor, from its place in the file or its loader."""
    if entry.extent is not None:
        parts = []
        for path, offset, nbytes in entry.extent.ranges(0, entry.spec.nbytes):
            with Path(path).open("rb") as stream:
                stream.seek(offset)
                parts.append(stream.read(nbytes))
        return b"".join(parts)
    array = entry.read()
    assert array.shape == entry.spec.shape
    assert array.dtype == entry.spec.dtype.numpy
    assert array.flags.c_contiguous
    return array.tobytes()


def tree(root: Path) -> dict[str, bytes | None]:
    """All that lies under a directory: the content of files, None for directories."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))
    }
