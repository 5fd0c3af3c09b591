"""The sites of the contestants: a private sshd, directly or over a slow network, and plain ssh to it."""

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
    """The private sshd at one port, as an ssh configuration and, for libraries that do not read that, as its parts.

    `directory` is for local files. `home` is that of the host, on this machine, too.
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
        """The Python in which all contestants run functions, under the name by which lazycluster finds it."""
        return f"python{sys.version_info.major}.{sys.version_info.minor}"

    @property
    def ssh(self) -> tuple[str, ...]:
        """Plain ssh: a connection of its own."""
        return ("ssh", "-F", str(self.config_file), "-o", "BatchMode=yes", "-o", "ControlPath=none")


@attrs.frozen
class ControlMaster:
    """A ControlMaster, with ssh and scp through it."""

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
    # A short name: a socket's path may have 90 bytes.
    master = ControlMaster(site, site.directory / f"m{next(_socket_numbers)}")
    # It binds its socket under another name, and renames it when it is logged in and listens.
    with running_program((*master.ssh, "-N", "-M", "--", site.host), master.socket.exists):
        yield master


def direct_site(sshd: LocalSshd, directory: Path) -> Site:
    """Return the site without a delay."""
    return Site(sshd, sshd.port, sshd.config_file, sshd.known_hosts, directory)


@contextlib.contextmanager
def slow_site(sshd: LocalSshd, directory: Path, delay: float) -> Iterator[Site]:
    """Yield the site at which each byte takes `delay` seconds in either direction."""
    argv = (sys.executable, "-m", "benchmarks.slow_link", str(sshd.port), str(delay))
    with interactive_program(argv) as relay:
        port = int(relay.stdout.readline())
        known_hosts = directory / "slow_known_hosts"
        known_hosts.write_text(sshd.known_hosts.read_text().replace(f":{sshd.port} ", f":{port} "))
        config_file = write_config(directory / "slow_ssh_config", sshd.config(port=port))
        yield Site(sshd, port, config_file, known_hosts, directory)
