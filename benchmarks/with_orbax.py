"""What a program of its own does with Orbax, as the other side of a comparison.

    with_orbax.py OUT save FILE [--plain] [--compression none] [--mesh]   safetensors to Orbax
    with_orbax.py OUT ours FILE             the same by surgery_jax, as an input of others
    with_orbax.py OUT export CHECKPOINT     Orbax to safetensors: OUT/model.safetensors
    with_orbax.py OUT load CHECKPOINT       onto a mesh of 8 devices; writes nothing

`save` writes what `ocp.save` writes by default: OCDBT, zarr 3, zstd. With `--plain` there is no OCDBT. With `--mesh`
the arrays are those of 8 devices, cut along their leading axis. `load` prints how long loading took as JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEVICES = 8


def on_devices(count: int) -> Any:
    """JAX on so many simulated devices."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
    import jax

    return jax


def nested(tensors: dict[str, Any]) -> dict[str, Any]:
    """Names with dots as nested dictionaries."""
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *keys, last = name.split(".")
        node = tree
        for key in keys:
            node = node.setdefault(key, {})
        node[last] = array
    return tree


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The opposite."""
    for key, node in tree.items():
        if isinstance(node, dict):
            yield from flat(node, f"{prefix}{key}.")
        else:
            yield prefix + key, node


def sharding(jax: Any, shape: tuple[int, ...]) -> Any:
    """The leading axis over all devices, where it can be cut."""
    mesh = jax.make_mesh((DEVICES,), ("x",))
    axes = ("x",) if shape and shape[0] % DEVICES == 0 else ()
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def save(file: Path, out: Path, plain: bool, compression: str, mesh: bool) -> None:
    """Load with safetensors, save with Orbax."""
    jax = on_devices(DEVICES if mesh else 1)
    from orbax.checkpoint import v1 as ocp
    from safetensors.flax import load_file

    tensors = load_file(file)
    if mesh:
        tensors = {name: jax.device_put(array, sharding(jax, array.shape)) for name, array in tensors.items()}
    context = ocp.Context()
    context.array.saving.use_ocdbt = not plain
    context.array.saving.use_compression = compression == "zstd"
    with context:
        ocp.save(out.absolute(), nested(tensors))


def ours(file: Path, out: Path) -> None:
    """Convert with surgery_jax."""
    import surgery_jax

    surgery_jax.convert(file, out, format="orbax")


def export(checkpoint: Path, out: Path) -> None:
    """Load with Orbax, save with safetensors."""
    on_devices(1)
    from orbax.checkpoint import v1 as ocp
    from safetensors.flax import save_file

    tensors = dict(flat(ocp.load(checkpoint.absolute())))
    out.mkdir(exist_ok=True)
    save_file(tensors, out / "model.safetensors")


def load(checkpoint: Path) -> None:
    """Load onto a mesh; only that is timed."""
    jax = on_devices(DEVICES)
    from orbax.checkpoint import v1 as ocp

    logging.disable()
    warnings.simplefilter("ignore")
    found = ocp.metadata(checkpoint.absolute()).metadata
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(jax, leaf.shape)), found
    )
    began = time.perf_counter()
    jax.block_until_ready(ocp.load(checkpoint.absolute(), abstract))
    print(json.dumps({"stream_s": time.perf_counter() - began}))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("what", choices=("save", "ours", "export", "load"))
    parser.add_argument("source", type=Path)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--compression", choices=("zstd", "none"), default="zstd")
    parser.add_argument("--mesh", action="store_true")
    options = parser.parse_args()
    if options.what == "save":
        save(options.source, options.out, options.plain, options.compression, options.mesh)
    elif options.what == "ours":
        ours(options.source, options.out)
    elif options.what == "export":
        export(options.source, options.out)
    else:
        load(options.source)


if __name__ == "__main__":
    main()
