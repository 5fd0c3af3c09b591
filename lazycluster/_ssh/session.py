"""One session through a master: one ssh process, one script on the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from lazycluster._model.watch import Watch
from lazycluster._processes import Child, Inlet
from lazycluster._ssh.shell import Marks, Script
from lazycluster._waiting import CancelledError, Deadline, DeadlinePassedError
from lazycluster.results import Stream

_PARTING = 0.9
"""Seconds for the host to end a command that is given up, within the second that a caller may be kept waiting."""
_QUIET = 10.0
"""Seconds after which a wait is interrupted to see whether the master is still well."""
_LINGER = 0.25
"""Seconds for ssh to end once the command has. It takes longer only where a background process holds the output."""


class SessionEndedError(Exception):
    """The session ended while it was still being read from or written to."""


class Session:
    """A script under way on the host. Its output goes to `on_output`; standard output may be read instead."""

    def __init__(
        self,
        argv: tuple[str, ...],
        script: Script,
        *,
        on_output: Callable[[Stream, bytes], None],
        deadline: Deadline,
        watch: Watch,
        check: Callable[[], None],
    ) -> None:
        """Start the ssh process and hand it the script.

        `check` is called when nothing has moved for a while; it raises where waiting is in vain.

        Raises:
            OSError: ssh cannot be started.
        """
        self._marks = Marks(script.mark)
        self._on_output = on_output
        self._check = check
        self._reading: bytearray | None = None
        self._raw: list[bytes] | None = None
        self.exit_status: int | None = None
        self._child = Child(argv, on_output=self._receive, deadline=deadline, cancellation=watch.cancellation)
        try:
            self._child.feed(script.line(), wait=self._pump)
        except (DeadlinePassedError, CancelledError):
            self.give_up()
            raise
        except BaseException:
            self._child.abandon()
            raise

    def _pump(self, until: Callable[[], bool]) -> bool:
        while not self._child.pump(until, seconds=_QUIET):
            if self._child.at_end:
                return False
            self._check()
        return True

    def _receive(self, stream: Stream, data: bytes) -> None:
        if self._raw is not None and stream is Stream.STDOUT:
            self._raw.append(data)
            return
        self._deliver(stream, self._marks.feed(stream, data))

    def _deliver(self, stream: Stream, data: bytes) -> None:
        if not data:
            return
        if self._reading is not None and stream is Stream.STDOUT:
            self._reading += data
        else:
            self._on_output(stream, data)

    @property
    def started(self) -> bool:
        """Tell whether the host's shell is known to have begun."""
        return self._marks.started

    @property
    def status(self) -> str | None:
        """Return what the host's shell reported at the end: an exit status, or `cd`."""
        return self._marks.status

    @property
    def said(self) -> str:
        """Return what ssh, or a start-up file, said before the command began."""
        return (self._marks.noise(Stream.STDERR) + self._marks.noise(Stream.STDOUT)).decode(errors="replace")

    def noise(self, stream: Stream) -> bytes:
        """Return what one stream carried before the command began: the words of start-up files, or of ssh."""
        return self._marks.noise(stream)

    def feed(self, data: bytes) -> None:
        """Send to the script's standard input.

        Raises:
            SessionEndedError: Nobody reads it any more.
        """
        self._child.feed(data, wait=self._pump)
        if self._marks.ended or self._child.at_end or not self._child.listens:
            raise SessionEndedError

    def read(self, size: int) -> bytes:
        """Return so many bytes of standard output, fewer only at its end.

        The first call keeps standard output from going to `on_output` from then on.
        """
        if self._reading is None:
            self._reading = bytearray()
        if not self._pump(lambda: len(self._reading or b"") >= size or self._marks.ended):
            self._take_rest()
        data = bytes(self._reading[:size])
        del self._reading[:size]
        return data

    def read_some(self) -> bytes:
        """Return what there is of standard output, waiting for some; nothing only at its end."""
        return self.read(1) + self.read(len(self._reading or b""))

    def read_until(self, end: bytes) -> bytes | None:
        """Return standard output up to a byte string, which is taken off; None where it ends before."""
        if self._reading is None:
            self._reading = bytearray()
        reading = self._reading
        if not self._pump(lambda: end in reading or self._marks.ended):
            self._take_rest()
        data, found, rest = bytes(reading).partition(end)
        reading[:] = rest
        return data if found else None

    def close_stdin(self) -> None:
        """End the script's standard input."""
        self._child.close_stdin()

    def take_stdin(self) -> Inlet:
        """Return the script's standard input for any thread to write to; `feed()` is of no use any more."""
        return self._child.take_stdin()

    def stream(self) -> Iterator[bytes]:
        """Yield standard output as it comes, up to its end, and from here on as it is, marks included."""
        rest = bytes(self._reading or b"") + self._marks.finish(Stream.STDOUT)
        self._raw = [rest] if rest else []
        while self._raw or (self._pump(lambda: bool(self._raw)) or self._raw):
            data, self._raw = self._raw, []
            yield from data

    def reported(self, data: bytes) -> str | None:
        """Return what the host's shell reports where that stands at the beginning of data of `stream()`."""
        return self._marks.reported(data)

    def finish(self) -> None:
        """Wait until the command has ended and its output is complete.

        Raises:
            DeadlinePassedError: It did not in time; call `give_up()`.
            CancelledError: It was to be stopped; call `give_up()`.
        """
        if self._pump(lambda: self._marks.ended):
            self._child.close_stdin()
            self.exit_status = self._child.wait(_LINGER)
        else:
            self._take_rest()
        self._child.abandon()

    def _take_rest(self) -> None:
        """Take what is left when ssh has ended without the last marks: all the output of a test's stand-in for it."""
        if self.exit_status is None:
            self.exit_status = self._child.wait(self._child.deadline.within(5.0))
            if self.started or self.exit_status not in {255, None}:  # else it is ssh that spoke, not the command
                for stream in Stream:
                    self._deliver(stream, self._marks.finish(stream))

    def abandon(self) -> None:
        """Let go of the session, whatever it still does."""
        if self._child.at_end:
            self.exit_status = self._child.wait(_LINGER)
        self._child.abandon()

    def give_up(self, *, patience: float = _PARTING) -> None:
        """End the command on the host with its children, and the ssh process here.

        The end of standard input tells the host's side. What is still printed meanwhile, for `patience` seconds at
        most, is taken along.
        """
        self._child.close_stdin()
        self._child.deadline = Deadline(patience)
        with contextlib.suppress(DeadlinePassedError, CancelledError):
            self._child.ignore_cancellation()
            self._child.pump(lambda: self._marks.ended)
        self._child.abandon()
