"""The scripts that transfers run on a host: their commands, and the fields that they print."""

from __future__ import annotations

from lazycluster._model.command import Command
from lazycluster._ssh.diagnosis import tar_failure_reason
from lazycluster.exceptions import TransferError
from lazycluster.results import CommandResult


def transfer_script(
    text: str,
    *words: str,
    title: str,
    cwd: str | None = None,
    stdin: bytes | None = b"",
    timeout: float | None = None,
) -> Command:
    """Return a script for the host's /bin/sh with its positional parameters; the words must be quoted already."""
    program = f"set -- {' '.join(words)}\n{text}"
    return Command(program, cwd=cwd, stdin=stdin, timeout=timeout, title=title, login_shell=False)


def script_fields(host: str, action: str, path: str, result: CommandResult, target: str = "") -> list[str]:
    """Return the NUL-terminated fields that a script printed.

    Raises:
        TransferError: If the script fails.
    """
    if not result.ok:
        reason = tar_failure_reason(result.stderr) or f"exit status {result.exit_code}"
        raise TransferError(host, action, path, reason, target)
    return [field.decode("utf-8", "surrogateescape") for field in result.stdout_bytes.split(b"\0")[:-1]]
