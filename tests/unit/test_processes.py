"""Local processes: their streams, their deadlines, their ends."""

from __future__ import annotations

import functools
import gc
import logging
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import attrs
import pytest

from lazycluster import _processes, _waiting
from lazycluster._processes import LocalProcess, PipeWriter, run_and_capture, run_daemonizing
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError
from lazycluster.results import Stream
from lazycluster.testing._process_guard import parent_by_pid, wait_until
from tests.unit.keyboard_interrupt import library_thread_names

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
def cancellation() -> Iterator[CancelToken]:
    made = CancelToken()
    yield made
    made.close()


def shell(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


def open_descriptors() -> int:
    gc.collect()
    return sum(1 for _ in Path("/dev/fd").iterdir())


# Child --------------------------------------------------------------------------------------------------------------


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


def test_a_cancellation_ends_the_pumping_at_once(output: Output, cancellation: CancelToken) -> None:
    child = LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(30), cancel_token=cancellation)
    timer = threading.Timer(0.05, cancellation.cancel)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(CancelledError):
        child.pump(lambda: False)
    assert time.monotonic() - begun < 5
    with pytest.raises(CancelledError):
        child.pump(lambda: False)
    child.close()
    timer.join()


def test_pumping_may_go_on_after_a_cancellation(output: Output, cancellation: CancelToken) -> None:
    cancellation.cancel()
    child = LocalProcess(shell("sleep 0.2; echo x"), on_output=output, deadline=Deadline(10), cancel_token=cancellation)
    with pytest.raises(CancelledError):
        child.pump(lambda: False)
    child.ignore_cancel_token()
    child.ignore_cancel_token()
    child.pump(lambda: False)
    assert (child.wait(5), output.out) == (0, b"x\n")
    child.close()


def test_a_cancellation_serves_several_children(output: Output, cancellation: CancelToken) -> None:
    children = [
        LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(30), cancel_token=cancellation)
        for _ in range(3)
    ]
    cancellation.cancel()
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


def test_a_cancellation_ends_the_feeding(output: Output, cancellation: CancelToken) -> None:
    cancellation.cancel()
    child = LocalProcess(["sleep", "60"], on_output=output, deadline=Deadline(30), cancel_token=cancellation)
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


def test_abandoning_gives_everything_back(output: Output, cancellation: CancelToken) -> None:
    before = open_descriptors()
    for end in (True, False):
        child = LocalProcess(["cat"], on_output=output, deadline=Deadline(10), cancel_token=cancellation)
        if end:
            child.close_stdin()
            child.pump(lambda: False)
            child.wait(5)
        child.close()
        child.close()
    assert open_descriptors() == before
    assert cancellation.fileno() >= 0


def test_starts_and_ends_are_logged_at_debug(output: Output, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "lazycluster"):
        child = LocalProcess(["true"], on_output=output, deadline=Deadline(10))
        child.pump(lambda: False)
        child.wait(5)
        child.close()
    assert [record.getMessage() for record in caplog.records] == ["start ['true']", f"ended with 0: pid {child.pid}"]


# Programs that leave a daemon behind ----------------------------------------------------------------------------------


def daemon(pid_file: Path) -> list[str]:
    """Return a program that ends and leaves a process behind, which keeps all that it inherited open."""
    return shell(f"(exec sleep 60) & echo $! > {shlex.quote(str(pid_file))}; echo said >&2; exit 4")


def test_a_daemon_does_not_keep_us_waiting(tmp_path: Path) -> None:
    pid_file, said = tmp_path / "pid", tmp_path / "said"
    begun = time.monotonic()
    ended = run_daemonizing(daemon(pid_file), said, timeout=30)
    assert time.monotonic() - begun < 10
    assert (ended.exit_code, ended.text) == (4, "said\n")
    pid = int(pid_file.read_text())
    assert pid in parent_by_pid()
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: pid not in parent_by_pid(), 5)


def test_a_program_that_does_not_detach_is_killed(tmp_path: Path) -> None:
    begun = time.monotonic()
    ended = run_daemonizing(shell("echo $$ >&2; exec sleep 60"), tmp_path / "said", timeout=0.3)
    assert 0.2 < time.monotonic() - begun < 10
    assert ended.exit_code is None
    assert int(ended.text) not in parent_by_pid()


def test_a_program_that_is_killed_takes_along_what_it_started(tmp_path: Path) -> None:
    """As ssh its ProxyCommand."""
    ended = run_daemonizing(shell("sleep 60 & echo $! >&2; wait"), tmp_path / "said", timeout=0.3)
    assert ended.exit_code is None
    assert wait_until(lambda: int(ended.text) not in parent_by_pid(), 5)


@pytest.mark.parametrize("before", [True, False])
def test_a_program_that_is_to_be_stopped_is_killed(tmp_path: Path, before: bool) -> None:
    stopping, said = threading.Event(), tmp_path / "said"
    timer = threading.Timer(0 if before else 0.2, stopping.set)
    timer.start()
    if before:
        timer.join()
    begun = time.monotonic()
    ended = run_daemonizing(["sleep", "60"], said, timeout=60, cancel_event=stopping)
    assert time.monotonic() - begun < 10
    assert ended.exit_code is None
    timer.join()


def test_what_nobody_stops_ends_by_itself_or_at_its_time(tmp_path: Path) -> None:
    stopping = threading.Event()
    ended = run_daemonizing(
        shell("echo said >&2; sleep 0.3; exit 3"), tmp_path / "a", timeout=30, cancel_event=stopping
    )
    assert (ended.exit_code, ended.text) == (3, "said\n")
    begun = time.monotonic()
    assert run_daemonizing(["sleep", "60"], tmp_path / "b", timeout=0.3, cancel_event=stopping).exit_code is None
    assert 0.2 < time.monotonic() - begun < 10


class StandIn:
    """What a test of a user puts in the place of a process: its number belongs to somebody else."""

    def __init__(self) -> None:
        self.pid = os.getppid()
        self.returncode: int | None = None
        self.killed = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        self.killed.wait(timeout)
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9
        self.killed.set()


def test_a_number_that_is_not_our_child_is_not_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    stand_in = StandIn()
    monkeypatch.setattr(_processes, "_popen", lambda *_, **__: stand_in)
    monkeypatch.setattr(os, "killpg", lambda group, _number: groups.append(group))
    ended = run_daemonizing(["ssh"], tmp_path / "said", timeout=0.05)
    assert (ended.exit_code, stand_in.killed.is_set(), groups) == (None, True, [])


def test_a_detaching_program_has_no_input_and_its_output_is_dropped(tmp_path: Path) -> None:
    ended = run_daemonizing(shell("cat; echo dropped; printf 'a\\377' >&2"), tmp_path / "said", timeout=10)
    assert (ended.exit_code, ended.text) == (0, "a\ufffd")


def test_a_detaching_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_daemonizing(["/no/such/program"], tmp_path / "said", timeout=1)


def test_many_threads_may_run_programs(tmp_path: Path) -> None:
    statuses: list[int | None] = []

    def work(number: int) -> None:
        statuses.append(run_daemonizing(shell(f"exit {number}"), tmp_path / str(number), timeout=30).exit_code)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(status or 0 for status in statuses) == list(range(20))


# Programs that print little -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status", "text"),
    [("echo out; echo err >&2", 0, "out\n"), ("printf 'a\\377'; exit 2", 2, "a\ufffd"), ("kill -9 $$", -9, "")],
)
def test_run_to_end(command: str, status: int, text: str) -> None:
    ended = run_and_capture(shell(command), timeout=10)
    assert (ended.exit_code, ended.text) == (status, text)


def test_run_to_end_with_what_went_wrong() -> None:
    assert run_and_capture(shell("echo err >&2"), timeout=10, include_stderr=True).text == "err\n"


def test_run_to_end_leaves_nothing_that_the_program_has_started() -> None:
    ended = run_and_capture(shell("sleep 60 & echo $!; wait"), timeout=0.5)

    assert wait_until(lambda: int(ended.text) not in parent_by_pid(), timeout=5)


@pytest.mark.parametrize("command", ["echo $$; exec sleep 60", "echo $$; exec >&- 2>&-; exec sleep 60"])
def test_run_to_end_is_bounded(command: str) -> None:
    begun = time.monotonic()
    ended = run_and_capture(shell(command), timeout=0.3)
    assert time.monotonic() - begun < 10
    assert ended.exit_code is None
    assert int(ended.text) not in parent_by_pid()


# Ctrl-C in the moment of a start -------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["begun", "over", "failed"])
@pytest.mark.parametrize("way", ["to the end", "detaching"])
def test_ctrl_c_while_a_program_starts_leaves_no_process(
    way: str, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is known who waits for it: as soon as it has begun, or when Popen() is about to return."""
    started: list[subprocess.Popen[bytes]] = []
    popen, main = subprocess.Popen, threading.main_thread().ident
    assert main is not None

    def start(*arguments: Any, **keywords: Any) -> subprocess.Popen[bytes]:
        if moment != "failed":
            started.append(popen(*arguments, **keywords))
        signal.pthread_kill(main, signal.SIGINT)
        if moment == "failed":
            raise OSError("it cannot be started")
        if moment == "begun":
            taken_back.wait(10)
        return started[0]

    taken_back = threading.Event()
    abandon = _waiting._UninterruptibleThread.cancel

    def note(shelter: _waiting._UninterruptibleThread[Any]) -> None:
        abandon(shelter)
        taken_back.set()

    monkeypatch.setattr(_waiting._UninterruptibleThread, "cancel", note)
    monkeypatch.setattr(subprocess, "Popen", start)
    run = run_and_capture if way == "to the end" else functools.partial(run_daemonizing, stderr_path=tmp_path / "said")
    with pytest.raises(KeyboardInterrupt):
        run(("sleep", "1000"), timeout=20)
    assert len(started) == (moment != "failed")
    killed = [-signal.SIGKILL] * len(started)
    assert wait_until(lambda: [process.returncode for process in started] == killed, timeout=10)
    assert wait_until(lambda: not library_thread_names("lazycluster-start"), timeout=10)


# An inlet -----------------------------------------------------------------------------------------------------------


@attrs.define
class Pipe:
    """An inlet under test, and the end that is read."""

    inlet: PipeWriter
    reading: IO[bytes]

    def read(self, size: int) -> bytes:
        """Read exactly so many bytes."""
        return self.reading.read(size)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    made = Pipe(PipeWriter(writing), os.fdopen(reading, "rb"))
    yield made
    made.inlet.close()
    made.reading.close()


def flushers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lazycluster-inlet"]


def test_what_fits_is_written_at_once_and_without_a_thread(pipe: Pipe) -> None:
    before = len(flushers())
    assert [pipe.inlet.write(data) for data in (b"abc", b"", b"x" * select.PIPE_BUF)] == [True] * 3
    assert pipe.read(3 + select.PIPE_BUF) == b"abc" + b"x" * select.PIPE_BUF
    assert len(flushers()) == before
    pipe.inlet.close()
    assert pipe.reading.read() == b""


@pytest.mark.parametrize("size", [select.PIPE_BUF + 1, 1_000_000, 20_000_000])
def test_what_does_not_fit_waits_for_nobody_and_loses_nothing(pipe: Pipe, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    begun = time.monotonic()
    assert pipe.inlet.write(data)
    assert pipe.inlet.write(b"behind it")
    assert time.monotonic() - begun < 5
    assert pipe.read(len(data)) == data
    assert pipe.read(9) == b"behind it"


def test_writes_while_others_wait_keep_their_order(pipe: Pipe) -> None:
    pieces = [b"%d," % number * (number % 3000) for number in range(500)]
    for piece in pieces:
        assert pipe.inlet.write(piece)
    everything = b"".join(pieces)
    assert pipe.read(len(everything)) == everything
    assert pipe.inlet.write(b"one more")  # which the thread has to notice
    assert pipe.read(8) == b"one more"


def test_many_threads_may_write(pipe: Pipe) -> None:
    def write(letter: bytes) -> None:
        for number in range(100):
            pipe.inlet.write(b"%b%d\n" % (letter * (number * 97 % 9000), number))

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    lines = [pipe.reading.readline() for _ in range(400)]
    for thread in threads:
        thread.join(10)
    assert sorted(lines) == sorted(
        b"%b%d\n" % (letter * (number * 97 % 9000), number)
        for letter in (b"a", b"b", b"c", b"d")
        for number in range(100)
    )


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_nobody_reads_any_more(pipe: Pipe, size: int) -> None:
    pipe.reading.close()
    assert wait_until(lambda: not pipe.inlet.write(bytes(size)), 10)
    assert not pipe.inlet.write(b"x")
    assert wait_until(lambda: not flushers(), 10)


def test_a_closed_inlet_takes_nothing_and_ends_its_thread(pipe: Pipe) -> None:
    pipe.inlet.write(bytes(1_000_000))
    pipe.inlet.close()
    pipe.inlet.close()
    assert not pipe.inlet.write(b"x")
    assert len(pipe.reading.read()) < 1_000_000  # what waited is lost
    assert wait_until(lambda: not flushers(), 10)


@pytest.mark.parametrize("waiting", [0, 1_000_000])
def test_a_fork_neither_writes_nor_keeps_it_open(pipe: Pipe, waiting: int) -> None:
    """Though a thread that is not there may hold its lock."""
    pipe.inlet.write(bytes(waiting))
    with pipe.inlet._changed:
        child = os.fork()
    if child == 0:
        alive = pipe.inlet._descriptor < 0
        select.select([], [], [], 60 if alive else 0)
        os._exit(1)
    try:
        pipe.read(waiting)
        pipe.inlet.close()
        assert pipe.reading.read() == b""  # its end comes, though the child lives
        assert os.waitpid(child, os.WNOHANG)[0] == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


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
