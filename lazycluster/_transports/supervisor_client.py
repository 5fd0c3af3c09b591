"""The local end of a supervisor's channel: it carries the frames of many children over one session."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable

import attrs

from lazycluster._functions import bootstrap
from lazycluster._functions.python_finder import python_candidates, run_python_script
from lazycluster._model.command import Command
from lazycluster._model.running_command import CommandEndedError
from lazycluster._model.watch import Watch
from lazycluster._processes.pipe_writer import PipeWriter
from lazycluster._remote import protocol, supervisor
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.session import Session
from lazycluster._ssh.shell import PROCESS_MARK_VARIABLE
from lazycluster._transports.remote_child import ChildEvent, RemoteChild
from lazycluster._transports.supervisor_frames import Goodbye, Hello
from lazycluster._waiting import CancelToken, Deadline, queue_get, start_thread, wait_event
from lazycluster.exceptions import ConnectionLostError, PythonNotFoundError, SupervisorError, indented_tail
from lazycluster.options import DEFAULT_GRACE_SECONDS
from lazycluster.results import Collector, Stream

_log = logging.getLogger(__name__)
_EXIT_COMMAND_NOT_FOUND = 127
_EXIT_SIGNAL_BASE = 128
"""Shells add this to the number of a signal that ended a program."""
_MAX_QUOTED_BYTES = 2000
"""The most bytes that an error quotes of the output of start-up files."""


@attrs.frozen
class SupervisorSettings:
    """The settings with which a supervisor starts.

    `working_dir` is the directory to make if it is missing, `''` for a temporary one, None for no directory at all.
    `probe_script` is the script that probes the machine, `''` for no probe. `grace` is in seconds.
    """

    python: str | None = None
    grace: float = DEFAULT_GRACE_SECONDS
    working_dir: str | None = None
    probe_script: str = attrs.field(default="", repr=False)


@attrs.frozen
class _Recipient:
    """The receiver of the frames with one number: a child, or a request that waits for its response."""

    title: str
    events: queue.SimpleQueue[ChildEvent]


class SupervisorClient:
    """One supervisor on a host, from its start to its end. Any thread may use it."""

    def __init__(self, ssh_client: SshClient, settings: SupervisorSettings) -> None:
        """Start it in the background; `wait_until_ready()` waits for its hello."""
        self._ssh_client = ssh_client
        self._settings = settings
        self._numbers = itertools.count(1)
        # The token has a number, because an earlier supervisor that ends kills all processes with its own token.
        self._token = f"{ssh_client.token}.s{ssh_client.next_supervisor_number()}"
        self._lock = threading.Lock()
        self._recipients: dict[int, _Recipient] = {}
        self._session: Session | None = None
        self._stdin: PipeWriter | None = None
        self._loaded_extensions: set[str] = set()
        self._cancel_token = CancelToken()
        self._collector = Collector()
        self._preamble = bytearray()
        self._hello: Hello | None = None
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._goodbye: Goodbye | None = None
        self._reported_status: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"supervisor of {ssh_client.host}", daemon=True)
        start_thread(self._thread)

    def __repr__(self) -> str:
        """Return the host and the state."""
        return f"<Supervisor of {self._ssh_client.host}, {'alive' if self.is_running else 'ended'}>"

    @property
    def is_running(self) -> bool:
        """Whether the supervisor can be used, as far as is known."""
        return self._failure is None

    @property
    def exit_reason(self) -> str:
        """The reason why it has ended."""
        failure = self._failure
        if failure is None:
            return "the connection is gone"
        if isinstance(failure, SupervisorError):
            return failure.reason + indented_tail(failure.output)
        return failure.reason if isinstance(failure, ConnectionLostError) else str(failure)

    def wait_until_ready(self, timeout: float) -> Hello:
        """Wait for the hello of the supervisor, and return it.

        Raises:
            ConnectError: If the host could not be reached.
            PythonNotFoundError: If there is no Python on the host.
            SupervisorError: If it did not start, or not in time.
        """
        try:
            is_ready = wait_event(self._ready, Deadline(timeout))
        except BaseException:
            self._cancel_token.cancel()
            raise
        if self._failure is not None:
            raise self._failure
        if not is_ready or self._hello is None:
            self._cancel_token.cancel()
            reason = f"no hello within {timeout:g} s: {self._startup_progress()}"
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
        """Whether the shell that starts the supervisor has begun on the host."""
        return self._session is not None and self._session.has_started

    # Children --------------------------------------------------------------------------------------------------------

    def start_child(self, kind: int, title: str, *fields: bytes) -> RemoteChild:
        """Start a child.

        Raises:
            ConnectionLostError: If the supervisor has ended; nothing was started.
        """
        child = RemoteChild(self, next(self._numbers), title)
        self._register_and_send(kind, child.number, _Recipient(title, child.events), fields)
        return child

    def request(self, method: str, *arguments: bytes, timeout: float) -> list[bytes]:
        """Send a request that the supervisor answers at once, and return the fields of its answer.

        Raises:
            OSError: If the supervisor could not do it; the reason is its text.
            ConnectionLostError: If the connection broke.
            DeadlinePassedError: If no answer came in time.
        """
        events: queue.SimpleQueue[ChildEvent] = queue.SimpleQueue()
        self._register_and_send(
            protocol.REQUEST, next(self._numbers), _Recipient(method, events), (method.encode("ascii"), *arguments)
        )
        event = queue_get(events, Deadline(timeout))
        if isinstance(event, Exception):
            raise event
        state, *answer = protocol.unpack(event[1])
        if state != b"ok":
            raise OSError(answer[0].decode(errors="replace"))
        return answer

    def ensure_loaded(self, name: str, source: Callable[[], bytes], data: Callable[[], bytes] = bytes) -> None:
        """Have the host load an extension once, before the first frame that needs it."""
        if name not in self._loaded_extensions:
            with self._lock:
                if name not in self._loaded_extensions:
                    # Sent under the lock, so that no other thread takes the extension for loaded too early.
                    self.send(protocol.encode_frame(protocol.PREPARE, 0, protocol.pack(source(), data())))
                    self._loaded_extensions.add(name)

    def _register_and_send(self, kind: int, number: int, recipient: _Recipient, fields: tuple[bytes, ...]) -> None:
        message = protocol.encode_frame(kind, number, protocol.pack(*fields))
        with self._lock:
            if self._failure is None:
                self._recipients[number] = recipient
        if self._failure is not None:
            raise self._connection_lost_error(recipient.title, started=False)
        self.send(message)

    def send(self, message: bytes) -> None:
        """Send a frame; if the supervisor is gone, the frame is dropped."""
        if self._stdin is not None:
            self._stdin.write(message)

    def discard(self, number: int) -> None:
        """Drop later frames of a child."""
        with self._lock:
            self._recipients.pop(number, None)

    # The end ---------------------------------------------------------------------------------------------------------

    def close(self, timeout: float) -> Goodbye:
        """Have the supervisor end all its children and exit, and return its last message.

        Raises:
            SupervisorError: If it did not exit in time, or had ended before without cleaning up.
        """
        if self._stdin is not None:
            self._stdin.close()
        else:
            self._cancel_token.cancel()
        self._thread.join(timeout)
        if self._goodbye is None:
            raise SupervisorError(self._ssh_client.host, str(self._failure or "it does not end"), self._diagnostic())
        return self._goodbye

    # The thread that reads -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Run the supervisor in a session, and dispatch its frames, until it ends."""
        failure: Exception
        try:
            failure = self._exit_error(self._run_session())
        except Exception as error:  # noqa: BLE001 - every waiting thread gets it
            failure = error
        with self._lock:
            self._failure = failure
            recipients, self._recipients = self._recipients, {}
        if self._stdin is not None:
            self._stdin.close()
        self._ready.set()
        for recipient in recipients.values():
            recipient.events.put(self._connection_lost_error(recipient.title, started=None))
        self._cancel_token.close()
        if self._goodbye is None:
            _log.debug("%s: the supervisor is gone: %s", self._ssh_client.host, failure)

    def _run_session(self) -> int:
        """Run the supervisor until it ends, and return the exit status of the shell that started it."""
        settings, ssh_client = self._settings, self._ssh_client
        mark = f"{PROCESS_MARK_VARIABLE}={self._token}."
        host_program = bootstrap.build_supervisor_program(
            self._token, mark, settings.grace, settings.working_dir, settings.probe_script
        )
        text = run_python_script(
            settings.python,
            host_program.bootstrap,
            mark=mark,
            temp_dir_prefix=f"lazycluster-{self._token}.",
            grace=settings.grace,
        )
        command = Command(text, stdin=None, title="lazycluster supervisor", login_shell=False)
        return ssh_client.run_script(
            ssh_client.script(command, mark_processes=False, inline=True),
            lambda session: self._communicate(session, host_program),
            Watch(cancel_token=self._cancel_token, collector=self._collector),
            long_lived=True,
        )

    def _communicate(self, session: Session, host_program: bootstrap.HostProgram) -> None:
        """Start the supervisor in a session, and read its frames to their end: the conversation of the session."""
        self._preamble.clear()
        self._session = session
        session.write(host_program.stdin_prefix)
        start_marker, source_request = (
            f"{words} {self._token}".encode()
            for words in (supervisor.SUPERVISOR_START_MARKER, bootstrap.SOURCE_REQUEST)
        )
        while (line := session.read_until(b"\n")) is not None and not line.endswith(start_marker):
            if line.endswith(source_request):
                session.write(host_program.source)
                continue
            self._preamble += line[:_MAX_QUOTED_BYTES] + b"\n"
            del self._preamble[:-_MAX_QUOTED_BYTES]
        if line is None:
            self._preamble[:0] = session.diagnostic.encode()[-_MAX_QUOTED_BYTES:]
            raise CommandEndedError
        self._stdin = session.detach_stdin()
        try:
            self._read_frames(session)
        finally:
            session.close()

    def _read_frames(self, session: Session) -> None:
        """Dispatch frames until GOODBYE, or until the shell reports the exit status of a killed supervisor after them.

        The report is no frame, so the decoder refuses it or keeps it as an incomplete frame.
        """
        decoder = protocol.FrameDecoder()
        for data in session.iter_raw_stdout():
            try:
                for kind, number, body in decoder.feed(data):
                    self._dispatch(kind, number, body)
            except protocol.FrameError as error:
                self._reported_status = session.parse_status_report(error.trailing_data)
                if self._reported_status is None:
                    raise SupervisorError(self._ssh_client.host, str(error), self._diagnostic()) from error
            if self._goodbye is not None or self._reported_status is not None:
                return
            self._reported_status = session.parse_status_report(decoder.trailing_data)
            if self._reported_status is not None:
                return

    def _dispatch(self, kind: int, number: int, body: bytes) -> None:
        if kind == protocol.HELLO:
            self._hello = Hello.parse(body)
            self._ready.set()
        elif kind == protocol.GOODBYE:
            self._goodbye = Goodbye.parse(body)
        elif kind in {protocol.ENDED, protocol.RESPONSE}:
            with self._lock:
                recipient = self._recipients.pop(number, None)
            if recipient is not None:
                recipient.events.put((kind, body))
        else:
            recipient = self._recipients.get(number)
            if recipient is not None:
                recipient.events.put((kind, body))

    def _exit_error(self, exit_code: int) -> Exception:
        """Return the error that says why the supervisor has ended."""
        host = self._ssh_client.host
        if self._reported_status is not None:
            exit_code = int(self._reported_status)
        if self._goodbye is not None:
            return SupervisorError(host, "it was closed", "")
        if self._hello is None and exit_code == _EXIT_COMMAND_NOT_FOUND:
            return PythonNotFoundError(host, " and ".join(python_candidates(self._settings.python)))
        signal_number = exit_code - _EXIT_SIGNAL_BASE
        reason = (
            f"it was killed by signal {signal_number}"
            if signal_number >= 0
            else f"it ended with exit status {exit_code}"
        )
        return SupervisorError(host, reason, self._diagnostic())

    def _diagnostic(self) -> str:
        """Return the output of start-up files and of the supervisor itself."""
        return (bytes(self._preamble) + self._collector.getvalue(Stream.STDERR)).decode(errors="replace").strip()

    def _connection_lost_error(self, title: str, *, started: bool | None) -> Exception:
        failure = self._failure
        if isinstance(failure, ConnectionLostError):
            return attrs.evolve(failure, command=title, started=started)
        reason = f"the supervisor on the host is gone: {self.exit_reason}"
        return ConnectionLostError(self._ssh_client.host, title, reason, started)
