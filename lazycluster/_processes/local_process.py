"""A local process whose streams are pumped while its caller waits, up to a deadline."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
from collections.abc import Callable, Sequence
from typing import IO

from lazycluster._processes.forks import reset_in_forks
from lazycluster._processes.mocked_process import MockedOutput, is_mocked, replace_streams
from lazycluster._processes.pipe_writer import PipeWriter
from lazycluster._processes.popen import DEVNULL, PIPE, kill_and_close, kill_group, start_process, wait_process
from lazycluster._remote.descriptors import enlarge_pipe
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError, max_wait_seconds
from lazycluster.results import Stream

_log = logging.getLogger(__name__)
_PIPE_IO_BYTES = 1 << 18

OutputCallback = Callable[[Stream, bytes], None]


class LocalProcess:
    """A process whose streams the waiting thread pumps; no method blocks past the deadline.

    `on_output` gets output as it comes, and no more of it is read while `accepts_output` returns False. A timeout does
    not end the process: the caller decides, with `close()`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        on_output: OutputCallback,
        accepts_output: Callable[[], bool] = lambda: True,
        deadline: Deadline,
        stdin: bool = True,
        cancel_token: CancelToken | None = None,
        mocked_output: MockedOutput = lambda data, _exit_code: data,
    ) -> None:
        """Start the process. Under a mocked `subprocess` its output goes through `mocked_output`.

        Raises:
            OSError: If the program cannot be started.
        """
        self.argv = tuple(argv)
        self.deadline = deadline
        self.accepts_output = accepts_output
        self._is_reading = True
        self._on_output = on_output
        self._cancel_token = cancel_token
        self._pending = memoryview(b"")
        self._selector = selectors.PollSelector()  # epoll takes no files, which a mocked process has for streams
        self._open_streams: dict[Stream, IO[bytes]] = {}
        self._process = start_process(argv, stdin=PIPE if stdin else DEVNULL, stdout=PIPE, stderr=PIPE)
        try:
            if is_mocked(self._process):
                replace_streams(self._process, mocked_output)
            self._register_descriptors()
        except BaseException:
            kill_and_close(self._process)
            raise

    def _register_descriptors(self) -> None:
        self._stdin = self._process.stdin
        for stream, reader in ((Stream.STDOUT, self._process.stdout), (Stream.STDERR, self._process.stderr)):
            if reader is not None:
                os.set_blocking(reader.fileno(), False)
                self._selector.register(reader, selectors.EVENT_READ, stream)
                self._open_streams[stream] = reader
        if self._stdin is not None:
            os.set_blocking(self._stdin.fileno(), False)
            reset_in_forks(self)  # a copy of the pipe in a child would hide the end of this process from a host
        if self._cancel_token is not None:
            self._selector.register(self._cancel_token, selectors.EVENT_READ, None)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def at_eof(self) -> bool:
        """Whether both output streams have ended."""
        return not self._open_streams

    @property
    def is_stdin_open(self) -> bool:
        """Whether the standard input of the process is open, as far as is known."""
        return self._stdin is not None

    @property
    def has_unsent_input(self) -> bool:
        """Whether a part of the input is still to be written."""
        return bool(self._pending)

    def write(self, data: bytes | memoryview, *, pump: Callable[[Callable[[], bool]], bool] | None = None) -> None:
        """Write to the standard input of the process, and pump its output until all is written.

        The method `pump()` does that, or a caller's function of the same kind.

        A process that no longer reads its input loses the rest, as it would in a pipeline.
        """
        if self._stdin is None:
            return
        self._pending = memoryview(data)
        self._write_pending()
        if self._pending and self._stdin is not None:
            self._selector.register(self._stdin, selectors.EVENT_WRITE, None)
            if not (pump or self.pump)(lambda: not self._pending):  # both outputs ended, so it reads no more
                self.close_stdin()

    def close_stdin(self) -> None:
        """End the standard input of the process."""
        if self._stdin is None:
            return
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(self._stdin)
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._stdin = None
        self._pending = memoryview(b"")

    def reset_after_fork(self) -> None:
        """Close the standard input of the process in a forked child."""
        if self._stdin is not None:
            with contextlib.suppress(OSError):
                self._stdin.close()

    def detach_stdin(self) -> PipeWriter:
        """Return the standard input of the process, for any thread to write to; this object no longer owns it."""
        assert self._stdin is not None
        assert self._process.stdout is not None
        for stream in (self._stdin, self._process.stdout):
            enlarge_pipe(stream.fileno())
        writer = PipeWriter(os.dup(self._stdin.fileno()))
        self.close_stdin()
        return writer

    def pump(self, predicate: Callable[[], bool], *, timeout: float | None = None) -> bool:
        """Move data until `predicate` holds, both outputs have ended or `timeout` is over; return whether it holds.

        Raises:
            DeadlinePassedError: If the deadline passes first.
            CancelledError: If the cancel token is cancelled first.
        """
        time_limit = Deadline(timeout)
        while not predicate():
            if not self._open_streams or time_limit.has_passed:
                return False
            if self.deadline.has_passed:
                raise DeadlinePassedError
            self._update_reading()
            for key, _ in self._selector.select(self.deadline.clamp(time_limit.clamp(max_wait_seconds()))):
                if isinstance(key.fileobj, CancelToken):
                    if key.fileobj.is_cancelled:
                        raise CancelledError
                    key.fileobj.drain()
                elif key.fileobj is self._stdin:
                    self._write_pending()
                elif isinstance(key.data, Stream):
                    self._read_available(key.data, key.fd)
        return True

    def _update_reading(self) -> None:
        """Watch for output while it is accepted, and for the rest of it when the process has ended."""
        is_reading = self.accepts_output() or self._process.poll() is not None
        if is_reading != self._is_reading:
            self._is_reading = is_reading
            for stream, reader in self._open_streams.items():
                if is_reading:
                    self._selector.register(reader, selectors.EVENT_READ, stream)
                else:
                    self._selector.unregister(reader)

    def wait(self, timeout: float) -> int | None:
        """Return the exit status, negative for a signal, or None if the process still runs after `timeout` seconds."""
        return wait_process(self._process, timeout)

    def ignore_cancel_token(self) -> None:
        """Let `pump()` go on although the cancel token was cancelled."""
        if self._cancel_token is not None:
            self._selector.unregister(self._cancel_token)
            self._cancel_token = None

    def kill_group(self) -> None:
        """Kill the process, if it still runs, and the rest of its group."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                kill_group(self._process)

    def close(self) -> None:
        """Kill the process if it still runs, and close its streams, without reading them to their end.

        The streams of a multiplexed ssh stay open in the master until the remote command ends.
        """
        self.close_stdin()
        self._cancel_token = None
        # The owner of the callback owns this object, too: a cycle would keep both until a run of the collector.
        self._on_output = lambda _stream, _data: None
        kill_and_close(self._process)
        self._selector.close()
        self._open_streams.clear()
        _log.debug("ended with %s: pid %s", self._process.returncode, self._process.pid)

    def _write_pending(self) -> None:
        assert self._stdin is not None
        try:
            written = os.write(self._stdin.fileno(), self._pending[:_PIPE_IO_BYTES])
        except BlockingIOError:
            return
        except OSError:  # the process reads no more; its exit status shows why
            self.close_stdin()
            return
        self._pending = self._pending[written:]
        if not self._pending:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._stdin)

    def _read_available(self, stream: Stream, descriptor: int) -> None:
        try:
            data = os.read(descriptor, _PIPE_IO_BYTES)
        except BlockingIOError:
            return
        if data:
            self._on_output(stream, data)
        else:
            self._selector.unregister(descriptor)
            del self._open_streams[stream]
