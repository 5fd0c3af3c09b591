"""Where the contestants log in: a private sshd, directly or over a slow link, and the plain ssh that leads there."""

from __future__ import annotations

import contextlib
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from benchmarks.processes import interactive_program, running_program
from lazycluster.testing import write_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazycluster.testing import LocalSshd

_socket_numbers = itertools.count()


@attrs.frozen
class Site:
    """One way to the private sshd, as an ssh configuration and, for libraries that do not read that, as its parts.

    `directory` is for files on this side; `home` is that of the other side, on this machine too.
    """

    sshd: LocalSshd
    port: int
    config_file: Path
    known_hosts: Path
    directory: Path

    @property
    def host(self) -> str:
        return self.sshd.host

    @property
    def home(self) -> Path:
        return self.sshd.home

    @property
    def python(self) -> str:
        """The Python that all run functions in: the one that lazycluster finds, by the name by which it does."""
        return f"python{sys.version_info.major}.{sys.version_info.minor}"

    @property
    def ssh(self) -> tuple[str, ...]:
        """Plain ssh: a connection of its own."""
        return ("ssh", "-F", str(self.config_file), "-o", "BatchMode=yes", "-o", "ControlPath=none")


@attrs.frozen
class ControlMaster:
    """A ControlMaster of ours, for what goes through it."""

    site: Site
    socket: Path

    @property
    def ssh(self) -> tuple[str, ...]:
        return ("ssh", *self._options)

    @property
    def scp(self) -> tuple[str, ...]:
        return ("scp", "-q", *self._options)

    @property
    def _options(self) -> tuple[str, ...]:
        return ("-F", str(self.site.config_file), "-o", "BatchMode=yes", "-o", f"ControlPath={self.socket}")


@contextlib.contextmanager
def open_master(site: Site) -> Iterator[ControlMaster]:
    """Keep a ControlMaster for a block."""
    made = ControlMaster(site, site.directory / f"m{next(_socket_numbers)}")  # short: a socket's path may have 90 bytes
    # It binds its socket under another name, and renames it when it is logged in and listens.
    with running_program((*made.ssh, "-N", "-M", "--", site.host), made.socket.exists):
        yield made


def direct_site(sshd: LocalSshd, directory: Path) -> Site:
    """Return the way that takes no time."""
    return Site(sshd, sshd.port, sshd.config_file, sshd.known_hosts, directory)


@contextlib.contextmanager
def slow_site(sshd: LocalSshd, directory: Path, delay: float) -> Iterator[Site]:
    """Give the way on which each byte takes `delay` seconds in either direction."""
    argv = (sys.executable, "-m", "benchmarks.slow_link", str(sshd.port), str(delay))
    with interactive_program(argv) as link:
        port = int(link.stdout.readline())
        known_hosts = directory / "slow_known_hosts"
        known_hosts.write_text(sshd.known_hosts.read_text().replace(f":{sshd.port} ", f":{port} "))
        config_file = write_config(directory / "slow_ssh_config", sshd.config(port=port))
        yield Site(sshd, port, config_file, known_hosts, directory)
