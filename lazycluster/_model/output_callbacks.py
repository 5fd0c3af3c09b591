"""The thread that calls a user's callbacks with the output of commands, as it comes."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

from lazycluster._model.line_splitter import LineSplitter
from lazycluster._typing import Self
from lazycluster._waiting import (
    NO_DEADLINE,
    SIGNAL_POLL_SECONDS,
    CancelToken,
    Deadline,
    hold,
    start_thread,
    wait_event,
)
from lazycluster.results import Stream

MAX_QUEUED_BYTES = 1 << 20
"""The output that waits for callbacks at most; a command that prints more waits, too."""
MAX_LINE_CHARACTERS = 1 << 20
"""The longest line that is kept until its end comes; a longer one is passed on in parts of at least this length."""
_MAX_QUEUED_PIECES = 1 << 12
_LAST_CALLBACKS_SECONDS = 5.0
"""For the callbacks to take the output that came before an error."""
_INTERRUPTED_CALLBACK_SECONDS = 1.0
"""For a callback under way to end after Ctrl-C."""


class OutputFollower:
    """The callbacks for the output of one command. A callback that raises cancels the command."""

    def __init__(
        self,
        thread: CallbackThread,
        on_output: Callable[[Stream, bytes], object] | None,
        on_line: Callable[[Stream, str], object] | None,
        cancel_token: CancelToken,
        timeout: float | None,
    ) -> None:
        self.error: BaseException | None = None
        """The exception of a callback."""
        self.is_closed = False
        """Whether output is dropped from now on."""
        self.cancel_token = cancel_token
        self._thread = thread
        self._on_output = on_output
        self._on_line = on_line
        self._splitters = {stream: LineSplitter(MAX_LINE_CHARACTERS) for stream in Stream}
        self._timeout = timeout
        self._deadline: Deadline | None = None
        self._ended = threading.Event()

    @property
    def deadline(self) -> Deadline:
        """The end of the wait for a slow callback; the time limit of the command has passed by then.

        It counts from the first output, because the time limit of the command counts from a moment before.
        """
        if self._deadline is None:
            self._deadline = Deadline(self._timeout)
        return self._deadline

    def on_output(self, stream: Stream, data: bytes) -> None:
        """Take a piece of output; wait while too much of it waits for the callbacks."""
        try:
            self._thread.put(self, stream, data)
        except BaseException:  # Ctrl-C; while the command is ended nothing may wait for the callbacks again
            self.is_closed = True
            raise

    def handle(self, stream: Stream | None, data: bytes) -> None:
        """Call the callbacks with a piece of output, in their thread; None is the end of both streams."""
        try:
            if stream is None:
                for each in Stream:
                    self._pass_lines(each, self._splitters[each].feed(b"", final=True))
            else:
                if self._on_output is not None and not self.is_closed:
                    self._on_output(stream, data)
                if self._on_line is not None:
                    self._pass_lines(stream, self._splitters[stream].feed(data))
        except BaseException as error:  # noqa: BLE001 - the caller of run() gets it
            self.error = error
            self.is_closed = True
            self.cancel_token.cancel()
        if stream is None:
            self._ended.set()

    def _pass_lines(self, stream: Stream, lines: list[str]) -> None:
        for line in lines:
            if self._on_line is not None and not self.is_closed:
                self._on_line(stream, line)

    def wait_for_callbacks(self) -> None:
        """Wait until the callbacks have all output of the command, which has ended."""
        self._thread.put_end(self)
        while not wait_event(self._ended, Deadline(SIGNAL_POLL_SECONDS)) and not self.cancel_token.is_cancelled:
            pass
        self.is_closed = True

    def stop_callbacks(self, reason: BaseException) -> None:
        """Wait a moment until the callbacks have all output that came before an error."""
        seconds = _LAST_CALLBACKS_SECONDS
        if not isinstance(reason, Exception):
            self.is_closed, seconds = True, _INTERRUPTED_CALLBACK_SECONDS
        self._thread.put_end(self)
        wait_event(self._ended, Deadline(seconds))
        self.is_closed = True


class CallbackThread:
    """Calls the callbacks of commands, one call at a time, in a thread that lives as long as a block.

    All of the commands share one bounded queue. So a slow callback slows the commands, and memory stays flat.
    """

    def __init__(self) -> None:
        """Begin with nothing; the block starts the thread."""
        self._condition = threading.Condition()
        self._queue: deque[tuple[OutputFollower, Stream | None, bytes]] = deque()
        self._queued_bytes = 0
        self._closed = False
        context = contextvars.copy_context()  # so that a notebook shows what a callback prints below the right cell
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="lazycluster-output", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        try:
            start_thread(self._thread)
        except BaseException:  # Ctrl-C: the thread may have begun, and the block will not end it
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the thread after the callback under way, if there is one; the queue is dropped."""
        self._end()

    def _end(self) -> None:
        with hold(self._condition):
            self._closed = True
            self._queue.clear()
            self._condition.notify_all()
        with contextlib.suppress(RuntimeError):  # it has not begun
            self._thread.join(_INTERRUPTED_CALLBACK_SECONDS)

    def put(self, follower: OutputFollower, stream: Stream, data: bytes) -> None:
        """Queue a piece of output, which is dropped if the command is to end before there is room for it."""
        deadline = NO_DEADLINE
        with hold(self._condition):
            while self._is_full and not (follower.is_closed or self._closed):
                deadline = follower.deadline
                if deadline.has_passed or follower.cancel_token.is_cancelled:
                    return  # the transport, which called this, looks at both next
                self._condition.wait(deadline.clamp(SIGNAL_POLL_SECONDS))
            if not (follower.is_closed or self._closed):
                self._append(follower, stream, data)

    def put_end(self, follower: OutputFollower) -> None:
        """Queue the end of the output of a command."""
        with hold(self._condition):
            self._append(follower, None, b"")

    @property
    def _is_full(self) -> bool:
        return self._queued_bytes >= MAX_QUEUED_BYTES or len(self._queue) >= _MAX_QUEUED_PIECES

    def _append(self, follower: OutputFollower, stream: Stream | None, data: bytes) -> None:
        self._queue.append((follower, stream, data))
        self._queued_bytes += len(data)
        self._condition.notify_all()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._queue and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                follower, stream, data = self._queue.popleft()
            follower.handle(stream, data)
            with self._condition:
                self._queued_bytes -= len(data)
                self._condition.notify_all()
            del follower, data
