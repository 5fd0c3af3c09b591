"""What came of things: the record of a command, of a step, and the outcome of a remote call."""

from __future__ import annotations

import codecs
import enum
import signal
from typing import Generic, TypeVar

import attrs

T_co = TypeVar("T_co", covariant=True)


class Stream(enum.Enum):
    """One of the two output streams of a command, by its file descriptor."""

    STDOUT = 1
    STDERR = 2


@attrs.frozen
class CommandResult:
    """How a command ended and what it printed.

    `exit_code` is the exit status 0-255; by the shell's convention 128+N stands for a death by signal N
    (POSIX.1-2017, XCU 2.8.2). `duration` is in seconds, seen from this side.
    """

    command: str
    exit_code: int
    stdout_bytes: bytes = attrs.field(default=b"", repr=lambda data: f"<{len(data)} bytes>")
    stderr_bytes: bytes = attrs.field(default=b"", repr=lambda data: f"<{len(data)} bytes>")
    duration: float = 0.0
    _order: tuple[tuple[Stream, int], ...] = attrs.field(default=(), repr=False, eq=False, alias="order")
    """In which order the two streams came: run lengths in bytes."""

    @property
    def ok(self) -> bool:
        """Tell whether the exit status is 0."""
        return self.exit_code == 0

    @property
    def stdout(self) -> str:
        """Return standard output as text (UTF-8; undecodable bytes replaced)."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Return standard error as text (UTF-8; undecodable bytes replaced)."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def signal(self) -> int | None:
        """Return the number of the signal that ended the command, if by the shell's convention one did."""
        number = self.exit_code - 128
        return number if number in set(signal.Signals) else None

    @property
    def output(self) -> str:
        """Return standard output and standard error as text, in the order in which they came."""
        if not self.stderr_bytes:
            return self.stdout
        decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in Stream}
        data = {Stream.STDOUT: self.stdout_bytes, Stream.STDERR: self.stderr_bytes}
        position = dict.fromkeys(Stream, 0)
        pieces = []
        for stream, length in self._order:
            start = position[stream]
            pieces.append(decoders[stream].decode(data[stream][start : start + length]))
            position[stream] = start + length
        pieces += [decoders[stream].decode(data[stream][position[stream] :], final=True) for stream in Stream]
        return "".join(pieces)


@attrs.frozen
class StepResult:
    """What came of one step of a task.

    `step` describes it in words, `log` is what it printed (`''` for files), `exit_code` is None where the step is no
    command, `error` is why it failed, or None. `duration` is in seconds.
    """

    step: str
    log: str = attrs.field(default="", repr=lambda log: f"<{len(log)} characters>")
    exit_code: int | None = None
    stdout: str = attrs.field(default="", repr=False)
    stderr: str = attrs.field(default="", repr=False)
    duration: float = 0.0
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Tell whether the step did what it was to do."""
        return self.error is None


@attrs.frozen
class Value(Generic[T_co]):
    """A remote call returned."""

    value: T_co

    def unwrap(self) -> T_co:
        """Return the value."""
        return self.value


@attrs.frozen
class Error:
    """A remote call raised."""

    error: BaseException

    def unwrap(self) -> object:
        """Raise the error."""
        raise self.error
