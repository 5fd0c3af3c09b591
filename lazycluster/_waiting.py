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
_MAX_WAIT_SECONDS = 1e9
SIGNAL_POLL_SECONDS = 0.5
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

    __slots__ = ("_when",)

    def __init__(self, seconds: float | None) -> None:
        """Set the deadline a number of seconds from now; None means never, as do more than a system call can count."""
        self._when = None if seconds is None or seconds > _MAX_WAIT_SECONDS else time.monotonic() + seconds

    @property
    def when(self) -> float | None:
        """Return the instant in the terms of `time.monotonic()`."""
        return self._when

    @property
    def remaining(self) -> float | None:
        """Return the seconds left, not below 0; None means for ever."""
        return None if self._when is None else max(0.0, self._when - time.monotonic())

    @property
    def has_passed(self) -> bool:
        """Tell whether the time is up."""
        return self._when is not None and time.monotonic() >= self._when

    def clamp(self, seconds: float) -> float:
        """Return the seconds left, at most those given."""
        remaining = self.remaining
        return seconds if remaining is None else min(seconds, remaining)


NO_DEADLINE = Deadline(None)


class CancelToken:
    """A request to stop that any thread may make once and that a waiting `LocalProcess` sees at once."""

    def __init__(self) -> None:
        """Open the pipe that wakes a waiting thread."""
        self._read_fd, self._write_fd = os.pipe()
        self._lock = threading.Lock()
        self._callback: Callable[[], None] | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        """Ask for the stop. Asking twice is asking once."""
        with self._lock:
            if not self.is_cancelled and self._write_fd >= 0:
                os.write(self._write_fd, b"x")
            self.is_cancelled = True
            callback = self._callback
        if callback is not None:
            callback()

    @contextlib.contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have the request call something, too, for a thread that waits for that instead of the descriptor."""
        with self._lock:
            self._callback = callback
        try:
            yield
        finally:
            with self._lock:
                self._callback = None

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with the request."""
        return self._read_fd

    def close(self) -> None:
        """Give the pipe back."""
        with self._lock:
            if self._write_fd >= 0:
                os.close(self._read_fd)
                os.close(self._write_fd)
                self._read_fd = self._write_fd = -1


def queue_get(events: queue.SimpleQueue[T], deadline: Deadline = NO_DEADLINE) -> T:
    """Take from a queue what comes next.

    Raises:
        DeadlinePassedError: Nothing came in time.
    """
    while True:
        seconds = deadline.clamp(SIGNAL_POLL_SECONDS)
        try:
            # With next to no time SimpleQueue.get() may wait for ever (seen with Python 3.10 on a busy machine).
            return events.get(seconds > 0, max(seconds, 0.05))
        except queue.Empty:
            if deadline.has_passed:
                raise DeadlinePassedError from None


def wait_event(event: threading.Event, deadline: Deadline = NO_DEADLINE) -> bool:
    """Wait for an event, and tell whether it has happened."""
    with _unwrap_interrupt():
        while not event.wait(deadline.clamp(SIGNAL_POLL_SECONDS)):
            if deadline.has_passed:
                return False
    return True


def wait_for(predicate: Callable[[], object], condition: threading.Condition, deadline: Deadline = NO_DEADLINE) -> bool:
    """Wait until a predicate holds, looking whenever something has changed; return whether it does."""
    while not predicate():
        if deadline.has_passed:
            return False
        condition.wait(deadline.clamp(SIGNAL_POLL_SECONDS))
    return True


def start_thread(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        RuntimeError: It cannot be started.
    """
    with _unwrap_interrupt():
        thread.start()


@contextlib.contextmanager
def _unwrap_interrupt() -> Iterator[None]:
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


def uninterruptible(make: Callable[[], T], rollback: Callable[[T], object]) -> T:
    """Make something where no Ctrl-C interrupts it, such as a process that else nobody would know.

    Where the calling thread is interrupted meanwhile, what was made is taken back, now or as soon as it is made.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal handler runs there
        return make()
    thread = _UninterruptibleThread(make, rollback)
    try:
        try:
            start_thread(thread)
        except RuntimeError:  # from Python 3.12 on no thread starts while the interpreter ends
            return make()
        thread.join()
        return thread.result()
    except BaseException:
        thread.cancel()
        raise


class _UninterruptibleThread(threading.Thread, Generic[T]):
    """The thread in which something is made."""

    def __init__(self, make: Callable[[], T], rollback: Callable[[T], object]) -> None:
        super().__init__(name="lazycluster-uninterruptible")
        self._make = make
        self._rollback = rollback
        self._lock = threading.Lock()
        self._cancelled = False
        self._results: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make it, and take it back where nobody waits for it any more."""
        try:
            self._results.append(self._make())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        with self._lock:
            self._roll_back_if_cancelled()

    def result(self) -> T:
        """Return what was made, or raise why it was not."""
        if self._error is not None:
            raise self._error
        return self._results[0]

    def cancel(self) -> None:
        """Take it back, now or as soon as it is made."""
        with self._lock:
            self._cancelled = True
            self._roll_back_if_cancelled()

    def _roll_back_if_cancelled(self) -> None:
        while self._cancelled and self._results:
            self._rollback(self._results.pop())
