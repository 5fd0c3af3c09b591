"""The interface of a transport: run, call, send and fetch on one host, and end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from lazycluster._functions.function_call import FunctionCall
from lazycluster._model.command import Command
from lazycluster._model.forwarding import Forwarding
from lazycluster._model.running_command import Conversation
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster.hardware import HostInfo
from lazycluster.managed import ManagedProcess
from lazycluster.results import CommandResult


class Transport(Protocol):
    """One host. Relative paths on the host start in `cwd`, or in the home directory. Any thread may use it."""

    @property
    def host(self) -> str:
        """The host as it was given."""

    def connect(self) -> None:
        """Log in unless the transport is connected.

        Raises:
            ConnectError: If the host could not be reached.
        """

    def run(self, command: Command, watch: Watch = UNWATCHED) -> CommandResult:
        """Run a command and return its result."""

    def communicate(self, command: Command, conversation: Conversation, watch: Watch = UNWATCHED) -> int:
        """Run a command, hold a conversation with it, and return its exit status; see `CommandRunner.communicate()`."""

    def call(self, call: FunctionCall, outcome: IO[bytes], watch: Watch = UNWATCHED) -> None:
        """Call a function and write its outcome to a file, for `read_outcome()`."""

    def put(self, local: Path, remote: str | None = None, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Send a file or a directory."""

    def get(self, remote: str, local: Path, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Fetch a file or a directory."""

    def is_alive(self) -> bool:
        """Return whether the host can run a command now; connects if need be, and never raises."""

    def close(self) -> None:
        """End the connection and everything that runs over it."""


class Stoppable(ManagedProcess, Protocol):
    """A managed process that can be asked to end without a wait for it, so that many end together."""

    def request_stop(self) -> None:
        """Ask it to end."""


class RuntimeTransport(Transport, Protocol):
    """The transport of a runtime: it also makes directories, probes the machine, opens tunnels, and cleans up."""

    @property
    def working_dir(self) -> str:
        """The working directory: a new one, after a temporary one was gone and an error has said so."""

    @property
    def temp_dirs(self) -> list[str]:
        """The temporary directories that are still to be removed."""

    def set_up(self, working_dir: str | None) -> tuple[str, HostInfo]:
        """Make the working directory, a temporary one by default, probe the machine, and return both."""

    def create_dir(self, path: str, *, cwd: str) -> None:
        """Make a directory with its parents."""

    def create_tempdir(self) -> str:
        """Make a temporary directory, and return its path."""

    def delete_dir(self, path: str, *, cwd: str) -> bool:
        """Delete a directory with its contents; return whether nothing of it is left."""

    def read_file(self, path: str, max_size: int, *, cwd: str) -> bytes:
        """Return the content of a file of at most `max_size` bytes."""

    def write_file(self, path: str, data: bytes, *, cwd: str) -> None:
        """Replace or make a file."""

    def path_exists(self, path: str, *, cwd: str) -> bool:
        """Return whether a path leads to something."""

    def list_dir(self, path: str, *, cwd: str) -> list[str]:
        """Return the names in a directory, sorted."""

    def glob(self, pattern: str, *, cwd: str) -> list[str]:
        """Return the paths that match a pattern, sorted."""

    def free_ports(self, ports: Sequence[int]) -> list[int]:
        """Return the given ports on which a server could listen."""

    def open_tunnel(self, forwarding: Forwarding, owner: object) -> Stoppable:
        """Open a tunnel; the owner lives as long as the tunnel."""

    def can_reach_host(self, timeout: float) -> bool:
        """Return, after at most about `timeout` seconds, whether a host that was reached before can be reached now."""

    def clean_up(self) -> None:
        """End everything that is left of the runtime on the host, and remove its temporary directories."""
