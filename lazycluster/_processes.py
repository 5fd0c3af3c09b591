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

from lazycluster._waiting import GLANCE, Cancellation, CancelledError, Deadline, DeadlinePassedError, sheltered, start
from lazycluster.results import Stream

_log = logging.getLogger(__name__)
_CHUNK = 1 << 18
_PIPE = 1 << 20
_SET_PIPE_SIZE = 1031  # fcntl(2), F_SETPIPE_SZ
_STOP_SEEN_WITHIN = 0.1
"""Seconds between two looks whether a program that somebody may stop is to be stopped."""


Output = Callable[[Stream, bytes], None]


def _popen(argv: Sequence[str], *, stdin: int, stdout: int, stderr: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, where no terminal's Ctrl-C reaches it."""
    _log.debug("start %s", argv)
    # The ssh to a jump host knows nothing of our BatchMode, and must not open a window either (ssh(1), ENVIRONMENT).
    env = {**os.environb, b"SSH_ASKPASS_REQUIRE": b"never"}  # as bytes, which Popen takes without much ado

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, start_new_session=True, bufsize=0
        )

    return sheltered(start, _end)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, if it is still there, and let go of its streams."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


class Child:
    """A process whose streams are pumped by the thread that waits for it; it never blocks past its deadline.

    Output is handed to `on_output` as it comes. A timeout does not end the process: the caller decides, with
    `abandon()`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        on_output: Output,
        deadline: Deadline,
        stdin: bool = True,
        cancellation: Cancellation | None = None,
    ) -> None:
        """Start the process.

        Raises:
            OSError: The program cannot be started.
        """
        self.argv = tuple(argv)
        self.deadline = deadline
        self._on_output = on_output
        self._cancellation = cancellation
        self._pending = memoryview(b"")
        self._selector = selectors.DefaultSelector()
        self._open: set[Stream] = set()
        self._stand_ins: list[tuple[Stream, IO[bytes]]] = []
        pipe = subprocess.PIPE
        self._process = _popen(argv, stdin=pipe if stdin else subprocess.DEVNULL, stdout=pipe, stderr=pipe)
        try:
            self._begin(cancellation)
        except BaseException:
            _end(self._process)
            raise

    def _begin(self, cancellation: Cancellation | None) -> None:
        self._stdin = self._process.stdin
        for stream, reader in ((Stream.STDOUT, self._process.stdout), (Stream.STDERR, self._process.stderr)):
            if reader is not None:
                self._watch(stream, reader)
        if self._stdin is not None and _descriptor(self._stdin) is not None:
            os.set_blocking(self._stdin.fileno(), False)
            _open_inputs.add(self)
        if cancellation is not None:
            self._selector.register(cancellation, selectors.EVENT_READ, None)

    def _watch(self, stream: Stream, reader: IO[bytes]) -> None:
        self._open.add(stream)
        if _descriptor(reader) is None:  # a stand-in of a test, as pytest-subprocess makes: read when it has ended
            self._stand_ins.append((stream, reader))
            return
        os.set_blocking(reader.fileno(), False)
        self._selector.register(reader, selectors.EVENT_READ, stream)

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def at_end(self) -> bool:
        """Tell whether both output streams have ended."""
        return not self._open

    @property
    def listens(self) -> bool:
        """Tell whether the process still takes standard input, as far as is known."""
        return self._stdin is not None

    def feed(self, data: bytes | memoryview, *, wait: Callable[[Callable[[], bool]], bool] | None = None) -> None:
        """Write to the standard input of the process, pumping its output meanwhile, by `wait` in place of `pump()`.

        A process that does not read its input any more loses the rest, as it would in a pipeline.
        """
        if self._stdin is None:
            return
        if _descriptor(self._stdin) is None:
            self._stdin.write(data)
            return
        self._pending = memoryview(data)
        self._write()
        if self._pending and self._stdin is not None:
            self._selector.register(self._stdin, selectors.EVENT_WRITE, None)
            if not (wait or self.pump)(lambda: not self._pending):  # both outputs have ended: nobody is there to read
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

    def forget(self) -> None:
        """Close the standard input of the process in a forked child."""
        if self._stdin is not None:
            with contextlib.suppress(OSError):
                self._stdin.close()

    def take_stdin(self) -> Inlet:
        """Return the standard input of the process for other threads to write to; it is no longer this object's."""
        assert self._stdin is not None
        for stream in (self._stdin, self._process.stdout):
            _enlarge(stream)
        inlet = Inlet(os.dup(self._stdin.fileno()))
        self.close_stdin()
        return inlet

    def pump(self, until: Callable[[], bool], *, seconds: float | None = None) -> bool:
        """Move data until the condition holds, or both outputs have ended, or for so long; return whether it holds.

        Raises:
            DeadlinePassedError: The deadline passed first.
            CancelledError: The cancellation was requested first.
        """
        self._read_stand_ins()
        pause = Deadline(seconds)
        while not until():
            if not self._open or pause.passed:
                return False
            if self.deadline.passed:
                raise DeadlinePassedError
            for key, _ in self._selector.select(min(self.deadline.within(GLANCE), pause.within(GLANCE))):
                if key.fileobj is self._cancellation:
                    raise CancelledError
                if key.fileobj is self._stdin:
                    self._write()
                elif isinstance(key.data, Stream):
                    self._read(key.data, key.fd)
        return True

    def wait(self, seconds: float) -> int | None:
        """Return the exit status, negative for a signal, or None where the process is still there after `seconds`."""
        try:
            return self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def ignore_cancellation(self) -> None:
        """Go on pumping although the cancellation was requested."""
        if self._cancellation is not None:
            self._selector.unregister(self._cancellation)
            self._cancellation = None

    def kill_group(self) -> None:
        """Kill the process, if it is still there, with what it started."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                _kill_group(self._process)

    def abandon(self) -> None:
        """Kill the process if it is still there, and let go of its streams.

        The streams of a multiplexed ssh live on in the master until the remote command ends (so nobody reads them to
        their end here).
        """
        self.close_stdin()
        self._cancellation = None
        _end(self._process)
        self._selector.close()
        self._open.clear()
        _log.debug("ended with %s: pid %s", self._process.returncode, self._process.pid)

    def _write(self) -> None:
        assert self._stdin is not None
        try:
            written = os.write(self._stdin.fileno(), self._pending[:_CHUNK])
        except BlockingIOError:
            return
        except OSError:  # the process reads no more; how it ended tells the rest
            self.close_stdin()
            return
        self._pending = self._pending[written:]
        if not self._pending:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._stdin)

    def _read(self, stream: Stream, descriptor: int) -> None:
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return
        if data:
            self._on_output(stream, data)
        else:
            self._selector.unregister(descriptor)
            self._open.discard(stream)

    def _read_stand_ins(self) -> None:
        if self._stand_ins:
            self._process.wait()
        for stream, reader in self._stand_ins:
            data = reader.read()
            if data:
                self._on_output(stream, data)
            self._open.discard(stream)
        self._stand_ins.clear()


def _enlarge(stream: IO[bytes] | None) -> None:
    """Let a pipe hold more than usual, where the system allows that (Linux)."""
    descriptor = None if stream is None else _descriptor(stream)
    if descriptor is not None and sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, _SET_PIPE_SIZE, _PIPE)


class Inlet:
    """The standard input of a process, for any thread to write to, without waiting for the process to read.

    Who writes much sees to it that it is read: what is not, is kept here.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over a descriptor that does not block."""
        self._descriptor = descriptor
        self._pending = bytearray()
        self._changed = threading.Condition()
        self._flushing = False
        _open_inputs.add(self)

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
                    self._close()
                    return False
                else:
                    return True
            self._pending += data
            self._changed.notify_all()
            if not self._flushing:
                start(threading.Thread(target=self._flush, name="lazycluster-inlet", daemon=True))
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
                    del self._pending[: os.write(self._descriptor, self._pending[:_PIPE])]
                    continue
                except BlockingIOError:
                    pass
                except OSError:
                    self._close()
                    return
            poll.poll(1000)

    def close(self) -> None:
        """End it; what waits is lost. Closing twice is fine."""
        with self._changed:
            self._close()

    def forget(self) -> None:
        """Close the descriptor in a forked child, where the lock may be held by a thread that is not there."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._pending.clear()
            self._changed.notify_all()


_open_inputs: weakref.WeakSet[Child | Inlet] = weakref.WeakSet()
"""Whose standard inputs are pipes of ours: their end is how a host sees ours."""


def _forget_inputs() -> None:
    """Close what a fork copied, or the child would hide the parent's end from the hosts."""
    for owner in list(_open_inputs):
        owner.forget()
    _open_inputs.clear()


os.register_at_fork(after_in_child=_forget_inputs)


def _descriptor(stream: IO[bytes]) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError):
        return None


@attrs.frozen
class Finished:
    """How a process ended: its exit status (negative for a signal, None if killed at the deadline), and its text."""

    status: int | None
    text: str


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with what it started; only the process itself where it is a test's stand-in with some number."""
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


def run_detaching(
    argv: Sequence[str], said: Path, *, seconds: float, stopping: threading.Event | None = None
) -> Finished:
    """Run a program that ends and leaves a daemon behind; what it says goes through a file.

    After so many seconds, or when `stopping` is set, it is killed.

    The daemon may keep the descriptors that it was given, so no pipe of ours may be among them.

    Raises:
        OSError: The program cannot be started.
    """
    until = Deadline(seconds)
    with said.open("ab") as errors:
        process = _popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            _wait_for(process, until, stopping)
        finally:  # also after Ctrl-C, or it would go on logging in for nobody
            late = process.poll() is None
            if late:
                with contextlib.suppress(ProcessLookupError):
                    _kill_group(process)  # with its ProxyCommand, which need not notice its end
                process.wait()
    return Finished(None if late else process.returncode, said.read_text(errors="replace"))


def _wait_for(process: subprocess.Popen[bytes], until: Deadline, stopping: threading.Event | None) -> None:
    """Wait for the end of a process, until a time or until `stopping` is set.

    Popen.wait(timeout) polls, with naps of up to 50 ms; a thread that waits without one wakes at once.
    """
    waiter = threading.Thread(target=process.wait, name="lazycluster-wait", daemon=True)
    try:
        start(waiter)
    except RuntimeError:  # from Python 3.12 on no thread starts while the interpreter ends
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(until.remaining)
    while waiter.is_alive() and not until.passed and not (stopping is not None and stopping.is_set()):
        waiter.join(until.within(_STOP_SEEN_WITHIN))


def run_to_end(argv: Sequence[str], *, seconds: float, errors: bool = False) -> Finished:
    """Run a program that prints little, and return its standard output; with `errors`, its standard error too.

    Raises:
        OSError: The program cannot be started.
    """
    pieces: list[bytes] = []
    child = Child(
        argv,
        stdin=False,
        deadline=Deadline(seconds),
        on_output=lambda stream, data: pieces.append(data) if errors or stream is Stream.STDOUT else None,
    )
    status: int | None = None
    try:
        with contextlib.suppress(DeadlinePassedError):
            child.pump(lambda: False)
            status = child.wait(child.deadline.within(seconds))
    finally:
        child.kill_group()  # such as the program of a `Match exec`, for which `ssh -G` waits
        child.abandon()
    return Finished(status, b"".join(pieces).decode(errors="replace"))
