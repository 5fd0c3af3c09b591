"""Calls on a group: one command or function on every host, or a function with each of many items."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Sized
from typing import TypeVar, cast

from lazycluster import _invoke
from lazycluster._display import count_bar
from lazycluster._gather import CancelGroup, check_on_error, gather, unwrap_all, values_or_errors
from lazycluster._mapping import MapScheduler
from lazycluster._membership import Members
from lazycluster._model.command import Command
from lazycluster._model.watch import Watch
from lazycluster._runtime_core import core_of
from lazycluster._waiting import CancelToken
from lazycluster.results import CommandResult, Error, OnError, Stream, Value
from lazycluster.runtimes import Runtime
from lazycluster.steps import check_callable, function_name

T = TypeVar("T")
X = TypeVar("X")


def run_command(
    members: Members,
    command: str | Sequence[str],
    on_error: OnError,
    *,
    env: Mapping[str, str] | None,
    stdin: bytes,
    timeout: float | None,
    on_output: Callable[[str, Stream, bytes], object] | None,
    at_once: int | None,
) -> Mapping[str, CommandResult | Error]:
    """Run a command on every host; see `RuntimeGroup.run()`."""
    if at_once is not None and (isinstance(at_once, bool) or not isinstance(at_once, int) or at_once < 1):
        raise ValueError(f"at_once must be a whole number from 1 on or None, got {at_once!r}")
    title = Command(command, timeout=timeout).title  # checks both before any host is contacted

    def work(runtime: Runtime, cancel_token: CancelToken) -> CommandResult:
        def pass_output(stream: Stream, data: bytes) -> None:
            if on_output is not None:
                on_output(runtime.host, stream, data)

        watch = Watch(pass_output, cancel_token=cancel_token)
        return core_of(runtime).run(command, env=env, stdin=stdin, timeout=timeout, watch=watch)

    return run_on_all(members, work, f"`{title}`", on_error, at_once=at_once)


def call_function(
    members: Members,
    function: Callable[..., T],
    on_error: OnError,
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> Mapping[str, T | Error]:
    """Call a function on every host; see `RuntimeGroup.call()`."""
    check_callable(function)
    payload = _invoke.serialize(function, args, kwargs)

    def work(runtime: Runtime, cancel_token: CancelToken) -> T:
        return cast("T", core_of(runtime).call(payload, cancel_token))

    return run_on_all(members, work, function_name(function), on_error)


def run_on_all(
    members: Members,
    work: Callable[[Runtime, CancelToken], T],
    action: str,
    on_error: OnError,
    *,
    at_once: int | None = None,
) -> Mapping[str, T | Error]:
    """Do the same work on every host; an interruption (Ctrl-C) ends it on the hosts.

    With `at_once` the hosts are done in batches of that number. If errors are raised, no batch begins after a failure.
    """
    check_on_error(on_error)
    runtimes = members.require()
    cancel_group = CancelGroup()
    hosts = list(runtimes)
    outcomes: dict[str, Value[T] | Error] = {}
    with count_bar(action, len(runtimes), "hosts", shown=members.progress) as advance:
        while hosts and not (on_error == "raise" and any(isinstance(done, Error) for done in outcomes.values())):
            batch, hosts = hosts[:at_once], hosts[len(hosts) if at_once is None else at_once :]
            outcomes |= gather(
                {host: functools.partial(cancel_group.run, functools.partial(work, runtimes[host])) for host in batch},
                on_result=lambda _, outcome: advance(isinstance(outcome, Value)),
                cancel=cancel_group.cancel,
            )
    return unwrap_all(outcomes, action, not_started=hosts) if on_error == "raise" else values_or_errors(outcomes)


def map_items(
    members: Members,
    function: Callable[[X], T],
    iterable: Iterable[X],
    on_error: OnError,
    *,
    ordered: bool,
    retries: int,
) -> Generator[T | Error, None, None]:
    """Call a function with each item, on the next free host; see `RuntimeGroup.map()`."""
    check_callable(function)
    check_on_error(on_error)
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ValueError(f"retries must be a whole number from 0 on, got {retries!r}")
    runtimes = list(members.require().values())
    scheduler = MapScheduler(runtimes, function, iter(iterable), ordered=ordered, retries=retries)
    total = len(iterable) if isinstance(iterable, Sized) else None
    return _iter_results(members, scheduler, on_error, function_name(function), total)


def _iter_results(
    members: Members, scheduler: MapScheduler[X, T], on_error: OnError, title: str, total: int | None
) -> Generator[T | Error, None, None]:
    with count_bar(title, total, "items", shown=members.progress) as advance, scheduler:
        for outcome in scheduler:
            advance(isinstance(outcome, Value))
            if isinstance(outcome, Value):
                yield outcome.value
            elif on_error == "collect":
                yield outcome
            else:
                outcome.unwrap()
