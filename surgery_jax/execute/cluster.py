"""How the processes of a run find each other: by JAX's distributed runtime, which knows Slurm, Cloud TPU and others.

JAX's runtime is used to meet, and left before the work begins: it ends every process on the spot when the first one
dies, without a chance to say why and to remove what was half written. JAX then computes in every process as if it were
alone, on the devices of that process. `peers` has what goes on between the processes.

Where JAX keeps the client of its key-value store is not part of its public interface; only this module uses it.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ..core.errors import PlanError, StorageError
from .options import Options
from .peers import ALONE, ARRIVAL_S, Peers, Star, listen

__all__ = ["check_options", "join"]

KEY = "surgery_jax/star"


def check_options(options: Options) -> None:
    """Whether the options say which processes take part.

    Raises:
        PlanError: they do not.
    """
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
    host, _, port = options.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise PlanError(
            f"not an address: {options.coordinator!r}",
            expected="--coordinator HOST:PORT, where process 0 can be reached, such as 10.0.0.1:8476",
        )
    if options.num_processes < 1 or not 0 <= options.process_id < options.num_processes:
        raise PlanError(
            f"no process {options.process_id} of {options.num_processes}",
            expected="--process-id from 0 to one less than --num-processes",
        )


def join(options: Options) -> AbstractContextManager[Peers]:
    """The processes of this run, connected; this one alone if the run is not distributed.

    Raises:
        PlanError: the options are wrong, or no cluster was found.
        StorageError: not all processes came.
    """
    check_options(options)
    return _meet(options) if options.distributed else nullcontext(ALONE)


def _meet(options: Options) -> Star:
    import jax

    config: Any = jax.config
    config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    server = None
    try:
        with _deadline(options):
            jax.distributed.initialize(
                options.coordinator, options.num_processes, options.process_id, initialization_timeout=2 * ARRIVAL_S
            )
        state = _state()
        rank, size = state.process_id, state.num_processes
        host, _, port = state.coordinator_address.rpartition(":")
        host = host.strip("[]")
        if rank == 0:
            server = listen(host)
            state.client.key_value_set(KEY, f"{server.getsockname()[1]} {secrets.token_hex(16)}")
        port, secret = state.client.blocking_key_value_get(KEY, ARRIVAL_S * 1000).split()
        jax.distributed.shutdown()  # type: ignore[no-untyped-call]
        state.process_id, state.num_processes = 0, 1  # JAX takes what it finds for its own, under its own numbers
        return Star(rank, size, secret, server or (host, int(port)))
    except ValueError:
        raise PlanError(
            "no cluster was found",
            expected="Slurm, Cloud TPU, or another one that jax.distributed knows",
            hint="name the processes: --coordinator HOST:PORT --num-processes N --process-id I",
        ) from None
    except (RuntimeError, OSError) as error:
        text = (str(error).strip().splitlines() or ["no message"])[0]
        raise StorageError("the processes did not come together", found=text) from None
    finally:
        if server is not None:
            server.close()


@contextmanager
def _deadline(options: Options) -> Iterator[None]:
    """End this process with a message if the others do not come: nothing has been made yet, and JAX would wait in
    something that nothing interrupts and then abort."""

    def end() -> None:
        asked = f" of {options.num_processes}" if options.num_processes else ""
        where = f" at {options.coordinator}" if options.coordinator else ""
        sys.stderr.write(f"error: not all processes{asked} came together{where} within {ARRIVAL_S} seconds\n")
        sys.stderr.flush()
        os._exit(StorageError.exit_code)

    timer = threading.Timer(ARRIVAL_S, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _state() -> Any:
    """JAX's account of its distributed runtime.

    Raises:
        StorageError: this version of JAX keeps it elsewhere.
    """
    try:
        from jax._src import distributed

        state: Any = distributed.global_state
        _ = state.client.key_value_set, state.client.blocking_key_value_get
    except (ImportError, AttributeError):
        import jax

        raise StorageError(
            "this version of JAX is not known to coordinate processes", found=f"jax {jax.__version__}"
        ) from None
    return state
