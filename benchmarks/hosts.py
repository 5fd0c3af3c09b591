"""Many hosts: private sshds on loopback, as many as a row asks for, each started once."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from benchmarks.machine import default_key_exchange
from benchmarks.processes import running_programs
from lazycluster.testing import LocalSshd, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from lazycluster._typing import Self

MAX_LOGINS = 16
"""Log-ins at once of every contestant that has such a limit: the default of `RuntimeGroup`."""
_DEFAULT_STARTUPS = {"MaxStartups": "10:30:100"}  # sshd's own; that of LocalSshd is roomier
_MAX_SSHDS_STARTING = 8  # sshds at once

_config_numbers = itertools.count()


@attrs.frozen
class Host:
    """The address of one host, for contestants that read no ssh configuration."""

    name: str
    port: int
    user: str
    identity_file: Path
    log: Path

    def count_logins(self) -> int:
        """Return the number of log-ins to its sshd so far."""
        return self.log.read_text(errors="replace").count("Accepted publickey")


@attrs.frozen
class Hosts:
    """Some hosts, and one ssh configuration for all; it can be sent to another process."""

    members: tuple[Host, ...]
    config_file: Path
    known_hosts: Path
    sockets: Path
    """A directory with a short path, for the control sockets of hosts."""

    @property
    def names(self) -> list[str]:
        return [host.name for host in self.members]

    @property
    def ssh(self) -> tuple[str, ...]:
        """Plain ssh: a connection of its own."""
        return ("ssh", "-F", str(self.config_file), "-o", "BatchMode=yes")

    def ssh_options(self) -> str:
        """Return the same options as text, for a tool that starts ssh itself and splits them at spaces."""
        return " ".join(self.ssh[1:])


class LoginCounter:
    """Counts the log-ins to each sshd since the last count, by the logs of the sshds."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._seen = self._count()

    def expect_login_on_each(self) -> None:
        """Refuse a contestant that has not logged in to each host: it did not do the work."""
        before, self._seen = self._seen, self._count()
        wanted = Counter(host.log for host in self._hosts.members)
        if missing := sum((wanted - (self._seen - before)).values()):
            raise ValueError(f"{missing} of {len(self._hosts.members)} hosts have seen no log-in")

    def _count(self) -> Counter[Path]:
        return Counter({host.log: host.count_logins() for host in self._hosts.members})


@contextlib.contextmanager
def open_masters(hosts: Hosts) -> Iterator[Hosts]:
    """Keep a ControlMaster to each host for a block; yield the same hosts, reached through the masters.

    The masters stay in the foreground, as children of this process, which ends them in any case.
    """
    directory = Path(tempfile.mkdtemp(prefix="m", dir=hosts.sockets))
    config_file = directory / "config"
    config_file.write_text(f"{hosts.config_file.read_text()}\nHost *\n    ControlPath {directory}/%n\n")
    through = attrs.evolve(hosts, config_file=config_file)
    programs = [
        # It binds its socket under another name, and renames it when it is logged in and listens.
        ((*through.ssh, "-N", "-M", "--", name), (directory / name).exists)
        for name in hosts.names
    ]
    with running_programs(programs, MAX_LOGINS):
        yield through


class SshdFarm:
    """As many private sshds as were asked for so far; a context manager that ends them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._home = directory / "shared-home"
        self._stack = contextlib.ExitStack()
        self._servers: list[LocalSshd] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        servers, self._servers = self._servers, []
        with ThreadPoolExecutor(_MAX_SSHDS_STARTING) as pool:
            list(pool.map(LocalSshd.stop, servers))

    def first_hosts(self, count: int) -> Hosts:
        """Return `count` hosts, each an sshd of its own."""
        self._start(count - len(self._servers))
        return self._hosts([(server.host, server) for server in self._servers[:count]])

    def aliases_of_one_host(self, count: int) -> Hosts:
        """Return `count` hosts that are one and the same sshd, which limits the log-ins at once."""
        self._start(1 - len(self._servers))
        return self._hosts([(f"name-{number}", self._servers[0]) for number in range(count)])

    def _start(self, count: int) -> None:
        """Start `count` more sshds.

        They share one home: with a home of its own, an sshd wraps each command in a script that sets it. Contestants
        that begin a session for each command would pay most for that. This home is empty, so that no start-up file is
        read. After the host's own programs its sessions find the Python that runs this, for functions.
        """
        self._home.mkdir(mode=0o700, exist_ok=True)
        taken = len(self._servers)
        new = [
            LocalSshd(
                name=f"host-{taken + number}",
                home=False,
                environment={"HOME": str(self._home), "PATH": f"{os.defpath}:{Path(sys.base_prefix, 'bin')}"},
                options={**_DEFAULT_STARTUPS, **default_key_exchange()},
            )
            for number in range(count)
        ]
        self._servers += new  # before they start: stopping one that does not run does nothing
        with ThreadPoolExecutor(_MAX_SSHDS_STARTING) as pool:
            list(pool.map(LocalSshd.start, new))

    def _hosts(self, named: Sequence[tuple[str, LocalSshd]]) -> Hosts:
        number = next(_config_numbers)
        known_hosts = self._directory / f"known_hosts-{number}"
        known_hosts.write_text("".join(dict.fromkeys(server.known_hosts.read_text() for _, server in named)))
        sections = [server.config(name=name) for name, server in named]
        return Hosts(
            tuple(
                Host(name, server.port, server.user, server.identity_file, server.directory / "log")
                for name, server in named
            ),
            write_config(self._directory / f"ssh_config-{number}", *sections),
            known_hosts,
            self._directory,
        )
