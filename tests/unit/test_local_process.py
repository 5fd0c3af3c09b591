"""Local processes: their streams, their deadlines, their ends."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazycluster._processes.local_process import LocalProcess
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError
from lazycluster.results import Stream
from tests.processes import parent_by_pid

OUT, ERR = Stream.STDOUT, Stream.STDERR


class Output:
    """What a child printed."""

    def __init__(self) -> None:
        self.streams = {stream: bytearray() for stream in Stream}

    def __call__(self, stream: Stream, data: bytes) -> None:
        self.streams[stream] += data

    @property
    def out(self) -> bytes:
        return bytes(self.streams[OUT])

    @property
    def err(self) -> bytes:
        return bytes(self.streams[ERR])


@pytest.fixture
def output() -> Output:
    return Output()


@pytest.fixture
def cancel_token() -> Iterator[CancelToken]:
    made = CancelToken()
    yield made
    made.close()


def shell(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


def open_descriptors() -> int:
    gc.collect()
    return sum(1 for _ in Path("/dev/fd").iterdir())


def test_streams_come_apart(output: Output) -> None:
    child = LocalProcess(shell("echo out; echo err >&2; exit 3"), on_output=output, deadline=Deadline(10))
    assert not child.pump(lambda: False)
    assert child.at_eof
    assert (child.wait(5), output.out, output.err) == (3, b"out\n", b"err\n")
    child.close()


def test_argv_and_pid(output: Output) -> None:
    child = LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(10))
    assert child.argv == ("sleep", "60")
    assert child.pid in parent_by_pid()
    child.close()
    assert child.pid not in parent_by_pid()


def test_a_child_has_a_session_of_its_own(output: Output) -> None:
    """So that a terminal's Ctrl-C does not reach it."""
    child = LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(10))
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    child.close()


def test_a_condition_ends_the_pumping(output: Output) -> None:
    child = LocalProcess(shell("echo one; read x; echo two"), on_output=output, deadline=Deadline(10))
    assert child.pump(lambda: output.out == b"one\n")
    child.write(b"\n")
    assert child.pump(lambda: output.out == b"one\ntwo\n")
    child.close()


def test_a_program_that_is_not_there(output: Output) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        LocalProcess(["/no/such/program"], on_output=output, deadline=Deadline(1))
    assert open_descriptors() == before


def test_a_pause_is_no_deadline(output: Output) -> None:
    child = LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(20))
    begun = time.monotonic()
    assert not child.pump(lambda: False, timeout=0.05)
    assert 0.04 < time.monotonic() - begun < 5
    assert not child.at_eof
    assert child.wait(0.01) is None
    child.close()


@pytest.mark.parametrize("seconds", [0.0, 0.1])
@pytest.mark.parametrize("command", ["exec sleep 60", "while :; do echo x; done", "trap '' TERM; exec sleep 60"])
def test_a_deadline_bounds_the_pumping_and_ends_nothing(seconds: float, command: str, output: Output) -> None:
    child = LocalProcess(shell(command), on_output=output, deadline=Deadline(seconds))
    begun = time.monotonic()
    with pytest.raises(DeadlinePassedError):
        child.pump(lambda: False)
    assert time.monotonic() - begun < 5
    assert child.pid in parent_by_pid()
    child.close()
    assert child.pid not in parent_by_pid()


def test_what_came_before_the_deadline_is_kept(output: Output) -> None:
    child = LocalProcess(shell("echo early; exec sleep 60"), on_output=output, deadline=Deadline(5))
    child.pump(lambda: bool(output.out))
    child.deadline = Deadline(0.05)
    with pytest.raises(DeadlinePassedError):
        child.pump(lambda: False)
    child.close()
    assert output.out == b"early\n"


def test_a_cancellation_ends_the_pumping_at_once(output: Output, cancel_token: CancelToken) -> None:
    child = LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(30), cancel_token=cancel_token)
    timer = threading.Timer(0.05, cancel_token.cancel)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(CancelledError):
        child.pump(lambda: False)
    assert time.monotonic() - begun < 5
    with pytest.raises(CancelledError):
        child.pump(lambda: False)
    child.close()
    timer.join()


def test_pumping_may_go_on_after_a_cancellation(output: Output, cancel_token: CancelToken) -> None:
    cancel_token.cancel()
    child = LocalProcess(shell("sleep 0.2; echo x"), on_output=output, deadline=Deadline(10), cancel_token=cancel_token)
    with pytest.raises(CancelledError):
        child.pump(lambda: False)
    child.ignore_cancel_token()
    child.ignore_cancel_token()
    child.pump(lambda: False)
    assert (child.wait(5), output.out) == (0, b"x\n")
    child.close()


def test_a_cancellation_serves_several_children(output: Output, cancel_token: CancelToken) -> None:
    children = [
        LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(30), cancel_token=cancel_token)
        for _ in range(3)
    ]
    cancel_token.cancel()
    for child in children:
        with pytest.raises(CancelledError):
            child.pump(lambda: False)
        child.close()


def test_much_output_on_both_streams(output: Output) -> None:
    program = "import os; [(os.write(1, b'o' * 65536), os.write(2, b'e' * 65536)) for _ in range(400)]"
    child = LocalProcess([sys.executable, "-S", "-c", program], on_output=output, deadline=Deadline(60))
    child.pump(lambda: False)
    assert (child.wait(5), len(output.out), len(output.err)) == (0, 400 * 65536, 400 * 65536)
    child.close()


def test_much_input_and_output_at_once(output: Output) -> None:
    """More than the pipes hold, in both directions: who only writes or only reads would wait for ever."""
    data = os.urandom(1 << 20) * 8
    child = LocalProcess(["cat"], on_output=output, deadline=Deadline(60))
    child.write(data)
    child.write(b"and the rest")
    child.close_stdin()
    child.close_stdin()
    child.write(b"too late")
    child.pump(lambda: False)
    assert child.wait(5) == 0
    assert output.out == data + b"and the rest"
    child.close()


def test_a_child_that_reads_slowly(output: Output) -> None:
    program = "import os, time\nn = 0\nwhile d := os.read(0, 1 << 16): n += len(d); time.sleep(0.001)\nprint(n)"
    child = LocalProcess([sys.executable, "-S", "-c", program], on_output=output, deadline=Deadline(60))
    child.write(b"x" * (4 << 20))
    child.close_stdin()
    child.pump(lambda: False)
    assert output.out == b"%d\n" % (4 << 20)
    child.close()


@pytest.mark.parametrize("command", ["exit 0", "exec <&-; sleep 0.2; echo done", "head -c 10 >/dev/null; echo done"])
def test_a_child_that_ignores_its_input(command: str, output: Output) -> None:
    child = LocalProcess(shell(command), on_output=output, deadline=Deadline(30))
    child.write(b"x" * (1 << 20))
    child.write(b"more")
    child.pump(lambda: False)
    assert child.wait(5) == 0
    assert output.out in {b"", b"done\n"}
    child.close()


def test_a_deadline_bounds_the_feeding(output: Output) -> None:
    child = LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(0.1))
    with pytest.raises(DeadlinePassedError):
        child.write(b"x" * (1 << 20))
    child.close()
    assert child.pid not in parent_by_pid()


def test_a_cancellation_ends_the_feeding(output: Output, cancel_token: CancelToken) -> None:
    cancel_token.cancel()
    child = LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(30), cancel_token=cancel_token)
    with pytest.raises(CancelledError):
        child.write(b"x" * (1 << 20))
    child.close_stdin()
    child.close()


def test_without_standard_input(output: Output) -> None:
    child = LocalProcess(["cat"], on_output=output, deadline=Deadline(10), stdin=False)
    child.write(b"nobody reads this")
    child.close_stdin()
    assert not child.pump(lambda: False)
    assert (child.wait(5), output.out) == (0, b"")
    child.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_death_by_signal(number: signal.Signals, output: Output) -> None:
    child = LocalProcess(shell(f"kill -{number.value} $$"), on_output=output, deadline=Deadline(10))
    child.pump(lambda: False)
    assert child.wait(5) == -number
    child.close()


def test_abandoning_does_not_wait_for_who_holds_the_output(output: Output) -> None:
    child = LocalProcess(shell("sleep 60 & echo $!; exit"), on_output=output, deadline=Deadline(30))
    child.pump(lambda: b"\n" in output.out)
    assert child.wait(5) == 0
    begun = time.monotonic()
    child.close()
    assert time.monotonic() - begun < 5
    assert child.at_eof
    os.kill(int(output.out), signal.SIGKILL)


def test_abandoning_gives_everything_back(output: Output, cancel_token: CancelToken) -> None:
    before = open_descriptors()
    for end in (True, False):
        child = LocalProcess(["cat"], on_output=output, deadline=Deadline(10), cancel_token=cancel_token)
        if end:
            child.close_stdin()
            child.pump(lambda: False)
            child.wait(5)
        child.close()
        child.close()
    assert open_descriptors() == before
    assert cancel_token.fileno() >= 0


def test_starts_and_ends_are_logged_at_debug(output: Output, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "lazycluster"):
        child = LocalProcess(["true"], on_output=output, deadline=Deadline(10))
        child.pump(lambda: False)
        child.wait(5)
        child.close()
    assert [record.getMessage() for record in caplog.records] == ["start ['true']", f"ended with 0: pid {child.pid}"]


def test_the_standard_input_of_a_child_is_taken_over(output: Output) -> None:
    child = LocalProcess(shell("cat; echo end"), on_output=output, deadline=Deadline(20))
    inlet = child.detach_stdin()
    assert not child.is_stdin_open
    assert inlet.write(b"x" * 3_000_000)
    assert child.pump(lambda: len(output.out) == 3_000_000)
    inlet.close()
    child.pump(lambda: False)
    assert output.out[3_000_000:] == b"end\n"
    assert child.wait(10) == 0
    child.close()
