"""Local programs that run to their end: those that leave a daemon running, and those that print little."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from lazycluster._processes import run
from lazycluster._processes.run import run_and_capture, run_daemonizing
from tests.keyboard_interrupt import library_threads
from tests.processes import is_alive
from tests.waiting import wait_until


def shell(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


# Programs that leave a daemon running ---------------------------------------------------------------------------------


def daemon(pid_file: Path) -> list[str]:
    """Return a program that ends, and leaves a process with all its inherited descriptors."""
    return shell(f"(exec sleep 60) & echo $! > {shlex.quote(str(pid_file))}; echo printed >&2; exit 4")


def test_run_daemonizing_does_not_wait_for_daemon(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    completed = run_daemonizing(daemon(pid_file), tmp_path / "stderr", timeout=30)
    assert (completed.exit_code, completed.stderr) == (4, "printed\n")
    pid = int(pid_file.read_text())
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not is_alive(pid), 10)


def test_run_daemonizing_timeout_kills_program(tmp_path: Path) -> None:
    completed = run_daemonizing(shell("echo $$ >&2; exec sleep 60"), tmp_path / "stderr", timeout=1)
    assert completed.exit_code is None
    assert not is_alive(int(completed.stderr))


def test_run_daemonizing_timeout_kills_children_too(tmp_path: Path) -> None:
    """An example is the ProxyCommand of ssh."""
    completed = run_daemonizing(shell("sleep 60 & echo $! >&2; wait"), tmp_path / "stderr", timeout=1)
    assert completed.exit_code is None
    assert wait_until(lambda: not is_alive(int(completed.stderr)), 10)


@pytest.mark.parametrize("before", [True, False], ids=["set before", "set during run"])
def test_run_daemonizing_cancel_event_kills_program(tmp_path: Path, before: bool) -> None:
    cancel_event = threading.Event()
    timer = threading.Timer(0 if before else 0.2, cancel_event.set)
    timer.start()
    if before:
        timer.join()
    completed = run_daemonizing(["sleep", "1000"], tmp_path / "stderr", timeout=1000, cancel_event=cancel_event)
    assert completed.exit_code is None
    timer.join()


def test_run_daemonizing_unused_cancel_event_changes_nothing(tmp_path: Path) -> None:
    unused = threading.Event()
    program = shell("echo printed >&2; sleep 0.3; exit 3")
    completed = run_daemonizing(program, tmp_path / "a", timeout=30, cancel_event=unused)
    assert (completed.exit_code, completed.stderr) == (3, "printed\n")
    assert run_daemonizing(["sleep", "60"], tmp_path / "b", timeout=0.3, cancel_event=unused).exit_code is None


class FakeProcess:
    """A fake of a mocked `subprocess`, with the pid of a process that is not a child."""

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


def test_run_daemonizing_does_not_kill_foreign_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    fake = FakeProcess()
    monkeypatch.setattr(run, "start_process", lambda *_, **__: fake)
    monkeypatch.setattr(os, "killpg", lambda group, _number: groups.append(group))
    completed = run_daemonizing(["ssh"], tmp_path / "stderr", timeout=0.05)
    assert (completed.exit_code, fake.killed.is_set(), groups) == (None, True, [])


def test_run_daemonizing_has_no_input_and_drops_output(tmp_path: Path) -> None:
    completed = run_daemonizing(shell("cat; echo dropped; printf 'a\\377' >&2"), tmp_path / "stderr", timeout=30)
    assert (completed.exit_code, completed.stderr) == (0, "a\ufffd")


def test_run_daemonizing_missing_program_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_daemonizing(["/no/such/program"], tmp_path / "stderr", timeout=1)


def test_run_daemonizing_from_many_threads(tmp_path: Path) -> None:
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
def test_run_and_capture_returns_status_and_output(command: str, status: int, stdout: str, stderr: str) -> None:
    completed = run_and_capture(shell(command), timeout=30)
    assert (completed.exit_code, completed.stdout, completed.stderr) == (status, stdout, stderr)


def test_run_and_capture_timeout_kills_children_too() -> None:
    completed = run_and_capture(shell("sleep 60 & echo $!; wait"), timeout=1)

    assert wait_until(lambda: not is_alive(int(completed.stdout)), 10)


@pytest.mark.parametrize("command", ["echo $$; exec sleep 60", "echo $$; exec >&- 2>&-; exec sleep 60"])
def test_run_and_capture_timeout_kills_program(command: str) -> None:
    completed = run_and_capture(shell(command), timeout=1)
    assert completed.exit_code is None
    assert not is_alive(int(completed.stdout))


# Ctrl-C during a start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after", "failed"])
@pytest.mark.parametrize("function", ["run_and_capture", "run_daemonizing"])
def test_ctrl_c_during_start_leaves_no_process(
    function: str, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes before the process starts, or when Popen() is about to return, or Popen() fails after it."""
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
        run_and_capture
        if function == "run_and_capture"
        else functools.partial(run_daemonizing, stderr_path=tmp_path / "stderr")
    )
    others = library_threads()
    with pytest.raises(KeyboardInterrupt):
        run_program(("sleep", "1000"), timeout=20)
    assert len(started) == (moment != "failed")
    killed = [-signal.SIGKILL] * len(started)
    assert wait_until(lambda: [process.returncode for process in started] == killed, timeout=10)
    assert wait_until(lambda: library_threads() <= others, timeout=10)
