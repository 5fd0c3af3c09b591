"""The manager with fake hosts: active and inactive hosts, and groups of those that meet requirements."""

from __future__ import annotations

import math
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lazycluster import (
    AuthenticationError,
    ConnectionLostError,
    HostsFailedError,
    HostUnreachableError,
    NoRuntimesDetectedError,
    PythonNotFoundError,
    RuntimeManager,
    UnknownHostError,
)
from lazycluster._requirements import Requirements
from lazycluster.hardware import HostInfo
from lazycluster.testing import FakeHost, Ran
from lazycluster.testing._fake_transport import FakeTransport
from tests.keyboard_interrupt import interrupt
from tests.unit.group_hosts import group_thread_names
from tests.unit.transport_recorder import TransportRecorder
from tests.waiting import assert_eventually, wait_until

CONFIG = "Host small big\nHost *.example ?x !no\nHost gpu down\nHost big\n"


@pytest.fixture
def config(fake_host: FakeHost, tmp_path: Path) -> Iterator[Path]:
    """Return a configuration of four fake hosts, one of which is down."""
    fake_host.host("small").has(cpu_cores=1, memory=2**30)
    fake_host.host("big").has(cpu_cores=64, memory=512 * 2**30)
    fake_host.host("gpu").has(gpus=2)
    fake_host.host("down").go_down()
    path = tmp_path / "config"
    path.write_text(CONFIG)
    yield path
    assert_eventually(lambda: not group_thread_names(), "the threads of the library end")


# Detection -----------------------------------------------------------------------------------------------------------


def test_manager_first_question_detects_hosts(fake_host: FakeHost, transports: TransportRecorder, config: Path) -> None:
    with RuntimeManager(config) as manager:
        assert transports.transports == [], "no connection before the first question"
        assert manager.hosts == ["small", "big", "gpu"], "in the order of the configuration, without duplicates"
        assert list(manager.inactive_hosts) == ["down"]
        assert isinstance(manager.inactive_hosts["down"], HostUnreachableError), "the cause of InvalidRuntimeError"
        assert [runtime.host for runtime in manager.runtimes] == manager.hosts
        assert transports.connected_hosts == ["big", "gpu", "small"]
        assert len(transports.transports) == 4, "one connection to each host"
        assert repr(manager) == f"<RuntimeManager of {config}>"
    assert fake_host.closed
    assert fake_host.cleaned_up


def test_manager_hosts_argument_replaces_configuration(fake_host: FakeHost, config: Path) -> None:
    with RuntimeManager(config, hosts=["big", "other", "big"]) as manager:
        assert manager.hosts == ["big", "other"]
        assert repr(manager) == "<RuntimeManager of hosts=[...]>"
    with RuntimeManager(hosts="small") as manager:
        assert manager.hosts == ["small"]


def test_manager_default_is_configuration_of_user(
    fake_host: FakeHost, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazycluster._ssh.config_hosts.default_config", lambda: config)
    with RuntimeManager() as manager:
        assert manager.hosts == ["small", "big", "gpu"]


def test_manager_detect_tries_all_hosts_again(fake_host: FakeHost, transports: TransportRecorder, config: Path) -> None:
    with RuntimeManager(config) as manager:
        assert manager.hosts == ["small", "big", "gpu"]
        fake_host.host("down").come_up()
        config.write_text("Host down\nHost new\n")
        assert manager.hosts == ["small", "big", "gpu"]
        manager.detect()
        assert manager.hosts == ["down", "new"]
        assert manager.inactive_hosts == {}
        assert transports.connected_hosts == ["down", "new"], "the earlier connections are closed"
        manager.cleanup()
        manager.cleanup()
        assert fake_host.closed
        assert manager.hosts == ["down", "new"], "the next question tries all hosts again"


def test_manager_close_ends_its_connections(fake_host: FakeHost, transports: TransportRecorder, config: Path) -> None:
    manager = RuntimeManager(config)
    group = manager.create_group("gpu")

    manager.close()

    assert transports.connected_hosts == ["gpu"], "the group keeps its connection"
    group.close()
    manager.close()
    assert fake_host.closed
    assert fake_host.cleaned_up


def test_manager_close_failure_names_host(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = RuntimeManager(config)

    def fail() -> NoReturn:
        raise LookupError("why")

    runtime = manager.runtimes[1]
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "cleanup", fail)
        with pytest.raises(HostsFailedError) as caught:
            manager.close()
    assert [(host, type(error)) for host, error in caught.value.errors] == [("big", LookupError)]
    runtime.close()


def test_manager_parallel_questions_detect_once(transports: TransportRecorder, config: Path) -> None:
    with RuntimeManager(config) as manager:
        found: list[list[str]] = []
        asking = [threading.Thread(target=lambda: found.append(manager.hosts)) for _ in range(8)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert found == [["small", "big", "gpu"]] * 8
        assert len(transports.transports) == 4


def test_manager_missing_file_raises(tmp_path: Path) -> None:
    with RuntimeManager(tmp_path / "none") as manager, pytest.raises(ValueError, match=r"no such file: .*none"):
        manager.detect()


def test_manager_relative_file_survives_chdir(
    fake_host: FakeHost, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    with RuntimeManager("config") as manager:
        monkeypatch.chdir("/")
        assert manager.hosts == ["small", "big", "gpu"]


def test_manager_dead_hosts_time_out_together(
    fake_host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten of fifty hosts time out, all of them at the same time."""
    together = threading.Barrier(10)

    set_up = FakeTransport.set_up

    def slow_set_up(transport: FakeTransport, working_dir: str | None) -> tuple[str, HostInfo]:
        if transport.host.startswith("dead"):
            together.wait(20)
            raise TimeoutError(transport.host)
        return set_up(transport, working_dir)

    monkeypatch.setattr(FakeTransport, "set_up", slow_set_up)
    hosts = [f"dead-{number}" if number % 5 == 0 else f"host-{number}" for number in range(50)]
    with RuntimeManager(hosts=hosts) as manager:
        assert len(manager.hosts) == 40
        assert list(manager.inactive_hosts) == [host for host in hosts if host.startswith("dead")]


def test_manager_ctrl_c_during_detect_cleans_up(fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    set_up = FakeTransport.set_up

    def slow_set_up(transport: FakeTransport, working_dir: str | None) -> tuple[str, HostInfo]:
        started.append(transport.host)
        if transport.host == "slow":
            assert wait_until(lambda: transport.closed, 20)
        return set_up(transport, working_dir)

    monkeypatch.setattr(FakeTransport, "set_up", slow_set_up)
    manager = RuntimeManager(hosts=["a", "slow", "b"])
    interrupt(manager.detect, lambda: len(started) == 3)
    assert fake_host.closed
    assert fake_host.cleaned_up


# Groups --------------------------------------------------------------------------------------------------------------


def test_create_group_takes_all_active_hosts(fake_host: FakeHost, transports: TransportRecorder, config: Path) -> None:
    manager = RuntimeManager(config)
    with manager.create_group() as group:
        assert group.hosts == ["small", "big", "gpu"]
        assert len(transports.transports) == 4, "the group takes the connections of the manager"
        assert manager.runtimes == []
        assert manager.hosts == ["small", "big", "gpu"]
        manager.cleanup()
        assert transports.connected_hosts == ["big", "gpu", "small"], "the group owns them now"
    assert fake_host.closed


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"include_hosts": ["gpu", "small"]}, ["small", "gpu"]),
        ({"include_hosts": "gpu"}, ["gpu"]),
        ({"exclude_hosts": "gpu"}, ["small", "big"]),
        ({"include_hosts": ["gpu", "big"], "exclude_hosts": ["big"]}, ["gpu"]),
        ({"include_hosts": ["big", "down"]}, ["big"]),
        ({"gpu_required": True}, ["gpu"]),
        ({"min_memory": 8 * 1024}, ["big", "gpu"]),
        ({"min_cpu_cores": 4.5}, ["big"]),
        ({"min_cpu_cores": 1, "min_memory": 1024}, ["small", "big", "gpu"]),
        ({"installed_executables": "make"}, ["big", "gpu"]),
        ({"installed_executables": ["make", "gcc"]}, ["gpu"]),
        ({"filter_commands": "test -e /a"}, ["small"]),
        ({"filter_commands": ["test -e /a", "test -e /b"]}, ["small"]),
    ],
)
def test_create_group_requirements_select_hosts(
    fake_host: FakeHost, transports: TransportRecorder, config: Path, wanted: dict[str, Any], found: list[str]
) -> None:
    fake_host.host("big").executables = {"make"}
    fake_host.host("gpu").executables = {"make", "gcc"}
    fake_host.on("test -e /a", stdout="false\n")
    fake_host.on("test -e /b", stdout="true\n")
    fake_host.host("small").on("test -e /a", stdout="TRUE\n")
    with RuntimeManager(config) as manager, manager.create_group(**wanted) as group:
        assert group.hosts == found
        assert sorted(transports.connected_hosts) == ["big", "gpu", "small"], (
            "the manager keeps the others for another group"
        )


def test_create_group_twice_has_own_runtimes(fake_host: FakeHost, config: Path) -> None:
    with RuntimeManager(config) as manager:
        one = manager.create_group(include_hosts=["gpu"])
        two = manager.create_group()
        assert two.hosts == ["small", "big", "gpu"]
        assert one.runtimes[0] is not two.get_runtime("gpu")
        one.cleanup()
        assert two.get_runtime("gpu").is_valid_runtime(), "each group has its own runtimes"
        two.cleanup()
        assert fake_host.closed


def test_create_group_leaves_out_host_lost_since_detect(fake_host: FakeHost, config: Path) -> None:
    with RuntimeManager(config) as manager, manager.create_group():
        fake_host.host("big").go_down()
        with manager.create_group() as again:
            assert again.hosts == ["small", "gpu"]
        with pytest.raises(NoRuntimesDetectedError) as caught:
            manager.create_group(include_hosts=["big", "down"])
        assert [host for host, _ in caught.value.tried] == ["big", "down"]
        assert all("the test took it down" in reason for _, reason in caught.value.tried)


@pytest.mark.parametrize("keywords", [{"working_dir": "/work"}, {"root_dir": "/work"}])
def test_create_group_working_dir(fake_host: FakeHost, config: Path, keywords: dict[str, str]) -> None:
    with RuntimeManager(config) as manager, manager.create_group(**keywords) as group:  # type: ignore[arg-type]
        assert [runtime.working_dir for runtime in group.runtimes] == ["/work"] * 3
    assert fake_host.closed


def test_create_group_root_dir_differs_raises(config: Path) -> None:
    with RuntimeManager(config) as manager:
        with pytest.raises(ValueError, match="root_dir must be the same as working_dir '/b', got '/a'"):
            manager.create_group(root_dir="/a", working_dir="/b")
        manager.create_group(root_dir="/a", working_dir="/a").cleanup()


def test_create_group_has_options_of_manager(fake_host: FakeHost, transports: TransportRecorder, config: Path) -> None:
    manager = RuntimeManager(config, env={"A": "1"}, connect_timeout=3.5)
    with manager, manager.create_group(include_hosts="big") as group:
        group.add_runtime("new")
        fake_host.on("env")
        group.run("env")
    assert transports.options["new"]["config_file"] == config
    assert transports.options["new"]["connect_timeout"] == 3.5
    assert {call.host: call.env["A"] for call in fake_host.calls if isinstance(call, Ran)} == {"big": "1", "new": "1"}


def test_create_group_has_max_connections_of_manager(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, now, most = threading.Condition(), 0, 0

    set_up = FakeTransport.set_up

    def slow_set_up(transport: FakeTransport, working_dir: str | None) -> tuple[str, HostInfo]:
        nonlocal now, most
        with changed:
            now += 1
            most = max(most, now)
            changed.notify_all()
            changed.wait_for(lambda: now > 1, 0.1)  # a second log-in would come now
        result = set_up(transport, working_dir)
        with changed:
            now -= 1
        return result

    with RuntimeManager(config, max_connections=1) as manager:
        manager.detect()
        monkeypatch.setattr(FakeTransport, "set_up", slow_set_up)
        manager.create_group(working_dir="/work").close()
    assert most == 1


def test_create_group_unknown_host_raises(config: Path) -> None:
    with RuntimeManager(config) as manager:
        for wanted in ({"include_hosts": ["big", "db1"]}, {"exclude_hosts": "db1"}):
            with pytest.raises(ValueError, match=rf"unknown host 'db1' \({config}: small, big, gpu, down\)"):
                manager.create_group(**wanted)


# No host fits --------------------------------------------------------------------------------------------------------


def test_create_group_no_match_names_reasons(fake_host: FakeHost, transports: TransportRecorder, config: Path) -> None:
    fake_host.host("gpu").on("ok", error=ConnectionLostError("gpu", "ok", "interrupted", started=True))
    fake_host.on("ok", stdout="no")
    with RuntimeManager(config) as manager:
        with pytest.raises(NoRuntimesDetectedError) as caught:
            manager.create_group(min_cpu_cores=2, filter_commands="ok")
        reasons = dict(caught.value.tried)
        assert list(reasons) == ["small", "big", "gpu", "down"]
        assert reasons["small"] == "it has 1 CPU cores, and not 2"
        assert reasons["big"] == "`ok` did not print true"
        assert "interrupted" in reasons["gpu"]
        assert "the test took it down" in reasons["down"]
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        assert transports.connected_hosts == ["big", "gpu", "small"], "another group may have fewer requirements"

        for requirement, reason in (
            ({"min_memory": 512 * 1024 + 1}, "it has 524288 MB of memory, and not 524289"),
            ({"gpu_required": True}, "it has no GPU"),
            ({"installed_executables": ["a b", "c"]}, "not installed: a b, c"),
        ):
            keywords: dict[str, Any] = requirement
            with pytest.raises(NoRuntimesDetectedError) as caught:
                manager.create_group(include_hosts="big", **keywords)
            assert caught.value.tried == (("big", reason),)


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"max_connections": 0}, ValueError),
        ({"connect_timeout": -1}, ValueError),
        ({"port": 0}, ValueError),
        ({"prot": 22}, TypeError),
    ],
)
def test_manager_invalid_argument_raises_at_once(
    transports: TransportRecorder, config: Path, keywords: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(keywords))):
        RuntimeManager(config, **keywords)
    assert transports.transports == []


def test_create_group_no_match_lists_excluded_hosts(fake_host: FakeHost, config: Path) -> None:
    with RuntimeManager(config) as manager:
        with pytest.raises(NoRuntimesDetectedError) as caught:
            manager.create_group(exclude_hosts=["small", "big", "gpu"])
        assert [host for host, _ in caught.value.tried] == ["small", "big", "gpu", "down"]
        assert [reason for _, reason in caught.value.tried][:3] == ["excluded"] * 3
        with pytest.raises(NoRuntimesDetectedError) as caught:
            manager.create_group(include_hosts=iter(["big", "small"]), exclude_hosts=["small"], gpu_required=True)
        assert caught.value.tried == (("small", "excluded"), ("big", "it has no GPU"))


@pytest.mark.parametrize(
    "requirement", [{"min_memory": "16"}, {"min_cpu_cores": "2"}, {"min_memory": True}, {"min_cpu_cores": math.nan}]
)
def test_create_group_minimum_not_a_number_raises(
    fake_host: FakeHost, config: Path, requirement: dict[str, Any]
) -> None:
    with RuntimeManager(config) as manager, pytest.raises(ValueError, match=r"min_\w+ must be a number, got "):
        manager.create_group(**requirement)


def test_create_group_no_match_names_missing_programs(fake_host: FakeHost, config: Path) -> None:
    fake_host.host("big").executables = {"sh"}
    with RuntimeManager(config) as manager, pytest.raises(NoRuntimesDetectedError) as caught:
        manager.create_group(include_hosts="big", installed_executables=["sh", "missing"])
    assert caught.value.tried == (("big", "not installed: missing"),)


def test_create_group_error_without_text_is_a_reason(
    fake_host: FakeHost, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_keywords: Any) -> str:
        raise TimeoutError

    monkeypatch.setattr(Requirements, "find_missing", fail)
    with RuntimeManager(config) as manager, pytest.raises(NoRuntimesDetectedError) as caught:
        manager.create_group(include_hosts="big")
    [(host, reason)] = caught.value.tried
    assert host == "big"
    assert reason.startswith("TimeoutError")


def test_create_group_no_hosts_raises(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Host *\n  Port 22\n")
    with RuntimeManager(tmp_path / "config") as manager:
        assert manager.hosts == []
        with pytest.raises(NoRuntimesDetectedError) as caught:
            manager.create_group()
    assert (caught.value.source, caught.value.tried) == (str(tmp_path / "config"), ())


def test_create_group_all_excluded_raises(config: Path) -> None:
    with RuntimeManager(config) as manager, pytest.raises(NoRuntimesDetectedError) as caught:
        manager.create_group(exclude_hosts=["small", "big", "gpu", "down"])
    assert caught.value.tried[:3] == (("small", "excluded"), ("big", "excluded"), ("gpu", "excluded"))


# Tables --------------------------------------------------------------------------------------------------------------


def test_manager_prints_tables(fake_host: FakeHost, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_host.host("down").go_down(UnknownHostError("down", "Name or service not known"))
    fake_host.host("old").has(python_version="")
    fake_host.host("shut").go_down(AuthenticationError("shut", "Permission denied (publickey)."))
    config.write_text(CONFIG + "Host old shut\n")
    with RuntimeManager(config) as manager:
        manager.print_hosts()
        assert capsys.readouterr().out == "3 active hosts\nhost\n-----\nsmall\nbig\ngpu\n"
        manager.print_inactive_hosts()
        out = capsys.readouterr().out.splitlines()
        assert out[0] == "3 inactive hosts"
        assert out[1] == "host  why"
        assert [line.split()[0] for line in out[3:]] == ["down", "old", "shut"]
        assert "Name or service not known" in out[3]
        assert "Permission denied (publickey)" in out[5]
        assert isinstance(manager.inactive_hosts["old"], PythonNotFoundError)
        manager.print_runtime_info()
        out = capsys.readouterr().out.splitlines()
        assert out[0] == "3 active hosts"
        assert [line.split()[0] for line in out[3:]] == ["small", "big", "gpu"]
        assert out[5].endswith("8.0 GiB    2 x Fake GPU")
        with manager.create_group(include_hosts=["small", "gpu"]):
            manager.print_runtime_info()
        assert capsys.readouterr().out.startswith("1 active host (and 2 handed to groups)\n")


def test_print_inactive_hosts_joins_lines_of_reason(
    fake_host: FakeHost, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_host.host("down").go_down(UnknownHostError("down", "one\ntwo"))
    with RuntimeManager(config) as manager:
        manager.print_inactive_hosts()
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4
    assert out[3].startswith("down ")
    assert "one two" in out[3]
