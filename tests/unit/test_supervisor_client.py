"""Our end of a supervisor's channel, with a stand-in for the session at the other end of which the supervisor is."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from lazycluster._functions import bootstrap
from lazycluster._functions.bootstrap import PythonInfo
from lazycluster._model.command import Command
from lazycluster._model.running_command import CommandEndedError
from lazycluster._model.watch import Watch
from lazycluster._remote import protocol, supervisor
from lazycluster._transports.remote_child import ExitInfo
from lazycluster._transports.supervisor_client import Hello, SupervisorClient, SupervisorSettings
from lazycluster._waiting import CancelToken, DeadlinePassedError
from lazycluster.exceptions import ConnectionLostError, PortRefusedError, PythonNotFoundError, SupervisorError
from lazycluster.results import Stream
from tests.waiting import wait_until

# What is said first ---------------------------------------------------------------------------------------------------

FIELDS = [b"cpython", b"3.11.7", b"/usr/bin/python3", b"", b"4711", b"/w", b"facts\n"]


def greeting(*fields: bytes, version: bytes = b"%d" % protocol.PROTOCOL_VERSION) -> bytes:
    return protocol.pack(version, *(fields or FIELDS))


def test_a_greeting() -> None:
    assert Hello.parse(greeting()) == Hello(
        PythonInfo("3.11.7", "/usr/bin/python3", "cpython"), 4711, "/w", "facts\n", ""
    )
    odd = Hello.parse(greeting(b"pypy", b"3.10.1", b"/\xff", b"no\xff", b"1", b"/\xfe", b"\xff"))
    assert odd == Hello(PythonInfo("3.10.1", "/\udcff", "pypy"), 1, "/\udcfe", "\ufffd", "no\ufffd")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no fields",
        greeting(version=b"0"),
        greeting(version=b"2"),
        greeting(version=b"1.0"),
        greeting(*FIELDS[:-1]),
        greeting(*FIELDS, b"more"),
        greeting()[:-1],
    ],
)
def test_what_is_no_greeting(body: bytes) -> None:
    with pytest.raises(protocol.FrameError):
        Hello.parse(body)


# A supervisor ---------------------------------------------------------------------------------------------------------


@attrs.define
class FakePipeWriter:
    """Stands in for the standard input of the supervisor."""

    host: FakeSshClient
    decoder: protocol.FrameDecoder = attrs.field(factory=protocol.FrameDecoder)
    closed: bool = False

    def write(self, data: bytes) -> bool:
        """Note the frames."""
        for frame in self.decoder.feed(data):
            self.host.sent.append(frame)
            self.host.on_frame(*frame)
        return not self.closed

    def close(self) -> None:
        """End what the host says, unless it hangs."""
        if not self.closed:
            self.closed = True
            self.host.on_close()


@attrs.define
class FakeSshClient:
    """Stands in for sessions, and for the one session with the supervisor: says what it is told to say."""

    host: str = "web1"
    token: str = "t0k3n"
    noise: bytes = b""
    code: int = 0
    error: Exception | None = None
    """What comes of the session instead."""
    broken: Exception | None = None
    """What comes of it at its end."""
    words: bytes = b""
    sent: list[tuple[int, int, bytes]] = attrs.field(factory=list)
    said: queue.SimpleQueue[bytes | None] = attrs.field(factory=queue.SimpleQueue)
    on_frame: Callable[[int, int, bytes], object] = lambda _kind, _name, _body: None
    on_close: Callable[[], object] = lambda: None
    abandoned: int = 0
    fed: list[bytes] = attrs.field(factory=list, repr=False)
    _line: bytes = b""

    def next_supervisor_number(self) -> int:
        return 1

    def script(self, command: Command, **_: Any) -> str:
        return command.shell_text

    def run_script(self, _script: str, work: Callable[[Any], object], watch: Watch, *, long_lived: bool) -> int:
        assert long_lived
        if self.error is not None:
            raise self.error
        assert watch.collector is not None
        assert watch.cancel_token is not None
        watch.collector.write(Stream.STDERR, self.words)
        self._line = self.noise
        with contextlib.suppress(CommandEndedError):
            work(FakeSession(self, watch.cancel_token))
        if self.broken is not None:
            raise self.broken
        return self.code

    def says(self, *data: bytes) -> None:
        """Have the supervisor say something."""
        for piece in data:
            self.said.put(piece)

    def ends(self) -> None:
        """Have what it says end."""
        self.said.put(None)


@attrs.define
class FakeSession:
    """Stands in for a session with the supervisor."""

    host: FakeSshClient
    cancel_token: CancelToken
    diagnostic: str = ""

    def write(self, data: bytes) -> None:
        assert data
        self.host.fed.append(data)

    def read_until(self, end: bytes) -> bytes | None:
        line, newline, self.host._line = self.host._line.partition(end)
        return line if newline else None

    def detach_stdin(self) -> FakePipeWriter:
        return FakePipeWriter(self.host)

    def iter_raw_stdout(self) -> Iterator[bytes]:
        while not self.cancel_token.is_cancelled:
            with contextlib.suppress(queue.Empty):
                data = self.host.said.get(timeout=0.01)
                if data is None:
                    return
                yield data

    def parse_status_report(self, data: bytes) -> str | None:
        """As the shell under the supervisor reports its end."""
        return data.decode().removeprefix("mark=").rstrip(";") if data.startswith(b"mark=") else None

    def close(self) -> None:
        self.host.abandoned += 1


@pytest.fixture
def host() -> FakeSshClient:
    made = FakeSshClient()
    made.noise = f"{supervisor.SUPERVISOR_START_MARKER} {made.token}.s1\n".encode()
    made.on_close = made.ends
    return made


@contextlib.contextmanager
def supervised(host: FakeSshClient, **settings: Any) -> Iterator[SupervisorClient]:
    """Start our end, and end it."""
    made = SupervisorClient(host, SupervisorSettings(**settings))  # type: ignore[arg-type]  # what it needs of sessions
    try:
        yield made
    finally:
        host.ends()
        made._cancel_token.cancel()
        made._thread.join(10)
        assert not made._thread.is_alive()


GREETED = protocol.encode_frame(protocol.HELLO, 0, greeting())


def farewell(*left: bytes) -> bytes:
    return protocol.encode_frame(protocol.GOODBYE, 0, protocol.pack(*left))


def test_it_waits_for_the_greeting_behind_whatever_start_up_files_print(host: FakeSshClient) -> None:
    host.noise = b"Welcome!\n\xff no newline at its end" + host.noise
    host.says(*[bytes([byte]) for byte in GREETED])
    with supervised(host) as supervisor:
        assert supervisor.wait_until_ready(10) == Hello.parse(greeting())
        assert supervisor.wait_until_ready(0) == Hello.parse(greeting())
        assert (supervisor.is_running, repr(supervisor)) == (True, "<Supervisor of web1, alive>")
    assert (host.abandoned, supervisor.is_running, repr(supervisor)) == (1, False, "<Supervisor of web1, ended>")


def test_a_host_that_asks_for_the_source_gets_it(host: FakeSshClient) -> None:
    host.noise = f"Welcome!{bootstrap.SOURCE_REQUEST} {host.token}.s1\n".encode() + host.noise
    host.says(GREETED)
    with supervised(host) as supervisor:
        supervisor.wait_until_ready(10)
    assert host.fed[1:] == [bootstrap.build_supervisor_program("x", "x", 5.0, None, "").source]
    assert len(host.fed) == 2


def test_a_greeting_that_does_not_come(host: FakeSshClient) -> None:
    host.noise = b"Welcome!\n" + host.noise
    host.words = b"and welcome again\n"
    with supervised(host) as supervisor:
        with pytest.raises(
            SupervisorError, match=r"no hello within 0\.05 s: it has begun, and looks at the machine"
        ) as caught:
            supervisor.wait_until_ready(0.05)
        assert caught.value.output == "Welcome!\nand welcome again"
        assert wait_until(lambda: not supervisor.is_running, 10), "it was given up"


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (127, PythonNotFoundError, "looked for python3.9"),
        (1, SupervisorError, "it ended with exit status 1.*\n    Welcome!\n    it is broken"),
        (137, SupervisorError, "it was killed by signal 9"),
    ],
)
def test_a_program_that_does_not_begin(host: FakeSshClient, code: int, error: type[Exception], text: str) -> None:
    host.noise, host.words, host.code = b"Welcome!\n", b"it is broken\n", code
    with supervised(host, python="python3.9") as supervisor, pytest.raises(error, match=f"(?s){text}"):
        supervisor.wait_until_ready(10)


def test_a_host_that_cannot_be_reached(host: FakeSshClient) -> None:
    host.error = PortRefusedError("web1", "why")
    with supervised(host) as supervisor:
        with pytest.raises(PortRefusedError) as caught:
            supervisor.wait_until_ready(10)
        assert caught.value is host.error
        with pytest.raises(ConnectionLostError, match="connection refused") as lost:
            supervisor.start_child(protocol.RUN, "make", b"")
        assert (lost.value.command, lost.value.started) == ("make", False)


def test_what_is_no_protocol(host: FakeSshClient) -> None:
    host.says(GREETED)
    with supervised(host) as supervisor:
        supervisor.wait_until_ready(10)
        child = supervisor.start_child(protocol.RUN, "make")
        host.says(b"Traceback (most recent call last):\n")
        with pytest.raises(ConnectionLostError, match="this is no frame of the supervisor's protocol: b'Traceback"):
            child.wait()


# Jobs and questions ---------------------------------------------------------------------------------------------------


def test_jobs_get_what_is_theirs(host: FakeSshClient) -> None:
    host.says(GREETED)
    with supervised(host) as supervisor:
        supervisor.wait_until_ready(10)
        children = [
            supervisor.start_child(protocol.RUN, f"make {number}", b"field", b"%d" % number) for number in range(3)
        ]
        assert host.sent == [
            (protocol.RUN, child.number, protocol.pack(b"field", b"%d" % n)) for n, child in enumerate(children)
        ]
        assert len({child.number for child in children}) == 3
        for child in reversed(children):
            host.says(
                protocol.encode_frame(protocol.STDOUT, child.number, b"of %d" % child.number),
                protocol.encode_frame(protocol.STDOUT, 99, b"nobody's"),
            )
        for child in children:
            assert child.read(4) == b"of %d" % child.number
            host.says(protocol.encode_frame(protocol.ENDED, child.number, protocol.pack(b"exit", b"0")))
            child.wait()
        assert (supervisor._event_queues, supervisor._titles) == ({}, {})


def test_a_job_that_is_forgotten_keeps_nothing(host: FakeSshClient) -> None:
    host.says(GREETED)
    with supervised(host) as supervisor:
        supervisor.wait_until_ready(10)
        child = supervisor.start_child(protocol.RUN, "make")
        child.cancel(timeout=0)
        assert [kind for kind, _, _ in host.sent] == [protocol.RUN, protocol.STOP, protocol.DETACH]
        assert (supervisor._event_queues, supervisor._titles) == ({}, {})
        host.says(
            protocol.encode_frame(protocol.STDOUT, child.number, b"late"),
            protocol.encode_frame(protocol.ENDED, child.number, b""),
        )
        assert wait_until(host.said.empty, 10)
        assert child.events.empty()


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ((b"ok",), []),
        ((b"ok", b"a", b""), [b"a", b""]),
        ((b"failed", b"No space left \xff"), OSError("No space left \ufffd")),
    ],
)
def test_questions(host: FakeSshClient, answer: tuple[bytes, ...], result: list[bytes] | OSError) -> None:
    host.says(GREETED)
    host.on_frame = lambda _kind, name, _body: host.says(
        protocol.encode_frame(protocol.RESPONSE, name, protocol.pack(*answer))
    )
    with supervised(host) as supervisor:
        supervisor.wait_until_ready(10)
        if isinstance(result, OSError):
            with pytest.raises(OSError, match=str(result)):
                supervisor.request("tempdir", timeout=10)
        else:
            assert supervisor.request("ports", b"80", b"81", timeout=10) == result
            assert host.sent[-1][::2] == (protocol.REQUEST, protocol.pack(b"ports", b"80", b"81"))
        host.on_frame = lambda *_: None
        with pytest.raises(DeadlinePassedError):
            supervisor.request("ping", timeout=0.02)
        host.on_frame = lambda *_: host.ends()
        with pytest.raises(ConnectionLostError, match="during `ping`"):
            supervisor.request("ping", timeout=10)


def test_what_is_to_be_loaded_is_sent_once(host: FakeSshClient) -> None:
    host.says(GREETED)
    with supervised(host) as supervisor:
        supervisor.wait_until_ready(10)
        barrier = threading.Barrier(8)

        def prepare(what: str) -> None:
            barrier.wait()
            supervisor.ensure_loaded(what, lambda: b"text of " + what.encode(), lambda: b"data")

        threads = [threading.Thread(target=prepare, args=(what,)) for what in ("calls", "ports") * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        supervisor.ensure_loaded("plain", lambda: b"text")
        assert sorted(host.sent) == [
            (protocol.PREPARE, 0, protocol.pack(b"text", b"")),
            (protocol.PREPARE, 0, protocol.pack(b"text of calls", b"data")),
            (protocol.PREPARE, 0, protocol.pack(b"text of ports", b"data")),
        ]


# Its end --------------------------------------------------------------------------------------------------------------


def test_closing_it(host: FakeSshClient) -> None:
    host.says(GREETED)
    host.on_close = lambda: host.says(farewell(b"/tmp/\xff: why"), b"mark=0;")
    with supervised(host) as supervisor:
        supervisor.wait_until_ready(10)
        child = supervisor.start_child(protocol.RUN, "make")
        assert supervisor.close(10) == supervisor.close(0) == ["/tmp/\ufffd: why"]
        assert not supervisor.is_running
        with pytest.raises(ConnectionLostError, match="it was closed") as caught:
            child.wait()
        assert caught.value.started is None
        with pytest.raises(ConnectionLostError) as refused:
            supervisor.start_child(protocol.RUN, "make more")
        assert (refused.value.command, refused.value.started) == ("make more", False)


@pytest.mark.parametrize("cut", [0, 5, 20, -1])
def test_the_end_of_the_shell_may_follow_closely(host: FakeSshClient, cut: int) -> None:
    """What comes before it in the same piece, whichever that is, is not lost."""
    host.says(GREETED)
    with supervised(host) as supervisor:
        supervisor.wait_until_ready(10)
        child = supervisor.start_child(protocol.RUN, "make")
        last = (
            protocol.encode_frame(protocol.ENDED, child.number, protocol.pack(b"exit", b"768"))
            + farewell()
            + b"mark=0;"
        )
        host.on_close = lambda: host.says(last[:cut], last[cut:]) if cut else host.says(last)
        assert supervisor.close(10) == []
        child.wait()
        assert child.exit_info == ExitInfo("exit", "768")


def test_one_that_does_not_end(host: FakeSshClient) -> None:
    host.says(GREETED)
    host.on_close = lambda: None
    with supervised(host) as supervisor:
        supervisor.wait_until_ready(10)
        with pytest.raises(SupervisorError, match="it does not end"):
            supervisor.close(0.05)


def test_closing_one_that_has_not_begun(host: FakeSshClient) -> None:
    host.noise = b""
    host.error = None
    with supervised(host) as supervisor, pytest.raises(SupervisorError):
        supervisor.close(10)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"mark=137;", "it was killed by signal 9"),
        (b"mark=3;", "it ended with exit status 3"),
        (None, "it ended with exit status 0"),
    ],
)
def test_one_that_ends_by_itself(host: FakeSshClient, said: bytes | None, reason: str) -> None:
    host.says(GREETED)
    host.words = b"words\n"
    with supervised(host) as supervisor:
        supervisor.wait_until_ready(10)
        children = [supervisor.start_child(protocol.RUN, f"make {number}") for number in range(3)]
        host.said.put(said)
        for number, child in enumerate(children):
            with pytest.raises(ConnectionLostError) as caught:
                child.wait()
            assert (caught.value.command, caught.value.started) == (f"make {number}", None)
            assert caught.value.reason == f"the supervisor on the host is gone: {reason}\n    words"
        assert wait_until(lambda: not supervisor.is_running, 10)
        assert supervisor.exit_reason == f"{reason}\n    words"
        with pytest.raises(SupervisorError, match=reason):
            supervisor.close(10)


def test_a_link_that_breaks(host: FakeSshClient) -> None:
    lost = ConnectionLostError("web1", "lazycluster supervisor", "broken pipe", started=True)
    host.says(GREETED)
    with supervised(host) as supervisor:
        supervisor.wait_until_ready(10)
        child = supervisor.start_child(protocol.RUN, "make")

        host.broken = lost
        host.ends()
        with pytest.raises(ConnectionLostError, match=r"during `make` \(broken pipe\)") as caught:
            child.wait()
        assert caught.value.started is None
        assert supervisor.exit_reason == "broken pipe"
