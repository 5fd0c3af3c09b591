"""Groups of fake hosts: every method and argument, who fails and who goes on, and Ctrl-C."""

from __future__ import annotations

import itertools
import math
import os
import pickle
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lazycluster import (
    CommandTimeoutError,
    ConnectionLostError,
    FunctionNotSerializableError,
    HostsFailedError,
    HostUnreachableError,
    InvalidRuntimeError,
    NoPortsLeftError,
    NoRuntimesError,
    PortInUseError,
    Runtime,
    RuntimeClosedError,
    RuntimeGroup,
    RuntimeTask,
    TaskExecutionError,
)
from lazycluster._membership import _raise_open_file_limit
from lazycluster.hardware import HostInfo
from lazycluster.managed import ManagedProcess
from lazycluster.results import CommandResult, Error, Stream
from lazycluster.testing import AskedForPorts, Called, FakeHost, OpenedTunnel, Ran, Sent
from lazycluster.testing._fake_transport import FakeTransport
from tests.keyboard_interrupt import interrupt, library_thread_names
from tests.pseudo_terminal import pseudo_terminal, strip_escape_sequences
from tests.waiting import wait_until

HOSTS = ["web1", "web2", "web3"]


@pytest.fixture
def group(fake_host: FakeHost) -> Iterator[RuntimeGroup]:
    """Return a group of three fake hosts, each of its own."""
    for host in HOSTS:
        fake_host.host(host)
    with RuntimeGroup(hosts=HOSTS) as group:
        yield group
    assert fake_host.closed
    assert fake_host.cleaned_up
    assert wait_until(lambda: not library_thread_names(), timeout=10)


def hosts_of(calls: list[Any]) -> list[str]:
    return sorted(call.host for call in calls)


# What is seen meanwhile ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [True, False])
def test_bars_on_a_terminal(progress: bool, fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in HOSTS:
        fake_host.host(host).on("true")
    with pseudo_terminal(monkeypatch, name="stderr") as seen, RuntimeGroup(hosts=HOSTS, progress=progress) as group:
        assert list(group.map(abs, range(-4, 0))) == [4, 3, 2, 1]
        fake_host.host("web2").go_down()
        with pytest.raises(HostsFailedError):
            group.run("true")
        with pytest.raises(HostsFailedError):
            group.execute_task(RuntimeTask("once").run_command("true"), broadcast=True, execute_async=False)
        group.clear_tasks()
        group.execute_task(RuntimeTask().run_command("true"), host="web1")
        group.join()
    text = strip_escape_sequences(seen.text)
    shown = [words in text for words in ("connecting", "4/4 items", "task once", "waiting for tasks")]
    assert shown == [progress] * 4
    assert (text.count("3/3 hosts, 1 failed") >= 2) == progress
    assert progress or not text


# What it consists of -------------------------------------------------------------------------------------------------


def test_hosts_in_the_order_given(group: RuntimeGroup) -> None:
    assert group.hosts == HOSTS
    assert [runtime.host for runtime in group.runtimes] == HOSTS
    assert group.runtime_count == 3
    assert group.contains_runtime("web2")
    assert not group.contains_runtime("web4")
    assert group.failed_hosts == {}
    assert repr(group) == "<RuntimeGroup web1, web2, web3>"
    assert group.get_runtime("web2") is group.runtimes[1]


def test_runtimes_and_hosts(fake_host: FakeHost) -> None:
    one = Runtime("one")
    with RuntimeGroup([one], iter(["two", "three"]), "/work", env={"A": "1"}) as group:
        assert group.hosts == ["one", "two", "three"]
        assert group.runtimes[0] is one
        assert [runtime.working_dir for runtime in group.runtimes[1:]] == ["/work", "/work"]
        fake_host.on("true")
        group.run("true")
    assert {call.host: call.env.get("A") for call in fake_host.calls if isinstance(call, Ran)} == {
        "one": None,
        "two": "1",
        "three": "1",
    }
    assert fake_host.closed, "the runtime that was given is the group's"


def test_one_host_by_itself(fake_host: FakeHost) -> None:
    with RuntimeGroup(hosts="web1") as group:
        assert group.hosts == ["web1"]


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"hosts": ["a", "b", "a", "b", "c"]}, ValueError, "hosts contains duplicates: a, b"),
        ({"hosts": ["a"], "on_error": "collect"}, ValueError, "on_error must be 'raise' or 'skip', got 'collect'"),
        ({"hosts": ["a"], "max_connections": 0}, ValueError, "max_connections must be a whole number from 1 on, got 0"),
        ({"hosts": ["a"], "max_connections": True}, ValueError, "max_connections must be a whole number from 1 on"),
        ({"hosts": ["a"], "max_connections": 1.5}, ValueError, "max_connections must be a whole number from 1 on"),
        ({"hosts": ["a"], "prot": 22}, TypeError, "unexpected keyword argument 'prot'"),
        ({"hosts": ["a"], "prot": 22, "on_error": "skip"}, TypeError, "unexpected keyword argument 'prot'"),
        ({"hosts": [], "port": 0}, ValueError, "port"),
        (
            {"runtimes": "web1"},
            TypeError,
            "runtimes must hold Runtime objects, got 'web1'; give names of hosts as hosts=",
        ),
        ({"runtimes": ["web1"]}, TypeError, "got 'web1'; give names of hosts as hosts="),
        ({"hosts": ["a"], "grace": -1, "on_error": "skip"}, ValueError, "grace"),
    ],
)
def test_arguments_that_cannot_be_right(
    fake_host: FakeHost, keywords: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        RuntimeGroup(**keywords)
    assert not isinstance(caught.value, HostsFailedError)
    assert fake_host._state.transports == [], "nothing was dialled"


def test_a_host_is_there_once(group: RuntimeGroup, fake_host: FakeHost) -> None:
    with Runtime("web1") as other:
        with pytest.raises(ValueError, match="already in the group: web1"):
            group.add_runtime("web1")
        with pytest.raises(ValueError, match="already in the group: web1"):
            group.add_runtime(other)
        with pytest.raises(ValueError, match="already in the group: web1"):
            RuntimeGroup([other], ["web1"])
        with pytest.raises(ValueError, match="already in the group: web1"):
            RuntimeGroup([other, group.runtimes[0]])
        assert other.is_valid_runtime()
    assert group.hosts == HOSTS
    assert len(fake_host._state.transports) == 4, "and is not dialled twice"


def test_an_empty_group() -> None:
    with RuntimeGroup() as group:
        assert group.hosts == []
        assert repr(group) == "<RuntimeGroup without hosts>"
        assert list(group.function_returns) == []
        assert group.task_processes == []
        assert group.expose_port_to_runtimes(80) == []
        group.join()
        group.print_log()
        group.clear_tasks()
        group.set_env_variables({"A": "1"})
        task = RuntimeTask().run_command("true")
        for use in (
            group.get_runtime,
            lambda: group.run("true"),
            lambda: group.call(int),
            lambda: group.map(int, ["1"]),
            lambda: group.execute_task(task),
            lambda: group.execute_task(task, broadcast=True),
            lambda: group.send_file(__file__),
        ):
            with pytest.raises(NoRuntimesError, match="the group has no hosts"):
                use()


@pytest.mark.parametrize(
    ("include", "exclude", "found"),
    [
        (None, None, HOSTS),
        (["web3", "web1"], None, ["web1", "web3"]),
        ("web2", None, ["web2"]),
        (None, "web2", ["web1", "web3"]),
        (iter(["web1", "web2"]), iter(["web2"]), ["web1"]),
        ([], None, []),
        (None, HOSTS, []),
    ],
)
def test_some_of_them(group: RuntimeGroup, include: Any, exclude: Any, found: list[str]) -> None:
    runtimes = group.get_runtimes(include, exclude)
    assert list(runtimes) == found
    assert [runtime.host for runtime in runtimes.values()] == found


def test_hosts_that_are_not_of_the_group(group: RuntimeGroup) -> None:
    for use in (
        lambda: group.get_runtime("db1"),
        lambda: group.get_runtimes(include_hosts=["db1"]),
        lambda: group.get_runtimes(exclude_hosts="db1"),
        lambda: group.remove_runtime("db1"),
        lambda: group.execute_task(RuntimeTask(), host="db1"),
        lambda: group.has_free_port(80, exclude_hosts=["db1"]),
        lambda: group.expose_port_to_runtimes(80, exclude_hosts="db1"),
        lambda: group.expose_port_from_runtime_to_group("db1", 80),
    ):
        with pytest.raises(ValueError, match=r"unknown host 'db1' \(group: web1, web2, web3\)"):
            use()


def test_changes(group: RuntimeGroup) -> None:
    group.add_runtime("web4")
    four = Runtime("web5")
    group.add_runtime(four)
    removed = group.remove_runtime("web2")
    assert group.hosts == ["web1", "web3", "web4", "web5"]
    assert removed.is_valid_runtime()
    group.add_runtime(removed)
    assert group.hosts[-1] == "web2"


def test_a_host_that_is_added_is_reached_like_the_others(fake_host: FakeHost) -> None:
    fake_host.on("true")
    with RuntimeGroup(hosts=["a"], working_dir="/work", env={"A": "1"}) as group:
        group.add_runtime("b")
        group.run("true")
        assert group.runtimes[1].working_dir == "/work"
    ran = [call for call in fake_host.calls if isinstance(call, Ran)]
    assert [call.env["A"] for call in ran] == ["1", "1"]


def test_a_host_that_cannot_be_added(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.host("dead").go_down()
    with pytest.raises(InvalidRuntimeError):
        group.add_runtime("dead")
    assert group.hosts == HOSTS


def test_two_that_add_the_same_host_at_once(group: RuntimeGroup, fake_host: FakeHost) -> None:
    errors: list[Exception] = []
    together = threading.Barrier(8)

    def add() -> None:
        together.wait(10)
        try:
            group.add_runtime("web4")
        except ValueError as error:
            errors.append(error)

    adding = [threading.Thread(target=add) for _ in range(8)]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()
    assert group.hosts == [*HOSTS, "web4"]
    assert len(errors) == 7
    assert [way.closed for way in fake_host._state.transports].count(False) == 4, "those that came too late are closed"


def test_it_may_be_changed_while_it_is_used(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("true")
    over = threading.Event()
    errors: list[Exception] = []

    def change(name: str) -> None:
        try:
            while not over.is_set():
                group.add_runtime(name)
                group.remove_runtime(name).cleanup()
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    changing = [threading.Thread(target=change, args=[f"more-{number}"]) for number in range(3)]
    for thread in changing:
        thread.start()
    try:
        for _ in range(40):
            assert set(HOSTS) <= set(group.hosts)
            assert set(HOSTS) <= group.run("true", on_error="collect").keys()
            group.get_runtime()
            group.get_runtimes(exclude_hosts="web1")
            group.add_env_variables({"A": "1"})
            group.join()
            assert group.task_processes == []
            list(group.map(int, ["1", "2"], on_error="collect"))
    finally:
        over.set()
        for thread in changing:
            thread.join()
    assert errors == []
    assert group.hosts == HOSTS


def test_the_least_busy(group: RuntimeGroup, fake_host: FakeHost) -> None:
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


def test_a_host_that_is_lost_does_not_get_everything(group: RuntimeGroup, fake_host: FakeHost) -> None:
    """Whatever it gets has failed at once, so that it is never busy."""
    fake_host.on("sleep", delay=math.inf)
    fake_host.on("false", exit_code=1)
    fake_host.host("web1").go_down()
    assert group.get_runtime().host == "web1", "nobody knows yet"
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
    assert group.get_runtime().host == "web1", "that is forgotten"
    fake_host.host("web1").come_up()
    group.runtimes[0].cleanup()
    assert group.get_runtime().host == "web2", "it was cleaned up"


def test_a_task_that_fails_says_nothing_about_the_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("false", exit_code=1)
    group.execute_task(RuntimeTask().run_command("false"), execute_async=False, on_error="collect")
    assert group.get_runtime().host == "web1"


def lose(group: RuntimeGroup, fake_host: FakeHost, host: str) -> None:
    fake_host.host(host).go_down()
    group.execute_task(RuntimeTask().run_command("id"), host=host, execute_async=False, on_error="collect")
    fake_host.host(host).come_up()


def test_where_all_were_lost_the_one_lost_first_is_tried(group: RuntimeGroup, fake_host: FakeHost) -> None:
    """So that one that is dead, and never busy, does not get what the others could do by now."""
    for host in ("web2", "web1", "web3"):
        lose(group, fake_host, host)
    assert group.get_runtime().host == "web2"
    lose(group, fake_host, "web2")
    assert group.get_runtime().host == "web1"


def test_a_host_on_which_something_does_well_is_one_of_them_again(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id")
    lose(group, fake_host, "web1")
    assert group.get_runtime().host == "web2"
    group.run("id")
    assert group.get_runtime().host == "web1"
    lose(group, fake_host, "web1")
    group.execute_task(RuntimeTask().run_command("id"), host="web1", execute_async=False)
    assert group.get_runtime().host == "web1"


def test_it_is_the_task_that_ended_last_that_counts(group: RuntimeGroup, fake_host: FakeHost) -> None:
    """Not the one that began last."""
    fake_host.on("long", delay=0.5)
    fake_host.host("web1").on("lost", error=ConnectionLostError("web1", "lost", "a blip", started=True))
    slow = group.execute_task(RuntimeTask().run_command("long"), host="web1")
    group.execute_task(RuntimeTask().run_command("lost"), host="web1", execute_async=False, on_error="collect")
    assert group.get_runtime().host == "web2"
    slow.join()
    assert group.get_runtime().host == "web1"


def test_what_a_function_raises_is_no_loss_of_its_host(group: RuntimeGroup) -> None:
    """As of one that uses this library to reach hosts of its own."""

    def fail() -> NoReturn:
        raise HostUnreachableError("inner", "no route")

    task = RuntimeTask().run_function(fail)
    outcome = group.execute_task(task, host="web1", execute_async=False, on_error="collect")
    assert isinstance(outcome, Error)
    assert group.get_runtime().host == "web1"
    assert not task.results[0].host_lost
    with pytest.raises(HostUnreachableError, match="inner"):
        list(task.function_returns)


def test_tunnels_make_nobody_busy(group: RuntimeGroup) -> None:
    group.runtimes[0].expose_port_to_runtime(8786)
    assert group.get_runtime().host == "web1"


def test_environment_variables(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("env")
    group.add_env_variables({"A": "1", "B": "2"})
    group.add_env_variables({"B": "3"})
    group.run("env")
    group.set_env_variables({"C": "4"})
    group.run("env")
    seen = [{key: call.env[key] for key in call.env.keys() & set("ABC")} for call in fake_host.calls]  # type: ignore[union-attr]
    assert seen == [{"A": "1", "B": "3"}] * 3 + [{"C": "4"}] * 3


def test_a_host_that_is_added_gets_the_environment_variables_of_the_group(group: RuntimeGroup) -> None:
    group.add_env_variables({"A": "1", "B": "2"})
    group.set_env_variables({"C": "4"})
    with pytest.raises(ValueError, match="not a name"):
        group.add_env_variables({"not a name": "x"})
    group.add_env_variables({"D": "5"})
    own = Runtime("own")
    own.set_env_variables({"OWN": "1"})
    group.add_runtime(own)
    group.add_runtime("new")
    added = group.get_runtimes(["own", "new"])
    assert {host: runtime.env_variables for host, runtime in added.items()} == {
        "own": {"OWN": "1", "WORKING_DIR": added["own"].working_dir},
        "new": {"C": "4", "D": "5", "WORKING_DIR": added["new"].working_dir},
    }


# Connecting ----------------------------------------------------------------------------------------------------------


def test_a_host_that_fails_is_told_and_nothing_stays_connected(fake_host: FakeHost) -> None:
    fake_host.host("dead").go_down()
    fake_host.host("old").has(python_version="")
    with pytest.raises(HostsFailedError) as caught:
        RuntimeGroup(hosts=["a", "dead", "b", "old"])
    assert str(caught.value) == (
        "connecting failed on 2 of 4 hosts:\n"
        "  dead cannot be used as a runtime: host unreachable (the test took it down). Check your network, VPN and "
        "routes to dead.\n"
        "  old cannot be used as a runtime: no Python found (looked for "
        + str(caught.value).partition("(looked for ")[2]
    )
    assert [host for host, _ in caught.value.errors] == ["dead", "old"]
    assert isinstance(caught.value.exceptions[0].__cause__, HostUnreachableError)
    assert caught.value.__cause__ is None, "a traceback shows its members"
    assert fake_host.closed
    assert fake_host.cleaned_up
    assert pickle.loads(pickle.dumps(caught.value)).total == 4


def test_hosts_that_fail_can_be_skipped(fake_host: FakeHost) -> None:
    fake_host.host("dead").go_down()
    with RuntimeGroup(hosts=["a", "dead", "b"], on_error="skip") as group:
        assert group.hosts == ["a", "b"]
        assert list(group.failed_hosts) == ["dead"]
        assert isinstance(group.failed_hosts["dead"], InvalidRuntimeError)
    with RuntimeGroup(hosts=["dead"], on_error="skip") as group:
        assert group.hosts == []


def test_never_more_log_ins_at_once_than_said(fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, now, most, limit = threading.Condition(), 0, 0, 0

    set_up = FakeTransport.set_up

    def slow_set_up(transport: FakeTransport, working_dir: str | None) -> tuple[str, HostInfo]:
        nonlocal now, most
        with changed:
            now += 1
            most = max(most, now)
            changed.notify_all()
            assert changed.wait_for(lambda: most >= limit, 10), "so many at once are allowed"
        time.sleep(0.02)  # for one too many to come
        made = set_up(transport, working_dir)
        with changed:
            now -= 1
        return made

    monkeypatch.setattr(FakeTransport, "set_up", slow_set_up)
    for limit, keywords in ((3, {"max_connections": 3}), (16, {})):
        most = 0
        with RuntimeGroup(hosts=[f"host-{number}" for number in range(24)], **keywords):  # type: ignore[arg-type]
            assert most == limit


def test_ctrl_c_while_it_connects(fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts that are connected are given back; log-ins under way end, and those that did not begin do not."""
    begun: list[str] = []

    set_up = FakeTransport.set_up

    def slow_set_up(transport: FakeTransport, working_dir: str | None) -> tuple[str, HostInfo]:
        begun.append(transport.host)
        if transport.host.startswith("slow"):
            assert wait_until(lambda: transport.closed, 20)
        return set_up(transport, working_dir)

    monkeypatch.setattr(FakeTransport, "set_up", slow_set_up)
    hosts = ["quick-1", "slow-1", "quick-2", "slow-2", "never"]
    interrupt(lambda: RuntimeGroup(hosts=hosts, max_connections=2), lambda: len(begun) == 4)
    assert sorted(begun) == sorted(hosts[:4])
    assert fake_host.closed
    assert fake_host.cleaned_up
    assert wait_until(lambda: not library_thread_names(), timeout=10)


# Commands ------------------------------------------------------------------------------------------------------------


def test_a_command_on_every_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    for number, host in enumerate(HOSTS):
        fake_host.host(host).on("id", stdout=f"{host}\n", stderr="e", exit_code=number, delay=0.03 * (3 - number))
    seen: list[tuple[str, Stream, bytes]] = []
    results = group.run("id", on_output=lambda *piece: seen.append(piece))
    assert list(results) == HOSTS
    assert [result.exit_code for result in results.values()] == [0, 1, 2], "an exit status is no exception"
    assert [result.stdout for result in results.values()] == ["web1\n", "web2\n", "web3\n"]
    assert set(seen) == {
        piece for host in HOSTS for piece in ((host, Stream.STDOUT, f"{host}\n".encode()), (host, Stream.STDERR, b"e"))
    }


def test_what_a_command_reads(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("cat")
    group.run("cat", stdin=b"input")
    ran = [call for call in fake_host.calls if isinstance(call, Ran)]
    assert hosts_of(ran) == HOSTS
    assert {call.stdin for call in ran} == {b"input"}


def test_all_at_the_same_time(group: RuntimeGroup, fake_host: FakeHost) -> None:
    together = threading.Barrier(3)

    def arrive(asked: Ran) -> bool:
        together.wait(10)
        return True

    for host in HOSTS:
        fake_host.host(host).on(arrive, stdout=host)
    assert [result.stdout for result in group.run("any").values()] == HOSTS


def test_a_command_that_fails_somewhere(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("work", stdout="done")
    fake_host.host("web2").on("work", error=ConnectionLostError("web2", "work", "cut", started=True))
    fake_host.host("web3").on("work", delay=math.inf, stdout="half")
    with pytest.raises(HostsFailedError) as caught:
        group.run("work", timeout=0.2)
    assert str(caught.value) == (
        "`work` failed on 2 of 3 hosts:\n"
        "  web2: connection lost during `work` (cut). It had started on the host, which ends it when it sees the "
        "connection gone.\n"
        "  web3: `work` took longer than its timeout of 0.2 s and was ended.\n"
        "      half"
    )
    done = caught.value.values["web1"]
    assert isinstance(done, CommandResult)
    assert done.stdout == "done"
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.values == caught.value.values
    assert str(again) == str(caught.value)

    found = group.run("work", timeout=0.2, on_error="collect")
    assert list(found) == HOSTS
    assert isinstance(found["web1"], CommandResult)
    assert isinstance(found["web2"], Error)
    assert isinstance(found["web2"].error, ConnectionLostError)
    assert isinstance(found["web3"], Error)
    with pytest.raises(CommandTimeoutError):
        found["web3"].unwrap()


def test_who_follows_the_output_and_raises_is_told(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id", stdout="x")

    def follow(host: str, _stream: Stream, _data: bytes) -> None:
        if host == "web2":
            raise BrokenPipeError("closed")

    with pytest.raises(HostsFailedError, match=r"\n  web2: BrokenPipeError: closed$"):
        group.run("id", on_output=follow)


def test_every_method_knows_its_on_error(group: RuntimeGroup, fake_host: FakeHost) -> None:
    bad: Any = "skip"
    task = RuntimeTask()
    for use in (
        lambda: group.run("id", on_error=bad),
        lambda: group.call(int, on_error=bad),
        lambda: group.map(int, ["1"], on_error=bad),
        lambda: group.execute_task(task, on_error=bad),
        lambda: group.send_file(__file__, on_error=bad),
    ):
        with pytest.raises(ValueError, match="on_error must be 'raise' or 'collect', got 'skip'"):
            use()
    assert fake_host.calls == []


def test_arguments_that_are_wrong_are_no_fault_of_the_hosts(group: RuntimeGroup, fake_host: FakeHost) -> None:
    for use in (
        lambda: group.run(""),
        lambda: group.run("id", timeout=0),
        lambda: group.expose_port_to_runtimes(0),
        lambda: group.expose_port_to_runtimes(80, 70000),
    ):
        with pytest.raises(ValueError, match=r"command must|timeout must|port must") as caught:
            use()
        assert not isinstance(caught.value, HostsFailedError)
    assert fake_host.calls == []


def under_way(fake_host: FakeHost, count: int) -> Callable[[], bool]:
    return lambda: sum(way.calls_under_way for way in fake_host._state.transports) >= count


def test_ctrl_c_during_a_command(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("sleep", delay=math.inf)
    interrupt(lambda: group.run("sleep"), under_way(fake_host, 3))
    assert under_way(fake_host, 0)()
    assert not under_way(fake_host, 1)()
    assert wait_until(lambda: not library_thread_names(), timeout=10)


# Functions -----------------------------------------------------------------------------------------------------------


def test_a_function_on_every_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    group.add_env_variables({"A": "1"})
    found = group.call(lambda *args, **kwargs: (args, kwargs, os.environ["A"], Path.cwd().exists()), 1, two=2)
    assert found == dict.fromkeys(HOSTS, ((1,), {"two": 2}, "1", True))
    assert list(found) == HOSTS
    assert hosts_of(fake_host.calls) == HOSTS


def test_a_function_that_fails_somewhere(group: RuntimeGroup) -> None:
    group.runtimes[1].add_env_variables({"BAD": "1"})

    def work() -> str:
        if "BAD" in os.environ:
            raise KeyError("why")
        return "well"

    with pytest.raises(HostsFailedError) as caught:
        group.call(work)
    assert str(caught.value).endswith("work failed on 1 of 3 hosts:\n  web2: KeyError: 'why'")
    assert caught.value.values == {"web1": "well", "web3": "well"}
    found = group.call(work, on_error="collect")
    assert isinstance(found["web2"], Error)
    assert found["web3"] == "well"


@pytest.mark.parametrize("function", [None, "text", 3])
def test_what_is_no_function(group: RuntimeGroup, fake_host: FakeHost, function: Any) -> None:
    for use in (lambda: group.call(function), lambda: group.map(function, [])):
        with pytest.raises(ValueError, match="function must be callable"):
            use()
    assert fake_host.calls == []


def test_a_function_that_cannot_be_sent(group: RuntimeGroup) -> None:
    lock = threading.Lock()
    with pytest.raises(FunctionNotSerializableError):  # no host is to blame
        group.call(lambda: lock)


def test_call_on_group_pickles_the_function_once(group: RuntimeGroup) -> None:
    pickled: list[int] = []

    class Counted:
        def __call__(self) -> int:
            return 7

        def __getstate__(self) -> dict[str, object]:
            pickled.append(1)
            return {}

    assert group.call(Counted()) == dict.fromkeys(group.hosts, 7)
    assert len(pickled) == 1


def test_ctrl_c_during_a_function(group: RuntimeGroup, fake_host: FakeHost, tmp_path: Path) -> None:
    def wait() -> None:
        while not (tmp_path / "over").exists():
            time.sleep(0.01)

    try:
        interrupt(lambda: group.call(wait), under_way(fake_host, 3))
        assert not under_way(fake_host, 1)()
        assert wait_until(lambda: not library_thread_names(), timeout=10)
    finally:
        (tmp_path / "over").touch()


# Items ---------------------------------------------------------------------------------------------------------------


def double(item: int) -> int:
    if item < 0:
        raise ValueError(f"negative: {item}")
    return 2 * item


@pytest.mark.parametrize("ordered", [True, False])
def test_items_over_hosts(group: RuntimeGroup, fake_host: FakeHost, ordered: bool) -> None:
    found = list(group.map(double, range(2000), ordered=ordered))
    assert (found if ordered else sorted(found)) == list(range(0, 4000, 2))
    assert set(hosts_of(fake_host.calls)) <= set(HOSTS)


def test_an_item_that_fails(group: RuntimeGroup) -> None:
    mapped = group.map(double, [1, -2, 3])
    assert next(mapped) == 2
    with pytest.raises(ValueError, match="negative: -2"):
        next(mapped)
    assert next(mapped, None) is None
    assert wait_until(lambda: not library_thread_names(), timeout=10)
    found = list(group.map(double, [1, -2, 3], on_error="collect"))
    assert [found[0], found[2]] == [2, 6]
    assert isinstance(found[1], Error)
    assert isinstance(found[1].error, ValueError)


def test_an_item_that_cannot_be_sent(group: RuntimeGroup) -> None:
    found = list(group.map(str, [1, threading.Lock(), 3], on_error="collect"))
    assert [found[0], found[2]] == ["1", "3"]
    assert isinstance(found[1], Error)
    assert isinstance(found[1].error, FunctionNotSerializableError)


def test_a_host_that_dies_in_the_middle(group: RuntimeGroup, fake_host: FakeHost) -> None:
    mapped = group.map(double, itertools.count())
    assert [next(mapped) for _ in range(10)] == list(range(0, 20, 2))
    fake_host.host("web2").go_down()
    assert [next(mapped) for _ in range(500)] == list(range(20, 1020, 2))
    fake_host.host("web1").go_down()
    fake_host.host("web3").go_down()
    with pytest.raises(HostsFailedError, match=r"map\(double\) failed on 3 of 3 hosts:\n  web1: "):
        for _ in mapped:
            pass
    assert wait_until(lambda: not library_thread_names(), timeout=10)
    for host in HOSTS:
        fake_host.host(host).come_up()


def test_hosts_that_are_dead_from_the_beginning(group: RuntimeGroup, fake_host: FakeHost) -> None:
    for host in HOSTS:
        fake_host.host(host).go_down()
    with pytest.raises(HostsFailedError) as caught:
        list(group.map(double, range(5), retries=3))
    assert [host for host, _ in caught.value.errors] == HOSTS
    assert all(isinstance(error, HostUnreachableError) for error in caught.value.exceptions)
    for host in HOSTS:
        fake_host.host(host).come_up()


@pytest.mark.parametrize("retries", [-1, True, 1.5, None])
def test_retries_that_cannot_be_right(group: RuntimeGroup, retries: Any) -> None:
    with pytest.raises(ValueError, match="retries must be a whole number from 0 on"):
        group.map(double, [], retries=retries)


def test_what_is_wrong_is_told_before_it_is_iterated(group: RuntimeGroup) -> None:
    nothing: Any = None
    with pytest.raises(TypeError):
        group.map(double, nothing)


def test_who_stops_to_iterate(group: RuntimeGroup, fake_host: FakeHost) -> None:
    mapped = group.map(double, itertools.count())
    assert [next(mapped) for _ in range(3)] == [0, 2, 4]
    mapped.close()
    assert wait_until(lambda: not library_thread_names(), timeout=10)
    begun = len(fake_host.calls)
    assert not under_way(fake_host, 1)()
    assert len(fake_host.calls) == begun
    for item in group.map(double, itertools.count()):
        if item > 100:
            break
    assert wait_until(lambda: not library_thread_names(), 10), "forgotten without close()"


def test_ctrl_c_while_items_are_worked_on(group: RuntimeGroup, fake_host: FakeHost, tmp_path: Path) -> None:
    def wait(_item: int) -> None:
        while not (tmp_path / "over").exists():
            time.sleep(0.01)

    try:
        interrupt(lambda: list(group.map(wait, itertools.count())), under_way(fake_host, 3))
        assert not under_way(fake_host, 1)()
        assert wait_until(lambda: not library_thread_names(), timeout=10)
    finally:
        (tmp_path / "over").touch()


# Tasks ---------------------------------------------------------------------------------------------------------------


def test_a_task_on_one_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id", stdout="x\n")
    task = RuntimeTask("t").run_command("id").run_function(double, 4)
    assert group.execute_task(task, "web2") is task
    group.join()
    assert task.execution_log == ["x\n", ""]
    assert list(group.function_returns) == [8]
    assert {call.host for call in fake_host.calls} == {"web2"}
    assert group.execute_task(task, execute_async=False) is task
    assert {call.host for call in fake_host.calls} == {"web1", "web2"}


def test_a_task_on_every_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    for number, host in enumerate(HOSTS):
        fake_host.host(host).on("id", stdout=host, delay=0.05 * (3 - number))
    task = RuntimeTask("t").run_command("id").run_function(double, 4)
    for execute_async in (True, False):
        copies = group.execute_task(task, broadcast=True, execute_async=execute_async)
        group.join()
        assert list(copies) == HOSTS
        assert [copy.execution_log for copy in copies.values()] == [[host, ""] for host in HOSTS]
        assert [list(copy.function_returns) for copy in copies.values()] == [[8], [8], [8]]
        assert [copy.name for copy in copies.values()] == ["t"] * 3
        assert len({id(copy) for copy in [task, *copies.values()]}) == 4
    assert task.execution_log == []
    assert list(group.function_returns) == [8] * 6
    assert [process.name for process in group.task_processes] == [
        f"task t on {host}" for host in HOSTS for _ in range(2)
    ]


def test_returns_are_host_by_host_whoever_is_first(group: RuntimeGroup) -> None:
    def who(host: str) -> str:
        return host

    for host in reversed(HOSTS):
        group.execute_task(RuntimeTask().run_function(who, host), host=host)
    assert list(group.function_returns) == HOSTS
    group.clear_tasks()
    assert list(group.function_returns) == []


def test_a_task_that_fails(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id", exit_code=3, stdout="said")
    task = RuntimeTask("t").run_command("id")
    with pytest.raises(TaskExecutionError, match="web1: task 't' failed at step 0"):
        group.execute_task(task, execute_async=False)
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
    assert str(caught.value) == (
        "a task failed on 1 of 3 hosts:\n"
        "  web2: task 't' failed at step 0, run_command(id): `id` ended with exit status 3.\n"
        "      said"
    )


def test_a_task_that_fails_somewhere(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id")
    fake_host.host("web2").on("id", exit_code=3)
    task = RuntimeTask("t").run_command("id")
    with pytest.raises(HostsFailedError, match="task 't' failed on 1 of 3 hosts:\n  web2: task 't'") as caught:
        group.execute_task(task, broadcast=True, execute_async=False)
    assert list(caught.value.values) == ["web1", "web3"]
    assert all(isinstance(copy, RuntimeTask) for copy in caught.value.values.values())
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    found = group.execute_task(task, broadcast=True, execute_async=False, on_error="collect")
    assert isinstance(found["web2"], Error)
    assert isinstance(found["web2"].error, TaskExecutionError)
    assert isinstance(found["web3"], RuntimeTask)

    group.clear_tasks()
    copies = group.execute_task(task, broadcast=True)
    with pytest.raises(HostsFailedError, match="a task failed on 1 of 3 hosts:\n  web2: "):
        group.join()
    assert [bool(copy.results) for copy in copies.values()] == [True] * 3


def test_a_file_from_every_host(group: RuntimeGroup, fake_host: FakeHost, tmp_path: Path) -> None:
    for host in HOSTS:
        fake_host.host(host).path("out").write_text(host)
    task = RuntimeTask().get_file("out", tmp_path / "of {host}" / "{host}.txt")
    group.execute_task(task, broadcast=True, execute_async=False)
    group.execute_task(task, host="web2", execute_async=False)
    for host in HOSTS:
        assert (tmp_path / f"of {host}" / f"{host}.txt").read_text() == host


def test_files_of_all_hosts_are_not_written_over_each_other(
    group: RuntimeGroup, fake_host: FakeHost, tmp_path: Path
) -> None:
    task = RuntimeTask().get_file("out", tmp_path / "out")
    with pytest.raises(ValueError, match=r"would write to the same place, .*/out: put \{host\} into the local path"):
        group.execute_task(task, broadcast=True)
    assert fake_host.calls == [], "nothing was begun"
    fake_host.host("web1").path("out").write_text("web1")
    with RuntimeGroup([group.get_runtime("web1")]) as single:
        single.execute_task(task, broadcast=True, execute_async=False)
    assert (tmp_path / "out").read_text() == "web1"


def test_a_broadcast_where_a_host_is_closed(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id")
    group.runtimes[1].cleanup()
    task = RuntimeTask("t").run_command("id")
    for execute_async in (True, False):
        with pytest.raises(HostsFailedError, match=r"\n  web2: closed already\. Make a new one\.$") as caught:
            group.execute_task(task, broadcast=True, execute_async=execute_async)
        assert list(caught.value.values) == ["web1", "web3"]
        found = group.execute_task(task, broadcast=True, execute_async=execute_async, on_error="collect")
        assert isinstance(found["web2"], Error)
        assert isinstance(found["web2"].error, RuntimeClosedError)
    group.join()


def test_a_broadcast_is_to_all(group: RuntimeGroup) -> None:
    everywhere: Any = {"host": "web1", "broadcast": True}
    with pytest.raises(ValueError, match="host must be None with broadcast, got 'web1'"):
        group.execute_task(RuntimeTask(), **everywhere)


def test_debug_prints_what_the_hosts_print(
    group: RuntimeGroup, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    for host in HOSTS:
        fake_host.host(host).on("id", stdout=f"said by {host}\nand no more")
    task = RuntimeTask().run_command("id")
    group.execute_task(task, broadcast=True, execute_async=False)
    assert capsys.readouterr().out == ""
    group.execute_task(task, broadcast=True, execute_async=False, debug=True)
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(
        f"{host} | {line}" for host in HOSTS for line in (f"said by {host}", "and no more")
    )
    group.execute_task(task, "web1", execute_async=False, debug=True)
    assert capsys.readouterr().out == "said by web1\nand no more"


def test_ctrl_c_during_a_task(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("sleep", delay=math.inf)
    task = RuntimeTask().run_command("sleep")
    interrupt(lambda: group.execute_task(task, execute_async=False), under_way(fake_host, 1))
    assert not under_way(fake_host, 1)()


@pytest.mark.parametrize("on_error", ["raise", "collect"])
def test_ctrl_c_during_a_task_on_every_host(group: RuntimeGroup, fake_host: FakeHost, on_error: Any) -> None:
    fake_host.on("sleep", delay=math.inf)
    task = RuntimeTask().run_command("sleep")
    interrupt(
        lambda: group.execute_task(task, broadcast=True, execute_async=False, on_error=on_error),
        under_way(fake_host, 3),
    )
    assert not under_way(fake_host, 1)()
    assert wait_until(lambda: not any(process.is_alive() for process in group.task_processes), 10)
    group.clear_tasks()


def test_ctrl_c_while_tasks_in_the_background_are_waited_for(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("sleep", delay=math.inf)
    copies = group.execute_task(RuntimeTask().run_command("sleep"), broadcast=True)
    begun = time.monotonic()
    interrupt(group.join, lambda: under_way(fake_host, 3)() and time.monotonic() - begun > 0.2)
    assert all(process.is_alive() for process in group.task_processes), "they go on: only the wait is over"
    for copy in copies.values():
        assert copy.process is not None
        copy.process.terminate()
    with pytest.raises(HostsFailedError, match="a task failed on 3 of 3 hosts"):
        group.join()


def test_a_file_to_every_host(group: RuntimeGroup, fake_host: FakeHost, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("content")
    tasks = group.send_file(tmp_path / "data")
    group.join()
    assert list(tasks) == HOSTS
    for runtime in group.runtimes:
        assert fake_host.host(runtime.host).path(f"{runtime.working_dir}/data").read_text() == "content"
    group.send_file(str(tmp_path / "data"), "~/there", execute_async=False)
    assert all(fake_host.host(host).path("~/there").read_text() == "content" for host in HOSTS)
    assert hosts_of([call for call in fake_host.calls if isinstance(call, Sent)]) == sorted(HOSTS * 2)


def test_a_file_that_cannot_be_sent(group: RuntimeGroup, fake_host: FakeHost, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or directory"):
        group.send_file(tmp_path / "none")
    fake_host.host("web2").go_down()
    with pytest.raises(HostsFailedError, match=r"task 'send .*test_groups.py' failed on 1 of 3 hosts:\n  web2: "):
        group.send_file(__file__, execute_async=False)
    found = group.send_file(__file__, execute_async=False, on_error="collect")
    assert [isinstance(outcome, Error) for outcome in found.values()] == [False, True, False]
    group.clear_tasks()
    group.send_file(__file__)
    with pytest.raises(HostsFailedError, match="a task failed on 1 of 3 hosts"):
        group.join()
    fake_host.host("web2").come_up()


# Ports ---------------------------------------------------------------------------------------------------------------


def test_free_ports(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.host("web1").ports_in_use = {8000}
    fake_host.host("web3").ports_in_use = {8001, 8003}
    assert not group.has_free_port(8000)
    assert group.has_free_port(8000, exclude_hosts="web1")
    assert group.has_free_port(8002)
    assert group.get_free_port([8003, 8001, 8004, 8002]) == 8004, "the first in the order of preference"
    assert group.get_free_port(iter([8003, 8001, 8000]), exclude_hosts=["web3"]) == 8003
    asked = [call.ports for call in fake_host.calls if isinstance(call, AskedForPorts)]
    assert asked[-2:] == [(8003, 8001, 8000)] * 2, "one round trip for each host"
    with pytest.raises(NoPortsLeftError, match="the group: none of the 3 ports from 8000 to 8003 is free"):
        group.get_free_port([8000, 8001, 8003])
    with pytest.raises(NoPortsLeftError, match="the list is empty"):
        group.get_free_port([])
    for port in (0, 65536):
        with pytest.raises(ValueError, match="port"):
            group.has_free_port(port)
        with pytest.raises(ValueError, match="port"):
            group.get_free_port([8000, port])


def test_a_port_that_is_to_be_free_here_too(group: RuntimeGroup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        taken, free = server.getsockname()[1], other.getsockname()[1]
        other.close()
        assert group.get_free_port([taken, free]) == taken
        assert group.get_free_port([taken, free], enforce_check_on_localhost=True) == free


def test_hosts_that_cannot_be_asked_for_ports(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.host("web2").go_down()
    with pytest.raises(HostsFailedError, match="asking for free ports failed on 1 of 3 hosts:\n  web2: "):
        group.has_free_port(8000)
    assert group.has_free_port(8000, exclude_hosts="web2")
    fake_host.host("web2").come_up()


def tunnels(group: RuntimeGroup) -> dict[str, list[str]]:
    """Return the tunnels that are open, by host."""
    return {
        runtime.host: [str(process.name.partition(": ")[2]) for process in living(runtime) if "tunnel" in process.name]
        for runtime in group.runtimes
        if living(runtime)
    }


def living(runtime: Runtime) -> list[ManagedProcess]:
    return list(runtime.get_processes(only_alive=True).values())


def test_a_port_for_every_host(group: RuntimeGroup) -> None:
    keys = group.expose_port_to_runtimes(80, 8080)
    assert keys == [f"to-runtime-8080-0@{host}" for host in HOSTS]
    assert tunnels(group) == {host: ["-R localhost:8080:localhost:80"] for host in HOSTS}
    keys += group.expose_port_to_runtimes(81, exclude_hosts="web2")
    assert keys[3:] == ["to-runtime-81-1@web1", "to-runtime-81-1@web3"]
    for key in keys:
        group.stop_process(key)
    assert tunnels(group) == {}
    with pytest.raises(ValueError, match="no host of the group has a process with the key 'none'"):
        group.stop_process("none")


def test_keys_are_those_of_one_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("sleep", delay=math.inf)
    group.execute_task(RuntimeTask("t").run_command("sleep"), broadcast=True)
    keys = [key for runtime in group.runtimes for key in runtime.get_processes()]
    assert keys == [f"t-0@{host}" for host in HOSTS]
    group.stop_process(keys[1])
    assert [process.is_alive() for process in group.task_processes] == [True, False, True]


def test_a_port_that_is_taken_somewhere_is_rolled_back(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.host("web2").ports_in_use = {8080}
    with pytest.raises(HostsFailedError) as caught:
        group.expose_port_to_runtimes(80, 8080)
    assert str(caught.value) == (
        "exposing port 80 failed on 1 of 3 hosts:\n  web2: port 8080 is in use. Choose another one there."
    )
    assert isinstance(caught.value.exceptions[0], PortInUseError)
    assert tunnels(group) == {}
    assert len(group.expose_port_to_runtimes(80, 8080, exclude_hosts="web2")) == 2


def test_a_port_of_one_host_for_the_others(group: RuntimeGroup) -> None:
    keys = group.expose_port_from_runtime_to_group("web2", 8786)
    assert keys == ["from-runtime-8786-0@web2", "to-runtime-8786-0@web1", "to-runtime-8786-0@web3"]
    assert tunnels(group) == {
        "web1": ["-R localhost:8786:localhost:8786"],
        "web2": ["-L localhost:8786:localhost:8786"],
        "web3": ["-R localhost:8786:localhost:8786"],
    }
    for key in keys:
        group.stop_process(key)
    group.expose_port_from_runtime_to_group("web1", 80, 8080, 8081)
    assert tunnels(group) == {
        "web1": ["-L localhost:8080:localhost:80"],
        "web2": ["-R localhost:8081:localhost:8080"],
        "web3": ["-R localhost:8081:localhost:8080"],
    }


@pytest.mark.parametrize("ports", [(0,), (80, 0), (80, 8080, 0), (80, 8080, 70000)])
def test_ports_that_cannot_be(group: RuntimeGroup, fake_host: FakeHost, ports: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="port"):
        group.expose_port_from_runtime_to_group("web1", *ports)
    assert not [call for call in fake_host.calls if isinstance(call, OpenedTunnel)]


def test_all_of_it_is_rolled_back(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.host("web3").ports_in_use = {8081}
    with pytest.raises(HostsFailedError, match="exposing port 8080 failed on 1 of 2 hosts"):
        group.expose_port_from_runtime_to_group("web1", 80, 8080, 8081)
    assert tunnels(group) == {}
    group.runtimes[0].expose_port_from_runtime(80, 8080)
    with pytest.raises(PortInUseError, match="localhost: port 8080"):
        group.expose_port_from_runtime_to_group("web2", 80, 8080)
    assert list(tunnels(group)) == ["web1"]


def test_ctrl_c_while_tunnels_are_opened(group: RuntimeGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Runtime.expose_port_to_runtime
    slow = threading.Event()

    def expose(runtime: Runtime, *args: Any) -> str:
        if runtime.host == "web2":
            slow.wait(0.5)
        return real(runtime, *args)

    monkeypatch.setattr(Runtime, "expose_port_to_runtime", expose)
    interrupt(
        lambda: group.expose_port_from_runtime_to_group("web1", 80, 8080),
        lambda: tunnels(group).keys() >= {"web1", "web3"},
    )
    assert tunnels(group) == {}


# For people ----------------------------------------------------------------------------------------------------------


def test_tables(group: RuntimeGroup, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    fake_host.host("gpu").has(gpus=2, cpu_cores=1.5, memory=3 * 2**30, python_version="3.9.2")
    group.add_runtime(Runtime("gpu", "/work"))
    group.print_runtime_info()
    python = group.runtimes[0].python_version
    pad = " " * (max(0, 6 - len(python)))
    assert capsys.readouterr().out == (
        f"4 hosts\n"
        f"host  OS              Python{' ' * (len(python) - 6)}  CPU cores  memory   GPUs\n"
        f"----  --------------  {'-' * max(6, len(python))}  ---------  -------  ------------\n"
        f"web1  Fake Linux 1.0  {python}{pad}  4          8.0 GiB  0\n"
        f"web2  Fake Linux 1.0  {python}{pad}  4          8.0 GiB  0\n"
        f"web3  Fake Linux 1.0  {python}{pad}  4          8.0 GiB  0\n"
        f"gpu   Fake Linux 1.0  {'3.9.2'.ljust(max(6, len(python)))}  1.5        3.0 GiB  2 x Fake GPU\n"
    )
    group.print_hosts()
    width = min(60, max(len(runtime.working_dir) for runtime in group.runtimes))
    assert capsys.readouterr().out == (
        f"4 hosts\nhost  working directory\n----  {'-' * width}\n"
        + "".join(f"{runtime.host.ljust(4)}  {runtime.working_dir}\n" for runtime in group.runtimes)
    )


def test_logs(group: RuntimeGroup, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    for host in HOSTS:
        fake_host.host(host).on("id", stdout=f"I am {host}\n")
    group.execute_task(RuntimeTask("t").run_command("id"), broadcast=True, execute_async=False)
    group.print_log()
    assert capsys.readouterr().out == "".join(f"{host}: t\n[0] I am {host}\n" for host in HOSTS)
    group.clear_tasks()
    group.print_log()
    assert capsys.readouterr().out == ""
    assert group.task_processes == []


# The end -------------------------------------------------------------------------------------------------------------


def test_the_end_is_that_of_everything(fake_host: FakeHost) -> None:
    fake_host.on("sleep", delay=math.inf)
    for host in HOSTS:
        fake_host.host(host)
    group = RuntimeGroup(hosts=HOSTS)
    copies = group.execute_task(RuntimeTask().run_command("sleep"), broadcast=True)
    group.expose_port_to_runtimes(80)
    assert tunnels(group).keys() == set(HOSTS)
    group.close()
    group.cleanup()
    assert fake_host.closed
    assert fake_host.cleaned_up
    assert tunnels(group) == {}
    for copy in copies.values():
        with pytest.raises(TaskExecutionError, match="stopped"):
            copy.join()
    with pytest.raises(HostsFailedError, match=r"`true` failed on 3 of 3 hosts:\n  web1: closed already"):
        group.run("true")
    with pytest.raises(HostsFailedError, match=r"map\(double\) failed on 3 of 3 hosts:\n  web1: closed already"):
        list(group.map(double, [1]))
    assert wait_until(lambda: not library_thread_names(), timeout=10)


def test_a_clean_up_that_fails_somewhere_is_told_after_all_others(
    fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = RuntimeGroup(hosts=HOSTS)

    def fail() -> NoReturn:
        raise LookupError("why")

    with monkeypatch.context() as patch:
        patch.setattr(group.runtimes[1], "cleanup", fail)
        with pytest.raises(HostsFailedError, match="the clean-up failed on 1 of 3 hosts:\n  web2: LookupError: why"):
            group.cleanup()
    assert {way.host: way.closed for way in fake_host._state.transports} == {"web1": True, "web2": False, "web3": True}
    group.cleanup()
    assert fake_host.closed


def test_calls_are_recorded_as_one_would_make_them(group: RuntimeGroup, fake_host: FakeHost) -> None:
    group.call(double, 2)
    for call in fake_host.calls:
        assert isinstance(call, Called)
        assert call.cwd == group.get_runtime(call.host).working_dir


def test_there_are_files_for_many_hosts() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        _raise_open_file_limit(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(256 + 1600, hard)
        _raise_open_file_limit(1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(256 + 1600, hard), "it is never lowered"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
