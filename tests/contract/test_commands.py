"""Commands on every transport: exit codes, output, time-outs, directories, environments.

`case.script()` is for the fake host, which runs no commands: it says what a command would do.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping

import pytest

from lazycluster import (
    CommandFailedError,
    CommandStoppedError,
    CommandTimeoutError,
    Runtime,
    RuntimeClosedError,
    RuntimeTask,
    TaskExecutionError,
    WorkingDirectoryError,
)
from lazycluster.testing import FakeHost, Ran
from tests.awkward_text import TEXTS, VALUES
from tests.contract.conftest import HOST_ALIAS, TransportCase, execute_and_wait
from tests.waiting import wait_until


def last_env(fake: FakeHost) -> Mapping[str, str]:
    """Return the environment that the last command on a fake host got."""
    call = fake.calls[-1]
    assert isinstance(call, Ran)
    return call.env


# Exit codes and output -----------------------------------------------------------------------------------------------

OTHER_SIGNALS = (signal.SIGSEGV, signal.SIGHUP, signal.SIGINT)
"""Signals beside SIGKILL and SIGTERM; SIGSEGV would leave a core file."""


@pytest.mark.parametrize(
    ("command", "stdout", "stderr", "exit_code"),
    [
        ("true", "", "", 0),
        ("false", "", "", 1),
        ("echo out", "out\n", "", 0),
        ("echo err >&2; exit 3", "", "err\n", 3),
        ("printf 'no end'; printf both >&2; exit 255", "no end", "both", 255),
        ("echo 'it'\"'\"'s' \"$((6 * 7))\" ü", "it's 42 ü\n", "", 0),
        ("for n in 1 2\ndo echo $n\ndone", "1\n2\n", "", 0),
        ("kill -KILL $$", "", "", 128 + signal.SIGKILL),
        ("kill -TERM $$", "", "", 128 + signal.SIGTERM),
        ("exit 143", "", "", 143),
        *((f"echo out; echo err >&2; exit {code}", "out\n", "err\n", code) for code in (2, 77, 126, 127, 254)),
        *((f"ulimit -c 0; kill -{number.value} $$; sleep 5", "", "", 128 + number) for number in OTHER_SIGNALS),
    ],
)
def test_run_exit_code_and_output(
    case: TransportCase, runtime: Runtime, command: str, stdout: str, stderr: str, exit_code: int
) -> None:
    case.script(command, stdout=stdout, stderr=stderr, exit_code=exit_code)

    result = runtime.run(command)

    assert (result.exit_code, result.stdout, result.stderr) == (exit_code, stdout, stderr)
    assert result.command == command
    assert result.ok is (exit_code == 0)
    signals = {128 + number for number in (signal.SIGKILL, signal.SIGTERM, *OTHER_SIGNALS)}
    assert result.signal == (exit_code - 128 if exit_code in signals else None)


@pytest.mark.parametrize(("command", "exit_code"), [("no-such-program", 127), ("/", 126)])
def test_run_program_that_cannot_start_is_exit_code(
    case: TransportCase, runtime: Runtime, command: str, exit_code: int
) -> None:
    case.script(command, stderr=f"sh: {command}: cannot start", exit_code=exit_code)

    result = runtime.run(command)

    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert command in result.stderr


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_run_any_text_reaches_shell(case: TransportCase, runtime: Runtime, text: str) -> None:
    """The host's shell and the same shell on this machine give the same result."""
    shell = runtime.run(case.script("echo $0", stdout="/bin/sh\n")).stdout.strip()
    local = subprocess.run((shell, "-c", text), capture_output=True, check=False)
    case.script(text, stdout=local.stdout, stderr=local.stderr.decode(), exit_code=local.returncode)

    result = runtime.run(text)

    assert (result.stdout_bytes, result.stderr_bytes) == (local.stdout, local.stderr)
    assert (result.exit_code, result.command) == (local.returncode, text)


@pytest.mark.parametrize("unit", ["x", "é", "'", "\\", "\n", "%"])
def test_run_command_of_100_kilobytes_arrives_whole(case: TransportCase, runtime: Runtime, unit: str) -> None:
    size = 100_000 // len(unit.encode())
    quoted = "'" + (unit * size).replace("'", '"') + "'"
    command = case.script(f"printf %s {quoted} | wc -c", stdout=f"{size * len(unit.encode())}\n")

    result = runtime.run(command)

    assert (result.stdout.strip(), result.stderr) == (str(size * len(unit.encode())), "")


def test_run_syntax_error_is_exit_code(case: TransportCase, runtime: Runtime) -> None:
    result = runtime.run(case.script("if then; '", stderr="sh: 1: Syntax error", exit_code=2))

    assert result.exit_code in {1, 2}
    assert re.search(r"(?i)syntax|unterminated|unexpected", result.stderr)
    assert runtime.run(case.script("echo next", stdout="next\n")).stdout == "next\n"


def test_run_duration_covers_command(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("sleep 0.3", delay=0.3)
    started = time.monotonic()

    duration = runtime.run(command).duration

    assert 0.3 <= duration <= time.monotonic() - started


@pytest.mark.parametrize(
    ("words", "stdout", "exit_code"),
    [
        (["echo", "$HOME *", "~"], "$HOME * ~\n", 0),
        (["printf", "%s|", "a b", "", "it's", "-n", "ü\n"], "a b||it's|-n|ü\n|", 0),
        (["sh", "-c", "exit 3"], "", 3),
        (["/bin/sh", "-c", "kill -TERM $$"], "", 128 + signal.SIGTERM),
    ],
)
def test_run_words_uses_no_shell(
    case: TransportCase, runtime: Runtime, words: list[str], stdout: str, exit_code: int
) -> None:
    case.script(words, stdout=stdout, exit_code=exit_code)

    result = runtime.run(words)

    assert (result.exit_code, result.stdout, result.stderr) == (exit_code, stdout, "")
    assert result.command == shlex.join(words)


@pytest.mark.parametrize("program", ["no-such-program", "./no-such-program", "cd"])
def test_run_words_missing_program_is_exit_code_127(case: TransportCase, runtime: Runtime, program: str) -> None:
    case.script([program, "/"], stderr=f"{program}: not found", exit_code=127)

    result = runtime.run([program, "/"])

    assert (result.exit_code, result.stdout) == (127, "")
    assert program in result.stderr


def test_run_words_not_executable_is_exit_code_126(case: TransportCase, runtime: Runtime) -> None:
    (case.local_path(runtime.working_dir) / "file").write_text("text")
    case.script(["./file"], stderr="./file: Permission denied", exit_code=126)

    result = runtime.run(["./file"])

    assert (result.exit_code, result.stdout) == (126, "")
    assert "./file" in result.stderr


def test_run_words_finds_program_on_path_of_env(case: TransportCase, runtime: Runtime) -> None:
    program = case.local_path(runtime.working_dir) / "bin" / "own-program"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "own: $1"\n')
    program.chmod(0o755)
    case.script(["own-program", "a  b"], stdout="own: a  b\n")

    result = runtime.run(["own-program", "a  b"], env={"PATH": f"{runtime.working_dir}/bin:/usr/bin:/bin"})

    assert (result.exit_code, result.stdout, result.stderr) == (0, "own: a  b\n", "")


def test_task_words_run_without_shell(case: TransportCase, runtime: Runtime) -> None:
    words = case.script(["echo", "$HOME"], stdout="$HOME\n")
    task = RuntimeTask().run_command(words)

    execute_and_wait(runtime, task)

    assert task.results[0].stdout == "$HOME\n"
    assert task.results[0].step == "run_command(echo '$HOME')"


def test_run_env_is_merged_with_runtime_env(case: TransportCase, runtime: Runtime) -> None:
    runtime.add_env_variables({"A": "1", "B": "2"})
    command = case.script('echo "$A $B $WORKING_DIR"', stdout=f"1 3 {runtime.working_dir}\n")

    assert runtime.run(command, env={"B": "3"}).stdout == f"1 3 {runtime.working_dir}\n"

    if case.fake is not None:
        assert last_env(case.fake) == {"A": "1", "B": "3", "WORKING_DIR": runtime.working_dir}
    assert runtime.env_variables["B"] == "2"


def test_run_output_bytes_are_kept_and_text_replaced(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("printf '\\377\\000\\r\\n'", stdout=b"\xff\0\r\n")

    result = runtime.run(command)

    assert result.stdout_bytes == b"\xff\0\r\n"
    assert result.stdout == "\N{REPLACEMENT CHARACTER}\0\r\n"


def test_run_output_of_every_byte_is_kept(case: TransportCase, runtime: Runtime) -> None:
    octal = "".join(f"\\{byte:03o}" for byte in range(256))
    command = case.script(f"printf '{octal}'", stdout=bytes(range(256)))

    assert runtime.run(command).stdout_bytes == bytes(range(256))
    if case.fake is None:  # the scripted standard error of a fake host is text
        assert runtime.run(f"printf '{octal}' >&2").stderr_bytes == bytes(range(256))


def test_task_log_replaces_undecodable_bytes(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("printf 'a\\377\\376b\\303'", stdout=b"a\xff\xfeb\xc3")
    task = RuntimeTask().run_command(command)

    execute_and_wait(runtime, task)

    assert task.execution_log == ["a\ufffd\ufffdb\ufffd"]
    assert task.results[0].stdout == "a\ufffd\ufffdb\ufffd"


def test_run_large_output_is_complete(case: TransportCase, runtime: Runtime) -> None:
    size = 3_000_000
    command = case.script(f"head -c {size} /dev/zero", stdout=bytes(size))

    assert runtime.run(command).stdout_bytes == bytes(size)


# Standard input ------------------------------------------------------------------------------------------------------


def test_run_without_stdin_reads_nothing(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("cat; [ -t 0 ] || echo end", stdout="end\n")

    assert runtime.run(command).stdout == "end\n"


@pytest.mark.parametrize(
    "data",
    [b"x", bytes(range(256)) * 100, b"\n" * 70_000, os.urandom(5_000_000)],
    ids=["one byte", "every byte", "newlines", "5 MB"],
)
def test_run_stdin_arrives_whole(case: TransportCase, runtime: Runtime, data: bytes) -> None:
    assert runtime.run(case.script("cat", stdout=data), stdin=data).stdout_bytes == data
    assert runtime.run(case.script("wc -c", stdout=f"{len(data)}\n"), stdin=data).stdout.strip() == str(len(data))


# Arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", "nul\0"], ids=["empty", "NUL"])
def test_run_invalid_command_raises(runtime: Runtime, command: str) -> None:
    with pytest.raises(ValueError, match="command"):
        runtime.run(command)


@pytest.mark.parametrize("timeout", [0, -1, True, float("nan")])
def test_run_invalid_timeout_raises(runtime: Runtime, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        runtime.run("true", timeout=timeout)


# In tasks ------------------------------------------------------------------------------------------------------------


def test_task_log_has_output_of_each_step(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask("talk")
    for text in ("one", "two", "three"):
        task.run_command(case.script(f"echo {text}", stdout=f"{text}\n"))
    task.run_command(case.script("echo odd >&2", stderr="odd\n")).run_command(case.script("true"))

    execute_and_wait(runtime, task)

    assert task.execution_log == ["one\n", "two\n", "three\n", "odd\n", ""]
    assert [result.exit_code for result in task.results] == [0] * 5
    assert [result.stdout for result in task.results] == ["one\n", "two\n", "three\n", "", ""]
    assert [result.stderr for result in task.results] == ["", "", "", "odd\n", ""]
    assert [result.step for result in task.results][:2] == ["run_command(echo one)", "run_command(echo two)"]
    assert all(result.ok and result.error is None for result in task.results)


def test_task_failed_step_ends_task(case: TransportCase, runtime: Runtime) -> None:
    case.script("echo before", stdout="before\n")
    failing = case.script(
        "echo half; sleep 0.1; echo wrong >&2; exit 4", stdout="half\n", stderr="wrong\n", exit_code=4
    )
    task = RuntimeTask("three").run_command("echo before").run_command(failing)
    task.run_command(case.script("echo after > after", writes={"after": "after\n"}))

    with pytest.raises(TaskExecutionError) as caught:
        execute_and_wait(runtime, task)

    error = caught.value
    assert (error.host, error.task, error.step_index) == (HOST_ALIAS, "three", 1)
    assert isinstance(error.__cause__, CommandFailedError)
    assert (error.__cause__.command, error.__cause__.exit_code) == (failing, 4)
    assert error.__cause__.output == "half\nwrong\n"
    assert task.execution_log == ["before\n", "half\nwrong\n"]
    assert [(result.ok, result.exit_code) for result in task.results] == [(True, 0), (False, 4)]
    assert not (case.local_path(runtime.working_dir) / "after").exists()


def test_task_steps_share_working_directory(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask().run_command(case.script("mkdir sub; cd sub", writes={"sub/file": ""}))
    task.run_command(case.script("pwd", stdout=f"{runtime.working_dir}\n"))

    execute_and_wait(runtime, task)

    assert task.execution_log == ["", f"{runtime.working_dir}\n"], "each step starts in the working directory"
    assert (case.local_path(runtime.working_dir) / "sub").is_dir()


# Time ----------------------------------------------------------------------------------------------------------------


def test_run_timeout_raises_with_output(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("echo started; echo odd >&2; sleep 1000", stdout="started\n", stderr="odd\n", delay=1000)

    with pytest.raises(CommandTimeoutError) as caught:
        runtime.run(command, timeout=2)

    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.host, caught.value.command, caught.value.timeout) == (HOST_ALIAS, command, 2)
    assert (caught.value.stdout, caught.value.stderr) == ("started\n", "odd\n")
    assert runtime.run(case.script("echo on", stdout="on\n")).stdout == "on\n"


def test_run_timeout_of_a_millisecond_raises(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("sleep 1000", delay=1000)

    with pytest.raises(CommandTimeoutError):
        runtime.run(command, timeout=0.001)


def test_run_timeout_longer_than_command_has_no_effect(case: TransportCase, runtime: Runtime) -> None:
    assert runtime.run(case.script("sleep 0.01", delay=0.01), timeout=60).ok
    for timeout in (1e12, float("inf")):  # more than system calls can count
        assert runtime.run(case.script("sleep 0.01", delay=0.01), timeout=timeout).ok


def test_task_step_timeout_raises(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask().run_command(case.script("echo started; sleep 1000", stdout="started\n", delay=1000), timeout=2)

    with pytest.raises(TaskExecutionError) as caught:
        execute_and_wait(runtime, task)

    assert isinstance(caught.value.__cause__, CommandTimeoutError)
    assert task.execution_log == ["started\n"]
    assert task.results[0].exit_code is None
    assert isinstance(task.results[0].error, CommandTimeoutError)


def test_stop_process_ends_command_of_task(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("echo started; sleep 1000", stdout="started\n", delay=1000)
    task = RuntimeTask("sleeper").run_command(command).run_command("echo never")
    runtime.execute_task(task)
    assert task.process is not None
    [(key, process)] = runtime.get_processes(only_alive=True).items()
    assert process is task.process
    assert (runtime.alive_process_count, runtime.alive_task_process_count) == (1, 1)

    runtime.stop_process(key)

    assert not task.process.is_alive()
    assert task.process.exitcode == -signal.SIGTERM
    assert runtime.get_processes(only_alive=True) == {}
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert isinstance(caught.value.__cause__, CommandStoppedError)
    assert len(task.results) == 1


def test_runtime_close_stops_tasks(case: TransportCase) -> None:
    runtime = case.runtime()
    task = RuntimeTask().run_command(case.script("sleep 1000", delay=1000))
    runtime.execute_task(task)

    runtime.close()

    assert task.process is not None
    assert not task.process.is_alive()
    with pytest.raises((TaskExecutionError, RuntimeClosedError)):
        task.join()


# Directory and environment -------------------------------------------------------------------------------------------


def test_runtime_env_merges_option_and_added(case: TransportCase) -> None:
    awkward = "two\nlines, 'single', \"double\", $HOME `id` \\n ü !"
    runtime = case.runtime(env={"OF_OPTION": "1", "BOTH": "option"})
    runtime.add_env_variables({"AWKWARD": awkward, "BOTH": "added"})
    runtime.add_env_variables({"EMPTY": ""})
    expected = {"AWKWARD": awkward, "BOTH": "added", "EMPTY": "", "WORKING_DIR": runtime.working_dir, "OF_OPTION": "1"}
    assert runtime.env_variables == expected
    text = "".join(f"{value}|" for value in expected.values())
    command = 'printf "%s|" "$AWKWARD" "$BOTH" "$EMPTY" "$WORKING_DIR" "$OF_OPTION"'

    assert runtime.run(case.script(command, stdout=text)).stdout == text

    if case.fake is not None:  # a fake host runs no program that could read them
        assert last_env(case.fake) == expected


@pytest.mark.parametrize("name", VALUES)
def test_run_env_awkward_values_arrive(case: TransportCase, runtime: Runtime, name: str) -> None:
    command = f'printf "%s." "${name}"; env | grep -c "^{name}="'
    case.script(command, stdout=f"{VALUES[name]}.1\n")

    result = runtime.run(command, env={name: VALUES[name]})

    value, _, count = result.stdout.rpartition(".")
    assert (value, count.strip(), result.stderr) == (VALUES[name], "1", "")
    if case.fake is not None:
        assert last_env(case.fake)[name] == VALUES[name]


def test_set_env_variables_replaces_the_env_option(case: TransportCase) -> None:
    runtime = case.runtime(env={"OF_OPTION": "1"})
    assert runtime.env_variables == {"OF_OPTION": "1", "WORKING_DIR": runtime.working_dir}
    runtime.set_env_variables({"SET": "2"})
    expected = {"SET": "2", "WORKING_DIR": runtime.working_dir}
    assert runtime.env_variables == expected
    command = case.script('echo "${OF_OPTION-unset} $SET"', stdout="unset 2\n")

    assert runtime.run(command).stdout == "unset 2\n"

    if case.fake is not None:
        assert last_env(case.fake) == expected


def test_run_missing_working_dir_raises(case: TransportCase) -> None:
    runtime = case.runtime()
    missing = runtime.working_dir
    case.local_path(missing).rmdir()

    with pytest.raises(WorkingDirectoryError) as caught:
        runtime.run("true")

    assert (caught.value.host, caught.value.path) == (HOST_ALIAS, missing)
    assert caught.value.reason


# Commands at the same time -------------------------------------------------------------------------------------------


def test_tasks_run_at_same_time(case: TransportCase, runtime: Runtime) -> None:
    """The first task ends only when the second one runs."""
    waits = "until [ -e started ]; do sleep 0.01; done; echo seen"
    first = RuntimeTask("first").run_command(case.script(waits, stdout="seen\n", delay=0.01))
    second = RuntimeTask("second").run_command(case.script("touch started", writes={"started": ""}))

    runtime.execute_task(first)
    runtime.execute_task(second)
    second.join()
    first.join()

    assert first.execution_log == ["seen\n"]
    assert wait_until(lambda: runtime.alive_task_process_count == 0, timeout=10)
