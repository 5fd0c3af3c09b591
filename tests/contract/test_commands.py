"""Commands: how they end, what they print, where they run, and how they are stopped."""

from __future__ import annotations

import shlex
import signal
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
from tests.contract.conftest import HOST_ALIAS, TransportCase, execute_and_wait
from tests.waiting import wait_until

# How they end --------------------------------------------------------------------------------------------------------


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
    ],
)
def test_how_it_ended_and_what_it_printed(
    case: TransportCase, runtime: Runtime, command: str, stdout: str, stderr: str, exit_code: int
) -> None:
    case.script(command, stdout=stdout, stderr=stderr, exit_code=exit_code)

    result = runtime.run(command)

    assert (result.exit_code, result.stdout, result.stderr) == (exit_code, stdout, stderr)
    assert result.command == command
    assert result.ok is (exit_code == 0)
    assert result.signal == (exit_code - 128 if exit_code in {137, 143} else None)
    assert 0 <= result.duration < 10


@pytest.mark.parametrize(
    ("words", "stdout", "exit_code"),
    [
        (["echo", "$HOME *", "~"], "$HOME * ~\n", 0),
        (["printf", "%s|", "a b", "", "it's", "-n", "ü\n"], "a b||it's|-n|ü\n|", 0),
        (["sh", "-c", "exit 3"], "", 3),
        (["/bin/sh", "-c", "kill -TERM $$"], "", 128 + signal.SIGTERM),
    ],
)
def test_run_with_words_starts_a_program_without_a_shell(
    case: TransportCase, runtime: Runtime, words: list[str], stdout: str, exit_code: int
) -> None:
    case.script(words, stdout=stdout, exit_code=exit_code)

    result = runtime.run(words)

    assert (result.exit_code, result.stdout, result.stderr) == (exit_code, stdout, "")
    assert result.command == shlex.join(words)


@pytest.mark.parametrize("program", ["no-such-program", "./no-such-program", "cd"])
def test_run_with_words_of_no_program_is_exit_code_127(case: TransportCase, runtime: Runtime, program: str) -> None:
    case.script([program, "/"], stderr=f"{program}: not found", exit_code=127)

    result = runtime.run([program, "/"])

    assert (result.exit_code, result.stdout) == (127, "")
    assert program in result.stderr


def test_run_with_words_of_no_executable_is_exit_code_126(case: TransportCase, runtime: Runtime) -> None:
    (case.local_path(runtime.working_dir) / "file").write_text("text")
    case.script(["./file"], stderr="./file: Permission denied", exit_code=126)

    result = runtime.run(["./file"])

    assert (result.exit_code, result.stdout) == (126, "")
    assert "./file" in result.stderr


def test_run_with_words_finds_program_on_path_of_env(case: TransportCase, runtime: Runtime) -> None:
    program = case.local_path(runtime.working_dir) / "bin" / "own-program"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "own: $1"\n')
    program.chmod(0o755)
    case.script(["own-program", "a  b"], stdout="own: a  b\n")

    result = runtime.run(["own-program", "a  b"], env={"PATH": f"{runtime.working_dir}/bin:/usr/bin:/bin"})

    assert (result.exit_code, result.stdout, result.stderr) == (0, "own: a  b\n", "")


def test_task_with_words_runs_them_without_a_shell(case: TransportCase, runtime: Runtime) -> None:
    words = case.script(["echo", "$HOME"], stdout="$HOME\n")
    task = RuntimeTask().run_command(words)

    execute_and_wait(runtime, task)

    assert task.results[0].stdout == "$HOME\n"
    assert task.results[0].step == "run_command(echo '$HOME')"


def test_run_with_env_adds_to_the_environment_of_the_runtime(case: TransportCase, runtime: Runtime) -> None:
    runtime.add_env_variables({"A": "1", "B": "2"})
    command = case.script('echo "$A $B $WORKING_DIR"', stdout=f"1 3 {runtime.working_dir}\n")

    assert runtime.run(command, env={"B": "3"}).stdout == f"1 3 {runtime.working_dir}\n"

    if case.fake is not None:
        asked = case.fake.calls[-1]
        assert isinstance(asked, Ran)
        assert asked.env == {"A": "1", "B": "3", "WORKING_DIR": runtime.working_dir}
    assert runtime.env_variables["B"] == "2"


def test_output_is_bytes_too(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("printf '\\377\\000\\r\\n'", stdout=b"\xff\0\r\n")

    result = runtime.run(command)

    assert result.stdout_bytes == b"\xff\0\r\n"
    assert result.stdout == "\N{REPLACEMENT CHARACTER}\0\r\n"


def test_much_output_is_complete(case: TransportCase, runtime: Runtime) -> None:
    size = 3_000_000
    command = case.script(f"head -c {size} /dev/zero", stdout=bytes(size))

    assert runtime.run(command).stdout_bytes == bytes(size)


@pytest.mark.parametrize("command", ["", "nul\0"])
def test_a_command_that_is_none(runtime: Runtime, command: str) -> None:
    with pytest.raises(ValueError, match="command"):
        runtime.run(command)


@pytest.mark.parametrize("timeout", [0, -1, True, float("nan")])
def test_a_timeout_that_is_none(runtime: Runtime, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        runtime.run("true", timeout=timeout)


# In tasks ------------------------------------------------------------------------------------------------------------


def test_the_log_has_what_each_step_printed_in_order(case: TransportCase, runtime: Runtime) -> None:
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


def test_a_step_that_fails_ends_the_task(case: TransportCase, runtime: Runtime) -> None:
    case.script("echo before", stdout="before\n")
    case.script("echo wrong >&2; exit 4", stderr="wrong\n", exit_code=4)
    task = RuntimeTask("three").run_command("echo before").run_command("echo wrong >&2; exit 4")
    task.run_command(case.script("echo after > after", writes={"after": "after\n"}))

    with pytest.raises(TaskExecutionError) as caught:
        execute_and_wait(runtime, task)

    error = caught.value
    assert (error.host, error.task, error.step_index) == (HOST_ALIAS, "three", 1)
    assert isinstance(error.__cause__, CommandFailedError)
    assert (error.__cause__.command, error.__cause__.exit_code) == ("echo wrong >&2; exit 4", 4)
    assert "wrong" in str(error)
    assert task.execution_log == ["before\n", "wrong\n"]
    assert [result.ok for result in task.results] == [True, False]
    assert not (case.local_path(runtime.working_dir) / "after").exists()


def test_what_one_step_leaves_is_there_for_the_next(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask().run_command(case.script("mkdir sub; cd sub", writes={"sub/file": ""}))
    task.run_command(case.script("pwd", stdout=f"{runtime.working_dir}\n"))

    execute_and_wait(runtime, task)

    assert task.execution_log == ["", f"{runtime.working_dir}\n"], "each begins in the working directory"
    assert (case.local_path(runtime.working_dir) / "sub").is_dir()


# Time ----------------------------------------------------------------------------------------------------------------


def test_one_that_takes_longer_than_its_timeout_is_ended(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("echo begun; echo odd >&2; sleep 1000", stdout="begun\n", stderr="odd\n", delay=1000)
    begun = time.monotonic()

    with pytest.raises(CommandTimeoutError) as caught:
        runtime.run(command, timeout=0.5)

    assert isinstance(caught.value, TimeoutError)
    assert 0.4 < time.monotonic() - begun < 5
    assert (caught.value.host, caught.value.command, caught.value.timeout) == (HOST_ALIAS, command, 0.5)
    assert (caught.value.stdout, caught.value.stderr) == ("begun\n", "odd\n")
    assert runtime.run(case.script("echo on", stdout="on\n")).stdout == "on\n"


def test_one_that_ends_in_time_does_not_notice_its_timeout(case: TransportCase, runtime: Runtime) -> None:
    assert runtime.run(case.script("sleep 0.01", delay=0.01), timeout=60).ok
    for for_ever in (1e12, float("inf")):  # more than system calls can count
        assert runtime.run(case.script("sleep 0.01", delay=0.01), timeout=for_ever).ok


def test_a_timeout_of_a_step(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask().run_command(case.script("echo begun; sleep 1000", stdout="begun\n", delay=1000), timeout=0.3)

    with pytest.raises(TaskExecutionError) as caught:
        execute_and_wait(runtime, task)

    assert isinstance(caught.value.__cause__, CommandTimeoutError)
    assert task.execution_log == ["begun\n"]
    assert task.results[0].exit_code is None


def test_stopping_a_task_ends_its_command(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("echo begun; sleep 1000", stdout="begun\n", delay=1000)
    task = RuntimeTask("sleeper").run_command(command).run_command("echo never")
    runtime.execute_task(task)
    assert task.process is not None
    [(key, process)] = runtime.get_processes(only_alive=True).items()
    assert process is task.process
    assert (runtime.alive_process_count, runtime.alive_task_process_count) == (1, 1)
    begun = time.monotonic()

    runtime.stop_process(key)

    assert time.monotonic() - begun < 5
    assert not task.process.is_alive()
    assert task.process.exitcode == -signal.SIGTERM
    assert runtime.get_processes(only_alive=True) == {}
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert isinstance(caught.value.__cause__, CommandStoppedError)
    assert len(task.results) == 1


def test_closing_a_runtime_stops_its_tasks(case: TransportCase) -> None:
    runtime = case.runtime()
    task = RuntimeTask().run_command(case.script("sleep 1000", delay=1000))
    runtime.execute_task(task)

    runtime.close()

    assert task.process is not None
    assert not task.process.is_alive()
    with pytest.raises((TaskExecutionError, RuntimeClosedError)):
        task.join()


# Where they run ------------------------------------------------------------------------------------------------------


def last_env(fake: FakeHost) -> Mapping[str, str]:
    asked = fake.calls[-1]
    assert isinstance(asked, Ran)
    return asked.env


def test_the_environment(case: TransportCase) -> None:
    awkward = "two\nlines, 'single', \"double\", $HOME `id` \\n ü !"
    runtime = case.runtime(env={"OF_OPTION": "1", "BOTH": "option"})
    runtime.add_env_variables({"AWKWARD": awkward, "BOTH": "added"})
    runtime.add_env_variables({"EMPTY": ""})
    expected = {"AWKWARD": awkward, "BOTH": "added", "EMPTY": "", "WORKING_DIR": runtime.working_dir, "OF_OPTION": "1"}
    assert runtime.env_variables == expected
    text = "".join(f"{value}|" for value in expected.values())
    command = 'printf "%s|" "$AWKWARD" "$BOTH" "$EMPTY" "$WORKING_DIR" "$OF_OPTION"'

    assert runtime.run(case.script(command, stdout=text)).stdout == text

    if case.fake is not None:  # nothing reads the variables there; this is what would
        assert last_env(case.fake) == expected


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


def test_a_working_directory_that_is_not_there(case: TransportCase) -> None:
    runtime = case.runtime()
    case.local_path(runtime.working_dir).rmdir()

    with pytest.raises(WorkingDirectoryError) as caught:
        runtime.run("true")

    assert (caught.value.host, caught.value.path) == (HOST_ALIAS, runtime.working_dir)
    assert caught.value.reason, "per step it is in the words of the host's shell"


# Several at once -----------------------------------------------------------------------------------------------------


def test_tasks_run_at_the_same_time(case: TransportCase, runtime: Runtime) -> None:
    """The first ends when the second has begun."""
    waits = "until [ -e begun ]; do sleep 0.01; done; echo seen"
    first = RuntimeTask("first").run_command(case.script(waits, stdout="seen\n", delay=0.01))
    second = RuntimeTask("second").run_command(case.script("touch begun", writes={"begun": ""}))

    runtime.execute_task(first)
    runtime.execute_task(second)
    second.join()
    first.join()

    assert first.execution_log == ["seen\n"]
    assert wait_until(lambda: runtime.alive_task_process_count == 0, timeout=10)
