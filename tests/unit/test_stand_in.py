"""The stand-ins for the marks and the control socket of ssh, for tests that mock `subprocess`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_subprocess.fake_process import FakeProcess

from lazycluster import AuthenticationError, ConnectError, Connection, ConnectionLostError, LoginShellError
from lazycluster._doctor.sessions import count_sessions
from lazycluster._model.command import Command
from lazycluster._model.timeouts import DEFAULT_TIMEOUTS
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.lifeline import Lifeline
from lazycluster._ssh.master import Master
from lazycluster._ssh.mux import ControlSocketError
from lazycluster._ssh.session import Session
from lazycluster._ssh.shell import OutputDecoder, Script
from lazycluster._ssh.stand_in import StandInControlSocket, add_marks
from lazycluster._ssh.tunnel_connection import TunnelConnection
from lazycluster._waiting import Deadline
from lazycluster.results import Collector, Stream

MARK = "lazycluster-0123456789abcdef"


@pytest.fixture
def log_in(fp: FakeProcess) -> FakeProcess:
    fp.register(["ssh", "-f", fp.any()])
    return fp


@pytest.fixture
def master(log_in: FakeProcess) -> Iterator[Master]:
    connected = Master.connect(Destination("web1"))
    yield connected
    connected.close()


# Marks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exit_code", [0, 1, 7, 127, 254])
@pytest.mark.parametrize("data", [b"", b"out\n", MARK.encode()])
def test_add_marks_after_a_command_adds_its_status(data: bytes, exit_code: int) -> None:
    decoder = OutputDecoder(MARK)
    outputs = [decoder.feed(stream, add_marks(MARK, data, exit_code)) for stream in Stream]
    assert outputs == [data, data]
    assert (decoder.has_started, decoder.has_ended, decoder.reported_status) == (True, True, str(exit_code))


@pytest.mark.parametrize("exit_code", [255, -9])
def test_add_marks_after_an_error_of_ssh_adds_none(exit_code: int) -> None:
    assert add_marks(MARK, b"Permission denied", exit_code) == b"Permission denied"


def test_session_of_mocked_ssh_has_marks(fp: FakeProcess) -> None:
    fp.register(["ssh", "web1"], stdout=b"head\0rest", stderr=b"err", returncode=7)
    collector = Collector()
    session = Session(
        ("ssh", "web1"),
        Script(Command("make"), MARK, "0.0."),
        on_output=collector.write,
        deadline=Deadline(20),
        cancel_token=None,
        check=lambda: None,
        timeouts=DEFAULT_TIMEOUTS,
    )
    assert session.read_until(b"\0") == b"head"
    assert session.read(100) == b"rest"
    session.wait()
    assert (session.has_started, session.reported_status, session.ssh_exit_code) == (True, "7", 7)
    assert (collector.getvalue(Stream.STDERR), session.diagnostic) == (b"err", "")


# The control socket --------------------------------------------------------------------------------------------------


def test_master_without_control_socket_is_alive(master: Master) -> None:
    assert (master.is_stand_in, master.pid, master.has_exited) == (True, None, False)
    assert master.check()
    assert master.can_reach_host(1.0)
    for force in (False, True):
        master.close(force=force)
    assert master.has_exited
    assert not master.check()
    assert not master.socket_path.parent.exists()


def test_master_without_control_socket_disconnects(master: Master) -> None:
    master.disconnect()
    assert not master.socket_path.parent.exists()


def test_lifeline_without_control_socket_is_refused() -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(ControlSocketError):
        Lifeline(StandInControlSocket())
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_tunnel_without_control_socket_is_refused(log_in: FakeProcess, run_directory: Path) -> None:
    before = set(run_directory.iterdir())
    with pytest.raises(ConnectError):
        TunnelConnection.connect(Destination("web1"), None, threading.Event(), DEFAULT_TIMEOUTS)
    assert set(run_directory.iterdir()) == before


def test_count_sessions_without_control_socket_fails(log_in: FakeProcess) -> None:
    ssh_client = SshClient(Destination("web1"))
    with contextlib.closing(ssh_client), pytest.raises(ConnectionLostError):
        count_sessions(ssh_client)


# Errors --------------------------------------------------------------------------------------------------------------


def test_session_of_mocked_ssh_that_fails_is_diagnosed(log_in: FakeProcess) -> None:
    message = "me@web1: Permission denied (publickey).\r\n"
    log_in.register(["ssh", "-T", log_in.any(), "true"], stderr=message, returncode=255)
    with Connection("web1") as connection, pytest.raises(AuthenticationError) as caught:
        connection.run("true")
    assert "Permission denied" in caught.value.reason


def test_program_in_place_of_ssh_needs_marks_for_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\n[ $1 = -f ] || echo 8\n")
    (tmp_path / "ssh").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    with Connection("web1") as connection, pytest.raises(LoginShellError) as caught:
        connection.run("nproc")
    assert (caught.value.command, caught.value.output) == ("nproc", "8\n")
