"""The fake host: scripted answers, its hardware and files, and its records of calls.

That it does the same as a real host is tested in `tests/contract`.
"""

from __future__ import annotations

import math
import pickle
import platform
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from lazycluster import (
    CommandTimeoutError,
    Connection,
    ConnectionLostError,
    Gpu,
    InvalidRuntimeError,
    PythonNotFoundError,
    PythonVersionMismatchError,
    Runtime,
    RuntimeTask,
    TaskExecutionError,
)
from lazycluster._functions.serialize import serialize_call
from lazycluster.testing import (
    AskedForPorts,
    Called,
    DeletedDir,
    FakeHost,
    Fetched,
    MadeDir,
    OpenedTunnel,
    Ran,
    Sent,
    UnexpectedCommandError,
)


@pytest.fixture
def runtime(fake_host: FakeHost) -> Iterator[Runtime]:
    with Runtime("any-host") as runtime:
        yield runtime


# Answers of commands -------------------------------------------------------------------------------------------------


def test_fake_host_example(fake_host: FakeHost) -> None:
    fake_host.on("nproc", stdout="8\n")

    with Runtime("any-host") as runtime:
        assert runtime.run("nproc").stdout == "8\n"

    assert fake_host.commands == ["nproc"]


def test_on_text_and_pattern_match_whole_command(fake_host: FakeHost, runtime: Runtime) -> None:
    fake_host.on("ls", stdout="text")
    fake_host.on(re.compile("ls -[la]+"), stdout="pattern")

    assert runtime.run("ls").stdout == "text"
    assert runtime.run("ls -la").stdout == "pattern"
    for command in ("ls ", "ls -l; rm -rf x", "echo; ls -l"):
        with pytest.raises(UnexpectedCommandError):
            runtime.run(command)


def test_on_function_picks_by_record(fake_host: FakeHost, runtime: Runtime) -> None:
    fake_host.on(lambda asked: asked.stdin == b"1" or asked.env.get("X") == "1", stdout="picked")
    fake_host.on(lambda asked: asked.command.startswith("make") and asked.timeout == 5, exit_code=2)

    assert runtime.run("make all", timeout=5).exit_code == 2
    runtime.set_env_variables({"X": "1"})
    assert runtime.run("anything").stdout == "picked"
    with Connection("any-host") as connection:
        assert connection.run("cat", stdin=b"1").stdout == "picked"


def test_on_last_answer_wins_up_to_times(fake_host: FakeHost, runtime: Runtime) -> None:
    fake_host.on("flaky", stdout="always")
    fake_host.on("flaky", exit_code=1, times=2)
    fake_host.on("flaky", exit_code=2, times=1)

    assert [runtime.run("flaky").exit_code for _ in range(5)] == [2, 1, 1, 0, 0]


def test_on_sets_streams_and_exit_status(fake_host: FakeHost, runtime: Runtime) -> None:
    fake_host.on("x", stdout=b"\xff", stderr="ü\udcff", exit_code=137)

    result = runtime.run("x")

    assert (result.stdout_bytes, result.stderr_bytes) == (b"\xff", "ü".encode() + b"\xff")
    assert (result.exit_code, result.signal) == (137, 9)


def test_on_error_is_raised(fake_host: FakeHost, runtime: Runtime) -> None:
    error = ConnectionLostError("any-host", "x", "a mouse bit the cable", started=True)
    fake_host.on("x", stdout="partly", error=error)
    task = RuntimeTask().run_command("x")

    with pytest.raises(ConnectionLostError) as caught:
        runtime.run("x")
    assert caught.value is error
    with pytest.raises(TaskExecutionError) as failed:
        runtime.execute_task(task, execute_async=False)
    assert failed.value.__cause__ is error
    assert task.execution_log == ["partly"]


def test_on_infinite_delay_ends_by_timeout_or_stop(fake_host: FakeHost, runtime: Runtime) -> None:
    fake_host.on("serve", stdout="ready\n", delay=math.inf)
    task = runtime.execute_task(RuntimeTask().run_command("serve"))

    with pytest.raises(CommandTimeoutError):
        runtime.run("serve", timeout=0.01)
    assert task.process is not None
    task.process.terminate()
    assert task.process.exitcode == -15
    assert task.execution_log == ["ready\n"]


def test_on_writes_makes_files(fake_host: FakeHost, runtime: Runtime, tmp_path: Path) -> None:
    writes: dict[str, str | bytes] = {"out/model.bin": b"\0", "~/log": "ü", "/data/deep/x": ""}
    fake_host.on("train", writes=writes)
    task = RuntimeTask().run_command("train").get_file("out/model.bin", tmp_path)

    runtime.execute_task(task, execute_async=False)

    assert (tmp_path / "model.bin").read_bytes() == b"\0"
    assert (fake_host.path(runtime.working_dir) / "out" / "model.bin").is_file()
    assert fake_host.path("~/log").read_text() == "ü"
    assert fake_host.path("/data/deep/x").read_text() == ""


def test_executables_are_found_by_check_filter(fake_host: FakeHost, runtime: Runtime) -> None:
    assert not runtime.check_filter(installed_executables="docker")
    fake_host.executables |= {"docker", "it's"}
    assert runtime.check_filter(installed_executables=["docker", "it's"])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"exit_code": 256}, "0 to 255"),
        ({"exit_code": -9}, "0 to 255"),
        ({"exit_code": True}, "0 to 255"),
        ({"delay": -1}, "delay must be a number of seconds"),
        ({"delay": math.nan}, "delay must be a number of seconds"),
        ({"times": 0}, "times must be a whole number"),
        ({"times": True}, "times must be a whole number"),
    ],
    ids=["exit code 256", "exit code -9", "exit code True", "delay -1", "delay NaN", "times 0", "times True"],
)
def test_on_invalid_answer_is_refused(fake_host: FakeHost, keywords: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fake_host.on("x", **keywords)  # type: ignore[arg-type]  # the mistakes that are tested


@pytest.mark.parametrize("command", [("ls",), [3], None], ids=["tuple", "number", "None"])
def test_on_unusable_command_is_refused(fake_host: FakeHost, command: object) -> None:
    with pytest.raises(TypeError, match=r"^command must be text, a list of words, a compiled pattern or a function"):
        fake_host.on(command)  # type: ignore[arg-type]  # the mistakes that are tested


# Unexpected commands -------------------------------------------------------------------------------------------------


def test_unexpected_command_error_names_the_answers(fake_host: FakeHost, runtime: Runtime) -> None:
    def picks(_asked: Ran) -> bool:
        return False

    fake_host.on("nproc", times=2)
    fake_host.on(re.compile("ls .*"))
    fake_host.on(picks)

    with pytest.raises(UnexpectedCommandError) as caught:
        runtime.run("it's new")

    error = caught.value
    assert (error.host, error.command) == ("any-host", "it's new")
    assert str(error) == (
        'any-host: the test does not say what this command answers: "it\'s new"\n'
        'Say it before it is run: fake_host.on("it\'s new", stdout=...), or have every command answer with nothing '
        "and exit status 0: fake_host.strict = False\n"
        "There are answers for:\n"
        "    'nproc', 2 times\n"
        "    re.compile('ls .*')\n"
        "    test_unexpected_command_error_names_the_answers.<locals>.picks()"
    )
    assert not isinstance(error, ValueError)
    assert isinstance(error, AssertionError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(UnexpectedCommandError("h", "x")).endswith("There are answers for: nothing")


def test_unexpected_command_in_task_is_its_cause(fake_host: FakeHost, runtime: Runtime) -> None:
    with pytest.raises(TaskExecutionError) as caught:
        runtime.execute_task(RuntimeTask().run_command("new"), execute_async=False)
    assert isinstance(caught.value.__cause__, UnexpectedCommandError)
    assert fake_host.commands == ["new"]


def test_strict_off_answers_unknown_commands(fake_host: FakeHost, runtime: Runtime) -> None:
    fake_host.strict = False
    fake_host.on("known", exit_code=3)

    result = runtime.run("new")

    assert (result.exit_code, result.output) == (0, "")
    assert runtime.run("known").exit_code == 3


# Hardware, Python, ports ---------------------------------------------------------------------------------------------


def test_fake_host_default_hardware(runtime: Runtime) -> None:
    assert (runtime.os, runtime.cpu_cores, runtime.memory_in_mb, runtime.gpu_count) == (
        "Fake Linux 1.0",
        "4",
        "8192",
        0,
    )
    assert runtime.python_version == platform.python_version()
    assert runtime.is_valid_runtime()


def test_has_and_info_change_hardware(fake_host: FakeHost) -> None:
    fake_host.has(cpu_cores=64, memory=2**40, gpus=2)
    with Runtime("big") as big:
        assert (big.cpu_cores, big.memory_in_mb, big.gpu_count) == ("64", str(2**20), 2)
        assert [(gpu.index, gpu.name, gpu.uuid) for gpu in big.gpus] == [
            (0, "Fake GPU", "GPU-0"),
            (1, "Fake GPU", "GPU-1"),
        ]
        assert big.check_filter(gpu_required=True, min_memory=10**6, min_cpu_cores=64)
    fake_host.has(gpus=[Gpu(0, "NVIDIA H100")])
    assert fake_host.info.cpu_cores == 64.0
    with Runtime("h100") as h100:
        assert [gpu.name for gpu in h100.gpus] == ["NVIDIA H100"]
    fake_host.info = attrs.evolve(fake_host.info, os="Debian", warnings=("no /proc",))
    with Runtime("debian") as debian:
        assert debian.os == "Debian"


def test_has_no_python_refuses_functions(fake_host: FakeHost) -> None:
    fake_host.has(python_version="")
    fake_host.on("true")

    with pytest.raises(InvalidRuntimeError) as caught:
        Runtime("bare")
    assert isinstance(caught.value.__cause__, PythonNotFoundError)
    with Runtime("bare", resident=False) as runtime:
        assert not runtime.is_valid_runtime()
        assert runtime.run("true").ok
        with pytest.raises(PythonNotFoundError):
            runtime.call(int)
        with pytest.raises(PythonNotFoundError):
            runtime.has_free_port(80)
        assert runtime.get_process(runtime.expose_port_to_runtime(80, 8080)).is_alive()


def test_has_other_python_version_refuses_functions(fake_host: FakeHost) -> None:
    fake_host.has(python_version="3.6.15")

    with Runtime("old") as runtime:
        assert runtime.python_version == "3.6.15"
        with pytest.raises(PythonVersionMismatchError) as caught:
            runtime.call(int)
    assert (caught.value.remote_version, caught.value.remote_executable) == ("3.6.15", "/usr/bin/python3")


def test_ports_in_use_are_not_free(fake_host: FakeHost, runtime: Runtime) -> None:
    fake_host.ports_in_use = {8000, 8001}

    assert runtime.get_free_port(range(8000, 8010)) == 8002
    key = runtime.expose_port_to_runtime(9000, 8002)
    assert runtime.get_free_port(range(8000, 8010)) == 8003
    runtime.stop_process(key)
    assert runtime.has_free_port(8002)
    fake_host.ports_in_use.clear()
    assert runtime.has_free_port(8000)


# Records of calls ----------------------------------------------------------------------------------------------------


def test_calls_records_every_kind(fake_host: FakeHost, tmp_path: Path) -> None:
    fake_host.on("make")
    (tmp_path / "file").touch()
    with Runtime("web1", "/work", env={"A": "1"}) as runtime:
        task = RuntimeTask().send_file(tmp_path / "file").run_command("make", timeout=5)
        task.run_function(pow, 2, exp=3).get_file("file", tmp_path / "back")
        runtime.execute_task(task, execute_async=False)
        runtime.create_dir("made")
        runtime.delete_dir("made")
        runtime.expose_port_to_runtime(80, 8080)
    env = {"A": "1", "WORKING_DIR": "/work"}

    called = fake_host.calls[2]

    assert isinstance(called, Called)
    assert (called.args, called.kwargs) == ((2,), {"exp": 3})
    assert fake_host.calls == [
        Sent("web1", tmp_path / "file", None, "/work"),
        Ran("web1", "make", "/work", env, b"", 5),
        Called("web1", "pow", "/work", env, payload=serialize_call(pow, 2, exp=3)),
        Fetched("web1", "file", tmp_path / "back", "/work"),
        MadeDir("web1", "made", "/work"),
        DeletedDir("web1", "made", "/work"),
        AskedForPorts("web1", (8080,)),
        OpenedTunnel("web1", 8080, 80, to_host=True),
    ]
    assert repr(fake_host) == "<FakeHost, 8 calls>"


def test_called_args_are_those_before_the_call(fake_host: FakeHost, runtime: Runtime) -> None:
    runtime.call(list.append, ["kept"], "added by the call")

    [called] = fake_host.calls
    assert isinstance(called, Called)
    assert called.args == (["kept"], "added by the call")
    assert called.args[0] is not called.args[0]


def test_calls_records_failed_calls(fake_host: FakeHost, runtime: Runtime) -> None:
    with pytest.raises(TaskExecutionError):
        runtime.execute_task(RuntimeTask().get_file("no such", "."), execute_async=False)

    assert [type(asked) for asked in fake_host.calls] == [Fetched]


# Files ---------------------------------------------------------------------------------------------------------------


def test_path_of_every_kind(fake_host: FakeHost) -> None:
    home = fake_host.path("~")
    root = fake_host.path("/")
    assert home.is_dir()
    assert fake_host.path("relative") == home / "relative", "before there is a runtime"
    assert fake_host.path("~/x") == home / "x"
    assert fake_host.path("~other/x") == home.parent / "other" / "x"
    assert fake_host.path("/data/../etc/./x") == root / "etc" / "x"
    assert fake_host.path("/../../x") == root / "x"
    assert fake_host.path(str(home / "x")) == home / "x", "the same name on the host and on this machine"
    with Runtime("any-host") as runtime:
        assert fake_host.path("relative") == Path(runtime.working_dir, "relative")
    with Runtime("any-host", "/work") as runtime:
        assert fake_host.path("relative") == root / "work" / "relative"
    for path in ("", "nul\0"):
        with pytest.raises(ValueError, match="path must not be empty or contain NUL"):
            fake_host.path(path)


def test_path_prepares_files_for_tested_code(fake_host: FakeHost, tmp_path: Path) -> None:
    fake_host.path("/data").mkdir()
    fake_host.path("/data/in.csv").write_text("1,2\n")

    with Connection("any-host") as connection:
        connection.get("/data/in.csv", tmp_path)
        connection.put(tmp_path / "in.csv", "~/copy")

    assert fake_host.path("~/copy").read_text() == "1,2\n"


# Started processes ---------------------------------------------------------------------------------------------------


def test_start_process_input_is_in_calls(fake_host: FakeHost, runtime: Runtime) -> None:
    fake_host.on("cat", stdout="out", reads_stdin=True)

    with runtime.start("cat", env={"A": "1"}) as process:
        process.stdin.write(b"first")
        process.stdin.flush()
        process.stdin.write(b" second")
        process.stdin.close()
        assert process.wait() == 0

    [asked] = fake_host.calls
    assert isinstance(asked, Ran)
    assert (asked.stdin, asked.command, asked.env["A"]) == (b"first second", "cat", "1")


def test_start_process_on_lost_host_is_told_apart(fake_host: FakeHost, runtime: Runtime) -> None:
    fake_host.on("sleep", stdout="out", delay=math.inf)
    process = runtime.start("sleep")
    assert process.stdout.read(3) == b"out"

    fake_host.go_down()

    with pytest.raises(ConnectionLostError):
        process.wait()
    assert (process.exit_code, process.stopped) == (None, False)


def test_start_process_without_answer_raises_at_wait(runtime: Runtime) -> None:
    with runtime.start("unknown") as process, pytest.raises(UnexpectedCommandError):
        process.wait()


def test_start_large_output_waits_for_its_reader(fake_host: FakeHost, runtime: Runtime) -> None:
    fake_host.on("print", stdout=bytes(20_000_000))

    with runtime.start("print") as process:
        with pytest.raises(TimeoutError):
            process.wait(0.05)
        assert len(process.stdout.read()) == 20_000_000
        assert process.wait() == 0


# Threads -------------------------------------------------------------------------------------------------------------


def test_on_and_run_in_many_threads(fake_host: FakeHost, runtime: Runtime) -> None:
    fake_host.on(re.compile("echo .*"), delay=0.001)
    fake_host.on("echo 5", exit_code=1, times=3)
    exit_codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: exit_codes.extend(runtime.run(f"echo {n}").exit_code for n in range(10)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(exit_codes), sum(exit_codes)) == (80, 3)
    assert len(fake_host.commands) == 80
