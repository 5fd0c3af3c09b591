"""The same work on all chosen hosts at once, until it has ended or Ctrl-C stops it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TypeVar

import click

from lazycluster._display import is_terminal
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
    """Do the same work on every host, on at most `limit` hosts at a time, and return the outcomes by host.

    `cancel_group` can end the work on all hosts. Ctrl-C prints `interrupt_message` at once and ends the work, too.
    `on_result` gets each outcome when it comes.
    """

    def interrupt() -> None:
        click.echo(
            ("\n" if is_terminal(sys.stderr) else "") + interrupt_message, err=True
        )  # after the terminal's own ^C
        cancel_group.cancel()

    by_host = {
        runtime.host: functools.partial(cancel_group.run, functools.partial(work, runtime))
        for runtime in group.runtimes
    }
    try:
        return gather(by_host, limit=limit, on_result=on_result, cancel=interrupt)
    except KeyboardInterrupt as error:
        raise click.Abort from error  # click begins no new line for it, unlike for a KeyboardInterrupt
