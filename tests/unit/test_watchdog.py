"""The process that watches over a function's process, which is a child of the test."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from lazycluster._remote import watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lifeline() -> Iterator[int]:
    """Replace standard input by a pipe, and undo all that the watchdog does to this process."""
    numbers = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    saved = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    yield writing
    os.dup2(saved, 0)
    os.close(saved)
    wakeup_descriptor = signal.set_wakeup_fd(-1)
    if wakeup_descriptor >= 0:
        os.close(wakeup_descriptor)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)


def start_worker(source: str) -> int:
    worker = watchdog.fork_worker()
    if worker == 0:
        os.execv(sys.executable, [sys.executable, "-c", source])
    return worker


@pytest.mark.parametrize(
    ("source", "description"),
    [
        ("import os; os._exit(3)", "ended with exit status 3 before the function returned (os._exit?)"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by signal 9 (SIGKILL)"),
    ],
)
def test_watch_worker_describes_end_of_worker(lifeline: int, source: str, description: str) -> None:
    assert watchdog.watch_worker(start_worker(source), 5) == description
    os.close(lifeline)


def test_watch_worker_ignores_input_and_other_children(lifeline: int) -> None:
    os.write(lifeline, b"more")
    source = "import os, sys, time\nif os.fork() == 0: os._exit(0)\nos.wait()\nos._exit(7)"
    assert "status 7" in watchdog.watch_worker(start_worker(source), 5)
    os.close(lifeline)


SLEEP = "import time; time.sleep(60)"
IGNORE_SIGTERM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
CLOSED = "was ended because the local process closed the connection"


@pytest.mark.parametrize(("source", "grace"), [(SLEEP, 1e9), (IGNORE_SIGTERM, 0.3)], ids=["SIGTERM", "SIGKILL"])
def test_watch_worker_end_of_input_ends_worker(lifeline: int, source: str, grace: float) -> None:
    worker = start_worker(source)
    os.close(lifeline)
    assert watchdog.watch_worker(worker, grace) == CLOSED
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_watch_worker_signal_ends_worker(lifeline: int) -> None:
    watcher = watchdog.Watchdog(start_worker(SLEEP), 1e9)
    os.kill(os.getpid(), signal.SIGTERM)
    assert watcher.wait() == CLOSED
    os.close(lifeline)


def test_watch_worker_broken_input_ends_worker(lifeline: int, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = watchdog.Watchdog(start_worker(SLEEP), 1e9)
    os.close(lifeline)
    read = os.read

    def broken(descriptor: int, length: int) -> bytes:
        if descriptor == 0:
            raise ConnectionResetError
        return read(descriptor, length)

    monkeypatch.setattr(os, "read", broken)
    assert watcher.wait() == CLOSED


def test_watch_worker_gives_up_on_unkillable_process(lifeline: int, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = start_worker(SLEEP)
    watcher = watchdog.Watchdog(worker, 0.1)
    os.close(lifeline)

    def refuse(_pid: int, _number: int) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refuse)
        assert watcher.wait() == CLOSED
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
