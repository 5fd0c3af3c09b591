"""`lazycluster put` and `lazycluster get`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from lazycluster._cli import EXIT_FAILED
from lazycluster._cli.options import parse_callback
from lazycluster._cli.run_on_hosts import run_on_hosts
from lazycluster._cli.selection import HostSelection, SelectedHosts, host_selection_options
from lazycluster._display import pluralize, print_table, transfer_bars
from lazycluster._gather import CancelGroup, errors_by_host
from lazycluster._model.watch import Watch
from lazycluster._runtime_core import core_of
from lazycluster._waiting import CancelToken
from lazycluster.exceptions import TransferError
from lazycluster.manager import failure_reason
from lazycluster.runtimes import Runtime

_MAX_PARALLEL_TRANSFERS = 16
_TRANSFER_INTERRUPTED_MESSAGE = "lazycluster: ending the transfers"


def parse_remote_path(path: str | None) -> str | None:
    """Return a path on the host, None if the argument is missing.

    Raises:
        ValueError: If the path is empty, such as a variable that is not set.
    """
    if path == "":
        raise ValueError(f"path on the host must not be empty, got {path!r}")
    return path


@click.command(short_help="Send a file or directory to many hosts at once.")
@host_selection_options
@click.argument("local", type=click.Path(exists=True, path_type=Path))
@click.argument("remote", required=False, callback=parse_callback(parse_remote_path))
def put(local: Path, remote: str | None, **selection: Any) -> int:  # noqa: ANN401 - see host_selection_options
    """Send the file or directory LOCAL to many hosts at once.

    REMOTE is a new name there, or an existing directory to put it into; a relative path starts in the home directory.
    Without it the file keeps its name, in the home directory. The exit status is 1 if it failed on some host.

    \b
    Examples:
      lazycluster put model.bin
      lazycluster put --hosts web-1,web-2 ./site /srv/www/
    """  # noqa: D301 - \b keeps click from wrapping what follows

    def send(runtime: Runtime, watch: Watch) -> None:
        core_of(runtime).transport.put(local.absolute(), remote, cwd=runtime.working_dir, watch=watch)

    with HostSelection(**selection).connect() as selected:
        return _transfer(selected, f"{local} sent to", send)


def parse_local_directory(path: Path) -> Path:
    """Return the absolute path of a directory that exists or can be made.

    Raises:
        ValueError: If the path, or one of its parents, is not a directory.
    """
    path = path.absolute()
    existing = next((each for each in (path, *path.parents) if os.path.lexists(each)), path)
    if not existing.is_dir():
        raise ValueError(f"{existing} is not a directory")
    return path


@click.command(short_help="Fetch a file or directory from many hosts at once.")
@host_selection_options
@click.argument("remote", callback=parse_callback(parse_remote_path))
@click.argument(
    "directory",
    required=False,
    default=".",
    type=click.Path(file_okay=False, path_type=Path),
    callback=parse_callback(parse_local_directory),
)
def get(remote: str, directory: Path, **selection: Any) -> int:  # noqa: ANN401 - see host_selection_options
    """Fetch the file or directory REMOTE from many hosts at once, into DIRECTORY/HOST for each.

    A relative path starts in the home directory there. DIRECTORY is by default the current one. The exit status is 1
    if it failed on some host.

    \b
    Examples:
      lazycluster get /var/log/syslog logs
      lazycluster get --hosts web-1 results
    """  # noqa: D301 - \b keeps click from wrapping what follows

    def host_directory(host: str) -> Path:
        return directory / host

    def fetch(runtime: Runtime, watch: Watch) -> None:
        local = host_directory(runtime.host)
        try:
            local.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TransferError(runtime.host, "fetch", remote, error.strerror or str(error), str(local)) from error
        core_of(runtime).transport.get(remote, local, cwd=runtime.working_dir, watch=watch)

    with (
        HostSelection(**selection).connect() as chosen,
        _remove_new_empty_directories([*map(host_directory, chosen.group.hosts), directory, *directory.parents]),
    ):
        return _transfer(chosen, f"{remote} fetched from", fetch)


@contextlib.contextmanager
def _remove_new_empty_directories(directories: Sequence[Path]) -> Iterator[None]:
    """Remove at the end the directories that were made in between and are empty; inner ones come first."""
    new = [path for path in directories if not path.exists()]
    try:
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):  # it was not made, or there is something in it
                path.rmdir()


def _transfer(selected: SelectedHosts, title: str, transfer_one: Callable[[Runtime, Watch], None]) -> int:
    """Send or fetch on each host, with bars, and print the outcome."""
    selected.require_hosts()
    with transfer_bars(selected.group.hosts) as bars:

        def work(runtime: Runtime, cancel_token: CancelToken) -> None:
            transferred = 0

            def on_progress(done: int, total: int | None) -> None:
                nonlocal transferred
                transferred = done
                bars.update(runtime.host, done, total)

            try:
                transfer_one(runtime, Watch(on_progress=on_progress, cancel_token=cancel_token))
            except BaseException:
                bars.finish(runtime.host, success=False)
                raise
            bars.update(runtime.host, transferred, transferred)  # the total of a directory is unknown until then
            bars.finish(runtime.host, success=True)

        outcomes = run_on_hosts(
            selected.group,
            work,
            CancelGroup(),
            interrupt_message=_TRANSFER_INTERRUPTED_MESSAGE,
            limit=_MAX_PARALLEL_TRANSFERS,
        )
    failed = selected.failed | {host: failure_reason(host, error) for host, error in errors_by_host(outcomes)}
    if failed:
        print_table(f"{len(failed)} failed", ("host", "why"), list(failed.items()), err=True)
    total = len(outcomes) + len(selected.failed)
    left_out = f"; {len(selected.filtered_out)} left out" if selected.filtered_out else ""
    click.echo(f"{title} {total - len(failed)} of {pluralize(total, 'host')}{left_out}")
    return EXIT_FAILED if failed else 0
