"""Whatever the account's login shell is, commands, directories, variables and failures come through as they are."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from lazycluster import (
    CommandTimeoutError,
    Connection,
    ConnectionLostError,
    LazyclusterError,
    LoginShellError,
    Runtime,
    RuntimeTask,
    WorkingDirectoryError,
)
from lazycluster.testing import LocalSshd
from tests.client_programs import BackgroundCommand, assert_becomes_idle, call_in_parallel, find_host_pids
from tests.observation import skip_or_fail
from tests.real.test_commands import NAMES, TEXTS, VALUES
from tests.waiting import assert_eventually


@attrs.frozen
class Shell:
    """A login shell: its program, the file that it reads at each start, and whether commands are left to it."""

    name: str
    start_up: str | None = None
    reads_commands: bool = False
    called: str | tuple[str, str] = attrs.field(
        default=attrs.Factory(lambda self: ("busybox", "sh") if self.name == "busybox" else self.name, takes_self=True)
    )


SHELLS = (
    Shell("bash", ".bashrc", reads_commands=True),
    Shell("dash", reads_commands=True),
    Shell("zsh", ".zshenv"),
    Shell("fish", ".config/fish/config.fish"),
    Shell("tcsh", ".tcshrc"),
    Shell("busybox", reads_commands=True),
)
WITH_FILE = tuple(shell for shell in SHELLS if shell.start_up)


@pytest.fixture(scope="module", params=SHELLS, ids=lambda shell: shell.name)
def shell(request: pytest.FixtureRequest) -> Shell:
    shell: Shell = request.param
    if shutil.which(shell.name) is None:
        skip_or_fail(f"there is no {shell.name} on this machine")
    return shell


@pytest.fixture(scope="module")
def host(shell: Shell, run_directory: Path) -> Iterator[LocalSshd]:
    with LocalSshd(shell=shell.called, environment={"TMPDIR": str(run_directory)}) as server:
        yield server


@pytest.fixture(scope="module")
def connection(host: LocalSshd) -> Iterator[Connection]:
    with Connection(host.host, **host.connection_kwargs) as connection:
        yield connection
    assert_becomes_idle(host)


def test_who_reads_a_command(shell: Shell, host: LocalSshd, connection: Connection) -> None:
    expected = {"busybox": str(host.directory / "sh")}.get(shell.name, shutil.which(shell.name))
    assert connection.run("echo $0").stdout.strip() == (expected if shell.reads_commands else "/bin/sh")
    assert connection.run('echo "$SHELL"').stdout.strip() == expected


def test_any_text(connection: Connection) -> None:
    reader = connection.run("echo $0").stdout.strip()
    for text in TEXTS.values():
        here = subprocess.run((reader, "-c", text), capture_output=True, check=False)
        result = connection.run(text)
        assert (result.stdout_bytes, result.stderr_bytes) == (here.stdout, here.stderr), text
        assert result.exit_code == here.returncode, text


def test_a_command_of_a_hundred_kilobytes(connection: Connection) -> None:
    text = "é'\"\\$!%\n#;x" * 7_000
    quoted = "'" + text.replace("'", '"') + "'"
    result = connection.run(f'x={quoted}; printf %s "$x" | wc -c')
    assert (result.stdout.strip(), result.stderr) == (str(len(text.encode())), "")
    assert len(quoted.encode()) > 80_000


def test_directories(host: LocalSshd, connection: Connection) -> None:
    for name in NAMES:
        (host.home / name).mkdir(exist_ok=True)
        assert connection.run("pwd; printf .", cwd=f"~/{name}").stdout == f"{host.home / name}\n."
    with pytest.raises(WorkingDirectoryError, match="'no such'"):
        connection.run("echo never", cwd="no such")


def test_variables(connection: Connection) -> None:
    names = [name for name in VALUES if name != "LONG"]
    command = "; ".join(f'printf "%s|." "${name}"' for name in names)
    result = connection.run(command, env={name: VALUES[name] for name in names})
    assert result.stdout.split("|.")[:-1] == [VALUES[name] for name in names]
    assert connection.run('printf %s "$LONG" | wc -c', env={"LONG": VALUES["LONG"]}).stdout.strip() == "100000"


def test_a_directory_and_variables_together(host: LocalSshd, connection: Connection) -> None:
    (host.home / "a b").mkdir(exist_ok=True)
    result = connection.run('printf "%s." "$PWD" "$X"', cwd="a b", env={"X": "1\n2"})
    assert result.stdout == f"{host.home}/a b.1\n2."


def test_streams_and_statuses(connection: Connection) -> None:
    for code in (0, 1, 3, 127, 255):
        result = connection.run(f"echo out; echo err >&2; exit {code}")
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", code)


def test_a_death_by_signal(connection: Connection) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
        result = connection.run(f"echo out; kill -{number.value} $$; sleep 5")
        assert (result.stdout, result.stderr, result.signal) == ("out\n", "", number)


def test_standard_input(connection: Connection) -> None:
    data = bytes(range(256)) * 4000
    assert connection.run("cat", stdin=data).stdout_bytes == data
    assert connection.run("cat; echo end").stdout == "end\n"


def test_a_timeout_ends_the_command_with_its_children(host: LocalSshd, connection: Connection) -> None:
    begun = time.monotonic()
    with pytest.raises(CommandTimeoutError) as caught:
        connection.run("echo begun; sleep 1031 & setsid sleep 1032 & (sleep 1033; :) & wait", timeout=0.5)
    assert time.monotonic() - begun < 4
    assert caught.value.stdout == "begun\n"
    assert_eventually(
        lambda: not any(find_host_pids(host, f"sleep 103{n}") for n in (1, 2, 3)), "its children have ended", 4
    )


def test_a_background_child_does_not_keep_the_call(host: LocalSshd, connection: Connection) -> None:
    begun = time.monotonic()
    pid = connection.run("sleep 1034 & echo $!").stdout.strip()
    assert time.monotonic() - begun < 5
    assert find_host_pids(host, "sleep 1034") == [int(pid)]
    assert connection.run(f"kill {pid}").ok


def test_a_link_that_breaks_ends_the_command(host: LocalSshd) -> None:
    with Connection(host.host, **host.connection_kwargs) as connection:
        command = BackgroundCommand(connection, "echo up; setsid sleep 1035 & sleep 1036")
        command.wait_output(b"up")
        connection.close()
        with pytest.raises(LazyclusterError):
            command.join(5)
    assert_eventually(
        lambda: not find_host_pids(host, "sleep 1035") + find_host_pids(host, "sleep 1036"), "both have ended", 8
    )


def test_a_login_shell_that_is_killed_is_a_lost_connection_or_an_exit_status(connection: Connection) -> None:
    try:
        result = connection.run("echo up; kill -9 $PPID; sleep 0.2")
    except ConnectionLostError:
        return
    assert not result.ok


def test_many_at_once(connection: Connection) -> None:
    results = call_in_parallel([lambda n=n: connection.run(f"echo {n}").stdout for n in range(20)])  # type: ignore[misc]
    assert results == [f"{n}\n" for n in range(20)]


def test_a_task_with_all_four_kinds_of_step(connection: Connection, tmp_path: Path) -> None:
    (tmp_path / "it's here").write_text("content")
    task = RuntimeTask()
    task.send_file(tmp_path / "it's here").run_command('cat "it\'s here"')
    task.run_function(lambda x: x * 2, 21).get_file("it's here", tmp_path / "back")
    task.execute(connection)

    assert task.execution_log == ["", "content", "", ""]
    assert list(task.function_returns) == [42]
    assert (tmp_path / "back").read_text() == "content"


def test_a_runtime(host: LocalSshd, resident: bool) -> None:
    with Runtime(host.host, working_dir="work dir", resident=resident, **host.connection_kwargs) as runtime:
        assert runtime.run("pwd").stdout == f"{host.home}/work dir\n"
        assert runtime.run('echo "$WORKING_DIR"').stdout == f"{host.home}/work dir\n"
        assert runtime.call(len, "four") == 4
        assert runtime.check_filter(installed_executables="sh", filter_commands="echo true")


# Start-up files ------------------------------------------------------------------------------------------------------

NOISE = {
    "bash": "echo noise; echo noise >&2",
    "zsh": "echo noise; echo noise >&2",
    "fish": "echo noise; echo noise >&2",
    "tcsh": "echo noise; sh -c 'echo noise >&2'",
}
MEGABYTES = "head -c 2000000 /dev/zero"
FAILURE = {
    "bash": "nosuchcommand; false",
    "zsh": "nosuchcommand; false",
    "fish": "nosuchcommand; false",
    "tcsh": "false",
}


@pytest.mark.parametrize("shell", WITH_FILE, ids=lambda shell: shell.name, indirect=True)
@pytest.mark.parametrize("kind", ["noise", "megabytes", "failure"])
def test_what_a_start_up_file_prints_does_not_reach_the_output(shell: Shell, host: LocalSshd, kind: str) -> None:
    text = {"noise": NOISE, "failure": FAILURE}.get(kind, {}).get(shell.name, MEGABYTES)
    with start_up(shell, host, text), Connection(host.host, **host.connection_kwargs) as connection:
        result = connection.run("printf out; printf err >&2; exit 3", env={"A": "b"}, cwd="/")
        assert (result.stdout, result.stderr, result.exit_code) == ("out", "err", 3)


@pytest.mark.parametrize("shell", WITH_FILE, ids=lambda shell: shell.name, indirect=True)
def test_a_start_up_file_that_ends_the_shell_is_told(shell: Shell, host: LocalSshd) -> None:
    connection = Connection(host.host, **host.connection_kwargs)
    expected = pytest.raises(LoginShellError, match=r"(?s)exit status 3 before `touch ran` began.*go away")
    with start_up(shell, host, "exec sh -c 'echo go away; exit 3'"), connection, expected:
        connection.run("touch ran")
    assert not (host.home / "ran").exists()


@contextlib.contextmanager
def start_up(shell: Shell, host: LocalSshd, text: str) -> Iterator[None]:
    """Give a shell a start-up file for a while."""
    assert shell.start_up is not None
    path = host.home / shell.start_up
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    yield
    path.unlink()
