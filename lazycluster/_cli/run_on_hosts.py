"""The same on all chosen hosts at once, until it has ended or Ctrl-C stops it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TypeVar

import click

from lazycluster._gather import MAX_THREADS, CancelGroup, gather
from lazycluster._waiting import CancelToken
from lazycluster.groups import RuntimeGroup
from lazycluster.results import Error, Value
from lazycluster.runtimes import Runtime

T = TypeVar("T")


def run_on_hosts(
    group: RuntimeGroup,
    work: Callable[[Runtime, CancelToken], T],
    cancel_group: CancelGroup,
    *,
    interrupt_message: str,
    limit: int = MAX_THREADS,
    on_result: Callable[[str, Value[T] | Error], object] = lambda _host, _outcome: None,
) -> dict[str, Value[T] | Error]:
    """Do something on every host, at most so many at a time, and return what came of it.

    A request to `cancel_group` ends it on all; so does Ctrl-C, which says at once what `interrupt_message` says of
    that. `on_result` is told of each outcome as it comes.
    """

    def run_cancellable(runtime: Runtime) -> T:
        with cancel_group.token() as cancel_token:
            return work(runtime, cancel_token)

    def interrupt() -> None:
        click.echo(("\n" if sys.stderr.isatty() else "") + interrupt_message, err=True)  # not behind the terminal's ^C
        cancel_group.cancel()

    by_host = {runtime.host: functools.partial(run_cancellable, runtime) for runtime in group.runtimes}
    try:
        return gather(by_host, limit=limit, on_result=on_result, cancel=interrupt)
    except KeyboardInterrupt as error:
        raise click.Abort from error  # for which click begins no new line, because we have
