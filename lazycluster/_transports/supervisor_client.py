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
from lazycluster._functions.bootstrap import Greeting
from lazycluster._functions.python_finder import candidates, start_and_mind_python
from lazycluster._model.watch import Watch
from lazycluster._processes import Inlet
from lazycluster._remote import protocol, supervisor
from lazycluster._ssh.client import Sessions
from lazycluster._ssh.session import Session, SessionEndedError
from lazycluster._ssh.shell import JOB_VARIABLE
from lazycluster._waiting import Cancellation, CancelledError, Deadline, DeadlinePassedError, happens, start, take
from lazycluster.exceptions import ConnectionLostError, PythonNotFoundError, SupervisorError, indented
from lazycluster.results import Collector, Stream

_log = logging.getLogger(__name__)
_NOT_FOUND = 127
_QUOTED = 2000
"""Bytes that are quoted of what start-up files print."""
_STREAMS = {protocol.OUTPUT: Stream.STDOUT, protocol.ERRORS: Stream.STDERR}

Event: TypeAlias = "tuple[int, bytes] | Exception"
Environment: TypeAlias = Mapping[str, str]


@attrs.frozen
class Settings:
    """What a supervisor begins with.

    `working_dir` is a directory to make where it is missing, `''` a temporary one, None no directory at all; `probe`
    is a script that asks what the machine has, `''` for none. `grace` is in seconds.
    """

    python: str | None = None
    grace: float = 5.0
    working_dir: str | None = None
    probe: str = attrs.field(default="", repr=False)


@attrs.frozen
class Hello:
    """What a supervisor said first."""

    python: Greeting
    pid: int
    working_dir: str
    facts: str = attrs.field(repr=False)
    failure: str = ""
    """Why there is no working directory."""

    @classmethod
    def parse(cls, body: bytes) -> Hello:
        """Read the body of the greeting.

        Raises:
            FrameError: It is none.
        """
        version, *fields = protocol.unpack(body) or [b""]
        if version != protocol.number(protocol.PROTOCOL) or len(fields) != 7:
            raise protocol.FrameError(f"a greeting of protocol {version!r}", body)
        implementation, release, executable, failure, pid, working_dir, facts = fields
        texts = [field.decode("utf-8", "surrogateescape") for field in (release, executable, implementation)]
        return cls(
            Greeting(*texts),
            int(pid),
            working_dir.decode("utf-8", "surrogateescape"),
            facts.decode(errors="replace"),
            failure.decode(errors="replace"),
        )


@attrs.frozen
class Ended:
    """How a job ended: `exit` or `signal` with what waitpid(2) said, `cd` or `failed` with a reason.

    A function whose process has said itself that it is done is `done`.
    """

    how: str
    what: str

    @property
    def exit_code(self) -> int:
        """Return the exit status; 128 and its number for a signal, as shells have it."""
        code = os.waitstatus_to_exitcode(int(self.what))
        return code if code >= 0 else 128 - code


class Job:
    """A command or function under way on the host. The thread that waits for it handles what comes for it."""

    def __init__(self, supervisor: Supervisor, name: int, title: str) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.ended: Ended | None = None
        self.started = False
        self.deadline = Deadline(None)
        self.cancellation: Cancellation | None = None
        self.on_output: Callable[[Stream, bytes], None] = lambda _stream, _data: None
        self.on_outcome: Callable[[bytes], object] = lambda _data: None
        self.title = title
        self.name = name
        self._supervisor = supervisor
        self._window = protocol.WINDOW
        self._taken = 0
        self._reading: bytearray | None = None
        self._input_ended = False

    def pump(self, until: Callable[[], bool]) -> bool:
        """Handle what comes until a condition holds or the job has ended; return whether the condition holds.

        Raises:
            DeadlinePassedError: The deadline passed first.
            CancelledError: The cancellation was requested first.
            ConnectionLostError: The link broke, or the supervisor ended.
        """
        wake = contextlib.nullcontext() if self.cancellation is None else self.cancellation.calling(self._wake)
        with wake:
            while not until():
                if self.ended is not None:
                    return False
                if self.cancellation is not None and self.cancellation.requested:
                    raise CancelledError
                if self.deadline.passed:
                    raise DeadlinePassedError
                self._handle(take(self.events, self.deadline))
        return True

    def _wake(self) -> None:
        self.events.put((protocol.PULSE, b""))

    def _handle(self, event: Event) -> None:
        if isinstance(event, Exception):
            raise event
        kind, body = event
        match kind:
            case protocol.OUTPUT | protocol.ERRORS | protocol.OUTCOME:
                self._take_in(kind, body)
            case protocol.STARTED:
                self.started = True
            case protocol.GRANT_INPUT:
                self._window += int(body)
            case protocol.ENDED:
                how, what = protocol.unpack(body)
                self.ended = Ended(how.decode("ascii"), what.decode(errors="replace"))
            case _:
                pass

    def _take_in(self, kind: int, body: bytes) -> None:
        self.started = True
        if kind == protocol.OUTCOME:
            self.on_outcome(body)
        elif kind == protocol.OUTPUT and self._reading is not None:
            self._reading += body
        else:
            self.on_output(_STREAMS[kind], body)
        self._taken += len(body)
        if self._taken >= protocol.GRANTED:
            self._send(protocol.GRANT, protocol.number(self._taken))
            self._taken = 0

    def _send(self, kind: int, body: bytes = b"") -> None:
        self._supervisor.send(protocol.frame(kind, self.name, body))

    def feed(self, data: bytes) -> None:
        """Send to the standard input of the job, as it takes it.

        Raises:
            SessionEndedError: It has ended.
        """
        view = memoryview(data)
        while view:
            if self.deadline.passed:
                raise DeadlinePassedError
            if not self.pump(lambda: self._window > 0) or self.ended is not None:
                raise SessionEndedError
            piece = view[: min(protocol.PIECE, self._window)]
            self._window -= len(piece)
            self._send(protocol.INPUT, bytes(piece))
            view = view[len(piece) :]

    def _kept(self) -> bytearray:
        """Return the standard output that nobody has read yet; from the first call on it is kept."""
        if self._reading is None:
            self._reading = bytearray()
        return self._reading

    def read(self, size: int) -> bytes:
        """Return so many bytes of standard output, fewer only at its end.

        The first call keeps standard output from going to `on_output` from then on.
        """
        reading = self._kept()
        self.pump(lambda: len(reading) >= size)
        data = bytes(reading[:size])
        del reading[:size]
        return data

    def read_some(self) -> bytes:
        """Return what there is of standard output, waiting for some; nothing only at its end."""
        reading = self._kept()
        self.pump(lambda: bool(reading))
        data = bytes(reading)
        reading.clear()
        return data

    def read_until(self, end: bytes) -> bytes | None:
        """Return standard output up to a byte string, which is taken off; None where it ends before."""
        reading = self._kept()
        self.pump(lambda: end in reading)
        data, found, rest = bytes(reading).partition(end)
        reading[:] = rest
        return data if found else None

    def close_stdin(self) -> None:
        """End the standard input of the job."""
        if not self._input_ended:
            self._input_ended = True
            self._send(protocol.INPUT_END)

    def finish(self) -> None:
        """Wait until the job has ended and its output is complete.

        Raises:
            DeadlinePassedError: It did not in time; call `give_up()`.
            CancelledError: It was to be stopped; call `give_up()`.
        """
        self.pump(lambda: self.ended is not None)

    def give_up(self, *, patience: float) -> None:
        """End the job on the host with its children, and wait for that, so many seconds at most."""
        self._send(protocol.STOP)
        self.deadline = Deadline(patience)
        self.cancellation = None
        with contextlib.suppress(DeadlinePassedError, ConnectionLostError):
            self.finish()
        if self.ended is None:
            self._send(protocol.FORSAKE)
            self._supervisor.forget(self.name)


class Supervisor:
    """One supervisor on a host, from its start to its end. Any thread may use it."""

    def __init__(self, sessions: Sessions, settings: Settings) -> None:
        """Begin to start it; `wait()` waits until it is there."""
        self._sessions = sessions
        self._settings = settings
        self._numbers = itertools.count(1)
        # Its own, behind that of all that is ours: an earlier one that is about to end is not to take it along.
        self._token = f"{sessions.token}.s{sessions.next_supervisor()}"
        self._lock = threading.Lock()
        self._jobs: dict[int, queue.SimpleQueue[Event]] = {}
        self._titles: dict[int, str] = {}
        self._session: Session | None = None
        self._inlet: Inlet | None = None
        self._prepared: set[str] = set()
        self._cancellation = Cancellation()
        self._collector = Collector()
        self._noise = bytearray()
        self._hello: Hello | None = None
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._farewell: list[str] | None = None
        self._reported: str | None = None
        self._thread = threading.Thread(target=self._live, name=f"supervisor of {sessions.host}", daemon=True)
        start(self._thread)

    def __repr__(self) -> str:
        """Return the host and how it stands."""
        return f"<Supervisor of {self._sessions.host}, {'alive' if self.alive else 'ended'}>"

    @property
    def alive(self) -> bool:
        """Tell whether it can be used, as far as is known."""
        return self._failure is None

    @property
    def reason(self) -> str:
        """Return why it has ended."""
        failure = self._failure
        if failure is None:
            return "the link is gone"
        if isinstance(failure, SupervisorError):
            return failure.reason + indented(failure.output)
        return failure.reason if isinstance(failure, ConnectionLostError) else str(failure)

    def wait(self, seconds: float) -> Hello:
        """Wait until it has greeted, and return what it said.

        Raises:
            ConnectError: The host could not be reached.
            PythonNotFoundError: There is no Python on it.
            SupervisorError: It did not start, or not in time.
        """
        try:
            came = happens(self._ready, Deadline(seconds))
        except BaseException:
            self._cancellation.request()
            raise
        if self._failure is not None:
            raise self._failure
        if not came or self._hello is None:
            self._cancellation.request()
            reason = f"no greeting within {seconds:g} s: {self._how_far()}"
            raise SupervisorError(self._sessions.host, reason, self._said())
        return self._hello

    def _how_far(self) -> str:
        """Return how far the start has come."""
        if self._session is None:
            return "no session is open"
        if self._inlet is not None:
            return "it has begun, and looks at the machine"
        return "Python has not begun" if self.has_shell else "the login shell has not begun"

    @property
    def has_shell(self) -> bool:
        """Tell whether a shell that was to start it has begun on the host."""
        return self._session is not None and self._session.started

    # Jobs ------------------------------------------------------------------------------------------------------------

    def start(self, kind: int, title: str, *fields: bytes) -> Job:
        """Start a job.

        Raises:
            ConnectionLostError: The supervisor has ended; nothing was started.
        """
        job = Job(self, next(self._numbers), title)
        self._begin(kind, job.name, title, job.events, fields)
        return job

    def ask(self, what: str, *arguments: bytes, timeout: float) -> list[bytes]:
        """Ask something that takes the host no time, and return the answer.

        Raises:
            OSError: It could not be done.
            ConnectionLostError: The link broke.
            DeadlinePassedError: No answer came in time.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._begin(protocol.ASK, next(self._numbers), what, events, (what.encode("ascii"), *arguments))
        event = take(events, Deadline(timeout))
        if isinstance(event, Exception):
            raise event
        state, *answer = protocol.unpack(event[1])
        if state != b"ok":
            raise OSError(answer[0].decode(errors="replace"))
        return answer

    def prepare(self, what: str, text: Callable[[], bytes], data: Callable[[], bytes] = bytes) -> None:
        """Have the host load something once, before what needs it."""
        if what not in self._prepared:
            with self._lock:
                if what not in self._prepared:
                    # Sent under the lock: no other thread may take it for done before.
                    self.send(protocol.frame(protocol.PREPARE, 0, protocol.pack(text(), data())))
                    self._prepared.add(what)

    def _begin(
        self, kind: int, name: int, title: str, events: queue.SimpleQueue[Event], fields: tuple[bytes, ...]
    ) -> None:
        message = protocol.frame(kind, name, protocol.pack(*fields))
        with self._lock:
            if self._failure is None:
                self._jobs[name] = events
                self._titles[name] = title
        if self._failure is not None:
            raise self._lost(title, started=False)
        self.send(message)

    def send(self, message: bytes) -> None:
        """Send a frame; where the supervisor is gone, it goes nowhere."""
        if self._inlet is not None:
            self._inlet.write(message)

    def forget(self, name: int) -> None:
        """Drop what still comes for a job."""
        with self._lock:
            self._jobs.pop(name, None)
            self._titles.pop(name, None)

    # The end ---------------------------------------------------------------------------------------------------------

    def close(self, seconds: float) -> list[str]:
        """Have it end everything and go; return what it had to leave, or says why it did not end well.

        Raises:
            SupervisorError: It has not gone in time, or had ended before, without cleaning up.
        """
        if self._inlet is not None:
            self._inlet.close()
        else:
            self._cancellation.request()
        self._thread.join(seconds)
        if self._farewell is None:
            raise SupervisorError(self._sessions.host, str(self._failure or "it does not end"), self._said())
        return self._farewell

    # The thread that reads -------------------------------------------------------------------------------------------

    def _live(self) -> None:
        """Start the supervisor in a session, and hand on what it says, until it ends."""
        failure: Exception
        try:
            code = self._perform()
            failure = self._ended(code)
        except Exception as error:  # noqa: BLE001 - for everybody who waits
            failure = error
        with self._lock:
            self._failure = failure
            jobs, self._jobs = self._jobs, {}
            titles, self._titles = self._titles, {}
        if self._inlet is not None:
            self._inlet.close()
        self._ready.set()
        for name, events in jobs.items():
            events.put(self._lost(titles[name], started=None))
        self._cancellation.close()
        if self._farewell is None:
            _log.debug("%s: the supervisor is gone: %s", self._sessions.host, failure)

    def _perform(self) -> int:
        settings, sessions = self._settings, self._sessions
        mark = f"{JOB_VARIABLE}={self._token}."
        sent = bootstrap.supervisor(self._token, mark, settings.grace, settings.working_dir, settings.probe)
        text = start_and_mind_python(
            settings.python, sent.bootstrap, mark=mark, directories=f"lazycluster-{self._token}."
        )
        script = sessions.script(
            text, title="lazycluster supervisor", raw_stdin=True, login_shell=False, marked=False, own_shell=False
        )
        watch = Watch(cancellation=self._cancellation)
        return sessions.perform(
            script, lambda session: self._follow(session, sent), collector=self._collector, watch=watch, lasting=True
        )

    def _follow(self, session: Session, sent: bootstrap.Program) -> None:
        self._noise.clear()
        self._session = session
        session.feed(sent.text)
        mark, asks = (f"{words} {self._token}".encode() for words in (supervisor.MARK, bootstrap.ASKS))
        while (line := session.read_until(b"\n")) is not None and not line.endswith(mark):
            if line.endswith(asks):
                session.feed(sent.source)
                continue
            self._noise += line[:_QUOTED] + b"\n"
            del self._noise[:-_QUOTED]
        if line is None:
            self._noise[:0] = session.said.encode()[-_QUOTED:]
            raise SessionEndedError
        self._inlet = session.take_stdin()
        try:
            self._read(session)
        finally:
            session.abandon()

    def _read(self, session: Session) -> None:
        decoder = protocol.Decoder()
        for data in session.stream():
            try:
                for kind, name, body in decoder.feed(data):
                    self._dispatch(kind, name, body)
            except protocol.FrameError as error:
                self._reported = session.reported(error.rest)
                if self._reported is None:
                    raise SupervisorError(self._sessions.host, str(error), self._said()) from error
            if self._farewell is not None or self._reported is not None:
                return
            self._reported = session.reported(decoder.rest)
            if self._reported is not None:
                return

    def _dispatch(self, kind: int, name: int, body: bytes) -> None:
        if kind == protocol.GREETING:
            self._hello = Hello.parse(body)
            self._ready.set()
        elif kind == protocol.FAREWELL:
            self._farewell = [path.decode(errors="replace") for path in protocol.unpack(body)]
        elif kind in {protocol.ENDED, protocol.ANSWER}:
            with self._lock:
                events = self._jobs.pop(name, None)
                self._titles.pop(name, None)
            if events is not None:
                events.put((kind, body))
        else:
            events = self._jobs.get(name)
            if events is not None:
                events.put((kind, body))

    def _ended(self, code: int) -> Exception:
        """Return why it has ended."""
        host = self._sessions.host
        if self._reported is not None:
            code = int(self._reported)
        if self._farewell is not None:
            return SupervisorError(host, "it was closed", "")
        if self._hello is None and code == _NOT_FOUND:
            return PythonNotFoundError(host, " and ".join(candidates(self._settings.python)))
        how = f"it ended with exit status {code}" if code < 128 else f"it was killed by signal {code - 128}"
        return SupervisorError(host, how, self._said())

    def _said(self) -> str:
        """Return what start-up files and the supervisor itself printed."""
        return (bytes(self._noise) + self._collector.joined(Stream.STDERR)).decode(errors="replace").strip()

    def _lost(self, title: str, *, started: bool | None) -> Exception:
        failure = self._failure
        if isinstance(failure, ConnectionLostError):
            return attrs.evolve(failure, command=title, started=started)
        reason = f"the supervisor on the host is gone: {self.reason}"
        return ConnectionLostError(self._sessions.host, title, reason, started)
