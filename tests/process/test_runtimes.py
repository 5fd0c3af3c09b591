"""Runtimes, with pytest-subprocess in the place of ssh: what they ask the host, and what they make of its answers.

They go the way that such a stand-in can play: an ssh process for each step.
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

Make = Callable[..., Runtime]


@pytest.fixture
def make(fp: FakeProcess) -> Iterator[Make]:
    """Make runtimes on a host that answers; they are cleaned up after the test."""
    made: list[Runtime] = []

    def make(
        working_dir: str | None = "/work", answer: bytes = b"/work\0" + HOST_FACTS_OUTPUT, **keywords: str
    ) -> Runtime:
        register_log_in(fp)
        register_command(fp, quote("set up a runtime"), stdout=answer)
        made.append(Runtime("web1", working_dir, resident=False, **keywords))  # type: ignore[arg-type]  # of a table
        return made[-1]

    yield make
    for runtime in made:
        register_command(fp, quote("clean up"))
        runtime.cleanup()


# Making one -----------------------------------------------------------------------------------------------------------


def test_facts(make: Make) -> None:
    runtime = make()
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


def test_one_call_makes_it(fp: FakeProcess, make: Make) -> None:
    make()
    assert len(fp.calls) == 2  # the log-in and the session


def test_print_info(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make().print_info()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Runtime web1"
    assert "CPU cores          8" in lines
    assert "Memory             16.0 GiB" in lines
    assert "Working directory  /work" in lines


def test_warnings_of_the_probe_are_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    make(answer=b"/work\0\n@@ lazycluster begin processors\n8\n@@ lazycluster end processors 0\n")
    assert "web1: the amount of memory is unknown" in caplog.messages


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"stderr": "mkdir: cannot create directory '/work': Permission denied", "returncode": 1}, "Permission denied"),
        ({"stdout": b"/work\0and then nothing"}, "this is not the output of the hardware probe"),
        ({"stdout": b""}, "exit status 0"),
    ],
)
def test_a_host_that_cannot_be_used(fp: FakeProcess, answer: dict[str, object], reason: str) -> None:
    register_log_in(fp)
    register_command(fp, quote("set up a runtime"), **answer)
    with pytest.raises(InvalidRuntimeError, match=f"(?s)^web1 cannot be used as a runtime: .*{reason}") as caught:
        Runtime("web1", "/work", resident=False)
    assert isinstance(caught.value, ValueError)
    assert caught.value.__cause__ is not None


def test_a_temporary_directory_is_removed_though_the_probe_fails(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, quote("set up a runtime"), stdout=b"/tmp/lazycluster-x\0")
    clean = register_command(fp, quote("clean up"))
    with pytest.raises(InvalidRuntimeError):
        Runtime("web1", resident=False)
    assert len(clean.calls) == 1


@pytest.mark.parametrize("resident", [True, False])
def test_a_host_that_cannot_be_reached(fp: FakeProcess, resident: bool) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr="ssh: connect to host web1 port 22: Connection refused", returncode=255)
    with pytest.raises(InvalidRuntimeError, match=r"^web1 cannot be used as a runtime: connection refused") as caught:
        Runtime("web1", resident=resident)
    assert isinstance(caught.value.__cause__, PortRefusedError)
    assert len(fp.calls) == 1


# Using it -------------------------------------------------------------------------------------------------------------


def test_run(fp: FakeProcess, make: Make) -> None:
    runtime = make()
    register_command(fp, quote("ls x"), stderr="no such file", returncode=2)
    result = runtime.run("ls x")
    assert (result.ok, result.exit_code, result.stderr) == (False, 2, "no such file")


def test_environment(make: Make) -> None:
    runtime = make()
    assert runtime.env_variables == {"WORKING_DIR": "/work"}
    runtime.set_env_variables({"A": "1"})
    runtime.add_env_variables({"B": "2"})
    assert runtime.env_variables == {"A": "1", "B": "2", "WORKING_DIR": "/work"}
    runtime.set_env_variables({"C": "3", "WORKING_DIR": "/elsewhere"})
    assert runtime.env_variables == {"C": "3", "WORKING_DIR": "/work"}
    for change in (runtime.set_env_variables, runtime.add_env_variables):
        with pytest.raises(ValueError, match="the name of an environment variable must be"):
            change({"a-b": ""})
    assert runtime.env_variables == {"C": "3", "WORKING_DIR": "/work"}


@pytest.mark.parametrize(
    ("wanted", "passes"),
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
def test_check_filter_by_facts(fp: FakeProcess, make: Make, wanted: dict[str, object], passes: bool) -> None:
    runtime = make()
    assert runtime.check_filter(**wanted) is passes  # type: ignore[arg-type]  # of a table
    assert len(fp.calls) == 2


@pytest.mark.parametrize(
    ("executables", "words_asked", "status"),
    [("git", "git", 0), (["git", "my tool"], "git 'my tool'", 0), ("git", "git", 1)],
)
def test_check_filter_by_executables(
    fp: FakeProcess, make: Make, executables: str | list[str], words_asked: str, status: int
) -> None:
    runtime = make()
    asked = fp.register(["ssh", "-T", fp.any()], returncode=status)
    assert runtime.check_filter(installed_executables=executables) is (status == 0)
    assert f"for e in {words_asked.replace(chr(39), '?')};" in recorded_argvs([asked])[0][-1]


@pytest.mark.parametrize(
    ("printed", "passes"), [("true", True), ("true\r\n", True), (" True ", True), ("false", False), ("", False)]
)
def test_check_filter_by_commands(fp: FakeProcess, make: Make, printed: str, passes: bool) -> None:
    runtime = make()
    register_command(fp, "check", stdout=printed)
    assert runtime.check_filter(filter_commands="check") is passes
    register_command(fp, "check", stdout="true")
    register_command(fp, "also", stdout=printed)
    assert runtime.check_filter(filter_commands=["check", "also"]) is passes


def test_is_valid_runtime(fp: FakeProcess, make: Make) -> None:
    runtime = make()
    register_command(fp, "true")
    assert runtime.is_valid_runtime()
    register_command(fp, "true", returncode=1)
    assert not runtime.is_valid_runtime()


def test_without_python_it_is_not_valid(fp: FakeProcess, make: Make) -> None:
    runtime = make(answer=b"/work\0" + HOST_FACTS_OUTPUT.replace(b"3.11.7 /usr/bin/python3", b""))
    register_command(fp, "true")
    assert not runtime.is_valid_runtime()
    assert runtime.python_version == ""


# Directories and ports ------------------------------------------------------------------------------------------------


def test_create_dir(fp: FakeProcess, make: Make) -> None:
    runtime = make()
    register_command(fp, quote("create_dir a b"))
    runtime.create_dir("a b")
    register_command(fp, quote("create_dir /no"), stderr="mkdir: Permission denied", returncode=1)
    with pytest.raises(CommandFailedError, match="Permission denied"):
        runtime.create_dir("/no")


def test_create_tempdir(fp: FakeProcess, make: Make) -> None:
    runtime = make()
    register_command(fp, "create_tempdir", stdout=b"/tmp/lazycluster-x\0")
    assert runtime.create_tempdir() == "/tmp/lazycluster-x"
    register_command(fp, quote("delete_dir /tmp/lazycluster-x"))
    assert runtime.delete_dir("/tmp/lazycluster-x")


def test_delete_dir(fp: FakeProcess, make: Make) -> None:
    runtime = make()
    register_command(fp, quote("delete_dir a b"), returncode=1)
    assert not runtime.delete_dir("a b")
    calls = len(fp.calls)
    for path in ("", "/", "//"):
        with pytest.raises(ValueError, match="path must be neither empty nor the root directory"):
            runtime.delete_dir(path)
    with pytest.raises(ValueError, match="path must not be empty, got ''"):
        runtime.create_dir("")
    assert len(fp.calls) == calls


def test_ports(fp: FakeProcess, make: Make) -> None:
    runtime = make()
    register_command(fp, quote("check ports"), stdout="8081\n8082\n")
    assert runtime.get_free_port(range(8080, 8083)) == 8081
    register_command(fp, quote("check ports"), stdout="")
    with pytest.raises(NoPortsLeftError, match="none of the 3 ports from 8080 to 8082 is free"):
        runtime.get_free_port([8080, 8081, 8082])
    register_command(fp, quote("check ports"), stdout="80\n")
    assert runtime.has_free_port(80)
    register_command(fp, quote("check ports"), returncode=127)
    with pytest.raises(PythonNotFoundError):
        runtime.has_free_port(80)


def test_ports_that_are_none(fp: FakeProcess, make: Make) -> None:
    runtime = make()
    with pytest.raises(NoPortsLeftError, match="the list is empty"):
        runtime.get_free_port([])
    for port in (0, 65536):
        for ask in (
            runtime.has_free_port,
            lambda port: runtime.get_free_port([80, port]),
            runtime.expose_port_to_runtime,
            runtime.expose_port_from_runtime,
            lambda port: runtime.expose_port_to_runtime(80, port),
            lambda port: runtime.expose_port_from_runtime(80, port),
        ):
            with pytest.raises(ValueError, match="port must be a whole number from 1 to 65535"):
                ask(port)
    assert len(fp.calls) == 2


def test_a_port_in_use_on_the_host(fp: FakeProcess, make: Make) -> None:
    runtime = make()
    register_command(fp, quote("check ports"), stdout="")
    with pytest.raises(PortInUseError, match="web1: port 8080 is in use"):
        runtime.expose_port_to_runtime(80, 8080)
    assert runtime.get_processes() == {}


# Tasks ----------------------------------------------------------------------------------------------------------------


def test_a_task_in_the_foreground(fp: FakeProcess, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = make()
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


def test_a_task_in_the_background(fp: FakeProcess, make: Make) -> None:
    runtime = make()
    inside, leave = threading.Event(), threading.Event()

    def wait(_process: FakePopen) -> None:
        inside.set()
        leave.wait(30)

    register_command(fp, "make", callback=wait)
    task = runtime.execute_task(RuntimeTask("t").run_command("make"))
    assert inside.wait(10)
    (key,) = runtime.get_processes()
    assert key.startswith("t-")
    assert runtime.get_process(key) is task.process
    assert (runtime.alive_process_count, runtime.alive_task_process_count) == (1, 1)
    runtime.clear_tasks()
    assert list(runtime.get_processes(only_alive=True)) == [key]
    leave.set()
    task.join()
    assert (runtime.alive_process_count, len(runtime.task_processes)) == (0, 1)
    assert runtime.get_processes(only_alive=True) == {}
    runtime.stop_process(key)
    runtime.clear_tasks()
    assert runtime.get_processes() == {}
    with pytest.raises(ValueError, match=r"web1: no process with the key 't-0' \(there are: none\)"):
        runtime.get_process("t-0")


def test_function_returns_of_no_functions(fp: FakeProcess, make: Make) -> None:
    runtime = make()
    register_command(fp, "make")
    runtime.execute_task(RuntimeTask("t").run_command("make"))
    assert list(runtime.function_returns) == []


# The end --------------------------------------------------------------------------------------------------------------


def test_after_the_end(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, quote("set up a runtime"), stdout=b"/work\0" + HOST_FACTS_OUTPUT)
    register_command(fp, quote("clean up"))
    runtime = Runtime("web1", "/work", resident=False)
    runtime.close()
    runtime.cleanup()
    calls = len(fp.calls)
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
        with pytest.raises(RuntimeClosedError, match="web1: closed already"):
            use()
    assert not runtime.is_valid_runtime()
    assert len(fp.calls) == calls
    assert runtime.cpu_cores == "8"  # what is known stays known


def test_a_runtime_that_is_forgotten_cleans_up(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, quote("set up a runtime"), stdout=b"/work\0" + HOST_FACTS_OUTPUT)
    clean = register_command(fp, quote("clean up"))
    Runtime("web1", "/work", resident=False)
    gc.collect()
    assert wait_until(lambda: len(clean.calls) == 1, timeout=10)  # in a thread of its own


def test_a_subclass_is_named_after_itself(fp: FakeProcess) -> None:
    class Worker(Runtime):
        pass

    register_log_in(fp)
    register_command(fp, quote("set up a runtime"), stdout=b"/work\0" + HOST_FACTS_OUTPUT)
    register_command(fp, quote("clean up"))
    with Worker("web1", "/work", resident=False) as worker:
        assert (worker.class_name, repr(worker)) == ("Worker", "<Worker web1:/work>")
