"""Deadlines, cancel tokens, waits that Ctrl-C always ends, and starts that Ctrl-C never interrupts."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

_log = logging.getLogger(__name__)
T = TypeVar("T")
_MAX_DEADLINE_SECONDS = 1e9
"""A longer time limit than this, about 30 years, means never: no sum of times overflows."""
SIGNAL_POLL_SECONDS = 0.5
"""Seconds after which the main thread begins a wait again, in case a signal came in the moment before it.

A signal interrupts a system call that has begun. It is handled only when the call is over if another thread gets it, or
if it comes between the interpreter's last look for signals and the call.
"""
_MAX_SYSTEM_CALL_SECONDS = 86_400.0
"""Seconds that one system call waits at most: poll(2) and epoll_wait(2) count milliseconds in an int."""
_MIN_QUEUE_GET_SECONDS = 0.05
"""The shortest wait for a queue: with less, SimpleQueue.get() may wait for ever (Python 3.10 on a busy machine)."""


def max_wait_seconds() -> float:
    """Return how long one system call of this thread may wait: only the main thread handles signals."""
    return SIGNAL_POLL_SECONDS if is_main_thread() else _MAX_SYSTEM_CALL_SECONDS


def is_main_thread() -> bool:
    """Return whether the caller is the main thread."""
    return threading.current_thread() is threading.main_thread()


class DeadlinePassedError(Exception):
    """The deadline passed before the awaited condition came true."""


class CancelledError(Exception):
    """Another thread asked for the process to be stopped."""


class Deadline:
    """An instant on the monotonic clock, or never."""

    __slots__ = ("_clock", "_when")

    def __init__(self, seconds: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Set the deadline a number of seconds from now. None, or more than about 30 years, means never."""
        self._clock = clock
        self._when = None if seconds is None or seconds > _MAX_DEADLINE_SECONDS else clock() + seconds

    @property
    def when(self) -> float | None:
        """The instant on the clock; None means never."""
        return self._when

    @property
    def remaining(self) -> float | None:
        """The seconds left, at least 0; None means for ever."""
        return None if self._when is None else max(0.0, self._when - self._clock())

    @property
    def has_passed(self) -> bool:
        """Whether the time is up."""
        return self._when is not None and self._clock() >= self._when

    def clamp(self, seconds: float) -> float:
        """Return the seconds left, at most those given."""
        remaining = self.remaining
        return seconds if remaining is None else min(seconds, remaining)


NO_DEADLINE = Deadline(None)


class BackOff:
    """Says when to try again. The pauses between tries double from `shortest` to `longest` seconds."""

    def __init__(self, shortest: float, longest: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow the first try at once."""
        self._delay = shortest
        self._longest = longest
        self._clock = clock
        self._retry_at: float | None = None

    def record_failure(self) -> None:
        """Put the next try off by a pause, and make the pause after that longer."""
        self._retry_at = self._clock() + self._delay
        self._delay = min(2 * self._delay, self._longest)

    @property
    def has_failed(self) -> bool:
        """Whether a try has failed."""
        return self._retry_at is not None

    @property
    def remaining(self) -> float:
        """The seconds until the next try."""
        return 0.0 if self._retry_at is None else max(0.0, self._retry_at - self._clock())


class CancelToken:
    """A request to stop that any thread may make once and that a waiting `LocalProcess` sees at once."""

    def __init__(self) -> None:
        """Open the pipe that wakes a waiting thread."""
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._lock = threading.RLock()  # a stream that the garbage collector closes calls `wake()` at any moment
        self._callback: Callable[[], None] | None = None
        self.is_cancelled: bool = False
        self.at_once: bool = False
        """Whether the stop is to leave no grace period."""

    def cancel(self, *, at_once: bool = False) -> None:
        """Ask for the stop. Asking twice is the same as asking once, but `at_once` ends the grace period."""
        with self._lock:
            is_new = not self.is_cancelled or (at_once and not self.at_once)
            self.at_once |= at_once
            self.is_cancelled = True
        if is_new:
            self.wake()

    def wake(self) -> None:
        """Have the waiting thread check its condition again."""
        with self._lock:
            if self._write_fd >= 0:
                with contextlib.suppress(BlockingIOError):  # the pipe is full, so the descriptor is readable
                    os.write(self._write_fd, b"x")
            callback = self._callback
        if callback is not None:
            callback()

    def drain(self) -> None:
        """Make the descriptor unreadable until the next `wake()`."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_fd, 1 << 16)

    @contextlib.contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have `cancel()` and `wake()` also call `callback`, for a thread that does not wait for the descriptor.

        A token has one callback at a time. An earlier `cancel()` does not call it: check `is_cancelled` in the block.
        """
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
        """Close the pipe."""
        with self._lock:
            if self._write_fd >= 0:
                os.close(self._read_fd)
                os.close(self._write_fd)
                self._read_fd = self._write_fd = -1


class Waker:
    """Wakes a thread that waits for descriptors, from any thread."""

    def __init__(self) -> None:
        """Open the pipe whose descriptor becomes readable."""
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with `wake()`."""
        return self._read_fd

    def wake(self) -> None:
        """Make the descriptor readable."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full, so the descriptor is readable
            os.write(self._write_fd, b"x")

    def drain(self) -> None:
        """Make the descriptor unreadable until the next `wake()`."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read_fd, 1 << 12):
                pass

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read_fd)
        os.close(self._write_fd)


def queue_get(events: queue.SimpleQueue[T], deadline: Deadline = NO_DEADLINE) -> T:
    """Wait for the next item of a queue, and return it.

    Raises:
        DeadlinePassedError: If nothing comes in time.
    """
    while True:
        seconds = deadline.clamp(max_wait_seconds())
        try:
            return events.get(seconds > 0, max(seconds, _MIN_QUEUE_GET_SECONDS))
        except queue.Empty:
            if deadline.has_passed:
                raise DeadlinePassedError from None


def wait_event(event: threading.Event, deadline: Deadline = NO_DEADLINE) -> bool:
    """Wait for an event, and return whether it has happened."""
    with _unwrap_interrupt():
        while not event.wait(deadline.clamp(max_wait_seconds())):
            if deadline.has_passed:
                return False
    return True


@contextlib.contextmanager
def hold(condition: threading.Condition) -> Iterator[None]:
    """Hold the lock of a condition, for waits in the main thread: Ctrl-C is raised as KeyboardInterrupt."""
    with _unwrap_interrupt(), condition:
        yield


def wait_for(predicate: Callable[[], object], condition: threading.Condition, deadline: Deadline = NO_DEADLINE) -> bool:
    """Wait until a predicate holds, checked at each notification of the condition; return whether it does."""
    while not predicate():
        if deadline.has_passed:
            return False
        condition.wait(deadline.clamp(max_wait_seconds()))
    return True


def start_thread(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        RuntimeError: If the thread cannot be started.
    """
    with _unwrap_interrupt():
        thread.start()


@contextlib.contextmanager
def _unwrap_interrupt() -> Iterator[None]:
    """Raise the exception that interrupts a wait for a condition, and not the `RuntimeError` that may replace it.

    If it comes while the condition's lock is not held, CPython notices that at the end of the wait. It then raises a
    `RuntimeError` ("release unlocked lock"), whose context is the interruption (CPython issues 78667 and 118433).
    """
    handled = sys.exc_info()[1]
    try:
        yield
    except RuntimeError as error:
        if error.__context__ is None or error.__context__ is handled:
            raise
        raise error.__context__ from None


class _InterruptBoundary:
    """Shortens the traceback of a Ctrl-C at a public method: of the library's frames only that method's stays.

    Frames of the user's code stay, before and after that one: he may have given a callback. Other exceptions keep all
    frames. The logger gets the whole traceback at DEBUG.
    """

    def __enter__(self) -> None:
        """Begin the block, in the public method itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the library's frames out of the traceback of a KeyboardInterrupt."""
        if not isinstance(error, KeyboardInterrupt) or traceback is None:
            return
        _log.debug("interrupted by Ctrl-C", exc_info=error)
        inner = traceback.tb_next
        while inner is not None and _is_library_frame(inner.tb_frame):
            inner = inner.tb_next
        traceback.tb_next = inner
        while _is_internal(error.__context__):
            error.__context__ = error.__context__ and error.__context__.__context__


def _is_internal(context: BaseException | None) -> bool:
    """Return whether a context is an earlier Ctrl-C in the same call, or the end of a wait in `queue_get()`."""
    traceback = context.__traceback__ if isinstance(context, (queue.Empty, KeyboardInterrupt)) else None
    return traceback is not None and _is_library_frame(traceback.tb_frame)


def _is_library_frame(frame: FrameType) -> bool:
    """Return whether a frame is of this package, or of the standard library, which it calls."""
    root = str(frame.f_globals.get("__name__")).partition(".")[0]
    return root == __name__.partition(".")[0] or root in sys.stdlib_module_names


interrupt_boundary = _InterruptBoundary()


def uninterruptible(make: Callable[[], T], rollback: Callable[[T], object]) -> T:
    """Run `make()` where KeyboardInterrupt cannot strike, so that a started process is never leaked.

    A Ctrl-C that comes during `make()` is handled after it. If that raises, `rollback` gets the result first.
    """
    made: list[T] = []
    try:
        with _sigint_deferred():
            made.append(make())
    except BaseException:
        for result in made:
            rollback(result)
        raise
    return made[0]


@contextlib.contextmanager
def _sigint_deferred() -> Iterator[None]:
    """Call the handler of SIGINT at the end of the block instead of during it.

    A handler may raise after any bytecode instruction of the main thread, also between a fork and the return of
    `Popen()` (Python's `signal`, "Note on Signal Handlers and Exceptions"). Other threads run no handlers.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not is_main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    try:
        signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])
