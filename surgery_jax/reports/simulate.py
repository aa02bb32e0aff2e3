"""A run that does not happen: the tasks, shares and budgets of a real one, with rates in place of disks and devices.

Every host has its link to the storage, which serves one request after the other at the smaller of the link's rate and
the host's part of the storage's; its devices, which do one task after the other; and its workers and memory, as in
`stream`. Hosts meet only at the end of a pass, so the slowest of them is how long it takes.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..compile.program import Program
from ..compile.sharding import mesh_size
from ..core.errors import PlanError, nearest
from ..core.specs import parse_size
from ..execute.fits import check_fits
from ..execute.options import Options
from ..execute.schedule import GroupSchedule, Schedule, schedule
from ..execute.shares import Sized
from ..execute.tasks import Tile
from ..io.needs import footprint

__all__ = ["HostForecast", "Machines", "SimulatedPass", "Simulation", "parse_machines", "simulate", "simulate_batch"]

UNBOUNDED = float("inf")


@dataclass(frozen=True)
class Machines:
    """What a run is imagined on; rates in bytes per second.

    storage: of the file system, reading and writing of all hosts together. network: of the link of one host. compute:
    inputs and outputs of one device, for elementwise work. whole: the same for operations on whole tensors, such as
    matrix products and low-rank factors; as `compute` if it is 0. startup: seconds before the first task and after the
    last.
    """

    hosts: int = 1
    devices: int = 1
    storage: float = UNBOUNDED
    network: float = UNBOUNDED
    compute: float = UNBOUNDED
    whole: float = 0.0
    startup: float = 0.0


@dataclass(frozen=True, slots=True)
class HostForecast:
    """One host in one pass: bytes that it reads and writes, its tasks, seconds until its last byte is written, the
    parts of these in which its link and the busiest of its devices are at work, and the most that its buffers hold."""

    bytes_read: int
    bytes_written: int
    num_tasks: int
    wall_s: float
    link_s: float
    device_s: float
    peak_buffer_bytes: int


@dataclass(frozen=True)
class SimulatedPass:
    """All hosts while they go over the data once; they wait for each other at the end."""

    hosts: tuple[HostForecast, ...]

    @property
    def wall_s(self) -> float:
        """Seconds until the slowest host is done."""
        return max(host.wall_s for host in self.hosts)

    @property
    def balance(self) -> float:
        """Bytes read and written by the host with most of them, by the mean: 1 is even."""
        loads = [host.bytes_read + host.bytes_written for host in self.hosts]
        return max(loads) * len(loads) / sum(loads) if sum(loads) else 1.0


@dataclass(frozen=True)
class Simulation:
    """A run as it would be on some machines: its passes over the data, of which the last one writes."""

    machines: Machines
    passes: tuple[SimulatedPass, ...]

    @property
    def wall_s(self) -> float:
        """Seconds until all is written."""
        return self.machines.startup + sum(one.wall_s for one in self.passes)

    def as_json(self) -> dict[str, Any]:
        """For `--json`; a rate without bound is None."""
        machines = {name: None if value == UNBOUNDED else value for name, value in vars(self.machines).items()}
        passes = [
            {"wall_s": one.wall_s, "balance": one.balance, "hosts": [dataclasses.asdict(host) for host in one.hosts]}
            for one in self.passes
        ]
        return {"machines": machines, "wall_s": self.wall_s, "passes": passes}


def parse_machines(text: str) -> Machines:
    """`hosts=64,devices=4,storage=10GB/s`: numbers, and sizes per second.

    Raises:
        PlanError: a name that there is not, or a value that it cannot have.
    """
    known = {field.name: field for field in dataclasses.fields(Machines)}
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in known:
            near = nearest(name, known, 1)
            raise PlanError(
                f"machines have no {name!r}",
                expected=", ".join(known),
                hint=f"did you mean {near[0]}?" if near else None,
            )
        given[name] = _value(name, value, type(known[name].default))
    return Machines(**given)


def _value(name: str, value: str, kind: type) -> float:
    try:
        if kind is int or name == "startup":
            number = kind(value.removesuffix("s"))
            if 0 <= number < UNBOUNDED and (name == "startup" or number >= 1):
                return float(number) if kind is float else int(number)
        elif value == "none":
            return UNBOUNDED
        elif value.endswith("/s"):
            return float(parse_size(value.removesuffix("/s").strip(), binary=True) or UNBOUNDED)
    except (ValueError, PlanError):
        pass
    wanted = "a number of seconds" if name == "startup" else "a whole number above 0" if kind is int else ""
    raise PlanError(f"not a value of {name}: {value!r}", expected=wanted or "a size per second such as 10GB/s, or none")


class _Work(NamedTuple):
    """One task: bytes over the link before and after computing, seconds of computing and how many devices do that at
    once (0: the host), memory."""

    read: int
    written: int
    compute_s: float
    num_devices: int
    host_bytes: int


def simulate(passes: Sequence[Program], options: Options, machines: Machines) -> Simulation:
    """A run on machines, with the tasks and the shares of a real one under the same budgets.

    `passes` are those of a compiled plan. If there are several, what the last one does depends on what the others find,
    and is an upper bound here.

    Raises:
        BudgetError: one piece of work needs more than the budgets, or may need it.
    """
    limits = options.limits._replace(devices=machines.devices, in_order=False)
    works = [schedule(program, limits) for program in passes]
    for work in works:
        check_fits(work)
    return Simulation(machines, tuple(_pass(work, machines) for work in works))


def simulate_batch(shares: Iterable[Sequence[Sequence[Program]]], options: Options, machines: Machines) -> Simulation:
    """A batch on machines, each of which does the jobs of one task by itself and waits for none: it ends with the last.

    `shares` are those of the tasks: for each what several jobs do together, as passes over the data, as `simulate` has
    them. A host that has none is idle.

    Raises:
        BudgetError: one piece of work needs more than the budgets, or may need it.
    """
    limits = options.limits._replace(devices=machines.devices, in_order=False)
    hosts = []
    for share in shares:
        done = [HostForecast(0, 0, 0, 0.0, 0.0, 0.0, 0)]
        for passes in share:
            for program in passes:
                work = schedule(program, limits)
                check_fits(work)
                done += _hosts(work, machines, 1)
        sums = {field.name: sum(getattr(one, field.name) for one in done) for field in dataclasses.fields(HostForecast)}
        hosts.append(HostForecast(**sums | {"peak_buffer_bytes": max(one.peak_buffer_bytes for one in done)}))
    return Simulation(machines, (SimulatedPass(tuple(hosts)),))


def _pass(work: Schedule, machines: Machines) -> SimulatedPass:
    return SimulatedPass(_hosts(work, machines, machines.hosts))


def _hosts(work: Schedule, machines: Machines, count: int) -> tuple[HostForecast, ...]:
    """So many of the hosts, which do this together."""
    costs = [_cost(group, machines) for group in work.groups]
    hosts = ([_work(entry, work, costs) for entry in work.read_once(share)] for share in work.shares(count))
    # files that are encoded as a whole are written by one process, from what it holds of them
    sealed = [_Work(0, 0, 0.0, 0, footprint(needs)) for _, needs in work.encodings] if count == 1 else []
    return tuple(_host(works, sealed, machines, work.memory, work.limits.workers) for works in hosts)


class _Cost(NamedTuple):
    """What going over any tile of a group takes: seconds of computing, and devices, none on the host."""

    compute_s: float
    num_devices: int


def _cost(group: GroupSchedule, machines: Machines) -> _Cost:
    plan = group.blueprint
    is_whole = any(eqn.op.kind == "whole" for eqn in plan.eqns)
    rate = machines.whole if is_whole and machines.whole else machines.compute
    values = plan.value_specs()
    through = sum(spec.nbytes for spec in plan.specs) + sum(values[value].nbytes for value in plan.leaving)
    is_spread = plan.one is not None or group.place == "mesh"
    count = 0 if group.place == "host" else mesh_size(machines.devices) if is_spread else 1
    return _Cost(through / rate / max(count, 1), count)


def _work(entry: Sized, work: Schedule, costs: Sequence[_Cost]) -> _Work:
    task = entry.task
    host_bytes = footprint(work.needs(task))
    if not isinstance(task, Tile):
        return _Work(entry.read, entry.written, 0.0, 0, host_bytes)
    seconds, count = costs[task.group]
    group = work.groups[task.group]
    if group.blueprint.kind == "reduced":
        seconds *= group.num_tiles(task.segments[0][0]) * group.passes
    return _Work(entry.read, entry.written, seconds, count, host_bytes)


def _host(
    works: Sequence[_Work], sealed: Sequence[_Work], machines: Machines, memory: int, workers: int
) -> HostForecast:
    """One host, event by event: a worker takes a task, waits for memory, reads, computes, writes, takes the next."""
    rate = min(machines.network, machines.storage / machines.hosts)
    link_free = link_s = now = 0.0
    device_free = [0.0] * machines.devices
    device_s = [0.0] * machines.devices
    pending = deque([*works, *sealed])
    waiting: deque[_Work] = deque()  # of workers, for memory
    used = peak = 0
    events: list[tuple[float, int, str, _Work]] = []  # (time, order, what is done, task)
    order = 0

    def after(time: float, done: str, work: _Work) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (time, order, done, work))

    def transfer(nbytes: int) -> float:
        nonlocal link_free, link_s
        seconds = nbytes / rate
        link_free = max(link_free, now) + seconds
        link_s += seconds
        return link_free

    def admit() -> None:
        nonlocal used, peak
        while waiting and (used == 0 or used + waiting[0].host_bytes <= memory):
            work = waiting.popleft()
            used += work.host_bytes
            peak = max(peak, used)
            after(transfer(work.read), "read", work)

    for _ in range(min(workers, len(pending))):
        waiting.append(pending.popleft())
    admit()
    while events:
        now, _, done, work = heapq.heappop(events)
        if done == "read" and work.num_devices:
            # of a task that is spread over several devices, all begin when the last of them is free
            first = device_free.index(min(device_free)) if work.num_devices == 1 else 0
            which = range(first, first + work.num_devices)
            until = max(now, *(device_free[device] for device in which)) + work.compute_s
            for device in which:
                device_free[device] = until
                device_s[device] += work.compute_s
            after(until, "computed", work)
        elif done == "read":
            after(now + work.compute_s, "computed", work)
        elif done == "computed":
            after(transfer(work.written), "written", work)
        else:
            used -= work.host_bytes
            if pending:
                waiting.append(pending.popleft())
            admit()
    return HostForecast(
        sum(work.read for work in works),
        sum(work.written for work in works),
        len(works),
        now,
        link_s,
        max(device_s),
        peak,
    )
