"""Several fake hosts, hosts that go down, connections without a runtime, and the end of the standing in."""

from __future__ import annotations

import math
import threading
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
from tests.waiting import wait_until

# Several hosts -------------------------------------------------------------------------------------------------------


def test_one_host_answers_to_every_name(fake_host: FakeHost) -> None:
    fake_host.on("hostname", stdout="same\n")

    with Runtime("one") as one, Runtime("two") as two:
        assert one.run("hostname").stdout == two.run("hostname").stdout == "same\n"

    assert [asked.host for asked in fake_host.calls] == ["one", "two"]


def test_hosts_of_their_own(fake_host: FakeHost, tmp_path: Path) -> None:
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
        assert one.run("nproc").stdout == "8\n", "what it has no answer for, the other one has"
        assert (one.has_free_port(8000), two.has_free_port(8000)) == (False, True)
        one.execute_task(RuntimeTask().send_file(tmp_path / "file", "~/file"), execute_async=False)
        assert gpu.path("~/file").exists()
        assert not fake_host.path("~/file").exists()
        with pytest.raises(UnexpectedCommandError, match=r"gpu-1: .*\n.*\n.*\n    'hostname'\n    'nproc'\n    'hostn"):
            one.run("new")

    assert gpu.commands == ["hostname", "nproc", "new"]
    assert fake_host.commands == ["hostname", "hostname", "nproc", "new"], "everything that was asked of all"
    assert {asked.host for asked in gpu.calls} == {"gpu-1"}


def test_strict_is_said_for_one_or_for_all(fake_host: FakeHost) -> None:
    lenient = fake_host.host("lenient")
    lenient.strict = False
    with Runtime("lenient") as one, Runtime("strict") as two:
        assert one.run("new").ok
        with pytest.raises(UnexpectedCommandError):
            two.run("new")
        fake_host.strict = False
        assert two.run("new").ok


def test_tunnels_of_several_hosts(fake_host: FakeHost) -> None:
    fake_host.host("two")
    with Runtime("one") as one, Runtime("two") as two:
        one.expose_port_to_runtime(80, 8080)
        two.expose_port_to_runtime(80, 8080)
        key = one.expose_port_from_runtime(9000)
        assert repr(one.get_process(key)) == "<FakeTunnel tunnel to one: -L localhost:9000:localhost:9000, alive>"
        with pytest.raises(PortInUseError, match="localhost: port 9000 is in use"):
            two.expose_port_from_runtime(9000)
        one.stop_process(key)
        two.expose_port_from_runtime(9000)


def test_a_host_of_its_own_has_to_be_named_first(fake_host: FakeHost) -> None:
    with Runtime("late"), pytest.raises(ValueError, match=r"'late' has been reached already; call host\('late'\)"):
        fake_host.host("late")


# Down ----------------------------------------------------------------------------------------------------------------


def test_a_host_that_is_down(fake_host: FakeHost) -> None:
    fake_host.host("down").go_down()

    with pytest.raises(InvalidRuntimeError, match="down cannot be used as a runtime: host unreachable") as caught:
        Runtime("down")
    assert isinstance(caught.value.__cause__, HostUnreachableError)
    with Runtime("up") as runtime:
        assert runtime.is_valid_runtime()


def test_one_that_goes_down_and_comes_up_again(fake_host: FakeHost, tmp_path: Path) -> None:
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
        assert fake_host.commands == [], "it was never reached"

        fake_host.come_up()
        assert runtime.is_valid_runtime()
        assert runtime.run("true").ok


def test_what_is_under_way_when_it_goes_down_is_lost(fake_host: FakeHost) -> None:
    fake_host.on("sleep", stdout="begun\n", delay=math.inf)
    with Runtime("any-host") as runtime:
        tasks = [RuntimeTask().run_command("sleep"), RuntimeTask().run_function(waits, runtime.working_dir)]
        for task in tasks:
            runtime.execute_task(task)
        assert wait_until(lambda: fake_host._state.transports[0].calls_under_way == 2, timeout=10)

        fake_host.go_down()

        for task in tasks:
            with pytest.raises(TaskExecutionError) as caught:
                task.join()
            assert isinstance(caught.value.__cause__, ConnectionLostError)
            assert caught.value.__cause__.started
        fake_host.come_up()


def waits(directory: str) -> None:
    while Path(directory).exists():
        threading.Event().wait(0.01)


# Connections ---------------------------------------------------------------------------------------------------------


def test_a_connection_lands_on_it_too(fake_host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_connection_to_a_host_that_is_down(fake_host: FakeHost) -> None:
    fake_host.go_down()
    with Connection("web1") as connection:
        assert not connection.is_alive()
        for use in (lambda: connection.run("true"), lambda: RuntimeTask().run_command("true").execute(connection)):
            with pytest.raises(HostUnreachableError):
                use()
    assert fake_host.calls == []


# The end -------------------------------------------------------------------------------------------------------------


def test_whether_everything_was_closed_and_cleaned_up(fake_host: FakeHost) -> None:
    assert (fake_host.closed, fake_host.cleaned_up) == (False, True)
    first, second = Runtime("one"), Runtime("two")
    first.create_tempdir()
    assert (fake_host.closed, fake_host.cleaned_up) == (False, False)
    first.close()
    assert (fake_host.closed, fake_host.cleaned_up) == (False, False)
    second.close()
    assert (fake_host.closed, fake_host.cleaned_up) == (True, True)


def test_nothing_is_left_when_it_stands_in_no_more(caplog: pytest.LogCaptureFixture) -> None:
    places = ((factory, ("make_transport",)),)

    def found() -> list[object]:
        return [vars(owner)[name] for owner, names in places for name in names]

    before = found()
    with FakeHost() as host:
        assert not set(map(id, found())) & set(map(id, before))
        host.on("sleep", delay=math.inf)
        runtime = Runtime("never-closed")
        task = runtime.execute_task(RuntimeTask().run_command("sleep"))
        assert wait_until(lambda: bool(host._state.transports[0].calls_under_way), timeout=10)
        directory = host.path("/")

    assert found() == before
    assert not directory.exists()
    assert not directory.parent.exists()
    with pytest.raises(TaskExecutionError, match="the connection was closed"):
        task.join()
    with pytest.raises(RuntimeClosedError):
        runtime.run("true")
    runtime.close()
    assert caplog.messages == []


def test_an_error_in_the_block_ends_it_too() -> None:
    before = factory.make_transport
    with pytest.raises(KeyError), FakeHost() as host:
        raise KeyError
    assert factory.make_transport is before
    assert host.closed is False


def test_one_within_another(fake_host: FakeHost) -> None:
    fake_host.on("which", stdout="outer")
    with FakeHost() as inner:
        inner.on("which", stdout="inner")
        with Runtime("any-host") as runtime:
            assert runtime.run("which").stdout == "inner"
    with Runtime("any-host") as runtime:
        assert runtime.run("which").stdout == "outer"
