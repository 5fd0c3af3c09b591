"""What a way onto a host can do: run, call, send, receive, end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from lazycluster._model.forwarding import Forwarding
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster.hardware import HostInfo
from lazycluster.managed import ManagedProcess
from lazycluster.results import CommandResult

if TYPE_CHECKING:
    from lazycluster._functions.serialize import Payload


class Transport(Protocol):
    """One host, however it is reached. Relative paths on the host start in `cwd`, or in the home directory."""

    @property
    def host(self) -> str:
        """Return the name of the host."""

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
        """Run a command in a POSIX shell and return how it ended."""

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
        """Run a function and write its outcome to a file, for `outcome.read_outcome()`."""

    def put(self, local: Path, remote: str | None = None, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Send a file or a directory."""

    def get(self, remote: str, local: Path, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Fetch a file or a directory."""

    def close(self) -> None:
        """End the connection and what it runs."""


class Stoppable(ManagedProcess, Protocol):
    """A managed process that can be asked to end without waiting for it, so that many end together."""

    def request_stop(self) -> None:
        """Ask it to end."""


class RuntimeTransport(Transport, Protocol):
    """A transport under a runtime: it also makes directories, asks the machine, opens tunnels, and cleans up."""

    @property
    def temp_dirs(self) -> list[str]:
        """Return the temporary directories that are to be removed."""

    def set_up(self, working_dir: str | None) -> tuple[str, HostInfo]:
        """Make the working directory, a temporary one unless named, and look at the machine; return both."""

    def is_alive(self) -> bool:
        """Tell whether a command can be run on the host now; connects if need be, and never raises."""

    def create_dir(self, path: str, *, cwd: str) -> None:
        """Make a directory with its parents."""

    def create_tempdir(self) -> str:
        """Make a temporary directory, and return its path."""

    def delete_dir(self, path: str, *, cwd: str) -> bool:
        """Delete a directory with all that is in it; tell whether nothing of it is left."""

    def free_ports(self, ports: Sequence[int]) -> list[int]:
        """Return those of the ports that a server could listen on."""

    def open_tunnel(self, forwarding: Forwarding, owner: object) -> Stoppable:
        """Open a tunnel; the owner lives as long as it does."""

    def can_reach_host(self, timeout: float) -> bool:
        """Tell within about so many seconds whether a host that was reached before can be reached now."""

    def clean_up(self) -> None:
        """End what is left of the runtime on the host, and remove its temporary directories."""
