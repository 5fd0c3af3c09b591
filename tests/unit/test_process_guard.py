"""The process table, and the ends of processes, as the guard of a private sshd uses them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazycluster.testing._process_guard import child_pids, kill_all, parent_by_pid, run_checked, wait_until
from tests.waiting import assert_eventually


@pytest.fixture
def sleeping_child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(("sleep", "1000")) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("directory", ["/proc", "/nonexistent"], ids=["proc", "ps"])
def test_parent_by_pid_lists_living_processes_only(sleeping_child: subprocess.Popen[bytes], directory: str) -> None:
    with subprocess.Popen(("true",)) as zombie:
        assert_eventually(lambda: zombie.pid not in parent_by_pid(Path(directory)), "the zombie does not count")
        assert parent_by_pid(Path(directory))[sleeping_child.pid] == os.getpid()


def test_child_pids_contain_a_child(sleeping_child: subprocess.Popen[bytes]) -> None:
    assert sleeping_child.pid in child_pids(os.getpid())


def test_kill_all_waits_for_the_end(sleeping_child: subprocess.Popen[bytes]) -> None:
    kill_all(lambda: {sleeping_child.pid} & parent_by_pid().keys())

    assert sleeping_child.wait(0) == -signal.SIGKILL


def test_run_checked_failed_program_raises_with_output() -> None:
    with pytest.raises(ChildProcessError, match=r"^sh ended with exit status 3: two words$"):
        run_checked(("sh", "-c", "echo two words; exit 3"))


def test_wait_until_condition_never_true_returns_false() -> None:
    assert wait_until(lambda: False, timeout=0.02) is False
