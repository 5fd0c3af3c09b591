"""The objects that a forked child of this process must reset: they hold things of their parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """An object that holds locks, descriptors or connections of this process."""

    def reset_after_fork(self) -> None:
        """Drop all of it in a forked child, without a lock: a thread that the child lacks may hold it."""


_live_objects: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def reset_in_forks(live: ForkAware) -> None:
    """Have each forked child of this process reset an object, for as long as the object lives."""
    _live_objects.add(live)


def _reset_all() -> None:
    for live in list(_live_objects):
        live.reset_after_fork()


os.register_at_fork(after_in_child=_reset_all)
