"""The lifeline, with a fake master and a real shell in its session."""

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

from lazycluster._ssh.lifeline import Lifeline
from lazycluster._ssh.mux import ControlSocket, ControlSocketError, encode_message
from lazycluster._ssh.shell import SHELL_BOOTSTRAP
from tests.unit.fake_master import (
    MUX_S_FAILURE,
    MUX_S_SESSION_OPENED,
    FakeMaster,
    count_open_descriptors,
    make_responder,
    running_fake_master,
)
from tests.waiting import wait_until

EXIT_MESSAGE = 0x80000004


@pytest.fixture
def master() -> Iterator[FakeMaster]:
    with running_fake_master() as fake_master:
        fake_master.responder, fake_master.descriptors_per_request = make_responder(MUX_S_SESSION_OPENED, 5), 3
        fake_master.keep_descriptors_open = True
        yield fake_master


@pytest.fixture
def control(master: FakeMaster) -> Iterator[ControlSocket]:
    connected = ControlSocket(master.path, timeout=20.0)
    yield connected
    connected.close()


@contextlib.contextmanager
def running_session(
    master: FakeMaster, parent: str = "/bin/sh", then: str = "exit $?"
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command of the session with the descriptor that the lifeline passed, as sshd would.

    Its parent is a shell, so that no mistake kills this process.
    """
    pipe = subprocess.PIPE
    argv = (parent, "-c", f'"$@"; {then}', "-", "/bin/sh", "-c", SHELL_BOOTSTRAP)
    with subprocess.Popen(argv, stdin=master.descriptors[0], stdout=pipe, stderr=pipe, start_new_session=True) as run:
        master.close_descriptors()
        try:
            yield run
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)


def test_lifeline_session_runs_shell_bootstrap(master: FakeMaster, control: ControlSocket) -> None:
    lifeline = Lifeline(control)
    (request,) = master.requests
    assert request.body.endswith(SHELL_BOOTSTRAP.encode())
    sent = os.read(master.descriptors[0], 1 << 16)
    assert sent.endswith(b"\n")
    assert sent.count(b"\n") == 1
    lifeline.drop()


def test_lifeline_drop_runs_on_lost(master: FakeMaster, control: ControlSocket, tmp_path: Path) -> None:
    file = tmp_path / "a 'b"
    file.touch()
    lifeline = Lifeline(control, f"rm -f -- {quote(str(file))}")
    with running_session(master) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        lifeline.drop()
        assert process.wait(20) is not None
    assert not file.exists()
    assert wait_until(lambda: master.closed_connections == 1, 10)


@pytest.mark.parametrize(("name", "killed"), [("sshd", True), ("sshd-session", True), ("shd", False)])
def test_lifeline_drop_ends_only_sshd(
    master: FakeMaster, control: ControlSocket, tmp_path: Path, name: str, killed: bool
) -> None:
    parent = tmp_path / name
    parent.symlink_to("/bin/sh")
    lifeline = Lifeline(control)
    # The parent waits for its child and a moment longer, so that it still runs when the child kills it.
    with running_session(master, str(parent), "sleep 0.3; exit 7") as process:
        lifeline.drop()
        assert process.wait(20) == (-signal.SIGTERM if killed else 7)


def test_lifeline_close_does_not_run_on_lost(master: FakeMaster, control: ControlSocket, tmp_path: Path) -> None:
    """close() waits for the end of the session on the host, which otherwise would take it for a loss."""
    lifeline = Lifeline(control, f"touch {quote(str(tmp_path))}/lost")
    closing = threading.Thread(target=lifeline.close)
    with running_session(master) as process:
        closing.start()
        assert process.wait(20) == 0
        assert (closing.is_alive(), master.closed_connections) == (True, 0)
        master.connections[-1].sendall(encode_message(EXIT_MESSAGE, 5, 0))
        closing.join(10)
        assert not closing.is_alive()
    assert wait_until(lambda: master.closed_connections == 1, 10)
    assert list(tmp_path.iterdir()) == []


def test_lifeline_close_twice_does_nothing(master: FakeMaster, control: ControlSocket) -> None:
    before = count_open_descriptors()
    lifeline = Lifeline(control)
    master.connections[-1].sendall(encode_message(EXIT_MESSAGE, 5, 0))
    for method in (lifeline.close, lifeline.close, lifeline.drop, lifeline.drop, lifeline.close):
        method()
    master.close_descriptors()
    assert wait_until(lambda: count_open_descriptors() <= before, 10)


def test_lifeline_session_refused_is_ignored(master: FakeMaster, control: ControlSocket) -> None:
    master.responder, master.keep_descriptors_open = (
        make_responder(MUX_S_FAILURE, "Session open refused by peer"),
        False,
    )
    before = count_open_descriptors()
    lifeline = Lifeline(control, "touch /no/such/file")
    lifeline.close()
    lifeline.drop()
    assert wait_until(lambda: count_open_descriptors() <= before, 10)
    assert not control.poll_closed()


def test_lifeline_master_gone_raises(master: FakeMaster, control: ControlSocket) -> None:
    master.responder, master.keep_descriptors_open = lambda _request: None, False
    before = count_open_descriptors()
    with pytest.raises(ControlSocketError):
        Lifeline(control)
    assert wait_until(lambda: count_open_descriptors() <= before, 10)


def test_lifeline_close_after_master_ended(master: FakeMaster, control: ControlSocket) -> None:
    """Nothing reads the message of close() any more."""
    lifeline = Lifeline(control)
    before = count_open_descriptors()
    master.close_connections()
    lifeline.close()
    assert wait_until(lambda: count_open_descriptors() < before, 10)
