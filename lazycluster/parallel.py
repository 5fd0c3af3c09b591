"""The same work on many hosts at once, each in a thread of its own, and what came of it on each."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias, TypeVar

from lazycluster.exceptions import HostsFailedError
from lazycluster.results import Error, Value

T = TypeVar("T")
OnError: TypeAlias = Literal["raise", "collect"]
MOST = 256
"""Threads at once, where nothing else limits them; they only wait."""
_PARTING = 8.0
"""Seconds that an interrupted caller waits for what it has stopped: more than the grace period of a command."""


def on_all(
    work: Mapping[str, Callable[[], T]],
    *,
    limit: int = MOST,
    done: Callable[[str, Value[T] | Error], object] = lambda _host, _outcome: None,
    stop: Callable[[], object] = lambda: None,
) -> dict[str, Value[T] | Error]:
    """Do what is to be done for each host, at most so many at a time, and return the outcomes in the order given.

    `done` is told of each outcome as it comes, in the calling thread. Where that thread is interrupted (Ctrl-C), no
    further work is begun, `stop` is called to end what is under way, and that is waited for a moment.
    """
    waiting: queue.SimpleQueue[tuple[str, Callable[[], T]]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[str, Value[T] | Error]] = queue.SimpleQueue()
    for host_and_work in work.items():
        waiting.put(host_and_work)

    def labour() -> None:
        while True:
            try:
                host, function = waiting.get_nowait()
            except queue.Empty:
                return
            ended.put((host, outcome_of(function)))

    threads = [
        threading.Thread(target=labour, name=f"lazycluster-host-{number}", daemon=True)
        for number in range(min(limit, len(work)))
    ]
    outcomes: dict[str, Value[T] | Error] = {}
    try:
        for thread in threads:
            thread.start()
        while len(outcomes) < len(work):
            host, outcome = ended.get()
            outcomes[host] = outcome
            done(host, outcome)
    except BaseException:
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join(_PARTING)
        raise
    return {host: outcomes[host] for host in work}


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
        found = {host: outcome.value for host, outcome in outcomes.items() if isinstance(outcome, Value)}
        raise HostsFailedError(action, errors, len(outcomes), found) from errors[0][1]


def errors_of(outcomes: Mapping[str, Value[T] | Error]) -> tuple[tuple[str, Exception], ...]:
    """Return the errors among outcomes with their hosts; one that is no `Exception`, such as Ctrl-C, is raised."""
    errors = []
    for host, outcome in outcomes.items():
        if isinstance(outcome, Error):
            if not isinstance(outcome.error, Exception):
                raise outcome.error
            errors.append((host, outcome.error))
    return tuple(errors)
