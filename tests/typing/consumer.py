"""A strictly typed program that uses the installed wheel; a type checker reads it, and it never runs.

Each `type: ignore` marks a mistake that the type checker must find. If it does not, the unused comment is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from typing_extensions import assert_type

import lazycluster.exceptions
from lazycluster import (
    Caller,
    CallOutput,
    CommandResult,
    Connection,
    Error,
    GetFile,
    Gpu,
    GroupCaller,
    HostInfo,
    HostsFailedError,
    LazyclusterError,
    ManagedProcess,
    OnError,
    OutputLimitError,
    RemoteProcess,
    RunCommand,
    RunFunction,
    Runtime,
    RuntimeGroup,
    RuntimeManager,
    RuntimeOptions,
    RuntimeTask,
    SendFile,
    Step,
    StepResult,
    Stream,
    TaskExecutionError,
)
from lazycluster.runtimes import Runtime as SameRuntime
from lazycluster.runtimes import RuntimeTask as SameRuntimeTask
from lazycluster.testing import FakeHost, LocalSshd, Relay, ScriptedHost


def size(number: int, *, unit: str = "") -> int:
    return number + len(unit)


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def scaled(self, factor: float) -> tuple[float, float]:
        return self.x * factor, self.y * factor


def show_output(stream: Stream, data: bytes) -> None:
    print(stream, data)


def show_line(stream: Stream, line: str) -> None:
    print(stream, line)


def show_line_of_host(host: str, stream: Stream, line: str) -> None:
    print(host, stream, line)


def show_end(process: RemoteProcess) -> None:
    print(process.exit_code, process.stopped)


def show_progress(done: int, total: int | None) -> None:
    print(done, total)


def connections() -> None:
    with Connection(
        "host",
        user="me",
        port=22,
        identity_file=Path("key"),
        password=None,
        config_file="config",
        connect_timeout=5.0,
        max_sessions=3,
        options={"Compression": "yes"},
        env={"LANG": "C"},
    ) as connection:
        assert_type(connection, Connection)
        result = connection.run("true", cwd="/tmp", env={"A": "1"}, stdin=b"", timeout=1.5)
        assert_type(result, CommandResult)
        assert_type(result.command, str)
        assert_type(result.exit_code, int)
        assert_type((result.stdout, result.stderr), tuple[str, str])
        assert_type((result.stdout_bytes, result.stderr_bytes), tuple[bytes, bytes])
        assert_type(result.duration, float)
        connection.put(Path("local"), "remote")
        connection.get("remote", "local")
        assert_type(connection.is_alive(), bool)
        assert_type(connection.run(["echo", "a b"], on_output=show_output), CommandResult)
        assert_type(connection.run("cat", stdin="text", check=True, max_output=None), CommandResult)
        assert_type(connection.run("true", on_line=show_line).check(), CommandResult)
        with Path("input").open("rb") as file:
            assert_type(connection.run("cat", stdin=file), CommandResult)
        connection.run("true", on_line=show_output)  # type: ignore[arg-type]
        connection.run("true", stdin=["text"])  # type: ignore[arg-type]
        connection.run("true", max_output="1")  # type: ignore[arg-type]
        connection.run(["sleep", 1])  # type: ignore[list-item]
        connection.run("true", on_output=show_progress)  # type: ignore[arg-type]
        connection.put("local", on_progress=show_progress)
        result.exit_code = 1  # type: ignore[misc]
    Connection("host", prot=22)  # type: ignore[call-arg]
    Connection("host", port="22")  # type: ignore[arg-type]


def runtimes() -> None:
    with Runtime("host", working_dir="/tmp", user="me", python="python3.11") as runtime:
        assert_type(runtime, Runtime)
        assert_type(runtime.host_info, HostInfo)
        assert_type(runtime.host_info.cpu_cores, float)
        assert_type(runtime.host_info.gpus, tuple[Gpu, ...])
        assert_type(runtime.run("true", timeout=1), CommandResult)
        assert_type(runtime.run(("ls", "-l"), env={"A": "1"}), CommandResult)
        assert_type(runtime.run("true", cwd="sub", check=True, on_line=show_line, max_output=10), CommandResult)
        runtime.run("true", on_line=show_line_of_host)  # type: ignore[arg-type]
        assert_type(runtime.env_variables, dict[str, str])
        assert_type(runtime.get_free_port([8000, 8001]), int)
        assert_type(runtime.expose_port_to_runtime(8000), str)
        assert_type(runtime.get_process("key"), ManagedProcess)
        assert_type(runtime.get_process("key").exitcode, int | None)
        with runtime.start(["cat"], stdin=None, env={"A": "1"}, own_directory=True, on_exit=show_end) as process:
            assert_type(process, RemoteProcess)
            assert_type((process.stdin, process.stdout, process.stderr), tuple[BinaryIO, BinaryIO, BinaryIO])
            assert_type((process.exit_code, process.poll(), process.wait(1.5)), tuple[int | None, int | None, int])
            managed: ManagedProcess = process
            managed.terminate()
        runtime.start("true", stdin="text")  # type: ignore[arg-type]
        runtime.start("true", on_exit=show_progress)  # type: ignore[arg-type]
        assert_type(runtime.read_bytes("file", max_size=10), bytes)
        assert_type(runtime.read_text("file", encoding="latin-1", errors="replace"), str)
        assert_type(runtime.exists("file"), bool)
        assert_type((runtime.listdir(), runtime.glob("*")), tuple[list[str], list[str]])
        runtime.write_bytes("file", b"data")
        runtime.write_text("file", b"data")  # type: ignore[arg-type]
        runtime.put(Path("local"), "remote", on_progress=show_progress)
        runtime.get("remote", Path("local"))
        runtime.close()
    assert_type(Runtime("host", resident=False, grace=1.5), Runtime)
    Runtime("host", resident="no")  # type: ignore[arg-type]
    Runtime("host", usr="me")  # type: ignore[call-arg]
    Runtime("host", port="22")  # type: ignore[arg-type]


def functions(runtime: Runtime, point: Point) -> None:
    assert_type(runtime.call(size, 1), int)
    assert_type(runtime.call(size, 1, unit="MB"), int)
    assert_type(runtime.call(Point, 1, 2), Point)
    assert_type(runtime.call(point.scaled, 0.5), tuple[float, float])
    assert_type(runtime.call(functools.partial(size, 1)), int)
    assert_type(runtime.call(lambda: "text"), str)
    runtime.call(size, "1")  # type: ignore[arg-type]
    runtime.call(size)  # type: ignore[call-arg]
    runtime.call(size, 1, units="MB")  # type: ignore[call-arg]


def tasks(runtime: Runtime, connection: Connection) -> None:
    task = RuntimeTask("name").run_command("true", timeout=3).send_file(Path("local")).get_file("remote", "local")
    assert_type(task, RuntimeTask)
    assert_type(task.run_function(size, 1, unit="MB"), RuntimeTask)
    task.run_function(size, "1")  # type: ignore[arg-type]
    assert_type(runtime.execute_task(task, execute_async=False), RuntimeTask)
    assert_type(task.execute(connection, debug=True), RuntimeTask)
    assert_type(task.execution_log, list[str])
    assert_type(task.results, tuple[StepResult, ...])
    assert_type(task.function_returns, Generator[object, None, None])
    assert_type(task.process, ManagedProcess | None)
    assert_type(task.copy(), RuntimeTask)
    try:
        task.join()
    except TaskExecutionError as error:
        assert_type((error.host, error.task, error.step_index), tuple[str, str, int])
    except OutputLimitError as error:
        assert_type((error.host, error.command, error.limit), tuple[str, str, int])
        assert_type((error.stdout, error.stderr_bytes), tuple[str, bytes])
    except LazyclusterError:
        pass
    except (ValueError, lazycluster.exceptions.ConnectError):
        pass


def options() -> None:
    shared: RuntimeOptions = {"user": "me", "resident": False, "max_sessions": 1}
    Runtime("host", **shared)
    RuntimeGroup(hosts=["host"], **shared)
    shared["grace"] = "5"  # type: ignore[typeddict-item]


def errors(error: Error) -> None:
    assert_type(error.host, str)
    assert_type(error.index, int | None)
    assert_type(error.item, object)
    assert_type(Error(ValueError()), Error)
    assert_type(lazycluster.__version__, str)


def steps(task: RuntimeTask) -> None:
    assert_type(task.steps, tuple[Step, ...])
    for step in task.steps:
        match step:
            case RunCommand():
                assert_type(step.command, str | tuple[str, ...])
            case SendFile() | GetFile():
                assert_type(step.local, Path)
            case _:
                assert_type(step, RunFunction)


def groups(runtime: Runtime) -> None:
    with RuntimeGroup([runtime], hosts=["host"], max_connections=4, on_error="skip", port=22) as group:
        assert_type(group, RuntimeGroup)
        assert_type(group.hosts, list[str])
        assert_type(group.failed_hosts, dict[str, Exception])
        assert_type(group.get_runtime(), Runtime)
        assert_type(group.get_runtimes(exclude_hosts="host"), dict[str, Runtime])
        assert_type(group.get_free_port([8000]), int)
        assert_type(group.expose_port_to_runtimes(8000), list[str])
        assert_type(group.task_processes, list[ManagedProcess])
        group.add_runtime("other")
        group.join()
        group.close()
    RuntimeGroup(hosts=["host"], prot=22)  # type: ignore[call-arg]
    RuntimeGroup(hosts=["host"], on_error="collect")  # type: ignore[arg-type]
    RuntimeGroup(["host"])  # type: ignore[list-item]


def group_calls(group: RuntimeGroup, on_error: OnError) -> None:
    assert_type(group.run("true"), dict[str, CommandResult])
    assert_type(group.run("true", at_once=2), dict[str, CommandResult])
    assert_type(group.put("file", on_error="collect"), dict[str, Error | None])
    assert_type(group.get("file", Path("{host}"), on_error="collect"), dict[str, Error | None])
    assert_type((len(group), "host" in group, group["host"]), tuple[int, bool, Runtime])
    assert_type(list(group), list[Runtime])
    assert_type(group.run("true", on_error="raise"), dict[str, CommandResult])
    assert_type(group.run("true", on_error="collect"), dict[str, CommandResult | Error])
    for result in group.run("true", on_error=on_error).values():
        assert_type(result, CommandResult | Error)
    assert_type(group.run("true", cwd="sub", stdin="text", check=True, max_output=10), dict[str, CommandResult])
    assert_type(group.run("true", on_line=show_line_of_host), dict[str, CommandResult])
    group.run("true", on_line=show_line)  # type: ignore[arg-type]
    group.run("true", on_error="skip")  # type: ignore[call-overload]

    assert_type(group.call(size, 1, unit="MB"), dict[str, int])
    group.call(size, "1")  # type: ignore[arg-type]
    group.call(size, 1, on_error="collect")  # type: ignore[call-arg]

    assert_type(group.map(size, [1, 2]), Generator[int, None, None])
    assert_type(group.map(size, [1, 2], ordered=False, on_error="collect"), Generator[int | Error, None, None])
    for item in group.map(size, [1, 2], on_error=on_error):
        assert_type(item, int | Error)
    group.map(size, ["1"])  # type: ignore[arg-type]
    group.map(size, [1], retries="2")  # type: ignore[call-overload]


def options_of_calls(
    runtime: Runtime, group: RuntimeGroup, on_error: OnError, output: CallOutput, point: Point
) -> None:
    caller = runtime.with_options(timeout=1, env={"A": "1"}, cwd="/tmp", output=output)
    assert_type(caller, Caller)
    assert_type(caller.host, str)
    assert_type(caller.call(size, 1, unit="MB"), int)
    assert_type(caller.call(point.scaled, 0.5), tuple[float, float])
    caller.call(size, "1")  # type: ignore[arg-type]
    runtime.with_options(output="show")  # type: ignore[arg-type]
    runtime.with_options(on_error="raise")  # type: ignore[call-arg]

    assert_type(group.with_options(timeout=1.5).call(size, 1), dict[str, int])
    assert_type(
        group.with_options(on_error="raise", output="log").call(point.scaled, 1.0), dict[str, tuple[float, float]]
    )
    assert_type(group.with_options(on_error="collect"), GroupCaller[Error])
    assert_type(group.with_options(on_error="collect", cwd="/").call(size, 1), dict[str, int | Error])
    for value in group.with_options(on_error=on_error).call(size, 1).values():
        assert_type(value, int | Error)
    group.with_options(on_error="skip")  # type: ignore[call-overload]
    group.with_options().call(size, "1")  # type: ignore[arg-type]


def group_tasks(group: RuntimeGroup, task: RuntimeTask, broadcast: bool, on_error: OnError) -> None:
    assert_type(group.execute_task(task, "host"), RuntimeTask)
    assert_type(group.execute_task(task, on_error="collect"), RuntimeTask | Error)
    assert_type(group.execute_task(task, on_error=on_error), RuntimeTask | Error)
    assert_type(group.execute_task(task, broadcast=True), dict[str, RuntimeTask])
    assert_type(group.execute_task(task, broadcast=True, on_error="collect"), dict[str, RuntimeTask | Error])
    for copy in group.execute_task(task, broadcast=True, on_error=on_error).values():
        assert_type(copy, RuntimeTask | Error)
    assert_type(group.execute_task(task, broadcast=broadcast), RuntimeTask | dict[str, RuntimeTask])
    assert_type(group.execute_task(task, None, broadcast, False, True), RuntimeTask | dict[str, RuntimeTask])
    executed = group.execute_task(task, broadcast=broadcast, on_error=on_error)
    assert_type(executed, RuntimeTask | dict[str, RuntimeTask] | Error | dict[str, RuntimeTask | Error])
    group.execute_task(task, broadcast="yes")  # type: ignore[call-overload]

    assert_type(group.send_file(Path("local")), dict[str, RuntimeTask])
    assert_type(group.send_file("local", "remote", False, on_error="raise"), dict[str, RuntimeTask])
    assert_type(group.send_file("local", on_error="collect"), dict[str, RuntimeTask | Error])
    for sent in group.send_file("local", on_error=on_error).values():
        assert_type(sent, RuntimeTask | Error)
    group.send_file(b"local")  # type: ignore[call-overload]


def group_errors(group: RuntimeGroup) -> None:
    try:
        group.run("true")
    except HostsFailedError as error:
        assert_type(error.errors, tuple[tuple[str, Exception], ...])
        assert_type((error.action, error.total), tuple[str, int])
        chosen, rest = error.split(ConnectionError)
        if chosen is not None:
            assert_type(chosen.message, str)
        if rest is not None:
            assert_type(rest.message, str)
        error.total = "2"  # type: ignore[assignment]


def managers() -> None:
    with RuntimeManager("config", max_connections=4, connect_timeout=5.0) as manager:
        assert_type(manager.hosts, list[str])
        assert_type(manager.inactive_hosts, dict[str, Exception])
        assert_type(manager.runtimes, list[Runtime])
        assert_type(manager.create_group(["host"], min_memory=1000, installed_executables="tar"), RuntimeGroup)
        manager.create_group(min_memory="1000")  # type: ignore[arg-type]
        manager.close()
    RuntimeManager(working_dir="/tmp")  # type: ignore[call-arg]


def names(runtime: Runtime, task: RuntimeTask) -> tuple[SameRuntime, SameRuntimeTask]:
    return runtime, task


def testing() -> None:
    with (
        LocalSshd(name="one", shell=("busybox", "sh"), options={"MaxSessions": "1"}) as sshd,
        Relay(sshd.port) as relay,
    ):
        Connection(sshd.host, **sshd.connection_kwargs)
        Runtime(sshd.host, **sshd.connection_kwargs)
        assert_type((sshd.port, relay.port), tuple[int, int])
        relay.delay = 0.02
    LocalSshd(sell="sh")  # type: ignore[call-arg]


def fakes() -> None:
    with FakeHost() as host:
        host.on("nproc", stdout="8\n", exit_code=0, delay=0.5)
        host.on(["ls", "-l"], exit_code=2)
        host.on("nproc", stdout=8)  # type: ignore[arg-type]
        assert_type(host.host("web1"), ScriptedHost)
        host.strict = "no"  # type: ignore[assignment]
        assert_type(host.commands, list[str])
        assert_type(host.path("~/file"), Path)
