"""The process that watches over a function's process.

It ends all its descendants, so each test runs it in a process of its own and not in that of pytest.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import os, signal, sys
from lazycluster._remote import watchdog

def start_worker(source):
    worker = watchdog.fork_worker()
    if worker == 0:
        os.execv(sys.executable, [sys.executable, "-c", source])
    return worker
"""
SLEEP = "import time; time.sleep(60)"
IGNORE_SIGTERM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
CLOSED = "was ended because the local process closed the connection"


def run_watchdog(text: str, *, stdin: bytes | None = None) -> str:
    """Run a program that uses the watchdog, and return its output.

    Its standard input, the lifeline, stays open until the program ends. With `stdin` it has that text, and its end.
    """
    argv = [sys.executable, "-c", PRELUDE + textwrap.dedent(text)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if stdin is not None:
            process.stdin.write(stdin)
            process.stdin.close()
        return process.stdout.read().decode().strip()


@pytest.mark.parametrize(
    ("source", "description"),
    [
        ("import os; os._exit(3)", "ended with exit status 3 before the function returned (os._exit?)"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by signal 9 (SIGKILL)"),
    ],
    ids=["exit", "signal"],
)
def test_watch_worker_describes_end_of_worker(source: str, description: str) -> None:
    assert run_watchdog(f"print(watchdog.watch_worker(start_worker({source!r}), 5))") == description


def test_watch_worker_ignores_input_and_other_children() -> None:
    source = "import os\nif os.fork() == 0: os._exit(0)\nos.wait()\nos._exit(7)"
    text = f"""
        reading, writing = os.pipe()
        os.dup2(reading, 0)
        os.write(writing, b"more")
        print(watchdog.watch_worker(start_worker({source!r}), 5))
    """
    assert "exit status 7" in run_watchdog(text)


@pytest.mark.parametrize(("source", "grace"), [(SLEEP, 1e9), (IGNORE_SIGTERM, 0.3)], ids=["SIGTERM", "SIGKILL"])
def test_watch_worker_end_of_input_ends_worker(source: str, grace: float) -> None:
    text = f"""
        worker = start_worker({source!r})
        print(watchdog.watch_worker(worker, {grace!r}))
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            print("gone")
    """
    assert run_watchdog(text, stdin=b"").splitlines() == [CLOSED, "gone"]


def test_watch_worker_signal_ends_worker() -> None:
    text = f"""
        watcher = watchdog.Watchdog(start_worker({SLEEP!r}), 1e9)
        os.kill(os.getpid(), signal.SIGTERM)
        print(watcher.wait())
    """
    assert run_watchdog(text) == CLOSED


def test_watch_worker_broken_input_ends_worker() -> None:
    text = f"""
        watcher = watchdog.Watchdog(start_worker({SLEEP!r}), 1e9)
        read = os.read

        def broken(descriptor, length):
            if descriptor == 0:
                raise ConnectionResetError
            return read(descriptor, length)

        os.read = broken
        print(watcher.wait())
    """
    assert run_watchdog(text, stdin=b"") == CLOSED


def test_watch_worker_gives_up_on_unkillable_process() -> None:
    text = f"""
        worker = start_worker({SLEEP!r})
        watcher = watchdog.Watchdog(worker, 0.1)
        kill = os.kill

        def refuse(pid, number):
            raise PermissionError

        os.kill = refuse
        print(watcher.wait())
        kill(worker, signal.SIGKILL)
    """
    assert run_watchdog(text, stdin=b"") == CLOSED
