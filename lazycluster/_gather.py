"""The same work on many hosts at once, each in a thread of its own, and its outcome on each."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import attrs

from lazycluster._waiting import CancelToken, queue_get, start_thread
from lazycluster.exceptions import HostsFailedError
from lazycluster.results import Error, Value

T = TypeVar("T")
X = TypeVar("X")
MAX_THREADS = 256
"""Threads at once by default; they only wait."""
CANCEL_WAIT_SECONDS = 8.0
"""Seconds that an interrupted caller waits for the work it has cancelled: more than the grace period of a command."""


def _noop(*_: object) -> None:
    """Do nothing."""


def gather(
    work: Mapping[str, Callable[[], T]],
    *,
    limit: int = MAX_THREADS,
    on_result: Callable[[str, Value[T] | Error], object] = _noop,
    cancel: Callable[[], object] = _noop,
    rollback: Callable[[str, T], object] = _noop,
    cancel_wait: float = CANCEL_WAIT_SECONDS,
) -> dict[str, Value[T] | Error]:
    """Do the work of each host, at most `limit` at a time, and return the outcomes in the order given.

    Args:
        work: The work by host.
        limit: The number of threads.
        on_result: Gets each outcome when it comes, in the calling thread.
        cancel: Ends running work. It is called if the calling thread is interrupted (Ctrl-C). No further work begins
            then, and running work gets a moment to end.
        rollback: Undoes the work of a host whose outcome the caller does not get because of an interruption.
        cancel_wait: Seconds that the caller waits for running work after an interruption.
    """
    pending: queue.SimpleQueue[tuple[str, Callable[[], T]]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[str, Value[T] | Error]] = queue.SimpleQueue()
    for host_and_work in work.items():
        pending.put(host_and_work)
    lock = threading.Lock()
    interrupted = threading.Event()

    def run_queued_work() -> None:
        for host, function in _drain(pending):
            outcome = capture(function)
            with lock:
                wanted = not interrupted.is_set()
                if wanted:
                    ended.put((host, outcome))
            if not wanted and isinstance(outcome, Value):
                capture(functools.partial(rollback, host, outcome.value))

    threads = [
        threading.Thread(target=run_queued_work, name=f"lazycluster-host-{number}", daemon=True)
        for number in range(min(limit, len(work)))
    ]
    outcomes: dict[str, Value[T] | Error] = {}
    try:
        for thread in threads:
            start_thread(thread)
        while len(outcomes) < len(work):
            host, outcome = queue_get(ended)
            outcomes[host] = outcome
            on_result(host, outcome)
    except BaseException as interruption:
        for _ in _drain(pending):
            pass
        with lock:
            interrupted.set()
        cancel()
        for host, outcome in _drain(ended):
            outcomes[host] = outcome
            if not isinstance(interruption, Exception):  # else `on_result` raised it, or no thread could be started
                on_result(host, outcome)
        succeeded = values_by_host(outcomes)
        if rollback is not _noop:
            gather({host: functools.partial(rollback, host, value) for host, value in succeeded.items()})
        if rollback is not _noop or cancel is not _noop:
            join_threads(threads, cancel_wait)
        raise
    return {host: outcomes[host] for host in work}


def _drain(source: queue.SimpleQueue[X]) -> Iterator[X]:
    with contextlib.suppress(queue.Empty):
        while True:
            yield source.get_nowait()


def join_threads(
    threads: Sequence[threading.Thread], seconds: float, *, clock: Callable[[], float] = time.monotonic
) -> list[threading.Thread]:
    """Wait at most `seconds` in all for the end of cancelled threads, and return those that still run."""
    deadline = clock() + seconds
    for thread in threads:
        if thread.ident is not None:
            thread.join(max(0.0, deadline - clock()))
    return [thread for thread in threads if thread.is_alive()]


class CancelGroup:
    """Work on many hosts that any thread may cancel, all of it at once."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()
        self._callbacks: set[Callable[[], object]] = set()
        self.is_cancelled = False

    def cancel(self) -> None:
        """Cancel everything, also work that has not started yet."""
        with self._lock:
            self.is_cancelled = True
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    @contextlib.contextmanager
    def on_cancel(self, callback: Callable[[], object]) -> Iterator[None]:
        """Have `cancel()` call a function; if the group is cancelled already, call it at once."""
        with self._lock:
            already_cancelled = self.is_cancelled
            self._callbacks.add(callback)
        try:
            if already_cancelled:
                callback()
            yield
        finally:
            with self._lock:
                self._callbacks.discard(callback)

    def run(self, work: Callable[[CancelToken], T]) -> T:
        """Call a function with a token that `cancel()` cancels, and return its result."""
        cancel_token = CancelToken()
        try:
            with self.on_cancel(cancel_token.cancel):
                return work(cancel_token)
        finally:
            cancel_token.close()


def capture(function: Callable[[], T], catch: type[BaseException] = BaseException) -> Value[T] | Error:
    """Call a function and return its outcome; errors other than `catch` are raised."""
    try:
        return Value(function())
    except catch as error:
        return Error(error)


def check_on_error(on_error: str) -> None:
    """Check the choice between raising errors and collecting them.

    Raises:
        ValueError: If the choice is neither `raise` nor `collect`.
    """
    if on_error not in {"raise", "collect"}:
        raise ValueError(f"on_error must be 'raise' or 'collect', got {on_error!r}")


def unwrap_all(
    outcomes: Mapping[str, Value[T] | Error], action: str, *, not_started: Sequence[str] = ()
) -> dict[str, T]:
    """Return the values of outcomes by host; `not_started` are the hosts that have no outcome because of the errors.

    Raises:
        HostsFailedError: If there are errors among them.
    """
    raise_errors(outcomes, action, not_started=not_started)
    return {host: outcome.unwrap() for host, outcome in outcomes.items()}


def values_or_errors(outcomes: Mapping[str, Value[T] | Error]) -> dict[str, T | Error]:
    """Return the value of each outcome by host, or its error with the host."""
    return {
        host: outcome.value if isinstance(outcome, Value) else attrs.evolve(outcome, host=host)
        for host, outcome in outcomes.items()
    }


def raise_errors(outcomes: Mapping[str, Value[T] | Error], action: str, *, not_started: Sequence[str] = ()) -> None:
    """Raise the errors among outcomes.

    Raises:
        HostsFailedError: If there are errors among the outcomes.
    """
    errors = errors_by_host(outcomes)
    if errors:
        total = len(outcomes) + len(not_started)
        raise HostsFailedError(action, errors, total, values_by_host(outcomes), tuple(not_started))


def values_by_host(outcomes: Mapping[str, Value[T] | Error]) -> dict[str, T]:
    """Return the values among outcomes by host."""
    return {host: outcome.value for host, outcome in outcomes.items() if isinstance(outcome, Value)}


def errors_by_host(outcomes: Mapping[str, Value[T] | Error]) -> tuple[tuple[str, Exception], ...]:
    """Return the errors among outcomes with their hosts; one that is no `Exception`, such as Ctrl-C, is raised."""
    errors = []
    for host, outcome in outcomes.items():
        if isinstance(outcome, Error):
            if not isinstance(outcome.error, Exception):
                raise outcome.error
            errors.append((host, outcome.error))
    return tuple(errors)
