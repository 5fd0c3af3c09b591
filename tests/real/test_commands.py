"""Commands over one connection: input, output, time-outs, lost connections and start-up files."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import (
    CommandTimeoutError,
    ConnectError,
    Connection,
    ConnectionLostError,
    LoginShellError,
    RuntimeTask,
    WorkingDirectoryError,
)
from lazycluster.results import Stream
from lazycluster.testing import LocalSshd, Relay, write_config
from tests.awkward_text import NAMES
from tests.client_programs import (
    BackgroundCommand,
    ClientProgram,
    assert_becomes_idle,
    count_connections,
    find_host_pids,
    find_masters,
)
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd


@pytest.fixture(scope="module")
def host(require_sshd: None, run_directory: Path) -> Iterator[LocalSshd]:
    with LocalSshd(environment={"TMPDIR": str(run_directory)}) as server:
        yield server


@pytest.fixture(scope="module")
def shared(host: LocalSshd) -> Iterator[Connection]:
    with Connection(host.host, **host.connection_kwargs) as connection:
        yield connection


@pytest.fixture
def connection(host: LocalSshd, shared: Connection) -> Iterator[Connection]:
    """Return a connection on which nothing runs, and assert that nothing runs after the test."""
    before = set(running_commands(host))
    yield shared
    assert_eventually(lambda: set(running_commands(host)) <= before, "every command has ended", 20)


@pytest.fixture(scope="module", autouse=True)
def cut_command(require_sshd: None, run_directory: Path) -> Iterator[BackgroundCommand]:
    """Cut the connection of a command. ssh notices it while the other tests run; the last test checks the error."""
    with LocalSshd(environment={"TMPDIR": str(run_directory)}) as server, Relay(server.port) as relay:
        config = write_config(server.directory / "through-relay", server.config(port=relay.port))
        with Connection(server.host, config_file=config) as connection:
            command = BackgroundCommand(connection, "echo up; sleep 1022")
            command.wait_output(b"up")
            relay.cut()
            yield command


def running_commands(host: LocalSshd) -> list[int]:
    """Return the processes on the host except those of sshd."""
    return [pid for pid in host.processes() if not _process_name(pid).startswith("sshd")]


def _process_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return "sshd"


# Directory and environment -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_run_cwd_of_any_name(host: LocalSshd, connection: Connection, name: str) -> None:
    (host.home / name).mkdir(exist_ok=True)
    for given in (name, f"~/{name}", str(host.home / name)):
        assert connection.run("pwd; printf .", cwd=given).stdout == f"{host.home / name}\n."


def test_run_cwd_home_directory(host: LocalSshd, connection: Connection) -> None:
    for given in (None, "~", ".", "~/", str(host.home)):
        assert connection.run("pwd", cwd=given).stdout == f"{host.home}\n"
    assert connection.run("pwd", cwd="~root").stdout == f"{Path('~root').expanduser()}\n"
    assert connection.run("pwd", cwd="/").stdout == "/\n"


@pytest.mark.parametrize("name", ["nosuchdirectory", "~/no such", "/nowhere/at all", "file", "~nosuchuser/x"])
def test_run_missing_cwd_raises(host: LocalSshd, connection: Connection, name: str) -> None:
    (host.home / "file").touch()
    with pytest.raises(WorkingDirectoryError) as caught:
        connection.run("touch /tmp/never; echo never", cwd=name)
    assert (caught.value.host, caught.value.path) == (host.host, name)
    assert not Path("/tmp/never").exists()


def test_connection_env_is_merged_with_run_env(host: LocalSshd) -> None:
    with Connection(host.host, **host.connection_kwargs, env={"A": "1", "B": "2"}) as connection:
        assert connection.run('echo "$A$B"', env={"B": "3"}).stdout == "13\n"
        assert connection.run('echo "$A$B"').stdout == "12\n"


def test_run_env_is_not_in_process_table(host: LocalSshd, connection: Connection) -> None:
    """Other users of the host may read the process table."""
    result = connection.run('echo "${#TOKEN}"; ps -A -ww -o args=', env={"TOKEN": "s3cret-" * 2})
    assert result.stdout.startswith("14\n")
    assert "ps -A -ww" in result.stdout
    assert "s3cret-" not in result.stdout


# Exit codes and output -----------------------------------------------------------------------------------------------


def test_run_exit_code_255_is_not_a_lost_connection(host: LocalSshd) -> None:
    with Connection(host.host, **host.connection_kwargs) as connection:
        assert connection.run("exit 255").exit_code == 255
        assert connection.run("ssh -F none -o BatchMode=yes nosuch.invalid true").exit_code == 255
        command = BackgroundCommand(connection, "echo up; sleep 1002")
        command.wait_output(b"up")
        host.kill_connections()
        with pytest.raises(ConnectionLostError) as caught:
            command.join(30)
        assert (caught.value.host, caught.value.command) == (host.host, "echo up; sleep 1002")
        assert caught.value.started is True
        assert connection.run("echo back").stdout == "back\n"


def test_run_output_keeps_order_of_streams(connection: Connection) -> None:
    result = connection.run("for x in 1 2 3; do echo o$x; sleep 0.05; echo e$x >&2; sleep 0.05; done")
    assert result.output == "o1\ne1\no2\ne2\no3\ne3\n"
    assert (result.stdout, result.stderr) == ("o1\no2\no3\n", "e1\ne2\ne3\n")


# Large output --------------------------------------------------------------------------------------------------------

LARGE_OUTPUT_PROGRAM = """
    import resource
    much = "head -c 100000000 /dev/zero | tr '\\\\0' "
    result = connection.run(f"{much} x & {much} y >&2; wait")
    say(len(result.stdout_bytes), result.stdout_bytes.count(b"x"))
    say(len(result.stderr_bytes), result.stderr_bytes.count(b"y"))
    say(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    connection.close()
"""
UNSENT_OUTPUT_PROGRAM = """
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    connection.run("head -c 200000000 /dev/zero >/dev/null; head -c 200000000 /dev/zero | wc -c")
    say((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
    connection.close()
"""


@pytest.mark.soak
def test_run_200_megabytes_are_held_once(host: LocalSshd) -> None:
    with ClientProgram(LARGE_OUTPUT_PROGRAM, server=host) as program:
        status, stdout, stderr = program.wait(110)
    assert (status, stderr) == (0, "")
    *sizes, memory = stdout.splitlines()
    assert sizes == ["100000000 100000000"] * 2
    # One copy of both streams, a second copy of one stream while its pieces are joined, and the interpreter.
    assert int(memory) < 400 * 2**20
    assert_eventually(lambda: running_commands(host) == [], "no command runs", 20)


def test_run_output_kept_on_host_takes_no_memory(host: LocalSshd) -> None:
    with ClientProgram(UNSENT_OUTPUT_PROGRAM, server=host) as program:
        status, stdout, stderr = program.wait(60)
    assert (status, stderr) == (0, "")
    assert int(stdout) < 20 * 2**20


def test_run_slow_on_output_gets_bounded_pieces(connection: Connection) -> None:
    pieces: list[int] = []

    def on_output(stream: Stream, data: bytes) -> None:
        pieces.append(len(data))
        time.sleep(0.001)

    result = connection.run("head -c 20000000 /dev/zero", on_output=on_output)
    assert (len(result.stdout_bytes), sum(pieces)) == (20_000_000, 20_000_000)
    assert max(pieces) <= 1 << 18


# Output while the command runs ---------------------------------------------------------------------------------------

STEPWISE_COMMAND = "printf 'first\\nsec'; while [ ! -e {go} ]; do sleep 0.02; done; echo ond; echo err >&2; rm {go}"


def start_stepwise_task(
    host: LocalSshd, connection: Connection, *, debug: bool
) -> tuple[Path, RuntimeTask, BackgroundTask]:
    go = host.home / "go"
    task = RuntimeTask().run_command(STEPWISE_COMMAND.format(go=go))
    return go, task, BackgroundTask(task, connection, debug)


class BackgroundTask:
    """A task that runs beside the test."""

    def __init__(self, task: RuntimeTask, connection: Connection, debug: bool) -> None:
        self.thread = threading.Thread(target=task.execute, args=(connection, debug), daemon=True)
        self.thread.start()

    def join(self) -> None:
        self.thread.join(30)
        assert not self.thread.is_alive()


def test_task_output_streams_to_log(
    host: LocalSshd, connection: Connection, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, logger="lazycluster")
    go, task, execution = start_stepwise_task(host, connection, debug=False)

    def messages() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "lazycluster.executor"]

    assert_eventually(lambda: messages() == ["local: first"], "the first line is in the log while the command runs")
    assert execution.thread.is_alive()
    go.touch()
    execution.join()

    assert sorted(messages()) == ["local: err", "local: first", "local: second"]
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert capsys.readouterr().out == ""
    assert sorted(task.execution_log[0].splitlines()) == ["err", "first", "second"]


def test_task_debug_output_streams_to_stdout(
    host: LocalSshd, connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    go, task, execution = start_stepwise_task(host, connection, debug=True)
    printed = ""

    def has_first_output() -> bool:
        nonlocal printed
        printed += capsys.readouterr().out
        return printed == "first\nsec"

    assert_eventually(has_first_output, "the output is shown, the unfinished line included")
    assert execution.thread.is_alive()
    go.touch()
    execution.join()

    assert sorted((printed + capsys.readouterr().out).splitlines()) == ["err", "first", "second"]
    assert sorted(task.execution_log[0].splitlines()) == ["err", "first", "second"]


def test_task_debug_split_characters_are_shown_whole(
    connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    task = RuntimeTask().run_command("printf '\\303'; sleep 0.1; printf '\\244\\377'; sleep 0.1; echo")
    task.execute(connection, debug=True)
    assert capsys.readouterr().out == "ä\ufffd\n"
    assert task.execution_log == ["ä\ufffd\n"]


def test_task_prints_and_logs_nothing_by_default(
    connection: Connection, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    RuntimeTask().run_command("echo quiet; echo err >&2").execute(connection)
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []


# Standard input ------------------------------------------------------------------------------------------------------


def test_run_unread_stdin_is_dropped(connection: Connection) -> None:
    assert connection.run("echo done", stdin=b"x" * 5_000_000).stdout == "done\n"
    assert connection.run("head -c 3; exec <&-; sleep 0.1", stdin=b"abc" * 1_000_000).stdout == "abc"
    with pytest.raises(CommandTimeoutError):
        connection.run("sleep 1003", stdin=b"x" * 5_000_000, timeout=1)


# Timeouts ------------------------------------------------------------------------------------------------------------


def test_run_timeout_ends_children(host: LocalSshd, connection: Connection) -> None:
    command = (
        "echo started; echo oops >&2;"
        "sleep 1011 & setsid sleep 1012 & env -i sleep 1013 & (sh -c 'setsid sh -c \"sleep 1014; :\" & sleep 1015') & "
        "nohup setsid sleep 1016 >/dev/null 2>&1 & echo all; wait"
    )
    with pytest.raises(CommandTimeoutError) as caught:
        connection.run(command, timeout=2)

    assert (caught.value.host, caught.value.timeout) == (host.host, 2)
    assert (caught.value.stdout, caught.value.stderr) == ("started\nall\n", "oops\n")
    assert_eventually(lambda: running_commands(host) == [], "all its children have ended", 20)


def test_run_timeout_kills_after_grace(host: LocalSshd, connection: Connection) -> None:
    stubborn = "trap '' TERM HUP INT; while :; do sleep 0.1; done"
    command = f'echo up; setsid sh -c "{stubborn}" & {stubborn}'
    with pytest.raises(CommandTimeoutError):
        connection.run(command, timeout=2)
    assert running_commands(host), "the call does not wait for the grace period"
    assert_eventually(lambda: running_commands(host) == [], "the processes that ignored SIGTERM were killed", 30)


def test_run_timeout_leaves_time_to_clean_up(host: LocalSshd, connection: Connection) -> None:
    (host.home / "cleaned").unlink(missing_ok=True)
    with pytest.raises(CommandTimeoutError):
        connection.run("trap 'sleep 1.5 && touch cleaned; exit' TERM; while :; do sleep 0.1; done", timeout=2)
    assert_eventually((host.home / "cleaned").exists, "the command has cleaned up", 20)


def test_run_timeout_ends_endless_output(connection: Connection) -> None:
    with pytest.raises(CommandTimeoutError) as caught:
        connection.run("yes", timeout=1)
    assert caught.value.stdout.startswith("y\ny\n")
    assert len(str(caught.value)) < 1000


def test_run_background_child_does_not_block(host: LocalSshd, connection: Connection) -> None:
    result = connection.run("sleep 1017 & echo $!")
    pid = int(result.stdout)
    assert find_host_pids(host, "sleep 1017") == [pid]

    assert connection.run(f"kill {pid}; echo gone").stdout == "gone\n"
    assert find_host_pids(host, "sleep 1017") == []


def test_run_background_output_stays_out_of_others(host: LocalSshd, connection: Connection) -> None:
    result = connection.run("(while sleep 0.02; do echo noise || exit; done) & echo $!; sleep 0.1; echo end")
    assert "end" in result.stdout.split()
    assert [connection.run("echo own").output for _ in range(3)] == ["own\n"] * 3
    connection.run(f"kill {result.stdout.split()[0]}")


def test_run_background_children_free_sessions(host: LocalSshd, connection: Connection) -> None:
    """Each child keeps the output of its session open, so sshd still counts the session."""
    try:
        for _ in range(12):
            assert connection.run("sleep 1018 & echo up", timeout=30).stdout == "up\n"
    finally:
        for pid in find_host_pids(host, "sleep 1018"):
            os.kill(pid, signal.SIGKILL)


# Lost and slow connections -------------------------------------------------------------------------------------------


def test_run_connection_reset_raises(host: LocalSshd, tmp_path: Path) -> None:
    with Relay(host.port) as relay:
        config = write_config(tmp_path / "config", host.config(port=relay.port))
        with Connection(host.host, config_file=config) as connection:
            command = BackgroundCommand(connection, "echo up; sleep 1021")
            command.wait_output(b"up")
            relay.drop()
            with pytest.raises(ConnectionLostError) as caught:
                command.join(30)
            assert (caught.value.command, caught.value.started) == ("echo up; sleep 1021", True)
            assert_eventually(lambda: not find_host_pids(host, "sleep 1021"), "the host has ended the command", 20)
            assert connection.run("echo back").stdout == "back\n"


def test_run_server_alive_interval_finds_lost_host(host: LocalSshd, tmp_path: Path) -> None:
    with Relay(host.port) as relay:
        config = write_config(tmp_path / "config", host.config(port=relay.port))
        options = {"ServerAliveInterval": "1", "ServerAliveCountMax": "1"}
        with Connection(host.host, config_file=config, options=options) as connection:
            command = BackgroundCommand(connection, "echo up; sleep 1023")
            command.wait_output(b"up")
            relay.cut()
            with pytest.raises(ConnectionLostError):
                command.join(15)  # by default ssh would take 20 s
            relay.restore()
            relay.drop()
            assert connection.run("echo back").stdout == "back\n"
    assert_eventually(lambda: not find_host_pids(host, "sleep 1023"), "the host has ended the command", 20)


def test_run_over_slow_connection(host: LocalSshd, tmp_path: Path) -> None:
    with Relay(host.port, delay=0.02) as relay:
        config = write_config(tmp_path / "config", host.config(port=relay.port))
        with Connection(host.host, config_file=config) as connection:
            result = connection.run("cat; echo err >&2; exit 3", stdin=b"x" * 100_000)
            assert (len(result.stdout), result.stderr, result.exit_code) == (100_000, "err\n", 3)


def test_run_sshd_killed_raises(make_sshd: MakeSshd) -> None:
    server = make_sshd()
    with Connection(server.host, **server.connection_kwargs) as connection:
        command = BackgroundCommand(connection, "echo up; sleep 1024")
        command.wait_output(b"up")
        server.stop()
        with pytest.raises(ConnectionLostError):
            command.join(30)
        with pytest.raises(ConnectError):
            connection.run("true")
        assert not connection.is_alive()


def test_connection_lost_leaves_no_files(host: LocalSshd) -> None:
    directory = Path(tempfile.gettempdir())
    before = set(directory.glob("lazycluster-m-*"))
    masters = set(find_masters(host.port))
    connection = Connection(host.host, **host.connection_kwargs)
    command = BackgroundCommand(connection, "echo up; sleep 1025")
    command.wait_output(b"up")
    (master,) = set(find_masters(host.port)) - masters
    os.kill(master.pid, signal.SIGKILL)
    with pytest.raises(ConnectionLostError):
        command.join(30)
    connection.close()
    assert set(directory.glob("lazycluster-m-*")) == before
    assert_eventually(lambda: not find_host_pids(host, "sleep 1025"), "the host has ended the command", 20)


# Start-up files ------------------------------------------------------------------------------------------------------

HARMLESS_START_UP_FILES = {
    "prints": "echo noise; echo noise >&2; printf '\\033]0;title\\007'",
    "prints megabytes": "head -c 5000000 /dev/zero | tr '\\0' n; head -c 3000000 /dev/zero | tr '\\0' n >&2",
    "prints without an end of line": "printf noise; printf noise >&2",
    "returns a failure": "echo noise; return 1",
    "fails": "nosuchcommand; false",
    "sets options": "set -u; shopt -s nullglob extglob",
    "reads its input": "read -t 0 x || true",
    "has aliases and functions": "alias echo='printf ALIAS'; cd() { builtin cd \"$@\" && ls; }; printf noise",
    "changes the directory": "mkdir -p elsewhere; cd elsewhere; echo noise",
    "leaves a child behind": "(sleep 0.5; echo late) & echo noise",
}


@pytest.fixture(scope="module")
def noisy(require_sshd: None, run_directory: Path) -> Iterator[LocalSshd]:
    with LocalSshd(shell="bash", environment={"TMPDIR": str(run_directory)}) as server:
        yield server


@pytest.mark.parametrize("lines", HARMLESS_START_UP_FILES.values(), ids=HARMLESS_START_UP_FILES.keys())
def test_start_up_file_noise_is_not_output(noisy: LocalSshd, lines: str) -> None:
    (noisy.home / ".bashrc").write_text(lines + "\n")
    with Connection(noisy.host, **noisy.connection_kwargs) as connection:
        result = connection.run("printf out; printf err >&2; cat; exit 5", stdin=b"in")
        assert (result.stdout, result.stderr, result.exit_code) == ("outin", "err", 5)
        task = RuntimeTask().run_command("printf out").execute(connection)
        assert task.execution_log == ["out"]


EXITING_START_UP_FILES = {
    "exit 3": ("echo go away; exit 3", 3),
    "exit 0": ("echo go away >&2; exit 0", 0),
    "an exec": ("exec sh -c 'echo go away; exit 4'", 4),
    "set -e and a failure": ("echo go away; set -e; false", 1),
}


@pytest.mark.parametrize(("lines", "status"), EXITING_START_UP_FILES.values(), ids=EXITING_START_UP_FILES.keys())
def test_start_up_file_that_exits_raises(noisy: LocalSshd, lines: str, status: int) -> None:
    (noisy.home / ".bashrc").write_text(lines + "\n")
    with Connection(noisy.host, **noisy.connection_kwargs) as connection:
        with pytest.raises(LoginShellError) as caught:
            connection.run("touch ran; echo ran")
        assert (caught.value.command, caught.value.exit_code) == ("touch ran; echo ran", status)
        assert "go away" in caught.value.output
        assert not (noisy.home / "ran").exists()
        assert not connection.is_alive()


def test_forced_command_raises_login_shell_error(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"ForceCommand": "echo only this"})
    before = count_connections(server)
    with Connection(server.host, **server.connection_kwargs) as connection:
        with pytest.raises(LoginShellError) as caught:
            connection.run("true")
        assert "only this" in caught.value.output
        assert count_connections(server) == before + 1
    assert_becomes_idle(server)


# The command of cut_command ------------------------------------------------------------------------------------------


def test_run_cut_cable_raises_connection_lost(cut_command: BackgroundCommand) -> None:
    """ServerAlive finds the loss after 20 s; TCP itself would take minutes."""
    with pytest.raises(ConnectionLostError) as caught:
        cut_command.join(90)
    assert (caught.value.command, caught.value.started) == ("echo up; sleep 1022", True)
