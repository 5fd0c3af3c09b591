"""Our end of a supervisor's channel: jobs on a host, many at a time, over one session."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import TypeAlias

import attrs

from lazycluster._functions import bootstrap
from lazycluster._functions.bootstrap import PythonInfo
from lazycluster._functions.python_finder import python_candidates, run_python_script
from lazycluster._model.watch import Watch
from lazycluster._processes import PipeWriter
from lazycluster._remote import protocol, supervisor
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.session import Session, SessionEndedError
from lazycluster._ssh.shell import PROCESS_MARK_VARIABLE
from lazycluster._waiting import (
    CancelledError,
    CancelToken,
    Deadline,
    DeadlinePassedError,
    queue_get,
    start_thread,
    wait_event,
)
from lazycluster.exceptions import ConnectionLostError, PythonNotFoundError, SupervisorError, indented_tail
from lazycluster.results import Collector, Stream

_log = logging.getLogger(__name__)
_EXIT_COMMAND_NOT_FOUND = 127
_MAX_QUOTED_BYTES = 2000
"""Bytes that are quoted of what start-up files print."""
_STREAM_BY_FRAME_KIND = {protocol.STDOUT: Stream.STDOUT, protocol.STDERR: Stream.STDERR}

ChildEvent: TypeAlias = "tuple[int, bytes] | Exception"
Environment: TypeAlias = Mapping[str, str]


@attrs.frozen
class SupervisorSettings:
    """What a supervisor begins with.

    `working_dir` is a directory to make where it is missing, `''` a temporary one, None no directory at all;
    `probe_script` is a script that asks what the machine has, `''` for none. `grace` is in seconds.
    """

    python: str | None = None
    grace: float = 5.0
    working_dir: str | None = None
    probe_script: str = attrs.field(default="", repr=False)


@attrs.frozen
class Hello:
    """What a supervisor said first."""

    python: PythonInfo
    pid: int
    working_dir: str
    probe_output: str = attrs.field(repr=False)
    working_dir_error: str = ""
    """Why there is no working directory."""

    @classmethod
    def parse(cls, body: bytes) -> Hello:
        """Read the body of the greeting.

        Raises:
            FrameError: It is none.
        """
        version, *fields = protocol.unpack(body) or [b""]
        if version != protocol.encode_number(protocol.PROTOCOL_VERSION) or len(fields) != 7:
            raise protocol.FrameError(f"a greeting of protocol {version!r}", body)
        implementation, release, executable, failure, pid, working_dir, facts = fields
        texts = [field.decode("utf-8", "surrogateescape") for field in (release, executable, implementation)]
        return cls(
            PythonInfo(*texts),
            int(pid),
            working_dir.decode("utf-8", "surrogateescape"),
            facts.decode(errors="replace"),
            failure.decode(errors="replace"),
        )


@attrs.frozen
class ExitInfo:
    """How a job ended: `exit` or `signal` with what waitpid(2) said, `cd` or `failed` with a reason.

    A function whose process has said itself that it is done is `done`.
    """

    kind: str
    detail: str

    @property
    def exit_code(self) -> int:
        """Return the exit status; 128 and its number for a signal, as shells have it."""
        code = os.waitstatus_to_exitcode(int(self.detail))
        return code if code >= 0 else 128 - code


class RemoteChild:
    """A command or function under way on the host. The thread that waits for it handles what comes for it."""

    def __init__(self, supervisor: SupervisorClient, number: int, title: str) -> None:
        self.events: queue.SimpleQueue[ChildEvent] = queue.SimpleQueue()
        self.exit_info: ExitInfo | None = None
        self.has_started = False
        self.deadline = Deadline(None)
        self.cancel_token: CancelToken | None = None
        self.on_output: Callable[[Stream, bytes], None] = lambda _stream, _data: None
        self.on_outcome: Callable[[bytes], object] = lambda _data: None
        self.title = title
        self.number = number
        self._supervisor = supervisor
        self._send_window = protocol.WINDOW_BYTES
        self._unacknowledged_bytes = 0
        self._stdout_buffer: bytearray | None = None
        self._stdin_closed = False

    def pump(self, predicate: Callable[[], bool]) -> bool:
        """Handle what comes until a condition holds or the job has ended; return whether the condition holds.

        Raises:
            DeadlinePassedError: The deadline passed first.
            CancelledError: The cancellation was requested first.
            ConnectionLostError: The link broke, or the supervisor ended.
        """
        wake = contextlib.nullcontext() if self.cancel_token is None else self.cancel_token.on_cancel(self._wake)
        with wake:
            while not predicate():
                if self.exit_info is not None:
                    return False
                if self.cancel_token is not None and self.cancel_token.is_cancelled:
                    raise CancelledError
                if self.deadline.has_passed:
                    raise DeadlinePassedError
                self._handle_event(queue_get(self.events, self.deadline))
        return True

    def _wake(self) -> None:
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
                how, what = protocol.unpack(body)
                self.exit_info = ExitInfo(how.decode("ascii"), what.decode(errors="replace"))
            case _:
                pass

    def _receive_data(self, kind: int, body: bytes) -> None:
        self.has_started = True
        if kind == protocol.OUTCOME:
            self.on_outcome(body)
        elif kind == protocol.STDOUT and self._stdout_buffer is not None:
            self._stdout_buffer += body
        else:
            self.on_output(_STREAM_BY_FRAME_KIND[kind], body)
        self._unacknowledged_bytes += len(body)
        if self._unacknowledged_bytes >= protocol.WINDOW_UPDATE_THRESHOLD_BYTES:
            self._send_frame(protocol.WINDOW_UPDATE, protocol.encode_number(self._unacknowledged_bytes))
            self._unacknowledged_bytes = 0

    def _send_frame(self, kind: int, body: bytes = b"") -> None:
        self._supervisor.send(protocol.encode_frame(kind, self.number, body))

    def write(self, data: bytes) -> None:
        """Send to the standard input of the job, as it takes it.

        Raises:
            SessionEndedError: It has ended.
        """
        view = memoryview(data)
        while view:
            if self.deadline.has_passed:
                raise DeadlinePassedError
            if not self.pump(lambda: self._send_window > 0) or self.exit_info is not None:
                raise SessionEndedError
            piece = view[: min(protocol.STREAM_CHUNK_BYTES, self._send_window)]
            self._send_window -= len(piece)
            self._send_frame(protocol.INPUT, bytes(piece))
            view = view[len(piece) :]

    def _get_stdout_buffer(self) -> bytearray:
        """Return the standard output that nobody has read yet; from the first call on it is kept."""
        if self._stdout_buffer is None:
            self._stdout_buffer = bytearray()
        return self._stdout_buffer

    def read(self, size: int) -> bytes:
        """Return so many bytes of standard output, fewer only at its end.

        The first call keeps standard output from going to `on_output` from then on.
        """
        reading = self._get_stdout_buffer()
        self.pump(lambda: len(reading) >= size)
        data = bytes(reading[:size])
        del reading[:size]
        return data

    def read_some(self) -> bytes:
        """Return what there is of standard output, waiting for some; nothing only at its end."""
        reading = self._get_stdout_buffer()
        self.pump(lambda: bool(reading))
        data = bytes(reading)
        reading.clear()
        return data

    def read_until(self, end: bytes) -> bytes | None:
        """Return standard output up to a byte string, which is taken off; None where it ends before."""
        reading = self._get_stdout_buffer()
        self.pump(lambda: end in reading)
        data, found, rest = bytes(reading).partition(end)
        reading[:] = rest
        return data if found else None

    def close_stdin(self) -> None:
        """End the standard input of the job."""
        if not self._stdin_closed:
            self._stdin_closed = True
            self._send_frame(protocol.INPUT_END)

    def wait(self) -> None:
        """Wait until the job has ended and its output is complete.

        Raises:
            DeadlinePassedError: It did not in time; call `cancel()`.
            CancelledError: It was to be stopped; call `cancel()`.
        """
        self.pump(lambda: self.exit_info is not None)

    def cancel(self, *, timeout: float) -> None:
        """End the job on the host with its children, and wait for that, so many seconds at most."""
        self._send_frame(protocol.STOP)
        self.deadline = Deadline(timeout)
        self.cancel_token = None
        with contextlib.suppress(DeadlinePassedError, ConnectionLostError):
            self.wait()
        if self.exit_info is None:
            self._send_frame(protocol.DETACH)
            self._supervisor.discard(self.number)


class SupervisorClient:
    """One supervisor on a host, from its start to its end. Any thread may use it."""

    def __init__(self, ssh_client: SshClient, settings: SupervisorSettings) -> None:
        """Begin to start it; `wait_until_ready()` waits until it is there."""
        self._ssh_client = ssh_client
        self._settings = settings
        self._numbers = itertools.count(1)
        # Its own, behind that of all that is ours: an earlier one that is about to end is not to take it along.
        self._token = f"{ssh_client.token}.s{ssh_client.next_supervisor_number()}"
        self._lock = threading.Lock()
        self._event_queues: dict[int, queue.SimpleQueue[ChildEvent]] = {}
        self._titles: dict[int, str] = {}
        self._session: Session | None = None
        self._stdin: PipeWriter | None = None
        self._loaded: set[str] = set()
        self._cancel_token = CancelToken()
        self._collector = Collector()
        self._preamble = bytearray()
        self._hello: Hello | None = None
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._leftovers: list[str] | None = None
        self._reported_status: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"supervisor of {ssh_client.host}", daemon=True)
        start_thread(self._thread)

    def __repr__(self) -> str:
        """Return the host and how it stands."""
        return f"<Supervisor of {self._ssh_client.host}, {'alive' if self.is_running else 'ended'}>"

    @property
    def is_running(self) -> bool:
        """Tell whether it can be used, as far as is known."""
        return self._failure is None

    @property
    def exit_reason(self) -> str:
        """Return why it has ended."""
        failure = self._failure
        if failure is None:
            return "the link is gone"
        if isinstance(failure, SupervisorError):
            return failure.reason + indented_tail(failure.output)
        return failure.reason if isinstance(failure, ConnectionLostError) else str(failure)

    def wait_until_ready(self, timeout: float) -> Hello:
        """Wait until it has greeted, and return what it said.

        Raises:
            ConnectError: The host could not be reached.
            PythonNotFoundError: There is no Python on it.
            SupervisorError: It did not start, or not in time.
        """
        try:
            came = wait_event(self._ready, Deadline(timeout))
        except BaseException:
            self._cancel_token.cancel()
            raise
        if self._failure is not None:
            raise self._failure
        if not came or self._hello is None:
            self._cancel_token.cancel()
            reason = f"no greeting within {timeout:g} s: {self._startup_progress()}"
            raise SupervisorError(self._ssh_client.host, reason, self._diagnostic())
        return self._hello

    def _startup_progress(self) -> str:
        """Return how far the start has come."""
        if self._session is None:
            return "no session is open"
        if self._stdin is not None:
            return "it has begun, and looks at the machine"
        return "Python has not begun" if self.has_shell_started else "the login shell has not begun"

    @property
    def has_shell_started(self) -> bool:
        """Tell whether a shell that was to start it has begun on the host."""
        return self._session is not None and self._session.has_started

    # Jobs ------------------------------------------------------------------------------------------------------------

    def start_child(self, kind: int, title: str, *fields: bytes) -> RemoteChild:
        """Start a job.

        Raises:
            ConnectionLostError: The supervisor has ended; nothing was started.
        """
        child = RemoteChild(self, next(self._numbers), title)
        self._register_and_send(kind, child.number, title, child.events, fields)
        return child

    def request(self, method: str, *arguments: bytes, timeout: float) -> list[bytes]:
        """Ask something that takes the host no time, and return the answer.

        Raises:
            OSError: It could not be done.
            ConnectionLostError: The link broke.
            DeadlinePassedError: No answer came in time.
        """
        events: queue.SimpleQueue[ChildEvent] = queue.SimpleQueue()
        self._register_and_send(
            protocol.REQUEST, next(self._numbers), method, events, (method.encode("ascii"), *arguments)
        )
        event = queue_get(events, Deadline(timeout))
        if isinstance(event, Exception):
            raise event
        state, *answer = protocol.unpack(event[1])
        if state != b"ok":
            raise OSError(answer[0].decode(errors="replace"))
        return answer

    def ensure_loaded(self, name: str, source: Callable[[], bytes], data: Callable[[], bytes] = bytes) -> None:
        """Have the host load something once, before what needs it."""
        if name not in self._loaded:
            with self._lock:
                if name not in self._loaded:
                    # Sent under the lock: no other thread may take it for done before.
                    self.send(protocol.encode_frame(protocol.PREPARE, 0, protocol.pack(source(), data())))
                    self._loaded.add(name)

    def _register_and_send(
        self, kind: int, number: int, title: str, events: queue.SimpleQueue[ChildEvent], fields: tuple[bytes, ...]
    ) -> None:
        message = protocol.encode_frame(kind, number, protocol.pack(*fields))
        with self._lock:
            if self._failure is None:
                self._event_queues[number] = events
                self._titles[number] = title
        if self._failure is not None:
            raise self._connection_lost_error(title, started=False)
        self.send(message)

    def send(self, message: bytes) -> None:
        """Send a frame; where the supervisor is gone, it goes nowhere."""
        if self._stdin is not None:
            self._stdin.write(message)

    def discard(self, number: int) -> None:
        """Drop what still comes for a job."""
        with self._lock:
            self._event_queues.pop(number, None)
            self._titles.pop(number, None)

    # The end ---------------------------------------------------------------------------------------------------------

    def close(self, timeout: float) -> list[str]:
        """Have it end everything and go; return what it had to leave, or says why it did not end well.

        Raises:
            SupervisorError: It has not gone in time, or had ended before, without cleaning up.
        """
        if self._stdin is not None:
            self._stdin.close()
        else:
            self._cancel_token.cancel()
        self._thread.join(timeout)
        if self._leftovers is None:
            raise SupervisorError(self._ssh_client.host, str(self._failure or "it does not end"), self._diagnostic())
        return self._leftovers

    # The thread that reads -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Start the supervisor in a session, and hand on what it says, until it ends."""
        failure: Exception
        try:
            code = self._run_session()
            failure = self._exit_error(code)
        except Exception as error:  # noqa: BLE001 - for everybody who waits
            failure = error
        with self._lock:
            self._failure = failure
            event_queues, self._event_queues = self._event_queues, {}
            titles, self._titles = self._titles, {}
        if self._stdin is not None:
            self._stdin.close()
        self._ready.set()
        for number, events in event_queues.items():
            events.put(self._connection_lost_error(titles[number], started=None))
        self._cancel_token.close()
        if self._leftovers is None:
            _log.debug("%s: the supervisor is gone: %s", self._ssh_client.host, failure)

    def _run_session(self) -> int:
        settings, ssh_client = self._settings, self._ssh_client
        mark = f"{PROCESS_MARK_VARIABLE}={self._token}."
        host_program = bootstrap.build_supervisor_program(
            self._token, mark, settings.grace, settings.working_dir, settings.probe_script
        )
        text = run_python_script(
            settings.python, host_program.bootstrap, mark=mark, temp_dir_prefix=f"lazycluster-{self._token}."
        )
        script = ssh_client.script(
            text,
            title="lazycluster supervisor",
            raw_stdin=True,
            login_shell=False,
            mark_processes=False,
            new_shell=False,
        )
        watch = Watch(cancel_token=self._cancel_token)
        return ssh_client.run_script(
            script,
            lambda session: self._communicate(session, host_program),
            collector=self._collector,
            watch=watch,
            long_lived=True,
        )

    def _communicate(self, session: Session, host_program: bootstrap.HostProgram) -> None:
        self._preamble.clear()
        self._session = session
        session.write(host_program.stdin_prefix)
        mark, asks = (
            f"{words} {self._token}".encode()
            for words in (supervisor.SUPERVISOR_START_MARKER, bootstrap.SOURCE_REQUEST)
        )
        while (line := session.read_until(b"\n")) is not None and not line.endswith(mark):
            if line.endswith(asks):
                session.write(host_program.source)
                continue
            self._preamble += line[:_MAX_QUOTED_BYTES] + b"\n"
            del self._preamble[:-_MAX_QUOTED_BYTES]
        if line is None:
            self._preamble[:0] = session.diagnostic.encode()[-_MAX_QUOTED_BYTES:]
            raise SessionEndedError
        self._stdin = session.detach_stdin()
        try:
            self._read_frames(session)
        finally:
            session.close()

    def _read_frames(self, session: Session) -> None:
        decoder = protocol.FrameDecoder()
        for data in session.iter_raw_stdout():
            try:
                for kind, number, body in decoder.feed(data):
                    self._dispatch(kind, number, body)
            except protocol.FrameError as error:
                self._reported_status = session.parse_status_report(error.trailing_data)
                if self._reported_status is None:
                    raise SupervisorError(self._ssh_client.host, str(error), self._diagnostic()) from error
            if self._leftovers is not None or self._reported_status is not None:
                return
            self._reported_status = session.parse_status_report(decoder.trailing_data)
            if self._reported_status is not None:
                return

    def _dispatch(self, kind: int, number: int, body: bytes) -> None:
        if kind == protocol.HELLO:
            self._hello = Hello.parse(body)
            self._ready.set()
        elif kind == protocol.GOODBYE:
            self._leftovers = [path.decode(errors="replace") for path in protocol.unpack(body)]
        elif kind in {protocol.ENDED, protocol.RESPONSE}:
            with self._lock:
                events = self._event_queues.pop(number, None)
                self._titles.pop(number, None)
            if events is not None:
                events.put((kind, body))
        else:
            events = self._event_queues.get(number)
            if events is not None:
                events.put((kind, body))

    def _exit_error(self, exit_code: int) -> Exception:
        """Return why it has ended."""
        host = self._ssh_client.host
        if self._reported_status is not None:
            exit_code = int(self._reported_status)
        if self._leftovers is not None:
            return SupervisorError(host, "it was closed", "")
        if self._hello is None and exit_code == _EXIT_COMMAND_NOT_FOUND:
            return PythonNotFoundError(host, " and ".join(python_candidates(self._settings.python)))
        how = (
            f"it ended with exit status {exit_code}"
            if exit_code < 128
            else f"it was killed by signal {exit_code - 128}"
        )
        return SupervisorError(host, how, self._diagnostic())

    def _diagnostic(self) -> str:
        """Return what start-up files and the supervisor itself printed."""
        return (bytes(self._preamble) + self._collector.getvalue(Stream.STDERR)).decode(errors="replace").strip()

    def _connection_lost_error(self, title: str, *, started: bool | None) -> Exception:
        failure = self._failure
        if isinstance(failure, ConnectionLostError):
            return attrs.evolve(failure, command=title, started=started)
        reason = f"the supervisor on the host is gone: {self.exit_reason}"
        return ConnectionLostError(self._ssh_client.host, title, reason, started)
