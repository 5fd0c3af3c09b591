"""Ctrl-C in a test: a signal to the thread that waits, as a terminal sends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lazycluster.testing.processes import wait_until


@contextmanager
def interrupted(when: Callable[[], bool]) -> Iterator[None]:
    """Expect the block to be ended by Ctrl-C, which comes when a condition holds."""
    waiting, over = threading.get_ident(), threading.Event()

    def interrupt() -> None:
        wait_until(lambda: when() or over.is_set(), timeout=20)
        if not over.is_set():
            signal.pthread_kill(waiting, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        over.set()
        thread.join()


def threads(prefix: str = "lazycluster-") -> list[str]:
    """Return the names of the living threads of the library."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith(prefix))
