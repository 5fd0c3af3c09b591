"""One command or function that a supervisor runs on a host: its events, its input and output, its end."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable
from typing import Protocol, TypeAlias

import attrs

from lazycluster._model.running_command import CommandEndedError, RunningCommand
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._remote import protocol
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError, queue_get
from lazycluster.exceptions import ConnectionLostError
from lazycluster.results import Stream

_STREAM_BY_FRAME_KIND = {protocol.STDOUT: Stream.STDOUT, protocol.STDERR: Stream.STDERR}

ChildEvent: TypeAlias = "tuple[int, bytes] | Exception"
"""The kind and body of a frame, or the error that ends the channel."""


class Channel(Protocol):
    """The part of a `SupervisorClient` that its children use."""

    def send(self, message: bytes) -> None:
        """Send a frame."""

    def discard(self, number: int) -> None:
        """Drop later frames of a child."""


@attrs.frozen
class ExitInfo:
    """How a child ended: `exit` or `signal` with the status of waitpid(2), `cd` or `failed` with a reason.

    The kind is `done` for a function whose process has reported its end itself.
    """

    kind: str
    detail: str

    @property
    def exit_code(self) -> int:
        """The exit status; 128 plus its number for a signal, as in shells."""
        code = os.waitstatus_to_exitcode(int(self.detail))
        return code if code >= 0 else 128 - code


class RemoteChild(RunningCommand):
    """A command or function that runs on the host. The thread that waits for it handles its events."""

    def __init__(self, channel: Channel, number: int, title: str) -> None:
        super().__init__(lambda _stream, _data: None)
        self.events: queue.SimpleQueue[ChildEvent] = queue.SimpleQueue()
        self.exit_info: ExitInfo | None = None
        self.has_started = False
        self.deadline = Deadline(None)
        self.cancel_token: CancelToken | None = None
        self._accepts_output = UNWATCHED.accepts_output
        self.on_outcome: Callable[[bytes], object] = lambda _data: None
        self.title = title
        self.number = number
        self._channel = channel
        self._send_window = protocol.WINDOW_BYTES
        self._unacknowledged_bytes = 0
        self._stdin_closed = False

    def follow(self, on_output: Callable[[Stream, bytes], None], deadline: Deadline, watch: Watch) -> None:
        """Set where output goes, and what ends the wait for the child."""
        self._on_output, self.deadline, self.cancel_token = on_output, deadline, watch.cancel_token
        self._accepts_output = watch.accepts_output

    @property
    def exit_code(self) -> int | None:
        """The exit status that the host reported."""
        info = self.exit_info
        return info.exit_code if info is not None and info.kind in {"exit", "signal"} else None

    def wait_until(self, predicate: Callable[[], bool]) -> None:
        self.pump(predicate)

    def pump(self, predicate: Callable[[], bool]) -> bool:
        """Handle events until a condition holds or the child has ended; return whether the condition holds.

        Raises:
            DeadlinePassedError: If the deadline passed first.
            CancelledError: If the cancel token was cancelled first.
            ConnectionLostError: If the connection broke, or the supervisor ended.
        """
        wake = contextlib.nullcontext() if self.cancel_token is None else self.cancel_token.on_cancel(self.wake)
        with wake:
            while not predicate():
                if self.exit_info is not None:
                    return False
                if self.cancel_token is not None and self.cancel_token.is_cancelled:
                    raise CancelledError
                if self.deadline.has_passed:
                    raise DeadlinePassedError
                self._update_window()
                self._handle_event(queue_get(self.events, self.deadline))
        return True

    def wake(self) -> None:
        """Have `pump()` look at its condition again, from any thread."""
        self.events.put((protocol.KEEPALIVE, b""))

    def _handle_event(self, event: ChildEvent) -> None:
        if isinstance(event, Exception):
            raise event
        kind, body = event
        match kind:
            case protocol.STDOUT | protocol.STDERR | protocol.OUTCOME:
                self._receive_data(kind, body)
            case protocol.STARTED:
                self.has_started = True
            case protocol.INPUT_WINDOW_UPDATE:
                self._send_window += int(body)
            case protocol.ENDED:
                exit_kind, detail = protocol.unpack(body)
                self.exit_info = ExitInfo(exit_kind.decode("ascii"), detail.decode(errors="replace"))
            case _:
                pass

    def _receive_data(self, kind: int, body: bytes) -> None:
        self.has_started = True
        if kind == protocol.OUTCOME:
            self.on_outcome(body)
        else:
            self._deliver(_STREAM_BY_FRAME_KIND[kind], body)
        self._unacknowledged_bytes += len(body)
        self._update_window()

    def _update_window(self) -> None:
        if self._unacknowledged_bytes >= protocol.WINDOW_UPDATE_THRESHOLD_BYTES and self._accepts_output():
            self._send_frame(protocol.WINDOW_UPDATE, protocol.encode_number(self._unacknowledged_bytes))
            self._unacknowledged_bytes = 0

    def _send_frame(self, kind: int, body: bytes = b"") -> None:
        self._channel.send(protocol.encode_frame(kind, self.number, body))

    def write(self, data: bytes) -> None:
        """Send to the standard input of the child, as fast as the child reads it.

        Raises:
            CommandEndedError: If the child has ended.
        """
        view = memoryview(data)
        while view:
            if self.deadline.has_passed:
                raise DeadlinePassedError
            if not self.pump(lambda: self._send_window > 0) or self.exit_info is not None:
                raise CommandEndedError
            piece = view[: min(protocol.STREAM_CHUNK_BYTES, self._send_window)]
            self._send_window -= len(piece)
            self._send_frame(protocol.INPUT, bytes(piece))
            view = view[len(piece) :]

    def close_stdin(self) -> None:
        """End the standard input of the child."""
        if not self._stdin_closed:
            self._stdin_closed = True
            self._send_frame(protocol.INPUT_END)

    def wait(self) -> None:
        """Wait until the child has ended and its output is complete.

        Raises:
            DeadlinePassedError: If the deadline passed first; call `cancel()`.
            CancelledError: If the cancel token was cancelled first; call `cancel()`.
        """
        self.pump(lambda: self.exit_info is not None)

    def cancel(self, *, timeout: float) -> None:
        """End the child on the host with its descendants, and wait for that, at most `timeout` seconds.

        The cancel token may still end the grace period.
        """
        self._send_frame(protocol.STOP)
        self.deadline = Deadline(timeout)
        self._accepts_output = UNWATCHED.accepts_output
        token, self.cancel_token = self.cancel_token, None
        with contextlib.suppress(DeadlinePassedError, ConnectionLostError):
            if token is not None:
                with token.on_cancel(self.wake):
                    if self.pump(lambda: token.at_once):
                        self._send_frame(protocol.STOP)
            self.wait()
        if self.exit_info is None:
            self._send_frame(protocol.DETACH)
            self._channel.discard(self.number)
