"""The client of one host with short time-outs: its master in front of a real sshd, and sessions that a host refuses."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_subprocess.fake_popen import FakePopen
from pytest_subprocess.fake_process import FakeProcess

from lazycluster import CommandResult, ConnectionLostError, SessionRefusedError
from lazycluster._model.command import Command
from lazycluster._model.timeouts import DEFAULT_TIMEOUTS, Timeouts
from lazycluster._model.watch import Watch
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.master import MAX_SOCKET_PATH_BYTES
from lazycluster.results import Stream
from lazycluster.testing import LocalSshd
from tests.processes import is_alive
from tests.waiting import assert_eventually

MakeClient = Callable[..., SshClient]


@pytest.fixture
def make_client(sshd: LocalSshd) -> Iterator[MakeClient]:
    """Return a function that makes a client of the shared sshd."""
    clients: list[SshClient] = []

    def make(timeouts: Timeouts = DEFAULT_TIMEOUTS) -> SshClient:
        clients.append(SshClient(Destination(sshd.host, config_file=sshd.config_file), timeouts=timeouts))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def stop_master(client: SshClient) -> int:
    """Stop the master of a client with SIGSTOP, so that it no longer answers, and return its process id."""
    pid = client.master().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    return pid


# A master that does not answer ---------------------------------------------------------------------------------------


def test_master_stopped_is_killed_and_replaced(make_client: MakeClient) -> None:
    assert DEFAULT_TIMEOUTS.control_socket <= 5
    client = make_client(Timeouts(control_socket=2.0))
    directory = client.master().socket_path.parent
    pid = stop_master(client)

    assert client.run(Command("echo again")).stdout == "again\n"

    assert client.master().pid != pid
    assert not directory.exists()
    assert_eventually(lambda: not is_alive(pid), "the stopped master has ended")


def test_master_stopped_during_command_raises(make_client: MakeClient) -> None:
    assert DEFAULT_TIMEOUTS.master_check_interval + DEFAULT_TIMEOUTS.control_socket < 20
    client = make_client(Timeouts(master_check_interval=0.5, control_socket=2.0))
    pids: list[int] = []

    def stop_at_first_output(stream: Stream, data: bytes) -> None:
        if not pids:
            pids.append(stop_master(client))

    with pytest.raises(ConnectionLostError) as caught:
        client.run(Command("echo up; sleep 1002"), Watch(on_output=stop_at_first_output))

    assert (caught.value.host, caught.value.command) == (client.host, "echo up; sleep 1002")
    assert_eventually(lambda: not is_alive(pids[0]), "the stopped master has ended")
    assert client.run(Command("echo again")).stdout == "again\n"


def test_master_checked_during_silent_command(make_client: MakeClient) -> None:
    client = make_client(Timeouts(master_check_interval=0.1))

    assert client.run(Command("sleep 1; echo done")).stdout == "done\n"


# The control socket --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 90, "with space", "100%", 'qu"ote'])
def test_master_unusable_temp_dir_is_passed_over(
    make_client: MakeClient, sshd: LocalSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    directory = Path("/tmp", tmp_path.name, name)
    directory.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    try:
        client = make_client()
        path = client.master().socket_path
        assert path.parent.parent == Path("/tmp")
        assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
        assert client.run(Command("echo through")).stdout == "through\n"
        client.close()
        assert not path.parent.exists()
    finally:
        directory.rmdir()
        directory.parent.rmdir()


def test_master_longest_socket_path(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, run_directory: Path
) -> None:
    room = MAX_SOCKET_PATH_BYTES - len(f"{run_directory}//lazycluster-m-12345678/m")
    directory = run_directory / ("x" * room)
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))

    client = make_client()
    path = client.master().socket_path
    assert path.parent.parent == directory
    assert len(os.fsencode(path)) == MAX_SOCKET_PATH_BYTES
    assert client.run(Command("echo through")).stdout == "through\n"
    client.close()
    directory.rmdir()


# Sessions that the host refuses, with a mocked ssh -------------------------------------------------------------------

REFUSED = "mux_client_request_session: session request failed: Session open refused by peer\r\n"


@pytest.fixture
def log_in(fp: FakeProcess) -> FakeProcess:
    fp.register(["ssh", "-f", fp.any()])
    return fp


def test_session_refused_is_tried_again(log_in: FakeProcess) -> None:
    log_in.register(["ssh", "-T", log_in.any(), "true"], stderr=REFUSED, returncode=255)
    log_in.register(["ssh", "-T", log_in.any(), "true"], stdout="at last")
    client = SshClient(Destination("web1"), timeouts=Timeouts(session_refused=0.01))

    assert client.run(Command("true")).stdout == "at last"

    client.close()
    assert len(log_in.calls) == 3


def test_session_refused_waits_for_end_of_another(log_in: FakeProcess) -> None:
    is_running, may_end = threading.Event(), threading.Event()

    def wait(process: FakePopen) -> None:
        is_running.set()
        may_end.wait(30)

    log_in.register(["ssh", "-T", log_in.any(), "first"], callback=wait)
    log_in.register(["ssh", "-T", log_in.any(), "second"], stderr=REFUSED, returncode=255)
    log_in.register(["ssh", "-T", log_in.any(), "second"], stdout="done")
    client = SshClient(Destination("web1"), timeouts=Timeouts(session_refused=1000))
    results: list[CommandResult] = []
    first = threading.Thread(target=client.run, args=(Command("first"),))
    second = threading.Thread(target=lambda: results.append(client.run(Command("second"))))
    first.start()
    assert is_running.wait(10)
    second.start()
    assert_eventually(lambda: len(log_in.calls) == 3, "the second session was refused")
    second.join(0.2)
    assert (results, len(log_in.calls)) == ([], 3)

    may_end.set()
    first.join(10)
    second.join(10)

    client.close()
    assert [result.stdout for result in results] == ["done"]


def test_session_refused_twice_raises(log_in: FakeProcess) -> None:
    recorder = log_in.register(["ssh", "-T", log_in.any(), "true"], stderr=REFUSED, returncode=255, occurrences=50)
    client = SshClient(Destination("web1"), timeouts=Timeouts(session_refused=0.01))

    with pytest.raises(SessionRefusedError) as caught:
        client.run(Command("true"))

    client.close()
    assert (caught.value.host, caught.value.command) == ("web1", "true")
    assert len(recorder.calls) == 2
