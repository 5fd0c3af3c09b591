"""A runtime: made or refused, its working directory and environment, what it knows of the host, ports, directories."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import pty
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import (
    CommandFailedError,
    ConnectError,
    InvalidRuntimeError,
    LazyclusterError,
    NoPortsLeftError,
    Runtime,
    RuntimeClosedError,
    RuntimeTask,
    UnknownHostError,
    WorkingDirectoryError,
)
from lazycluster.testing import LocalSshd
from tests.client_programs import ClientProgram
from tests.observation import (
    assert_no_leaks,
    count_sessions,
    read_only_directory,
    record_program_starts,
    skip_or_fail,
    write_script,
)
from tests.reserved_ports import reserve_free_port

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd


@pytest.fixture(scope="module")
def runtime(sshd: LocalSshd, resident: bool) -> Iterator[Runtime]:
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        yield runtime


# Made, or refused ----------------------------------------------------------------------------------------------------


def test_a_keyword_that_does_not_exist_is_a_type_error_with_those_that_do(sshd: LocalSshd) -> None:
    with pytest.raises(TypeError) as caught:
        Runtime(sshd.host, pasword="secret")  # type: ignore[call-arg]  # the mistake that is tested

    assert "'pasword'" in str(caught.value)
    for name in ("user", "port", "identity_file", "password", "config_file", "connect_timeout", "options", "env"):
        assert name in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "keywords"),
    [
        ("", {}),
        ("-oProxyCommand=touch pwned", {}),
        ("two\nlines", {}),
        ("local", {"port": 0}),
        ("local", {"port": 65536}),
        ("local", {"env": {"no-identifier": "x"}}),
        ("local", {"env": {"": "x"}}),
    ],
)
def test_arguments_that_cannot_be_right_are_refused_before_anything_runs(
    host: str, keywords: dict[str, object]
) -> None:
    with record_program_starts() as programs, pytest.raises(ValueError):
        Runtime(host, **keywords)  # type: ignore[arg-type]  # the mistakes that are tested
    assert programs == []


def test_a_host_that_cannot_be_reached(sshd: LocalSshd) -> None:
    with assert_no_leaks(sshd), pytest.raises(InvalidRuntimeError) as caught:
        Runtime("no-such-host.invalid", options={"ProxyCommand": "none"}, connect_timeout=5)

    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value.__cause__, (UnknownHostError, ConnectError))
    assert str(caught.value).startswith("no-such-host.invalid cannot be used as a runtime: ")
    assert str(caught.value).count("no-such-host.invalid cannot") == 1


@pytest.mark.parametrize("obstacle", ["file", "read-only", "file in the way"])
def test_a_working_directory_that_cannot_be_made(
    sshd: LocalSshd, tmp_path: Path, obstacle: str, resident: bool
) -> None:
    directory = tmp_path / "obstacle"
    with contextlib.ExitStack() as stack:
        if obstacle == "read-only":
            directory.mkdir()
            stack.enter_context(read_only_directory(directory))
        else:
            directory.touch()
        path = directory if obstacle == "file" else directory / "work"

        with assert_no_leaks(sshd), pytest.raises(InvalidRuntimeError) as caught:
            Runtime(sshd.host, str(path), resident=resident, **sshd.connection_kwargs)

    assert isinstance(caught.value.__cause__, WorkingDirectoryError)
    assert str(directory) in str(caught.value)
    assert re.search(r"File exists|Not a directory|Read-only file system|Permission denied", str(caught.value))


@pytest.mark.parametrize("directory", ["", "with\0nul"])
def test_a_working_directory_that_has_no_name(sshd: LocalSshd, directory: str, resident: bool) -> None:
    with assert_no_leaks(sshd), pytest.raises((ValueError, InvalidRuntimeError)):
        Runtime(sshd.host, directory, resident=resident, **sshd.connection_kwargs)


def test_making_one_takes_one_log_in_and_one_session(make_sshd: MakeSshd, resident: bool) -> None:
    server = make_sshd()
    with Runtime(server.host, resident=resident, **server.connection_kwargs):
        assert count_sessions(server) == 1
        assert server.log.count("Accepted publickey") == 1


def test_after_the_end_everything_says_so(sshd: LocalSshd, resident: bool) -> None:
    runtime = Runtime(sshd.host, resident=resident, **sshd.connection_kwargs)
    runtime.close()

    assert not runtime.is_valid_runtime()
    for use in (
        lambda: runtime.run("true"),
        lambda: runtime.call(int),
        lambda: runtime.execute_task(RuntimeTask().run_command("true")),
        lambda: runtime.execute_task(RuntimeTask().run_command("true"), execute_async=False),
        runtime.create_tempdir,
        lambda: runtime.has_free_port(80),
        lambda: runtime.expose_port_from_runtime(80, reserve_free_port()),
    ):
        with pytest.raises(RuntimeClosedError, match="closed already"):
            use()


def test_one_whose_host_has_gone_is_not_valid(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    server = make_sshd()
    with Runtime(
        server.host, str(tmp_path), connect_timeout=5, resident=resident, **server.connection_kwargs
    ) as runtime:
        assert runtime.is_valid_runtime()
        server.stop()
        assert not runtime.is_valid_runtime()


# The working directory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("{tmp}/with space/and 'quotes' \"$HOME\"", "{tmp}/with space/and 'quotes' \"$HOME\""),
        ("{tmp}/ünï *\nends\n", "{tmp}/ünï *\nends\n"),
        ("~/of home", "{home}/of home"),
        ("~", "{home}"),
        ("relative/to home", "{home}/relative/to home"),
        ("-dash", "{home}/-dash"),
    ],
)
def test_a_working_directory_of_any_name_is_made_used_and_kept(
    make_sshd: MakeSshd, sshd: LocalSshd, tmp_path: Path, given: str, made: str, resident: bool
) -> None:
    path = Path(made.format(tmp=tmp_path, home=sshd.home))
    existed = path.exists()
    (tmp_path / "local").write_text("sent")
    with Runtime(sshd.host, given.format(tmp=tmp_path), resident=resident, **sshd.connection_kwargs) as runtime:
        assert runtime.working_dir == str(path)
        assert runtime.env_variables["WORKING_DIR"] == str(path)
        assert runtime.run("pwd; echo .").stdout == f"{path}\n.\n"
        assert runtime.run('[ "$PWD" = "$WORKING_DIR" ]').ok
        task = RuntimeTask().send_file(tmp_path / "local", "sent").run_command("cat sent").run_function(os.getcwd)
        task.get_file("sent", tmp_path / "fetched")
        runtime.execute_task(task, execute_async=False)
        assert task.execution_log[1] == "sent"
        assert list(task.function_returns) == [str(path)]
        assert (tmp_path / "fetched").read_text() == "sent"

    assert (path / "sent").read_text() == "sent"
    (path / "sent").unlink()
    if not existed:
        path.rmdir()


def test_a_temporary_one_is_private_and_removed(sshd: LocalSshd, resident: bool) -> None:
    with assert_no_leaks(sshd), Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        path = Path(runtime.working_dir)
        assert path.stat().st_mode & 0o777 == 0o700
        runtime.run("mkdir -p deep/er; touch deep/er/file; chmod 500 deep/er; chmod 000 deep")
    assert not path.exists()


def test_a_directory_that_went_away_is_told(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    with Runtime(sshd.host, str(tmp_path / "work"), resident=resident, **sshd.connection_kwargs) as runtime:
        (tmp_path / "work").rmdir()
        with pytest.raises(LazyclusterError, match="cannot enter the working directory") as caught:
            runtime.run("true")
        assert str(tmp_path / "work") in str(caught.value)


# The environment -----------------------------------------------------------------------------------------------------


def test_variables_reach_commands_and_functions(sshd: LocalSshd, resident: bool) -> None:
    awkward = "two\nlines, 'single', \"double\", $HOME `id` \\n ü !"
    keywords = sshd.connection_kwargs
    with Runtime(sshd.host, env={"OF_OPTION": "1", "BOTH": "option"}, resident=resident, **keywords) as runtime:
        runtime.add_env_variables({"AWKWARD": awkward, "BOTH": "added"})
        runtime.add_env_variables({"EMPTY": ""})
        expected = {"OF_OPTION": "1", "BOTH": "added", "AWKWARD": awkward, "EMPTY": ""}
        expected["WORKING_DIR"] = runtime.working_dir

        assert runtime.env_variables == expected
        for name, value in expected.items():
            assert runtime.run(f'printf %s "${name}"').stdout == value
        assert expected.items() <= runtime.call(lambda: dict(os.environ)).items()
        task = RuntimeTask().run_command('printf %s "$AWKWARD"')
        runtime.execute_task(task).join()
        assert task.execution_log == [awkward]

        runtime.set_env_variables({})
        assert runtime.run('echo "${AWKWARD-unset} ${BOTH-unset}"').stdout == "unset unset\n"
        for name in ("1ST", "A-B", "A=B", "", "Ü"):
            with pytest.raises(ValueError, match="environment"):
                runtime.add_env_variables({name: "x"})
        assert set(runtime.env_variables) == {"WORKING_DIR"}


def test_changing_what_was_returned_changes_nothing(runtime: Runtime) -> None:
    runtime.env_variables["X"] = "1"
    runtime.gpus.clear()
    runtime.get_processes()["x"] = None  # type: ignore[assignment]
    assert "X" not in runtime.env_variables
    assert runtime.get_processes() == {}


# What it knows of the host -------------------------------------------------------------------------------------------


def test_the_facts_are_those_of_this_machine(sshd: LocalSshd, runtime: Runtime) -> None:
    """The host of these tests is the machine on which they run."""
    with record_program_starts() as programs:
        info = runtime.info
        assert runtime.host_info.kernel == platform.system()
        assert runtime.host_info.machine == platform.machine()
        assert 0 < float(runtime.cpu_cores) <= len(os.sched_getaffinity(0))
        assert 0 < int(runtime.memory) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 1.05
        assert int(runtime.memory_in_mb) == int(runtime.memory) // (1024 * 1024)
        if Path("/etc/os-release").exists():
            assert runtime.os in Path("/etc/os-release").read_text()
        assert runtime.python_version.startswith("3.")
        assert runtime.class_name == "Runtime"
        assert runtime.host == sshd.host
        assert info == {
            "host": sshd.host,
            "os": runtime.os,
            "python_version": runtime.python_version,
            "cpu_cores": runtime.cpu_cores,
            "memory": runtime.memory,
            "memory_in_mb": runtime.memory_in_mb,
            "gpu_count": runtime.gpu_count,
            "gpus": runtime.gpus,
            "working_dir": runtime.working_dir,
        }
    assert programs == [], "all of it was asked for when it was made"
    assert repr(runtime) == f"<Runtime local:{runtime.working_dir}>"
    assert runtime.is_valid_runtime()


_NVIDIA_SMI = """
case $1 in
    --query-gpu=index,name,memory.total,driver_version,uuid,utilization.gpu)
        echo 'index, name, memory.total [MiB], driver_version, uuid, utilization.gpu [%]'
        echo '0, Tesla T4, 15360, 525.60.13, GPU-1d7a0ebe-4bdb-4c1c-9d8a-000000000001, 7';;
    -L)
        echo 'GPU 0: Tesla T4 (UUID: GPU-1d7a0ebe-4bdb-4c1c-9d8a-000000000001)';;
esac
"""


def host_with(make_sshd: MakeSshd, directory: Path, name: str, script: str) -> LocalSshd:
    directory.mkdir()
    write_script(directory / name, script)
    return make_sshd(environment={"PATH": f"{directory}:{os.environ['PATH']}"})


def test_a_host_with_a_gpu(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    server = host_with(make_sshd, tmp_path / "gpu", "nvidia-smi", _NVIDIA_SMI)
    with Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime:
        [gpu] = runtime.gpus
        assert (runtime.gpu_count, gpu.name, gpu.memory) == (1, "Tesla T4", 15360 * 2**20)
        assert (gpu.driver_version, gpu.utilization) == ("525.60.13", 7)
        assert runtime.check_filter(gpu_required=True)


def test_a_broken_driver_is_a_warning_and_no_gpu(
    make_sshd: MakeSshd, tmp_path: Path, caplog: pytest.LogCaptureFixture, resident: bool
) -> None:
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    server = host_with(make_sshd, tmp_path / "gpu", "nvidia-smi", f"echo {shlex.quote(said)}\nexit 9\n")
    with (
        caplog.at_level(logging.WARNING),
        Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime,
    ):
        assert (runtime.gpus, runtime.gpu_count) == ([], 0)
        assert not runtime.check_filter(gpu_required=True)
    assert any("local: " in line and "driver" in line for line in caplog.messages)


def test_the_facts_are_printed_as_a_table(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    runtime.print_info()

    title, header, rule, *rows = capsys.readouterr().out.splitlines()
    assert title == "Runtime local"
    assert header.split() == ["value"]
    assert set(rule) == {"-", " "}
    column = rule.index("  ") + 2
    table = {row[:column].strip(): row[column:] for row in rows}
    assert table["Host"] == "local"
    assert table["CPU cores"] == runtime.cpu_cores
    assert table["Working directory"] == runtime.working_dir
    assert table["Python"] == runtime.python_version
    assert table["Memory"].endswith(" GiB")
    assert all(row[column - 2 : column] == "  " for row in rows)


def test_the_table_has_lines_on_a_terminal(sshd: LocalSshd) -> None:
    text = f"""
    from lazycluster import Runtime
    runtime = Runtime({sshd.host!r}, config_file={str(sshd.config_file)!r})
    assert "rich" not in sys.modules, "imported when something is printed"
    os.dup2(os.open({{terminal!r}}, os.O_WRONLY | os.O_NOCTTY), 1)
    runtime.print_info()
    runtime.cleanup()
    """
    ours, theirs = pty.openpty()
    try:
        with ClientProgram(text.format(terminal=os.ttyname(theirs)), environment={"TERM": "xterm"}) as program:
            assert program.wait(60)[::2] == (0, "")
        os.set_blocking(ours, False)
        shown = os.read(ours, 1 << 20).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "┃" in shown
    assert "CPU cores" in shown
    assert "\x1b[1;36m" in shown


# Filters -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({}, True),
        ({"gpu_required": False}, True),
        ({"min_memory": 1}, True),
        ({"min_memory": 10**9}, False),
        ({"min_cpu_cores": 1}, True),
        ({"min_cpu_cores": 10**6}, False),
        ({"min_cpu_cores": 0.5}, True),
        ({"min_memory": 1, "min_cpu_cores": 10**6}, False),
        ({"installed_executables": "ls"}, True),
        ({"installed_executables": ["ls", "cat", "sh"]}, True),
        ({"installed_executables": []}, True),
        ({"installed_executables": ["ls", "no-such-program"]}, False),
        ({"installed_executables": "ls; touch pwned"}, False),
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
def test_filters(runtime: Runtime, filters: dict[str, object], passes: bool) -> None:
    assert runtime.check_filter(**filters) is passes  # type: ignore[arg-type]  # a table of keywords
    assert runtime.run("ls -A").stdout == ""


# Ports ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(address: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind((address, 0))
        except OSError:
            skip_or_fail(f"this machine has no address {address}")
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_port_that_somebody_listens_on_is_not_free(runtime: Runtime, address: str) -> None:
    with listening(address) as port:
        other = reserve_free_port()
        assert not runtime.has_free_port(port)
        assert runtime.get_free_port([port, other]) == other
        with pytest.raises(NoPortsLeftError, match=f"none of the 1 ports from {port} to {port} is free"):
            runtime.get_free_port([port])
    assert runtime.has_free_port(port)


def test_the_first_free_port_of_many_is_asked_for_in_one_round_trip(
    sshd: LocalSshd, runtime: Runtime, resident: bool
) -> None:
    with listening("127.0.0.1") as first, listening("0.0.0.0") as second:
        free = reserve_free_port()
        before = count_sessions(sshd)
        with record_program_starts() as programs:
            assert runtime.get_free_port([first, second, free, *range(20_000, 22_000)]) == free
        assert len(programs) == (0 if resident else 1)
        assert count_sessions(sshd) == before + (0 if resident else 1)


def test_ports_are_checked_and_an_empty_list_has_none(runtime: Runtime) -> None:
    with pytest.raises(NoPortsLeftError, match="the list is empty"):
        runtime.get_free_port([])
    for port in (0, -1, 65536):
        with pytest.raises(ValueError, match="port"):
            runtime.has_free_port(port)
        with pytest.raises(ValueError, match="port"):
            runtime.get_free_port([80, port])
        with pytest.raises(ValueError, match="port"):
            runtime.expose_port_to_runtime(port)
        with pytest.raises(ValueError, match="port"):
            runtime.expose_port_from_runtime(80, port)


# Directories ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["plain", "a/b c/d", "it's", "-dash", "new\nline", "*", "$HOME", "{tmp}/absolute/one"])
def test_a_directory_is_made_with_its_parents_and_deleted_with_its_content(
    runtime: Runtime, tmp_path: Path, path: str
) -> None:
    path = path.format(tmp=tmp_path)
    target = Path(runtime.working_dir, path)
    beside = Path(runtime.working_dir, "beside")
    beside.mkdir(exist_ok=True)

    runtime.create_dir(path)
    assert target.is_dir()
    (target / "file").touch()
    runtime.create_dir(path)
    assert (target / "file").exists()
    assert runtime.delete_dir(path) is True
    assert not target.exists()
    assert runtime.delete_dir(path) is True
    assert beside.is_dir()


def test_a_directory_in_the_home(sshd: LocalSshd, runtime: Runtime) -> None:
    runtime.create_dir("~/of home/deep")
    assert (sshd.home / "of home" / "deep").is_dir()
    assert runtime.delete_dir("~/of home")
    assert not (sshd.home / "of home").exists()


def test_a_directory_that_cannot_be_made_is_an_error(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandFailedError) as caught:
        runtime.create_dir(f"{tmp_path}/file/below")
    assert str(tmp_path) in str(caught.value)
    for path in ("", "/", "//"):
        with pytest.raises(ValueError):
            runtime.delete_dir(path)
    with pytest.raises(ValueError, match="must not be empty"):
        runtime.create_dir("")


def test_deleting_says_when_something_is_left(runtime: Runtime, tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    (directory / "kept").mkdir(parents=True)
    (directory / "kept" / "file").touch()
    with read_only_directory(directory / "kept"):
        assert runtime.delete_dir(str(directory)) is False
        assert (directory / "kept" / "file").exists()
    assert runtime.delete_dir(str(directory)) is True
    assert not directory.exists()


def test_temporary_directories_are_private_and_go_with_the_runtime(sshd: LocalSshd, resident: bool) -> None:
    with assert_no_leaks(sshd), Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        paths = [runtime.create_tempdir() for _ in range(3)]
        assert len(set(paths)) == 3
        assert all(Path(path).stat().st_mode & 0o777 == 0o700 for path in paths)
        assert runtime.delete_dir(paths[0])
        Path(paths[1], "file").touch()
        assert not Path(paths[0]).exists()
    assert not any(Path(path).exists() for path in paths)


# Hosts of all kinds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh", "fish", "tcsh", ("busybox", "sh")])
def test_start_up_files_that_print_and_login_shells_of_any_kind(
    make_sshd: MakeSshd, tmp_path: Path, shell: str | tuple[str, str], resident: bool
) -> None:
    name = shell if isinstance(shell, str) else shell[0]
    if shutil.which(name) is None:
        skip_or_fail(f"there is no {name} on this machine")
    server = make_sshd(shell=shell)
    for start_up in (".bashrc", ".zshenv", ".tcshrc", ".cshrc", ".config/fish/config.fish"):
        (server.home / start_up).parent.mkdir(parents=True, exist_ok=True)
        (server.home / start_up).write_text("echo true; echo @@ lazycluster done; echo noise >/dev/stderr\n")

    with Runtime(server.host, str(tmp_path / "it's a $HOME"), resident=resident, **server.connection_kwargs) as runtime:
        assert runtime.working_dir == str(tmp_path / "it's a $HOME")
        assert float(runtime.cpu_cores) > 0
        assert runtime.host_info.warnings == ()
        assert runtime.python_version
        assert runtime.check_filter(installed_executables="sh", filter_commands="echo true")
        assert not runtime.check_filter(filter_commands="echo false")
        assert runtime.get_free_port([port := reserve_free_port()]) == port
        assert Path(runtime.create_tempdir()).is_dir()
        runtime.add_env_variables({"X": "a\n'b'"})
        assert runtime.run('printf %s "$X"').stdout == "a\n'b'"


def test_the_python_that_is_used_is_the_one_that_is_told(sshd: LocalSshd, runtime: Runtime) -> None:
    assert runtime.call(lambda: sys.version.split()[0]) == runtime.python_version
