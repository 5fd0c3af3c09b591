"""Run a local program to its end, with a bound on its time, and return its exit status and output."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path

import attrs

from lazycluster._processes.local_process import LocalProcess
from lazycluster._processes.popen import DEVNULL, Process, kill_group, start_process, wait_process
from lazycluster._typing import Self
from lazycluster._waiting import Deadline, DeadlinePassedError, start_thread
from lazycluster.results import Collector, Stream

_CANCEL_POLL_SECONDS = 0.1
"""Seconds between two looks at `cancel_event`."""


@attrs.frozen
class Completed:
    """How a process ended: its exit status (negative for a signal, None if killed at the deadline), and its output."""

    exit_code: int | None
    stdout: str
    stderr: str

    @classmethod
    def from_collector(cls, exit_code: int | None, collector: Collector) -> Self:
        """Return the record of an ended process whose output a collector has kept."""
        return cls(exit_code, *(collector.getvalue(stream).decode(errors="replace") for stream in Stream))


def run_daemonizing(
    argv: Sequence[str], stderr_path: Path, *, timeout: float, cancel_event: threading.Event | None = None
) -> Completed:
    """Run a program that ends and leaves a daemon running; only its standard error is kept, in a file.

    The program is killed after `timeout` seconds, or when `cancel_event` is set. The daemon may keep the descriptors
    that it inherits, so no pipe may be among them.

    Raises:
        OSError: If the program cannot be started.
    """
    deadline = Deadline(timeout)
    with stderr_path.open("ab") as errors:
        process = start_process(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=errors)
        try:
            _wait_for_exit(process, deadline, cancel_event)
        finally:  # also after Ctrl-C, or it would go on logging in
            timed_out = process.poll() is None
            if timed_out:
                with contextlib.suppress(ProcessLookupError):
                    kill_group(process)  # with its ProxyCommand, which need not notice its end
                process.wait()
    return Completed(None if timed_out else process.returncode, "", stderr_path.read_text(errors="replace"))


def _wait_for_exit(process: Process, deadline: Deadline, cancel_event: threading.Event | None) -> None:
    """Wait for the end of a process, until a deadline or until `cancel_event` is set.

    Popen.wait(timeout) polls, with pauses of up to 50 ms; a thread that waits without a timeout wakes at once.
    """
    waiter = threading.Thread(target=process.wait, name="lazycluster-wait", daemon=True)
    try:
        start_thread(waiter)
    except RuntimeError:  # from Python 3.12 on no thread starts while the interpreter ends
        wait_process(process, deadline.remaining)
    while waiter.is_alive() and not deadline.has_passed and not (cancel_event is not None and cancel_event.is_set()):
        waiter.join(deadline.clamp(_CANCEL_POLL_SECONDS))


def run_and_capture(argv: Sequence[str], *, timeout: float) -> Completed:
    """Run a program that prints little.

    Raises:
        OSError: If the program cannot be started.
    """
    collector = Collector()
    process = LocalProcess(argv, stdin=False, deadline=Deadline(timeout), on_output=collector.write)
    exit_code: int | None = None
    try:
        with contextlib.suppress(DeadlinePassedError):
            process.pump(lambda: False)
            exit_code = process.wait(process.deadline.clamp(timeout))
    finally:
        process.kill_group()  # such as the program of a `Match exec`, for which `ssh -G` waits
        process.close()
    return Completed.from_collector(exit_code, collector)
