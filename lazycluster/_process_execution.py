"""The execution of a started process: a thread that waits for the host, and how the process ended."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable

from lazycluster._execution import copy_error
from lazycluster._model.command import Command
from lazycluster._model.running_command import RunningCommand
from lazycluster._model.watch import Watch
from lazycluster._process_streams import ProcessStreams
from lazycluster._transports.interface import RuntimeTransport
from lazycluster._waiting import CancelToken, Deadline, start_thread, wait_event
from lazycluster.exceptions import CommandStoppedError, HostError, LazyclusterError
from lazycluster.results import Collector, Stream

_log = logging.getLogger("lazycluster.remote_process")  # the name that users know
_EXIT_SIGNAL_BASE = 128
_MAX_REASON_BYTES = 1 << 12
"""The most bytes of output that are kept besides the streams, for the reason of a command that did not start."""


class _FirstOutput(Collector):
    """Keeps the beginning of the output."""

    def __init__(self) -> None:
        super().__init__()
        self._remaining = _MAX_REASON_BYTES

    def write(self, stream: Stream, data: bytes) -> None:
        if self._remaining:
            kept = data[: self._remaining]
            self._remaining -= len(kept)
            super().write(stream, kept)


class ProcessExecution:
    """One command under way in a thread, with its streams."""

    def __init__(self, transport: RuntimeTransport, command: Command, own_directory: str | None) -> None:
        """Prepare; `start()` begins. The directory of the process, if it has its own, is removed at its end."""
        self.command = command
        self.transport = transport
        self.exit_code: int | None = None
        self.error: BaseException | None = None
        self.stopped = False
        self._own_directory = own_directory
        self._cancel_token = CancelToken()
        self.streams = ProcessStreams(self._cancel_token, has_input=command.stdin is not None)
        self._running: RunningCommand | None = None
        self._owner: object | None = None
        self._on_end: Callable[[], object] = lambda: None
        # Not Thread.is_alive(): after Ctrl-C in Thread.join() it is False too early (CPython up to 3.12, gh-90882).
        self._ended = threading.Event()
        self._creator_pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=f"process on {transport.host}", daemon=True)

    def start(self, owner: object, on_end: Callable[[], object]) -> None:
        """Start the command. The owner lives as long as the command runs; `on_end` is called at its end."""
        self._owner, self._on_end = owner, on_end
        try:
            start_thread(self._thread)
        except RuntimeError:  # no thread can be started
            self._cancel_token.close()
            raise

    def _run(self) -> None:
        streams = self.streams
        watch = Watch(
            streams.receive,
            cancel_token=self._cancel_token,
            collector=_FirstOutput(),
            accepts_output=streams.accepts_output,
        )
        try:
            self.exit_code = self.transport.communicate(self.command, self._converse, watch)
        except CommandStoppedError:
            self.stopped = True
            self.exit_code = self._exit_code_after_stop()
        except BaseException as error:  # noqa: BLE001 - `wait()` raises it
            self.error = error
        self._running = None
        self._remove_directory()
        self._cancel_token.close()
        self._owner = None
        on_end, self._on_end = self._on_end, lambda: None
        streams.end(self.error)
        self._ended.set()
        try:
            on_end()
        except Exception:  # noqa: BLE001 - no caller is there to get it
            _log.warning("%s: on_exit of `%s` failed", self.transport.host, self.command.title, exc_info=True)

    def _converse(self, running: RunningCommand) -> None:
        self._running = running
        self.streams.converse(running)

    def _exit_code_after_stop(self) -> int:
        """Return the exit status; if the host did not report it, that of a process ended by the signal."""
        reported = None if self._running is None else self._running.exit_code
        if reported is not None:
            return reported
        return _EXIT_SIGNAL_BASE + (signal.SIGKILL if self._cancel_token.at_once else signal.SIGTERM)

    def _remove_directory(self) -> None:
        """Remove the directory of its own; one on a host that was lost goes with the runtime."""
        if self._own_directory is not None and not isinstance(self.error, HostError):
            with contextlib.suppress(LazyclusterError):
                self.transport.delete_dir(self._own_directory, cwd=self._own_directory)

    @property
    def is_alive(self) -> bool:
        """Whether the command runs, or is about to; a forked child does not have the thread."""
        return not self._ended.is_set() and self._creator_pid == os.getpid()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the command has ended, at most `timeout` seconds; return whether it has."""
        return not self.is_alive or wait_event(self._ended, Deadline(timeout))

    def request_stop(self, *, at_once: bool = False) -> None:
        """Ask for the end, and do not wait."""
        self._cancel_token.cancel(at_once=at_once)

    def raise_error(self) -> None:
        """Raise the error that ended the command or kept it from starting, if any."""
        if self.error is not None:
            raise copy_error(self.error)
