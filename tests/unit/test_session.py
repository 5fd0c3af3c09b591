"""One session, with a shell of this machine in place of ssh."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from lazycluster._model.command import Command
from lazycluster._model.running_command import CommandEndedError
from lazycluster._model.timeouts import DEFAULT_TIMEOUTS, Timeouts
from lazycluster._ssh.session import Session
from lazycluster._ssh.shell import Script
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError
from lazycluster.results import Collector, Stream
from tests.processes import descendant_pids, parent_by_pid
from tests.waiting import assert_eventually


class ReadyError(Exception):
    """The command has printed "ready"."""


@attrs.define
class LocalSessions:
    """Starts sessions on this machine, and collects their output."""

    collector: Collector = attrs.field(factory=Collector)
    sessions: list[Session] = attrs.field(factory=list)

    def start(
        self,
        command: str,
        *,
        argv: tuple[str, ...] | None = None,
        seconds: float | None = 20.0,
        cancel_token: CancelToken | None = None,
        check: Callable[[], None] = lambda: None,
        on_output: Callable[[Stream, bytes], None] | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        **fields: Any,
    ) -> Session:
        marks = {"output_mark": f"mark-{secrets.token_hex(8)}", "process_mark": f"{secrets.token_hex(8)}.0."}
        of_script = {name: fields.pop(name) for name in ("output_mark", "process_mark", "grace") if name in fields}
        script = Script(Command(command, **fields), **dict(marks, **of_script))
        session = Session(
            argv or ("/bin/sh", "-c", " ".join(script.command_words)),
            script,
            on_output=on_output or self.collector.write,
            deadline=Deadline(seconds),
            cancel_token=cancel_token,
            check=check,
            timeouts=timeouts,
        )
        self.sessions.append(session)
        return session

    def start_and_wait_ready(self, command: str, **keywords: Any) -> tuple[Session, set[int]]:
        """Start a command that prints "ready" and goes on; return its session and the processes of that."""

        def check() -> None:
            if b"ready" in self.out:
                raise ReadyError

        before = descendant_pids(os.getpid())
        timeouts = attrs.evolve(keywords.pop("timeouts", DEFAULT_TIMEOUTS), master_check_interval=0.01)
        session = self.start(command, check=check, timeouts=timeouts, **keywords)
        with pytest.raises(ReadyError):
            session.wait()
        return session, descendant_pids(os.getpid()) - before

    @property
    def out(self) -> bytes:
        return self.collector.getvalue(Stream.STDOUT)

    @property
    def err(self) -> bytes:
        return self.collector.getvalue(Stream.STDERR)


@pytest.fixture
def local() -> Iterator[LocalSessions]:
    local = LocalSessions()
    yield local
    for session in local.sessions:
        session.close()


@pytest.fixture
def cancel_token() -> Iterator[CancelToken]:
    token = CancelToken()
    yield token
    token.close()


def test_session_reports_output_and_status(local: LocalSessions) -> None:
    session = local.start("echo out; echo err >&2; exit 3")
    session.wait()
    assert (session.has_started, session.reported_status, session.ssh_exit_code) == (True, "3", 0)
    assert (local.out, local.err, session.diagnostic) == (b"out\n", b"err\n", "")


def test_session_read_and_read_until(local: LocalSessions) -> None:
    session = local.start("printf 'head\\0some more'; echo err >&2")
    assert session.read_until(b"\0") == b"head"
    assert session.read(4) == b"some"
    assert session.read(100) == b" more"
    assert session.read(1) == b""
    assert session.read_until(b"\n") is None
    session.wait()
    assert (session.reported_status, local.out, local.err) == ("0", b"", b"err\n")


def test_session_write_stdin(local: LocalSessions) -> None:
    session = local.start("cat", stdin=None)
    for _ in range(3):
        session.write(b"x" * 100_000)
    session.close_stdin()
    session.wait()
    assert (len(local.out), session.reported_status) == (300_000, "0")


@pytest.mark.parametrize("size", [1, 1 << 16, 300_000])
def test_session_write_in_pieces(local: LocalSessions, size: int) -> None:
    session = local.start("cat; echo end >&2; exit 3", stdin=None, has_lifeline=True)
    data = os.urandom(size)
    session.write(data)
    session.close_stdin()
    session.wait()
    assert (local.out, local.err, session.exit_code) == (data, b"end\n", 3)


def test_session_write_in_pieces_to_ended_command_raises(local: LocalSessions) -> None:
    session = local.start("exit 4", stdin=None, has_lifeline=True)
    with pytest.raises(CommandEndedError):
        session.write(bytes(300_000))
    session.wait()
    assert session.exit_code == 4


@pytest.mark.parametrize("stdin", [None, b"given"])
def test_session_cancel_at_once_leaves_no_grace(local: LocalSessions, stdin: bytes | None) -> None:
    text = "trap '' TERM; echo ready; while :; do sleep 1000; done"
    session, pids = local.start_and_wait_ready(text, stdin=stdin, has_lifeline=True, grace=1000)
    session.cancel(grace=1000, at_once=True)
    assert_eventually(lambda: not pids & parent_by_pid().keys(), "the command is gone")


def test_session_write_after_end_raises(local: LocalSessions) -> None:
    session = local.start("exit 4", stdin=None)
    assert session.read(1) == b""

    def write_without_end() -> None:
        while True:
            session.write(b"x" * 100_000)

    with pytest.raises(CommandEndedError):
        write_without_end()
    session.wait()
    assert session.reported_status == "4"


@pytest.mark.parametrize(("ending", "status"), [("exit 255", 255), ("exit 7", 7), ("exit 0", 0), ("kill -9 $$", -9)])
def test_session_without_marks_delivers_no_output(local: LocalSessions, ending: str, status: int) -> None:
    session = local.start("true", argv=("/bin/sh", "-c", f"printf text; printf said >&2; {ending}"))
    session.wait()
    assert (session.has_started, session.reported_status, session.ssh_exit_code) == (False, None, status)
    assert (local.out, local.err, session.diagnostic) == (b"", b"", "saidtext")


@pytest.mark.parametrize("ending", ["exit 255", "exit 0"])
def test_session_without_marks_reads_nothing(local: LocalSessions, ending: str) -> None:
    session = local.start("true", argv=("/bin/sh", "-c", f"printf text; {ending}"))
    assert session.read(100) == b""
    session.wait()
    assert (local.out, session.diagnostic) == (b"", "text")


def test_session_killed_has_no_reported_status(local: LocalSessions) -> None:
    session = local.start("printf out; kill -9 $PPID")
    session.wait()
    assert (session.has_started, session.reported_status, session.ssh_exit_code, local.out) == (True, None, -9, b"out")


def test_session_wait_ignores_background_process(local: LocalSessions) -> None:
    session = local.start("sleep 60 & echo $!; exit 5")
    session.wait()
    assert session.reported_status == "5"
    os.kill(int(local.out), signal.SIGKILL)


def test_session_cancel_keeps_last_output(local: LocalSessions) -> None:
    session, pids = local.start_and_wait_ready("trap 'echo bye; exit' TERM; echo ready; while :; do sleep 0.02; done")
    session.cancel(grace=20.0)
    assert local.out == b"ready\nbye\n"
    assert_eventually(lambda: pids.isdisjoint(parent_by_pid()), "the command has ended")


def test_session_cancel_does_not_wait_for_grace(local: LocalSessions) -> None:
    """The command ends only when its grace period is over, so it still runs when cancel() returns."""
    session, pids = local.start_and_wait_ready(
        "trap '' TERM; echo ready; while :; do sleep 0.02; done", grace=3.0, timeouts=Timeouts(command_cancel=0.1)
    )
    session.cancel()
    assert pids & parent_by_pid().keys()
    assert_eventually(lambda: pids.isdisjoint(parent_by_pid()), "the command has ended", 20)


@pytest.mark.parametrize("error", [DeadlinePassedError, CancelledError])
def test_session_wait_deadline_or_cancel_raises(
    local: LocalSessions, cancel_token: CancelToken, error: type[Exception]
) -> None:
    def on_output(stream: Stream, data: bytes) -> None:
        local.collector.write(stream, data)
        if error is CancelledError and b"ready" in local.out:
            cancel_token.cancel()

    session = local.start(
        "echo ready; exec sleep 60",
        seconds=2.0 if error is DeadlinePassedError else None,
        cancel_token=cancel_token,
        on_output=on_output,
    )
    with pytest.raises(error):
        session.wait()
    session.cancel()
    assert local.out == b"ready\n"


@pytest.mark.parametrize("error", [DeadlinePassedError, CancelledError])
def test_session_start_deadline_or_cancel_raises(
    local: LocalSessions, cancel_token: CancelToken, error: type[Exception]
) -> None:
    if error is CancelledError:
        cancel_token.cancel()
    seconds = 0.1 if error is DeadlinePassedError else 20
    with pytest.raises(error):
        local.start(
            "# " + "x" * 300_000,
            argv=("sleep", "60"),
            seconds=seconds,
            cancel_token=cancel_token,
            timeouts=Timeouts(command_cancel=0.1),
        )


def test_session_on_output_error_ends_process(local: LocalSessions) -> None:
    def fail(_stream: Stream, _data: bytes) -> None:
        raise ZeroDivisionError

    mark = "mark-0"
    argv = ("/bin/sh", "-c", f"printf '{mark}<x'; exec sleep 60")
    with pytest.raises(ZeroDivisionError):
        local.start("# " + "x" * 300_000, argv=argv, output_mark=mark, on_output=fail)


def test_session_wait_checks_master(local: LocalSessions) -> None:
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks == 3:
            raise ConnectionResetError

    session = local.start("exec sleep 60", check=check, timeouts=Timeouts(master_check_interval=0.05))
    with pytest.raises(ConnectionResetError):
        session.wait()
    assert checks == 3
    session.cancel()
