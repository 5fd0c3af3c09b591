"""Runtimes with pytest-subprocess in place of ssh: the commands that they run, and the use of their output.

pytest-subprocess can play the transport that starts an ssh process per command, so these use `resident=False`.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from shlex import quote

import pytest
from pytest_subprocess.fake_popen import FakePopen
from pytest_subprocess.fake_process import FakeProcess

from lazycluster import (
    CommandFailedError,
    InvalidRuntimeError,
    LazyclusterError,
    NoPortsLeftError,
    PortInUseError,
    PortRefusedError,
    PythonNotFoundError,
    Runtime,
    RuntimeClosedError,
    RuntimeTask,
    TaskExecutionError,
)
from tests.process.fake_ssh import HOST_FACTS_OUTPUT, recorded_argvs, register_command, register_log_in
from tests.waiting import wait_until

MakeRuntime = Callable[..., Runtime]
SETUP_OUTPUT = b"/work\0" + HOST_FACTS_OUTPUT
"""The output of the command that sets a runtime up: the working directory, and the facts of the host."""
START_CALLS = 2
"""The ssh processes of the start of a runtime: the log-in, and the session of the setup."""


@pytest.fixture
def make_runtime(fp: FakeProcess) -> Iterator[MakeRuntime]:
    """Return a function that makes runtimes without a supervisor; they are cleaned up after the test."""
    runtimes: list[Runtime] = []

    def make(working_dir: str | None = "/work", answer: bytes = SETUP_OUTPUT, **keywords: str) -> Runtime:
        register_log_in(fp)
        register_command(fp, quote("set up a runtime"), stdout=answer)
        runtimes.append(Runtime("web1", working_dir, resident=False, **keywords))  # type: ignore[arg-type]  # any
        return runtimes[-1]

    yield make
    for runtime in runtimes:
        register_command(fp, quote("clean up"))
        runtime.cleanup()


# Started processes ----------------------------------------------------------------------------------------------------


def test_start_process_under_mocked_ssh(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    register_command(fp, "serve", stdout=b"out", stderr=b"err", returncode=3)
    with runtime.start("serve") as process:
        assert (process.stdout.read(), process.stderr.read(), process.wait()) == (b"out", b"err", 3)


# Construction ---------------------------------------------------------------------------------------------------------


def test_runtime_facts_follow_the_probe(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    assert runtime.host_info.cpu_cores == 8.0
    assert runtime.info == {
        "host": "web1",
        "os": "Debian GNU/Linux 12 (bookworm)",
        "python_version": "3.11.7",
        "cpu_cores": "8",
        "memory": str(16 << 30),
        "memory_in_mb": "16384",
        "gpu_count": 0,
        "gpus": [],
        "working_dir": "/work",
    }
    assert (runtime.class_name, repr(runtime)) == ("Runtime", "<Runtime web1:/work>")


def test_runtime_start_takes_two_processes(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    make_runtime()
    assert len(fp.calls) == START_CALLS


def test_print_info_aligns_facts(make_runtime: MakeRuntime, capsys: pytest.CaptureFixture[str]) -> None:
    make_runtime().print_info()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Runtime web1"
    assert "CPU cores          8" in lines
    assert "Memory             16.0 GiB" in lines
    assert "Working directory  /work" in lines


def test_runtime_probe_warning_is_logged(make_runtime: MakeRuntime, caplog: pytest.LogCaptureFixture) -> None:
    make_runtime(answer=b"/work\0\n@@ lazycluster begin processors\n8\n@@ lazycluster end processors 0\n")
    assert "web1: the amount of memory is unknown" in caplog.messages


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"stderr": "mkdir: cannot create directory '/work': Permission denied", "returncode": 1}, "Permission denied"),
        ({"stdout": b"/work\0and then nothing"}, "this is not the output of the hardware probe"),
        ({"stdout": b""}, "exit status 0"),
    ],
)
def test_runtime_bad_setup_raises_invalid_runtime_error(
    fp: FakeProcess, answer: dict[str, object], reason: str
) -> None:
    register_log_in(fp)
    register_command(fp, quote("set up a runtime"), **answer)
    with pytest.raises(InvalidRuntimeError) as caught:
        Runtime("web1", "/work", resident=False)
    assert isinstance(caught.value, ValueError)
    assert caught.value.host == "web1"
    assert reason in caught.value.reason
    assert caught.value.__cause__ is not None


def test_runtime_failed_probe_removes_temporary_directory(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, quote("set up a runtime"), stdout=b"/tmp/lazycluster-x\0")
    clean = register_command(fp, quote("clean up"))
    with pytest.raises(InvalidRuntimeError):
        Runtime("web1", resident=False)
    assert len(clean.calls) == 1


@pytest.mark.parametrize("resident", [True, False])
def test_runtime_refused_connection_raises_at_once(fp: FakeProcess, resident: bool) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr="ssh: connect to host web1 port 22: Connection refused", returncode=255)
    with pytest.raises(InvalidRuntimeError) as caught:
        Runtime("web1", resident=resident)
    assert isinstance(caught.value.__cause__, PortRefusedError)
    assert len(fp.calls) == 1


# Use ------------------------------------------------------------------------------------------------------------------


def test_run_failed_command_is_a_result(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    register_command(fp, quote("ls x"), stderr="no such file", returncode=2)
    result = runtime.run("ls x")
    assert (result.ok, result.exit_code, result.stderr) == (False, 2, "no such file")


def test_env_variables_set_replaces_and_add_merges(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    assert runtime.env_variables == {"WORKING_DIR": "/work"}
    runtime.set_env_variables({"A": "1"})
    runtime.add_env_variables({"B": "2"})
    assert runtime.env_variables == {"A": "1", "B": "2", "WORKING_DIR": "/work"}
    runtime.set_env_variables({"C": "3", "WORKING_DIR": "/elsewhere"})
    assert runtime.env_variables == {"C": "3", "WORKING_DIR": "/work"}
    for change in (runtime.set_env_variables, runtime.add_env_variables):
        with pytest.raises(ValueError):
            change({"a-b": ""})
    assert runtime.env_variables == {"C": "3", "WORKING_DIR": "/work"}


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({}, True),
        ({"gpu_required": True}, False),
        ({"min_memory": 16384}, True),
        ({"min_memory": 16385}, False),
        ({"min_cpu_cores": 8}, True),
        ({"min_cpu_cores": 8.5}, False),
        ({"min_memory": 0, "min_cpu_cores": 0}, True),
        ({"installed_executables": [], "filter_commands": []}, True),
    ],
)
def test_check_filter_by_facts_asks_nothing(
    fp: FakeProcess, make_runtime: MakeRuntime, filters: dict[str, object], passes: bool
) -> None:
    runtime = make_runtime()
    assert runtime.check_filter(**filters) is passes  # type: ignore[arg-type]  # a table of keywords
    assert len(fp.calls) == START_CALLS


@pytest.mark.parametrize(
    ("executables", "words_asked", "exit_code"),
    [("git", "git", 0), (["git", "my tool"], "git 'my tool'", 0), ("git", "git", 1)],
)
def test_check_filter_by_executables_asks_once(
    fp: FakeProcess, make_runtime: MakeRuntime, executables: str | list[str], words_asked: str, exit_code: int
) -> None:
    runtime = make_runtime()
    asked = fp.register(["ssh", "-T", fp.any()], returncode=exit_code)
    assert runtime.check_filter(installed_executables=executables) is (exit_code == 0)
    [argv] = recorded_argvs([asked])
    assert f"for e in {words_asked.replace(chr(39), '?')};" in argv[-1]


@pytest.mark.parametrize(
    ("printed", "passes"), [("true", True), ("true\r\n", True), (" True ", True), ("false", False), ("", False)]
)
def test_check_filter_by_commands_reads_true(
    fp: FakeProcess, make_runtime: MakeRuntime, printed: str, passes: bool
) -> None:
    runtime = make_runtime()
    register_command(fp, "check", stdout=printed)
    assert runtime.check_filter(filter_commands="check") is passes
    register_command(fp, "check", stdout="true")
    register_command(fp, "also", stdout=printed)
    assert runtime.check_filter(filter_commands=["check", "also"]) is passes


def test_is_valid_runtime_follows_exit_code(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    register_command(fp, "true")
    assert runtime.is_valid_runtime()
    register_command(fp, "true", returncode=1)
    assert not runtime.is_valid_runtime()


def test_is_valid_runtime_without_python_is_false(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(answer=b"/work\0" + HOST_FACTS_OUTPUT.replace(b"3.11.7 /usr/bin/python3", b""))
    register_command(fp, "true")
    assert not runtime.is_valid_runtime()
    assert runtime.python_version == ""


# Directories and ports ------------------------------------------------------------------------------------------------


def test_create_dir_failed_raises_command_failed_error(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    register_command(fp, quote("create_dir a b"))
    runtime.create_dir("a b")
    register_command(fp, quote("create_dir /no"), stderr="mkdir: Permission denied", returncode=1)
    with pytest.raises(CommandFailedError) as caught:
        runtime.create_dir("/no")
    assert (caught.value.exit_code, caught.value.output) == (1, "mkdir: Permission denied")


def test_create_tempdir_returns_path_of_host(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    register_command(fp, "create_tempdir", stdout=b"/tmp/lazycluster-x\0")
    assert runtime.create_tempdir() == "/tmp/lazycluster-x"
    register_command(fp, quote("delete_dir /tmp/lazycluster-x"))
    assert runtime.delete_dir("/tmp/lazycluster-x")


def test_delete_dir_returns_whether_it_is_gone(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    register_command(fp, quote("delete_dir a b"), returncode=1)
    assert not runtime.delete_dir("a b")
    calls_before = len(fp.calls)
    for path in ("", "/", "//"):
        with pytest.raises(ValueError, match="path must be neither empty nor the root directory"):
            runtime.delete_dir(path)
    with pytest.raises(ValueError):
        runtime.create_dir("")
    assert len(fp.calls) == calls_before


def test_free_ports_follow_the_output_of_the_host(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    register_command(fp, quote("check ports"), stdout="8081\n8082\n")
    assert runtime.get_free_port(range(8080, 8083)) == 8081
    register_command(fp, quote("check ports"), stdout="")
    with pytest.raises(NoPortsLeftError) as caught:
        runtime.get_free_port([8080, 8081, 8082])
    assert caught.value.ports == (8080, 8081, 8082)
    register_command(fp, quote("check ports"), stdout="80\n")
    assert runtime.has_free_port(80)
    register_command(fp, quote("check ports"), returncode=127)
    with pytest.raises(PythonNotFoundError):
        runtime.has_free_port(80)


def test_port_out_of_range_asks_nothing(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    with pytest.raises(NoPortsLeftError):
        runtime.get_free_port([])
    for port in (0, 65536):
        for use in (
            runtime.has_free_port,
            lambda port: runtime.get_free_port([80, port]),
            runtime.expose_port_to_runtime,
            runtime.expose_port_from_runtime,
            lambda port: runtime.expose_port_to_runtime(80, port),
            lambda port: runtime.expose_port_from_runtime(80, port),
        ):
            with pytest.raises(ValueError) as caught:
                use(port)
            assert not isinstance(caught.value, LazyclusterError)
    assert len(fp.calls) == START_CALLS


def test_expose_port_in_use_raises_port_in_use_error(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    register_command(fp, quote("check ports"), stdout="")
    with pytest.raises(PortInUseError) as caught:
        runtime.expose_port_to_runtime(80, 8080)
    assert (caught.value.host, caught.value.port) == ("web1", 8080)
    assert runtime.get_processes() == {}


# Tasks ----------------------------------------------------------------------------------------------------------------


def test_execute_task_in_foreground_prints_and_logs(
    fp: FakeProcess, make_runtime: MakeRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = make_runtime()
    register_command(fp, "make", stdout="built\n")
    task = RuntimeTask("t").run_command("make")
    assert runtime.execute_task(task, execute_async=False, debug=True) is task
    assert capsys.readouterr().out == "built\n"
    assert (task.execution_log, task.process, runtime.task_processes) == (["built\n"], None, [])
    runtime.print_log()
    assert capsys.readouterr().out == "web1: t\n[0] built\n"
    register_command(fp, "make", returncode=1)
    with pytest.raises(TaskExecutionError):
        runtime.execute_task(task, execute_async=False)


def test_execute_task_in_background_lists_its_process(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    started, proceed = threading.Event(), threading.Event()

    def wait(_process: FakePopen) -> None:
        started.set()
        proceed.wait(30)

    register_command(fp, "make", callback=wait)
    task = runtime.execute_task(RuntimeTask("t").run_command("make"))
    assert started.wait(10)
    (key,) = runtime.get_processes()
    assert key.startswith("t-")
    assert runtime.get_process(key) is task.process
    assert (runtime.alive_process_count, runtime.alive_task_process_count) == (1, 1)
    runtime.clear_tasks()
    assert list(runtime.get_processes(only_alive=True)) == [key]
    proceed.set()
    task.join()
    assert (runtime.alive_process_count, len(runtime.task_processes)) == (0, 1)
    assert runtime.get_processes(only_alive=True) == {}
    runtime.stop_process(key)
    runtime.clear_tasks()
    assert runtime.get_processes() == {}
    with pytest.raises(ValueError):
        runtime.get_process("t-0")


def test_function_returns_without_functions_are_empty(fp: FakeProcess, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    register_command(fp, "make")
    runtime.execute_task(RuntimeTask("t").run_command("make"))
    assert list(runtime.function_returns) == []


# The end --------------------------------------------------------------------------------------------------------------


def test_closed_runtime_use_asks_nothing(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, quote("set up a runtime"), stdout=SETUP_OUTPUT)
    register_command(fp, quote("clean up"))
    runtime = Runtime("web1", "/work", resident=False)
    runtime.close()
    runtime.cleanup()
    calls_before = len(fp.calls)
    for use in (
        lambda: runtime.run("x"),
        lambda: runtime.call(len, []),
        lambda: runtime.execute_task(RuntimeTask().run_command("x")),
        lambda: runtime.execute_task(RuntimeTask().run_command("x"), execute_async=False),
        lambda: runtime.create_dir("x"),
        lambda: runtime.has_free_port(80),
        lambda: runtime.expose_port_from_runtime(80),
        runtime.create_tempdir,
    ):
        with pytest.raises(RuntimeClosedError):
            use()
    assert not runtime.is_valid_runtime()
    assert len(fp.calls) == calls_before
    assert runtime.cpu_cores == "8"  # the facts stay


def test_runtime_dropped_cleans_up_in_background(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, quote("set up a runtime"), stdout=SETUP_OUTPUT)
    clean = register_command(fp, quote("clean up"))
    Runtime("web1", "/work", resident=False)
    gc.collect()
    assert wait_until(lambda: len(clean.calls) == 1, timeout=10)


def test_runtime_subclass_has_its_own_class_name(fp: FakeProcess) -> None:
    class Worker(Runtime):
        pass

    register_log_in(fp)
    register_command(fp, quote("set up a runtime"), stdout=SETUP_OUTPUT)
    register_command(fp, quote("clean up"))
    with Worker("web1", "/work", resident=False) as worker:
        assert (worker.class_name, repr(worker)) == ("Worker", "<Worker web1:/work>")
