"""How to test a program that uses lazycluster without a host: pytest-subprocess stands in for `ssh` and `scp`.

`pip install pytest-subprocess` brings the fixture `fp`. It has to know these calls:

* The first use of a `Connection` logs in: `ssh -f ...`, which returns at once and prints nothing.
* Then each command is one call of `ssh`. Its last argument is the command as one word of a shell, a label that `ps`
  shows: `nproc` for `nproc`, and `'ls -l'` in quotes for `ls -l`. `shlex.quote()` makes it.
* A `Runtime` keeps a program on its host and exchanges messages with it, which this stand-in cannot play. Pass
  `resident=False`. (The fixture `fake_host` of `lazycluster.testing` plays both, without any `ssh`.)
* Each file is one call of `ssh` before and after, and one of `scp` in between.
* Each `fp.register()` serves one call; pass `occurrences=` for more. An unregistered call raises
  `ProcessNotRegisteredError`, so no test reaches a real host unawares.
* Leave `password=` out: such a log-in goes through a terminal and not through `subprocess`.

Functions run in a Python on the host, which has no such stand-in. Test a function by calling it, and the code around it
with `lazycluster.testing.LocalSshd`, a real sshd for one test.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import pytest
from pytest_subprocess.fake_popen import FakePopen
from pytest_subprocess.fake_process import FakeProcess

from lazycluster import Connection, PortRefusedError, Runtime, RuntimeTask, TaskExecutionError, TransferError


def free_space(connection: Connection, path: str) -> int:
    """Return the bytes free in a directory of a host: an example of your own code."""
    result = connection.run(f"df --output=avail -B1 {quote(path)} | tail -n 1")
    if not result.ok:
        raise OSError(result.stderr.strip())
    return int(result.stdout)


# Commands -----------------------------------------------------------------------------------------------------------


def test_connection_run_returns_output(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()])  # the log-in
    fp.register(["ssh", fp.any(), "nproc"], stdout="8\n")

    with Connection("web1") as connection:
        assert connection.run("nproc").stdout == "8\n"


def test_own_code_returns_number_or_raises(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()])
    fp.register(["ssh", fp.any(), quote("df --output=avail -B1 /data | tail -n 1")], stdout="4096\n")
    fp.register(
        ["ssh", fp.any(), quote("df --output=avail -B1 /no | tail -n 1")], stderr="df: /no: No such file", returncode=1
    )

    with Connection("web1") as connection:
        assert free_space(connection, "/data") == 4096
        with pytest.raises(OSError):
            free_space(connection, "/no")


def test_connection_run_failed_command_is_a_result(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()])
    fp.register(["ssh", fp.any(), "make"], stdout="cc x.c\n", stderr="no rule\n", returncode=2)

    with Connection("web1") as connection:
        result = connection.run("make")

    assert (result.ok, result.exit_code, result.stdout, result.stderr) == (False, 2, "cc x.c\n", "no rule\n")


# A host that cannot be reached --------------------------------------------------------------------------------------


def test_connection_refused_raises_port_refused_error(fp: FakeProcess) -> None:
    fp.register(
        ["ssh", "-f", fp.any()], stderr="ssh: connect to host web1 port 22: Connection refused\n", returncode=255
    )

    with Connection("web1") as connection, pytest.raises(PortRefusedError) as caught:
        connection.run("true")

    assert caught.value.host == "web1"


# Files --------------------------------------------------------------------------------------------------------------


def test_connection_put_sends_a_file(fp: FakeProcess, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    fp.register(["ssh", "-f", fp.any()])
    # The host prints the place of the file: a directory and a name, each ended by a NUL.
    fp.register(["ssh", fp.any(), quote("prepare model.bin")], stdout=b"/home/me\0model.bin\0")
    scp = fp.register(["scp", fp.any()])
    fp.register(["ssh", fp.any(), quote("place model.bin")])

    with Connection("web1") as connection:
        connection.put(tmp_path / "model.bin", "model.bin")

    *_, source, target = scp.calls[0].args
    assert source == str(tmp_path / "model.bin")
    assert str(target).startswith("web1:/home/me/")  # a temporary name, which `place` renames


def test_connection_get_fetches_a_file(fp: FakeProcess, tmp_path: Path) -> None:
    def copy(process: FakePopen) -> None:
        Path(str(process.args[-1])).write_text("loss 0.1\n")

    fp.register(["ssh", "-f", fp.any()])
    # The host prints what it found: `f` for a file, its directory, name and size.
    fp.register(["ssh", fp.any(), quote("fetch log.txt")], stdout=b"f\0/home/me\0log.txt\0" + b"9\0")
    fp.register(["scp", fp.any(), "web1:/home/me/log.txt", fp.any()], callback=copy)

    with Connection("web1") as connection:
        connection.get("log.txt", tmp_path)

    assert (tmp_path / "log.txt").read_text() == "loss 0.1\n"


def test_connection_get_missing_file_raises_error(fp: FakeProcess, tmp_path: Path) -> None:
    fp.register(["ssh", "-f", fp.any()])
    fp.register(["ssh", fp.any(), quote("fetch log.txt")], stderr="no such file or directory\n", returncode=1)

    with Connection("web1") as connection, pytest.raises(TransferError) as caught:
        connection.get("log.txt", tmp_path)

    assert (caught.value.path, caught.value.reason) == ("log.txt", "no such file or directory")


# Tasks and runtimes -------------------------------------------------------------------------------------------------


def test_task_execute_stops_at_failed_step(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()])
    fp.register(["ssh", fp.any(), quote("git pull")], stdout="Already up to date.\n")
    fp.register(["ssh", fp.any(), "make"], stdout="no rule\n", returncode=2)
    task = RuntimeTask("build").run_command("git pull").run_command("make").run_command("make install")

    with Connection("web1") as connection, pytest.raises(TaskExecutionError) as caught:
        task.execute(connection)

    assert caught.value.step_index == 1
    assert task.execution_log == ["Already up to date.\n", "no rule\n"]
    assert not any("make install" in str(call) for call in fp.calls)


def test_runtime_run_returns_output(fp: FakeProcess) -> None:
    # The host prints the working directory, ended by a NUL, and then the facts of the machine.
    machine = """
@@ lazycluster begin processors
8
@@ lazycluster end processors 0
@@ lazycluster begin meminfo
MemTotal: 16777216 kB
@@ lazycluster end meminfo 0
@@ lazycluster done
"""
    fp.register(["ssh", "-f", fp.any()])
    fp.register(["ssh", fp.any(), quote("set up a runtime")], stdout=b"/work\0" + machine.encode())
    fp.register(["ssh", fp.any(), "hostname"], stdout="web1\n")
    fp.register(["ssh", fp.any(), "true"])  # at the end: does the host answer?
    fp.register(["ssh", fp.any(), quote("clean up")])

    with Runtime("web1", "/work", resident=False) as runtime:
        assert (runtime.cpu_cores, runtime.memory_in_mb, runtime.working_dir) == ("8", "16384", "/work")
        assert runtime.run("hostname").stdout == "web1\n"
