"""The options of `run()`: directories, checks, callbacks, limits of the output."""

from __future__ import annotations

import io
import os
import subprocess
import threading
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from lazycluster import (
    CommandFailedError,
    CommandTimeoutError,
    OutputLimitError,
    Runtime,
    WorkingDirectoryError,
)
from lazycluster.results import CommandResult, Stream
from lazycluster.testing import Ran
from tests.contract.conftest import CONNECTION_KINDS, HOST_ALIAS, TRANSPORT_KINDS, TransportCase
from tests.keyboard_interrupt import library_thread_names
from tests.processes import is_alive
from tests.waiting import assert_eventually

STREAMING_KINDS = TRANSPORT_KINDS[1:2]
"""The resident transport. The others read all of a file before the command starts."""

# Directories ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cwd", ["sub dir", "./sub dir", "sub dir/../sub dir", "-sub", "~sub", "./~sub"])
def test_run_relative_cwd_starts_in_working_directory(case: TransportCase, runtime: Runtime, cwd: str) -> None:
    directory = runtime.working_dir + "/" + {"-sub": "-sub", "./~sub": "~sub"}.get(cwd, "sub dir")
    case.local_path(directory).mkdir()
    case.script("pwd -P", stdout=f"{directory}\n")

    if cwd == "~sub":  # the home directory of an account, which does not exist
        with pytest.raises(WorkingDirectoryError):
            runtime.run("pwd -P", cwd=cwd)
        return
    result = runtime.run("pwd -P", cwd=cwd)

    assert result.stdout.rstrip("\n") == os.path.realpath(directory) if case.fake is None else directory


def test_run_absolute_cwd_stays_and_tilde_is_of_host(case: TransportCase, runtime: Runtime) -> None:
    (case.home / "of-home").mkdir(exist_ok=True)
    case.script("ls -d of-home", stdout="of-home\n")
    case.script("pwd", stdout=f"{case.home}/of-home\n")

    assert runtime.run("ls -d of-home", cwd="~").stdout == "of-home\n"
    for cwd in ("~/of-home", f"{case.home}/of-home" if case.fake is None else "~/of-home"):
        assert runtime.run("pwd", cwd=cwd).stdout.endswith("/of-home\n")


def test_run_cwd_keeps_variable_of_working_directory(case: TransportCase, runtime: Runtime) -> None:
    case.local_path(runtime.working_dir).joinpath("sub").mkdir()
    command = case.script('echo "$WORKING_DIR"', stdout=f"{runtime.working_dir}\n")

    assert runtime.run(command, cwd="sub").stdout == f"{runtime.working_dir}\n"


def test_run_missing_cwd_raises_working_directory_error(case: TransportCase, runtime: Runtime) -> None:
    case.script("true")

    with pytest.raises(WorkingDirectoryError) as caught:
        runtime.run("true", cwd="missing")

    assert caught.value.path == f"{runtime.working_dir}/missing"


@pytest.mark.parametrize("cwd", ["", "a\0b"])
def test_run_invalid_cwd_is_refused(runtime: Runtime, cwd: str) -> None:
    with pytest.raises(ValueError, match=r"^cwd must be text, not empty and without NUL"):
        runtime.run("true", cwd=cwd)


# Standard input and exit status --------------------------------------------------------------------------------------


def test_run_stdin_text_is_utf_8(case: TransportCase, runtime: Runtime) -> None:
    assert runtime.run(case.script("cat", stdout="ü☃\n"), stdin="ü☃\n").stdout == "ü☃\n"


def test_run_stdin_file_is_read_in_pieces(case: TransportCase, runtime: Runtime, tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    (tmp_path / "file").write_bytes(data)
    case.script("cat", stdout=data)

    with (tmp_path / "file").open("rb") as file:
        assert runtime.run("cat", stdin=file).stdout_bytes == data

    if case.fake is not None:
        call = case.fake.calls[-1]
        assert isinstance(call, Ran)
        assert call.stdin == data


@pytest.mark.parametrize("data", [b"", b"x"])
def test_run_stdin_small_file_ends(case: TransportCase, runtime: Runtime, data: bytes) -> None:
    assert runtime.run(case.script("cat", stdout=data), stdin=io.BytesIO(data)).stdout_bytes == data


def test_run_stdin_pipe_is_read_to_its_end(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("wc -c", stdout="3000000\n")

    with subprocess.Popen(("head", "-c", "3000000", "/dev/zero"), stdout=subprocess.PIPE) as producer:
        assert producer.stdout is not None
        result = runtime.run(command, stdin=cast("BinaryIO", producer.stdout))

    assert result.stdout.strip() == "3000000"


@pytest.mark.parametrize("case", STREAMING_KINDS, indirect=True)
def test_run_stdin_pipe_reaches_running_command(runtime: Runtime) -> None:
    """The second line is written when the command has printed the first."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb", buffering=0) as target:
        target.write(b"one\n")

        def on_line(_stream: Stream, line: str) -> None:
            if line == "one":
                target.write(b"two\n")
                target.close()

        result = runtime.run("cat", stdin=cast("BinaryIO", source), on_line=on_line)

    assert result.stdout == "one\ntwo\n"


@pytest.mark.parametrize("case", STREAMING_KINDS, indirect=True)
def test_run_stdin_pipe_of_ended_command_is_left(runtime: Runtime) -> None:
    """The pipe stays open and empty, so a wait for its end would last for ever."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb", buffering=0) as target:
        target.write(b"one\n")
        result = runtime.run("read line; echo $line; exit 3", stdin=cast("BinaryIO", source))

        assert (result.stdout, result.exit_code) == ("one\n", 3)
        assert library_thread_names("lazycluster-input") == []


@pytest.mark.parametrize("case", STREAMING_KINDS, indirect=True)
def test_run_stdin_endless_file_stops_with_command(runtime: Runtime) -> None:
    with Path("/dev/zero").open("rb") as source:
        assert runtime.run("head -c 3 | wc -c", stdin=source).stdout.strip() == "3"


def test_run_stdin_idle_pipe_times_out(case: TransportCase, runtime: Runtime) -> None:
    case.script("cat", delay=1000)
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb"), pytest.raises(CommandTimeoutError):
        runtime.run("cat", stdin=cast("BinaryIO", source), timeout=0.5)

    assert library_thread_names("lazycluster-input") == []


def test_run_stdin_error_of_file_ends_command(case: TransportCase, runtime: Runtime) -> None:
    class Broken(io.RawIOBase):
        def read(self, _size: int = -1, /) -> bytes:
            raise OSError("broken")

    case.script("echo $$ >pid; cat; sleep 1000")

    with pytest.raises(OSError, match="broken"):
        runtime.run("echo $$ >pid; cat; sleep 1000", stdin=cast("BinaryIO", Broken()))


def test_run_stdin_of_other_type_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match=r"^stdin must be text, bytes or a binary file, got StringIO$"):
        runtime.run("cat", stdin=io.StringIO("text"))  # type: ignore[arg-type]  # the mistake


def test_run_check_raises_command_failed_error(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("echo out; echo why >&2; exit 3", stdout="out\n", stderr="why\n", exit_code=3)

    with pytest.raises(CommandFailedError) as caught:
        runtime.run(command, check=True)

    error = caught.value
    assert (error.host, error.command, error.exit_code) == (HOST_ALIAS, command, 3)
    assert sorted(error.output.splitlines()) == ["out", "why"]


def test_run_check_returns_result_of_success(case: TransportCase, runtime: Runtime) -> None:
    assert runtime.run(case.script("echo out", stdout="out\n"), check=True).stdout == "out\n"


def test_result_check_knows_its_host(case: TransportCase, runtime: Runtime) -> None:
    result = runtime.run(case.script("exit 3", exit_code=3))

    assert result.host == HOST_ALIAS
    with pytest.raises(CommandFailedError, match=f"^{HOST_ALIAS}: "):
        result.check()


@pytest.mark.parametrize("case", CONNECTION_KINDS, indirect=True)
def test_connection_run_takes_the_same_options(case: TransportCase) -> None:
    connection = case.connection()
    lines: list[str] = []
    command = case.script("cat; exit 4", stdout="text", exit_code=4)

    with pytest.raises(CommandFailedError):
        connection.run(command, stdin="text", check=True, on_line=lambda _stream, line: lines.append(line))
    with pytest.raises(OutputLimitError):
        connection.run(command, stdin=io.BytesIO(b"text"), max_output=3)

    assert lines == ["text"]


# Callbacks -----------------------------------------------------------------------------------------------------------


def test_run_on_line_gets_lines_while_command_runs(case: TransportCase, runtime: Runtime) -> None:
    """The command goes on when its first line was seen."""
    go_file = case.local_path(runtime.working_dir) / "go"
    command = "echo öne; until [ -e go ]; do sleep 0.01; done; printf 'err' >&2; printf '\\nrest'"
    case.script(command, stdout="öne\n\nrest", stderr="err")
    seen: list[tuple[Stream, str]] = []

    def on_line(stream: Stream, line: str) -> None:
        seen.append((stream, line))
        go_file.touch()

    result = runtime.run(command, on_line=on_line)

    assert [line for stream, line in seen if stream is Stream.STDOUT] == ["öne", "", "rest"]
    assert [line for stream, line in seen if stream is Stream.STDERR] == ["err"]
    assert result.stdout == "öne\n\nrest"


def test_run_callback_error_ends_command_on_host(case: TransportCase, runtime: Runtime) -> None:
    """The command says nothing after the line at which the callback raises."""
    command = case.script("echo $$; exec sleep 1000", stdout="0\n", delay=1000)
    lines: list[str] = []

    def on_line(_stream: Stream, line: str) -> None:
        lines.append(line)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        runtime.run(command, on_line=on_line)

    if case.fake is None:
        assert_eventually(lambda: not is_alive(int(lines[0])), "the command has ended")
    assert library_thread_names("lazycluster-output") == []


def test_run_callback_runs_in_one_other_thread(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("echo 1; echo 2 >&2", stdout="1\n", stderr="2\n")
    threads: set[str] = set()

    runtime.run(
        command,
        on_output=lambda *_: threads.add(threading.current_thread().name),
        on_line=lambda *_: threads.add(threading.current_thread().name),
    )

    assert threads == {"lazycluster-output"}


def test_run_callback_may_run_commands_itself(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("echo outer", stdout="outer\n")
    inner = case.script("echo inner", stdout="inner\n")
    results: list[CommandResult] = []

    runtime.run(command, on_line=lambda *_: results.append(runtime.run(inner, on_line=lambda *_: None)))

    assert [result.stdout for result in results] == ["inner\n"]


def test_run_blocked_callback_still_times_out(case: TransportCase, runtime: Runtime) -> None:
    """The callback takes nothing, and the command prints more than anything between them takes."""
    command = case.script("head -c 30000000 /dev/zero; sleep 1000", stdout=bytes(30_000_000), delay=1000)
    ended = threading.Event()

    def on_output(_stream: Stream, _data: bytes) -> None:
        ended.wait(2.5)  # some seconds after the time limit the call does not wait for it

    with pytest.raises(CommandTimeoutError):
        runtime.run(command, timeout=1.0, on_output=on_output)

    ended.set()
    assert_eventually(lambda: library_thread_names("lazycluster-output") == [], "the thread ends")


# Limits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stream", "redirection"), [("stdout", ""), ("stderr", " >&2")])
def test_run_over_max_output_ends_command(case: TransportCase, runtime: Runtime, stream: str, redirection: str) -> None:
    command = f"echo $$ >pid; exec yes{redirection}"
    flood = "y\n" * 100_000
    case.script(command, stdout=flood * (stream == "stdout"), stderr=flood * (stream == "stderr"), delay=1000)

    with pytest.raises(OutputLimitError) as caught:
        runtime.run(command, max_output=100_000)

    error = caught.value
    assert (error.host, error.command, error.limit, error.stream) == (HOST_ALIAS, command, 100_000, stream)
    outputs = {"stdout": error.stdout, "stderr": error.stderr}
    assert len(outputs.pop(stream)) == 2**16
    assert list(outputs.values()) == [""]
    if case.fake is None:
        pid = int(runtime.run("cat pid").stdout)
        assert_eventually(lambda: not is_alive(pid), "the command has ended")


def test_run_at_max_output_is_kept_whole(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("printf 1234; printf 123 >&2", stdout="1234", stderr="123")

    assert runtime.run(command, max_output=4).stdout == "1234"


def test_run_callback_without_limit_keeps_tail(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("head -c 20000000 /dev/zero; echo end", stdout=bytes(20_000_000) + b"end\n")
    seen: list[int] = []

    result = runtime.run(command, on_output=lambda _stream, data: seen.append(len(data)), max_output=None)

    assert sum(seen) == 20_000_004
    assert result.stdout_bytes == bytes(2**16 - 4) + b"end\n"
