"""The local end of a supervisor's channel, with a fake ssh client in place of the host."""

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
from lazycluster._transports.supervisor_client import SupervisorClient, SupervisorSettings
from lazycluster._transports.supervisor_frames import Goodbye, Hello
from lazycluster._waiting import CancelToken, DeadlinePassedError
from lazycluster.exceptions import ConnectionLostError, PortRefusedError, PythonNotFoundError, SupervisorError
from lazycluster.results import Stream
from tests.keyboard_interrupt import library_thread_names
from tests.waiting import wait_until

# The hello ------------------------------------------------------------------------------------------------------------

FIELDS = [b"cpython", b"3.11.7", b"/usr/bin/python3", b"", b"4711", b"/w", b"facts\n"]


def hello_body(*fields: bytes, version: bytes = b"%d" % protocol.PROTOCOL_VERSION) -> bytes:
    return protocol.pack(version, *(fields or FIELDS))


def test_hello_parse_returns_fields() -> None:
    assert Hello.parse(hello_body()) == Hello(
        PythonInfo("3.11.7", "/usr/bin/python3", "cpython"), 4711, "/w", "facts\n", ""
    )
    undecodable = Hello.parse(hello_body(b"pypy", b"3.10.1", b"/\xff", b"no\xff", b"1", b"/\xfe", b"\xff"))
    assert undecodable == Hello(PythonInfo("3.10.1", "/\udcff", "pypy"), 1, "/\udcfe", "\ufffd", "no\ufffd")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no fields",
        hello_body(version=b"0"),
        hello_body(version=b"2"),
        hello_body(version=b"1.0"),
        hello_body(*FIELDS[:-1]),
        hello_body(*FIELDS, b"more"),
        hello_body()[:-1],
    ],
)
def test_hello_parse_invalid_body_raises(body: bytes) -> None:
    with pytest.raises(protocol.FrameError):
        Hello.parse(body)


# A fake host ----------------------------------------------------------------------------------------------------------


@attrs.define
class FakePipeWriter:
    """The standard input of the fake supervisor."""

    host: FakeSshClient
    decoder: protocol.FrameDecoder = attrs.field(factory=protocol.FrameDecoder)
    closed: bool = False

    def write(self, data: bytes) -> bool:
        """Record the frames."""
        for frame in self.decoder.feed(data):
            self.host.sent.append(frame)
            self.host.on_frame(*frame)
        return not self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.host.on_close()


@attrs.define
class FakeSshClient:
    """An ssh client with one session, whose supervisor sends the frames that the test gives it."""

    host: str = "web1"
    token: str = "t0k3n"
    preamble: bytes = b""
    """The lines before the first frame."""
    exit_code: int = 0
    start_error: Exception | None = None
    """Raised instead of a session."""
    end_error: Exception | None = None
    """Raised at the end of the session."""
    stderr: bytes = b""
    sent: list[tuple[int, int, bytes]] = attrs.field(factory=list)
    stdout: queue.SimpleQueue[bytes | None] = attrs.field(factory=queue.SimpleQueue)
    on_frame: Callable[[int, int, bytes], object] = lambda _kind, _name, _body: None
    on_close: Callable[[], object] = lambda: None
    closed_sessions: int = 0
    written: list[bytes] = attrs.field(factory=list, repr=False)

    def next_supervisor_number(self) -> int:
        return 1

    def script(self, command: Command, **_: Any) -> str:
        return command.shell_text

    def run_script(self, _script: str, work: Callable[[Any], object], watch: Watch, *, long_lived: bool) -> int:
        assert long_lived
        if self.start_error is not None:
            raise self.start_error
        assert watch.collector is not None
        assert watch.cancel_token is not None
        watch.collector.write(Stream.STDERR, self.stderr)
        with contextlib.suppress(CommandEndedError):
            work(FakeSession(self, watch.cancel_token, self.preamble))
        if self.end_error is not None:
            raise self.end_error
        return self.exit_code

    def receive(self, *data: bytes) -> None:
        """Let the client receive bytes from the supervisor."""
        for piece in data:
            self.stdout.put(piece)

    def end_output(self) -> None:
        """End the output of the supervisor."""
        self.stdout.put(None)


@attrs.define
class FakeSession:
    """The session with the supervisor."""

    host: FakeSshClient
    cancel_token: CancelToken
    unread_preamble: bytes
    diagnostic: str = ""

    def write(self, data: bytes) -> None:
        assert data
        self.host.written.append(data)

    def read_until(self, end: bytes) -> bytes | None:
        line, newline, self.unread_preamble = self.unread_preamble.partition(end)
        return line if newline else None

    def detach_stdin(self) -> FakePipeWriter:
        return FakePipeWriter(self.host)

    def iter_raw_stdout(self) -> Iterator[bytes]:
        while not self.cancel_token.is_cancelled:
            with contextlib.suppress(queue.Empty):
                data = self.host.stdout.get(timeout=0.01)
                if data is None:
                    return
                yield data

    def parse_status_report(self, data: bytes) -> str | None:
        """Return the exit status as the shell that runs the supervisor reports it."""
        return data.decode().removeprefix("mark=").rstrip(";") if data.startswith(b"mark=") else None

    def close(self) -> None:
        self.host.closed_sessions += 1


@pytest.fixture
def host() -> FakeSshClient:
    host = FakeSshClient()
    host.preamble = f"{supervisor.SUPERVISOR_START_MARKER} {host.token}.s1\n".encode()
    host.on_close = host.end_output
    return host


@contextlib.contextmanager
def connected_client(host: FakeSshClient, **settings: Any) -> Iterator[SupervisorClient]:
    """Start a client, and end it with its thread."""
    client = SupervisorClient(host, SupervisorSettings(**settings))  # type: ignore[arg-type]  # the part that it uses
    try:
        yield client
    finally:
        host.end_output()
        with contextlib.suppress(SupervisorError):
            client.close(10)
        assert wait_until(lambda: f"supervisor of {host.host}" not in library_thread_names(""), 10)


HELLO = protocol.encode_frame(protocol.HELLO, 0, hello_body())


def goodbye(*unremoved_paths: bytes, left_running: tuple[bytes, ...] = ()) -> bytes:
    fields = protocol.pack(*unremoved_paths), protocol.pack(*left_running)
    return protocol.encode_frame(protocol.GOODBYE, 0, protocol.pack(*fields))


def test_client_skips_start_up_output_before_hello(host: FakeSshClient) -> None:
    host.preamble = b"Welcome!\n\xff no newline at its end" + host.preamble
    host.receive(*[bytes([byte]) for byte in HELLO])
    with connected_client(host) as client:
        assert client.wait_until_ready(10) == Hello.parse(hello_body())
        assert client.wait_until_ready(0) == Hello.parse(hello_body())
        assert (client.is_running, repr(client)) == (True, "<Supervisor of web1, alive>")
    assert (host.closed_sessions, client.is_running, repr(client)) == (1, False, "<Supervisor of web1, ended>")


def test_client_sends_requested_source(host: FakeSshClient) -> None:
    host.preamble = f"Welcome!{bootstrap.SOURCE_REQUEST} {host.token}.s1\n".encode() + host.preamble
    host.receive(HELLO)
    with connected_client(host) as client:
        client.wait_until_ready(10)
    assert host.written[1:] == [bootstrap.build_supervisor_program("x", "x", 5.0, None, "").source]
    assert len(host.written) == 2


def test_client_without_hello_times_out(host: FakeSshClient) -> None:
    host.preamble = b"Welcome!\n" + host.preamble
    host.stderr = b"and welcome again\n"
    with connected_client(host) as client:
        with pytest.raises(SupervisorError) as caught:
            client.wait_until_ready(0.05)
        assert caught.value.reason.startswith("no hello within 0.05 s: it has begun")
        assert caught.value.output == "Welcome!\nand welcome again"
        assert wait_until(lambda: not client.is_running, 10)


@pytest.mark.parametrize(
    ("exit_code", "error"),
    [
        (127, PythonNotFoundError("web1", "python3.9")),
        (1, SupervisorError("web1", "it ended with exit status 1", "Welcome!\nit is broken")),
        (137, SupervisorError("web1", "it was killed by signal 9", "Welcome!\nit is broken")),
    ],
)
def test_client_program_ending_early_raises(
    host: FakeSshClient, exit_code: int, error: PythonNotFoundError | SupervisorError
) -> None:
    host.preamble, host.stderr, host.exit_code = b"Welcome!\n", b"it is broken\n", exit_code
    with connected_client(host, python="python3.9") as client, pytest.raises(type(error)) as caught:
        client.wait_until_ready(10)
    assert str(caught.value) == str(error)


def test_client_unreachable_host_raises_connect_error(host: FakeSshClient) -> None:
    host.start_error = PortRefusedError("web1", "why")
    with connected_client(host) as client:
        with pytest.raises(PortRefusedError) as caught:
            client.wait_until_ready(10)
        assert caught.value is host.start_error
        with pytest.raises(ConnectionLostError) as lost:
            client.start_child(protocol.RUN, "make", b"")
        assert (lost.value.command, lost.value.started) == ("make", False)


def test_client_invalid_frame_ends_connection(host: FakeSshClient) -> None:
    host.receive(HELLO)
    with connected_client(host) as client:
        client.wait_until_ready(10)
        child = client.start_child(protocol.RUN, "make")
        host.receive(b"Traceback (most recent call last):\n")
        with pytest.raises(ConnectionLostError) as caught:
            child.wait()
        assert "b'Traceback" in caught.value.reason


# Children and requests ------------------------------------------------------------------------------------------------


def test_client_dispatches_frames_to_their_children(host: FakeSshClient) -> None:
    host.receive(HELLO)
    with connected_client(host) as client:
        client.wait_until_ready(10)
        children = [client.start_child(protocol.RUN, f"make {number}", b"field", b"%d" % number) for number in range(3)]
        assert host.sent == [
            (protocol.RUN, child.number, protocol.pack(b"field", b"%d" % n)) for n, child in enumerate(children)
        ]
        assert len({child.number for child in children}) == 3
        for child in reversed(children):
            host.receive(
                protocol.encode_frame(protocol.STDOUT, child.number, b"of %d" % child.number),
                protocol.encode_frame(protocol.STDOUT, 99, b"unknown child"),
            )
        for child in children:
            assert child.read(4) == b"of %d" % child.number
            host.receive(protocol.encode_frame(protocol.ENDED, child.number, protocol.pack(b"exit", b"0")))
            child.wait()
        host.end_output()
        assert wait_until(lambda: not client.is_running, 10)
    assert all(child.events.empty() for child in children), "an ended child gets no event"


def test_client_cancelled_child_gets_no_more_events(host: FakeSshClient) -> None:
    host.receive(HELLO)
    with connected_client(host) as client:
        client.wait_until_ready(10)
        child = client.start_child(protocol.RUN, "make")
        child.cancel(timeout=0)
        assert [kind for kind, _, _ in host.sent] == [protocol.RUN, protocol.STOP, protocol.DETACH]
        host.receive(
            protocol.encode_frame(protocol.STDOUT, child.number, b"late"),
            protocol.encode_frame(protocol.ENDED, child.number, b""),
        )
        host.end_output()
        assert wait_until(lambda: not client.is_running, 10)
    assert child.events.empty()


@pytest.mark.parametrize(
    ("response", "result"),
    [
        ((b"ok",), []),
        ((b"ok", b"a", b""), [b"a", b""]),
        ((b"failed", b"No space left \xff"), OSError("No space left \ufffd")),
    ],
)
def test_client_request_returns_response_or_raises(
    host: FakeSshClient, response: tuple[bytes, ...], result: list[bytes] | OSError
) -> None:
    host.receive(HELLO)
    host.on_frame = lambda _kind, name, _body: host.receive(
        protocol.encode_frame(protocol.RESPONSE, name, protocol.pack(*response))
    )
    with connected_client(host) as client:
        client.wait_until_ready(10)
        if isinstance(result, OSError):
            with pytest.raises(OSError) as failed:
                client.request("tempdir", timeout=10)
            assert failed.value.args == result.args
        else:
            assert client.request("ports", b"80", b"81", timeout=10) == result
            assert host.sent[-1][::2] == (protocol.REQUEST, protocol.pack(b"ports", b"80", b"81"))
        host.on_frame = lambda *_: None
        with pytest.raises(DeadlinePassedError):
            client.request("ping", timeout=0.02)
        host.on_frame = lambda *_: host.end_output()
        with pytest.raises(ConnectionLostError) as lost:
            client.request("ping", timeout=10)
        assert lost.value.command == "ping"


def test_client_ensure_loaded_sends_extension_once(host: FakeSshClient) -> None:
    host.receive(HELLO)
    with connected_client(host) as client:
        client.wait_until_ready(10)
        barrier = threading.Barrier(8)

        def prepare(name: str) -> None:
            barrier.wait()
            client.ensure_loaded(name, lambda: b"text of " + name.encode(), lambda: b"data")

        threads = [threading.Thread(target=prepare, args=(name,)) for name in ("calls", "ports") * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        client.ensure_loaded("plain", lambda: b"text")
        assert sorted(host.sent) == [
            (protocol.PREPARE, 0, protocol.pack(b"text", b"")),
            (protocol.PREPARE, 0, protocol.pack(b"text of calls", b"data")),
            (protocol.PREPARE, 0, protocol.pack(b"text of ports", b"data")),
        ]


# The end --------------------------------------------------------------------------------------------------------------


def test_client_close_returns_leftovers(host: FakeSshClient) -> None:
    host.receive(HELLO)
    host.on_close = lambda: host.receive(goodbye(b"/tmp/\xff: why", left_running=(b"sleep 9",)), b"mark=0;")
    with connected_client(host) as client:
        client.wait_until_ready(10)
        child = client.start_child(protocol.RUN, "make")
        assert client.close(10) == client.close(0) == Goodbye(("/tmp/\ufffd: why",), ("sleep 9",))
        assert not client.is_running
        with pytest.raises(ConnectionLostError) as caught:
            child.wait()
        assert caught.value.started is None
        with pytest.raises(ConnectionLostError) as refused:
            client.start_child(protocol.RUN, "make more")
        assert (refused.value.command, refused.value.started) == ("make more", False)


@pytest.mark.parametrize("cut", [0, 5, 20, -1])
def test_client_goodbye_and_status_in_one_piece_are_read(host: FakeSshClient, cut: int) -> None:
    """Frames before the status of the shell are not lost, however the bytes are cut."""
    host.receive(HELLO)
    with connected_client(host) as client:
        client.wait_until_ready(10)
        child = client.start_child(protocol.RUN, "make")
        last = (
            protocol.encode_frame(protocol.ENDED, child.number, protocol.pack(b"exit", b"768")) + goodbye() + b"mark=0;"
        )
        host.on_close = lambda: host.receive(last[:cut], last[cut:]) if cut else host.receive(last)
        assert client.close(10) == Goodbye()
        child.wait()
        assert child.exit_info == ExitInfo("exit", "768")


def test_client_close_of_hanging_supervisor_raises(host: FakeSshClient) -> None:
    host.receive(HELLO)
    host.on_close = lambda: None
    with connected_client(host) as client:
        client.wait_until_ready(10)
        with pytest.raises(SupervisorError):
            client.close(0.05)


def test_client_close_before_hello_raises(host: FakeSshClient) -> None:
    host.preamble = b""
    with connected_client(host) as client, pytest.raises(SupervisorError):
        client.close(10)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (b"mark=137;", "it was killed by signal 9"),
        (b"mark=3;", "it ended with exit status 3"),
        (None, "it ended with exit status 0"),
    ],
)
def test_client_dead_supervisor_fails_its_children(host: FakeSshClient, status: bytes | None, reason: str) -> None:
    host.receive(HELLO)
    host.stderr = b"diagnostic\n"
    with connected_client(host) as client:
        client.wait_until_ready(10)
        children = [client.start_child(protocol.RUN, f"make {number}") for number in range(3)]
        host.stdout.put(status)
        for number, child in enumerate(children):
            with pytest.raises(ConnectionLostError) as caught:
                child.wait()
            assert (caught.value.command, caught.value.started) == (f"make {number}", None)
            assert caught.value.reason.endswith(f": {reason}\n    diagnostic")
        assert wait_until(lambda: not client.is_running, 10)
        assert client.exit_reason == f"{reason}\n    diagnostic"
        with pytest.raises(SupervisorError):
            client.close(10)


def test_client_lost_connection_fails_its_children(host: FakeSshClient) -> None:
    lost = ConnectionLostError("web1", "lazycluster supervisor", "broken pipe", started=True)
    host.receive(HELLO)
    with connected_client(host) as client:
        client.wait_until_ready(10)
        child = client.start_child(protocol.RUN, "make")

        host.end_error = lost
        host.end_output()
        with pytest.raises(ConnectionLostError) as caught:
            child.wait()
        assert (caught.value.command, caught.value.reason, caught.value.started) == ("make", "broken pipe", None)
        assert client.exit_reason == "broken pipe"
