"""How long to wait, who may cut it short, and waits that Ctrl-C always ends."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
_FOR_EVER = 1e9
GLANCE = 0.5
"""Seconds after which a wait begins anew, in case a signal came in the moment before it.

A signal interrupts a system call that has begun. One that comes after the interpreter has last looked for signals and
before the call begins, or that another thread gets, is handled when the call is over.
"""


class DeadlinePassedError(Exception):
    """The time for a process was up before the condition that was waited for came true."""


class CancelledError(Exception):
    """Somebody asked for the process to be stopped."""


class Deadline:
    """An instant on the monotonic clock, or never."""

    __slots__ = ("_at",)

    def __init__(self, seconds: float | None) -> None:
        """Set the deadline a number of seconds from now; None means never, as do more than a system call can count."""
        self._at = None if seconds is None or seconds > _FOR_EVER else time.monotonic() + seconds

    @property
    def at(self) -> float | None:
        """Return the instant in the terms of `time.monotonic()`."""
        return self._at

    @property
    def remaining(self) -> float | None:
        """Return the seconds left, not below 0; None means for ever."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    @property
    def passed(self) -> bool:
        """Tell whether the time is up."""
        return self._at is not None and time.monotonic() >= self._at

    def within(self, seconds: float) -> float:
        """Return the seconds left, at most those given."""
        remaining = self.remaining
        return seconds if remaining is None else min(seconds, remaining)


NEVER = Deadline(None)


class Cancellation:
    """A request to stop that any thread may make once and that a waiting `Child` sees at once."""

    def __init__(self) -> None:
        """Open the pipe that wakes a waiting thread."""
        self._read, self._write = os.pipe()
        self._lock = threading.Lock()
        self._listener: Callable[[], None] | None = None
        self.requested = False

    def request(self) -> None:
        """Ask for the stop. Asking twice is asking once."""
        with self._lock:
            if not self.requested and self._write >= 0:
                os.write(self._write, b"x")
            self.requested = True
            listener = self._listener
        if listener is not None:
            listener()

    @contextlib.contextmanager
    def calling(self, listener: Callable[[], None]) -> Iterator[None]:
        """Have the request call something, too, for a thread that waits for that instead of the descriptor."""
        with self._lock:
            self._listener = listener
        try:
            yield
        finally:
            with self._lock:
                self._listener = None

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with the request."""
        return self._read

    def close(self) -> None:
        """Give the pipe back."""
        with self._lock:
            if self._write >= 0:
                os.close(self._read)
                os.close(self._write)
                self._read = self._write = -1


def take(events: queue.SimpleQueue[T], deadline: Deadline = NEVER) -> T:
    """Take from a queue what comes next.

    Raises:
        DeadlinePassedError: Nothing came in time.
    """
    while True:
        seconds = deadline.within(GLANCE)
        try:
            # With next to no time SimpleQueue.get() may wait for ever (seen with Python 3.10 on a busy machine).
            return events.get(seconds > 0, max(seconds, 0.05))
        except queue.Empty:
            if deadline.passed:
                raise DeadlinePassedError from None


def happens(event: threading.Event, deadline: Deadline = NEVER) -> bool:
    """Wait for an event, and tell whether it has happened."""
    while not event.wait(deadline.within(GLANCE)):
        if deadline.passed:
            return False
    return True


def holds(predicate: Callable[[], object], changed: threading.Condition, deadline: Deadline = NEVER) -> bool:
    """Wait until a predicate holds, looking whenever something has changed; return whether it does."""
    while not predicate():
        if deadline.passed:
            return False
        changed.wait(deadline.within(GLANCE))
    return True
