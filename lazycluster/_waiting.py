"""How long to wait, who may cut it short, waits that Ctrl-C always ends, and what it never interrupts."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

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
    with _interrupted_as_such():
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


def start(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        RuntimeError: It cannot be started.
    """
    with _interrupted_as_such():
        thread.start()


@contextlib.contextmanager
def _interrupted_as_such() -> Iterator[None]:
    """Raise what interrupts a wait for a condition as it is.

    Where that comes while the condition's lock is not held, CPython finds so at the end of the wait, and says it in a
    `RuntimeError` instead ("release unlocked lock"), of which the interruption is the context.
    """
    handled = sys.exc_info()[1]
    try:
        yield
    except RuntimeError as error:
        if error.__context__ is None or error.__context__ is handled:
            raise
        raise error.__context__ from None


def sheltered(make: Callable[[], T], take_back: Callable[[T], object]) -> T:
    """Make something where no Ctrl-C interrupts it, such as a process that else nobody would know.

    Where the calling thread is interrupted meanwhile, what was made is taken back, now or as soon as it is made.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal handler runs there
        return make()
    shelter = _Shelter(make, take_back)
    try:
        try:
            start(shelter)
        except RuntimeError:  # from Python 3.12 on no thread starts while the interpreter ends
            return make()
        shelter.join()
        return shelter.made()
    except BaseException:
        shelter.abandon()
        raise


class _Shelter(threading.Thread, Generic[T]):
    """The thread in which something is made."""

    def __init__(self, make: Callable[[], T], take_back: Callable[[T], object]) -> None:
        super().__init__(name="lazycluster-shelter")
        self._make = make
        self._take_back = take_back
        self._lock = threading.Lock()
        self._unwanted = False
        self._made: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make it, and take it back where nobody waits for it any more."""
        try:
            self._made.append(self._make())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        with self._lock:
            self._drop_unwanted()

    def made(self) -> T:
        """Return what was made, or raise why it was not."""
        if self._error is not None:
            raise self._error
        return self._made[0]

    def abandon(self) -> None:
        """Take it back, now or as soon as it is made."""
        with self._lock:
            self._unwanted = True
            self._drop_unwanted()

    def _drop_unwanted(self) -> None:
        while self._unwanted and self._made:
            self._take_back(self._made.pop())
