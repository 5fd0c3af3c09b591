"""The one place that starts, awaits and kills local processes: the only importer of `subprocess`."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, NoReturn, TypeAlias

from lazycluster._waiting import uninterruptible

Process: TypeAlias = "subprocess.Popen[bytes]"

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
_log = logging.getLogger(__name__)


def start_process(argv: Sequence[str], *, stdin: int, stdout: int, stderr: int | IO[bytes]) -> Process:
    """Start a program in a session of its own, out of reach of the terminal's Ctrl-C.

    Raises:
        OSError: If the program cannot be started.
    """
    _log.debug("start %s", argv)
    # The ssh to a jump host knows nothing of our BatchMode, and must not open a window either (ssh(1), ENVIRONMENT).
    env = {**os.environb, b"SSH_ASKPASS_REQUIRE": b"never"}  # as bytes, which Popen need not encode

    def start() -> Process:
        return subprocess.Popen(
            argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, start_new_session=True, bufsize=0
        )

    return uninterruptible(start, kill_and_close)


def replace_process(argv: Sequence[str]) -> NoReturn:
    """Become another program, which gets the terminal and the process id; it must be called in the main thread.

    Raises:
        OSError: If the program cannot be started.
    """
    _log.debug("become %s", argv)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    # Python ignores these, and a program inherits that (Python's `subprocess.Popen`, restore_signals).
    earlier = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGPIPE, signal.SIGXFSZ)}
    try:
        os.execvp(argv[0], list(argv))  # noqa: S606 - there is no shell
    except OSError as error:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        error.filename = argv[0]
        raise


def kill_and_close(process: Process) -> None:
    """Kill a process if it still runs, and close its streams."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def wait_process(process: Process, timeout: float | None) -> int | None:
    """Return the exit status, negative for a signal, or None if the process still runs after `timeout` seconds."""
    try:
        return process.wait(timeout=timeout)
    except subprocess.TimeoutExpired:
        return None


def kill_group(process: Process) -> None:
    """Kill a process and the rest of its group; only the process itself if that is a test's stand-in."""
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
