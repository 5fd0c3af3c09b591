"""Local programs that are run to their end: those that leave a daemon behind, and those that print little."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lazycluster._processes import run
from lazycluster._processes.run import run_and_capture, run_daemonizing
from tests.keyboard_interrupt import library_thread_names
from tests.processes import parent_by_pid
from tests.waiting import wait_until


def shell(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


# Programs that leave a daemon behind ----------------------------------------------------------------------------------


def daemon(pid_file: Path) -> list[str]:
    """Return a program that ends and leaves a process behind, which keeps all that it inherited open."""
    return shell(f"(exec sleep 60) & echo $! > {shlex.quote(str(pid_file))}; echo said >&2; exit 4")


def test_a_daemon_does_not_keep_us_waiting(tmp_path: Path) -> None:
    pid_file, said = tmp_path / "pid", tmp_path / "said"
    begun = time.monotonic()
    ended = run_daemonizing(daemon(pid_file), said, timeout=30)
    assert time.monotonic() - begun < 10
    assert (ended.exit_code, ended.stderr) == (4, "said\n")
    pid = int(pid_file.read_text())
    assert pid in parent_by_pid()
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: pid not in parent_by_pid(), 5)


def test_a_program_that_does_not_detach_is_killed(tmp_path: Path) -> None:
    begun = time.monotonic()
    ended = run_daemonizing(shell("echo $$ >&2; exec sleep 60"), tmp_path / "said", timeout=0.3)
    assert 0.2 < time.monotonic() - begun < 10
    assert ended.exit_code is None
    assert int(ended.stderr) not in parent_by_pid()


def test_a_program_that_is_killed_takes_along_what_it_started(tmp_path: Path) -> None:
    """As ssh its ProxyCommand."""
    ended = run_daemonizing(shell("sleep 60 & echo $! >&2; wait"), tmp_path / "said", timeout=0.3)
    assert ended.exit_code is None
    assert wait_until(lambda: int(ended.stderr) not in parent_by_pid(), 5)


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
    assert (ended.exit_code, ended.stderr) == (3, "said\n")
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
    fake = StandIn()
    monkeypatch.setattr(run, "start_process", lambda *_, **__: fake)
    monkeypatch.setattr(os, "killpg", lambda group, _number: groups.append(group))
    ended = run_daemonizing(["ssh"], tmp_path / "said", timeout=0.05)
    assert (ended.exit_code, fake.killed.is_set(), groups) == (None, True, [])


def test_a_detaching_program_has_no_input_and_its_output_is_dropped(tmp_path: Path) -> None:
    ended = run_daemonizing(shell("cat; echo dropped; printf 'a\\377' >&2"), tmp_path / "said", timeout=10)
    assert (ended.exit_code, ended.stderr) == (0, "a\ufffd")


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
    ("command", "status", "stdout", "stderr"),
    [
        ("echo out; echo err >&2", 0, "out\n", "err\n"),
        ("printf 'a\\377'; exit 2", 2, "a\ufffd", ""),
        ("kill -9 $$", -9, "", ""),
    ],
)
def test_run_to_end(command: str, status: int, stdout: str, stderr: str) -> None:
    ended = run_and_capture(shell(command), timeout=10)
    assert (ended.exit_code, ended.stdout, ended.stderr) == (status, stdout, stderr)


def test_run_to_end_leaves_nothing_that_the_program_has_started() -> None:
    ended = run_and_capture(shell("sleep 60 & echo $!; wait"), timeout=0.5)

    assert wait_until(lambda: int(ended.stdout) not in parent_by_pid(), timeout=5)


@pytest.mark.parametrize("command", ["echo $$; exec sleep 60", "echo $$; exec >&- 2>&-; exec sleep 60"])
def test_run_to_end_is_bounded(command: str) -> None:
    begun = time.monotonic()
    ended = run_and_capture(shell(command), timeout=0.3)
    assert time.monotonic() - begun < 10
    assert ended.exit_code is None
    assert int(ended.stdout) not in parent_by_pid()


# Ctrl-C in the moment of a start -------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after", "failed"])
@pytest.mark.parametrize("way", ["to the end", "detaching"])
def test_ctrl_c_while_a_program_starts_leaves_no_process(
    way: str, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes before the process begins, or when Popen() is about to return, or Popen() fails after it."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **keywords: Any) -> subprocess.Popen[bytes]:
        if moment == "after":
            started.append(popen(*arguments, **keywords))
        signal.raise_signal(signal.SIGINT)
        if moment == "failed":
            raise OSError("it cannot be started")
        if moment == "before":
            started.append(popen(*arguments, **keywords))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    run_program = (
        run_and_capture if way == "to the end" else functools.partial(run_daemonizing, stderr_path=tmp_path / "said")
    )
    with pytest.raises(KeyboardInterrupt):
        run_program(("sleep", "1000"), timeout=20)
    assert len(started) == (moment != "failed")
    killed = [-signal.SIGKILL] * len(started)
    assert wait_until(lambda: [process.returncode for process in started] == killed, timeout=10)
    assert wait_until(lambda: not library_thread_names(), timeout=10)
