"""The objects that a forked child resets."""

from __future__ import annotations

import gc
import os
import weakref

from lazycluster._processes.forks import reset_in_forks


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def reset_after_fork(self) -> None:
        self.count += 1


def count_resets_in_forks(counter: Counter) -> int:
    """Return the number of resets in a child, times 10, plus the number in a child of that child."""
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(counter.count)
        os._exit(10 * counter.count + os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_reset_in_forks_resets_in_each_child_only() -> None:
    counter = Counter()
    reset_in_forks(counter)

    assert count_resets_in_forks(counter) == 12
    assert counter.count == 0


def test_reset_in_forks_keeps_no_object_alive() -> None:
    counter = Counter()
    reset_in_forks(counter)
    alive = weakref.ref(counter)
    del counter
    gc.collect()

    assert alive() is None
