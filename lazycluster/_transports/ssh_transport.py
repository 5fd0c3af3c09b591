"""Files, directories, tunnels and clean-up, which are the same for all transports over ssh."""

from __future__ import annotations

import logging
import shlex
from abc import abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from lazycluster._files import contents, transfer
from lazycluster._model.command import Command
from lazycluster._model.forwarding import Forwarding
from lazycluster._model.running_command import CommandRunner, wait_for_end
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._processes.forks import reset_in_forks
from lazycluster._remote.process_tree import MAX_NAMED_PROCESSES
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.host_scripts import NAME_AND_STOP_MARKED_PROCESSES, STOP_MARKED_PROCESSES, grace_tenths
from lazycluster._ssh.shell import PROCESS_MARK_VARIABLE, quote_path
from lazycluster._ssh.tunnel import Tunnel
from lazycluster._ssh.tunnel_manager import TunnelManager
from lazycluster._transports.working_dir import WorkingDir
from lazycluster.exceptions import LazyclusterError, WorkingDirectoryError
from lazycluster.results import Collector, CommandResult, Stream

_log = logging.getLogger(__name__)
_SET_UP_TIMEOUT_SECONDS = 60.0
_CLEAN_UP_TIMEOUT_SECONDS = 120.0


class SshTransport(CommandRunner):
    """The common part of all transports over ssh."""

    def __init__(self, ssh_client: SshClient, python: str | None = None, *, max_streamed_bytes: int = -1) -> None:
        """Use an ssh client; `python` is the one for functions, `max_streamed_bytes` as in `TransferBackend`."""
        self.host = ssh_client.host
        self.ssh_client = ssh_client
        self._python = python
        self._max_streamed_bytes = max_streamed_bytes
        self._tunnel_manager = TunnelManager(
            ssh_client.destination, password=ssh_client.password, timeouts=ssh_client.timeouts
        )
        self._working_dir = WorkingDir()
        self._initialize()
        reset_in_forks(self)

    def _initialize(self) -> None:
        self._temp_dirs: list[str] = []

    def reset_after_fork(self) -> None:
        """Begin with nothing on the host, in a forked child: everything there belongs to its parent."""
        self._initialize()

    @property
    def temp_dirs(self) -> list[str]:
        """The temporary directories that are still to be removed."""
        return list(self._temp_dirs)

    @property
    def working_dir(self) -> str:
        """The working directory of the runtime."""
        return self._working_dir.path

    def _set_working_dir(self, path: str, *, is_temporary: bool) -> None:
        self._working_dir.set(path, is_temporary=is_temporary)
        if is_temporary:
            self._temp_dirs.append(path)

    def _replacing_lost_dir(self) -> AbstractContextManager[None]:
        """Replace a temporary working directory that is gone, if the block cannot enter it."""
        return self._working_dir.replaced_if_gone(self._is_dir_gone, self.create_tempdir)

    def _is_dir_gone(self, path: str) -> bool:
        if contents.path_exists(self, path, cwd=None):
            return False
        if path in self._temp_dirs:
            self._temp_dirs.remove(path)
        return True

    @abstractmethod
    def create_tempdir(self) -> str:
        """Make a temporary directory, and return its path."""

    def connect(self) -> None:
        """Log in unless the client is connected."""
        self.ssh_client.master()

    def put(self, local: Path, remote: str | None = None, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Send a file or a directory; see `Connection.put()`."""
        transfer.put(self._transfer_backend(), local, remote, cwd=cwd, watch=watch)

    def get(self, remote: str, local: Path, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Fetch a file or a directory; see `Connection.get()`."""
        transfer.get(self._transfer_backend(), remote, local, cwd=cwd, watch=watch)

    def read_file(self, path: str, max_size: int, *, cwd: str) -> bytes:
        """Return the content of a file of at most `max_size` bytes."""
        return contents.read_file(self, path, max_size, cwd=cwd)

    def write_file(self, path: str, data: bytes, *, cwd: str) -> None:
        """Replace or make a file."""
        contents.write_file(self, path, data, cwd=cwd)

    def path_exists(self, path: str, *, cwd: str) -> bool:
        """Return whether a path leads to something."""
        return contents.path_exists(self, path, cwd=cwd)

    def list_dir(self, path: str, *, cwd: str) -> list[str]:
        """Return the names in a directory, sorted."""
        return contents.list_dir(self, path, cwd=cwd)

    def glob(self, pattern: str, *, cwd: str) -> list[str]:
        """Return the paths that match a pattern, sorted."""
        return contents.glob(self, pattern, cwd=cwd)

    def _transfer_backend(self) -> transfer.TransferBackend:
        return transfer.TransferBackend(self, self.ssh_client, max_streamed_bytes=self._max_streamed_bytes)

    def run_sh(self, script: str, title: str, *, cwd: str | None = None, stdin: bytes = b"") -> CommandResult:
        """Run a shell text of the library in the host's /bin/sh."""
        return self.run(
            Command(script, cwd=cwd, stdin=stdin, timeout=_SET_UP_TIMEOUT_SECONDS, title=title, login_shell=False)
        )

    def create_dir(self, path: str, *, cwd: str) -> None:
        """Make a directory with its parents.

        Raises:
            CommandFailedError: If it cannot be made.
        """
        self.run_sh(f"mkdir -p -- {_quote_nonempty_path(path)}", f"create_dir {path}", cwd=cwd).check()

    def delete_dir(self, path: str, *, cwd: str) -> bool:
        """Delete a directory with its contents; return whether nothing of it is left."""
        word = _quote_nonempty_path(path)
        deleted = self.run_sh(f"rm -rf -- {word} && [ ! -e {word} ]", f"delete_dir {path}", cwd=cwd).ok
        if deleted and path in self._temp_dirs:
            self.discard_temp_dir(path)
        return deleted

    def discard_temp_dir(self, path: str) -> None:
        """Record that a temporary directory is gone."""
        self._temp_dirs.remove(path)

    def open_tunnel(self, forwarding: Forwarding, owner: object) -> Tunnel:
        """Open a tunnel; the owner lives as long as the tunnel. All tunnels of a host share one connection."""
        return Tunnel(self._tunnel_manager, [forwarding], owner=owner)

    def can_reach_host(self, timeout: float) -> bool:
        """Return, after at most about `timeout` seconds, whether a host that was reached before can be reached now."""
        return self.ssh_client.can_reach_host(timeout)

    def close(self) -> None:
        """End the connection and everything that runs over it."""
        self.ssh_client.close()

    def stop_marked_processes(self, directories: Collection[str] = (), *, name_them: bool = False) -> None:
        """End every process that was started on the host; remove the temporary directories and the given ones.

        With `name_them` a warning names the processes that are ended.
        """
        mark = f"{PROCESS_MARK_VARIABLE}={self.ssh_client.token}."
        words = shlex.join([mark, grace_tenths(self.ssh_client.grace), *self._temp_dirs, *directories])
        text = f"set -- {words}\n{NAME_AND_STOP_MARKED_PROCESSES if name_them else STOP_MARKED_PROCESSES}"
        command = Command(text, timeout=_CLEAN_UP_TIMEOUT_SECONDS, title="clean up", login_shell=False)
        collector = Collector()
        try:
            exit_code = self.ssh_client.run_script(
                self.ssh_client.script(command, mark_processes=False), wait_for_end, Watch(collector=collector)
            )
        except LazyclusterError as error:
            _log.warning("%s: the clean-up failed: %s", self.host, error)
        else:
            names = collector.getvalue(Stream.STDOUT).decode(errors="replace").splitlines()
            warn_of_left_running(self.host, [name for name in names if name.strip()])
            if exit_code != 0:
                stderr = collector.getvalue(Stream.STDERR).decode(errors="replace").strip()
                _log.warning("%s: the clean-up left something: %s", self.host, stderr)


def warn_of_left_running(host: str, command_lines: Sequence[str]) -> None:
    """Log a warning that names processes that their commands had left running, if there are any."""
    if command_lines:
        shown = [process_name(line) for line in command_lines[:MAX_NAMED_PROCESSES]]
        others = ", and others" if len(command_lines) > MAX_NAMED_PROCESSES else ""
        _log.warning("%s: ended what commands had left running: %s%s", host, ", ".join(shown), others)


def process_name(command_line: str) -> str:
    """Return the command line of a process for a message, on one line."""
    return f"`{''.join(char if char.isprintable() else '?' for char in command_line.strip())}`"


def directory_error(host: str, path: str | None, reason: str) -> WorkingDirectoryError:
    """Return the error of a working directory, a temporary one by default, that could not be made."""
    advice = "Set TMPDIR on the host, or name a working directory." if path is None else "Name another one."
    return WorkingDirectoryError(host, path or "(temporary)", f"it could not be made: {reason}", advice)


def _quote_nonempty_path(path: str) -> str:
    if not path:
        raise ValueError(f"path must not be empty, got {path!r}")
    return quote_path(path)
