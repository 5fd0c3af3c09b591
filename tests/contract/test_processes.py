"""Started processes: their streams, their end, and the end of their runtime."""

from __future__ import annotations

import math
import os
import signal
import threading
import weakref
from pathlib import Path

import pytest

from lazycluster import RemoteProcess, Runtime, RuntimeClosedError, WorkingDirectoryError
from tests.contract.conftest import HOST_ALIAS, TRANSPORT_KINDS, TransportCase
from tests.keyboard_interrupt import interrupt
from tests.waiting import assert_eventually

SLEEP = "sleep 1000"


def start_sleep(case: TransportCase, runtime: Runtime, *, text: str = SLEEP) -> RemoteProcess:
    return runtime.start(case.script(text, delay=math.inf))


# Streams -------------------------------------------------------------------------------------------------------------


def test_start_returns_process_with_streams_and_exit_code(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("echo out; echo err >&2; exit 3", stdout="out\n", stderr="err\n", exit_code=3)

    with runtime.start(command) as process:
        assert process.stdout.readline() == b"out\n"
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"err\n")
        assert process.wait() == process.wait(5) == process.poll() == process.exit_code == process.exitcode == 3
        assert (process.stopped, process.is_alive(), process.pid) == (False, False, None)
        assert (process.host, process.working_dir, process.name) == (HOST_ALIAS, runtime.working_dir, command)


def test_start_stdin_none_is_written_while_it_runs(case: TransportCase, runtime: Runtime) -> None:
    command = case.script('while read -r word; do echo "got $word"; done', stdout="got a\ngot b\n", reads_stdin=True)

    with runtime.start(command) as process:
        process.stdin.write(b"a\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"got a\n"
        assert process.poll() is None
        process.stdin.write(b"b\n")
        process.stdin.close()
        assert process.stdout.readlines() == [b"got b\n"]
        assert process.wait() == 0


def test_start_stdin_bytes_are_sent_and_closed(case: TransportCase, runtime: Runtime) -> None:
    with runtime.start(case.script("cat", stdout="all of it"), stdin=b"all of it") as process:
        assert process.stdin.closed
        assert process.stdout.read() == b"all of it"
        assert process.wait() == 0


def test_start_stdin_closed_keeps_process_running(case: TransportCase, runtime: Runtime) -> None:
    with start_sleep(case, runtime, text="cat; echo read; exec sleep 1000") as process:
        process.stdin.close()
        if case.fake is None:
            assert process.stdout.readline() == b"read\n"
        assert process.poll() is None


def test_start_large_input_and_output_are_complete(case: TransportCase, runtime: Runtime) -> None:
    data = os.urandom(3_000_000)
    received = bytearray()

    with runtime.start(case.script("cat", stdout=data, reads_stdin=True)) as process:

        def read() -> None:
            received.extend(process.stdout.read())

        reader = threading.Thread(target=read)
        reader.start()
        process.stdin.write(data)
        process.stdin.close()
        reader.join(60)
        assert process.wait() == 0

    assert bytes(received) == data


def test_start_stdin_of_ended_process_is_broken_pipe(case: TransportCase, runtime: Runtime) -> None:
    with runtime.start(case.script("true")) as process:
        process.wait()
        process.stdin.write(b"unread")
        with pytest.raises(BrokenPipeError):
            process.stdin.flush()


def test_start_closed_stream_drops_output(case: TransportCase, runtime: Runtime) -> None:
    """The process is not kept from printing."""
    size = 20_000_000
    command = case.script(f"head -c {size} /dev/zero >&2; echo done", stdout="done\n", stderr="0" * size)

    with runtime.start(command) as process:
        process.stderr.close()
        assert process.stdout.read() == b"done\n"
        assert process.wait() == 0


# Options -------------------------------------------------------------------------------------------------------------


def test_start_cwd_and_env_are_those_of_process(case: TransportCase, runtime: Runtime) -> None:
    runtime.create_dir("sub")
    path = f"{runtime.working_dir}/sub"
    command = case.script('echo "$A $B"; pwd', stdout=f"a b\n{path}\n")
    runtime.add_env_variables({"A": "a"})

    for cwd in ("sub", path):
        with runtime.start(command, cwd=cwd, env={"B": "b"}) as process:
            assert process.stdout.read().decode() == f"a b\n{path}\n"
            assert process.working_dir == path


def test_start_words_start_a_program(case: TransportCase, runtime: Runtime) -> None:
    with runtime.start(case.script(["echo", "two  spaces", "$HOME"], stdout="two  spaces $HOME\n")) as process:
        assert process.stdout.read() == b"two  spaces $HOME\n"


def test_start_missing_directory_is_error_of_wait(runtime: Runtime) -> None:
    with runtime.start("true", cwd="missing") as process:
        for use in (process.wait, process.poll, process.stdout.read):
            with pytest.raises(WorkingDirectoryError):
                use()
        assert (process.exit_code, process.stopped) == (None, False)


def test_start_own_directory_lives_as_long_as_process(case: TransportCase, runtime: Runtime) -> None:
    with start_sleep(case, runtime) as other:
        process = runtime.start(case.script("pwd; exec cat", reads_stdin=True), own_directory=True, name="own")
        directory = case.local_path(process.working_dir)
        assert process.working_dir not in {runtime.working_dir, other.working_dir}
        assert directory.is_dir()
        if case.fake is None:
            assert process.stdout.readline().decode() == f"{process.working_dir}\n"

        process.stdin.close()

        assert process.wait() == 0
        assert not directory.exists()
        process.close()


def test_start_on_exit_is_called_once_in_another_thread(case: TransportCase, runtime: Runtime) -> None:
    calls: list[tuple[RemoteProcess, int | None, str]] = []

    def on_exit(ended: RemoteProcess) -> None:
        calls.append((ended, ended.wait(), threading.current_thread().name))

    process = runtime.start(case.script("exit 4", exit_code=4), on_exit=on_exit)

    assert_eventually(lambda: bool(calls), "on_exit is called")
    process.close()
    assert calls == [(process, 4, f"process on {HOST_ALIAS}")]


def test_start_on_exit_raising_is_logged(
    case: TransportCase, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    def on_exit(_ended: RemoteProcess) -> None:
        raise LookupError("in on_exit")

    with runtime.start(case.script("true"), on_exit=on_exit) as process:
        assert process.wait() == 0
        assert_eventually(lambda: "in on_exit" in caplog.text, "the error is logged")


def test_start_process_is_listed_under_its_key(case: TransportCase, runtime: Runtime) -> None:
    process = runtime.start(case.script(SLEEP, delay=math.inf), name="sleeper")

    assert process.name == "sleeper"
    assert process.key.startswith("sleeper-")
    assert runtime.get_processes(only_alive=True) == {process.key: process}
    runtime.stop_process(process.key)
    assert (process.stopped, process.exitcode) == (True, -signal.SIGTERM)
    assert runtime.get_process(process.key) is process
    process.close()
    assert process.key not in runtime.get_processes()


@pytest.mark.parametrize(
    "start",
    [
        lambda runtime: runtime.start(""),
        lambda runtime: runtime.start("true", name=""),
        lambda runtime: runtime.start("true", cwd="/", own_directory=True),
        lambda runtime: runtime.start("true", env={"A=": ""}),
        lambda runtime: runtime.start("true", stdin="text"),
        lambda runtime: runtime.start("true", on_exit="text"),
    ],
)
def test_start_invalid_argument_is_refused(runtime: Runtime, start: object) -> None:
    assert callable(start)
    with pytest.raises(ValueError):
        start(runtime)


# The end -------------------------------------------------------------------------------------------------------------


def test_wait_timeout_lets_process_go_on(case: TransportCase, runtime: Runtime) -> None:
    with start_sleep(case, runtime) as process:
        with pytest.raises(TimeoutError):
            process.wait(0.05)
        process.join(0.05)
        assert (process.is_alive(), process.poll(), process.exit_code, process.exitcode) == (True, None, None, None)


def test_wait_interrupted_lets_process_go_on(case: TransportCase, runtime: Runtime) -> None:
    with start_sleep(case, runtime) as process:
        interrupt(process.wait, lambda: True)
        interrupt(process.stdout.read, lambda: True, in_other_thread=True)
        assert process.is_alive()


@pytest.mark.parametrize(("method", "exit_code"), [("terminate", 143), ("kill", 137), ("close", 143)])
def test_stop_process_ends_it_and_is_told_apart(
    case: TransportCase, runtime: Runtime, method: str, exit_code: int
) -> None:
    """SIGTERM comes first in any case, so a resident host reports 143 for a process that was killed, too."""
    process = start_sleep(case, runtime)

    getattr(process, method)()

    assert (process.stopped, process.is_alive()) == (True, False)
    assert process.wait() == process.exit_code
    assert process.exit_code in {exit_code, 143}
    process.close()


def test_kill_process_leaves_no_grace_period(case: TransportCase) -> None:
    runtime = case.runtime(grace=100_000)
    command = case.script("trap '' TERM; echo ready; while :; do sleep 1; done", stdout="ready\n", delay=math.inf)

    with runtime.start(command) as open_stdin, runtime.start(command, stdin=b"") as given_stdin:
        for process in (open_stdin, given_stdin):
            assert process.stdout.readline() == b"ready\n"
            process.kill()
            assert (process.stopped, process.wait()) == (True, 137)


def test_terminate_keeps_output_and_ends_streams(case: TransportCase, runtime: Runtime) -> None:
    with runtime.start(case.script("echo out; exec sleep 1000", stdout="out\n", delay=math.inf)) as process:
        assert process.stdout.read(1) == b"o"
        process.terminate()
        assert (process.stdout.read(), process.stderr.read()) == (b"ut\n", b"")


def test_terminate_ended_process_changes_nothing(case: TransportCase, runtime: Runtime) -> None:
    with runtime.start(case.script("exit 5", exit_code=5)) as process:
        process.wait()
        process.terminate()
        process.kill()
        assert (process.exit_code, process.stopped) == (5, False)


def test_close_runtime_ends_its_processes(case: TransportCase) -> None:
    runtime = case.runtime()
    processes = [start_sleep(case, runtime) for _ in range(3)]
    directory = runtime.start(case.script(SLEEP, delay=math.inf), own_directory=True).working_dir

    runtime.close()

    assert [(process.stopped, process.wait(), process.stdout.read()) for process in processes] == [(True, 143, b"")] * 3
    assert not case.local_path(directory).exists()
    with pytest.raises(RuntimeClosedError):
        runtime.start("true")


def test_start_process_keeps_its_runtime_open(case: TransportCase) -> None:
    process = case.stack.enter_context(start_sleep(case, Runtime(HOST_ALIAS, **case.options)))

    assert process.poll() is None
    process.terminate()
    assert process.stopped


def test_start_ended_process_keeps_no_runtime(case: TransportCase) -> None:
    runtime = Runtime(HOST_ALIAS, **case.options)
    process = runtime.start(case.script("true"), on_exit=lambda _ended, kept=runtime: kept.host)  # type: ignore[misc]
    working_dir, reference = case.local_path(runtime.working_dir), weakref.ref(runtime)
    assert process.wait() == 0

    del runtime

    assert_eventually(lambda: reference() is None, "the runtime is gone")
    assert_eventually(lambda: not working_dir.exists(), "it was cleaned up")


def test_start_many_at_once_are_independent(case: TransportCase, runtime: Runtime) -> None:
    """Per command, no more than `max_sessions` run at once."""
    count = 8 if case.kind == "per-command" else 100
    command = case.script("read -r word; echo $word", reads_stdin=True)

    processes = [case.stack.enter_context(runtime.start(command)) for _ in range(count)]
    for number, process in enumerate(processes):
        process.stdin.write(b"%d\n" % number)
        process.stdin.close()

    outputs = [process.stdout.read() for process in processes]
    assert outputs == [b"%d\n" % number if case.fake is None else b"" for number in range(count)]


# A slow reader -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", TRANSPORT_KINDS[:2], indirect=True)
def test_unread_output_stops_writer_and_no_other(case: TransportCase, runtime: Runtime, host_dir: Path) -> None:
    """The process counts the MiB that it has printed. It goes on as soon as the output is read."""
    command = "i=0; while :; do head -c 1048576 /dev/zero; i=$((i + 1)); echo $i >next; mv next printed; done"

    def printed() -> int:
        return int((host_dir / "printed").read_text()) if (host_dir / "printed").exists() else 0

    with runtime.start(command) as process:
        assert_eventually(lambda: printed() >= 3, "it prints without a reader", 30)
        for number in range(30):
            assert runtime.run(["echo", f"{number}"]).stdout == f"{number}\n"
        assert printed() < 16, "the window, the buffers and the pipes are full"
        for _ in range(30):
            assert len(process.stdout.read(1 << 20)) == 1 << 20
        assert_eventually(lambda: printed() >= 30, "it goes on", 30)


@pytest.mark.parametrize("case", TRANSPORT_KINDS[:2], indirect=True)
def test_terminate_process_that_prints_without_reader(case: TransportCase, runtime: Runtime) -> None:
    with runtime.start("exec yes") as process:
        assert process.stdout.read(2) == b"y\n"
        process.terminate()
        assert process.stopped
        assert set(process.stdout.read()) <= set(b"y\n")
