"""How a plan is run: budgets, workers, what to do with what is there already."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import parse_size
from ..io.needs import UNLIMITED
from .reservations import Limits, default_workers

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """How a plan is run.

    memory: budget of host buffers, a size such as `2GiB`. workers: threads; 0 means as many as suit the machine.
    shard_size: largest shard of a directory whose plan names none. overwrite: replace existing outputs.
    config_check: refuse outputs whose `config.json` contradicts their tensors. sync: bring the outputs to the disk
    before they are published. devices: use only the first so many; 0 means all. profile: folder for
    traces of the run. device_memory: budget of every device, a size or `none`. distributed: share the work with the
    other processes of a cluster; where JAX cannot tell which these are, coordinator (`HOST:PORT`), num_processes and
    process_id do. join_timeout: seconds within which all must have come together. resume: go on with what a run of the
    same plan on the same inputs has finished of the same outputs. receipt: write one beside every output that is a
    directory; receipt_path: also that of the plan's output, whatever it is, to this file. digest: the hash
    of tensors, `blake3` or `sha256`; `none` leaves them out, and `auto` is BLAKE3, or SHA-256 where its package is not
    installed. reuse: an earlier output with a receipt, from which is taken over what need not be made again. sign: a
    private key, a PEM file, to sign outputs and receipts with. strict: a tensor of an input that is neither used nor
    dropped is an error. cache: a directory of this machine where ranges of remote inputs are kept, of at most the size
    cache_size.
    """

    memory: str = "2GiB"
    workers: int = 0
    shard_size: str = "5GB"
    overwrite: bool = False
    config_check: bool = True
    sync: bool = True
    devices: int = 0
    profile: str | None = None
    device_memory: str = "none"
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    join_timeout: float = 300.0
    resume: bool = False
    receipt: bool = True
    receipt_path: str | None = None
    digest: str = "auto"
    reuse: str | None = None
    sign: str | None = None
    strict: bool = False
    cache: str | None = None
    cache_size: str = "20GiB"

    @property
    def memory_bytes(self) -> int:
        """The budget in bytes."""
        return parse_size(self.memory, binary=True) or UNLIMITED

    @property
    def cache_bytes(self) -> int:
        """The most bytes that are kept of remote inputs."""
        return parse_size(self.cache_size, binary=True) or UNLIMITED

    @property
    def limits(self) -> Limits:
        """All budgets."""
        device = parse_size(self.device_memory, binary=True) or UNLIMITED
        # whether files are hashed while they are written; of several processes none sees a whole one
        in_order = False if self.distributed else True if self.receipt_path else None if self.receipt else False
        waiting = 0 if self.workers else self.num_workers // 2
        return Limits(self.memory_bytes, self.num_workers, device, self.devices or None, in_order, waiting)

    @property
    def num_workers(self) -> int:
        """The number of threads."""
        return self.workers or default_workers()
