"""A host under a runtime where each step is an ssh or scp process of its own, through one master."""

from __future__ import annotations

import logging
import os
import shlex
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lazycluster._functions.python_finder import exec_python_script
from lazycluster._model.forwarding import Forwarding
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._remote.ports import port_check_program
from lazycluster._ssh.host_scripts import (
    MAKE_WORKING_DIRECTORY,
    STOP_MARKED_PROCESSES,
    build_probe_script,
    grace_tenths,
)
from lazycluster._ssh.shell import PROCESS_MARK_VARIABLE, quote_path
from lazycluster._ssh.tunnel import Tunnel
from lazycluster._ssh.tunnel_manager import TunnelManager
from lazycluster.connection import Connection
from lazycluster.exceptions import CommandFailedError, LazyclusterError, PythonNotFoundError
from lazycluster.hardware import HostInfo, parse_probe_output
from lazycluster.results import CommandResult

if TYPE_CHECKING:
    from lazycluster._functions.serialize import Payload

_log = logging.getLogger(__name__)
SET_UP_TIMEOUT_SECONDS = 60.0
_CLEAN_UP_TIMEOUT_SECONDS = 120.0
_CLEAN_UP_GRACE_SECONDS = 5.0

_live_transports: weakref.WeakSet[SshTransport] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for transport in list(_live_transports):
        transport.reset()


os.register_at_fork(after_in_child=_reset_after_fork)


class SshTransport(ABC):
    """What every host behind a `Connection` can do, once it can run a script."""

    def __init__(self, connection: Connection, python: str | None = None) -> None:
        """Use a connection; `python` is the one for functions."""
        self.connection = connection
        self._python = python
        self._temp_dirs: list[str] = []
        ssh_client = connection.ssh_client
        self._tunnel_manager = TunnelManager(
            ssh_client.destination, password=ssh_client.password, timeouts=ssh_client.timeouts
        )
        _live_transports.add(self)

    def reset(self) -> None:
        """Begin without anything on the host, in a forked child: all that is its parent's."""
        self._temp_dirs = []

    @property
    def host(self) -> str:
        """Return the host as it was given."""
        return self.connection.host

    @property
    def temp_dirs(self) -> list[str]:
        """Return the temporary directories that are to be removed."""
        return list(self._temp_dirs)

    @abstractmethod
    def run_sh(self, script: str, title: str, *, cwd: str | None = None, stdin: bytes = b"") -> CommandResult:
        """Run text of the library's own in the host's /bin/sh."""

    def create_dir(self, path: str, *, cwd: str) -> None:
        """Make a directory with its parents.

        Raises:
            CommandFailedError: It cannot be made.
        """
        check_result(self.host, self.run_sh(f"mkdir -p -- {_quote_nonempty_path(path)}", f"create_dir {path}", cwd=cwd))

    def delete_dir(self, path: str, *, cwd: str) -> bool:
        """Delete a directory with all that is in it; tell whether nothing of it is left."""
        word = _quote_nonempty_path(path)
        deleted = self.run_sh(f"rm -rf -- {word} && [ ! -e {word} ]", f"delete_dir {path}", cwd=cwd).ok
        if deleted and path in self._temp_dirs:
            self.discard_temp_dir(path)
        return deleted

    def discard_temp_dir(self, path: str) -> None:
        """Note that a temporary directory is gone."""
        self._temp_dirs.remove(path)

    def open_tunnel(self, forwarding: Forwarding, owner: object) -> Tunnel:
        """Open a tunnel; the owner lives as long as it does. All tunnels of a host share one connection."""
        return Tunnel(self._tunnel_manager, [forwarding], owner=owner)

    def can_reach_host(self, timeout: float) -> bool:
        """Tell within about so many seconds whether a host that was reached before can be reached now."""
        return self.connection.ssh_client.can_reach_host(timeout)

    def close(self) -> None:
        """End the connection and what it runs."""
        self.connection.close()

    def stop_marked_processes(self) -> None:
        """End every process that was started on the host, and remove the temporary directories."""
        ssh_client = self.connection.ssh_client
        words = [
            f"{PROCESS_MARK_VARIABLE}={ssh_client.token}.",
            grace_tenths(_CLEAN_UP_GRACE_SECONDS),
            *self._temp_dirs,
        ]
        script = f"set -- {shlex.join(words)}\n{STOP_MARKED_PROCESSES}"
        try:
            result = ssh_client.run(
                script, title="clean up", timeout=_CLEAN_UP_TIMEOUT_SECONDS, login_shell=False, mark_processes=False
            )
        except LazyclusterError as error:
            _log.warning("%s: the clean-up failed: %s", self.host, error)
        else:
            if not result.ok:
                _log.warning("%s: the clean-up left something: %s", self.host, result.stderr.strip())


class PerCommandTransport(SshTransport):
    """Runs each command in an ssh process of its own; a host needs no Python but for functions and ports."""

    def set_up(self, working_dir: str | None) -> tuple[str, HostInfo]:
        """Make the working directory and probe the machine, in one round trip."""
        directory = "" if working_dir is None else quote_path(working_dir)
        script = f"set -- {directory}\n{MAKE_WORKING_DIRECTORY}\n{build_probe_script(self._python)}"
        result = self.run_sh(script, "set up a runtime")
        path, separator, facts = result.stdout_bytes.partition(b"\0")
        if not separator:
            raise CommandFailedError(self.host, "set up a runtime", result.exit_code, result.output)
        made = path.decode("utf-8", "surrogateescape")
        if working_dir is None:
            self._temp_dirs.append(made)
        return made, parse_probe_output(facts.decode(errors="replace"))

    def run(
        self,
        command: str,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
    ) -> CommandResult:
        """Run a command; see `Connection.run()`."""
        return self.connection.run(command, cwd=cwd, env=env, stdin=stdin, timeout=timeout, watch=watch)

    def call(
        self,
        payload: Payload,
        outcome: IO[bytes],
        *,
        python: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
    ) -> None:
        """Run a function; see `Connection.call()`."""
        self.connection.call(
            payload, outcome, python=python or self._python, cwd=cwd, env=env, timeout=timeout, watch=watch
        )

    def put(self, local: Path, remote: str | None = None, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Send a file or a directory; see `Connection.put()`."""
        self.connection.put(local, remote, cwd=cwd, watch=watch)

    def get(self, remote: str, local: Path, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Fetch a file or a directory; see `Connection.get()`."""
        self.connection.get(remote, local, cwd=cwd, watch=watch)

    def run_sh(self, script: str, title: str, *, cwd: str | None = None, stdin: bytes = b"") -> CommandResult:
        """Run text of the library's own in the host's /bin/sh."""
        return self.connection.ssh_client.run(
            script, title=title, cwd=cwd, stdin=stdin, timeout=SET_UP_TIMEOUT_SECONDS, login_shell=False
        )

    def is_alive(self) -> bool:
        """Tell whether a command can be run on the host now."""
        return self.connection.is_alive()

    def create_tempdir(self) -> str:
        """Make a temporary directory, and return its path."""
        result = check_result(self.host, self.run_sh(f"set --\n{MAKE_WORKING_DIRECTORY}", "create_tempdir"))
        path = result.stdout_bytes.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        self._temp_dirs.append(path)
        return path

    def free_ports(self, ports: Sequence[int]) -> list[int]:
        """Return those of the ports that a server could listen on.

        Raises:
            PythonNotFoundError: There is no Python on the host to try it with.
        """
        asked = "".join(f"{port}\n" for port in ports)
        result = self.run_sh(
            exec_python_script(self._python, port_check_program()), "check ports", stdin=asked.encode()
        )
        if result.exit_code == 127:
            raise PythonNotFoundError(self.host, self._python or "python3")
        return [int(line) for line in check_result(self.host, result).stdout.split()]

    def clean_up(self) -> None:
        """End what is left of the runtime on the host, and remove its temporary directories."""
        if self._temp_dirs or self.connection.ssh_client.is_connected:
            self.stop_marked_processes()


def check_result(host: str, result: CommandResult) -> CommandResult:
    """Return a result.

    Raises:
        CommandFailedError: The command failed.
    """
    if not result.ok:
        raise CommandFailedError(host, result.command, result.exit_code, result.output)
    return result


def _quote_nonempty_path(path: str) -> str:
    if not path:
        raise ValueError("the path must not be empty")
    return quote_path(path)
