"""The same on all chosen hosts at once, until it has ended or Ctrl-C stops it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TypeVar

import click

from lazycluster._gather import MOST, Stopping, on_all
from lazycluster._waiting import Cancellation
from lazycluster.groups import RuntimeGroup
from lazycluster.results import Error, Value
from lazycluster.runtimes import Runtime

T = TypeVar("T")


def on_each(
    group: RuntimeGroup,
    work: Callable[[Runtime, Cancellation], T],
    stopping: Stopping,
    *,
    interrupted: str,
    limit: int = MOST,
    done: Callable[[str, Value[T] | Error], object] = lambda _host, _outcome: None,
) -> dict[str, Value[T] | Error]:
    """Do something on every host, at most so many at a time, and return what came of it.

    A request to `stopping` ends it on all; so does Ctrl-C, which says at once what `interrupted` says of that. `done`
    is told of each outcome as it comes.
    """

    def stoppable(runtime: Runtime) -> T:
        with stopping.cancellation() as cancellation:
            return work(runtime, cancellation)

    def interrupt() -> None:
        click.echo(("\n" if sys.stderr.isatty() else "") + interrupted, err=True)  # not behind the terminal's ^C
        stopping.request()

    jobs = {runtime.host: functools.partial(stoppable, runtime) for runtime in group.runtimes}
    try:
        return on_all(jobs, limit=limit, done=done, stop=interrupt)
    except KeyboardInterrupt as error:
        raise click.Abort from error  # for which click begins no new line, because we have
