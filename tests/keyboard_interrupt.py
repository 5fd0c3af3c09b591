"""Ctrl-C in a test: SIGINT for the thread that waits, as a terminal sends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest

from tests.waiting import wait_until


def interrupt(
    work: Callable[[], object], condition: Callable[[], bool], *, in_other_thread: bool = False
) -> KeyboardInterrupt:
    """Do some work, assert that Ctrl-C ends it, and return what it raised; Ctrl-C comes when a condition holds.

    With `in_other_thread`, another thread gets the signal. It then interrupts no system call of the thread that works,
    as if it came in the moment before the call.
    """
    waiting, over = threading.get_ident(), threading.Event()

    def wait() -> None:
        wait_until(lambda: condition() or over.is_set(), timeout=20)
        if not over.is_set():
            signal.pthread_kill(threading.get_ident() if in_other_thread else waiting, signal.SIGINT)

    def begin() -> None:
        thread.start()
        work()
        over.set()

    thread = threading.Thread(target=wait)
    with pytest.raises(KeyboardInterrupt) as caught:
        begin()
    over.set()
    thread.join()
    return caught.value


def library_threads(prefix: str = "lazycluster-") -> set[threading.Thread]:
    """Return the living threads of the library."""
    return {thread for thread in threading.enumerate() if thread.name.startswith(prefix)}


def library_thread_names(prefix: str = "lazycluster-") -> list[str]:
    """Return the names of the living threads of the library."""
    return sorted(thread.name for thread in library_threads(prefix))
