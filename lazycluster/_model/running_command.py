"""A command under way on a host, and the interface of the objects that run commands there."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import attrs

from lazycluster._model.command import Command
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster.exceptions import CommandTimeoutError
from lazycluster.results import Collector, CommandResult, Stream


class CommandEndedError(Exception):
    """The command ended while the caller was still writing its input or reading its output."""


class RunningCommand(ABC):
    """A command under way. The thread that waits for it handles its output.

    Output goes to `on_output`. A caller may read standard output instead: from the first call of a `read` method on,
    `on_output` gets standard error only.
    """

    def __init__(self, on_output: Callable[[Stream, bytes], object]) -> None:
        """Begin with all output going to `on_output`."""
        self._on_output = on_output
        self._unread: bytearray | None = None

    @property
    @abstractmethod
    def exit_code(self) -> int | None:
        """The exit status that the host reported; None if it did not, or not yet."""

    @abstractmethod
    def wait_until(self, predicate: Callable[[], bool]) -> None:
        """Receive output until a condition holds, or until the output has ended.

        Raises:
            DeadlinePassedError: If the time limit passes first.
            CancelledError: If the cancel token is cancelled first.
        """

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send to standard input.

        Raises:
            CommandEndedError: If the command no longer reads it.
        """

    @abstractmethod
    def close_stdin(self) -> None:
        """End standard input."""

    @abstractmethod
    def wait(self) -> None:
        """Wait until the command has ended and its output is complete.

        Raises:
            DeadlinePassedError: If the time limit passes first.
            CancelledError: If the cancel token is cancelled first.
        """

    def read(self, size: int) -> bytes:
        """Return `size` bytes of standard output, fewer only at its end."""
        unread = self._start_reading()
        self.wait_until(lambda: len(unread) >= size)
        data = bytes(unread[:size])
        del unread[:size]
        return data

    def read_some(self) -> bytes:
        """Wait for standard output, and return all that has come; empty only at its end."""
        unread = self._start_reading()
        self.wait_until(lambda: bool(unread))
        data = bytes(unread)
        unread.clear()
        return data

    def read_until(self, end: bytes) -> bytes | None:
        """Return standard output up to `end`, and drop `end` itself; None if the output ends first."""
        unread = self._start_reading()
        self.wait_until(lambda: end in unread)
        data, found, rest = bytes(unread).partition(end)
        unread[:] = rest
        return data if found else None

    def _start_reading(self) -> bytearray:
        if self._unread is None:
            self._unread = bytearray()
        return self._unread

    def _deliver(self, stream: Stream, data: bytes) -> None:
        if self._unread is not None and stream is Stream.STDOUT:
            self._unread += data
        elif data:
            self._on_output(stream, data)


Conversation: TypeAlias = Callable[[RunningCommand], object]
"""A function that uses a running command: it writes to it, reads from it, and waits for its end."""


def wait_for_end(running: RunningCommand) -> None:
    """Wait for the end of a command: the shortest `Conversation`."""
    running.wait()


class CommandRunner(ABC):
    """Runs commands on one host. Any thread may use it."""

    host: str

    def run(self, command: Command, watch: Watch = UNWATCHED) -> CommandResult:
        """Run a command and return its result; see `Connection.run()`."""
        collector = watch.collector or Collector()
        started_at = time.monotonic()
        exit_code = self._carry_out(command, attrs.evolve(watch, collector=collector))
        return collector.result(command.title, exit_code, time.monotonic() - started_at, host=self.host)

    def _carry_out(self, command: Command, watch: Watch) -> int:
        """Run a command with its standard input, and return the exit status."""
        return self.communicate(command, wait_for_end, watch)

    @abstractmethod
    def communicate(self, command: Command, conversation: Conversation, watch: Watch = UNWATCHED) -> int:
        """Run a command, hold a conversation with it, and return the exit status.

        The conversation begins after `command.stdin` was sent. Both are repeated if the host cannot have started the
        command.

        Raises:
            CommandTimeoutError: If the time limit passes; the command is then ended.
            CommandStoppedError: If the cancel token is cancelled; the command is then ended.
            ConnectionLostError: If the connection breaks.
            WorkingDirectoryError: If the directory cannot be entered.
        """


def collecting(collector: Collector, watch: Watch) -> Callable[[Stream, bytes], None]:
    """Return a callback that passes output to a collector, and then to the callback of the watch."""

    def on_output(stream: Stream, data: bytes) -> None:
        collector.write(stream, data)
        watch.on_output(stream, data)

    return on_output


def timeout_error(host: str, title: str, timeout: float | None, collector: Collector) -> CommandTimeoutError:
    """Return the error of a command that ran longer than its time limit, with its output so far."""
    return CommandTimeoutError(host, title, timeout or 0.0, *map(collector.getvalue, Stream))
