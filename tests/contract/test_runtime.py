"""Runtimes: working directory, facts of the host, filters, directories, ports, tunnels, and the end."""

from __future__ import annotations

import os
import platform
import re
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lazycluster import (
    CommandFailedError,
    Gpu,
    InvalidRuntimeError,
    LazyclusterError,
    NoPortsLeftError,
    PortInUseError,
    Runtime,
    RuntimeClosedError,
    RuntimeTask,
    TaskExecutionError,
    WorkingDirectoryError,
)
from tests.contract.conftest import HOST_ALIAS, TransportCase, execute_and_wait
from tests.pseudo_terminal import pseudo_terminal
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

# Construction -------------------------------------------------------------------------------------------------------


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
def test_runtime_bad_argument_raises_value_error(case: TransportCase, host: str, keywords: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Runtime(host, **{**case.options, **keywords})  # type: ignore[arg-type]  # the mistakes that are tested


def test_runtime_unknown_keyword_raises_type_error(case: TransportCase) -> None:
    with pytest.raises(TypeError) as caught:
        Runtime(HOST_ALIAS, pasword="hunter2", **case.options)  # type: ignore[call-arg]  # the mistake that is tested
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("obstacle", ["is a file", "parent is a file"])
def test_working_dir_blocked_raises_invalid_runtime_error(case: TransportCase, obstacle: str) -> None:
    directory = case.runtime().create_tempdir()
    (case.local_path(directory) / "file").touch()
    path = f"{directory}/file" if obstacle == "is a file" else f"{directory}/file/work"

    with pytest.raises(InvalidRuntimeError) as caught:
        case.runtime(path)

    assert isinstance(caught.value, ValueError)
    assert caught.value.host == HOST_ALIAS
    assert isinstance(caught.value.__cause__, WorkingDirectoryError)
    assert f"{directory}/file" in str(caught.value)
    assert "File exists" in str(caught.value) or "Not a directory" in str(caught.value), "the reason of the system"


@pytest.mark.parametrize("path", ["", "with\0nul"], ids=["empty", "with NUL"])
def test_working_dir_without_name_is_refused(case: TransportCase, path: str) -> None:
    with pytest.raises((ValueError, InvalidRuntimeError)):
        case.runtime(path)


# The working directory -----------------------------------------------------------------------------------------------


def test_working_dir_default_is_private_and_removed(case: TransportCase) -> None:
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
def test_working_dir_of_any_name_is_made_used_and_kept(case: TransportCase, tmp_path: Path, name: str) -> None:
    parent = case.runtime().create_tempdir()
    path = f"{parent}/{name}"
    (tmp_path / "local").write_text("sent")
    runtime = case.runtime(path)
    task = RuntimeTask().send_file(tmp_path / "local", "sent").get_file("sent", tmp_path / "fetched")

    execute_and_wait(runtime, task.run_function(os.getcwd))
    assert runtime.run(case.script("pwd; echo .", stdout=f"{path}\n.\n")).stdout == f"{path}\n.\n"
    assert runtime.run(case.script('[ "$PWD" = "$WORKING_DIR" ]')).ok
    runtime.close()

    assert runtime.working_dir == path
    assert runtime.env_variables["WORKING_DIR"] == path
    assert list(task.function_returns) == [path]
    assert (tmp_path / "fetched").read_text() == "sent"
    assert (case.local_path(path) / "sent").read_text() == "sent"


@pytest.mark.parametrize(
    ("working_dir", "directory"),
    [("~/{kind} home", "{kind} home"), ("{kind}/rel", "{kind}/rel"), ("-dash {kind}", "-dash {kind}"), ("~", ".")],
)
def test_working_dir_relative_is_in_home(case: TransportCase, working_dir: str, directory: str) -> None:
    path = case.home / directory.format(kind=case.kind)

    runtime = case.runtime(working_dir.format(kind=case.kind))

    assert runtime.working_dir == str(path)
    assert runtime.call(os.getcwd) == str(path)
    assert path.is_dir()


def test_working_dir_absolute_is_made(case: TransportCase, tmp_path: Path) -> None:
    """A fake host keeps the directory inside one of its own, and functions run there."""
    path = f"{tmp_path}/work"

    runtime = case.runtime(path)

    assert runtime.working_dir == path
    assert runtime.call(os.getcwd) == str(case.local_path(path))
    assert case.local_path(path).is_dir()
    assert Path(path).exists() is (case.fake is None)


def test_runtimes_on_one_host_are_independent(case: TransportCase) -> None:
    first, second = case.runtime(), case.runtime()
    (case.local_path(first.working_dir) / "file").write_text("first")

    first.close()

    assert first.working_dir != second.working_dir
    assert not case.local_path(first.working_dir).exists()
    assert case.local_path(second.working_dir).is_dir()
    assert second.call(os.listdir) == []


# Facts, filters ------------------------------------------------------------------------------------------------------


def test_runtime_facts_agree_with_host_info(runtime: Runtime) -> None:
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
    assert runtime.is_valid_runtime()


def test_print_info_is_a_plain_table(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    runtime.print_info()
    printed = capsys.readouterr().out
    assert printed.startswith(f"Runtime {HOST_ALIAS}\n")
    assert f"CPU cores          {runtime.cpu_cores}\n" in printed


def test_print_info_on_terminal_draws_a_table(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as seen:
        runtime.print_info()
    assert "┃" in seen.text
    assert "CPU cores" in seen.text
    assert "\x1b[1;36m" in seen.text


def test_returned_collections_are_copies(runtime: Runtime) -> None:
    processes = runtime.get_processes()
    runtime.env_variables["X"] = "1"
    runtime.gpus.append(Gpu(0, "none"))
    runtime.get_processes()["x"] = None  # type: ignore[assignment]  # never read
    assert "X" not in runtime.env_variables
    assert runtime.gpu_count == len(runtime.gpus) == len(runtime.host_info.gpus)
    assert runtime.get_processes() == processes


def test_python_version_is_that_of_functions(runtime: Runtime) -> None:
    assert runtime.call(platform.python_version) == runtime.python_version


def script_filter_commands(case: TransportCase) -> None:
    if case.fake is not None:
        case.fake.executables = {"ls", "cat", "sh", "/bin/sh"}
    case.script("echo true", stdout="true\n")
    case.script("echo True", stdout="True\n")
    case.script("printf 'true\\r\\n'", stdout="true\r\n")
    case.script("echo false", stdout="false\n")
    case.script("echo true; echo more", stdout="true\nmore\n")
    case.script("no-such-program", exit_code=127)
    case.script("true")
    case.script("echo true >&2", stderr="true\n")
    case.script('[ -n "$WORKING_DIR" ] && echo true || echo false', stdout="true\n")
    case.script('[ ! -z "$NO_SUCH_VARIABLE" ] && echo "true" || echo "false"', stdout="false\n")


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({}, True),
        ({"gpu_required": False}, True),
        ({"min_memory": 1}, True),
        ({"min_memory": 10**9}, False),
        ({"min_cpu_cores": 1}, True),
        ({"min_cpu_cores": 0.5}, True),
        ({"min_cpu_cores": 10**6}, False),
        ({"min_memory": 1, "min_cpu_cores": 10**6}, False),
        ({"installed_executables": "ls"}, True),
        ({"installed_executables": ["ls", "cat", "sh"]}, True),
        ({"installed_executables": []}, True),
        ({"installed_executables": ["ls", "no-such-program"]}, False),
        ({"installed_executables": ["ls", "ls; touch pwned"]}, False),
        ({"installed_executables": "/bin/sh"}, True),
        ({"filter_commands": "echo true"}, True),
        ({"filter_commands": "echo True"}, True),
        ({"filter_commands": "printf 'true\\r\\n'"}, True),
        ({"filter_commands": "echo false"}, False),
        ({"filter_commands": "echo true; echo more"}, False),
        ({"filter_commands": "no-such-program"}, False),
        ({"filter_commands": "true"}, False),
        ({"filter_commands": "echo true >&2"}, False),
        ({"filter_commands": '[ -n "$WORKING_DIR" ] && echo true || echo false'}, True),
        ({"filter_commands": '[ ! -z "$NO_SUCH_VARIABLE" ] && echo "true" || echo "false"'}, False),
        ({"filter_commands": ["echo true", "echo true"]}, True),
        ({"filter_commands": ["echo true", "echo false"]}, False),
        ({"installed_executables": "ls", "filter_commands": "echo true", "min_memory": 1, "min_cpu_cores": 1}, True),
    ],
)
def test_check_filter_compares_with_the_host(
    case: TransportCase, runtime: Runtime, filters: dict[str, object], passes: bool
) -> None:
    script_filter_commands(case)
    assert runtime.check_filter(**filters) is passes  # type: ignore[arg-type]  # a table of keywords
    assert list(case.local_path(runtime.working_dir).iterdir()) == [], "no filter ran as a part of a command"


# Directories ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["plain", "a/b c/d", "it's", "-dash", "new\nline", "*", "$HOME"])
def test_create_dir_of_any_name_and_delete_dir(case: TransportCase, runtime: Runtime, path: str) -> None:
    directory = case.local_path(runtime.working_dir) / path
    beside = case.local_path(runtime.working_dir) / "beside"
    beside.mkdir()

    runtime.create_dir(path)
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "deep" / "file").touch()
    runtime.create_dir(path)
    assert (directory / "deep" / "file").exists()

    assert runtime.delete_dir(path)
    assert not directory.exists()
    assert runtime.delete_dir(path), "a missing directory counts as deleted"
    assert beside.is_dir()


def test_create_dir_in_home_or_absolute_and_delete_dir(case: TransportCase, runtime: Runtime) -> None:
    absolute = f"{runtime.create_tempdir()}/deep/er"
    for path, local in (
        (f"~/made {case.kind}", case.home / f"made {case.kind}"),
        (absolute, case.local_path(absolute)),
    ):
        runtime.create_dir(path)
        assert local.is_dir()
        assert runtime.delete_dir(path)
        assert not local.exists()


def test_create_dir_blocked_raises_command_failed_error(case: TransportCase, runtime: Runtime) -> None:
    (case.local_path(runtime.working_dir) / "file").touch()

    for path in ("file", "file/child"):
        with pytest.raises(CommandFailedError) as caught:
            runtime.create_dir(path)
        assert caught.value.host == HOST_ALIAS
        assert path in caught.value.command
    with pytest.raises(ValueError):
        runtime.create_dir("")


def test_delete_dir_dangerous_path_is_refused(case: TransportCase, runtime: Runtime) -> None:
    for path in ("", "/", "//"):
        with pytest.raises(ValueError):
            runtime.delete_dir(path)
    for path in (".", "..", "./"):
        assert not runtime.delete_dir(path)
    assert case.local_path(runtime.working_dir).is_dir()


def test_delete_dir_deletes_link_or_file_itself(case: TransportCase, runtime: Runtime) -> None:
    directory = case.local_path(runtime.working_dir)
    (directory / "kept").mkdir()
    (directory / "link").symlink_to("kept")
    (directory / "file").touch()

    assert runtime.delete_dir("link")
    assert runtime.delete_dir("file")
    assert [path.name for path in directory.iterdir()] == ["kept"]


def test_create_tempdir_is_private_and_removed_at_close(case: TransportCase) -> None:
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


def test_free_port_in_use_is_skipped_or_refused(case: TransportCase, runtime: Runtime) -> None:
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
    with pytest.raises(NoPortsLeftError) as no_ports:
        runtime.get_free_port([])
    assert no_ports.value.ports == ()


@pytest.mark.parametrize("port", [0, -1, 65536, True])
def test_port_out_of_range_raises_value_error(runtime: Runtime, port: int) -> None:
    uses: list[Callable[[], object]] = [
        lambda: runtime.has_free_port(port),
        lambda: runtime.get_free_port([80, port]),
        lambda: runtime.expose_port_to_runtime(port),
        lambda: runtime.expose_port_from_runtime(80, port),
    ]
    for use in uses:
        with pytest.raises(ValueError) as caught:
            use()
        assert not isinstance(caught.value, LazyclusterError), "a mistake of the caller, not a port in use"


@pytest.mark.parametrize("direction", ["to", "from"])
def test_tunnel_is_a_process_until_stopped(runtime: Runtime, direction: str) -> None:
    """The flow of data is tested with real hosts; a fake host carries none."""
    listen, connect = reserve_free_port(), reserve_free_port()

    def expose() -> str:
        if direction == "to":
            return runtime.expose_port_to_runtime(connect, listen)
        return runtime.expose_port_from_runtime(connect, listen)

    key = expose()
    process = runtime.get_process(key)
    assert re.fullmatch(rf"{direction}-runtime-{listen}-\d+@{HOST_ALIAS}", key), "the key is unique in a group"
    assert (process.is_alive(), process.exitcode) == (True, None)
    assert str(listen) in process.name
    assert runtime.get_processes(only_alive=True) == {key: process}
    assert (runtime.alive_process_count, runtime.alive_task_process_count) == (1, 0)
    with pytest.raises(PortInUseError) as caught:
        expose()
    assert (caught.value.host, caught.value.port) == (HOST_ALIAS if direction == "to" else "localhost", listen)
    assert runtime.has_free_port(listen) is (direction == "from" and not is_local_port_open(listen))

    runtime.stop_process(key)

    process.join(10)
    assert (process.is_alive(), process.exitcode) == (False, 0)
    assert runtime.get_processes(only_alive=True) == {}
    assert runtime.get_process(key) is process
    again = expose()
    assert again != key
    runtime.get_process(again).kill()
    runtime.stop_process(again)


def is_local_port_open(port: int) -> bool:
    """Return whether a program listens on a port of this machine, which is also the host of the real transports."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_get_process_unknown_key_raises_value_error(runtime: Runtime) -> None:
    for use in (runtime.get_process, runtime.stop_process):
        with pytest.raises(ValueError):
            use("none")


# The end -------------------------------------------------------------------------------------------------------------


def test_closed_runtime_use_raises_runtime_closed_error(case: TransportCase) -> None:
    runtime = case.runtime()
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
        with pytest.raises(RuntimeClosedError) as caught:
            use()
        assert caught.value.host == HOST_ALIAS


def test_closed_runtime_keeps_results_and_facts(case: TransportCase, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = case.runtime()
    task = RuntimeTask("read").run_command(case.script("echo kept", stdout="kept\n")).run_function(bytes, 3_000_000)
    runtime.execute_task(task).join()

    runtime.close()

    assert task.execution_log == ["kept\n", ""]
    assert [result.exit_code for result in task.results] == [0, None]
    assert list(task.function_returns) == list(runtime.function_returns) == [bytes(3_000_000)]
    runtime.print_log()
    assert "[0] kept" in capsys.readouterr().out
    assert [process.exitcode for process in runtime.get_processes().values()] == [0]
    assert runtime.info["host"] == HOST_ALIAS
    assert runtime.working_dir
    assert runtime.host_info.cpu_cores > 0
    task.cleanup()
    assert task.execution_log == ["kept\n", ""]


def test_with_block_left_by_error_closes_runtime(case: TransportCase) -> None:
    with pytest.raises(KeyError), case.runtime() as runtime:
        raise KeyError

    assert not case.local_path(runtime.working_dir).exists()
    with pytest.raises(RuntimeClosedError):
        runtime.run("true")


def test_close_ends_tunnels(case: TransportCase) -> None:
    runtime = case.runtime()
    process = runtime.get_process(runtime.expose_port_from_runtime(reserve_free_port(), reserve_free_port()))

    runtime.close()

    assert not process.is_alive()
    assert process.exitcode == 0


# A temporary working directory that is gone ---------------------------------------------------------------------------


def test_temp_working_dir_gone_is_replaced_after_an_error(case: TransportCase) -> None:
    """As after a reboot that has emptied /tmp; a task or call that comes first gets the error just the same."""
    runtime = case.runtime()
    command = case.script('pwd; echo "$WORKING_DIR"')
    uses: list[Callable[[], object]] = [
        lambda: runtime.run(command),
        lambda: runtime.call(os.getcwd),
        lambda: runtime.execute_task(RuntimeTask().run_command(command)).join(),
        lambda: runtime.read_bytes("file"),
    ]
    for use in uses:
        gone = runtime.working_dir
        case.local_path(gone).rmdir()

        with pytest.raises(LazyclusterError) as caught:
            use()

        error = caught.value if isinstance(caught.value, WorkingDirectoryError) else caught.value.__cause__
        assert isinstance(error, WorkingDirectoryError)
        assert error.path == gone != runtime.working_dir
        assert runtime.working_dir in error.advice
        assert runtime.env_variables["WORKING_DIR"] == runtime.working_dir
        if case.fake is None:
            assert runtime.run(command).stdout == f"{runtime.working_dir}\n" * 2
        assert runtime.call(os.getcwd) == runtime.working_dir
        runtime.write_text("file", "x")
        assert (case.local_path(runtime.working_dir) / "file").read_text() == "x"
        (case.local_path(runtime.working_dir) / "file").unlink()
    last = case.local_path(runtime.working_dir)
    runtime.close()
    assert not last.exists()


def test_task_in_gone_working_dir_does_not_go_on(case: TransportCase, tmp_path: Path) -> None:
    """The task began in the old directory, so that its next step fails, too, though there is a new one."""
    runtime = case.runtime()
    go_file = tmp_path / "go"

    def remove_and_wait() -> None:
        Path(os.environ["WORKING_DIR"]).rmdir()
        while not go_file.exists():
            time.sleep(0.01)

    task = RuntimeTask().run_function(remove_and_wait).run_command(case.script("pwd"))
    gone = runtime.working_dir
    runtime.execute_task(task)
    assert_eventually(lambda: not case.local_path(gone).exists(), "the function has begun")
    with pytest.raises(WorkingDirectoryError):
        runtime.run("pwd")
    assert runtime.run("pwd").ok
    go_file.touch()

    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert isinstance(caught.value.__cause__, WorkingDirectoryError)
    assert (caught.value.step_index, caught.value.__cause__.path) == (1, gone)
    assert runtime.working_dir in caught.value.__cause__.advice


def test_named_working_dir_gone_is_not_replaced(case: TransportCase) -> None:
    runtime = case.runtime(f"~/gone for {case.kind}")  # the real transports share a home
    named = runtime.working_dir
    case.local_path(named).rmdir()

    for _ in range(2):
        with pytest.raises(WorkingDirectoryError) as caught:
            runtime.run(case.script("true"))
        assert (caught.value.path, caught.value.advice) == (named, "Create it first.")
    assert runtime.working_dir == named
