"""Standard input, and output while the command runs."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from lazycluster import CommandTimeoutError, ConnectionLostError, Runtime
from lazycluster.results import Stream
from tests.contract.conftest import HOST_ALIAS, TransportCase


def test_run_stdin_is_read_by_command(case: TransportCase, runtime: Runtime) -> None:
    command = case.script('echo "$X"; cat', stdout="set\nread")

    assert runtime.run(command, env={"X": "set"}, stdin=b"read").stdout == "set\nread"


def test_run_large_stdin_is_complete(case: TransportCase, runtime: Runtime) -> None:
    data = os.urandom(3_000_000)

    assert runtime.run(case.script("cat", stdout=data), stdin=data).stdout_bytes == data


@pytest.mark.parametrize("name", ["no-identifier", "", "1ST", "A=B"])
def test_run_invalid_env_name_is_refused(runtime: Runtime, name: str) -> None:
    with pytest.raises(ValueError):
        runtime.run("true", env={name: "x"})


def test_run_on_output_gets_each_stream_in_order(case: TransportCase, runtime: Runtime) -> None:
    """The command prints to standard error after its output was seen."""
    seen: list[tuple[Stream, bytes]] = []
    go_file = case.local_path(runtime.working_dir) / "go"
    command = "echo out; until [ -e go ]; do sleep 0.01; done; echo err >&2; exit 5"
    case.script(command, stdout="out\n", stderr="err\n", exit_code=5)

    def on_output(stream: Stream, data: bytes) -> None:
        seen.append((stream, data))
        go_file.touch()

    result = runtime.run(command, on_output=on_output)

    assert seen == [(Stream.STDOUT, b"out\n"), (Stream.STDERR, b"err\n")]
    assert (result.output, result.exit_code) == ("out\nerr\n", 5)


def test_run_on_output_is_called_before_timeout(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("echo started; sleep 1000", stdout="started\n", delay=1000)
    seen = bytearray()

    with pytest.raises(CommandTimeoutError) as caught:
        runtime.run(command, timeout=2.0, on_output=lambda _stream, data: seen.extend(data))

    assert bytes(seen) == caught.value.stdout_bytes == b"started\n"


def test_close_runtime_ends_run_in_another_thread(case: TransportCase) -> None:
    """Per step the host may still report that the command was killed."""
    runtime = case.runtime()
    command = case.script("echo started; sleep 1000", stdout="started\n", delay=1000)
    started = threading.Event()
    endings: list[object] = []

    def run() -> None:
        try:
            endings.append(runtime.run(command, on_output=lambda _stream, _data: started.set()).signal)
        except ConnectionLostError as error:
            endings.append((error.host, error.command, error.started))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(30)

    runtime.close()

    thread.join(30)
    assert endings == [(HOST_ALIAS, command, True)] or (case.kind == "per-command" and endings == [signal.SIGTERM])
