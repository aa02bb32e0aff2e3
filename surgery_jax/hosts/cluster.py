"""Who takes part in a run: the options say it, or JAX finds out, which knows Slurm, Cloud TPU and others.

Only that is asked of JAX. Its distributed runtime is not started: that ends every process on the spot when the first
one dies, without a chance to say why and to remove what was half written. JAX computes in every process as if it were
alone, on the devices of that process. `meeting` and `peers` have what goes on between the processes.

Where JAX keeps its knowledge of clusters is not part of its public interface; only this module uses it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..core.errors import PlanError
from ..execute.options import Options
from .arriving import arrive
from .gathering import gather
from .meeting import MeetingPlace, Patience
from .peers import ALONE, Peers, Star

__all__ = ["check_options", "join"]

SECRET = "SURGERY_JAX_SECRET"


def check_options(options: Options) -> None:
    """Whether the options say which processes take part.

    Raises:
        PlanError: they do not.
    """
    if not 0 < options.join_timeout < float("inf"):
        raise PlanError(
            "not a time to wait for the other processes",
            expected="--join-timeout SECONDS, more than 0",
            found=f"{options.join_timeout:g}",
        )
    given = {
        "--coordinator": options.coordinator,
        "--num-processes": options.num_processes,
        "--process-id": options.process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if not options.distributed:
        present = ", ".join(name for name in given if name not in missing)
        raise PlanError(f"{present} without --distributed", hint="add --distributed to run on several processes")
    if missing:
        raise PlanError(
            "the processes are not known",
            expected="--coordinator, --num-processes and --process-id together, or none of them in a known cluster",
            found=f"no {' and no '.join(missing)}",
        )
    assert options.coordinator is not None and options.num_processes is not None and options.process_id is not None
    _split(options.coordinator)
    if options.num_processes < 1 or not 0 <= options.process_id < options.num_processes:
        raise PlanError(
            f"no process {options.process_id} of {options.num_processes}",
            expected="--process-id from 0 to one less than --num-processes",
        )


def _split(address: str) -> tuple[str, int]:
    """Host and port of an address.

    Raises:
        PlanError: it is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise PlanError(
            f"not an address: {address!r}",
            expected="--coordinator HOST:PORT, where process 0 can be reached, such as 10.0.0.1:8476",
        )
    return host.strip("[]"), int(port)


def join(options: Options, notify: Callable[[str], None] | None = None) -> AbstractContextManager[Peers]:
    """The processes of this run, connected; this one alone if the run is not distributed. While others are missing,
    `notify` gets a line now and then that says which.

    Raises:
        PlanError: the options are wrong, or no cluster was found.
        StorageError: not all processes came.
    """
    check_options(options)
    if not options.distributed:
        return nullcontext(ALONE)
    place = _place(options)
    return meet(place, Patience(place, options.join_timeout, notify))


def meet(place: MeetingPlace, patience: Patience) -> Star:
    """Connect the processes of a run.

    Raises:
        SurgeryError: not all came, or one that came is gone.
    """
    if place.rank:
        return Star(place.rank, place.size, {0: arrive(place, patience)}, {0: place.host})
    return Star(0, place.size, *gather(place, patience))


def _place(options: Options) -> MeetingPlace:
    """Which process this is, and where the others are met.

    Raises:
        PlanError: neither the options say it nor a cluster.
    """
    (address, size, rank, devices), trouble = _found(options)
    if address is None or size is None or rank is None:
        lacks = {"address of process 0": address, "number of processes": size, "id of this one": rank}
        raise PlanError(
            "no cluster was found that says which processes take part",
            expected="Slurm, Cloud TPU, Open MPI or Kubernetes, as JAX knows them",
            found=trouble or "no " + ", no ".join(name for name, value in lacks.items() if value is None),
            hint="name the processes: --coordinator HOST:PORT --num-processes N --process-id I",
        )
    if devices:  # one process for each device of a host, as the cluster started them
        import jax

        config: Any = jax.config
        for kind in ("cuda", "rocm"):
            config.update(f"jax_{kind}_visible_devices", ",".join(map(str, devices)))
    return MeetingPlace(rank, size, *_split(address), os.fsencode(os.environ.get(SECRET, "")))


Found = tuple[str | None, int | None, int | None, Sequence[int] | None]


def _found(options: Options) -> tuple[Found, str | None]:
    """Address, number and id, as given or as JAX finds them; the devices that are this process's on its host; and why
    JAX cannot tell something, if it says."""
    address = options.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    known = address, options.num_processes, options.process_id, None
    local = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    with warnings.catch_warnings(record=True) as said:
        try:
            from jax._src.clusters import ClusterEnv

            asked = (*known[:3], list(map(int, local.split(","))) if local else None)
            found = ClusterEnv.auto_detect_unset_distributed_params(*asked, None, max(1, round(options.join_timeout)))
        except Exception as error:  # of the cluster's own client, or JAX keeps its knowledge elsewhere
            return known, (str(error).strip().splitlines() or [type(error).__name__])[0]
    return found, " ".join(str(said[0].message).split())[:300] if said else None
