"""Functions: everything that can be called, and its result, output and errors."""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import os
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest

from lazycluster import (
    CommandStoppedError,
    FunctionNotSerializableError,
    RemoteFunctionError,
    RemoteTraceback,
    Runtime,
    RuntimeTask,
    TaskExecutionError,
    WorkingDirectoryError,
)
from tests.client_programs import call_in_parallel
from tests.contract.conftest import HOST_ALIAS, TransportCase, execute_and_wait
from tests.waiting import assert_eventually


class Adder:
    """Has all kinds of methods, and can be called itself."""

    offset = 100

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, more: int) -> int:
        return self.start + more

    def method(self, more: int) -> int:
        return self.start + more

    @classmethod
    def class_method(cls, more: int) -> int:
        return cls.offset + more

    @staticmethod
    def static_method(more: int) -> int:
        return 200 + more

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adder) and other.start == self.start

    __hash__ = None  # type: ignore[assignment]  # as Python itself sets it


def closure(start: int) -> Callable[[int], int]:
    steps = [start]

    def add(more: int) -> int:
        steps.append(more)
        return sum(steps)

    return add


def factorial(number: int) -> int:
    return 1 if number <= 1 else number * factorial(number - 1)


def with_default(a: int, /, b: int = 2, *c: int, d: int, **e: int) -> list[object]:
    return [a, b, c, d, e]


class PlainError(Exception):
    pass


class KeywordError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class UnsendableError(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def raise_error(kind: type[BaseException], *args: object, **kwargs: object) -> object:
    raise kind(*args, **kwargs)


def print_to_both_streams() -> str:
    print("printed")
    sys.stderr.write("complained\n")
    sys.stdout.write("no end")
    return "returned"


# Called --------------------------------------------------------------------------------------------------------------

CALLS: list[tuple[Callable[..., object], tuple[object, ...], dict[str, object], object]] = [
    (lambda: 42, (), {}, 42),
    (lambda a, b=3: a * b, (5,), {}, 15),
    (closure(5), (6,), {}, 11),
    (functools.partial(pow, 2), (10,), {}, 1024),
    (functools.partial(with_default, 1, d=4), (), {"f": 6}, [1, 2, (), 4, {"f": 6}]),
    (with_default, (1, 2, 3), {"d": 4, "self": 5, "timeout": 6}, [1, 2, (3,), 4, {"self": 5, "timeout": 6}]),
    (Adder(1).method, (2,), {}, 3),
    (Adder(1), (2,), {}, 3),
    (Adder.class_method, (1,), {}, 101),
    (Adder.static_method, (1,), {}, 201),
    (Adder, (7,), {}, Adder(7)),
    (factorial, (30,), {}, 265252859812191058636308480000000),
    (len, ("four",), {}, 4),
    (operator.itemgetter(1), ([1, 2],), {}, 2),
    (lambda: closure(1)(2), (), {}, 3),
    (lambda: None, (), {}, None),
    (lambda value: value, (b"\x00\xff\r\n" * 3,), {}, b"\x00\xff\r\n" * 3),
    (lambda: {"a": [1, (2.5, "ü\n")]}, (), {}, {"a": [1, (2.5, "ü\n")]}),
]


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "expected"),
    CALLS,
    ids=[
        "lambda",
        "default",
        "closure",
        "partial",
        "partial with keywords",
        "positional and keyword",
        "method",
        "callable instance",
        "class method",
        "static method",
        "class",
        "recursion",
        "builtin",
        "itemgetter",
        "nested closure",
        "no result",
        "bytes",
        "nested result",
    ],
)
def test_call_every_kind_of_callable(
    runtime: Runtime,
    function: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    expected: object,
) -> None:
    assert runtime.call(function, *args, **kwargs) == expected
    assert list(execute_and_wait(runtime, RuntimeTask().run_function(function, *args, **kwargs)).function_returns) == [
        expected
    ]


def test_call_result_is_of_the_same_class(runtime: Runtime) -> None:
    assert type(runtime.call(Adder, 1)) is Adder


def test_call_large_argument_and_result(runtime: Runtime) -> None:
    value = os.urandom(5_000_000)

    assert runtime.call(lambda sent: sent[::-1], value) == value[::-1]


def test_call_arguments_are_copies(runtime: Runtime) -> None:
    def change(things: list[int], more: dict[str, list[int]]) -> bool:
        things.append(2)
        more["x"].append(3)
        return things is more["x"]

    numbers = [1]

    assert runtime.call(change, numbers, more={"x": numbers}) is True, "one list stays one list"
    assert numbers == [1]


def test_call_closure_is_a_copy(runtime: Runtime) -> None:
    add = closure(1)

    assert [runtime.call(add, 10), runtime.call(add, 10)] == [11, 11]


def test_function_returns_keep_the_order_of_steps(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask().run_function(factorial, 3).run_command(case.script("true")).run_function(len, "ab")
    task.run_function(lambda: None)

    execute_and_wait(runtime, task)

    assert list(task.function_returns) == [6, 2, None]
    assert list(task.function_returns) == [6, 2, None], "again"


# Working directory and environment -----------------------------------------------------------------------------------


def test_call_sees_working_directory_and_environment(case: TransportCase) -> None:
    runtime = case.runtime(env={"OF_OPTION": "1"})
    runtime.add_env_variables({"GREETING": "two\nlines 'and' \"quotes\""})
    local_cwd, local_environment = Path.cwd(), dict(os.environ)

    found, cwd = runtime.call(lambda: (dict(os.environ), os.getcwd()))  # noqa: PTH109 - as text

    assert cwd == runtime.working_dir
    assert found["GREETING"] == "two\nlines 'and' \"quotes\""
    assert found["OF_OPTION"] == "1"
    assert found["WORKING_DIR"] == runtime.working_dir
    assert found["HOME"] == str(case.home)
    assert Path.cwd() == local_cwd
    assert dict(os.environ) == local_environment


def test_call_changes_of_environment_stay_on_host(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYCLUSTER_TEST_KEPT", "kept")

    def change() -> None:
        os.environ["LAZYCLUSTER_TEST_ADDED"] = "1"
        os.environ.pop("LAZYCLUSTER_TEST_KEPT", None)
        os.chdir("/")

    local_cwd = Path.cwd()
    runtime.call(change)

    assert "LAZYCLUSTER_TEST_ADDED" not in os.environ
    assert os.environ["LAZYCLUSTER_TEST_KEPT"] == "kept"
    assert Path.cwd() == local_cwd
    assert runtime.call(os.getcwd) == runtime.working_dir
    assert runtime.call(lambda: os.environ.get("LAZYCLUSTER_TEST_ADDED")) is None


def test_call_reads_and_writes_files_of_host(case: TransportCase, runtime: Runtime) -> None:
    (case.local_path(runtime.working_dir) / "in").write_text("given")

    def copy() -> str:
        text = Path("in").read_text()
        Path("out").write_text(text * 2)
        Path(os.environ["WORKING_DIR"], "absolute").write_text("3")
        Path("~/from a function").expanduser().write_text("4")
        return text

    assert runtime.call(copy) == "given"
    assert (case.local_path(runtime.working_dir) / "out").read_text() == "givengiven"
    assert (case.local_path(runtime.working_dir) / "absolute").read_text() == "3"
    assert (case.home / "from a function").read_text() == "4"


def test_call_missing_working_directory_is_error(case: TransportCase) -> None:
    runtime = case.runtime()
    missing = runtime.working_dir
    case.local_path(missing).rmdir()

    with pytest.raises(WorkingDirectoryError) as caught:
        runtime.call(int)

    assert (caught.value.host, caught.value.path) == (HOST_ALIAS, missing)


# Output --------------------------------------------------------------------------------------------------------------


def test_run_function_output_is_the_log_of_its_step(
    case: TransportCase, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output of programs that it starts is there, too, but not in the log of a fake host."""
    task = RuntimeTask().run_command(case.script("echo before", stdout="before\n")).run_function(print_to_both_streams)
    task.run_command(case.script("echo after", stdout="after\n"))

    execute_and_wait(runtime, task)

    assert task.execution_log == ["before\n", "printed\ncomplained\nno end", "after\n"]
    assert list(task.function_returns) == ["returned"]
    assert [result.exit_code for result in task.results] == [0, None, 0]
    assert (task.results[1].stdout, task.results[1].stderr) == ("", "printed\ncomplained\nno end")
    assert capsys.readouterr() == ("", "")


def test_run_function_debug_shows_output_at_once(
    case: TransportCase, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints, and does not end before its output was seen."""

    def wait() -> None:
        print("waiting")
        while not Path("seen").exists():
            time.sleep(0.01)

    task = runtime.execute_task(RuntimeTask().run_function(wait), debug=True)
    shown = ""

    def is_shown() -> bool:
        nonlocal shown
        shown += capsys.readouterr().out
        return "waiting\n" in shown

    assert_eventually(is_shown, "the output is shown", timeout=30)
    assert task.process is not None
    assert task.process.is_alive()
    (case.local_path(runtime.working_dir) / "seen").touch()
    task.join()


def test_run_function_may_print_bytes(runtime: Runtime) -> None:
    def noisy() -> str:
        sys.stdout.buffer.write(b"\x93lzcall\nV\xff" * 10)
        sys.stdout.flush()
        return sys.stdout.encoding.lower()

    task = execute_and_wait(runtime, RuntimeTask().run_function(noisy))

    assert list(task.function_returns) == ["utf-8"]
    assert task.results[0].output.stderr_bytes == b"\x93lzcall\nV\xff" * 10


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "args", "kwargs"),
    [
        (ValueError, ("wrong",), {}),
        (KeyError, ("key",), {}),
        (FileNotFoundError, (2, "gone", "/name"), {}),
        (UnicodeDecodeError, ("utf-8", b"\xff", 0, 1, "bad"), {}),
        (PlainError, ("plain", 1), {}),
        (KeywordError, (), {"code": 7}),
    ],
    ids=["ValueError", "KeyError", "OSError", "UnicodeDecodeError", "own class", "own __init__"],
)
def test_call_exception_keeps_type_and_traceback(
    runtime: Runtime, kind: type[Exception], args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    with pytest.raises(kind) as caught:
        runtime.call(raise_error, kind, *args, **kwargs)

    assert type(caught.value) is kind
    assert str(caught.value) == str(kind(*args, **kwargs))
    assert vars(caught.value).get("code") == kwargs.get("code")
    text = "".join(traceback.format_exception(caught.value))
    assert f"raised on {HOST_ALIAS}:" in text
    assert "in raise_error\n    raise kind(*args, **kwargs)" in text
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert cause.text.startswith("Traceback (most recent call last):\n")
    assert cause.text.count('\n  File "') == 1, "only the frames of the function"


def test_call_exception_traceback_has_its_causes(runtime: Runtime) -> None:
    def chained() -> None:
        try:
            print(1 / 0)
        except ZeroDivisionError as error:
            raise RuntimeError("because") from error

    with pytest.raises(RuntimeError) as caught:
        runtime.call(chained)

    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "ZeroDivisionError: division by zero" in caught.value.__cause__.text


def test_run_function_exception_ends_the_task(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask("risky").run_function(len, "first").run_function(raise_error, PlainError, "no luck")
    task.run_command(case.script("touch never", writes={"never": ""})).run_function(len, "never")

    with pytest.raises(TaskExecutionError) as caught:
        execute_and_wait(runtime, task)

    error = caught.value
    assert (error.host, error.task, error.step_index) == (HOST_ALIAS, "risky", 1)
    assert type(error.__cause__) is PlainError
    assert "in raise_error" in "".join(traceback.format_exception(error))
    assert [result.ok for result in task.results] == [True, False]
    returns = task.function_returns
    assert next(returns) == 5
    with pytest.raises(PlainError):
        next(returns)
    assert not (case.local_path(runtime.working_dir) / "never").exists()


async def coroutine() -> int:
    return 1


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        (raise_error, (UnsendableError,), "holds a lock"),
        (raise_error, (SystemExit, 3), "SystemExit: 3"),
        (sys.exit, (3,), "SystemExit: 3"),
        (raise_error, (KeyboardInterrupt,), "KeyboardInterrupt"),
        (threading.Lock, (), "its result cannot be sent back"),
    ],
    ids=["unsendable error", "SystemExit", "sys.exit", "KeyboardInterrupt", "unsendable result"],
)
def test_call_unsendable_outcome_is_remote_function_error(
    runtime: Runtime, function: Callable[..., object], args: tuple[object, ...], reason: str
) -> None:
    with pytest.raises(RemoteFunctionError) as caught:
        runtime.call(function, *args)

    assert reason in caught.value.reason
    assert caught.value.host == HOST_ALIAS
    assert "Traceback" in caught.value.remote_traceback


@pytest.mark.parametrize(
    ("function", "kind"),
    [(lambda: (number for number in range(3)), "generator"), (coroutine, "coroutine")],
    ids=["generator", "coroutine"],
)
def test_call_lazy_result_is_refused(runtime: Runtime, function: Callable[..., object], kind: str) -> None:
    with pytest.raises(TypeError, match=f"returned a {kind}, which cannot leave the host"):
        runtime.call(function)


def test_call_unserializable_is_refused_before_it_runs(case: TransportCase, runtime: Runtime) -> None:
    lock = threading.Lock()
    for function, args in ((lambda: lock, ()), (len, (lock,)), (len, (inspect.currentframe(),))):
        with pytest.raises(FunctionNotSerializableError):
            runtime.call(function, *args)
    with pytest.raises(TaskExecutionError) as failed:
        execute_and_wait(runtime, RuntimeTask().run_function(repr, lock))
    assert isinstance(failed.value.__cause__, FunctionNotSerializableError)
    if case.fake is not None:
        assert case.fake.calls == []


def test_call_without_a_function_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ValueError):
        runtime.call(None)  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(ValueError):
        RuntimeTask().run_function(None)  # type: ignore[arg-type]  # as above


# Stopped, and in parallel --------------------------------------------------------------------------------------------


def test_stop_process_ends_run_function(runtime: Runtime) -> None:
    """A fake host cannot end one, and ignores it; this one then ends when its directory is removed."""

    def wait() -> None:
        print("started")
        directory = Path.cwd()
        while directory.exists():
            time.sleep(0.01)

    task = RuntimeTask("sleeper").run_function(wait).run_function(len, "never")
    runtime.execute_task(task)
    [(key, process)] = runtime.get_processes(only_alive=True).items()

    runtime.stop_process(key)

    assert process.exitcode == -signal.SIGTERM
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert isinstance(caught.value.__cause__, CommandStoppedError)
    assert runtime.call(len, "four") == 4


def test_run_function_in_several_tasks_at_once(runtime: Runtime) -> None:
    """All of them answer; on a fake host they take turns, because they share one process."""
    tasks = [RuntimeTask().run_function(operator.mul, number, number) for number in range(8)]

    for task in tasks:
        runtime.execute_task(task)

    assert [list(task.function_returns) for task in tasks] == [[number * number] for number in range(8)]
    assert list(runtime.function_returns) == [number * number for number in range(8)]


def test_call_in_several_threads_at_once(runtime: Runtime) -> None:
    results = call_in_parallel([functools.partial(runtime.call, operator.mul, number, number) for number in range(12)])

    assert results == [number * number for number in range(12)]


@pytest.mark.parametrize("argument", [1, threading.Lock()], ids=["sendable", "unsendable"])
def test_call_keeps_the_registry_of_cloudpickle(runtime: Runtime, argument: object) -> None:
    cloudpickle.register_pickle_by_value(textwrap)
    try:
        before = set(cloudpickle.list_registry_pickle_by_value())
        with contextlib.suppress(FunctionNotSerializableError):
            runtime.call(repr, argument)
        assert set(cloudpickle.list_registry_pickle_by_value()) == before
    finally:
        cloudpickle.unregister_pickle_by_value(textwrap)
