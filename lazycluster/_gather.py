"""The same work on many hosts at once, each in a thread of its own, and what came of it on each."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, TypeVar

from lazycluster._waiting import Cancellation, start, take
from lazycluster.exceptions import HostsFailedError
from lazycluster.results import Error, Value

T = TypeVar("T")
X = TypeVar("X")
OnError: TypeAlias = Literal["raise", "collect"]
MOST = 256
"""Threads at once, where nothing else limits them; they only wait."""
_PARTING = 8.0
"""Seconds that an interrupted caller waits for what it has stopped: more than the grace period of a command."""


def _nothing(*_: object) -> None:
    """Do nothing."""


def on_all(
    work: Mapping[str, Callable[[], T]],
    *,
    limit: int = MOST,
    done: Callable[[str, Value[T] | Error], object] = _nothing,
    stop: Callable[[], object] = _nothing,
    undo: Callable[[str, T], object] = _nothing,
) -> dict[str, Value[T] | Error]:
    """Do what is to be done for each host, at most so many at a time, and return the outcomes in the order given.

    Args:
        work: What, by host.
        limit: How many at a time.
        done: Is told of each outcome as it comes, in the calling thread.
        stop: Ends what is under way. It is called where the calling thread is interrupted (Ctrl-C); no further work is
            begun then, and what was under way is waited for a moment.
        undo: Takes back what was done for a host, of which nobody will know after an interruption.
    """
    waiting: queue.SimpleQueue[tuple[str, Callable[[], T]]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[str, Value[T] | Error]] = queue.SimpleQueue()
    for host_and_work in work.items():
        waiting.put(host_and_work)
    lock = threading.Lock()
    interrupted = threading.Event()

    def labour() -> None:
        for host, function in _drained(waiting):
            outcome = outcome_of(function)
            with lock:
                wanted = not interrupted.is_set()
                if wanted:
                    ended.put((host, outcome))
            if not wanted and isinstance(outcome, Value):
                outcome_of(functools.partial(undo, host, outcome.value))

    threads = [
        threading.Thread(target=labour, name=f"lazycluster-host-{number}", daemon=True)
        for number in range(min(limit, len(work)))
    ]
    outcomes: dict[str, Value[T] | Error] = {}
    try:
        for thread in threads:
            start(thread)
        while len(outcomes) < len(work):
            host, outcome = take(ended)
            outcomes[host] = outcome
            done(host, outcome)
    except BaseException as interruption:
        for _ in _drained(waiting):
            pass
        with lock:
            interrupted.set()
        stop()
        for host, outcome in _drained(ended):
            outcomes[host] = outcome
            if not isinstance(interruption, Exception):  # else it came from there, or no thread could be started
                done(host, outcome)
        made = successes_of(outcomes)
        if undo is not _nothing:
            on_all({host: functools.partial(undo, host, value) for host, value in made.items()})
        if undo is not _nothing or stop is not _nothing:
            wait_for(threads)
        raise
    return {host: outcomes[host] for host in work}


def _drained(of: queue.SimpleQueue[X]) -> Iterator[X]:
    """Take from a queue what is in it."""
    with contextlib.suppress(queue.Empty):
        while True:
            yield of.get_nowait()


def wait_for(threads: Sequence[threading.Thread]) -> list[threading.Thread]:
    """Wait a moment for threads to end what was stopped, for all of them together; return those that have not."""
    until = time.monotonic() + _PARTING
    for thread in threads:
        if thread.ident is not None:
            thread.join(max(0.0, until - time.monotonic()))
    return [thread for thread in threads if thread.is_alive()]


class Stopping:
    """What is under way for many hosts and can be stopped, all of it at once and from any thread."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()
        self._stops: set[Callable[[], object]] = set()
        self.requested = False

    def request(self) -> None:
        """Stop everything, also what has not begun yet."""
        with self._lock:
            self.requested = True
            stops = list(self._stops)
        for stop in stops:
            stop()

    @contextlib.contextmanager
    def calling(self, stop: Callable[[], object]) -> Iterator[None]:
        """Have a stop call something, at once where it was requested before."""
        with self._lock:
            requested = self.requested
            self._stops.add(stop)
        try:
            if requested:
                stop()
            yield
        finally:
            with self._lock:
                self._stops.discard(stop)

    @contextlib.contextmanager
    def cancellation(self) -> Iterator[Cancellation]:
        """Give a cancellation that a stop requests."""
        cancellation = Cancellation()
        try:
            with self.calling(cancellation.request):
                yield cancellation
        finally:
            cancellation.close()


def outcome_of(function: Callable[[], T]) -> Value[T] | Error:
    """Call a function and return what came of it."""
    try:
        return Value(function())
    except BaseException as error:  # noqa: BLE001 - told to whoever asked for the outcome
        return Error(error)


def values(outcomes: Mapping[str, Value[T] | Error], action: str) -> dict[str, T]:
    """Return the values of outcomes by host.

    Raises:
        HostsFailedError: There are errors among them.
    """
    raise_failed(outcomes, action)
    return {host: outcome.unwrap() for host, outcome in outcomes.items()}


def collected(outcomes: Mapping[str, Value[T] | Error]) -> dict[str, T | Error]:
    """Return the values of outcomes by host, and an error where there is none."""
    return {host: outcome.value if isinstance(outcome, Value) else outcome for host, outcome in outcomes.items()}


def raise_failed(outcomes: Mapping[str, Value[T] | Error], action: str) -> None:
    """Raise what failed.

    Raises:
        HostsFailedError: There are errors among the outcomes.
    """
    errors = errors_of(outcomes)
    if errors:
        raise HostsFailedError(action, errors, len(outcomes), successes_of(outcomes)) from errors[0][1]


def successes_of(outcomes: Mapping[str, Value[T] | Error]) -> dict[str, T]:
    """Return the values among outcomes by host."""
    return {host: outcome.value for host, outcome in outcomes.items() if isinstance(outcome, Value)}


def errors_of(outcomes: Mapping[str, Value[T] | Error]) -> tuple[tuple[str, Exception], ...]:
    """Return the errors among outcomes with their hosts; one that is no `Exception`, such as Ctrl-C, is raised."""
    errors = []
    for host, outcome in outcomes.items():
        if isinstance(outcome, Error):
            if not isinstance(outcome.error, Exception):
                raise outcome.error
            errors.append((host, outcome.error))
    return tuple(errors)
