"""Several threads at the parts of one piece of work."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from running import Bench

from surgery_jax.execute.hands import Hands, InTurn
from surgery_jax.execute.reservations import Limits
from surgery_jax.execute.schedule import schedule
from surgery_jax.io.needs import footprint


def test_every_part_is_done_once_by_several_threads_and_comes_in_its_turn() -> None:
    hands, together, taken = Hands(2, nullcontext), threading.Barrier(3, timeout=20), list[int]()
    numbers = [number * 3 for number in range(50)]
    turns = InTurn[int](numbers, taken.append)
    seen: list[int] = []

    def work(number: int, hand: int) -> None:
        if number < 9:
            together.wait()  # passes only if three are at work at once
        seen.append(hand)
        if number % 2:
            time.sleep(0.001)
        turns.put(number, -number)

    hands.each(numbers, work, 3)
    hands.close()
    assert taken == [-number for number in numbers]
    assert set(seen) == {0, 1, 2}


def test_there_are_no_more_threads_at_work_than_are_asked_for() -> None:
    hands, seen = Hands(3, nullcontext), set[int]()
    hands.each(range(40), lambda _, hand: seen.add(hand), 1)
    hands.close()
    assert seen == {0}


def test_the_error_of_one_thread_ends_the_work_of_all_before_it_is_raised() -> None:
    hands, done, busy = Hands(1, nullcontext), list[int](), threading.Event()

    def work(number: int, hand: int) -> None:
        if number == 1:
            busy.wait(20)
            raise ValueError("part 1")
        if number == 0:
            busy.set()
            time.sleep(0.05)
        done.append(number)

    with pytest.raises(ValueError, match="part 1"):
        hands.each(range(1000), work, 2)
    count = len(done)
    assert 0 in done
    assert count < 999
    time.sleep(0.02)
    assert len(done) == count  # nobody goes on
    hands.close()


@pytest.mark.parametrize("memory", [1 << 20, 2 << 20, 4 << 20, 32 << 20])
def test_threads_at_one_component_leave_a_quarter_of_the_budget_to_others(tmp_path: Path, memory: int) -> None:
    tensors = {"base": {"w": np.ones(300_000, np.float32)}, "a": {"w": np.ones(300_000, np.float32)}}
    step = {"merge": {"method": "slerp", "base": "base::(.+)", "models": {"a": {}}, "t": 0.5, "to": r"a::new.\1"}}
    program = (
        Bench(tmp_path, **tensors)
        .compile([step, {"delete": {"target": "base::.*"}}, {"delete": {"target": "a::w"}}])
        .program
    )
    (work,) = schedule(program, Limits(memory, 8)).groups
    (component,) = work.group.components
    many = replace(work, hands=64)  # whatever the cores of this machine
    hands, wanted = many.num_hands(component), min(64, work.num_tiles(component))
    assert (hands > 1) == (memory > 2 << 20) and hands <= wanted
    assert hands == 1 or footprint(many.needs(component)) <= memory * 3 // 4
