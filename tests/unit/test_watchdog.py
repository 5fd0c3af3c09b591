"""The process that watches over a function's process, here with a child of the test's own."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from lazycluster._remote import process_tree, watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lifeline() -> Iterator[int]:
    """Replace standard input by a pipe, and undo all that the watch does to this process."""
    numbers = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    saved = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    yield writing
    os.dup2(saved, 0)
    os.close(saved)
    bell = signal.set_wakeup_fd(-1)
    if bell >= 0:
        os.close(bell)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)


def start(source: str) -> int:
    worker = watchdog.fork_worker()
    if worker == 0:
        os.execv(sys.executable, [sys.executable, "-c", source])
    return worker


@pytest.mark.parametrize(
    ("source", "how"),
    [
        ("import os; os._exit(3)", "ended with exit status 3 before the function returned (os._exit?)"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by signal 9 (SIGKILL)"),
    ],
)
def test_end_of_the_worker(lifeline: int, source: str, how: str) -> None:
    assert watchdog.watch_worker(start(source), 5) == how
    os.close(lifeline)


def test_more_input_and_other_children_do_not_end_the_worker(lifeline: int) -> None:
    os.write(lifeline, b"more")
    source = "import os, sys, time\nif os.fork() == 0: os._exit(0)\nos.wait()\nos._exit(7)"
    assert "status 7" in watchdog.watch_worker(start(source), 5)
    os.close(lifeline)


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


@pytest.mark.parametrize(("source", "grace"), [("import time; time.sleep(60)", 20.0), (DEAF, 0.3)])
def test_end_of_input(lifeline: int, source: str, grace: float) -> None:
    worker = start(source)
    os.close(lifeline)
    began = time.monotonic()
    assert "the local process closed the connection" in watchdog.watch_worker(worker, grace)
    assert time.monotonic() - began < 10
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_signal(lifeline: int, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = start("import time; time.sleep(60)")
    watcher = watchdog._Watchdog(worker, 20)
    os.kill(os.getpid(), signal.SIGTERM)
    assert "the local process closed the connection" in watcher.wait()
    os.close(lifeline)


def test_input_that_breaks(lifeline: int, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = watchdog._Watchdog(start("import time; time.sleep(60)"), 20)
    os.close(lifeline)
    read = os.read

    def broken(descriptor: int, length: int) -> bytes:
        if descriptor == 0:
            raise ConnectionResetError
        return read(descriptor, length)

    monkeypatch.setattr(os, "read", broken)
    assert "the local process closed the connection" in watcher.wait()


def test_processes_that_cannot_be_ended(lifeline: int, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = start("import time; time.sleep(60)")
    watcher = watchdog._Watchdog(worker, 0.1)
    os.close(lifeline)
    monkeypatch.setattr(process_tree, "_KILL_TIMEOUT_SECONDS", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError()))
        assert "the local process closed the connection" in watcher.wait()
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
