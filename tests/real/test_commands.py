"""Commands: what reaches the host, what comes back and when, and that nothing goes on that was given up."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lazycluster import (
    CommandFailedError,
    CommandTimeoutError,
    Connection,
    ConnectionLostError,
    LoginShellError,
    RuntimeTask,
    TaskExecutionError,
    WorkingDirectoryError,
)
from lazycluster.results import Stream
from lazycluster.testing import LocalSshd, Relay, write_config
from tests.client_programs import (
    BackgroundCommand,
    ClientProgram,
    assert_becomes_idle,
    count_connections,
    find_host_pids,
    master_pid_of,
)
from tests.observation import record_program_starts
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
    """Return a connection on which nothing runs, and see that nothing does afterwards."""
    before = set(running_commands(host))
    yield shared
    assert_eventually(lambda: set(running_commands(host)) <= before, f"every command has ended: {host.processes()}", 10)


@pytest.fixture(scope="module", autouse=True)
def cut_cable(require_sshd: None, run_directory: Path) -> Iterator[tuple[float, BackgroundCommand]]:
    """Cut the cable under a command; it is noticed while the other tests run, and the last test looks at that."""
    with LocalSshd(environment={"TMPDIR": str(run_directory)}) as server, Relay(server.port) as relay:
        config = write_config(server.directory / "through-relay", server.config(port=relay.port))
        with Connection(server.host, config_file=config) as connection:
            command = BackgroundCommand(connection, "echo up; sleep 1022")
            command.wait_output(b"up")
            relay.cut()
            yield time.monotonic(), command


def running_commands(host: LocalSshd) -> list[int]:
    """Return the processes on the host that are no sshd's."""
    return [pid for pid in host.processes() if not _name(pid).startswith("sshd")]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return "sshd"


# Tasks ---------------------------------------------------------------------------------------------------------------


def test_a_step_that_fails_is_in_the_log_and_those_after_it_do_not_run(host: LocalSshd, connection: Connection) -> None:
    task = RuntimeTask("chain")
    task.run_command("echo one").run_command("echo two; sleep 0.05; echo oops >&2; exit 7").run_command("touch three")

    with pytest.raises(TaskExecutionError) as caught:
        task.execute(connection)

    assert task.execution_log == ["one\n", "two\noops\n"]
    assert [result.exit_code for result in task.results] == [0, 7]
    assert [result.ok for result in task.results] == [True, False]
    assert (task.results[1].stdout, task.results[1].stderr) == ("two\n", "oops\n")
    assert not (host.home / "three").exists()
    assert caught.value.step_index == 1
    assert isinstance(caught.value.__cause__, CommandFailedError)
    text = str(caught.value)
    for word in (host.host, "'chain'", "step 1", "exit 7", "exit status 7", "oops"):
        assert word in text
    with pytest.raises(TaskExecutionError):
        task.join()


def test_a_step_that_times_out_is_in_the_log_with_what_it_had_printed(connection: Connection) -> None:
    task = RuntimeTask().run_command("echo begun; sleep 1001", timeout=0.5).run_command("echo never")

    with pytest.raises(TaskExecutionError, match=r"took longer than its timeout of 0\.5 s") as caught:
        task.execute(connection)

    assert task.execution_log == ["begun\n"]
    assert task.results[0].exit_code is None
    assert isinstance(task.results[0].error, CommandTimeoutError)
    assert isinstance(caught.value.__cause__, CommandTimeoutError)


def test_a_new_execution_replaces_the_log(host: LocalSshd, connection: Connection) -> None:
    task = RuntimeTask().run_command("echo x >>again; wc -l <again")
    (host.home / "again").unlink(missing_ok=True)
    for expected in ("1", "2"):
        assert [entry.strip() for entry in task.execute(connection).execution_log] == [expected]


# Any text ------------------------------------------------------------------------------------------------------------

TEXTS = {
    "quotes": """printf '%s\\n' "it's" '"quoted"' 'a`b' "$(echo 'sub')" """,
    "newlines": "printf 'a\\n'\nfor x in 1 2\ndo\n  echo $x\ndone\n",
    "here document": "cat <<'END'\n$HOME `x` \\n 'single'\nEND\n",
    "comment at the end": "echo x # comment",
    "backslashes": r"printf '%s\n' '\n\t\0101\\' \\\\",
    "unicode": "printf '%s\\n' 'äöü € 漢字 🐍'",
    "exclamation mark": "echo '!!' \"a!b\"",
    "percent": "printf '%%s%%d\\n'",
    "glob and tilde": "echo '*' '~' \\~",
    "leading dash": "-n() { echo dash; }; -n 2>/dev/null || echo dash",
    "tabs and spaces": "\t echo  'a\t b'   \t",
    "control characters": "printf '%s' '\x01\x1b[0m\x7f' | od -An -c",
    "carriage return": "printf '%s' 'a\rb' | od -An -c",
    "only a variable": ': "${HOME:?}"; echo "${x:-un\'set}"',
    "braces and pipes": '{ echo a; echo b; } | { read x; echo "$x"; } && echo c || echo d; (echo e)',
    "positional parameters": 'echo "$#" "$@"',
    "an unset of our own variables": "unset lc_mark lc_watchdog LAZYCLUSTER_JOB; echo fine",
    "a function called like ours": "lc_end() { echo ours; }; echo fine",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_any_text_reaches_the_shell_as_it_is(connection: Connection, text: str) -> None:
    """The same text, run by the same shell here, gives the same."""
    shell = connection.run("echo $0").stdout.strip()
    here = subprocess.run((shell, "-c", text), capture_output=True, check=False)

    result = connection.run(text)

    assert (result.stdout_bytes, result.stderr_bytes, result.exit_code) == (here.stdout, here.stderr, here.returncode)
    assert result.command == text


@pytest.mark.parametrize("unit", ["x", "é", "'", "\\", "\n", "%"])
def test_a_command_of_a_hundred_kilobytes(connection: Connection, unit: str) -> None:
    size = 100_000 // len(unit.encode())
    quoted = "'" + (unit * size).replace("'", "'\\''" if size < 1000 else '"') + "'"
    result = connection.run(f"printf %s {quoted} | wc -c")
    assert (result.stdout.strip(), result.stderr) == (str(size * len(unit.encode())), "")


def test_a_syntax_error_is_the_shells_affair(connection: Connection) -> None:
    result = connection.run("if then; '")
    assert result.exit_code in {1, 2}
    assert re.search(r"(?i)syntax|unterminated|unexpected", result.stderr)
    assert connection.run("echo next").stdout == "next\n"


# Directory and environment -------------------------------------------------------------------------------------------

NAMES = [
    "plain",
    "with space",
    "it's",
    'a"b',
    "$HOME",
    "-dash",
    "новый",
    "new\nline",
    "a*b",
    "back\\slash",
    "`x`",
    "!x",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_working_directory(host: LocalSshd, connection: Connection, name: str) -> None:
    (host.home / name).mkdir(exist_ok=True)
    for given in (name, f"~/{name}", str(host.home / name)):
        assert connection.run("pwd; printf .", cwd=given).stdout == f"{host.home / name}\n."


def test_the_home_directory(host: LocalSshd, connection: Connection) -> None:
    for given in (None, "~", ".", "~/", str(host.home)):
        assert connection.run("pwd", cwd=given).stdout == f"{host.home}\n"
    assert connection.run("pwd", cwd="~root").stdout == f"{Path('~root').expanduser()}\n"
    assert connection.run("pwd", cwd="/").stdout == "/\n"


@pytest.mark.parametrize("name", ["nosuchdirectory", "~/no such", "/nowhere/at all", "file", "~nosuchuser/x"])
def test_a_working_directory_that_cannot_be_entered(host: LocalSshd, connection: Connection, name: str) -> None:
    (host.home / "file").touch()
    with pytest.raises(WorkingDirectoryError) as caught:
        connection.run("touch /tmp/never; echo never", cwd=name)
    text = str(caught.value)
    assert text.startswith(f"{host.host}: cannot enter the working directory {name!r}")
    assert text.endswith("Create it first.")
    assert not Path("/tmp/never").exists()


VALUES = {
    "EMPTY": "",
    "SPACES": "  a  b  ",
    "NEWLINES": "a\n\nb\n",
    "QUOTES": 'it\'s "quoted" `x` $HOME $(x) \\n',
    "UNICODE": "äöü € 漢字 🐍",
    "LONG": "x" * 100_000,
    "_under_1": "1",
    "PATH_LIKE": "/a:/b",
    "ESCAPE": "\x1b[0m\x01",
}


@pytest.mark.parametrize("name", VALUES)
def test_the_environment(connection: Connection, name: str) -> None:
    result = connection.run(f'printf "%s." "${name}"; env | grep -c "^{name}="', env={name: VALUES[name]})
    value, _, count = result.stdout.rpartition(".")
    assert (value, count.strip(), result.stderr) == (VALUES[name], "1", "")


def test_the_environment_of_a_connection_and_of_a_command(host: LocalSshd) -> None:
    with Connection(host.host, **host.connection_kwargs, env={"A": "1", "B": "2"}) as connection:
        assert connection.run('echo "$A$B"', env={"B": "3"}).stdout == "13\n"
        assert connection.run('echo "$A$B"').stdout == "12\n"


def test_the_environment_does_not_show_in_the_process_table(host: LocalSshd, connection: Connection) -> None:
    """Others on the host, and here, may read it."""
    result = connection.run('echo "${#TOKEN}"; ps -A -ww -o args=', env={"TOKEN": "s3cret-" * 2})
    assert result.stdout.startswith("14\n")
    assert "ps -A -ww" in result.stdout
    assert "s3cret-" not in result.stdout


# What comes back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 2, 77, 126, 127, 254, 255])
def test_exit_statuses(connection: Connection, code: int) -> None:
    result = connection.run(f"echo out; echo err >&2; exit {code}")
    assert (result.exit_code, result.ok, result.stdout, result.stderr) == (code, code == 0, "out\n", "err\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGHUP, signal.SIGINT])
def test_a_death_by_signal(connection: Connection, number: signal.Signals) -> None:
    result = connection.run(f"echo out; kill -{number.value} $$; sleep 5")
    assert (result.exit_code, result.signal, result.stdout) == (128 + number, number, "out\n")
    assert result.stderr == ""


def test_statuses_of_what_cannot_be_run(connection: Connection) -> None:
    missing = connection.run("nosuchprogram")
    assert missing.exit_code == 127
    assert "nosuchprogram" in missing.stderr
    assert connection.run("/").exit_code == 126


def test_an_exit_status_of_255_is_told_from_a_lost_link(host: LocalSshd) -> None:
    with Connection(host.host, **host.connection_kwargs) as connection:
        assert connection.run("exit 255").exit_code == 255
        assert connection.run("ssh -F none -o BatchMode=yes nosuch.invalid true").exit_code == 255
        command = BackgroundCommand(connection, "echo up; sleep 1002")
        command.wait_output(b"up")
        host.kill_connections()
        with pytest.raises(ConnectionLostError) as caught:
            command.join(5)
        assert caught.value.started is True
        for word in (host.host, "echo up; sleep 1002", "It had started on the host"):
            assert word in str(caught.value)
        assert connection.run("echo back").stdout == "back\n"


def test_undecodable_bytes(connection: Connection) -> None:
    command = "printf 'a\\377\\376b\\303'; printf '\\200' >&2"
    result = connection.run(command)
    assert (result.stdout_bytes, result.stderr_bytes) == (b"a\xff\xfeb\xc3", b"\x80")
    assert (result.stdout, result.stderr) == ("a\ufffd\ufffdb\ufffd", "\ufffd")
    assert RuntimeTask().run_command(command).execute(connection).execution_log[0].count("\ufffd") == 4


def test_every_byte_comes_back(connection: Connection) -> None:
    octal = "".join(f"\\{byte:03o}" for byte in range(256))
    assert connection.run(f"printf '{octal}'").stdout_bytes == bytes(range(256))
    assert connection.run(f"printf '{octal}' >&2").stderr_bytes == bytes(range(256))


def test_output_without_an_end_of_line_or_any(connection: Connection) -> None:
    assert connection.run("printf x").stdout == "x"
    result = connection.run("true")
    assert (result.stdout, result.stderr, result.output) == ("", "", "")


def test_the_streams_in_their_order(connection: Connection) -> None:
    result = connection.run("for x in 1 2 3; do echo o$x; sleep 0.05; echo e$x >&2; sleep 0.05; done")
    assert result.output == "o1\ne1\no2\ne2\no3\ne3\n"
    assert (result.stdout, result.stderr) == ("o1\no2\no3\n", "e1\ne2\ne3\n")


def test_the_duration(connection: Connection) -> None:
    assert 0.3 <= connection.run("sleep 0.3").duration < 1.3


# Large output --------------------------------------------------------------------------------------------------------

_LARGE = """
    import resource
    much = "head -c 100000000 /dev/zero | tr '\\\\0' "
    result = connection.run(f"{much} x & {much} y >&2; wait")
    say(len(result.stdout_bytes), result.stdout_bytes.count(b"x"))
    say(len(result.stderr_bytes), result.stderr_bytes.count(b"y"))
    say(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    connection.close()
"""
_NOT_KEPT = """
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    connection.run("head -c 200000000 /dev/zero >/dev/null; head -c 200000000 /dev/zero | wc -c")
    say((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
    connection.close()
"""


@pytest.mark.soak
def test_two_hundred_megabytes_are_neither_lost_nor_held_many_times(host: LocalSshd) -> None:
    with ClientProgram(_LARGE, server=host) as program:
        status, stdout, stderr = program.wait(60)
    assert (status, stderr) == (0, "")
    *sizes, memory = stdout.splitlines()
    assert sizes == ["100000000 100000000"] * 2
    # One copy of all of it, a second of one stream while its pieces are joined, and the interpreter.
    assert int(memory) < 400 * 2**20
    becomes_idle_but_shared(host)


def becomes_idle_but_shared(host: LocalSshd) -> None:
    assert_eventually(lambda: running_commands(host) == [], "no command runs")


def test_what_does_not_come_here_takes_no_memory_here(host: LocalSshd) -> None:
    with ClientProgram(_NOT_KEPT, server=host) as program:
        status, stdout, stderr = program.wait(60)
    assert (status, stderr) == (0, "")
    assert int(stdout) < 20 * 2**20


def test_a_reader_that_is_slow_holds_up_the_command_and_not_the_memory(connection: Connection) -> None:
    pieces: list[int] = []

    def on_output(stream: Stream, data: bytes) -> None:
        pieces.append(len(data))
        time.sleep(0.001)

    result = connection.run("head -c 20000000 /dev/zero", on_output=on_output)
    assert (len(result.stdout_bytes), sum(pieces)) == (20_000_000, 20_000_000)
    assert max(pieces) <= 1 << 18


# While it is produced ------------------------------------------------------------------------------------------------

_STEPWISE = "printf 'first\\nsec'; while [ ! -e {go} ]; do sleep 0.02; done; echo ond; echo err >&2; rm {go}"


def _stepwise(host: LocalSshd, connection: Connection, *, debug: bool) -> tuple[Path, RuntimeTask, InBackgroundTask]:
    go = host.home / "go"
    task = RuntimeTask().run_command(_STEPWISE.format(go=go))
    return go, task, InBackgroundTask(task, connection, debug)


class InBackgroundTask:
    """A task that is executed while the test goes on."""

    def __init__(self, task: RuntimeTask, connection: Connection, debug: bool) -> None:
        self.thread = threading.Thread(target=task.execute, args=(connection, debug), daemon=True)
        self.thread.start()

    def join(self) -> None:
        self.thread.join(10)
        assert not self.thread.is_alive()


def test_output_streams_to_the_log(
    host: LocalSshd, connection: Connection, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, logger="lazycluster")
    go, task, execution = _stepwise(host, connection, debug=False)

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "lazycluster.executor"]

    assert_eventually(lambda: said() == ["local: first"], "the first line is in the log while the command runs")
    assert execution.thread.is_alive()
    go.touch()
    execution.join()

    assert sorted(said()) == ["local: err", "local: first", "local: second"]
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert capsys.readouterr().out == ""
    assert sorted(task.execution_log[0].splitlines()) == ["err", "first", "second"]


def test_output_streams_to_standard_output(
    host: LocalSshd, connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    go, task, execution = _stepwise(host, connection, debug=True)
    seen = ""

    def first() -> bool:
        nonlocal seen
        seen += capsys.readouterr().out
        return seen == "first\nsec"

    assert_eventually(first, "what was printed is shown, the unfinished line too")
    assert execution.thread.is_alive()
    go.touch()
    execution.join()

    assert sorted((seen + capsys.readouterr().out).splitlines()) == ["err", "first", "second"]
    assert sorted(task.execution_log[0].splitlines()) == ["err", "first", "second"]


def test_characters_that_come_in_pieces_are_shown_whole(
    connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    task = RuntimeTask().run_command("printf '\\303'; sleep 0.1; printf '\\244\\377'; sleep 0.1; echo")
    task.execute(connection, debug=True)
    assert capsys.readouterr().out == "ä\ufffd\n"
    assert task.execution_log == ["ä\ufffd\n"]


def test_nothing_is_printed_or_logged_unasked(
    connection: Connection, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    RuntimeTask().run_command("echo quiet; echo err >&2").execute(connection)
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []


# Standard input ------------------------------------------------------------------------------------------------------


def test_a_command_reads_nothing_unless_it_is_given_something(connection: Connection) -> None:
    assert connection.run("cat; echo end").stdout == "end\n"
    assert connection.run("[ -t 0 ] || echo none").stdout == "none\n"


@pytest.mark.parametrize("data", [b"x", bytes(range(256)) * 100, b"\n" * 70_000, os.urandom(5_000_000)])
def test_a_payload_arrives_whole(connection: Connection, data: bytes) -> None:
    result = connection.run("cat", stdin=data)
    assert result.stdout_bytes == data
    assert connection.run("wc -c", stdin=data).stdout.strip() == str(len(data))


def test_a_payload_that_nobody_reads(connection: Connection) -> None:
    assert connection.run("echo done", stdin=b"x" * 5_000_000).stdout == "done\n"
    assert connection.run("head -c 3; exec <&-; sleep 0.1", stdin=b"abc" * 1_000_000).stdout == "abc"
    begun = time.monotonic()
    with pytest.raises(CommandTimeoutError):
        connection.run("sleep 1003", stdin=b"x" * 5_000_000, timeout=1)
    assert time.monotonic() - begun < 4


# Timeouts ------------------------------------------------------------------------------------------------------------


def test_a_timeout_ends_the_wait_and_the_command_with_its_children(host: LocalSshd, connection: Connection) -> None:
    command = (
        "echo begun; echo oops >&2;"
        "sleep 1011 & setsid sleep 1012 & env -i sleep 1013 & (sh -c 'setsid sh -c \"sleep 1014; :\" & sleep 1015') & "
        "nohup setsid sleep 1016 >/dev/null 2>&1 & echo all; wait"
    )
    begun = time.monotonic()
    with pytest.raises(CommandTimeoutError) as caught:
        connection.run(command, timeout=1)

    assert 1 <= time.monotonic() - begun < 4
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.stdout, caught.value.stderr) == ("begun\nall\n", "oops\n")
    for word in (host.host, "timeout of 1 s", "begun", "oops"):
        assert word in str(caught.value)
    assert_eventually(lambda: running_commands(host) == [], "all its children have ended", 4)


def test_what_ignores_the_request_to_end_is_killed_after_the_grace(host: LocalSshd, connection: Connection) -> None:
    stubborn = "trap '' TERM HUP INT; while :; do sleep 0.1; done"
    command = f'echo up; setsid sh -c "{stubborn}" & {stubborn}'
    begun = time.monotonic()
    with pytest.raises(CommandTimeoutError):
        connection.run(command, timeout=0.5)
    assert time.monotonic() - begun < 3.5
    assert running_commands(host)
    assert_eventually(lambda: running_commands(host) == [], "what ignored SIGTERM is killed", 8)
    assert time.monotonic() - begun > 4


def test_what_cleans_up_when_asked_to_end_has_the_time_for_it(host: LocalSshd, connection: Connection) -> None:
    (host.home / "cleaned").unlink(missing_ok=True)
    with pytest.raises(CommandTimeoutError):
        connection.run("trap 'sleep 1.5 && touch cleaned; exit' TERM; while :; do sleep 0.1; done", timeout=0.5)
    assert_eventually((host.home / "cleaned").exists, "it has cleaned up")


def test_a_command_that_ends_in_time_is_not_disturbed(connection: Connection) -> None:
    assert connection.run("sleep 0.1; echo done", timeout=5).stdout == "done\n"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), True, "1"])
def test_a_timeout_that_is_none_is_refused_before_anything_runs(connection: Connection, timeout: object) -> None:
    given: Any = timeout
    with record_program_starts() as started, pytest.raises(ValueError, match="positive number of seconds"):
        connection.run("true", timeout=given)
    assert started == []


def test_a_very_short_timeout(connection: Connection) -> None:
    begun = time.monotonic()
    with pytest.raises(CommandTimeoutError):
        connection.run("sleep 1004", timeout=0.001)
    assert time.monotonic() - begun < 4


def test_a_command_that_never_stops_printing_is_ended_at_its_timeout(connection: Connection) -> None:
    begun = time.monotonic()
    with pytest.raises(CommandTimeoutError) as caught:
        connection.run("yes", timeout=0.5)
    assert time.monotonic() - begun < 4
    assert caught.value.stdout.startswith("y\ny\n")
    assert len(str(caught.value)) < 1000


def test_a_background_child_does_not_keep_the_call(host: LocalSshd, connection: Connection) -> None:
    begun = time.monotonic()
    result = connection.run("sleep 1017 & echo $!")
    assert time.monotonic() - begun < 5
    pid = int(result.stdout)
    assert find_host_pids(host, "sleep 1017") == [pid]

    assert connection.run(f"kill {pid}; echo gone").stdout == "gone\n"
    assert find_host_pids(host, "sleep 1017") == []


def test_a_background_child_that_goes_on_printing_does_not_mix_into_other_commands(
    host: LocalSshd, connection: Connection
) -> None:
    result = connection.run("(while sleep 0.02; do echo noise || exit; done) & echo $!; sleep 0.1; echo end")
    assert "end" in result.stdout.split()
    assert [connection.run("echo own").output for _ in range(3)] == ["own\n"] * 3
    connection.run(f"kill {result.stdout.split()[0]}")


def test_many_abandoned_children_do_not_use_up_the_sessions(host: LocalSshd, connection: Connection) -> None:
    """Each keeps the output of its session open, which the host goes on counting."""
    try:
        for _ in range(12):
            assert connection.run("sleep 1018 & echo up", timeout=5).stdout == "up\n"
    finally:
        for pid in find_host_pids(host, "sleep 1018"):
            os.kill(pid, signal.SIGKILL)


# The link ------------------------------------------------------------------------------------------------------------


def test_a_link_that_is_reset_is_an_error_at_once(host: LocalSshd, tmp_path: Path) -> None:
    with Relay(host.port) as relay:
        config = write_config(tmp_path / "config", host.config(port=relay.port))
        with Connection(host.host, config_file=config) as connection:
            command = BackgroundCommand(connection, "echo up; sleep 1021")
            command.wait_output(b"up")
            relay.drop()
            with pytest.raises(ConnectionLostError, match="sleep 1021") as caught:
                command.join(3)
            assert caught.value.started is True
            assert_eventually(lambda: not find_host_pids(host, "sleep 1021"), "the host has ended the command", 8)
            assert connection.run("echo back").stdout == "back\n"


def test_the_interval_after_which_a_cut_cable_is_noticed_can_be_set(host: LocalSshd, tmp_path: Path) -> None:
    with Relay(host.port) as relay:
        config = write_config(tmp_path / "config", host.config(port=relay.port))
        options = {"ServerAliveInterval": "1", "ServerAliveCountMax": "1"}
        with Connection(host.host, config_file=config, options=options) as connection:
            command = BackgroundCommand(connection, "echo up; sleep 1023")
            command.wait_output(b"up")
            relay.cut()
            with pytest.raises(ConnectionLostError, match="not responding"):
                command.join(5)
            relay.restore()
            relay.drop()
            assert connection.run("echo back").stdout == "back\n"
    assert_eventually(lambda: not find_host_pids(host, "sleep 1023"), "the host has ended the command", 8)


def test_a_slow_link_changes_nothing(host: LocalSshd, tmp_path: Path) -> None:
    with Relay(host.port, delay=0.02) as relay:
        config = write_config(tmp_path / "config", host.config(port=relay.port))
        with Connection(host.host, config_file=config) as connection:
            result = connection.run("cat; echo err >&2; exit 3", stdin=b"x" * 100_000)
            assert (len(result.stdout), result.stderr, result.exit_code) == (100_000, "err\n", 3)
            warm = [connection.run("true").duration for _ in range(3)]
            assert min(warm) < 0.2


def test_a_host_that_is_killed_in_the_middle_of_a_command(make_sshd: MakeSshd) -> None:
    server = make_sshd()
    with Connection(server.host, **server.connection_kwargs, connect_timeout=5) as connection:
        command = BackgroundCommand(connection, "echo up; sleep 1024")
        command.wait_output(b"up")
        server.stop()
        with pytest.raises(ConnectionLostError):
            command.join(5)
        with pytest.raises(ValueError, match=server.host):
            connection.run("true")
        assert not connection.is_alive()


def test_a_lost_link_leaves_nothing_of_the_connection_here(host: LocalSshd) -> None:
    directory = Path(tempfile.gettempdir())
    before = set(directory.glob("lazycluster-m-*"))
    connection = Connection(host.host, **host.connection_kwargs)
    command = BackgroundCommand(connection, "echo up; sleep 1025")
    command.wait_output(b"up")
    os.kill(master_pid_of(connection), signal.SIGKILL)
    with pytest.raises(ConnectionLostError):
        command.join(5)
    connection.close()
    assert set(directory.glob("lazycluster-m-*")) == before
    assert_eventually(lambda: not find_host_pids(host, "sleep 1025"), "the host has ended the command", 8)


# Noise ---------------------------------------------------------------------------------------------------------------

QUIET = {
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


@pytest.mark.parametrize("lines", QUIET.values(), ids=QUIET.keys())
def test_a_noisy_start_up_file_does_not_reach_the_output(noisy: LocalSshd, lines: str) -> None:
    (noisy.home / ".bashrc").write_text(lines + "\n")
    with Connection(noisy.host, **noisy.connection_kwargs) as connection:
        result = connection.run("printf out; printf err >&2; cat; exit 5", stdin=b"in")
        assert (result.stdout, result.stderr, result.exit_code) == ("outin", "err", 5)
        task = RuntimeTask().run_command("printf out").execute(connection)
        assert task.execution_log == ["out"]


ENDING = {
    "exit 3": ("echo go away; exit 3", 3),
    "exit 0": ("echo go away >&2; exit 0", 0),
    "an exec": ("exec sh -c 'echo go away; exit 4'", 4),
    "set -e and a failure": ("echo go away; set -e; false", 1),
}


@pytest.mark.parametrize(("lines", "status"), ENDING.values(), ids=ENDING.keys())
def test_a_start_up_file_that_ends_the_shell_is_no_success_of_the_command(
    noisy: LocalSshd, lines: str, status: int
) -> None:
    (noisy.home / ".bashrc").write_text(lines + "\n")
    with Connection(noisy.host, **noisy.connection_kwargs) as connection:
        with pytest.raises(LoginShellError) as caught:
            connection.run("touch ran; echo ran")
        text = str(caught.value)
        for word in (noisy.host, "touch ran; echo ran", f"exit status {status}", "start-up files", "go away"):
            assert word in text
        assert not (noisy.home / "ran").exists()
        assert not connection.is_alive()


def test_a_host_that_forces_another_command(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"ForceCommand": "echo only this"})
    before = count_connections(server)
    with Connection(server.host, **server.connection_kwargs) as connection:
        with pytest.raises(LoginShellError, match="only this"):
            connection.run("true")
        assert count_connections(server) == before + 1
    assert_becomes_idle(server)


# Has waited since the beginning --------------------------------------------------------------------------------------


def test_a_cut_cable_is_noticed_by_ssh(cut_cable: tuple[float, BackgroundCommand]) -> None:
    begun, command = cut_cable
    with pytest.raises(ConnectionLostError, match="not responding") as caught:
        command.join(max(1.0, begun + 30 - time.monotonic()))
    # By ServerAlive after 20 s, in whole seconds, each late one being one more; TCP itself would take minutes.
    assert 10 < command.end_time - begun < 30
    assert caught.value.started is True
    assert "sleep 1022" in str(caught.value)
