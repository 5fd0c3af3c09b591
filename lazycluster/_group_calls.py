"""Calls on a group: one command or function on every host, or a function with each of many items."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Sized
from typing import TypeVar, cast

import attrs

from lazycluster import _invoke
from lazycluster._display import count_bar
from lazycluster._gather import CancelGroup, check_on_error, gather, unwrap_all, values_or_errors
from lazycluster._mapping import MapScheduler
from lazycluster._membership import Members
from lazycluster._model.call_options import CallOptions
from lazycluster._model.command import Command
from lazycluster._model.watch import Watch
from lazycluster._prefixed_output import PrefixedOutput
from lazycluster._runtime_core import core_of
from lazycluster._step_output import choose_call_output
from lazycluster._waiting import CancelToken, interrupt_boundary
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
) -> Mapping[str, CommandResult | Error]:
    """Run a command on every host; see `RuntimeGroup.run()`."""
    title = Command(command, timeout=timeout).title  # checks both before any host is contacted

    def work(runtime: Runtime, cancel_token: CancelToken) -> CommandResult:
        def pass_output(stream: Stream, data: bytes) -> None:
            if on_output is not None:
                on_output(runtime.host, stream, data)

        watch = Watch(pass_output, cancel_token=cancel_token)
        return core_of(runtime).run(command, env=env, stdin=stdin, timeout=timeout, watch=watch)

    return _run_on_all(members, work, f"`{title}`", on_error)


def call_function(
    members: Members,
    function: Callable[..., T],
    on_error: OnError,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    options: CallOptions,
) -> Mapping[str, T | Error]:
    """Call a function on every host; see `RuntimeGroup.with_options()`."""
    check_callable(function)
    payload = _invoke.serialize(function, args, kwargs)
    options = attrs.evolve(options, output=choose_call_output(options.output))
    prefixed = PrefixedOutput(list(members.require())) if options.output == "print" else None

    def work(runtime: Runtime, cancel_token: CancelToken) -> T:
        value = core_of(runtime).call(payload, cancel_token, options=options, prefixed_output=prefixed)
        return cast("T", value)

    return _run_on_all(members, work, function_name(function), on_error)


def _run_on_all(
    members: Members, work: Callable[[Runtime, CancelToken], T], action: str, on_error: OnError
) -> Mapping[str, T | Error]:
    """Do the same work on every host; an interruption (Ctrl-C) ends it on the hosts."""
    check_on_error(on_error)
    runtimes = members.require()
    cancel_group = CancelGroup()
    with count_bar(action, len(runtimes), "hosts", shown=members.progress) as advance:
        outcomes = gather(
            {
                host: functools.partial(cancel_group.run, functools.partial(work, runtime))
                for host, runtime in runtimes.items()
            },
            on_result=lambda _, outcome: advance(isinstance(outcome, Value)),
            cancel=cancel_group.cancel,
        )
    return unwrap_all(outcomes, action) if on_error == "raise" else values_or_errors(outcomes)


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
    with interrupt_boundary, count_bar(title, total, "items", shown=members.progress) as advance, scheduler:
        for outcome in scheduler:
            advance(isinstance(outcome, Value))
            if isinstance(outcome, Value):
                yield outcome.value
            elif on_error == "collect":
                yield outcome
            else:
                outcome.unwrap()
