"""A command of a fake host under way: it prints the output of its answer, and ends when the delay is over."""

from __future__ import annotations

from collections.abc import Callable

from lazycluster._model.command import Command
from lazycluster._model.input_source import read_input
from lazycluster._model.running_command import CommandEndedError, RunningCommand
from lazycluster._model.watch import Watch
from lazycluster._waiting import NO_DEADLINE, Deadline
from lazycluster.results import Stream
from lazycluster.testing.answers import ScriptedAnswer

_PIECE_BYTES = 1 << 16


class FakeCommand(RunningCommand):
    """A command that prints, reads and ends as a test says."""

    def __init__(
        self,
        answer: ScriptedAnswer,
        has_input: bool,
        on_output: Callable[[Stream, bytes], object],
        watch: Watch,
        deadline: Deadline,
        wait_for_event: Callable[[Deadline], bool],
    ) -> None:
        """Begin, with all of the input or with none of it yet.

        `wait_for_event` returns False when the deadline has passed.
        """
        super().__init__(on_output)
        self.input = bytearray()
        self._answer = answer
        self._watch = watch
        self._deadline = deadline
        self._wait_for_event = wait_for_event
        self._has_ended = False
        self._waits_for_input = answer.reads_stdin and not has_input
        self._unsent = [(Stream.STDOUT, memoryview(answer.stdout)), (Stream.STDERR, memoryview(answer.stderr))]

    @property
    def exit_code(self) -> int | None:
        """The exit status; None before the end."""
        return self._answer.exit_code if self._has_ended else None

    def wait_until(self, predicate: Callable[[], bool]) -> None:
        """Deliver output until a condition holds, or until the command has ended."""
        while not predicate() and not self._has_ended:
            if self._unsent and self._watch.accepts_output():
                stream, data = self._unsent.pop(0)
                if data[_PIECE_BYTES:]:
                    self._unsent.insert(0, (stream, data[_PIECE_BYTES:]))
                self._deliver(stream, bytes(data[:_PIECE_BYTES]))
            elif not self._wait_for_event(NO_DEADLINE if self._unsent or self._waits_for_input else self._deadline):
                self._has_ended = True

    def write(self, data: bytes) -> None:
        """Take input, which nothing reads.

        Raises:
            CommandEndedError: If the command has ended.
        """
        if self._has_ended:
            raise CommandEndedError
        self.input += data

    def close_stdin(self) -> None:
        """End standard input."""
        self._waits_for_input = False

    def wait(self) -> None:
        """Wait until the command has ended."""
        self.wait_until(lambda: False)


def read_stdin(host: str, command: Command, watch: Watch) -> bytes:
    """Return the standard input of a command; a file is read to its end."""
    return command.stdin or b"" if command.source is None else b"".join(read_input(host, command, watch))
