"""`lazycluster put` and `lazycluster get`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lazycluster.cli import FAILED
from lazycluster.cli.choosing import Choice, choosing_hosts
from lazycluster.display import print_table, transfer_bars
from lazycluster.groups import RuntimeGroup
from lazycluster.manager import reason
from lazycluster.parallel import Stopping, errors_of, on_all
from lazycluster.runtimes import Runtime
from lazycluster.transport import Watch

_AT_ONCE = 16


@click.command()
@choosing_hosts
@click.argument("local", type=click.Path(exists=True, path_type=Path))
@click.argument("remote", required=False)
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

    with Choice(**which).group() as (group, left_out):
        return _moved(group, left_out, f"{local} sent to", send)


@click.command()
@choosing_hosts
@click.argument("remote")
@click.argument("directory", required=False, default=".", type=click.Path(file_okay=False, path_type=Path))
def get(remote: str, directory: Path, **which: Any) -> int:  # noqa: ANN401 - see choosing_hosts
    """Fetch the file or directory REMOTE from many hosts at once, into DIRECTORY/HOST for each.

    A relative path starts in the home directory there. DIRECTORY is by default the current one. The exit status is 1
    where it failed on some host.

    \b
    Examples:
      lazycluster get /var/log/syslog logs
      lazycluster get --hosts web-1 results
    """  # noqa: D301 - \b keeps click from wrapping what follows

    def fetch(runtime: Runtime, watch: Watch) -> None:
        target = directory.absolute() / runtime.host.replace("/", "_")
        target.mkdir(parents=True, exist_ok=True)
        runtime.transport.get(remote, target, cwd=runtime.working_dir, watch=watch)

    with Choice(**which).group() as (group, left_out):
        return _moved(group, left_out, f"{remote} fetched from", fetch)


def _moved(group: RuntimeGroup, left_out: dict[str, str], title: str, move: Callable[[Runtime, Watch], None]) -> int:
    """Move something to or from each host, with a bar for each, and say how it went."""
    stopping = Stopping()

    def work(runtime: Runtime, advance: Callable[[str, int, int | None], None]) -> None:
        with stopping.cancellation() as cancellation:
            move(runtime, Watch(on_progress=functools.partial(advance, runtime.host), cancellation=cancellation))

    with transfer_bars(group.hosts) as advance:
        jobs = {runtime.host: functools.partial(work, runtime, advance) for runtime in group.runtimes}
        outcomes = on_all(jobs, limit=_AT_ONCE, stop=stopping.request)
    failed = left_out | {host: reason(host, error) for host, error in errors_of(outcomes)}
    if failed:
        print_table(f"{len(failed)} failed", ("host", "why"), list(failed.items()), err=True)
    total = len(outcomes) + len(left_out)
    click.echo(f"{title} {total - len(failed)} of {total} hosts")
    return FAILED if failed else 0
