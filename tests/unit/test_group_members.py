"""The members of a group: which hosts it has, how it connects to them, and how it ends."""

from __future__ import annotations

import math
import pickle
import resource
import threading
from typing import Any, NoReturn

import pytest

from lazycluster import (
    CommandStoppedError,
    HostsFailedError,
    HostUnreachableError,
    InvalidRuntimeError,
    NoRuntimesError,
    PythonNotFoundError,
    Runtime,
    RuntimeClosedError,
    RuntimeGroup,
    RuntimeTask,
    TaskExecutionError,
)
from lazycluster._membership import raise_open_file_limit
from lazycluster.hardware import HostInfo
from lazycluster.testing import FakeHost, Ran
from lazycluster.testing._fake_transport import FakeTransport
from tests.keyboard_interrupt import interrupt
from tests.unit.group_hosts import GROUP_HOSTS, double, group_thread_names, open_tunnels
from tests.unit.transport_recorder import TransportRecorder
from tests.waiting import wait_until


def test_group_hosts_keep_order(group: RuntimeGroup) -> None:
    assert group.hosts == GROUP_HOSTS
    assert [runtime.host for runtime in group.runtimes] == GROUP_HOSTS
    assert group.runtime_count == 3
    assert group.contains_runtime("web2")
    assert not group.contains_runtime("web4")
    assert group.failed_hosts == {}
    assert repr(group) == "<RuntimeGroup web1, web2, web3>"
    assert group.get_runtime("web2") is group.runtimes[1]


def test_group_takes_runtimes_and_hosts(fake_host: FakeHost) -> None:
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
    assert fake_host.closed, "the group closes a runtime that it was given"


def test_group_takes_single_host_name(fake_host: FakeHost) -> None:
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
def test_group_invalid_argument_raises(
    transports: TransportRecorder, keywords: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        RuntimeGroup(**keywords)
    assert not isinstance(caught.value, HostsFailedError)
    assert transports.transports == []


def test_group_duplicate_host_raises(group: RuntimeGroup, transports: TransportRecorder) -> None:
    with Runtime("web1") as other:
        with pytest.raises(ValueError, match="already in the group: web1"):
            group.add_runtime("web1")
        for add in (
            lambda: group.add_runtime(other),
            lambda: RuntimeGroup([other], ["web1"]),
            lambda: RuntimeGroup([other, group.runtimes[0]]),
        ):
            with pytest.raises(ValueError, match="web1"):
                add()
        assert other.is_valid_runtime()
    assert group.hosts == GROUP_HOSTS
    assert len(transports.transports) == 4


def test_group_empty_raises_no_runtimes_error() -> None:
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
            with pytest.raises(NoRuntimesError):
                use()


@pytest.mark.parametrize(
    ("include", "exclude", "found"),
    [
        (None, None, GROUP_HOSTS),
        (["web3", "web1"], None, ["web1", "web3"]),
        ("web2", None, ["web2"]),
        (None, "web2", ["web1", "web3"]),
        (iter(["web1", "web2"]), iter(["web2"]), ["web1"]),
        ([], None, []),
        (None, GROUP_HOSTS, []),
    ],
)
def test_get_runtimes_include_and_exclude(group: RuntimeGroup, include: Any, exclude: Any, found: list[str]) -> None:
    runtimes = group.get_runtimes(include, exclude)
    assert list(runtimes) == found
    assert [runtime.host for runtime in runtimes.values()] == found


def test_group_unknown_host_raises(group: RuntimeGroup) -> None:
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


def test_group_add_and_remove_runtime(group: RuntimeGroup) -> None:
    group.add_runtime("web4")
    four = Runtime("web5")
    group.add_runtime(four)
    removed = group.remove_runtime("web2")
    assert group.hosts == ["web1", "web3", "web4", "web5"]
    assert removed.is_valid_runtime()
    group.add_runtime(removed)
    assert group.hosts[-1] == "web2"


def test_add_runtime_has_options_of_group(fake_host: FakeHost) -> None:
    fake_host.on("true")
    with RuntimeGroup(hosts=["a"], working_dir="/work", env={"A": "1"}) as group:
        group.add_runtime("b")
        group.run("true")
        assert group.runtimes[1].working_dir == "/work"
    ran = [call for call in fake_host.calls if isinstance(call, Ran)]
    assert [call.env["A"] for call in ran] == ["1", "1"]


def test_add_runtime_unreachable_host_raises(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.host("dead").go_down()
    with pytest.raises(InvalidRuntimeError):
        group.add_runtime("dead")
    assert group.hosts == GROUP_HOSTS


def test_add_runtime_same_host_in_parallel_adds_one(group: RuntimeGroup, transports: TransportRecorder) -> None:
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
    assert group.hosts == [*GROUP_HOSTS, "web4"]
    assert len(errors) == 7
    assert transports.connected_hosts == [*GROUP_HOSTS, "web4"], "the other runtimes are closed"


def test_group_changed_during_use_keeps_its_hosts(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("true")
    over = threading.Event()
    errors: list[Exception] = []

    def change(name: str) -> None:
        try:
            while not over.is_set():
                group.add_runtime(name)
                group.remove_runtime(name).cleanup()
        except Exception as error:  # noqa: BLE001 - the test compares it at its end
            errors.append(error)

    changing = [threading.Thread(target=change, args=[f"more-{number}"]) for number in range(3)]
    for thread in changing:
        thread.start()
    try:
        for _ in range(40):
            assert set(GROUP_HOSTS) <= set(group.hosts)
            assert set(GROUP_HOSTS) <= group.run("true", on_error="collect").keys()
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
    assert group.hosts == GROUP_HOSTS


def test_group_env_variables_reach_commands(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("env")
    group.add_env_variables({"A": "1", "B": "2"})
    group.add_env_variables({"B": "3"})
    group.run("env")
    group.set_env_variables({"C": "4"})
    group.run("env")
    seen = [{key: call.env[key] for key in call.env.keys() & set("ABC")} for call in fake_host.calls]  # type: ignore[union-attr]
    assert seen == [{"A": "1", "B": "3"}] * 3 + [{"C": "4"}] * 3


def test_add_runtime_gets_env_variables_of_group(group: RuntimeGroup) -> None:
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


def test_group_unusable_host_disconnects_others(fake_host: FakeHost) -> None:
    fake_host.host("dead").go_down()
    fake_host.host("old").has(python_version="")
    with pytest.raises(HostsFailedError) as caught:
        RuntimeGroup(hosts=["a", "dead", "b", "old"])
    assert [host for host, _ in caught.value.errors] == ["dead", "old"]
    assert [type(error.__cause__) for error in caught.value.exceptions] == [HostUnreachableError, PythonNotFoundError]
    assert caught.value.__cause__ is None, "a traceback shows its members"
    assert fake_host.closed
    assert fake_host.cleaned_up
    assert pickle.loads(pickle.dumps(caught.value)).total == 4


def test_group_on_error_skip_keeps_failed_hosts(fake_host: FakeHost) -> None:
    fake_host.host("dead").go_down()
    with RuntimeGroup(hosts=["a", "dead", "b"], on_error="skip") as group:
        assert group.hosts == ["a", "b"]
        assert list(group.failed_hosts) == ["dead"]
        assert isinstance(group.failed_hosts["dead"], InvalidRuntimeError)
    with RuntimeGroup(hosts=["dead"], on_error="skip") as group:
        assert group.hosts == []


def test_group_max_connections_limits_parallel_log_ins(fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, now, most, limit = threading.Condition(), 0, 0, 0

    set_up = FakeTransport.set_up

    def slow_set_up(transport: FakeTransport, working_dir: str | None) -> tuple[str, HostInfo]:
        nonlocal now, most
        with changed:
            now += 1
            most = max(most, now)
            changed.notify_all()
            assert changed.wait_for(lambda: most >= limit, 10), "fewer at once than allowed"
            changed.wait_for(lambda: now > limit, 0.02)  # one too many would come now
        result = set_up(transport, working_dir)
        with changed:
            now -= 1
        return result

    monkeypatch.setattr(FakeTransport, "set_up", slow_set_up)
    for limit, keywords in ((3, {"max_connections": 3}), (16, {})):
        most = 0
        with RuntimeGroup(hosts=[f"host-{number}" for number in range(24)], **keywords):  # type: ignore[arg-type]
            assert most == limit


def test_group_ctrl_c_while_connecting_cleans_up(fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connected hosts are disconnected, running log-ins end, and no other log-in starts."""
    started: list[str] = []

    set_up = FakeTransport.set_up

    def slow_set_up(transport: FakeTransport, working_dir: str | None) -> tuple[str, HostInfo]:
        started.append(transport.host)
        if transport.host.startswith("slow"):
            assert wait_until(lambda: transport.closed, 20)
        return set_up(transport, working_dir)

    monkeypatch.setattr(FakeTransport, "set_up", slow_set_up)
    hosts = ["quick-1", "slow-1", "quick-2", "slow-2", "never"]
    interrupt(lambda: RuntimeGroup(hosts=hosts, max_connections=2), lambda: len(started) == 4)
    assert sorted(started) == sorted(hosts[:4])
    assert fake_host.closed
    assert fake_host.cleaned_up
    assert wait_until(lambda: not group_thread_names(), timeout=10)


def test_raise_open_file_limit_follows_number_of_hosts() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        raise_open_file_limit(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(256 + 1600, hard)
        raise_open_file_limit(1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(256 + 1600, hard), "it is never lowered"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_group_raises_open_file_limit(fake_host: FakeHost) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with RuntimeGroup(hosts=GROUP_HOSTS):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(256 + 16 * len(GROUP_HOSTS), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_group_close_ends_everything(fake_host: FakeHost) -> None:
    fake_host.on("sleep", delay=math.inf)
    for host in GROUP_HOSTS:
        fake_host.host(host)
    group = RuntimeGroup(hosts=GROUP_HOSTS)
    copies = group.execute_task(RuntimeTask().run_command("sleep"), broadcast=True)
    group.expose_port_to_runtimes(80)
    assert open_tunnels(group).keys() == set(GROUP_HOSTS)
    group.close()
    group.cleanup()
    assert fake_host.closed
    assert fake_host.cleaned_up
    assert open_tunnels(group) == {}
    for copy in copies.values():
        with pytest.raises(TaskExecutionError) as stopped:
            copy.join()
        assert isinstance(stopped.value.__cause__, CommandStoppedError)
    for use in (lambda: group.run("true"), lambda: list(group.map(double, [1]))):
        with pytest.raises(HostsFailedError) as caught:
            use()
        assert [type(error) for error in caught.value.exceptions] == [RuntimeClosedError] * 3
    assert wait_until(lambda: not group_thread_names(), timeout=10)


def test_group_cleanup_failure_cleans_other_hosts(
    fake_host: FakeHost, transports: TransportRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = RuntimeGroup(hosts=GROUP_HOSTS)

    def fail() -> NoReturn:
        raise LookupError("why")

    with monkeypatch.context() as patch:
        patch.setattr(group.runtimes[1], "cleanup", fail)
        with pytest.raises(HostsFailedError) as caught:
            group.cleanup()
    assert [(host, type(error)) for host, error in caught.value.errors] == [("web2", LookupError)]
    assert transports.connected_hosts == ["web2"]
    group.cleanup()
    assert fake_host.closed
