"""Results: the record of a command, the record of a step, and the outcome of a remote call."""

from __future__ import annotations

import codecs
import enum
import io
import reprlib
import signal
from typing import Generic, Literal, NoReturn, Protocol, TypeAlias, TypeVar

import attrs

from lazycluster._typing import Self
from lazycluster.exceptions import CommandFailedError

T_co = TypeVar("T_co", covariant=True)
OnError: TypeAlias = Literal["raise", "collect"]
"""How a group handles the errors of hosts: raise them when all have ended, or return an `Error` for each."""
_EXCERPT_CHARACTERS = 60
_MAX_CHARACTER_BYTES = 4
"""The longest character of UTF-8 (RFC 3629, section 3)."""


class Stream(enum.Enum):
    """One of the two output streams of a command, by its file descriptor."""

    STDOUT = 1
    STDERR = 2


class TextPrinter(Protocol):
    """The part of IPython's printer that a record uses."""

    def text(self, text: str, /) -> object:
        """Print text."""


def _excerpt(data: bytes) -> str:
    """Return the first characters of an output as a literal, in which no character acts on a terminal."""
    start = data[: (_EXCERPT_CHARACTERS + 1) * _MAX_CHARACTER_BYTES].decode(errors="replace")
    return repr(start[:_EXCERPT_CHARACTERS]) + "..." * (len(start) > _EXCERPT_CHARACTERS)


@attrs.frozen(repr=False)
class CommandResult:
    """How a command ended and what it printed.

    `exit_code` is the exit status 0-255; by the shell's convention 128+N stands for a death by signal N
    (POSIX.1-2017, XCU 2.8.2). `duration` is in seconds, measured on the local machine. `host` is the host that ran it,
    `''` if that is unknown. Two results are equal whatever their hosts.
    """

    command: str
    exit_code: int
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    duration: float = 0.0
    _order: tuple[tuple[Stream, int], ...] = attrs.field(default=(), eq=False, alias="order")
    """The order in which the two streams came, as run lengths in bytes."""
    host: str = attrs.field(default="", eq=False, kw_only=True)

    def __repr__(self) -> str:
        """Return the exit status, and the beginning of the command and of each output."""
        command = _excerpt(self.command.encode(errors="replace"))
        outputs = f"stdout={_excerpt(self.stdout_bytes)}, stderr={_excerpt(self.stderr_bytes)}"
        return f"CommandResult({command}, exit_code={self.exit_code}, {outputs})"

    def _repr_pretty_(self, printer: TextPrinter, cycle: bool) -> None:  # noqa: ARG002 - IPython's interface
        """Show the output as text in IPython; without output, the record."""
        printer.text(self.output.removesuffix("\n") or repr(self))

    def check(self) -> Self:
        """Return the result itself if the exit status is 0.

        Raises:
            CommandFailedError: If the exit status is not 0.
        """
        if not self.ok:
            raise CommandFailedError(self.host, self.command, self.exit_code, self.output)
        return self

    @property
    def ok(self) -> bool:
        """Whether the exit status is 0."""
        return self.exit_code == 0

    @property
    def stdout(self) -> str:
        """Standard output as text (UTF-8; undecodable bytes replaced)."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as text (UTF-8; undecodable bytes replaced)."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended the command, by the shell's convention; None if no signal did."""
        number = self.exit_code - 128
        return number if number in set(signal.Signals) else None

    @property
    def output(self) -> str:
        """Standard output and standard error as text, in the order in which they came."""
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


class Collector:
    """Keeps the output of a command, and the order in which its two streams came."""

    def __init__(self) -> None:
        """Begin with nothing."""
        # A BytesIO returns its content without a copy, unlike a list of pieces that are joined.
        self._buffers = {stream: io.BytesIO() for stream in Stream}
        self._order: list[tuple[Stream, int]] = []

    def write(self, stream: Stream, data: bytes) -> None:
        """Keep one piece."""
        self._buffers[stream].write(data)
        if self._order and self._order[-1][0] is stream:
            self._order[-1] = (stream, self._order[-1][1] + len(data))
        else:
            self._order.append((stream, len(data)))

    def getvalue(self, stream: Stream) -> bytes:
        """Return all of a stream so far."""
        return self._buffers[stream].getvalue()

    @property
    def order(self) -> tuple[tuple[Stream, int], ...]:
        """The order in which the two streams came, as run lengths in bytes."""
        return tuple(self._order)

    def result(self, command: str, exit_code: int, duration: float, *, host: str = "") -> CommandResult:
        """Return the record of the ended command."""
        out, err = self.getvalue(Stream.STDOUT), self.getvalue(Stream.STDERR)
        return CommandResult(command, exit_code, out, err, duration, self.order, host=host)


@attrs.frozen
class StepResult:
    """The result of one step of a task.

    `step` describes it in words, `output` is what it printed, `error` is why it failed, or None. An `exit_code` of
    None means that the step is not a command, or ended without an exit status. `duration` is in seconds. `host_lost` is
    True if the step failed because the host cannot be used.
    """

    step: str
    output: CommandResult
    exit_code: int | None = None
    duration: float = 0.0
    error: Exception | None = None
    host_lost: bool = False

    @property
    def ok(self) -> bool:
        """Whether the step succeeded."""
        return self.error is None

    @property
    def log(self) -> str:
        """The text of both streams, in the order in which it came; `''` for files."""
        return self.output.output

    @property
    def stdout(self) -> str:
        """The text of standard output."""
        return self.output.stdout

    @property
    def stderr(self) -> str:
        """The text of standard error; for a function, all that it printed."""
        return self.output.stderr


@attrs.frozen
class Value(Generic[T_co]):
    """The value that a remote call returned."""

    value: T_co

    def unwrap(self) -> T_co:
        """Return the value."""
        return self.value


@attrs.frozen
class Error:
    """The error that a remote call raised.

    `host` is the host that was to do the work, or `''` if none could take it, or the work could not be sent. In place
    of the value of an item, `index` is the item's position and `item` the item itself; otherwise both are None.
    """

    error: BaseException
    host: str = ""
    index: int | None = None
    item: object = attrs.field(default=None, eq=False, repr=reprlib.repr)  # items such as arrays have no plain `==`

    def unwrap(self) -> NoReturn:
        """Raise the error."""
        raise self.error
