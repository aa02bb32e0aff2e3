"""Who waits for memory gets it in turn."""

from __future__ import annotations

import threading
import time

from surgery_jax.io.buffers import Budget


def test_what_needs_much_memory_is_not_overtaken_by_what_needs_little() -> None:
    budget, order = Budget(8 << 20), list[str]()

    def take(name: str, nbytes: int) -> None:
        with budget.reserve([nbytes]):
            order.append(name)

    threads = [threading.Thread(target=take, args=("large", 8 << 20))]
    threads += [threading.Thread(target=take, args=("small", 1 << 20)) for _ in range(4)]
    with budget.reserve([1 << 20]):
        for thread in threads:
            thread.start()
            time.sleep(0.05)  # until it waits
        assert order == []  # a small one would have room now
    for thread in threads:
        thread.join()
    assert order == ["large", "small", "small", "small", "small"]


def test_who_wants_nothing_waits_for_nobody() -> None:
    budget, order = Budget(1 << 20), list[str]()

    def take() -> None:
        with budget.reserve([1 << 20]):
            order.append("much")

    waiting = threading.Thread(target=take)
    with budget.reserve([1 << 20]):
        waiting.start()
        time.sleep(0.05)
        with budget.reserve([]):
            order.append("nothing")
    waiting.join()
    assert order == ["nothing", "much"]


def test_who_is_refused_lets_the_others_through() -> None:
    """A run that has failed wakes all who wait."""
    budget, refused = Budget(1 << 20), list[str]()

    def take() -> None:
        try:
            with budget.reserve([1 << 20]):
                pass
        except InterruptedError:
            refused.append("refused")

    threads = [threading.Thread(target=take) for _ in range(3)]
    with budget.reserve([1 << 20]):
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        budget.stop()
        for thread in threads:
            thread.join()
    assert refused == ["refused"] * 3
