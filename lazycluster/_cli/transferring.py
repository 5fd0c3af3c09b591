"""`lazycluster put` and `lazycluster get`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from lazycluster._cli import FAILED
from lazycluster._cli.choosing import Choice, Chosen, choosing_hosts
from lazycluster._cli.options import parsed
from lazycluster._cli.together import on_each
from lazycluster._display import counted, print_table, transfer_bars
from lazycluster._gather import Stopping, errors_of
from lazycluster._model.watch import Watch
from lazycluster._waiting import Cancellation
from lazycluster.exceptions import TransferError
from lazycluster.manager import reason
from lazycluster.runtimes import Runtime

_AT_ONCE = 16
_INTERRUPTED = "lazycluster: ending the transfers"


def parse_remote(path: str | None) -> str | None:
    """Return a path on the host, None where none was given.

    Raises:
        ValueError: It is empty, as a variable that is not set.
    """
    if path == "":
        raise ValueError("the path on the host is empty")
    return path


@click.command(short_help="Send a file or directory to many hosts at once.")
@choosing_hosts
@click.argument("local", type=click.Path(exists=True, path_type=Path))
@click.argument("remote", required=False, callback=parsed(parse_remote))
def put(local: Path, remote: str | None, **which: Any) -> int:  # noqa: ANN401 - see choosing_hosts
    """Send the file or directory LOCAL to many hosts at once.

    REMOTE is a new name there, or an existing directory to put it into; a relative path starts in the home directory.
    Without it the file keeps its name, in the home directory. The exit status is 1 where it failed on some host.

    \b
    Examples:
      lazycluster put model.bin
      lazycluster put --hosts web-1,web-2 ./site /srv/www/
    """  # noqa: D301 - \b keeps click from wrapping what follows

    def send(runtime: Runtime, watch: Watch) -> None:
        runtime.transport.put(local.absolute(), remote, cwd=runtime.working_dir, watch=watch)

    with Choice(**which).group() as chosen:
        return _moved(chosen, f"{local} sent to", send)


def parse_directory(path: Path) -> Path:
    """Return the absolute path of a directory that is there, or can be made.

    Raises:
        ValueError: Something else is there, or on the way.
    """
    path = path.absolute()
    there = next((each for each in (path, *path.parents) if os.path.lexists(each)), path)
    if not there.is_dir():
        raise ValueError(f"{there} is not a directory")
    return path


@click.command(short_help="Fetch a file or directory from many hosts at once.")
@choosing_hosts
@click.argument("remote", callback=parsed(parse_remote))
@click.argument(
    "directory",
    required=False,
    default=".",
    type=click.Path(file_okay=False, path_type=Path),
    callback=parsed(parse_directory),
)
def get(remote: str, directory: Path, **which: Any) -> int:  # noqa: ANN401 - see choosing_hosts
    """Fetch the file or directory REMOTE from many hosts at once, into DIRECTORY/HOST for each.

    A relative path starts in the home directory there. DIRECTORY is by default the current one. The exit status is 1
    where it failed on some host.

    \b
    Examples:
      lazycluster get /var/log/syslog logs
      lazycluster get --hosts web-1 results
    """  # noqa: D301 - \b keeps click from wrapping what follows

    def target(host: str) -> Path:
        return directory / host

    def fetch(runtime: Runtime, watch: Watch) -> None:
        local = target(runtime.host)
        try:
            local.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TransferError(runtime.host, "fetch", remote, error.strerror or str(error), str(local)) from error
        runtime.transport.get(remote, local, cwd=runtime.working_dir, watch=watch)

    with (
        Choice(**which).group() as chosen,
        _no_new_empty([*map(target, chosen.group.hosts), directory, *directory.parents]),
    ):
        return _moved(chosen, f"{remote} fetched from", fetch)


@contextlib.contextmanager
def _no_new_empty(directories: Sequence[Path]) -> Iterator[None]:
    """Remove at the end those directories that have been made meanwhile and are empty; inner ones come first."""
    new = [path for path in directories if not path.exists()]
    try:
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):  # it was not made, or there is something in it
                path.rmdir()


def _moved(chosen: Chosen, title: str, move: Callable[[Runtime, Watch], None]) -> int:
    """Move something to or from each host, with bars, and say how it went."""
    chosen.check()
    with transfer_bars(chosen.group.hosts) as bars:

        def work(runtime: Runtime, cancellation: Cancellation) -> None:
            moved = 0

            def on_progress(done: int, total: int | None) -> None:
                nonlocal moved
                moved = done
                bars.advance(runtime.host, done, total)

            try:
                move(runtime, Watch(on_progress=on_progress, cancellation=cancellation))
            except BaseException:
                bars.end(runtime.host, good=False)
                raise
            bars.advance(runtime.host, moved, moved)  # of a directory nobody knew the total before
            bars.end(runtime.host, good=True)

        outcomes = on_each(chosen.group, work, Stopping(), interrupted=_INTERRUPTED, limit=_AT_ONCE)
    failed = chosen.failed | {host: reason(host, error) for host, error in errors_of(outcomes)}
    if failed:
        print_table(f"{len(failed)} failed", ("host", "why"), list(failed.items()), err=True)
    total = len(outcomes) + len(chosen.failed)
    left_out = f"; {len(chosen.lacking)} left out" if chosen.lacking else ""
    click.echo(f"{title} {total - len(failed)} of {counted(total, 'host')}{left_out}")
    return FAILED if failed else 0
