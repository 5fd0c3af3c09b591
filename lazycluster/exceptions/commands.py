"""Errors of commands and tasks on a host."""

from __future__ import annotations

from typing import Literal

import attrs

from lazycluster.exceptions._text import indented_tail, shorten
from lazycluster.exceptions.root import LazyclusterError


class CommandError(LazyclusterError):
    """A command or task failed on a host that can be used."""


@attrs.frozen(slots=False)
class CommandTimeoutError(CommandError, TimeoutError):
    """A command ran longer than its timeout; the host ended it with its children."""

    host: str
    command: str
    timeout: float
    stdout_bytes: bytes = attrs.field(default=b"", repr=False)
    stderr_bytes: bytes = attrs.field(default=b"", repr=False)

    @property
    def stdout(self) -> str:
        """The standard output so far as text (UTF-8; undecodable bytes replaced)."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """The standard error so far as text (UTF-8; undecodable bytes replaced)."""
        return self.stderr_bytes.decode(errors="replace")

    def __str__(self) -> str:
        output = indented_tail(self.stdout + self.stderr)
        took = f"took longer than its timeout of {self.timeout:g} s and was ended"
        return f"{self.host}: `{shorten(self.command)}` {took}.{output}"


@attrs.frozen(slots=False)
class OutputLimitError(CommandError):
    """A command printed more than `max_output` bytes to one stream; the host ended it with its children.

    The outputs are the end of what came of each stream, at most 64 KiB.
    """

    host: str
    command: str
    limit: int
    stream: Literal["stdout", "stderr"]
    stdout_bytes: bytes = attrs.field(default=b"", repr=False)
    stderr_bytes: bytes = attrs.field(default=b"", repr=False)

    @property
    def stdout(self) -> str:
        """The end of standard output as text (UTF-8; undecodable bytes replaced)."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """The end of standard error as text (UTF-8; undecodable bytes replaced)."""
        return self.stderr_bytes.decode(errors="replace")

    def __str__(self) -> str:
        printed = f"printed more than {self.limit} bytes to {self.stream} and was ended"
        advice = "Allow more with max_output=, or send its output to a file on the host"
        output = indented_tail(self.stdout if self.stream == "stdout" else self.stderr)
        return f"{self.host}: `{shorten(self.command)}` {printed}. {advice}.{output}"


@attrs.frozen(slots=False)
class CommandStoppedError(CommandError):
    """The local process stopped a command or function before it ended."""

    host: str
    command: str

    def __str__(self) -> str:
        return f"{self.host}: `{shorten(self.command)}` was stopped before it ended."


@attrs.frozen(slots=False)
class CommandFailedError(CommandError):
    """A command that must succeed ended with an exit status other than 0."""

    host: str
    command: str
    exit_code: int
    output: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        output = indented_tail(self.output)
        host = f"{self.host}: " if self.host else ""  # a result that a test made may have no host
        return f"{host}`{shorten(self.command)}` ended with exit status {self.exit_code}.{output}"


@attrs.frozen(slots=False)
class WorkingDirectoryError(CommandError):
    """A working directory could not be entered or made."""

    host: str
    path: str
    reason: str
    advice: str = "Create it first."

    def __str__(self) -> str:
        return f"{self.host}: cannot enter the working directory {self.path!r} ({self.reason}). {self.advice}"


@attrs.frozen(slots=False)
class TaskExecutionError(CommandError):
    """A step of a task failed, with the error in `__cause__`. The steps after it did not run."""

    host: str
    task: str
    step_index: int
    step: str
    reason: str

    def __str__(self) -> str:
        return f"{self.host}: task {self.task!r} failed at step {self.step_index}, {self.step}: {self.reason}"
