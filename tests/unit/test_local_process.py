"""Local processes: their streams, deadlines and ends."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazycluster._processes.local_process import LocalProcess
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError
from lazycluster.results import Stream
from tests.processes import is_alive

OUT, ERR = Stream.STDOUT, Stream.STDERR


class Output:
    """The output of a process."""

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
    token = CancelToken()
    yield token
    token.close()


def shell(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


def count_descriptors() -> int:
    gc.collect()
    return sum(1 for _ in Path("/dev/fd").iterdir())


def test_pump_keeps_stdout_and_stderr_apart(output: Output) -> None:
    child = LocalProcess(shell("echo out; echo err >&2; exit 3"), on_output=output, deadline=Deadline(60))
    assert not child.pump(lambda: False)
    assert child.at_eof
    assert (child.wait(30), output.out, output.err) == (3, b"out\n", b"err\n")
    child.close()


def test_pump_reads_no_output_that_is_not_accepted(output: Output, cancel_token: CancelToken) -> None:
    accepts: list[bool] = []
    child = LocalProcess(
        shell("echo first; read -r line; echo $line; read -r line"),
        on_output=output,
        accepts_output=lambda: bool(accepts) or not output.out,
        deadline=Deadline(60),
        cancel_token=cancel_token,
    )
    assert child.pump(lambda: output.out == b"first\n")
    child.write(b"second\n")
    assert not child.pump(lambda: output.out != b"first\n", timeout=0.1)

    def accept() -> None:
        accepts.append(True)
        cancel_token.wake()

    thread = threading.Thread(target=accept)
    thread.start()
    assert child.pump(lambda: output.out == b"first\nsecond\n")
    thread.join()
    child.close()


def test_pump_reads_rest_of_ended_process(output: Output) -> None:
    child = LocalProcess(
        shell("echo out; echo err >&2"), on_output=output, accepts_output=lambda: False, deadline=Deadline(60)
    )
    assert child.wait(30) == 0
    assert not child.pump(lambda: False)
    assert (output.out, output.err) == (b"out\n", b"err\n")
    child.close()


def test_argv_and_pid_are_those_of_process(output: Output) -> None:
    child = LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(60))
    assert child.argv == ("sleep", "60")
    assert is_alive(child.pid)
    child.close()
    assert not is_alive(child.pid)


def test_process_has_its_own_session(output: Output) -> None:
    """Ctrl-C in a terminal must not reach it."""
    child = LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(60))
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    child.close()


def test_pump_ends_when_predicate_holds(output: Output) -> None:
    child = LocalProcess(shell("echo one; read x; echo two"), on_output=output, deadline=Deadline(60))
    assert child.pump(lambda: output.out == b"one\n")
    child.write(b"\n")
    assert child.pump(lambda: output.out == b"one\ntwo\n")
    child.close()


def test_start_missing_program_raises_and_leaks_nothing(output: Output) -> None:
    before = count_descriptors()
    with pytest.raises(FileNotFoundError):
        LocalProcess(["/no/such/program"], on_output=output, deadline=Deadline(1))
    assert count_descriptors() == before


def test_pump_timeout_is_no_deadline(output: Output) -> None:
    child = LocalProcess(["sleep", "1000"], on_output=output, deadline=Deadline(1000))
    assert not child.pump(lambda: False, timeout=0.05)
    assert not child.at_eof
    assert child.wait(0.01) is None
    child.close()


@pytest.mark.parametrize("seconds", [0.0, 0.1])
@pytest.mark.parametrize("command", ["exec sleep 60", "while :; do echo x; done", "trap '' TERM; exec sleep 60"])
def test_pump_after_deadline_raises_and_ends_nothing(seconds: float, command: str, output: Output) -> None:
    child = LocalProcess(shell(command), on_output=output, deadline=Deadline(seconds))
    with pytest.raises(DeadlinePassedError):
        child.pump(lambda: False)
    assert is_alive(child.pid)
    child.close()
    assert not is_alive(child.pid)


def test_pump_deadline_keeps_earlier_output(output: Output) -> None:
    child = LocalProcess(shell("echo early; exec sleep 60"), on_output=output, deadline=Deadline(60))
    child.pump(lambda: bool(output.out))
    child.deadline = Deadline(0.05)
    with pytest.raises(DeadlinePassedError):
        child.pump(lambda: False)
    child.close()
    assert output.out == b"early\n"


def test_pump_cancelled_raises(output: Output, cancel_token: CancelToken) -> None:
    child = LocalProcess(["sleep", "1000"], on_output=output, deadline=Deadline(1000), cancel_token=cancel_token)
    timer = threading.Timer(0.05, cancel_token.cancel)
    timer.start()
    with pytest.raises(CancelledError):
        child.pump(lambda: False)
    with pytest.raises(CancelledError):
        child.pump(lambda: False)
    child.close()
    timer.join()


def test_pump_after_ignore_cancel_token_goes_on(output: Output, cancel_token: CancelToken) -> None:
    cancel_token.cancel()
    child = LocalProcess(shell("sleep 0.2; echo x"), on_output=output, deadline=Deadline(60), cancel_token=cancel_token)
    with pytest.raises(CancelledError):
        child.pump(lambda: False)
    child.ignore_cancel_token()
    child.ignore_cancel_token()
    child.pump(lambda: False)
    assert (child.wait(30), output.out) == (0, b"x\n")
    child.close()


def test_cancel_token_serves_several_processes(output: Output, cancel_token: CancelToken) -> None:
    children = [
        LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(30), cancel_token=cancel_token)
        for _ in range(3)
    ]
    cancel_token.cancel()
    for child in children:
        with pytest.raises(CancelledError):
            child.pump(lambda: False)
        child.close()


def test_pump_reads_much_output_of_both_streams(output: Output) -> None:
    program = "import os; [(os.write(1, b'o' * 65536), os.write(2, b'e' * 65536)) for _ in range(400)]"
    child = LocalProcess([sys.executable, "-S", "-c", program], on_output=output, deadline=Deadline(60))
    child.pump(lambda: False)
    assert (child.wait(30), len(output.out), len(output.err)) == (0, 400 * 65536, 400 * 65536)
    child.close()


def test_write_and_pump_much_data_in_both_directions(output: Output) -> None:
    """Both pipes are full at times, so a process that only writes or only reads would wait for ever."""
    data = os.urandom(1 << 20) * 8
    child = LocalProcess(["cat"], on_output=output, deadline=Deadline(60))
    child.write(data)
    child.write(b"and the rest")
    child.close_stdin()
    child.close_stdin()
    child.write(b"too late")
    child.pump(lambda: False)
    assert child.wait(30) == 0
    assert output.out == data + b"and the rest"
    child.close()


def test_write_to_slow_reader_is_complete(output: Output) -> None:
    program = "import os, time\nn = 0\nwhile d := os.read(0, 1 << 16): n += len(d); time.sleep(0.001)\nprint(n)"
    child = LocalProcess([sys.executable, "-S", "-c", program], on_output=output, deadline=Deadline(60))
    child.write(b"x" * (4 << 20))
    child.close_stdin()
    child.pump(lambda: False)
    assert output.out == b"%d\n" % (4 << 20)
    child.close()


@pytest.mark.parametrize("command", ["exit 0", "exec <&-; sleep 0.2; echo done", "head -c 10 >/dev/null; echo done"])
def test_write_to_program_that_ignores_input_is_no_error(command: str, output: Output) -> None:
    child = LocalProcess(shell(command), on_output=output, deadline=Deadline(30))
    child.write(b"x" * (1 << 20))
    child.write(b"more")
    child.pump(lambda: False)
    assert child.wait(30) == 0
    assert output.out in {b"", b"done\n"}
    child.close()


def test_write_after_deadline_raises(output: Output) -> None:
    child = LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(0.1))
    with pytest.raises(DeadlinePassedError):
        child.write(b"x" * (1 << 20))
    child.close()
    assert not is_alive(child.pid)


def test_write_cancelled_raises(output: Output, cancel_token: CancelToken) -> None:
    cancel_token.cancel()
    child = LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(30), cancel_token=cancel_token)
    with pytest.raises(CancelledError):
        child.write(b"x" * (1 << 20))
    child.close_stdin()
    child.close()


def test_process_without_stdin_ignores_write(output: Output) -> None:
    child = LocalProcess(["cat"], on_output=output, deadline=Deadline(60), stdin=False)
    child.write(b"no process reads this")
    child.close_stdin()
    assert not child.pump(lambda: False)
    assert (child.wait(30), output.out) == (0, b"")
    child.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_wait_killed_process_returns_negative_signal(number: signal.Signals, output: Output) -> None:
    child = LocalProcess(shell(f"kill -{number.value} $$"), on_output=output, deadline=Deadline(60))
    child.pump(lambda: False)
    assert child.wait(30) == -number
    child.close()


def test_close_does_not_wait_for_background_process(output: Output) -> None:
    child = LocalProcess(shell("sleep 1000 & echo $!; exit"), on_output=output, deadline=Deadline(60))
    child.pump(lambda: b"\n" in output.out)
    assert child.wait(30) == 0
    child.close()
    assert child.at_eof
    assert is_alive(int(output.out))
    os.kill(int(output.out), signal.SIGKILL)


def test_close_leaks_no_descriptor(output: Output, cancel_token: CancelToken) -> None:
    before = count_descriptors()
    for end in (True, False):
        child = LocalProcess(["cat"], on_output=output, deadline=Deadline(60), cancel_token=cancel_token)
        if end:
            child.close_stdin()
            child.pump(lambda: False)
            child.wait(30)
        child.close()
        child.close()
    assert count_descriptors() == before
    assert cancel_token.fileno() >= 0


def test_start_and_end_are_logged_at_debug(output: Output, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "lazycluster"):
        child = LocalProcess(["true"], on_output=output, deadline=Deadline(60))
        child.pump(lambda: False)
        child.wait(30)
        child.close()
    assert [record.getMessage() for record in caplog.records] == ["start ['true']", f"ended with 0: pid {child.pid}"]


def test_detach_stdin_returns_writer(output: Output) -> None:
    child = LocalProcess(shell("cat; echo end"), on_output=output, deadline=Deadline(20))
    writer = child.detach_stdin()
    assert not child.is_stdin_open
    assert writer.write(b"x" * 3_000_000)
    assert child.pump(lambda: len(output.out) == 3_000_000)
    writer.close()
    child.pump(lambda: False)
    assert output.out[3_000_000:] == b"end\n"
    assert child.wait(10) == 0
    child.close()
