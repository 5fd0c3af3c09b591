"""Tasks in the background of a real host: many at once, time limits, stops and broken connections."""

from __future__ import annotations

import operator
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import (
    CommandStoppedError,
    CommandTimeoutError,
    ConnectionLostError,
    Runtime,
    RuntimeTask,
    TaskExecutionError,
)
from lazycluster.testing import LocalSshd
from tests.client_programs import call_in_parallel
from tests.observation import assert_no_leaks, running_relay, unique_sleep_seconds
from tests.processes import command_line
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd


@pytest.fixture
def runtime(sshd: LocalSshd, resident: bool) -> Iterator[Runtime]:
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        yield runtime


def find_sleepers(server: LocalSshd, number: str) -> list[int]:
    return [pid for pid in server.processes() if number in command_line(pid)]


def endless_task(number: str, *, before: str = "") -> RuntimeTask:
    """Return a task whose command has children in sessions of their own and in the background."""
    command = f"{before}(setsid sleep {number} &) ; sleep {number} & sh -c 'sleep {number}; true'; touch never"
    return RuntimeTask("endless").run_command(command).run_command("touch never")


# Many at once --------------------------------------------------------------------------------------------------------


def test_background_twenty_tasks_exceed_session_limit(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    """All four kinds of step, with more tasks than sshd allows sessions (MaxSessions 10)."""
    (tmp_path / "sent").write_text("content")
    with assert_no_leaks(sshd), Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:

        def execute(number: int) -> RuntimeTask:
            task = RuntimeTask(f"task {number}").run_command(f"mkdir {number}; sleep 0.05; echo {number}")
            task.send_file(tmp_path / "sent", f"{number}/received").run_function(operator.mul, number, number)
            task.get_file(f"{number}/received", tmp_path / f"fetched {number}")
            return runtime.execute_task(task)

        tasks = call_in_parallel([lambda number=number: execute(number) for number in range(20)])  # type: ignore[misc]
        for task in tasks:
            task.join()

        for number, task in enumerate(tasks):
            assert task.execution_log == [f"{number}\n", "", "", ""]
            assert list(task.function_returns) == [number * number]
            assert (tmp_path / f"fetched {number}").read_text() == "content"
        assert len(runtime.get_processes()) == len(runtime.task_processes) == 20
        assert {process.exitcode for process in runtime.task_processes} == {0}
        assert runtime.alive_process_count == runtime.alive_task_process_count == 0
        assert sorted(runtime.function_returns) == sorted(number * number for number in range(20))  # type: ignore[type-var]


# Time limits ---------------------------------------------------------------------------------------------------------


def test_task_timeout_in_background_ends_children(sshd: LocalSshd, runtime: Runtime) -> None:
    number = unique_sleep_seconds()
    task = RuntimeTask().run_command(f"echo begun; setsid sleep {number} & sleep {number}", timeout=1)
    runtime.execute_task(task)
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert isinstance(caught.value.__cause__, CommandTimeoutError)
    assert task.execution_log == ["begun\n"]
    assert_eventually(lambda: not find_sleepers(sshd, number), "its processes are gone")


# Stops ---------------------------------------------------------------------------------------------------------------


def test_stop_process_ends_command_with_children(sshd: LocalSshd, runtime: Runtime) -> None:
    number = unique_sleep_seconds()
    task = runtime.execute_task(endless_task(number, before="echo begun; "))
    assert_eventually(lambda: len(find_sleepers(sshd, number)) >= 3, "it has its children")
    [key] = runtime.get_processes()
    other = runtime.execute_task(RuntimeTask("other").run_command(f"sleep 0.3; echo {number} other"))

    runtime.stop_process(key)

    process = runtime.get_process(key)
    assert (process.is_alive(), process.exitcode) == (False, -signal.SIGTERM)
    assert_eventually(lambda: not find_sleepers(sshd, f"sleep {number}"), "its processes are gone")
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert isinstance(caught.value.__cause__, CommandStoppedError)
    [log] = task.execution_log  # no further step began
    assert log.removesuffix("Terminated\n") == "begun\n", "the output is kept; the shell may report its child"
    runtime.stop_process(key)
    other.join()
    assert runtime.run("ls").stdout == ""
    assert runtime.execute_task(task.copy().run_command("true")) is not task


def test_stop_process_ignored_sigterm_is_killed(sshd: LocalSshd, resident: bool) -> None:
    number = unique_sleep_seconds()
    with Runtime(sshd.host, resident=resident, grace=1, **sshd.connection_kwargs) as runtime:
        runtime.execute_task(RuntimeTask().run_command(f"trap '' TERM HUP INT; sleep {number}; sleep {number}"))
        assert_eventually(lambda: bool(find_sleepers(sshd, f"sleep {number}")), "it runs")
        [key] = runtime.get_processes()
        runtime.stop_process(key)
        assert_eventually(lambda: not find_sleepers(sshd, number), "it is killed after the grace period", timeout=30)


def test_stop_process_task_waiting_for_session_ends(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxSessions": "1"})
    number = unique_sleep_seconds()
    with (
        assert_no_leaks(server),
        Runtime(server.host, resident=False, max_sessions=1, **server.connection_kwargs) as runtime,
    ):
        running = runtime.execute_task(RuntimeTask("running").run_command(f"sleep {number}"))
        assert_eventually(lambda: bool(find_sleepers(server, number)), "it runs")
        waiting = runtime.execute_task(RuntimeTask("waiting").run_command("touch never"))
        [first, second] = runtime.get_processes()
        runtime.stop_process(second)
        with pytest.raises(TaskExecutionError) as caught:
            waiting.join()
        assert isinstance(caught.value.__cause__, CommandStoppedError)
        assert running.process is not None
        assert running.process.is_alive()
        runtime.stop_process(first)
        assert not Path(runtime.working_dir, "never").exists()


def test_task_join_broken_connection_raises_and_ends_children(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    number = unique_sleep_seconds()
    with (
        assert_no_leaks(sshd),
        running_relay(sshd, tmp_path) as (relay, keywords),
        Runtime(sshd.host, str(tmp_path / "work"), resident=resident, **keywords) as runtime,
    ):
        task = runtime.execute_task(endless_task(number))
        assert_eventually(lambda: len(find_sleepers(sshd, number)) >= 3, "it runs")
        runtime.run("true")  # the host reports in order: by now the start of the task is known, too
        relay.drop()
        with pytest.raises(TaskExecutionError) as caught:
            task.join()
        assert isinstance(caught.value.__cause__, ConnectionLostError)
        assert caught.value.__cause__.started is True
        assert_eventually(lambda: not find_sleepers(sshd, number), "the host has ended its processes")
        assert runtime.run("echo again").stdout == "again\n"
