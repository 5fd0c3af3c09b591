"""The control socket's protocol, spoken with a fake master."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._ssh.mux import (
    ControlSocket,
    ControlSocketError,
    MuxReply,
    RequestRefusedError,
    encode_message,
    wait_readable,
)
from tests.unit.fake_master import (
    MASTER_PID,
    MUX_C_ALIVE_CHECK,
    MUX_C_CLOSE_FWD,
    MUX_C_NEW_SESSION,
    MUX_C_NEW_STDIO_FWD,
    MUX_C_OPEN_FWD,
    MUX_C_TERMINATE,
    MUX_S_ALIVE,
    MUX_S_EXIT_MESSAGE,
    MUX_S_FAILURE,
    MUX_S_OK,
    MUX_S_PERMISSION_DENIED,
    MUX_S_SESSION_OPENED,
    FakeMaster,
    MuxRequest,
    MuxResponder,
    count_open_descriptors,
    make_responder,
    running_fake_master,
)
from tests.waiting import wait_until

LOCAL = Forwarding(ForwardType.LOCAL, 8080, 80)
REMOTE = Forwarding(ForwardType.REMOTE, 1, 65535, "127.0.0.1", "db")


@pytest.fixture
def master() -> Iterator[FakeMaster]:
    with running_fake_master() as fake_master:
        yield fake_master


@pytest.fixture
def control(master: FakeMaster) -> Iterator[ControlSocket]:
    connected = ControlSocket(master.path, timeout=20.0)
    yield connected
    connected.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Return the reading and the writing end of a pipe."""
    ends = os.pipe()
    yield ends
    for descriptor in ends:
        os.close(descriptor)


def encode_string(value: str) -> bytes:
    return struct.pack(">I", len(value)) + value.encode()


def encode_uint32s(*values: int) -> bytes:
    return b"".join(struct.pack(">I", value) for value in values)


def hold_answer(go: threading.Event) -> MuxResponder:
    """Return a responder that answers a check only when the event is set."""

    def answer_late(request: MuxRequest) -> bytes:
        go.wait(10)
        return encode_message(MUX_S_ALIVE, request.id, MASTER_PID)

    return answer_late


# Messages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((), "00000000"),
        ((1, 4), "00000008 00000001 00000004"),
        ((0xFFFFFFFF,), "00000004 ffffffff"),
        (("ab", 7), "0000000a 00000002 6162 00000007"),
        (("",), "00000004 00000000"),
        (("ä",), "00000006 00000002 c3a4"),
    ],
)
def test_encode_message_gives_bytes_of_fields(fields: tuple[int | str, ...], message: str) -> None:
    assert encode_message(*fields) == bytes.fromhex(message)


@pytest.mark.parametrize("body", [b"", b"\0\0\0", b"\0\0\0\1\0\0\0"])
def test_mux_reply_too_short_raises(body: bytes) -> None:
    with pytest.raises(ControlSocketError, match="the master's answer is too short"):
        MuxReply(1, body).uint32(len(body) // 4)


def test_mux_reply_reads_fields_and_reason() -> None:
    received = MuxReply(MUX_S_FAILURE, encode_uint32s(7) + encode_string("why") + b"ignored")
    assert (received.uint32(0), received.reason) == (7, "why")


# Hello messages ------------------------------------------------------------------------------------------------------


def test_control_socket_exchanges_hellos(master: FakeMaster, control: ControlSocket) -> None:
    assert control.check() == MASTER_PID
    assert master.received_hellos == [encode_uint32s(1, 4)]


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (encode_message(1, 3), "does not speak version 4"),
        (encode_message(2, 4), "does not speak version 4"),
        (encode_message(1), "too short"),
        (encode_uint32s(0), "garbled"),
        (encode_uint32s(3) + b"abc", "garbled"),
        (encode_uint32s(1 << 30), "garbled"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "garbled"),
        (encode_uint32s(8) + b"\0", "no answer from the master: timed out"),
        (b"", "no answer from the master: timed out"),
        (None, "the master closed its control socket"),
    ],
)
def test_control_socket_bad_hello_raises(master: FakeMaster, hello: bytes | None, reason: str) -> None:
    master.hello = hello
    before = count_open_descriptors()
    with pytest.raises(ControlSocketError, match=reason):
        ControlSocket(master.path, timeout=0.2 if "timed out" in reason else 10.0)
    assert count_open_descriptors() <= before + 1  # the master's end may still be open


def test_control_socket_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ControlSocket(tmp_path / "m", timeout=1.0)


def test_control_socket_without_listener_raises() -> None:
    with tempfile.TemporaryDirectory(prefix="lcmux-") as directory:
        path = Path(directory, "m")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        with pytest.raises(ControlSocketError, match=r"no answer from the master: .*refused") as caught:
            ControlSocket(path, timeout=1.0)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


# Requests ------------------------------------------------------------------------------------------------------------


def test_check_returns_pid(master: FakeMaster, control: ControlSocket) -> None:
    for number in (1, 2, 3):
        assert control.check() == MASTER_PID
        assert master.requests[-1] == MuxRequest(MUX_C_ALIVE_CHECK, number, b"")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (make_responder(MUX_S_OK), "the master answered a check with 0x80000001"),
        (make_responder(MUX_S_FAILURE, "no"), "the master answered a check with 0x80000003"),
        (make_responder(MUX_S_ALIVE), "too short"),
        (lambda _request: encode_uint32s(2) + b"ab", "garbled"),
        (lambda _request: None, "the master closed its control socket"),
        (lambda _request: b"", "no answer from the master: timed out"),
        (lambda _request: encode_uint32s(12) + b"half", "no answer from the master: timed out"),
    ],
    ids=["OK", "failure", "no pid", "short length", "closed", "nothing", "half a message"],
)
def test_check_bad_reply_raises(master: FakeMaster, answer: MuxResponder, reason: str) -> None:
    control = ControlSocket(master.path, timeout=0.5)
    master.responder = answer
    with pytest.raises(ControlSocketError, match=reason):
        control.check()
    control.close()


def test_check_late_reply_is_not_taken_for_next(master: FakeMaster) -> None:
    control = ControlSocket(master.path, timeout=0.5)
    go = threading.Event()
    master.responder = hold_answer(go)
    with pytest.raises(ControlSocketError, match="timed out"):
        control.check()
    go.set()
    with pytest.raises(ControlSocketError, match="the master did not answer before"):
        control.check()
    assert len(master.requests) == 1
    control.close()


def test_check_reply_in_single_bytes_is_read(master: FakeMaster, control: ControlSocket) -> None:
    """A stream socket keeps no borders of messages."""
    master.send_byte_by_byte = True
    for _ in range(3):
        assert control.check() == MASTER_PID


@pytest.mark.parametrize(
    ("forwarding", "body"),
    [
        (
            LOCAL,
            encode_uint32s(1)
            + encode_string("localhost")
            + encode_uint32s(8080)
            + encode_string("localhost")
            + encode_uint32s(80),
        ),
        (
            REMOTE,
            encode_uint32s(2)
            + encode_string("127.0.0.1")
            + encode_uint32s(1)
            + encode_string("db")
            + encode_uint32s(65535),
        ),
    ],
    ids=["local", "remote"],
)
def test_open_and_close_forward_send_the_forwarding(
    master: FakeMaster, control: ControlSocket, forwarding: Forwarding, body: bytes
) -> None:
    master.responder = make_responder(MUX_S_OK)
    control.open_forward(forwarding)
    control.close_forward(forwarding)
    assert master.requests == [MuxRequest(MUX_C_OPEN_FWD, 1, body), MuxRequest(MUX_C_CLOSE_FWD, 2, body)]


@pytest.mark.parametrize("method", [ControlSocket.open_forward, ControlSocket.close_forward])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (make_responder(MUX_S_FAILURE, "Port forwarding failed"), "^Port forwarding failed$"),
        (make_responder(MUX_S_PERMISSION_DENIED, "Permission denied"), "^Permission denied$"),
        (make_responder(MUX_S_FAILURE, ""), "^answer 0x80000003$"),
    ],
    ids=["failure", "permission denied", "empty reason"],
)
def test_forward_refused_raises_with_reason(
    master: FakeMaster,
    control: ControlSocket,
    method: Callable[[ControlSocket, Forwarding], None],
    answer: MuxResponder,
    reason: str,
) -> None:
    master.responder = answer
    with pytest.raises(RequestRefusedError, match=reason):
        method(control, LOCAL)
    master.responder = make_responder(MUX_S_OK)
    method(control, LOCAL)  # a refusal does not end the connection


def test_forward_refused_without_reason_raises(master: FakeMaster, control: ControlSocket) -> None:
    master.responder = make_responder(MUX_S_FAILURE)
    with pytest.raises(ControlSocketError, match="too short"):
        control.open_forward(LOCAL)


def test_probe_uses_a_connection_of_its_own(master: FakeMaster, control: ControlSocket) -> None:
    master.responder, master.descriptors_per_request = make_responder(MUX_S_SESSION_OPENED, 5), 2
    control.probe("localhost", 80)
    assert [(request.type, request.body) for request in master.requests] == [
        (MUX_C_NEW_STDIO_FWD, encode_string("") + encode_string("localhost") + encode_uint32s(80))
    ]
    # the probe has closed its connection
    assert wait_until(lambda: (len(master.received_hellos), master.closed_connections) == (2, 1), 10)


def test_probe_refused_raises(master: FakeMaster, control: ControlSocket) -> None:
    master.responder, master.descriptors_per_request = make_responder(MUX_S_FAILURE, "Connection refused"), 2
    with pytest.raises(RequestRefusedError, match=r"^Connection refused$"):
        control.probe("localhost", 80)


def test_open_session_passes_descriptors(master: FakeMaster, control: ControlSocket, pipe: tuple[int, int]) -> None:
    stdin, _ = pipe
    link = str(Path(f"/proc/self/fd/{stdin}").readlink()) if Path("/proc/self/fd").exists() else ""
    master.responder, master.descriptors_per_request = make_responder(MUX_S_SESSION_OPENED, 5), 3
    session = control.open_session("exec cat", stdin)
    request = master.requests[0]
    fields = (
        encode_string("") + encode_uint32s(0, 0, 0, 0, 0xFFFFFFFF) + encode_string("dumb") + encode_string("exec cat")
    )
    assert (request.type, request.body) == (MUX_C_NEW_SESSION, fields)
    assert request.descriptors == ((link, os.devnull, os.devnull) if link else ("", "", ""))
    assert not session.poll_closed()
    session.close()
    assert session.poll_closed()
    os.fstat(stdin)  # the caller's own descriptor stays open


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (make_responder(MUX_S_FAILURE, "Session open refused"), RequestRefusedError),
        (lambda _request: None, ControlSocketError),
    ],
    ids=["refused", "master closed"],
)
def test_open_session_refused_closes_descriptors(
    master: FakeMaster, control: ControlSocket, answer: MuxResponder, error: type[Exception]
) -> None:
    master.responder, master.descriptors_per_request = answer, 3
    before = count_open_descriptors()
    with pytest.raises(error), Path(os.devnull).open() as nothing:
        control.open_session("exec cat", nothing.fileno())
    assert wait_until(lambda: count_open_descriptors() <= before, 10)


# Closing -------------------------------------------------------------------------------------------------------------


def test_terminate_closes_connection(master: FakeMaster, control: ControlSocket) -> None:
    master.responder = lambda _request: None
    assert not control.wait_closed(0.01)
    control.terminate()
    assert control.wait_closed(20.0)
    assert control.poll_closed()
    assert master.requests == [MuxRequest(MUX_C_TERMINATE, 0, b"")]
    control.terminate()  # the master has ended


def test_close_twice_then_check_raises(control: ControlSocket) -> None:
    control.close()
    control.close()
    assert control.poll_closed()
    assert control.wait_closed(None)
    with pytest.raises(ControlSocketError):
        control.check()


def test_wait_closed_ends_at_wake_fd(control: ControlSocket, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"x")
    assert not control.wait_closed(30.0, reading)


def test_wait_closed_sees_end_of_master(master: FakeMaster, control: ControlSocket, pipe: tuple[int, int]) -> None:
    master.responder = lambda _request: None
    with pytest.raises(ControlSocketError):
        control.check()
    assert control.wait_closed(20.0, pipe[0])


def test_fork_closes_control_socket_in_child(control: ControlSocket) -> None:
    """Otherwise a child that lives on would keep the master after the end of this process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"closed" if control.poll_closed() else b"open")
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 99) == b"closed"
    os.close(reading)
    os.waitpid(pid, 0)
    assert control.check() == MASTER_PID


def test_reset_after_fork_sends_nothing(master: FakeMaster) -> None:
    """A fork calls reset_after_fork() in the child; here it acts on a connection of this process."""
    control = ControlSocket(master.path, timeout=20.0)
    control.reset_after_fork()
    assert control.poll_closed()
    assert master.requests == []


def test_check_many_threads_get_their_own_replies(master: FakeMaster, control: ControlSocket) -> None:
    master.responder = lambda request: encode_message(MUX_S_ALIVE, request.id, request.id + 1000)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(control.check())) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(answers) == [number + 1000 for number in range(1, 31)]


def test_poll_closed_during_checks_is_always_false(master: FakeMaster, control: ControlSocket) -> None:
    done = threading.Event()

    def ask() -> None:
        for _ in range(500):
            control.check()
        done.set()

    thread = threading.Thread(target=ask)
    thread.start()
    results = set()
    while not done.is_set():
        results.add(control.poll_closed())
    thread.join(10)
    assert results == {False}
    assert control.check() == MASTER_PID


def test_wait_closed_late_reply_is_not_the_end(master: FakeMaster) -> None:
    control = ControlSocket(master.path, timeout=0.5)
    go = threading.Event()
    master.responder = hold_answer(go)
    with pytest.raises(ControlSocketError, match="timed out"):
        control.check()
    go.set()
    control.wait_message(20.0)
    started = time.process_time()
    assert not control.wait_closed(0.3)
    assert time.process_time() - started < 0.2  # the late answer does not keep it busy
    master.close_connections()
    assert control.wait_closed(20.0)
    control.close()


def test_wait_closed_after_interrupted_check_still_works(master: FakeMaster, control: ControlSocket) -> None:
    answered = threading.Event()

    def interrupt(request: MuxRequest) -> bytes:
        os.kill(os.getpid(), signal.SIGINT)
        answered.wait(10)
        return encode_message(MUX_S_ALIVE, request.id, MASTER_PID)

    master.responder = interrupt
    with pytest.raises(KeyboardInterrupt):
        control.check()
    answered.set()
    control.wait_message(10.0)
    assert not control.wait_closed(0.05)
    with pytest.raises(ControlSocketError, match="the master did not answer before"):
        control.check()
    master.close_connections()
    assert control.wait_closed(20.0)


def test_check_garbled_reply_refuses_later_checks(master: FakeMaster) -> None:
    control = ControlSocket(master.path, timeout=20.0)
    master.responder = lambda _request: encode_uint32s(1 << 30) + b"a later read would take this for an answer"
    with pytest.raises(ControlSocketError, match="garbled"):
        control.check()
    with pytest.raises(ControlSocketError, match="did not answer before"):
        control.check()
    assert len(master.requests) == 1
    assert not control.wait_closed(0.05)
    master.close_connections()
    assert control.wait_closed(20.0)
    control.close()


def test_wait_message_ends_with_message_or_close(master: FakeMaster, control: ControlSocket) -> None:
    control.wait_message(0.05)  # nothing comes
    master.connections[0].sendall(encode_message(MUX_S_EXIT_MESSAGE, 0, 0))
    control.wait_message(1000.0)
    assert not control.poll_closed()
    master.close_connections()
    control.wait_message(1000.0)
    control.close()
    control.wait_message(1000.0)


# Waiting for descriptors ---------------------------------------------------------------------------------------------


def test_wait_readable_returns_those_with_data_or_end() -> None:
    first, second = os.pipe(), os.pipe()
    try:
        assert wait_readable([first[0], second[0]], 0) == set()
        assert wait_readable([first[0], second[0]], 0.05) == set()
        os.write(second[1], b"x")
        assert wait_readable([first[0], second[0]], None) == {second[0]}
        os.close(first[1])
        assert wait_readable([first[0], second[0]], 60.0) == set(first[:1]) | {second[0]}  # an end counts
        assert wait_readable([-1, second[0]], 60.0) == set()
    finally:
        for descriptor in (first[0], *second):
            os.close(descriptor)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, 4096)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip("this machine allows no descriptors above 1023")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_control_socket_descriptor_above_1023_works(master: FakeMaster) -> None:
    fillers = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
    while fillers[-1] < 2000:  # an open file gets the lowest free number
        fillers.append(os.dup(fillers[0]))
    control = ControlSocket(master.path, timeout=20.0)
    reading, writing = os.pipe()
    wake = fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, 3000)
    try:
        assert control.check() == MASTER_PID
        assert not control.poll_closed()
        assert not control.wait_closed(0.01, wake)
        os.write(writing, b"x")
        assert wait_readable([wake], 5.0) == {wake}
        assert not control.wait_closed(60.0, wake)
        os.read(reading, 1)
        master.close_connections()
        assert control.wait_closed(60.0, wake)
    finally:
        control.close()
        for descriptor in (reading, writing, wake, *fillers):
            os.close(descriptor)
