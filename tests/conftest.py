"""Fixtures for every test. After a run no process and no directory of it is left."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import descendant_pids, parent_by_pid
from tests.reserved_ports import release_ports
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Any

pytest_plugins = ("tests.sshd_fixtures",)

_LIBRARY_DIRECTORY_PATTERNS = ("lc-*", "lazycluster-*")


def pytest_configure() -> None:
    """Reset ignored signals. A run under nohup inherits them, and the commands of the tests would, too."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """Let threads install the trace function of coverage one after the other.

    CPython 3.11 refuses a second installation while an audit hook of the first one releases the GIL ("Cannot install a
    trace function while another trace function is being installed"). `tests.observation` has such a hook. The refused
    thread ends before it starts its work, and the test that waits for its result hangs.
    """
    install = threading.gettrace()
    if install is None or platform.python_version_tuple()[:2] != ("3", "11"):
        return
    lock, settrace = threading.RLock(), sys.settrace

    def settrace_in_turn(function: Any) -> None:
        with lock:
            settrace(function)

    def install_in_turn(frame: FrameType, event: Any, argument: Any) -> Any:
        with lock:
            return install(frame, event, argument)

    pytest.MonkeyPatch().setattr(sys, "settrace", settrace_in_turn)
    threading.settrace(install_in_turn)


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the directory for the temporary files of this run and its hosts, apart from those of other runs."""
    tmp_path_factory.getbasetemp()  # pytest's own directory is chosen before TMPDIR changes, so that it stays
    directory = Path(tempfile.mkdtemp(prefix="lct-", dir="/tmp"))  # short, for the sockets in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(directory))
        patch.setattr(tempfile, "tempdir", str(directory))
        yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def release_reserved_ports() -> Iterator[None]:
    """Release the ports that a test has reserved."""
    yield
    release_ports()


@pytest.fixture(scope="session", autouse=True)
def coverage_of_own_process() -> Iterator[None]:
    """Keep coverage from measuring the processes that tests start, except those of `local_supervisor()`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAZYCLUSTER_TEST_COVERAGE", os.environ.get("COVERAGE_PROCESS_CONFIG", ""))
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def default_terminal_environment() -> Iterator[None]:
    """Ignore the settings of the user's terminal for colours and widths."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm-256color")
        yield


@pytest.fixture(scope="session", autouse=True)
def check_no_leaks(run_directory: Path) -> Iterator[None]:
    """Fail the run if a process or a directory of the library outlives it."""
    is_alone = os.environ.get("CI") and "PYTEST_XDIST_WORKER" not in os.environ  # otherwise other runs may use /tmp
    watched = [run_directory, *([Path("/tmp")] if is_alone else [])]
    before = _find_library_directories(watched)
    variable, value = "LAZYCLUSTER_TEST_RUN", secrets.token_hex(8)
    mark = f"{variable}={value}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, value)
        yield
    ended = wait_until(lambda: not _find_processes_of_run(mark, run_directory), timeout=10)
    left = [] if ended else [f"process {row}" for row in _find_processes_of_run(mark, run_directory)]
    left += [f"directory {path}" for path in sorted(_find_library_directories(watched) - before)]
    if left:
        pytest.fail("this run left behind:\n" + "\n".join(left), pytrace=False)


def _find_library_directories(parents: list[Path]) -> set[Path]:
    return {path for parent in parents for pattern in _LIBRARY_DIRECTORY_PATTERNS for path in parent.glob(pattern)}


def _find_processes_of_run(mark: str, run_directory: Path) -> list[str]:
    """Return the processes of this run: its descendants, and with /proc also those that are no descendants any more.

    The latter have the mark in their environment. Only a master of ssh overwrites that with its title. The title names
    its socket, which lies in `run_directory`.
    """
    own = descendant_pids(os.getpid())
    found = []
    for pid in sorted(parent_by_pid().keys() - {os.getpid()}):
        environment, command = _read_proc_file(pid, "environ"), _read_proc_file(pid, "cmdline")
        if pid in own or mark in environment or str(run_directory) in command:
            found.append(f"{pid}: {command.replace(chr(0), ' ')}")
    return found


def _read_proc_file(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:  # it has ended, belongs to another user, or there is no /proc
        return ""
