"""Every process that this library starts on this machine is started here, and nowhere judged."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import selectors
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import attrs

from lazycluster._waiting import (
    SIGNAL_POLL_SECONDS,
    CancelledError,
    CancelToken,
    Deadline,
    DeadlinePassedError,
    start_thread,
    uninterruptible,
)
from lazycluster.results import Stream

_log = logging.getLogger(__name__)
_PIPE_IO_BYTES = 1 << 18
_PIPE_CAPACITY_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031  # fcntl(2), F_SETPIPE_SZ
_CANCEL_POLL_SECONDS = 0.1
"""Seconds between two looks whether a program that somebody may stop is to be stopped."""


OutputCallback = Callable[[Stream, bytes], None]


def _popen(argv: Sequence[str], *, stdin: int, stdout: int, stderr: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, where no terminal's Ctrl-C reaches it."""
    _log.debug("start %s", argv)
    # The ssh to a jump host knows nothing of our BatchMode, and must not open a window either (ssh(1), ENVIRONMENT).
    env = {**os.environb, b"SSH_ASKPASS_REQUIRE": b"never"}  # as bytes, which Popen takes without much ado

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, start_new_session=True, bufsize=0
        )

    return uninterruptible(start, _kill_and_close)


def _kill_and_close(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, if it is still there, and let go of its streams."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


class LocalProcess:
    """A process whose streams are pumped by the thread that waits for it; it never blocks past its deadline.

    Output is handed to `on_output` as it comes. A timeout does not end the process: the caller decides, with
    `close()`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        on_output: OutputCallback,
        deadline: Deadline,
        stdin: bool = True,
        cancel_token: CancelToken | None = None,
    ) -> None:
        """Start the process.

        Raises:
            OSError: The program cannot be started.
        """
        self.argv = tuple(argv)
        self.deadline = deadline
        self._on_output = on_output
        self._cancel_token = cancel_token
        self._pending = memoryview(b"")
        self._selector = selectors.DefaultSelector()
        self._open_streams: set[Stream] = set()
        self._mocked_streams: list[tuple[Stream, IO[bytes]]] = []
        pipe = subprocess.PIPE
        self._process = _popen(argv, stdin=pipe if stdin else subprocess.DEVNULL, stdout=pipe, stderr=pipe)
        try:
            self._register_pipes(cancel_token)
        except BaseException:
            _kill_and_close(self._process)
            raise

    def _register_pipes(self, cancel_token: CancelToken | None) -> None:
        self._stdin = self._process.stdin
        for stream, reader in ((Stream.STDOUT, self._process.stdout), (Stream.STDERR, self._process.stderr)):
            if reader is not None:
                self._register_output(stream, reader)
        if self._stdin is not None and _fileno_or_none(self._stdin) is not None:
            os.set_blocking(self._stdin.fileno(), False)
            _open_stdin_pipes.add(self)
        if cancel_token is not None:
            self._selector.register(cancel_token, selectors.EVENT_READ, None)

    def _register_output(self, stream: Stream, reader: IO[bytes]) -> None:
        self._open_streams.add(stream)
        if _fileno_or_none(reader) is None:  # a stand-in of a test, as pytest-subprocess makes: read when it has ended
            self._mocked_streams.append((stream, reader))
            return
        os.set_blocking(reader.fileno(), False)
        self._selector.register(reader, selectors.EVENT_READ, stream)

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def at_eof(self) -> bool:
        """Tell whether both output streams have ended."""
        return not self._open_streams

    @property
    def is_stdin_open(self) -> bool:
        """Tell whether the process still takes standard input, as far as is known."""
        return self._stdin is not None

    def write(self, data: bytes | memoryview, *, pump: Callable[[Callable[[], bool]], bool] | None = None) -> None:
        """Write to the standard input of the process, pumping its output meanwhile, by `pump` in place of `pump()`.

        A process that does not read its input any more loses the rest, as it would in a pipeline.
        """
        if self._stdin is None:
            return
        if _fileno_or_none(self._stdin) is None:
            self._stdin.write(data)
            return
        self._pending = memoryview(data)
        self._write_pending()
        if self._pending and self._stdin is not None:
            self._selector.register(self._stdin, selectors.EVENT_WRITE, None)
            if not (pump or self.pump)(lambda: not self._pending):  # both outputs have ended: nobody is there to read
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

    def close_after_fork(self) -> None:
        """Close the standard input of the process in a forked child."""
        if self._stdin is not None:
            with contextlib.suppress(OSError):
                self._stdin.close()

    def detach_stdin(self) -> PipeWriter:
        """Return the standard input of the process for other threads to write to; it is no longer this object's."""
        assert self._stdin is not None
        for stream in (self._stdin, self._process.stdout):
            _enlarge_pipe(stream)
        writer = PipeWriter(os.dup(self._stdin.fileno()))
        self.close_stdin()
        return writer

    def pump(self, predicate: Callable[[], bool], *, timeout: float | None = None) -> bool:
        """Move data until the condition holds, or both outputs have ended, or for so long; return whether it holds.

        Raises:
            DeadlinePassedError: The deadline passed first.
            CancelledError: The cancellation was requested first.
        """
        self._read_mocked_streams()
        pause = Deadline(timeout)
        while not predicate():
            if not self._open_streams or pause.has_passed:
                return False
            if self.deadline.has_passed:
                raise DeadlinePassedError
            for key, _ in self._selector.select(
                min(self.deadline.clamp(SIGNAL_POLL_SECONDS), pause.clamp(SIGNAL_POLL_SECONDS))
            ):
                if key.fileobj is self._cancel_token:
                    raise CancelledError
                if key.fileobj is self._stdin:
                    self._write_pending()
                elif isinstance(key.data, Stream):
                    self._read_available(key.data, key.fd)
        return True

    def wait(self, timeout: float) -> int | None:
        """Return the exit status, negative for a signal, or None where the process is still there after `timeout`."""
        try:
            return self._process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            return None

    def ignore_cancel_token(self) -> None:
        """Go on pumping although the cancellation was requested."""
        if self._cancel_token is not None:
            self._selector.unregister(self._cancel_token)
            self._cancel_token = None

    def kill_group(self) -> None:
        """Kill the process, if it is still there, with what it started."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                _kill_group(self._process)

    def close(self) -> None:
        """Kill the process if it is still there, and let go of its streams.

        The streams of a multiplexed ssh live on in the master until the remote command ends (so nobody reads them to
        their end here).
        """
        self.close_stdin()
        self._cancel_token = None
        _kill_and_close(self._process)
        self._selector.close()
        self._open_streams.clear()
        _log.debug("ended with %s: pid %s", self._process.returncode, self._process.pid)

    def _write_pending(self) -> None:
        assert self._stdin is not None
        try:
            written = os.write(self._stdin.fileno(), self._pending[:_PIPE_IO_BYTES])
        except BlockingIOError:
            return
        except OSError:  # the process reads no more; how it ended tells the rest
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
            self._open_streams.discard(stream)

    def _read_mocked_streams(self) -> None:
        if self._mocked_streams:
            self._process.wait()
        for stream, reader in self._mocked_streams:
            data = reader.read()
            if data:
                self._on_output(stream, data)
            self._open_streams.discard(stream)
        self._mocked_streams.clear()


def _enlarge_pipe(stream: IO[bytes] | None) -> None:
    """Let a pipe hold more than usual, where the system allows that (Linux)."""
    descriptor = None if stream is None else _fileno_or_none(stream)
    if descriptor is not None and sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, _F_SETPIPE_SZ, _PIPE_CAPACITY_BYTES)


class PipeWriter:
    """The standard input of a process, for any thread to write to, without waiting for the process to read.

    Who writes much sees to it that it is read: what is not, is kept here.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over a descriptor that does not block."""
        self._descriptor = descriptor
        self._pending = bytearray()
        self._changed = threading.Condition()
        self._flushing = False
        _open_stdin_pipes.add(self)

    def write(self, data: bytes) -> bool:
        """Write data, now or as soon as there is room for it; tell whether somebody can still read it."""
        with self._changed:
            if self._descriptor < 0:
                return False
            # So little is written at once or not at all (PIPE_BUF, pipe(7)); more is left to a thread that no Ctrl-C
            # interrupts, or nobody would know how much of it was written.
            if not self._pending and len(data) <= select.PIPE_BUF:
                try:
                    os.write(self._descriptor, data)
                except BlockingIOError:
                    pass
                except OSError:
                    self._close_locked()
                    return False
                else:
                    return True
            self._pending += data
            self._changed.notify_all()
            if not self._flushing:
                start_thread(threading.Thread(target=self._flush, name="lazycluster-inlet", daemon=True))
                self._flushing = True
            return True

    def _flush(self) -> None:
        """Write what waits, whenever there is room, until the end."""
        poll = select.poll()
        with self._changed:
            if self._descriptor < 0:
                return
            poll.register(self._descriptor, select.POLLOUT)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._descriptor < 0)
                if self._descriptor < 0:
                    return
                try:
                    del self._pending[: os.write(self._descriptor, self._pending[:_PIPE_CAPACITY_BYTES])]
                    continue
                except BlockingIOError:
                    pass
                except OSError:
                    self._close_locked()
                    return
            poll.poll(1000)

    def close(self) -> None:
        """End it; what waits is lost. Closing twice is fine."""
        with self._changed:
            self._close_locked()

    def close_after_fork(self) -> None:
        """Close the descriptor in a forked child, where the lock may be held by a thread that is not there."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _close_locked(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._pending.clear()
            self._changed.notify_all()


_open_stdin_pipes: weakref.WeakSet[LocalProcess | PipeWriter] = weakref.WeakSet()
"""Whose standard inputs are pipes of ours: their end is how a host sees ours."""


def _close_stdin_pipes_after_fork() -> None:
    """Close what a fork copied, or the child would hide the parent's end from the hosts."""
    for owner in list(_open_stdin_pipes):
        owner.close_after_fork()
    _open_stdin_pipes.clear()


os.register_at_fork(after_in_child=_close_stdin_pipes_after_fork)


def _fileno_or_none(stream: IO[bytes]) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError):
        return None


@attrs.frozen
class Completed:
    """How a process ended: its exit status (negative for a signal, None if killed at the deadline), and its text."""

    exit_code: int | None
    text: str


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with what it started; only the process itself where it is a test's stand-in with some number."""
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


def run_daemonizing(
    argv: Sequence[str], stderr_path: Path, *, timeout: float, cancel_event: threading.Event | None = None
) -> Completed:
    """Run a program that ends and leaves a daemon behind; what it says goes through a file.

    After so many seconds, or when `cancel_event` is set, it is killed.

    The daemon may keep the descriptors that it was given, so no pipe of ours may be among them.

    Raises:
        OSError: The program cannot be started.
    """
    deadline = Deadline(timeout)
    with stderr_path.open("ab") as errors:
        process = _popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            _wait_for_exit(process, deadline, cancel_event)
        finally:  # also after Ctrl-C, or it would go on logging in for nobody
            timed_out = process.poll() is None
            if timed_out:
                with contextlib.suppress(ProcessLookupError):
                    _kill_group(process)  # with its ProxyCommand, which need not notice its end
                process.wait()
    return Completed(None if timed_out else process.returncode, stderr_path.read_text(errors="replace"))


def _wait_for_exit(process: subprocess.Popen[bytes], deadline: Deadline, cancel_event: threading.Event | None) -> None:
    """Wait for the end of a process, until a time or until `cancel_event` is set.

    Popen.wait(timeout) polls, with naps of up to 50 ms; a thread that waits without one wakes at once.
    """
    waiter = threading.Thread(target=process.wait, name="lazycluster-wait", daemon=True)
    try:
        start_thread(waiter)
    except RuntimeError:  # from Python 3.12 on no thread starts while the interpreter ends
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(deadline.remaining)
    while waiter.is_alive() and not deadline.has_passed and not (cancel_event is not None and cancel_event.is_set()):
        waiter.join(deadline.clamp(_CANCEL_POLL_SECONDS))


def run_and_capture(argv: Sequence[str], *, timeout: float, include_stderr: bool = False) -> Completed:
    """Run a program that prints little, and return its standard output; with `include_stderr`, its standard error too.

    Raises:
        OSError: The program cannot be started.
    """
    pieces: list[bytes] = []
    process = LocalProcess(
        argv,
        stdin=False,
        deadline=Deadline(timeout),
        on_output=lambda stream, data: pieces.append(data) if include_stderr or stream is Stream.STDOUT else None,
    )
    exit_code: int | None = None
    try:
        with contextlib.suppress(DeadlinePassedError):
            process.pump(lambda: False)
            exit_code = process.wait(process.deadline.clamp(timeout))
    finally:
        process.kill_group()  # such as the program of a `Match exec`, for which `ssh -G` waits
        process.close()
    return Completed(exit_code, b"".join(pieces).decode(errors="replace"))
