"""Several fake hosts, hosts that go down, connections without a runtime, and the end of a fake host."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import pytest

from lazycluster import (
    Connection,
    ConnectionLostError,
    HostUnreachableError,
    InvalidRuntimeError,
    PortInUseError,
    PortRefusedError,
    Runtime,
    RuntimeClosedError,
    RuntimeTask,
    TaskExecutionError,
)
from lazycluster._transports import factory
from lazycluster.testing import FakeHost, Ran, UnexpectedCommandError
from tests.waiting import assert_eventually

# Several hosts -------------------------------------------------------------------------------------------------------


def test_fake_host_answers_to_every_name(fake_host: FakeHost) -> None:
    fake_host.on("hostname", stdout="same\n")

    with Runtime("one") as one, Runtime("two") as two:
        assert one.run("hostname").stdout == two.run("hostname").stdout == "same\n"

    assert [asked.host for asked in fake_host.calls] == ["one", "two"]


def test_host_has_facts_files_and_calls_of_its_own(fake_host: FakeHost, tmp_path: Path) -> None:
    gpu = fake_host.host("gpu-1")
    assert fake_host.host("gpu-1") is gpu
    gpu.has(gpus=4)
    gpu.ports_in_use = {8000}
    gpu.on("hostname", stdout="gpu-1\n")
    fake_host.on("hostname", stdout="another\n")
    fake_host.on("nproc", stdout="8\n")
    (tmp_path / "file").touch()

    with Runtime("gpu-1") as one, Runtime("cpu-1") as two:
        assert (one.gpu_count, two.gpu_count) == (4, 0)
        assert one.run("hostname").stdout == "gpu-1\n"
        assert two.run("hostname").stdout == "another\n"
        assert one.run("nproc").stdout == "8\n", "the answer of the host for all names"
        assert (one.has_free_port(8000), two.has_free_port(8000)) == (False, True)
        one.execute_task(RuntimeTask().send_file(tmp_path / "file", "~/file"), execute_async=False)
        assert gpu.path("~/file").exists()
        assert not fake_host.path("~/file").exists()
        with pytest.raises(UnexpectedCommandError) as caught:
            one.run("new")
    assert (caught.value.host, caught.value.command) == ("gpu-1", "new")
    assert caught.value.scripted == ("'hostname'", "'nproc'", "'hostname'")

    assert gpu.commands == ["hostname", "nproc", "new"]
    assert fake_host.commands == ["hostname", "hostname", "nproc", "new"], "the calls of all hosts"
    assert {asked.host for asked in gpu.calls} == {"gpu-1"}


def test_strict_of_one_host_or_all(fake_host: FakeHost) -> None:
    lenient = fake_host.host("lenient")
    lenient.strict = False
    with Runtime("lenient") as one, Runtime("strict") as two:
        assert one.run("new").ok
        with pytest.raises(UnexpectedCommandError):
            two.run("new")
        fake_host.strict = False
        assert two.run("new").ok


def test_tunnels_of_hosts_share_local_ports_only(fake_host: FakeHost) -> None:
    fake_host.host("two")
    with Runtime("one") as one, Runtime("two") as two:
        one.expose_port_to_runtime(80, 8080)
        two.expose_port_to_runtime(80, 8080)
        key = one.expose_port_from_runtime(9000)
        assert repr(one.get_process(key)) == "<FakeTunnel tunnel to one: -L localhost:9000:localhost:9000, alive>"
        with pytest.raises(PortInUseError) as caught:
            two.expose_port_from_runtime(9000)
        assert (caught.value.host, caught.value.port) == ("localhost", 9000)
        one.stop_process(key)
        two.expose_port_from_runtime(9000)


def test_host_after_its_first_use_is_refused(fake_host: FakeHost) -> None:
    with Runtime("late"), pytest.raises(ValueError, match=r"'late' has been reached already; call host\('late'\)"):
        fake_host.host("late")


# Down ----------------------------------------------------------------------------------------------------------------


def test_go_down_refuses_runtime(fake_host: FakeHost) -> None:
    fake_host.host("down").go_down()

    with pytest.raises(InvalidRuntimeError) as caught:
        Runtime("down")
    assert isinstance(caught.value.__cause__, HostUnreachableError)
    with Runtime("up") as runtime:
        assert runtime.is_valid_runtime()


def test_go_down_and_come_up_again(fake_host: FakeHost, tmp_path: Path) -> None:
    fake_host.on("true")
    error = PortRefusedError("any-host", "connect to 192.0.2.1 port 22: Connection refused")
    (tmp_path / "file").touch()
    with Runtime("any-host") as runtime:
        fake_host.go_down(error)

        assert not runtime.is_valid_runtime()
        for use in (
            lambda: runtime.run("true"),
            lambda: runtime.call(int),
            runtime.create_tempdir,
            lambda: runtime.create_dir("x"),
            lambda: runtime.has_free_port(80),
            lambda: runtime.expose_port_from_runtime(80),
        ):
            with pytest.raises(PortRefusedError) as caught:
                use()
            assert caught.value is error
        with pytest.raises(TaskExecutionError):
            runtime.execute_task(RuntimeTask().send_file(tmp_path / "file"), execute_async=False)
        assert fake_host.commands == [], "no command has reached it"

        fake_host.come_up()
        assert runtime.is_valid_runtime()
        assert runtime.run("true").ok


def test_go_down_loses_work_under_way(fake_host: FakeHost) -> None:
    fake_host.on("sleep", stdout="started\n", delay=math.inf)
    with Runtime("any-host") as runtime:
        tasks = [RuntimeTask().run_command("sleep"), RuntimeTask().run_function(wait_until_removed)]
        for task in tasks:
            runtime.execute_task(task)
        assert_eventually(lambda: len(fake_host.calls) == 2, "both have reached the host")

        fake_host.go_down()

        for task in tasks:
            with pytest.raises(TaskExecutionError) as caught:
                task.join()
            assert isinstance(caught.value.__cause__, ConnectionLostError)
            assert caught.value.__cause__.started
        fake_host.come_up()


def wait_until_removed() -> None:
    directory = Path.cwd()
    while directory.exists():
        time.sleep(0.01)


# Connections ---------------------------------------------------------------------------------------------------------


def test_connection_uses_fake_host(fake_host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_host.on("pwd", stdout="/home/me\n")
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)

    with Connection("web1", env={"A": "1"}) as connection:
        assert connection.is_alive()
        assert connection.run("pwd", env={"B": "2"}).stdout == "/home/me\n"
        connection.put("file", "sent")
        (tmp_path / "file").unlink()
        connection.get("sent")
        task = RuntimeTask().run_command("pwd").run_function(pow, 2, 3)
        assert task.execute(connection) is task
        assert [fake_host.closed] == [False]

    assert (tmp_path / "sent").read_text() == "x"
    assert list(task.function_returns) == [8]
    assert fake_host.calls[0] == Ran("web1", "pwd", None, {"A": "1", "B": "2"})
    assert not connection.is_alive()
    assert fake_host.closed
    with pytest.raises(RuntimeClosedError):
        connection.run("pwd")
    with pytest.raises(RuntimeClosedError):
        task.execute(connection)


def test_connection_to_host_that_is_down_is_refused(fake_host: FakeHost) -> None:
    fake_host.go_down()
    with Connection("web1") as connection:
        assert not connection.is_alive()
        for use in (lambda: connection.run("true"), lambda: RuntimeTask().run_command("true").execute(connection)):
            with pytest.raises(HostUnreachableError):
                use()
    assert fake_host.calls == []


# The end -------------------------------------------------------------------------------------------------------------


def test_closed_and_cleaned_up_follow_runtimes(fake_host: FakeHost) -> None:
    assert (fake_host.closed, fake_host.cleaned_up) == (False, True)
    first, second = Runtime("one"), Runtime("two")
    first.create_tempdir()
    assert (fake_host.closed, fake_host.cleaned_up) == (False, False)
    first.close()
    assert (fake_host.closed, fake_host.cleaned_up) == (False, False)
    second.close()
    assert (fake_host.closed, fake_host.cleaned_up) == (True, True)


def test_fake_host_exit_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    started = threading.Event()

    def is_sleep(asked: Ran) -> bool:
        started.set()
        return asked.command == "sleep"

    before = factory.make_transport
    with FakeHost() as host:
        assert factory.make_transport is not before
        host.on(is_sleep, delay=math.inf)
        runtime = Runtime("never-closed")
        task = runtime.execute_task(RuntimeTask().run_command("sleep"))
        assert started.wait(30)
        directory = host.path("/")

    assert factory.make_transport is before
    assert not directory.exists()
    assert not directory.parent.exists()
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert isinstance(caught.value.__cause__, ConnectionLostError)
    with pytest.raises(RuntimeClosedError):
        runtime.run("true")
    runtime.close()
    assert caplog.messages == []


def test_fake_host_exit_by_error_restores_transports() -> None:
    before = factory.make_transport
    with pytest.raises(KeyError), FakeHost() as host:
        raise KeyError
    assert factory.make_transport is before
    assert host.closed is False


def test_fake_host_within_another(fake_host: FakeHost) -> None:
    fake_host.on("which", stdout="outer")
    with FakeHost() as inner:
        inner.on("which", stdout="inner")
        with Runtime("any-host") as runtime:
            assert runtime.run("which").stdout == "inner"
    with Runtime("any-host") as runtime:
        assert runtime.run("which").stdout == "outer"
