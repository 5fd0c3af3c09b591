"""Runtimes on a real host: log-in, hardware, ports on every address, login shells that print."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import (
    ConnectError,
    InvalidRuntimeError,
    NoPortsLeftError,
    Runtime,
    WorkingDirectoryError,
)
from lazycluster.testing import LocalSshd
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


# Construction -------------------------------------------------------------------------------------------------------


def test_runtime_unknown_host_raises_invalid_runtime_error(sshd: LocalSshd) -> None:
    with assert_no_leaks(sshd), pytest.raises(InvalidRuntimeError) as caught:
        Runtime("no-such-host.invalid", options={"ProxyCommand": "none"}, connect_timeout=5)

    assert caught.value.host == "no-such-host.invalid"
    assert isinstance(caught.value.__cause__, ConnectError)


def test_working_dir_read_only_parent_raises_error(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    directory = tmp_path / "read-only"
    directory.mkdir()
    with (
        read_only_directory(directory),
        assert_no_leaks(sshd),
        pytest.raises(InvalidRuntimeError) as caught,
    ):
        Runtime(sshd.host, str(directory / "work"), resident=resident, **sshd.connection_kwargs)

    assert isinstance(caught.value.__cause__, WorkingDirectoryError)
    assert re.search(r"Read-only file system|Permission denied", caught.value.__cause__.reason)


def test_runtime_start_takes_one_log_in_and_one_session(make_sshd: MakeSshd, resident: bool) -> None:
    server = make_sshd()
    with Runtime(server.host, resident=resident, **server.connection_kwargs):
        assert count_sessions(server) == 1
        assert server.log.count("Accepted publickey") == 1


def test_is_valid_runtime_host_gone_is_false(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    server = make_sshd()
    with Runtime(
        server.host, str(tmp_path), connect_timeout=5, resident=resident, **server.connection_kwargs
    ) as runtime:
        assert runtime.is_valid_runtime()
        server.stop()
        assert not runtime.is_valid_runtime()


# Hardware ------------------------------------------------------------------------------------------------------------


def test_runtime_facts_are_those_of_the_machine(sshd: LocalSshd, runtime: Runtime) -> None:
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
    assert programs == [], "the facts were found when the runtime was made"


_NVIDIA_SMI = """
case $1 in
    --query-gpu=index,name,memory.total,driver_version,uuid,utilization.gpu)
        echo 'index, name, memory.total [MiB], driver_version, uuid, utilization.gpu [%]'
        echo '0, Tesla T4, 15360, 525.60.13, GPU-1d7a0ebe-4bdb-4c1c-9d8a-000000000001, 7';;
    -L)
        echo 'GPU 0: Tesla T4 (UUID: GPU-1d7a0ebe-4bdb-4c1c-9d8a-000000000001)';;
esac
"""


def make_sshd_with_program(make_sshd: MakeSshd, directory: Path, name: str, script: str) -> LocalSshd:
    directory.mkdir()
    write_script(directory / name, script)
    return make_sshd(environment={"PATH": f"{directory}:{os.environ['PATH']}"})


def test_runtime_lists_gpu_of_host(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    server = make_sshd_with_program(make_sshd, tmp_path / "gpu", "nvidia-smi", _NVIDIA_SMI)
    with Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime:
        [gpu] = runtime.gpus
        assert (runtime.gpu_count, gpu.name, gpu.memory) == (1, "Tesla T4", 15360 * 2**20)
        assert (gpu.driver_version, gpu.utilization) == ("525.60.13", 7)
        assert runtime.check_filter(gpu_required=True)


def test_runtime_broken_gpu_driver_is_logged(
    make_sshd: MakeSshd, tmp_path: Path, caplog: pytest.LogCaptureFixture, resident: bool
) -> None:
    message = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    server = make_sshd_with_program(make_sshd, tmp_path / "gpu", "nvidia-smi", f"echo {shlex.quote(message)}\nexit 9\n")
    with (
        caplog.at_level(logging.WARNING),
        Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime,
    ):
        assert (runtime.gpus, runtime.gpu_count) == ([], 0)
        assert not runtime.check_filter(gpu_required=True)
    assert any("local: " in line and "driver" in line for line in caplog.messages)


# Ports ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listen_on(address: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, reserve_free_port()))
        except OSError:
            skip_or_fail(f"this machine has no address {address}")
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_has_free_port_in_use_on_any_address_is_false(runtime: Runtime, address: str) -> None:
    with listen_on(address) as port:
        other = reserve_free_port()
        assert not runtime.has_free_port(port)
        assert runtime.get_free_port([port, other]) == other
        with pytest.raises(NoPortsLeftError) as caught:
            runtime.get_free_port([port])
        assert caught.value.ports == (port,)
    assert runtime.has_free_port(port)


def test_get_free_port_of_many_takes_one_session(sshd: LocalSshd, runtime: Runtime, resident: bool) -> None:
    with listen_on("127.0.0.1") as first, listen_on("0.0.0.0") as second:
        free = reserve_free_port()
        before = count_sessions(sshd)
        with record_program_starts() as programs:
            assert runtime.get_free_port([first, second, free, *range(20_000, 22_000)]) == free
        assert len(programs) == (0 if resident else 1)
        assert count_sessions(sshd) == before + (0 if resident else 1)


# Directories ---------------------------------------------------------------------------------------------------------


def test_delete_dir_something_left_returns_false(runtime: Runtime, tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    (directory / "kept").mkdir(parents=True)
    (directory / "kept" / "file").touch()
    with read_only_directory(directory / "kept"):
        assert runtime.delete_dir(str(directory)) is False
        assert (directory / "kept" / "file").exists()
    assert runtime.delete_dir(str(directory)) is True
    assert not directory.exists()


# Login shells --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh", "fish", "tcsh", ("busybox", "sh")])
def test_runtime_with_any_login_shell_and_noise_works(
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
