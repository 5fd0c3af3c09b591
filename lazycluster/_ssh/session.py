"""One session through a master: one ssh process, one command on the host."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

from lazycluster._model.running_command import CommandEndedError, RunningCommand
from lazycluster._model.timeouts import Timeouts
from lazycluster._model.watch import UNWATCHED
from lazycluster._processes.local_process import LocalProcess
from lazycluster._processes.pipe_writer import PipeWriter
from lazycluster._ssh.shell import OutputDecoder, Script
from lazycluster._ssh.stand_in import add_marks
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError
from lazycluster.results import Stream

_PIECE_BYTES = 1 << 16
"""The most bytes of input that are sent before the host confirms them: the capacity of a pipe (pipe(7))."""


class Session(RunningCommand):
    """A command under way in a session of its own on the host."""

    def __init__(
        self,
        argv: tuple[str, ...],
        script: Script,
        *,
        on_output: Callable[[Stream, bytes], None],
        accepts_output: Callable[[], bool] = UNWATCHED.accepts_output,
        deadline: Deadline,
        cancel_token: CancelToken | None,
        check: Callable[[], None],
        timeouts: Timeouts,
    ) -> None:
        """Start the ssh process, and send it the script and the standard input of the command.

        `check` is called when nothing has moved for a while; it raises if the wait is in vain.

        Raises:
            OSError: If ssh cannot be started.
        """
        super().__init__(on_output)
        self._decoder = OutputDecoder(script.output_mark)
        self._check = check
        self._timeouts = timeouts
        self._raw_chunks: list[bytes] | None = None
        self._input_in_pieces = script.command.stdin is None and script.command.has_lifeline
        self.ssh_exit_code: int | None = None
        self._process = LocalProcess(
            argv,
            on_output=self._receive,
            accepts_output=accepts_output,
            deadline=deadline,
            cancel_token=cancel_token,
            mocked_output=functools.partial(add_marks, script.output_mark),
        )
        try:
            for data in (script.encode(), script.command.stdin):
                if data:
                    self._process.write(data, pump=self._pump)
        except (DeadlinePassedError, CancelledError):
            self.cancel()
            raise
        except BaseException:
            self._process.close()
            raise

    def _pump(self, predicate: Callable[[], bool]) -> bool:
        while not self._process.pump(predicate, timeout=self._timeouts.master_check_interval):
            if self._process.at_eof:
                return False
            self._check()
        return True

    def wait_until(self, predicate: Callable[[], bool]) -> None:
        """Receive output until a condition holds, or until the output has ended."""
        if not self._pump(lambda: predicate() or self._decoder.has_ended):
            self._deliver_remaining()

    def _receive(self, stream: Stream, data: bytes) -> None:
        if self._raw_chunks is not None and stream is Stream.STDOUT:
            self._raw_chunks.append(data)
            return
        self._deliver(stream, self._decoder.feed(stream, data))

    @property
    def has_started(self) -> bool:
        """Whether the host's shell is known to have begun."""
        return self._decoder.has_started

    @property
    def reported_status(self) -> str | None:
        """The word that the host's shell reported at the end: an exit status, or `cd`."""
        return self._decoder.reported_status

    @property
    def exit_code(self) -> int | None:
        """The exit status that the host's shell reported."""
        status = self.reported_status
        return int(status) if status is not None and status.isdecimal() else None

    @property
    def diagnostic(self) -> str:
        """The text that ssh, or a start-up file, printed before the command began."""
        return (self._decoder.preamble(Stream.STDERR) + self._decoder.preamble(Stream.STDOUT)).decode(errors="replace")

    def preamble(self, stream: Stream) -> bytes:
        """Return the text of one stream before the command began, which start-up files or ssh printed."""
        return self._decoder.preamble(stream)

    def write(self, data: bytes) -> None:
        """Send to standard input.

        Raises:
            CommandEndedError: If the command no longer reads it.
        """
        if self._input_in_pieces:
            for start in range(0, len(data), _PIECE_BYTES):
                self._write_piece(data[start : start + _PIECE_BYTES])
            return
        self._process.write(data, pump=self._pump)
        self._check_reading()

    def _write_piece(self, piece: bytes) -> None:
        confirmed = self._decoder.confirmed_pieces
        self._process.write(b"%d\n%b" % (len(piece), piece), pump=self._pump)
        self._pump(lambda: self._decoder.confirmed_pieces > confirmed or self._decoder.has_ended)
        self._check_reading()

    def _check_reading(self) -> None:
        if self._decoder.has_ended or self._process.at_eof or not self._process.is_stdin_open:
            raise CommandEndedError

    def close_stdin(self) -> None:
        """End the standard input of the command."""
        if self._input_in_pieces:
            self._process.write(b"0\n", pump=self._pump)
        else:
            self._process.close_stdin()

    def detach_stdin(self) -> PipeWriter:
        """Return the script's standard input for any thread to write to; `write()` no longer works."""
        return self._process.detach_stdin()

    def iter_raw_stdout(self) -> Iterator[bytes]:
        """Yield standard output as it comes, from now on to its end, with the marks in it."""
        rest = bytes(self._unread or b"") + self._decoder.flush(Stream.STDOUT)
        self._raw_chunks = [rest] if rest else []
        while self._raw_chunks or (self._pump(lambda: bool(self._raw_chunks)) or self._raw_chunks):
            data, self._raw_chunks = self._raw_chunks, []
            yield from data

    def parse_status_report(self, data: bytes) -> str | None:
        """Return the status that the host's shell reports at the beginning of data of `iter_raw_stdout()`, if any."""
        return self._decoder.parse_status_report(data)

    def wait(self) -> None:
        """Wait until the command has ended and its output is complete.

        Raises:
            DeadlinePassedError: If the deadline passes first; call `cancel()`.
            CancelledError: If the cancel token is cancelled first; call `cancel()`.
        """
        if self._pump(lambda: self._decoder.has_ended):
            self._process.close_stdin()
            self.ssh_exit_code = self._process.wait(self._timeouts.session_end)
        else:
            self._deliver_remaining()
        self._process.close()

    def _deliver_remaining(self) -> None:
        """Deliver the output that the decoder held back when ssh has ended without the last marks."""
        if self.ssh_exit_code is None:
            self.ssh_exit_code = self._process.wait(self._process.deadline.clamp(self._timeouts.ssh_exit))
            for stream in Stream:
                self._deliver(stream, self._decoder.flush(stream))

    def close(self) -> None:
        """Close the session, whether or not its command has ended."""
        if self._process.at_eof:
            self.ssh_exit_code = self._process.wait(self._timeouts.session_end)
        self._process.close()

    def cancel(self, *, grace: float | None = None, at_once: bool = False) -> None:
        """End the command on the host with its children, and the ssh process here; receive the output until then.

        The end of standard input makes the host end the command. With `grace`, it may use its grace period for that,
        unless the end is to come `at_once`.
        """
        self._process.accepts_output = UNWATCHED.accepts_output
        if at_once and not self._process.has_unsent_input:
            self._process.write(b"\n", pump=lambda _predicate: False)
        self._process.close_stdin()
        timeouts = self._timeouts
        self._process.deadline = Deadline(
            timeouts.command_cancel if grace is None else grace + timeouts.command_stop_margin
        )
        with contextlib.suppress(DeadlinePassedError, CancelledError):
            self._process.ignore_cancel_token()
            self._process.pump(lambda: self._decoder.has_ended)
        self._process.close()
