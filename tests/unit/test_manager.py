"""The manager on fake hosts: which are found, why the others are not, and groups of those that have what is needed."""

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
from lazycluster.testing import FakeHost
from lazycluster.testing._fake_transport import FakeTransport
from tests.keyboard_interrupt import interrupt, library_thread_names
from tests.waiting import wait_until

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
    assert wait_until(lambda: not library_thread_names(), timeout=10)


def names(fake_host: FakeHost) -> list[str]:
    """Return the hosts that are connected."""
    return sorted(way.host for way in fake_host._state.transports if not way.closed)


# What there is -------------------------------------------------------------------------------------------------------


def test_hosts_that_answer_and_hosts_that_do_not(fake_host: FakeHost, config: Path) -> None:
    with RuntimeManager(config) as manager:
        assert fake_host._state.transports == [], "nothing is dialled before somebody asks"
        assert manager.hosts == ["small", "big", "gpu"], "in the order of the configuration, each once"
        assert list(manager.inactive_hosts) == ["down"]
        assert isinstance(manager.inactive_hosts["down"], HostUnreachableError), "the cause itself"
        assert [runtime.host for runtime in manager.runtimes] == manager.hosts
        assert names(fake_host) == ["big", "gpu", "small"]
        assert len(fake_host._state.transports) == 4, "each was asked once"
        assert repr(manager) == f"<RuntimeManager of {config}>"
    assert fake_host.closed
    assert fake_host.cleaned_up


def test_named_hosts_instead(fake_host: FakeHost, config: Path) -> None:
    with RuntimeManager(config, hosts=["big", "other", "big"]) as manager:
        assert manager.hosts == ["big", "other"]
        assert repr(manager) == "<RuntimeManager of hosts=[...]>"
    with RuntimeManager(hosts="small") as manager:
        assert manager.hosts == ["small"]


def test_the_users_own_configuration(fake_host: FakeHost, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazycluster._ssh.config_hosts.default_config", lambda: config)
    with RuntimeManager() as manager:
        assert manager.hosts == ["small", "big", "gpu"]


def test_looking_again(fake_host: FakeHost, config: Path) -> None:
    with RuntimeManager(config) as manager:
        assert manager.hosts == ["small", "big", "gpu"]
        fake_host.host("down").come_up()
        config.write_text("Host down\nHost new\n")
        assert manager.hosts == ["small", "big", "gpu"]
        manager.detect()
        assert manager.hosts == ["down", "new"]
        assert manager.inactive_hosts == {}
        assert names(fake_host) == ["down", "new"], "what was connected before is given back"
        manager.cleanup()
        manager.cleanup()
        assert fake_host.closed
        assert manager.hosts == ["down", "new"], "the next question tries again"


def test_manager_close_ends_the_connections_it_holds(fake_host: FakeHost, config: Path) -> None:
    manager = RuntimeManager(config)
    group = manager.create_group("gpu")

    manager.close()

    assert names(fake_host) == ["gpu"], "those of a group are the group's"
    group.close()
    manager.close()
    assert fake_host.closed
    assert fake_host.cleaned_up


def test_manager_close_that_fails_on_a_host_says_so(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = RuntimeManager(config)

    def fail() -> NoReturn:
        raise LookupError("why")

    runtime = manager.runtimes[1]
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "cleanup", fail)
        with pytest.raises(HostsFailedError, match="the clean-up failed on 1 of 3 hosts:\n  big: LookupError: why"):
            manager.close()
    runtime.close()


def test_many_that_ask_at_once_ask_the_hosts_once(fake_host: FakeHost, config: Path) -> None:
    with RuntimeManager(config) as manager:
        found: list[list[str]] = []
        asking = [threading.Thread(target=lambda: found.append(manager.hosts)) for _ in range(8)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert found == [["small", "big", "gpu"]] * 8
        assert len(fake_host._state.transports) == 4


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with RuntimeManager(tmp_path / "none") as manager, pytest.raises(ValueError, match=r"no such file: .*none"):
        manager.detect()


def test_a_relative_file_is_fixed_at_once(fake_host: FakeHost, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent)
    with RuntimeManager("config") as manager:
        monkeypatch.chdir("/")
        assert manager.hosts == ["small", "big", "gpu"]


def test_all_are_tried_at_once_and_wait_together(
    fake_host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of fifty hosts ten are dead by time-out; all ten wait at the same time."""
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


def test_ctrl_c_while_it_looks(fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    set_up = FakeTransport.set_up

    def slow_set_up(transport: FakeTransport, working_dir: str | None) -> tuple[str, HostInfo]:
        begun.append(transport.host)
        if transport.host == "slow":
            assert wait_until(lambda: transport.closed, 20)
        return set_up(transport, working_dir)

    monkeypatch.setattr(FakeTransport, "set_up", slow_set_up)
    manager = RuntimeManager(hosts=["a", "slow", "b"])
    interrupt(manager.detect, lambda: len(begun) == 3)
    assert fake_host.closed
    assert fake_host.cleaned_up
    monkeypatch.undo()


# Groups --------------------------------------------------------------------------------------------------------------


def test_a_group_of_all(fake_host: FakeHost, config: Path) -> None:
    manager = RuntimeManager(config)
    with manager.create_group() as group:
        assert group.hosts == ["small", "big", "gpu"]
        assert len(fake_host._state.transports) == 4, "those that were found are those of the group"
        assert manager.runtimes == []
        assert manager.hosts == ["small", "big", "gpu"]
        manager.cleanup()
        assert names(fake_host) == ["big", "gpu", "small"], "they are the group's now"
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
def test_groups_of_some(fake_host: FakeHost, config: Path, wanted: dict[str, Any], found: list[str]) -> None:
    fake_host.host("big").executables = {"make"}
    fake_host.host("gpu").executables = {"make", "gcc"}
    fake_host.on("test -e /a", stdout="false\n")
    fake_host.on("test -e /b", stdout="true\n")
    fake_host.host("small").on("test -e /a", stdout="TRUE\n")
    with RuntimeManager(config) as manager, manager.create_group(**wanted) as group:
        assert group.hosts == found
        assert sorted(names(fake_host)) == ["big", "gpu", "small"], "the others wait for another group"


def test_several_groups(fake_host: FakeHost, config: Path) -> None:
    with RuntimeManager(config) as manager:
        one = manager.create_group(include_hosts=["gpu"])
        two = manager.create_group()
        assert two.hosts == ["small", "big", "gpu"]
        assert one.runtimes[0] is not two.get_runtime("gpu")
        one.cleanup()
        assert two.get_runtime("gpu").is_valid_runtime(), "each has its own"
        two.cleanup()
        assert fake_host.closed


def test_a_host_that_has_gone_since(fake_host: FakeHost, config: Path) -> None:
    with RuntimeManager(config) as manager, manager.create_group():
        fake_host.host("big").go_down()
        with manager.create_group() as again:
            assert again.hosts == ["small", "gpu"]
        with pytest.raises(NoRuntimesDetectedError) as caught:
            manager.create_group(include_hosts=["big", "down"])
        assert [host for host, _ in caught.value.tried] == ["big", "down"]
        assert all(reason.startswith("host unreachable (the test") for _, reason in caught.value.tried)


@pytest.mark.parametrize("keywords", [{"working_dir": "/work"}, {"root_dir": "/work"}])
def test_a_working_directory(fake_host: FakeHost, config: Path, keywords: dict[str, str]) -> None:
    with RuntimeManager(config) as manager, manager.create_group(**keywords) as group:  # type: ignore[arg-type]
        assert [runtime.working_dir for runtime in group.runtimes] == ["/work"] * 3
    assert fake_host.closed


def test_a_working_directory_has_one_name(config: Path) -> None:
    with RuntimeManager(config) as manager:
        with pytest.raises(ValueError, match="root_dir must be the same as working_dir '/b', got '/a'"):
            manager.create_group(root_dir="/a", working_dir="/b")
        manager.create_group(root_dir="/a", working_dir="/a").cleanup()


def test_a_group_is_like_its_manager(fake_host: FakeHost, config: Path) -> None:
    manager = RuntimeManager(config, max_connections=2, env={"A": "1"}, connect_timeout=3.5)
    with manager, manager.create_group(include_hosts="big") as group:
        group.add_runtime("new")
        fake_host.on("env")
        group.run("env")
        assert group._members.max_connections == 2
        assert group._members.options["config_file"] == config
        assert group._members.options["connect_timeout"] == 3.5
    assert {call.host: call.env["A"] for call in fake_host.calls} == {"big": "1", "new": "1"}  # type: ignore[union-attr]


def test_hosts_that_nobody_knows(config: Path) -> None:
    with RuntimeManager(config) as manager:
        for wanted in ({"include_hosts": ["big", "db1"]}, {"exclude_hosts": "db1"}):
            with pytest.raises(ValueError, match=rf"unknown host 'db1' \({config}: small, big, gpu, down\)"):
                manager.create_group(**wanted)


# Nothing fits --------------------------------------------------------------------------------------------------------


def test_why_each_host_does_not_fit(fake_host: FakeHost, config: Path) -> None:
    fake_host.host("gpu").on("ok", error=ConnectionLostError("gpu", "ok", "cut", started=True))
    fake_host.on("ok", stdout="no")
    with RuntimeManager(config) as manager:
        with pytest.raises(NoRuntimesDetectedError) as caught:
            manager.create_group(min_cpu_cores=2, filter_commands="ok")
        assert str(caught.value) == (
            f"no host can be used, of 4 that {config} names:\n"
            "  small: it has 1 CPU cores, and not 2\n"
            "  big: `ok` did not print true\n"
            "  gpu: connection lost during `ok` (cut). It had started on the host, which ends it when it sees the "
            "connection gone.\n"
            "  down: host unreachable (the test took it down). Check your network, VPN and routes to down."
        )
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        assert names(fake_host) == ["big", "gpu", "small"], "another group may need less"

        with pytest.raises(NoRuntimesDetectedError, match=r"\n  small: it has 1024 MB of memory, and not 1025$"):
            manager.create_group(include_hosts="small", min_memory=1025)
        with pytest.raises(NoRuntimesDetectedError, match=r"\n  big: it has no GPU$"):
            manager.create_group(include_hosts="big", gpu_required=True)
        with pytest.raises(NoRuntimesDetectedError, match=r"\n  big: not installed: a b, c$"):
            manager.create_group(include_hosts="big", installed_executables=["a b", "c"])


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"max_connections": 0}, ValueError),
        ({"connect_timeout": -1}, ValueError),
        ({"port": 0}, ValueError),
        ({"prot": 22}, TypeError),
    ],
)
def test_arguments_that_cannot_be_right_are_told_at_once(
    fake_host: FakeHost, config: Path, keywords: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(keywords))):
        RuntimeManager(config, **keywords)
    assert fake_host._state.transports == []


def test_what_is_excluded_is_listed_too(fake_host: FakeHost, config: Path) -> None:
    with RuntimeManager(config) as manager:
        with pytest.raises(NoRuntimesDetectedError) as caught:
            manager.create_group(exclude_hosts=["small", "big", "gpu"])
        assert [host for host, _ in caught.value.tried] == ["small", "big", "gpu", "down"]
        assert [why for _, why in caught.value.tried][:3] == ["excluded"] * 3
        with pytest.raises(NoRuntimesDetectedError) as caught:
            manager.create_group(include_hosts=iter(["big", "small"]), exclude_hosts=["small"], gpu_required=True)
        assert caught.value.tried == (("small", "excluded"), ("big", "it has no GPU"))


@pytest.mark.parametrize(
    "needs", [{"min_memory": "16"}, {"min_cpu_cores": "2"}, {"min_memory": True}, {"min_cpu_cores": math.nan}]
)
def test_needs_that_are_no_numbers(fake_host: FakeHost, config: Path, needs: dict[str, Any]) -> None:
    with RuntimeManager(config) as manager, pytest.raises(ValueError, match=r"min_\w+ must be a number, got "):
        manager.create_group(**needs)


def test_only_what_is_missing_is_named(fake_host: FakeHost, config: Path) -> None:
    fake_host.host("big").executables = {"sh"}
    with (
        RuntimeManager(config) as manager,
        pytest.raises(NoRuntimesDetectedError, match=r"\n  big: not installed: nope$"),
    ):
        manager.create_group(include_hosts="big", installed_executables=["sh", "nope"])


def test_an_error_without_words_is_a_reason_too(
    fake_host: FakeHost, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_keywords: Any) -> str:
        raise TimeoutError

    monkeypatch.setattr(Requirements, "find_missing", fail)
    with RuntimeManager(config) as manager, pytest.raises(NoRuntimesDetectedError, match="\n  big: TimeoutError"):
        manager.create_group()


def test_there_are_no_hosts(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Host *\n  Port 22\n")
    with RuntimeManager(tmp_path / "config") as manager:
        assert manager.hosts == []
        with pytest.raises(NoRuntimesDetectedError, match=r"no hosts: .*config names none. Add a `Host` entry"):
            manager.create_group()


def test_all_of_them_are_excluded(config: Path) -> None:
    with RuntimeManager(config) as manager, pytest.raises(NoRuntimesDetectedError) as caught:
        manager.create_group(exclude_hosts=["small", "big", "gpu", "down"])
    assert caught.value.tried[:3] == (("small", "excluded"), ("big", "excluded"), ("gpu", "excluded"))


# For people ----------------------------------------------------------------------------------------------------------


def test_tables(fake_host: FakeHost, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        assert [line[:36] for line in out[3:]] == [
            "down  unknown host name (Name or ser",
            "old   no Python found (looked for py",
            "shut  authentication refused (Permis",
        ]
        assert isinstance(manager.inactive_hosts["old"], PythonNotFoundError)
        manager.print_runtime_info()
        out = capsys.readouterr().out.splitlines()
        assert out[0] == "3 active hosts"
        assert [line.split()[0] for line in out[3:]] == ["small", "big", "gpu"]
        assert out[5].endswith("8.0 GiB    2 x Fake GPU")
        with manager.create_group(include_hosts=["small", "gpu"]):
            manager.print_runtime_info()
        assert capsys.readouterr().out.startswith("1 active host (and 2 handed to groups)\n")


def test_a_reason_of_many_lines_is_one_row(
    fake_host: FakeHost, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_host.host("down").go_down(UnknownHostError("down", "one\ntwo"))
    with RuntimeManager(config) as manager:
        manager.print_inactive_hosts()
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4
    assert out[3].startswith("down  unknown host name (one two). Check")
