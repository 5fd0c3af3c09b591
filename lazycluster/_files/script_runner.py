"""Scripts on a host, by which transfers work: their arguments, their streams, the fields that they print."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._ssh.diagnosis import tar_failure_reason
from lazycluster._ssh.shell import Script
from lazycluster.exceptions import TransferError
from lazycluster.results import Collector, CommandResult


class RunningScript(Protocol):
    """A script under way."""

    def write(self, data: bytes) -> None:
        """Send to its standard input."""

    def close_stdin(self) -> None:
        """End its standard input."""

    def read(self, size: int) -> bytes:
        """Return so many bytes of its standard output, fewer only at the end."""

    def read_some(self) -> bytes:
        """Return what there is of its standard output, waiting for some; nothing only at the end."""

    def read_until(self, end: bytes) -> bytes | None:
        """Return its standard output up to a byte string, which is taken off; None where it ends before."""

    def wait(self) -> None:
        """Wait until it has ended and its output is complete."""


class ScriptRunner(Protocol):
    """Runs scripts on one host: `SshClient`, each in a session of its own, or a child of a supervisor."""

    @property
    def host(self) -> str:
        """Return the host as it was given."""

    def script(
        self,
        command: str,
        *,
        title: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        raw_stdin: bool = False,
        login_shell: bool = True,
    ) -> Script:
        """Return a command as a script."""

    def run(
        self,
        command: str,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
        title: str | None = None,
        login_shell: bool = True,
    ) -> CommandResult:
        """Run a command and return how it ended."""

    def run_script(
        self,
        script: Script,
        work: Callable[[RunningScript], object],
        *,
        collector: Collector,
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
    ) -> int:
        """Run a script and return its exit status; `work` feeds and reads it, and finishes it."""


def script_with_arguments(text: str, *words: str) -> str:
    """Return a script with its positional parameters set; the words must be quoted already."""
    return f"set -- {' '.join(words)}\n{text}"


def script_fields(host: str, action: str, path: str, result: CommandResult, target: str = "") -> list[str]:
    """Return the NUL-terminated fields that a script printed.

    Raises:
        TransferError: The script failed.
    """
    if not result.ok:
        reason = tar_failure_reason(result.stderr) or f"exit status {result.exit_code}"
        raise TransferError(host, action, path, reason, target)
    return [field.decode("utf-8", "surrogateescape") for field in result.stdout_bytes.split(b"\0")[:-1]]
