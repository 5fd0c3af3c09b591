"""How to test a program that uses lazycluster, without a host: pytest-subprocess stands in for `ssh` and `scp`.

`pip install pytest-subprocess` brings the fixture `fp`. What it has to know:

* The first use of a `Connection` logs in: `ssh -f ...`, which returns at once and prints nothing.
* Then each command is one call of `ssh`. Its last argument is the command, as a label for people who look at `ps`: one
  word of a shell. So `nproc` stands there as `nproc`, and `ls -l` as `'ls -l'`, in quotes: `shlex.quote()` makes it.
* A `Runtime` keeps a program on its host and talks to that, which this stand-in cannot: say `resident=False`. (The
  fixture `fake_host` of `lazycluster.testing` stands in for either, without any `ssh`.)
* Each file is one call of `ssh` before and after, and one of `scp` in between.
* Each `fp.register()` serves one call; say `occurrences=` for more. A call that nothing was registered for raises
  `ProcessNotRegisteredError`, so that no test reaches a real host unawares. (`password=` logs in through a terminal,
  and not through `subprocess`: leave it out.)

Functions run in a Python on the host, for which there is no such stand-in: test them by calling them, and what is
around them with `lazycluster.testing.LocalSshd`, a real sshd for one test.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import pytest
from pytest_subprocess.fake_popen import FakePopen
from pytest_subprocess.fake_process import FakeProcess

from lazycluster import Connection, PortRefusedError, Runtime, RuntimeTask, TaskExecutionError, TransferError


def free_space(connection: Connection, path: str) -> int:
    """Stand for your own code: return the bytes free in a directory of a host."""
    result = connection.run(f"df --output=avail -B1 {quote(path)} | tail -n 1")
    if not result.ok:
        raise OSError(result.stderr.strip())
    return int(result.stdout)


# A command ----------------------------------------------------------------------------------------------------------


def test_a_command(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()])  # the log-in
    fp.register(["ssh", fp.any(), "nproc"], stdout="8\n")

    with Connection("web1") as connection:
        assert connection.run("nproc").stdout == "8\n"


def test_your_own_code(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()])
    fp.register(["ssh", fp.any(), quote("df --output=avail -B1 /data | tail -n 1")], stdout="4096\n")
    fp.register(
        ["ssh", fp.any(), quote("df --output=avail -B1 /no | tail -n 1")], stderr="df: /no: No such file", returncode=1
    )

    with Connection("web1") as connection:
        assert free_space(connection, "/data") == 4096
        with pytest.raises(OSError, match="No such file"):
            free_space(connection, "/no")


def test_a_command_that_fails_is_no_exception(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()])
    fp.register(["ssh", fp.any(), "make"], stdout="cc x.c\n", stderr="no rule\n", returncode=2)

    with Connection("web1") as connection:
        result = connection.run("make")

    assert (result.ok, result.exit_code, result.stdout, result.stderr) == (False, 2, "cc x.c\n", "no rule\n")


# A host that cannot be reached --------------------------------------------------------------------------------------


def test_a_host_that_refuses(fp: FakeProcess) -> None:
    fp.register(
        ["ssh", "-f", fp.any()], stderr="ssh: connect to host web1 port 22: Connection refused\n", returncode=255
    )

    with Connection("web1") as connection, pytest.raises(PortRefusedError, match="web1: connection refused"):
        connection.run("true")


# Files --------------------------------------------------------------------------------------------------------------


def test_sending_a_file(fp: FakeProcess, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    fp.register(["ssh", "-f", fp.any()])
    # The host says where the file will be: a directory and a name, each ended by a NUL.
    fp.register(["ssh", fp.any(), quote("prepare model.bin")], stdout=b"/home/me\0model.bin\0")
    scp = fp.register(["scp", fp.any()])
    fp.register(["ssh", fp.any(), quote("place model.bin")])

    with Connection("web1") as connection:
        connection.put(tmp_path / "model.bin", "model.bin")

    *_, source, target = scp.calls[0].args
    assert source == str(tmp_path / "model.bin")
    assert str(target).startswith("web1:/home/me/")  # a temporary name, which `place` then renames


def test_fetching_a_file(fp: FakeProcess, tmp_path: Path) -> None:
    def copy(process: FakePopen) -> None:
        Path(str(process.args[-1])).write_text("loss 0.1\n")

    fp.register(["ssh", "-f", fp.any()])
    # The host says what it found: `f` for a file, its directory, name and size.
    fp.register(["ssh", fp.any(), quote("fetch log.txt")], stdout=b"f\0/home/me\0log.txt\0" + b"9\0")
    fp.register(["scp", fp.any(), "web1:/home/me/log.txt", fp.any()], callback=copy)

    with Connection("web1") as connection:
        connection.get("log.txt", tmp_path)

    assert (tmp_path / "log.txt").read_text() == "loss 0.1\n"


def test_a_file_that_is_not_there(fp: FakeProcess, tmp_path: Path) -> None:
    fp.register(["ssh", "-f", fp.any()])
    fp.register(["ssh", fp.any(), quote("fetch log.txt")], stderr="no such file or directory\n", returncode=1)

    with Connection("web1") as connection, pytest.raises(TransferError, match=r"cannot fetch 'log.txt': no such file"):
        connection.get("log.txt", tmp_path)


# Tasks and runtimes -------------------------------------------------------------------------------------------------


def test_a_task(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()])
    fp.register(["ssh", fp.any(), quote("git pull")], stdout="Already up to date.\n")
    fp.register(["ssh", fp.any(), "make"], stdout="no rule\n", returncode=2)
    task = RuntimeTask("build").run_command("git pull").run_command("make").run_command("make install")

    with Connection("web1") as connection, pytest.raises(TaskExecutionError, match="failed at step 1"):
        task.execute(connection)

    assert task.execution_log == ["Already up to date.\n", "no rule\n"]
    assert not any("make install" in str(call) for call in fp.calls)


def test_a_runtime(fp: FakeProcess) -> None:
    # The host says where the working directory is, ended by a NUL, and then what the machine has.
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
    fp.register(["ssh", fp.any(), "true"])  # at the end: is the link alive?
    fp.register(["ssh", fp.any(), quote("clean up")])

    with Runtime("web1", "/work", resident=False) as runtime:
        assert (runtime.cpu_cores, runtime.memory_in_mb, runtime.working_dir) == ("8", "16384", "/work")
        assert runtime.run("hostname").stdout == "web1\n"
