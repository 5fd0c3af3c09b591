"""Commands, directories, variables and failures are the same under every login shell of the account."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
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
from tests.awkward_text import NAMES, TEXTS, VALUES
from tests.client_programs import BackgroundCommand, assert_becomes_idle, call_in_parallel, find_host_pids
from tests.observation import skip_or_fail
from tests.waiting import assert_eventually


@attrs.frozen
class Shell:
    """A login shell: its program, the file that it reads at each start, and whether it runs the commands itself."""

    name: str
    start_up: str | None = None
    reads_commands: bool = False
    program: str | tuple[str, str] = attrs.field(
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
SHELLS_WITH_START_UP_FILE = tuple(shell for shell in SHELLS if shell.start_up)


@pytest.fixture(scope="module", params=SHELLS, ids=lambda shell: shell.name)
def shell(request: pytest.FixtureRequest) -> Shell:
    shell: Shell = request.param
    if shutil.which(shell.name) is None:
        skip_or_fail(f"there is no {shell.name} on this machine")
    return shell


@pytest.fixture(scope="module")
def host(shell: Shell, run_directory: Path) -> Iterator[LocalSshd]:
    with LocalSshd(shell=shell.program, environment={"TMPDIR": str(run_directory)}) as server:
        yield server


@pytest.fixture(scope="module")
def connection(host: LocalSshd) -> Iterator[Connection]:
    with Connection(host.host, **host.connection_kwargs) as connection:
        yield connection
    assert_becomes_idle(host)


def test_login_shell_reads_command(shell: Shell, host: LocalSshd, connection: Connection) -> None:
    expected = {"busybox": str(host.directory / "sh")}.get(shell.name, shutil.which(shell.name))
    assert connection.run("echo $0").stdout.strip() == (expected if shell.reads_commands else "/bin/sh")
    assert connection.run('echo "$SHELL"').stdout.strip() == expected


def test_login_shell_any_text(connection: Connection) -> None:
    reader = connection.run("echo $0").stdout.strip()
    for text in TEXTS.values():
        local = subprocess.run((reader, "-c", text), capture_output=True, check=False)
        result = connection.run(text)
        assert (result.stdout_bytes, result.stderr_bytes) == (local.stdout, local.stderr), text
        assert result.exit_code == local.returncode, text


def test_login_shell_command_of_100_kilobytes(connection: Connection) -> None:
    text = "é'\"\\$!%\n#;x" * 7_000
    quoted = "'" + text.replace("'", '"') + "'"
    result = connection.run(f'x={quoted}; printf %s "$x" | wc -c')
    assert (result.stdout.strip(), result.stderr) == (str(len(text.encode())), "")
    assert len(quoted.encode()) > 80_000


def test_login_shell_cwd(host: LocalSshd, connection: Connection) -> None:
    for name in NAMES:
        (host.home / name).mkdir(exist_ok=True)
        assert connection.run("pwd; printf .", cwd=f"~/{name}").stdout == f"{host.home / name}\n."
    with pytest.raises(WorkingDirectoryError) as caught:
        connection.run("echo never", cwd="no such")
    assert caught.value.path == "no such"


def test_login_shell_env(connection: Connection) -> None:
    names = [name for name in VALUES if name != "LONG"]
    command = "; ".join(f'printf "%s|." "${name}"' for name in names)
    result = connection.run(command, env={name: VALUES[name] for name in names})
    assert result.stdout.split("|.")[:-1] == [VALUES[name] for name in names]
    assert connection.run('printf %s "$LONG" | wc -c', env={"LONG": VALUES["LONG"]}).stdout.strip() == "100000"


def test_login_shell_cwd_and_env(host: LocalSshd, connection: Connection) -> None:
    (host.home / "a b").mkdir(exist_ok=True)
    result = connection.run('printf "%s." "$PWD" "$X"', cwd="a b", env={"X": "1\n2"})
    assert result.stdout == f"{host.home}/a b.1\n2."


def test_login_shell_output_and_exit_code(connection: Connection) -> None:
    for code in (0, 1, 3, 127, 255):
        result = connection.run(f"echo out; echo err >&2; exit {code}")
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", code)


def test_login_shell_signal(connection: Connection) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
        result = connection.run(f"echo out; kill -{number.value} $$; sleep 5")
        assert (result.stdout, result.stderr, result.signal) == ("out\n", "", number)


def test_login_shell_stdin(connection: Connection) -> None:
    data = bytes(range(256)) * 4000
    assert connection.run("cat", stdin=data).stdout_bytes == data
    assert connection.run("cat; echo end").stdout == "end\n"


def test_login_shell_timeout_ends_children(host: LocalSshd, connection: Connection) -> None:
    with pytest.raises(CommandTimeoutError) as caught:
        connection.run("echo started; sleep 1031 & setsid sleep 1032 & (sleep 1033; :) & wait", timeout=2)
    assert caught.value.stdout == "started\n"
    assert_eventually(
        lambda: not any(find_host_pids(host, f"sleep 103{n}") for n in (1, 2, 3)), "its children have ended", 20
    )


def test_login_shell_background_child_does_not_block(host: LocalSshd, connection: Connection) -> None:
    pid = connection.run("sleep 1034 & echo $!").stdout.strip()
    assert find_host_pids(host, "sleep 1034") == [int(pid)]
    assert connection.run(f"kill {pid}").ok


def test_login_shell_closed_connection_ends_command(host: LocalSshd) -> None:
    with Connection(host.host, **host.connection_kwargs) as connection:
        command = BackgroundCommand(connection, "echo up; setsid sleep 1035 & sleep 1036")
        command.wait_output(b"up")
        connection.close()
        with pytest.raises(LazyclusterError):
            command.join(30)
    assert_eventually(
        lambda: not find_host_pids(host, "sleep 1035") + find_host_pids(host, "sleep 1036"), "both have ended", 20
    )


def test_login_shell_killed_is_error_or_exit_code(connection: Connection) -> None:
    try:
        result = connection.run("echo up; kill -9 $PPID; sleep 0.2")
    except ConnectionLostError:
        return
    assert not result.ok


def test_login_shell_many_commands_at_once(connection: Connection) -> None:
    results = call_in_parallel([lambda n=n: connection.run(f"echo {n}").stdout for n in range(20)])  # type: ignore[misc]
    assert results == [f"{n}\n" for n in range(20)]


def test_login_shell_task_steps(connection: Connection, tmp_path: Path) -> None:
    (tmp_path / "it's here").write_text("content")
    task = RuntimeTask()
    task.send_file(tmp_path / "it's here").run_command('cat "it\'s here"')
    task.run_function(lambda x: x * 2, 21).get_file("it's here", tmp_path / "back")
    task.execute(connection)

    assert task.execution_log == ["", "content", "", ""]
    assert list(task.function_returns) == [42]
    assert (tmp_path / "back").read_text() == "content"


def test_login_shell_runtime(host: LocalSshd, resident: bool) -> None:
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


@pytest.mark.parametrize("shell", SHELLS_WITH_START_UP_FILE, ids=lambda shell: shell.name, indirect=True)
@pytest.mark.parametrize("kind", ["noise", "megabytes", "failure"])
def test_login_shell_start_up_file_noise_is_dropped(shell: Shell, host: LocalSshd, kind: str) -> None:
    text = {"noise": NOISE, "failure": FAILURE}.get(kind, {}).get(shell.name, MEGABYTES)
    with start_up_file(shell, host, text), Connection(host.host, **host.connection_kwargs) as connection:
        result = connection.run("printf out; printf err >&2; exit 3", env={"A": "b"}, cwd="/")
        assert (result.stdout, result.stderr, result.exit_code) == ("out", "err", 3)


@pytest.mark.parametrize("shell", SHELLS_WITH_START_UP_FILE, ids=lambda shell: shell.name, indirect=True)
def test_login_shell_start_up_file_exit_raises(shell: Shell, host: LocalSshd) -> None:
    text = "exec sh -c 'echo go away; exit 3'"
    with start_up_file(shell, host, text), Connection(host.host, **host.connection_kwargs) as connection:
        with pytest.raises(LoginShellError) as caught:
            connection.run("touch ran")
        assert (caught.value.command, caught.value.exit_code) == ("touch ran", 3)
        assert "go away" in caught.value.output
    assert not (host.home / "ran").exists()


@contextlib.contextmanager
def start_up_file(shell: Shell, host: LocalSshd, text: str) -> Iterator[None]:
    """Write the start-up file of a shell, and remove it in the end."""
    assert shell.start_up is not None
    path = host.home / shell.start_up
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    yield
    path.unlink()
