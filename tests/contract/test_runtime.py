"""A runtime: its working directory, what it knows of the host, directories, ports, tunnels, and its end."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from lazycluster import (
    CommandFailedError,
    InvalidRuntimeError,
    NoPortsLeftError,
    PortInUseError,
    Runtime,
    RuntimeClosedError,
    RuntimeTask,
    WorkingDirectoryError,
)
from tests.contract.conftest import HOST_ALIAS, TransportCase, execute_and_wait
from tests.reserved_ports import reserve_free_port

# Made, or refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "keywords"),
    [
        ("", {}),
        ("-oProxyCommand=touch pwned", {}),
        ("two\nlines", {}),
        (HOST_ALIAS, {"port": 0}),
        (HOST_ALIAS, {"port": 65536}),
        (HOST_ALIAS, {"env": {"no-identifier": "x"}}),
        (HOST_ALIAS, {"options": {"ControlMaster": "no"}}),
    ],
)
def test_arguments_that_cannot_be_right(case: TransportCase, host: str, keywords: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Runtime(host, **{**case.options, **keywords})  # type: ignore[arg-type]  # the mistakes that are tested


def test_a_keyword_that_does_not_exist(case: TransportCase) -> None:
    with pytest.raises(TypeError, match=r"'pasword'.*there are: .*password"):
        Runtime(HOST_ALIAS, pasword="secret", **case.options)  # type: ignore[call-arg]  # the mistake that is tested


@pytest.mark.parametrize("obstacle", ["a file", "a file in the way"])
def test_a_working_directory_that_cannot_be_made(case: TransportCase, obstacle: str) -> None:
    directory = case.runtime().create_tempdir()
    (case.local_path(directory) / "file").touch()
    path = f"{directory}/file" if obstacle == "a file" else f"{directory}/file/work"

    with pytest.raises(InvalidRuntimeError) as caught:
        case.runtime(path)

    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value.__cause__, WorkingDirectoryError)
    assert str(caught.value).startswith(f"{HOST_ALIAS} cannot be used as a runtime: ")
    assert f"{directory}/file" in str(caught.value)
    assert "File exists" in str(caught.value) or "Not a directory" in str(caught.value)


@pytest.mark.parametrize("path", ["", "with\0nul"])
def test_a_working_directory_that_has_no_name(case: TransportCase, path: str) -> None:
    with pytest.raises((ValueError, InvalidRuntimeError)):
        case.runtime(path)


# The working directory -----------------------------------------------------------------------------------------------


def test_a_temporary_one_is_private_and_removed(case: TransportCase) -> None:
    runtime = case.runtime()
    path = case.local_path(runtime.working_dir)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (path / "deep" / "er").mkdir(parents=True)
    (path / "deep" / "er" / "file").touch()
    (path / "deep" / "er").chmod(0o500)
    (path / "deep").chmod(0o000)

    runtime.close()

    assert not path.exists()


@pytest.mark.parametrize("name", ["with space/and 'quotes' \"$HOME\"", "ünï *\nends\n", "-dash", "plain"])
def test_one_of_any_name_is_made_used_and_kept(case: TransportCase, tmp_path: Path, name: str) -> None:
    parent = case.runtime().create_tempdir()
    path = f"{parent}/{name}"
    (tmp_path / "local").write_text("sent")
    runtime = case.runtime(path)
    task = RuntimeTask().send_file(tmp_path / "local", "sent").get_file("sent", tmp_path / "fetched")

    execute_and_wait(runtime, task.run_function(os.getcwd))
    runtime.close()

    assert runtime.working_dir == path
    assert runtime.env_variables["WORKING_DIR"] == path
    assert list(task.function_returns) == [path]
    assert (tmp_path / "fetched").read_text() == "sent"
    assert (case.local_path(path) / "sent").read_text() == "sent"


@pytest.mark.parametrize(("given", "made"), [("~/{way} home", "{way} home"), ("{way}/rel", "{way}/rel"), ("~", ".")])
def test_one_below_the_home(case: TransportCase, given: str, made: str) -> None:
    path = case.home / made.format(way=case.kind)

    runtime = case.runtime(given.format(way=case.kind))

    assert runtime.working_dir == str(path)
    assert runtime.call(os.getcwd) == str(path)
    assert path.is_dir()


def test_an_absolute_one_outside_of_what_a_fake_host_calls_by_its_own_name(case: TransportCase, tmp_path: Path) -> None:
    """A fake host keeps it below a directory of its own, and a function finds itself there."""
    path = f"{tmp_path}/work"

    runtime = case.runtime(path)

    assert runtime.working_dir == path
    assert runtime.call(os.getcwd) == str(case.local_path(path))
    assert case.local_path(path).is_dir()
    assert Path(path).exists() is (case.fake is None)


def test_two_on_one_host_do_not_share_a_directory_or_an_end(case: TransportCase) -> None:
    first, second = case.runtime(), case.runtime()
    (case.local_path(first.working_dir) / "file").write_text("first")

    first.close()

    assert first.working_dir != second.working_dir
    assert not case.local_path(first.working_dir).exists()
    assert case.local_path(second.working_dir).is_dir()
    assert second.call(os.listdir) == []


# What it knows -------------------------------------------------------------------------------------------------------


def test_facts(case: TransportCase, runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    info = runtime.host_info

    assert (runtime.host, runtime.class_name) == (HOST_ALIAS, "Runtime")
    assert info.cpu_cores > 0
    assert info.memory > 0
    assert runtime.cpu_cores == f"{info.cpu_cores:g}"
    assert (runtime.memory, runtime.memory_in_mb) == (str(info.memory), str(info.memory // 2**20))
    assert runtime.python_version == info.python_version
    assert (runtime.gpus, runtime.gpu_count) == (list(info.gpus), len(info.gpus))
    assert runtime.info["os"] == info.os != ""
    assert set(runtime.info) == {
        "host", "os", "python_version", "cpu_cores", "memory", "memory_in_mb", "gpu_count", "gpus", "working_dir",
    }  # fmt: skip
    assert repr(runtime) == f"<Runtime {HOST_ALIAS}:{runtime.working_dir}>"
    runtime.print_info()
    printed = capsys.readouterr().out
    assert printed.startswith(f"Runtime {HOST_ALIAS}\n")
    assert f"CPU cores          {runtime.cpu_cores}\n" in printed
    assert runtime.is_valid_runtime()


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({}, True),
        ({"min_memory": 1, "min_cpu_cores": 0.5}, True),
        ({"min_memory": 10**9}, False),
        ({"min_cpu_cores": 10**6}, False),
    ],
)
def test_filters_by_facts(runtime: Runtime, filters: dict[str, int], passes: bool) -> None:
    assert runtime.check_filter(**filters) is passes  # type: ignore[arg-type]  # a table of keywords


def test_filters_by_commands(case: TransportCase, runtime: Runtime) -> None:
    if case.fake is not None:
        case.fake.executables = {"ls", "cat", "sh"}
    case.script("echo true", stdout="true\n")
    case.script("printf 'True\\r\\n'", stdout="True\r\n")
    case.script("echo false", stdout="false\n")
    case.script("echo true >&2", stderr="true\n")

    assert runtime.check_filter(installed_executables=["ls", "cat"])
    assert not runtime.check_filter(installed_executables="no-such-program")
    assert not runtime.check_filter(installed_executables=["ls", "ls; touch pwned"])
    assert runtime.check_filter(filter_commands=["echo true", "printf 'True\\r\\n'"])
    assert not runtime.check_filter(filter_commands=["echo true", "echo false"])
    assert not runtime.check_filter(filter_commands="echo true >&2")
    assert runtime.check_filter(installed_executables=["ls", "cat"], filter_commands="echo true", min_memory=1)


# Directories ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["plain", "a/b c/d", "it's", "-dash", "new\nline", "*", "$HOME"])
def test_a_directory_of_any_name_is_made_and_deleted(case: TransportCase, runtime: Runtime, path: str) -> None:
    there = case.local_path(runtime.working_dir) / path

    runtime.create_dir(path)
    runtime.create_dir(path)
    assert there.is_dir()
    (there / "deep" / "er").mkdir(parents=True)
    (there / "deep" / "file").touch()

    assert runtime.delete_dir(path)
    assert not there.exists()
    assert runtime.delete_dir(path), "nothing of it is left"


def test_directories_of_the_home_and_absolute_ones(case: TransportCase, runtime: Runtime) -> None:
    absolute = f"{runtime.create_tempdir()}/deep/er"
    for path, there in (
        (f"~/made {case.kind}", case.home / f"made {case.kind}"),
        (absolute, case.local_path(absolute)),
    ):
        runtime.create_dir(path)
        assert there.is_dir()
        assert runtime.delete_dir(path)
        assert not there.exists()


def test_a_directory_that_cannot_be_made(case: TransportCase, runtime: Runtime) -> None:
    (case.local_path(runtime.working_dir) / "file").touch()

    for path in ("file", "file/below"):
        with pytest.raises(CommandFailedError) as caught:
            runtime.create_dir(path)
        assert caught.value.host == HOST_ALIAS
        assert path in str(caught.value)
    with pytest.raises(ValueError, match="must not be empty"):
        runtime.create_dir("")


def test_what_is_not_deleted(case: TransportCase, runtime: Runtime) -> None:
    for path in ("", "/", "//"):
        with pytest.raises(ValueError, match="path must be neither empty nor the root directory"):
            runtime.delete_dir(path)
    for path in (".", "..", "./"):
        assert not runtime.delete_dir(path)
    assert case.local_path(runtime.working_dir).is_dir()


def test_deleting_a_link_or_a_file(case: TransportCase, runtime: Runtime) -> None:
    there = case.local_path(runtime.working_dir)
    (there / "kept").mkdir()
    (there / "link").symlink_to("kept")
    (there / "file").touch()

    assert runtime.delete_dir("link")
    assert runtime.delete_dir("file")
    assert os.listdir(there) == ["kept"]  # noqa: PTH208 - names


def test_temporary_directories_are_removed_with_the_runtime(case: TransportCase) -> None:
    runtime = case.runtime()
    paths = [runtime.create_tempdir() for _ in range(3)]
    assert len({*paths, runtime.working_dir}) == 4
    for path in paths:
        assert stat.S_IMODE(case.local_path(path).stat().st_mode) == 0o700
    assert runtime.delete_dir(paths[0])
    (case.local_path(paths[1]) / "file").touch()

    runtime.close()

    assert not any(case.local_path(path).exists() for path in paths)


# Ports and tunnels ---------------------------------------------------------------------------------------------------


def test_ports_that_are_free_and_that_are_not(case: TransportCase, runtime: Runtime) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken, free = server.getsockname()[1], reserve_free_port()
        if case.fake is not None:
            case.fake.ports_in_use = {taken}
        assert not runtime.has_free_port(taken)
        assert runtime.has_free_port(free)
        assert runtime.get_free_port([taken, free]) == free
        with pytest.raises(NoPortsLeftError) as caught:
            runtime.get_free_port([taken])
        assert (caught.value.host, caught.value.ports) == (HOST_ALIAS, (taken,))
        with pytest.raises(PortInUseError) as refused:
            runtime.expose_port_to_runtime(80, taken)
        assert (refused.value.host, refused.value.port) == (HOST_ALIAS, taken)
    with pytest.raises(NoPortsLeftError, match="the list is empty"):
        runtime.get_free_port([])


@pytest.mark.parametrize("port", [0, -1, 65536, True])
def test_ports_that_are_none(runtime: Runtime, port: int) -> None:
    uses: list[Callable[[], object]] = [
        lambda: runtime.has_free_port(port),
        lambda: runtime.get_free_port([80, port]),
        lambda: runtime.expose_port_to_runtime(port),
        lambda: runtime.expose_port_from_runtime(80, port),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="port"):
            use()


@pytest.mark.parametrize("direction", ["to", "from"])
def test_a_tunnel_is_a_process_until_it_is_stopped(runtime: Runtime, direction: str) -> None:
    """That traffic flows is tested with the real ways only: through a fake one none does."""
    listen, connect = reserve_free_port(), reserve_free_port()

    def expose() -> str:
        if direction == "to":
            return runtime.expose_port_to_runtime(connect, listen)
        return runtime.expose_port_from_runtime(connect, listen)

    key = expose()
    process = runtime.get_process(key)
    assert re.fullmatch(rf"{direction}-runtime-{listen}-\d+@{HOST_ALIAS}", key), "unique among the hosts of a group"
    assert (process.is_alive(), process.exitcode) == (True, None)
    assert str(listen) in process.name
    assert runtime.get_processes(only_alive=True) == {key: process}
    assert (runtime.alive_process_count, runtime.alive_task_process_count) == (1, 0)
    with pytest.raises(PortInUseError) as caught:
        expose()
    assert (caught.value.host, caught.value.port) == (HOST_ALIAS if direction == "to" else "localhost", listen)
    assert runtime.has_free_port(listen) is (direction == "from" and not listens_here(listen))

    runtime.stop_process(key)

    process.join(10)
    assert (process.is_alive(), process.exitcode) == (False, 0)
    assert runtime.get_processes(only_alive=True) == {}
    assert runtime.get_process(key) is process
    again = expose()
    assert again != key
    runtime.get_process(again).kill()
    runtime.stop_process(again)


def listens_here(port: int) -> bool:
    """Tell whether somebody listens on a port of this machine, which is the host's own for the real ways."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_key_that_there_is_not(runtime: Runtime) -> None:
    for use in (runtime.get_process, runtime.stop_process):
        with pytest.raises(ValueError, match="no process with the key 'none'"):
            use("none")


# The end -------------------------------------------------------------------------------------------------------------


def test_after_the_end_everything_says_so(case: TransportCase) -> None:
    runtime = case.runtime()
    task = execute_and_wait(runtime, RuntimeTask().run_function(len, "four"))
    runtime.close()
    runtime.close()
    runtime.cleanup()

    assert not runtime.is_valid_runtime()
    uses: list[Callable[[], object]] = [
        lambda: runtime.run("true"),
        lambda: runtime.call(int),
        lambda: runtime.execute_task(RuntimeTask().run_command("true")),
        lambda: runtime.execute_task(RuntimeTask().run_command("true"), execute_async=False),
        lambda: runtime.create_dir("x"),
        lambda: runtime.delete_dir("x"),
        runtime.create_tempdir,
        lambda: runtime.has_free_port(80),
        lambda: runtime.get_free_port([80]),
        lambda: runtime.expose_port_from_runtime(80, reserve_free_port()),
        lambda: runtime.expose_port_to_runtime(80),
    ]
    for use in uses:
        with pytest.raises(RuntimeClosedError, match="closed already"):
            use()
    assert list(task.function_returns) == [4], "what there was stays readable"
    assert task.execution_log == [""]
    assert runtime.host_info.cpu_cores > 0


def test_the_end_of_a_block_is_its_end_also_by_an_error(case: TransportCase) -> None:
    with pytest.raises(KeyError), case.runtime() as runtime:
        raise KeyError

    assert not case.local_path(runtime.working_dir).exists()
    with pytest.raises(RuntimeClosedError):
        runtime.run("true")


def test_tunnels_end_with_the_runtime(case: TransportCase) -> None:
    runtime = case.runtime()
    process = runtime.get_process(runtime.expose_port_from_runtime(reserve_free_port(), reserve_free_port()))

    runtime.close()

    assert not process.is_alive()
    assert process.exitcode == 0
