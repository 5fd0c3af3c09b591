"""One session, with a shell of this machine in the place of ssh."""

from __future__ import annotations

import secrets
import time
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
from tests.waiting import wait_until


@attrs.define
class Local:
    """Starts sessions on this machine."""

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
        started = Session(
            argv or ("/bin/sh", "-c", " ".join(script.command_words)),
            script,
            on_output=on_output or self.collector.write,
            deadline=Deadline(seconds),
            cancel_token=cancel_token,
            check=check,
            timeouts=timeouts,
        )
        self.sessions.append(started)
        return started

    @property
    def out(self) -> bytes:
        return self.collector.getvalue(Stream.STDOUT)

    @property
    def err(self) -> bytes:
        return self.collector.getvalue(Stream.STDERR)


@pytest.fixture
def local() -> Iterator[Local]:
    made = Local()
    yield made
    for session in made.sessions:
        session._process.close()


@pytest.fixture
def cancel_token() -> Iterator[CancelToken]:
    made = CancelToken()
    yield made
    made.close()


def test_from_beginning_to_end(local: Local) -> None:
    session = local.start("echo out; echo err >&2; exit 3")
    session.wait()
    assert (session.has_started, session.reported_status, session.ssh_exit_code) == (True, "3", 0)
    assert (local.out, local.err, session.diagnostic) == (b"out\n", b"err\n", "")


def test_reading(local: Local) -> None:
    session = local.start("printf 'head\\0some more'; echo err >&2")
    assert session.read_until(b"\0") == b"head"
    assert session.read(4) == b"some"
    assert session.read(100) == b" more"
    assert session.read(1) == b""
    assert session.read_until(b"\n") is None
    session.wait()
    assert (session.reported_status, local.out, local.err) == ("0", b"", b"err\n")


def test_feeding(local: Local) -> None:
    session = local.start("cat", stdin=None)
    for _ in range(3):
        session.write(b"x" * 100_000)
    session.close_stdin()
    session.wait()
    assert (len(local.out), session.reported_status) == (300_000, "0")


def test_feeding_what_has_ended(local: Local) -> None:
    session = local.start("exit 4", stdin=None)
    assert session._process.pump(lambda: session.reported_status is not None)

    def feed_for_ever() -> None:
        while True:
            session.write(b"x" * 100_000)

    with pytest.raises(CommandEndedError):
        feed_for_ever()
    session.wait()
    assert session.reported_status == "4"


@pytest.mark.parametrize(("ending", "status"), [("exit 255", 255), ("exit 7", 7), ("exit 0", 0), ("kill -9 $$", -9)])
def test_session_without_marks_delivers_no_output(local: Local, ending: str, status: int) -> None:
    session = local.start("true", argv=("/bin/sh", "-c", f"printf text; printf said >&2; {ending}"))
    session.wait()
    assert (session.has_started, session.reported_status, session.ssh_exit_code) == (False, None, status)
    assert (local.out, local.err, session.diagnostic) == (b"", b"", "saidtext")


@pytest.mark.parametrize("ending", ["exit 255", "exit 0"])
def test_session_without_marks_reads_nothing(local: Local, ending: str) -> None:
    session = local.start("true", argv=("/bin/sh", "-c", f"printf text; {ending}"))
    assert session.read(100) == b""
    session.wait()
    assert (local.out, session.diagnostic) == (b"", "text")


def test_a_session_that_breaks_off(local: Local) -> None:
    session = local.start("printf out; kill -9 $PPID")
    session.wait()
    assert (session.has_started, session.reported_status, session.ssh_exit_code, local.out) == (True, None, -9, b"out")


def test_a_background_process_does_not_keep_it_waiting(local: Local) -> None:
    begun = time.monotonic()
    session = local.start("sleep 8 & exit 5")
    session.wait()
    assert time.monotonic() - begun < 5
    assert session.reported_status == "5"


def test_giving_up_ends_it_and_takes_along_what_is_still_said(local: Local) -> None:
    session = local.start("trap 'echo bye; exit' TERM; echo ready; while :; do sleep 0.02; done")
    session._process.pump(lambda: b"ready" in local.out)
    pids = descendant_pids(session._process.pid) | {session._process.pid}
    session.cancel()
    assert local.out == b"ready\nbye\n"
    assert wait_until(lambda: pids.isdisjoint(parent_by_pid()), 5)


def test_giving_up_does_not_wait_for_the_grace(local: Local) -> None:
    session = local.start(
        "trap '' TERM; echo ready; while :; do sleep 0.02; done", grace=1.5, timeouts=Timeouts(command_cancel=0.1)
    )
    session._process.pump(lambda: b"ready" in local.out)
    pids = descendant_pids(session._process.pid)
    begun = time.monotonic()
    session.cancel()
    assert time.monotonic() - begun < 1.2
    assert wait_until(lambda: pids.isdisjoint(parent_by_pid()), 5)


@pytest.mark.parametrize("error", [DeadlinePassedError, CancelledError])
def test_a_command_that_goes_on(local: Local, cancel_token: CancelToken, error: type[Exception]) -> None:
    session = local.start(
        "echo ready; exec sleep 60", seconds=0.5 if error is DeadlinePassedError else 20, cancel_token=cancel_token
    )
    if error is CancelledError:
        session._process.pump(lambda: b"ready" in local.out)
        cancel_token.cancel()
    with pytest.raises(error):
        session.wait()
    session.cancel()
    assert local.out == b"ready\n"


@pytest.mark.parametrize("error", [DeadlinePassedError, CancelledError])
def test_a_host_that_does_not_take_the_script(local: Local, cancel_token: CancelToken, error: type[Exception]) -> None:
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


def test_an_error_of_the_caller_s_ends_the_process(local: Local) -> None:
    def fail(_stream: Stream, _data: bytes) -> None:
        raise KeyError("the caller's")

    mark = "mark-0"
    argv = ("/bin/sh", "-c", f"printf '{mark}<x'; exec sleep 60")
    with pytest.raises(KeyError, match="the caller's"):
        local.start("# " + "x" * 300_000, argv=argv, output_mark=mark, on_output=fail)


def test_while_nothing_moves_the_master_is_looked_at(local: Local) -> None:
    looked: list[float] = []

    def check() -> None:
        looked.append(time.monotonic())
        if len(looked) == 3:
            raise ConnectionError("it does not answer")

    session = local.start("exec sleep 60", check=check, timeouts=Timeouts(master_check_interval=0.05))
    with pytest.raises(ConnectionError, match="it does not answer"):
        session.wait()
    assert looked[2] - looked[0] >= 0.09
    session.cancel()
