"""The session that notices the end of this process, with a stand-in for a master and a real shell in its session."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import pytest

from lazycluster._ssh.lifeline import Keeper
from lazycluster._ssh.mux import ControlSocket, ControlSocketError, encode
from lazycluster._ssh.shell import BOOTSTRAP
from lazycluster.testing.processes import wait_until

from .fake_master import FAILURE, OPENED, Master, open_descriptors, reply, running_master

EXIT_MESSAGE = 0x80000004


@pytest.fixture
def master() -> Iterator[Master]:
    with running_master() as stand_in:
        stand_in.answer, stand_in.takes_descriptors = reply(OPENED, 5), 3
        stand_in.keeps_descriptors = True
        yield stand_in


@pytest.fixture
def control(master: Master) -> Iterator[ControlSocket]:
    connected = ControlSocket(master.path, timeout=5.0)
    yield connected
    connected.close()


@contextlib.contextmanager
def session(master: Master, parent: str = "/bin/sh", then: str = "exit $?") -> Iterator[subprocess.Popen[bytes]]:
    """Run what the session is to run, reading from the descriptor that the keeper passed, as sshd would.

    Its parent is a shell, so that no mistake kills this process.
    """
    pipe = subprocess.PIPE
    words = (parent, "-c", f'"$@"; {then}', "-", "/bin/sh", "-c", BOOTSTRAP)
    with subprocess.Popen(words, stdin=master.descriptors[0], stdout=pipe, stderr=pipe, start_new_session=True) as run:
        master.close_descriptors()
        try:
            yield run
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)


def test_the_session_runs_what_any_login_shell_takes(master: Master, control: ControlSocket) -> None:
    keeper = Keeper(control)
    (request,) = master.requests
    assert request.body.endswith(BOOTSTRAP.encode())
    sent = os.read(master.descriptors[0], 1 << 16)
    assert sent.endswith(b"\n")
    assert sent.count(b"\n") == 1
    keeper.lose()


def test_a_loss_is_noticed_on_the_host(master: Master, control: ControlSocket, tmp_path: Path) -> None:
    file = tmp_path / "a 'b"
    file.touch()
    keeper = Keeper(control, f"rm -f -- {quote(str(file))}")
    with session(master) as there:
        with pytest.raises(subprocess.TimeoutExpired):
            there.wait(0.1)
        keeper.lose()
        assert there.wait(10) is not None
    assert not file.exists()
    assert wait_until(lambda: master.closed == 1, 10)


@pytest.mark.parametrize(("name", "killed"), [("sshd", True), ("sshd-session", True), ("shd", False)])
def test_a_loss_ends_the_sshd_of_the_connection_and_no_other_process(
    master: Master, control: ControlSocket, tmp_path: Path, name: str, killed: bool
) -> None:
    parent = tmp_path / name
    parent.symlink_to("/bin/sh")
    keeper = Keeper(control)
    # The parent waits for its child, then for a moment, so that it is there to be killed, and was not killed before.
    with session(master, str(parent), "sleep 0.3; exit 7") as there:
        keeper.lose()
        assert there.wait(10) == (-signal.SIGTERM if killed else 7)


def test_closing_has_no_consequence(master: Master, control: ControlSocket, tmp_path: Path) -> None:
    """The session is closed here only after its end there, or the host would take it for the end of this process."""
    keeper = Keeper(control, f"touch {quote(str(tmp_path))}/lost")
    closing = threading.Thread(target=keeper.close)
    with session(master) as there:
        closing.start()
        assert there.wait(10) == 0
        assert (closing.is_alive(), master.closed) == (True, 0)
        master.connections[-1].sendall(encode(EXIT_MESSAGE, 5, 0))
        closing.join(10)
        assert not closing.is_alive()
    assert wait_until(lambda: master.closed == 1, 10)
    assert list(tmp_path.iterdir()) == []


def test_closing_again_does_nothing(master: Master, control: ControlSocket) -> None:
    before = open_descriptors()
    keeper = Keeper(control)
    master.connections[-1].sendall(encode(EXIT_MESSAGE, 5, 0))
    for end in (keeper.close, keeper.close, keeper.lose, keeper.lose, keeper.close):
        end()
    master.close_descriptors()
    assert wait_until(lambda: open_descriptors() <= before, 10)


def test_a_host_that_allows_no_session_has_no_keeper(master: Master, control: ControlSocket) -> None:
    master.answer, master.keeps_descriptors = reply(FAILURE, "Session open refused by peer"), False
    before = open_descriptors()
    keeper = Keeper(control, "touch /no/such/file")
    keeper.close()
    keeper.lose()
    assert wait_until(lambda: open_descriptors() <= before, 10)
    assert not control.closed


def test_the_master_is_gone_before(master: Master, control: ControlSocket) -> None:
    master.answer, master.keeps_descriptors = lambda _request: None, False
    before = open_descriptors()
    with pytest.raises(ControlSocketError):
        Keeper(control)
    assert wait_until(lambda: open_descriptors() <= before, 10)


def test_the_master_is_gone_meanwhile(master: Master, control: ControlSocket) -> None:
    """Then nobody reads any more what a close would say."""
    keeper = Keeper(control)
    before = open_descriptors()
    master.hang_up()
    keeper.close()
    assert wait_until(lambda: open_descriptors() < before, 10)
