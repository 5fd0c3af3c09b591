"""Tasks and files on the hosts of a group, and the choice of the host."""

from __future__ import annotations

import math
import pickle
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lazycluster import (
    ConnectionLostError,
    HostsFailedError,
    HostUnreachableError,
    RuntimeClosedError,
    RuntimeGroup,
    RuntimeTask,
    TaskExecutionError,
)
from lazycluster.results import Error
from lazycluster.testing import FakeHost, Sent
from tests.keyboard_interrupt import interrupt
from tests.unit.group_hosts import GROUP_HOSTS, double, hosts_of, running
from tests.unit.transport_recorder import TransportRecorder
from tests.waiting import wait_until


def test_get_runtime_returns_least_busy(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("sleep", delay=math.inf)
    sleep = RuntimeTask("sleep").run_command("sleep")
    used = [group.execute_task(sleep.copy()) for _ in range(4)]
    busy = [runtime.alive_task_process_count for runtime in group.runtimes]
    assert busy == [2, 1, 1], "by living tasks, then by the order"
    assert group.get_runtime().host == "web2"
    assert used[1].process is not None
    used[1].process.terminate()
    assert group.get_runtime().host == "web2"
    group.execute_task(sleep.copy())
    group.execute_task(sleep.copy(), host="web2")
    group.execute_task(sleep.copy(), host="web2")
    assert group.get_runtime().host == "web3"


def test_get_runtime_lost_host_is_last_choice(group: RuntimeGroup, fake_host: FakeHost) -> None:
    """Every task fails there at once, so the host is never busy."""
    fake_host.on("sleep", delay=math.inf)
    fake_host.on("false", exit_code=1)
    fake_host.host("web1").go_down()
    assert group.get_runtime().host == "web1", "its loss is not known yet"
    for _ in range(2):
        task = group.execute_task(RuntimeTask().run_command("sleep"), host="web1")
        with pytest.raises(TaskExecutionError):
            task.join()
        assert group.get_runtime().host == "web2"
    group.execute_task(RuntimeTask().run_command("sleep"))
    group.execute_task(RuntimeTask().run_command("sleep"))
    assert [runtime.alive_task_process_count for runtime in group.runtimes] == [0, 1, 1]
    assert group.get_runtime().host == "web2"
    group.clear_tasks()
    assert group.get_runtime().host == "web1", "clear_tasks() forgets the loss"
    fake_host.host("web1").come_up()
    group.runtimes[0].cleanup()
    assert group.get_runtime().host == "web2", "a closed runtime is the last choice"


def test_get_runtime_failed_task_is_no_loss(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("false", exit_code=1)
    group.execute_task(RuntimeTask().run_command("false"), execute_async=False, on_error="collect")
    assert group.get_runtime().host == "web1"


def lose(group: RuntimeGroup, fake_host: FakeHost, host: str) -> None:
    fake_host.host(host).go_down()
    failed = group.execute_task(RuntimeTask().run_command("id"), host=host, execute_async=False, on_error="collect")
    assert isinstance(failed, Error)
    assert failed.host == host
    fake_host.host(host).come_up()


def test_get_runtime_all_lost_returns_first_lost(group: RuntimeGroup, fake_host: FakeHost) -> None:
    """Another host may work again by now, while a dead one is never busy."""
    for host in ("web2", "web1", "web3"):
        lose(group, fake_host, host)
    assert group.get_runtime().host == "web2"
    lose(group, fake_host, "web2")
    assert group.get_runtime().host == "web1"


def test_get_runtime_success_clears_loss(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id")
    lose(group, fake_host, "web1")
    assert group.get_runtime().host == "web2"
    group.run("id")
    assert group.get_runtime().host == "web1"
    lose(group, fake_host, "web1")
    group.execute_task(RuntimeTask().run_command("id"), host="web1", execute_async=False)
    assert group.get_runtime().host == "web1"


def test_get_runtime_task_that_ended_last_counts(group: RuntimeGroup, fake_host: FakeHost) -> None:
    """It is not the task that started last."""
    release = threading.Event()
    fake_host.on(lambda asked: asked.command == "long" and release.wait(20))
    fake_host.host("web1").on("lost", error=ConnectionLostError("web1", "lost", "interrupted", started=True))
    slow = group.execute_task(RuntimeTask().run_command("long"), host="web1")
    group.execute_task(RuntimeTask().run_command("lost"), host="web1", execute_async=False, on_error="collect")
    assert group.get_runtime().host == "web2"
    release.set()
    slow.join()
    assert group.get_runtime().host == "web1"


def test_get_runtime_host_error_of_function_is_no_loss(group: RuntimeGroup) -> None:
    """A function may itself use this library to reach other hosts."""

    def fail() -> NoReturn:
        raise HostUnreachableError("inner", "no route")

    task = RuntimeTask().run_function(fail)
    outcome = group.execute_task(task, host="web1", execute_async=False, on_error="collect")
    assert isinstance(outcome, Error)
    assert group.get_runtime().host == "web1"
    assert not task.results[0].host_lost
    with pytest.raises(HostUnreachableError):
        list(task.function_returns)


def test_get_runtime_tunnels_do_not_count(group: RuntimeGroup) -> None:
    group.runtimes[0].expose_port_to_runtime(8786)
    assert group.get_runtime().host == "web1"


def test_execute_task_on_one_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id", stdout="x\n")
    task = RuntimeTask("t").run_command("id").run_function(double, 4)
    assert group.execute_task(task, "web2") is task
    group.join()
    assert task.execution_log == ["x\n", ""]
    assert list(group.function_returns) == [8]
    assert {call.host for call in fake_host.calls} == {"web2"}
    assert group.execute_task(task, execute_async=False) is task
    assert {call.host for call in fake_host.calls} == {"web1", "web2"}


def test_execute_task_broadcast_copies_task(group: RuntimeGroup, fake_host: FakeHost) -> None:
    for number, host in enumerate(GROUP_HOSTS):
        fake_host.host(host).on("id", stdout=host, delay=0.05 * (3 - number))
    task = RuntimeTask("t").run_command("id").run_function(double, 4)
    for execute_async in (True, False):
        copies = group.execute_task(task, broadcast=True, execute_async=execute_async)
        group.join()
        assert list(copies) == GROUP_HOSTS
        assert [copy.execution_log for copy in copies.values()] == [[host, ""] for host in GROUP_HOSTS]
        assert [list(copy.function_returns) for copy in copies.values()] == [[8], [8], [8]]
        assert [copy.name for copy in copies.values()] == ["t"] * 3
        assert len({id(copy) for copy in [task, *copies.values()]}) == 4
    assert task.execution_log == []
    assert list(group.function_returns) == [8] * 6
    assert [process.name for process in group.task_processes] == [
        f"task t on {host}" for host in GROUP_HOSTS for _ in range(2)
    ]


def test_function_returns_are_in_order_of_hosts(group: RuntimeGroup) -> None:
    def who(host: str) -> str:
        return host

    for host in reversed(GROUP_HOSTS):
        group.execute_task(RuntimeTask().run_function(who, host), host=host)
    assert list(group.function_returns) == GROUP_HOSTS
    group.clear_tasks()
    assert list(group.function_returns) == []


def test_execute_task_failure_raises_or_collects(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id", exit_code=3, stdout="output")
    task = RuntimeTask("t").run_command("id")
    with pytest.raises(TaskExecutionError) as failed:
        group.execute_task(task, execute_async=False)
    assert (failed.value.host, failed.value.task, failed.value.step_index) == ("web1", "t", 0)
    collected = group.execute_task(task, execute_async=False, on_error="collect")
    assert isinstance(collected, Error)
    assert isinstance(collected.error, TaskExecutionError)
    assert not task.results[0].ok
    assert group.execute_task(RuntimeTask(), execute_async=False, on_error="collect") is not task
    group.runtimes[2].cleanup()
    collected = group.execute_task(task, host="web3", on_error="collect")
    assert isinstance(collected, Error)
    assert isinstance(collected.error, RuntimeClosedError)
    with pytest.raises(RuntimeClosedError):
        group.execute_task(task, host="web3")
    group.execute_task(task, host="web2")
    with pytest.raises(HostsFailedError) as caught:
        group.join()
    assert [(host, type(error)) for host, error in caught.value.errors] == [("web2", TaskExecutionError)]


def test_execute_task_broadcast_failure_keeps_copies(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id")
    fake_host.host("web2").on("id", exit_code=3)
    task = RuntimeTask("t").run_command("id")
    with pytest.raises(HostsFailedError) as caught:
        group.execute_task(task, broadcast=True, execute_async=False)
    assert [(host, type(error)) for host, error in caught.value.errors] == [("web2", TaskExecutionError)]
    assert list(caught.value.values) == ["web1", "web3"]
    assert all(isinstance(copy, RuntimeTask) for copy in caught.value.values.values())
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    found = group.execute_task(task, broadcast=True, execute_async=False, on_error="collect")
    assert isinstance(found["web2"], Error)
    assert isinstance(found["web2"].error, TaskExecutionError)
    assert isinstance(found["web3"], RuntimeTask)

    group.clear_tasks()
    copies = group.execute_task(task, broadcast=True)
    with pytest.raises(HostsFailedError):
        group.join()
    assert [bool(copy.results) for copy in copies.values()] == [True] * 3


def test_execute_task_get_file_with_host_in_path(group: RuntimeGroup, fake_host: FakeHost, tmp_path: Path) -> None:
    for host in GROUP_HOSTS:
        fake_host.host(host).path("out").write_text(host)
    task = RuntimeTask().get_file("out", tmp_path / "of {host}" / "{host}.txt")
    group.execute_task(task, broadcast=True, execute_async=False)
    group.execute_task(task, host="web2", execute_async=False)
    for host in GROUP_HOSTS:
        assert (tmp_path / f"of {host}" / f"{host}.txt").read_text() == host


def test_execute_task_get_file_same_path_raises(group: RuntimeGroup, fake_host: FakeHost, tmp_path: Path) -> None:
    task = RuntimeTask().get_file("out", tmp_path / "out")
    with pytest.raises(ValueError, match=r"would write to the same place, .*/out: put \{host\} into the local path"):
        group.execute_task(task, broadcast=True)
    assert fake_host.calls == []
    fake_host.host("web1").path("out").write_text("web1")
    with RuntimeGroup([group.get_runtime("web1")]) as single:
        single.execute_task(task, broadcast=True, execute_async=False)
    assert (tmp_path / "out").read_text() == "web1"


def test_execute_task_broadcast_closed_host_fails_alone(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id")
    group.runtimes[1].cleanup()
    task = RuntimeTask("t").run_command("id")
    for execute_async in (True, False):
        with pytest.raises(HostsFailedError) as caught:
            group.execute_task(task, broadcast=True, execute_async=execute_async)
        assert [(host, type(error)) for host, error in caught.value.errors] == [("web2", RuntimeClosedError)]
        assert list(caught.value.values) == ["web1", "web3"]
        found = group.execute_task(task, broadcast=True, execute_async=execute_async, on_error="collect")
        assert isinstance(found["web2"], Error)
        assert isinstance(found["web2"].error, RuntimeClosedError)
    group.join()


def test_execute_task_broadcast_with_host_raises(group: RuntimeGroup) -> None:
    everywhere: Any = {"host": "web1", "broadcast": True}
    with pytest.raises(ValueError, match="host must be None with broadcast, got 'web1'"):
        group.execute_task(RuntimeTask(), **everywhere)


def test_execute_task_debug_prefixes_host(
    group: RuntimeGroup, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    for host in GROUP_HOSTS:
        fake_host.host(host).on("id", stdout=f"printed by {host}\nand no more")
    task = RuntimeTask().run_command("id")
    group.execute_task(task, broadcast=True, execute_async=False)
    assert capsys.readouterr().out == ""
    group.execute_task(task, broadcast=True, execute_async=False, debug=True)
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(
        f"{host} | {line}" for host in GROUP_HOSTS for line in (f"printed by {host}", "and no more")
    )
    group.execute_task(task, "web1", execute_async=False, debug=True)
    assert capsys.readouterr().out == "printed by web1\nand no more"


def test_execute_task_ctrl_c_stops_task(
    group: RuntimeGroup, fake_host: FakeHost, transports: TransportRecorder
) -> None:
    fake_host.on("sleep", delay=math.inf)
    task = RuntimeTask().run_command("sleep")
    interrupt(lambda: group.execute_task(task, execute_async=False), running(transports, 1))
    assert not running(transports, 1)()


@pytest.mark.parametrize("on_error", ["raise", "collect"])
def test_execute_task_broadcast_ctrl_c_stops_copies(
    group: RuntimeGroup, fake_host: FakeHost, transports: TransportRecorder, on_error: Any
) -> None:
    fake_host.on("sleep", delay=math.inf)
    task = RuntimeTask().run_command("sleep")
    interrupt(
        lambda: group.execute_task(task, broadcast=True, execute_async=False, on_error=on_error),
        running(transports, 3),
    )
    assert not running(transports, 1)()
    assert wait_until(lambda: not any(process.is_alive() for process in group.task_processes), 10)
    group.clear_tasks()


def test_join_ctrl_c_leaves_tasks_running(
    group: RuntimeGroup, fake_host: FakeHost, transports: TransportRecorder
) -> None:
    fake_host.on("sleep", delay=math.inf)
    copies = group.execute_task(RuntimeTask().run_command("sleep"), broadcast=True)
    assert wait_until(running(transports, 3), timeout=10)
    joining = threading.Event()

    def join() -> None:
        joining.set()
        group.join()

    interrupt(join, joining.is_set)
    assert all(process.is_alive() for process in group.task_processes)
    for copy in copies.values():
        assert copy.process is not None
        copy.process.terminate()
    with pytest.raises(HostsFailedError) as caught:
        group.join()
    assert [host for host, _ in caught.value.errors] == GROUP_HOSTS


def test_send_file_reaches_each_host(group: RuntimeGroup, fake_host: FakeHost, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("content")
    tasks = group.send_file(tmp_path / "data")
    group.join()
    assert list(tasks) == GROUP_HOSTS
    for runtime in group.runtimes:
        assert fake_host.host(runtime.host).path(f"{runtime.working_dir}/data").read_text() == "content"
    group.send_file(str(tmp_path / "data"), "~/renamed", execute_async=False)
    assert all(fake_host.host(host).path("~/renamed").read_text() == "content" for host in GROUP_HOSTS)
    assert hosts_of([call for call in fake_host.calls if isinstance(call, Sent)]) == sorted(GROUP_HOSTS * 2)


def test_send_file_failure_raises_or_collects(group: RuntimeGroup, fake_host: FakeHost, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or directory"):
        group.send_file(tmp_path / "none")
    fake_host.host("web2").go_down()
    with pytest.raises(HostsFailedError) as caught:
        group.send_file(__file__, execute_async=False)
    assert [host for host, _ in caught.value.errors] == ["web2"]
    found = group.send_file(__file__, execute_async=False, on_error="collect")
    assert [isinstance(outcome, Error) for outcome in found.values()] == [False, True, False]
    group.clear_tasks()
    group.send_file(__file__)
    with pytest.raises(HostsFailedError) as caught:
        group.join()
    assert [host for host, _ in caught.value.errors] == ["web2"]
    fake_host.host("web2").come_up()
