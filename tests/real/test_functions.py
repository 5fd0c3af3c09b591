"""Python functions on a host: sent, called, and answered for, with nothing installed and nothing left."""

from __future__ import annotations

import functools
import json
import operator
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

from lazycluster import (
    CommandTimeoutError,
    Connection,
    ConnectionLostError,
    FunctionNotSerializableError,
    InvalidRuntimeError,
    PythonNotFoundError,
    PythonVersionMismatchError,
    RemoteFunctionError,
    RemoteTraceback,
    Runtime,
    RuntimeTask,
    SupervisorError,
    TaskExecutionError,
)
from lazycluster._functions.function_call import FunctionCall
from lazycluster._functions.serialize import serialize_call
from lazycluster._runtime_core import core_of
from lazycluster.testing import LocalSshd
from tests.client_programs import call_in_parallel
from tests.observation import (
    assert_no_leaks,
    count_sessions,
    options_without_python,
    record_program_starts,
    require_other_python,
    running_relay,
    skip_or_fail,
    unique_sleep_seconds,
    write_script,
)
from tests.processes import command_line
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd

HERE = "{}.{}".format(*sys.version_info)


@pytest.fixture(scope="module")
def runtime(sshd: LocalSshd, resident: bool) -> Iterator[Runtime]:
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        yield runtime


def run(runtime: Runtime, function: Callable[..., object], /, *args: object, **kwargs: object) -> RuntimeTask:
    task = RuntimeTask("calling").run_function(function, *args, **kwargs)
    return runtime.execute_task(task, execute_async=False)


# Anything that can be called -----------------------------------------------------------------------------------------


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
    def of_class(cls, more: int) -> int:
        return cls.offset + more

    @staticmethod
    def static(more: int) -> int:
        return 200 + more

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adder) and other.start == self.start

    __hash__ = None  # type: ignore[assignment]  # says so itself


def closure(start: int) -> Callable[[int], int]:
    steps = [start]

    def add(more: int) -> int:
        steps.append(more)
        return sum(steps)

    return add


def factorial(number: int) -> int:
    return 1 if number <= 1 else number * factorial(number - 1)


def read_input() -> str:
    return sys.stdin.read()


def with_default(a: int, /, b: int = 2, *c: int, d: int, **e: int) -> list[object]:
    return [a, b, c, d, e]


CALLS: list[tuple[Callable[..., object], tuple[object, ...], dict[str, object], object]] = [
    (lambda: 42, (), {}, 42),
    (lambda a, b=3: a * b, (5,), {}, 15),
    (closure(5), (6,), {}, 11),
    (functools.partial(pow, 2), (10,), {}, 1024),
    (functools.partial(with_default, 1, d=4), (), {"f": 6}, [1, 2, (), 4, {"f": 6}]),
    (with_default, (1, 2, 3), {"d": 4, "self": 5, "timeout": 6}, [1, 2, (3,), 4, {"self": 5, "timeout": 6}]),
    (Adder(1).method, (2,), {}, 3),
    (Adder(1), (2,), {}, 3),
    (Adder.of_class, (1,), {}, 101),
    (Adder.static, (1,), {}, 201),
    (Adder, (7,), {}, Adder(7)),
    (factorial, (30,), {}, 265252859812191058636308480000000),
    (len, ("four",), {}, 4),
    (operator.itemgetter(1), ([1, 2],), {}, 2),
    (lambda: closure(1)(2), (), {}, 3),
    (lambda: None, (), {}, None),
    (lambda value: value, (b"\x00\xff\r\n" * 3,), {}, b"\x00\xff\r\n" * 3),
    (lambda: {"a": [1, (2.5, "ü\n")]}, (), {}, {"a": [1, (2.5, "ü\n")]}),
]


@pytest.mark.parametrize(("function", "args", "kwargs", "expected"), CALLS)
def test_anything_that_can_be_called_is_called_on_the_host(
    runtime: Runtime,
    function: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    expected: object,
) -> None:
    assert runtime.call(function, *args, **kwargs) == expected
    assert list(run(runtime, function, *args, **kwargs).function_returns) == [expected]


def test_what_is_returned_is_of_the_class_that_went_there(runtime: Runtime) -> None:
    assert type(runtime.call(Adder, 1)) is Adder


def test_it_runs_on_the_host_in_the_working_directory_with_the_environment(runtime: Runtime) -> None:
    assert runtime.call(os.getpid) != os.getpid()
    assert runtime.call(os.getcwd) == runtime.working_dir
    runtime.set_env_variables({"GREETING": "two\nlines 'and' \"quotes\""})
    try:
        environment = runtime.call(lambda: dict(os.environ))
    finally:
        runtime.set_env_variables({})
    assert environment["GREETING"] == "two\nlines 'and' \"quotes\""
    assert environment["WORKING_DIR"] == runtime.working_dir
    assert runtime.call(read_input) == ""


def test_modules_that_lie_in_the_working_directory_are_not_taken_for_the_librarys(
    sshd: LocalSshd, tmp_path: Path, resident: bool
) -> None:
    for name in ("zlib", "pickle", "cloudpickle", "struct", "os"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')")
    with Runtime(sshd.host, str(tmp_path), resident=resident, **sshd.connection_kwargs) as runtime:
        assert runtime.call(lambda: 1) == 1


_SCRIPT = """
import sys
import beside
from beside import Shape, area
from package.inner import deep
from lazycluster import Runtime, RuntimeTask

FACTOR = 3

class Own:
    def __init__(self, value):
        self.value = value
    def times(self):
        return self.value * FACTOR

class OwnError(Exception):
    def __init__(self, code, *, hint):
        super().__init__(f"code {code}")
        self.code, self.hint = code, hint

def of_main(x):
    return x * FACTOR

def imports_inside():
    import beside
    from package.inner import deep
    return beside.area(Shape(2, 3)) + deep()

def fails():
    raise OwnError(7, hint="look")

if __name__ == "__main__":
    import cloudpickle
    with Runtime(sys.argv[1], config_file=sys.argv[2], resident=sys.argv[3] == "True") as runtime:
        assert runtime.call(of_main, 2) == 6
        assert runtime.call(Own(4).times) == 12
        assert runtime.call(lambda: area(Shape(4, 5))) == 20
        assert runtime.call(beside.area, Shape(1, 2)) == 2
        assert runtime.call(imports_inside) == 106
        assert runtime.call(deep) == 100
        shape = runtime.call(Shape, 8, 9)
        assert type(shape) is Shape and shape.width == 8
        own = runtime.call(Own, 5)
        assert type(own) is Own and own.times() == 15
        for function, kind in ((fails, OwnError), (beside.fails, beside.BesideError)):
            try:
                runtime.call(function)
            except kind as error:
                assert type(error) is kind
                print(type(error).__name__, error, getattr(error, "code", None), getattr(error, "hint", None))
            else:
                raise SystemExit("it did not raise")
        task = RuntimeTask().run_function(of_main, 1).run_function(imports_inside)
        task.run_function(beside.area, Shape(2, 2))
        assert list(runtime.execute_task(task).function_returns) == [3, 106, 4]
        assert cloudpickle.list_registry_pickle_by_value() == set()
        assert not runtime.run("ls").stdout
    print("done")
"""


def test_functions_of_a_script_and_of_the_modules_beside_it(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    (tmp_path / "script.py").write_text(_SCRIPT)
    (tmp_path / "beside.py").write_text(
        "class Shape:\n"
        "    def __init__(self, width, height):\n"
        "        self.width, self.height = width, height\n"
        "def area(shape):\n"
        "    return _multiply(shape.width, shape.height)\n"
        "def _multiply(a, b):\n"
        "    return a * b\n"
        "class BesideError(ValueError):\n"
        "    pass\n"
        "def fails():\n"
        "    raise BesideError('beside')\n"
    )
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "inner.py").write_text("from . import other\ndef deep():\n    return other.VALUE\n")
    (tmp_path / "package" / "other.py").write_text("VALUE = 100\n")

    script = str(tmp_path / "script.py")
    argv = (sys.executable, "-W", "error", script, sshd.host, str(sshd.config_file), str(resident))
    ended = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=60, check=False)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == ["OwnError code 7 7 look", "BesideError beside None None", "done"]


def test_the_registry_of_cloudpickle_stays_as_it_was(runtime: Runtime) -> None:
    cloudpickle.register_pickle_by_value(textwrap)
    try:
        before = set(cloudpickle.list_registry_pickle_by_value())
        assert runtime.call(Adder(1), 1) == 2
        with pytest.raises(FunctionNotSerializableError):
            runtime.call(lambda lock: None, threading.Lock())
        assert set(cloudpickle.list_registry_pickle_by_value()) == before
    finally:
        cloudpickle.unregister_pickle_by_value(textwrap)


def test_several_at_once(runtime: Runtime) -> None:
    results = call_in_parallel([functools.partial(runtime.call, operator.mul, number, number) for number in range(12)])

    assert results == [number * number for number in range(12)]


# What it prints ------------------------------------------------------------------------------------------------------


def talk() -> str:
    print("printed")
    sys.stderr.write("complained\n")
    os.system("echo from a command")
    sys.stdout.write("no end")
    return "returned"


def test_what_it_prints_is_in_the_log_of_the_step(runtime: Runtime) -> None:
    task = RuntimeTask().run_command("echo before").run_function(talk).run_command("echo after")

    runtime.execute_task(task, execute_async=False)

    assert task.execution_log == ["before\n", "printed\ncomplained\nfrom a command\nno end", "after\n"]
    assert list(task.function_returns) == ["returned"]
    assert [result.exit_code for result in task.results] == [0, None, 0]


def test_what_it_prints_is_seen_while_it_runs(
    runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints, and does not end before somebody has seen that."""
    seen = tmp_path / "seen"

    def wait() -> None:
        print("waiting")
        while not Path(seen).exists():
            time.sleep(0.01)

    task = runtime.execute_task(RuntimeTask().run_function(wait), debug=True)
    shown = ""

    def printed() -> bool:
        nonlocal shown
        shown += capsys.readouterr().out
        return "waiting\n" in shown

    assert_eventually(printed, "it is shown")
    assert task.process is not None
    assert task.process.is_alive()
    seen.touch()
    task.join()


def test_prints_do_not_spoil_the_result(runtime: Runtime) -> None:
    def noisy() -> str:
        os.write(1, b"\x93lzcall\nV" * 1000)
        os.write(2, os.urandom(100_000))
        return "intact"

    assert runtime.call(noisy) == "intact"


# What it raises ------------------------------------------------------------------------------------------------------


class PlainError(Exception):
    pass


class KeywordError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class UnreadableError(Exception):
    def __reduce__(self) -> Any:
        return _only_there, ()


def _only_there() -> Exception:
    if "LAZYCLUSTER_JOB" in os.environ:
        return UnreadableError("there")
    raise RuntimeError("cannot be made here")


class UnsendableError(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def raising(kind: type[BaseException], *args: object, **kwargs: object) -> object:
    raise kind(*args, **kwargs)


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
)
def test_an_exception_is_raised_here_as_its_own_type_with_its_traceback(
    runtime: Runtime, kind: type[Exception], args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    with pytest.raises(kind) as caught:
        runtime.call(raising, kind, *args, **kwargs)

    assert type(caught.value) is kind
    assert str(caught.value) == str(kind(*args, **kwargs))
    assert vars(caught.value).get("code") == kwargs.get("code")
    text = "".join(traceback.format_exception(caught.value))
    assert "raised on local:" in text
    assert "in raising\n    raise kind(*args, **kwargs)" in text
    assert isinstance(caught.value.__cause__, RemoteTraceback)


def test_a_chain_of_causes_is_in_the_traceback(runtime: Runtime) -> None:
    def chained() -> None:
        try:
            print(1 / 0)
        except ZeroDivisionError as error:
            raise RuntimeError("because") from error

    with pytest.raises(RuntimeError, match="because") as caught:
        runtime.call(chained)
    assert "ZeroDivisionError: division by zero" in str(caught.value.__cause__)


def test_a_task_wraps_the_exception_and_stops(runtime: Runtime) -> None:
    task = RuntimeTask("risky").run_function(len, "first").run_function(raising, PlainError, "no luck")
    task.run_command("touch never")

    with pytest.raises(TaskExecutionError) as caught:
        runtime.execute_task(task, execute_async=False)

    error = caught.value
    assert (error.host, error.task, error.step_index) == ("local", "risky", 1)
    assert "task 'risky' failed at step 1, run_function(raising): PlainError: no luck" in str(error)
    assert type(error.__cause__) is PlainError
    assert "in raising" in "".join(traceback.format_exception(error))
    assert [result.ok for result in task.results] == [True, False]
    returns = task.function_returns
    assert next(returns) == 5
    with pytest.raises(PlainError, match="no luck"):
        next(returns)
    assert runtime.run("ls").stdout == ""


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        (raising, (UnreadableError, "x"), "UnreadableError"),
        (raising, (UnsendableError,), "holds a lock"),
        (raising, (SystemExit, 3), "SystemExit: 3"),
        (raising, (KeyboardInterrupt,), "KeyboardInterrupt"),
        (threading.Lock, (), "its result cannot be sent back"),
        (lambda: (number for number in range(3)), (), "returned a generator"),
    ],
    ids=["not here", "not there", "exit", "interrupt", "result", "generator"],
)
def test_what_cannot_be_raised_or_returned_here_is_told(
    runtime: Runtime, function: Callable[..., object], args: tuple[object, ...], reason: str
) -> None:
    with pytest.raises((RemoteFunctionError, TypeError)) as caught:
        runtime.call(function, *args)

    assert reason in str(caught.value)
    if isinstance(caught.value, RemoteFunctionError):
        assert caught.value.host == "local"
        assert "Traceback (most recent call last)" in caught.value.remote_traceback


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: os._exit(3), "ended with exit status 3 before the function returned (os._exit?)"),
        (lambda: os._exit(0), "ended with exit status 0 before the function returned (os._exit?)"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by signal 9 (SIGKILL)"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was killed by signal 11 (SIGSEGV)"),
        (os.abort, "was killed by signal 6 (SIGABRT)"),
    ],
)
def test_the_death_of_its_process_is_named(runtime: Runtime, function: Callable[[], object], reason: str) -> None:
    with pytest.raises(RemoteFunctionError) as caught:
        runtime.call(function)

    assert reason in str(caught.value)
    assert caught.value.function.endswith(function.__name__)
    assert runtime.call(lambda: "still well") == "still well"


def test_what_cannot_be_sent_is_refused_before_anything_is(sshd: LocalSshd, runtime: Runtime) -> None:
    before = count_sessions(sshd)

    with pytest.raises(FunctionNotSerializableError, match="inside the function") as caught:
        runtime.call(closure_over(threading.Lock()))
    with pytest.raises(TaskExecutionError, match="cannot be sent to a host"):
        run(runtime, closure_over(threading.Lock()))

    assert "lock" in caught.value.reason
    assert count_sessions(sshd) == before
    with pytest.raises(ValueError, match="function must be callable"):
        RuntimeTask().run_function(None)  # type: ignore[arg-type]  # the mistake that is tested


def closure_over(thing: object) -> Callable[[], object]:
    return lambda: thing


# Big things ----------------------------------------------------------------------------------------------------------

_BIG = """
import json, resource, sys
from lazycluster import Runtime, RuntimeTask

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

MIB = 1 << 20
with Runtime(sys.argv[1], config_file=sys.argv[2], resident=sys.argv[3] == "True") as runtime:
    assert runtime.call(lambda: 1) == 1
    before = peak()
    task = RuntimeTask().run_function(lambda: bytes(100 * MIB))
    runtime.execute_task(task, execute_async=False)
    received = peak() - before
    assert next(task.function_returns) == bytes(100 * MIB)
    unpickled = peak() - before
    task.cleanup()
    assert runtime.call(lambda data: (len(data), data[-1]), bytes(100 * MIB - 1) + b"x") == (100 * MIB, ord("x"))
    print(json.dumps({"received": received, "unpickled": unpickled, "sent": peak() - before}))
"""


@pytest.mark.soak
def test_a_hundred_megabytes_there_and_back_in_bounded_memory(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    """The result goes to a file as it comes; what is sent is held as an object, a pickle and a request at most."""
    (tmp_path / "big.py").write_text(_BIG)
    argv = (sys.executable, str(tmp_path / "big.py"), sshd.host, str(sshd.config_file), str(resident))
    with assert_no_leaks(sshd):
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)

    assert ended.stderr == ""
    grown = json.loads(ended.stdout)
    assert grown["received"] < 30
    assert grown["unpickled"] < 330
    assert grown["sent"] < 530


# Which Python --------------------------------------------------------------------------------------------------------


def test_what_a_function_takes_here(sshd: LocalSshd, runtime: Runtime, resident: bool) -> None:
    """Nothing where a supervisor is there already; else one process and one session."""
    runtime.call(int)
    before = count_sessions(sshd)
    with record_program_starts() as programs:
        runtime.call(int)
    assert [argv[0] for argv in programs] == ([] if resident else ["ssh"])
    assert count_sessions(sshd) == before + (0 if resident else 1)


def test_another_minor_version_is_refused_before_the_function_is_sent(
    make_sshd: MakeSshd, tmp_path: Path, resident: bool
) -> None:
    other = require_other_python()
    server = make_sshd(options=options_without_python(tmp_path, {"python3": other}))
    with Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime:
        version = runtime.python_version
        assert not version.startswith(f"{HERE}.")
        with pytest.raises(PythonVersionMismatchError) as caught:
            runtime.call(raising, ValueError)
        with pytest.raises(TaskExecutionError, match=r"python=") as wrapped:
            run(runtime, int)
        assert runtime.run("echo commands still work").ok
        assert runtime.has_free_port(1) in {True, False}

    assert isinstance(wrapped.value.__cause__, PythonVersionMismatchError)
    for words in (f"Python {version}", f"{HERE} here", f"python='python{HERE}'", server.host):
        assert words in str(caught.value)


def test_the_python_of_the_same_minor_version_is_preferred(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    options = options_without_python(
        tmp_path, {"python3": require_other_python(), f"python{HERE}": Path(sys.executable).resolve()}
    )
    server = make_sshd(options=options)
    with Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime:
        assert runtime.call(lambda: sys.version) == sys.version
        assert runtime.python_version.startswith(HERE)


def test_python3_is_taken_where_there_is_no_other_name(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    server = make_sshd(options=options_without_python(tmp_path, {"python3": Path(sys.executable).resolve()}))
    with Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime:
        assert runtime.call(lambda: sys.version) == sys.version


def test_a_host_without_python_runs_commands_all_the_same(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd(options=options_without_python(tmp_path, {}))
    with Runtime(server.host, resident=False, **server.connection_kwargs) as runtime:
        assert runtime.python_version == ""
        assert not runtime.is_valid_runtime()
        with pytest.raises(PythonNotFoundError, match=f"looked for python{HERE} and python3"):
            runtime.call(int)
        with pytest.raises(PythonNotFoundError):
            runtime.has_free_port(80)
        (tmp_path / "file").write_text("content")
        task = RuntimeTask().send_file(tmp_path / "file").run_command("cat file")
        assert runtime.execute_task(task, execute_async=False).execution_log == ["", "content"]


def test_a_host_without_python_has_no_supervisor_and_says_what_there_is_instead(
    make_sshd: MakeSshd, tmp_path: Path
) -> None:
    server = make_sshd(options=options_without_python(tmp_path, {}))
    with assert_no_leaks(server), pytest.raises(InvalidRuntimeError, match=r"resident=False") as caught:
        Runtime(server.host, **server.connection_kwargs)
    assert isinstance(caught.value.__cause__, PythonNotFoundError)
    assert f"looked for python{HERE} and python3" in str(caught.value)


@pytest.mark.parametrize("where", ["{home}/my own python", "~/my own python", "known"])
def test_a_python_that_is_named_is_taken(make_sshd: MakeSshd, tmp_path: Path, where: str, resident: bool) -> None:
    programs: dict[str, Path | str] = {"python3": require_other_python()}
    program = f'OWN=yes exec {Path(sys.executable).resolve()} "$@"\n'
    if where == "known":
        programs[where] = program
    server = make_sshd(options=options_without_python(tmp_path, programs))
    home = tmp_path / "bare-home"
    write_script(home / "my own python", program)

    with Runtime(server.host, python=where.format(home=home), resident=resident, **server.connection_kwargs) as runtime:
        assert runtime.call(lambda: os.environ["OWN"]) == "yes"
        assert runtime.python_version == ".".join(map(str, sys.version_info[:3]))
        assert runtime.has_free_port(1) in {True, False}


def test_a_python_that_is_named_and_not_there(sshd: LocalSshd) -> None:
    python = "/no/such/python"
    with Runtime(sshd.host, python=python, resident=False, **sshd.connection_kwargs) as runtime:
        with pytest.raises(PythonNotFoundError, match="looked for /no/such/python"):
            runtime.call(int)
        assert runtime.python_version == ""
    with assert_no_leaks(sshd), pytest.raises(InvalidRuntimeError, match="looked for /no/such/python") as caught:
        Runtime(sshd.host, python=python, **sshd.connection_kwargs)
    assert isinstance(caught.value.__cause__, PythonNotFoundError)


def test_a_shim_for_a_version_that_is_not_switched_on_is_passed_over(
    make_sshd: MakeSshd, tmp_path: Path, resident: bool
) -> None:
    """pyenv's shims stand on the PATH for every version that is installed, and end with 127 for most of them."""
    options = options_without_python(tmp_path, {"python3": Path(sys.executable).resolve()})
    shims = tmp_path / "shims"
    shims.mkdir()
    write_script(shims / f"python{HERE}", f"echo 'pyenv: python{HERE}: command not found' >&2\nexit 127\n")
    launcher = tmp_path / "launch-bare"
    launcher.write_text(launcher.read_text().replace("PATH=", f"PATH={shims}:", 1))
    server = make_sshd(options=options)

    with Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime:
        assert runtime.call(lambda: sys.version) == sys.version
        assert runtime.python_version.startswith(HERE)


def test_a_python_that_cannot_start_is_told_with_its_words(make_sshd: MakeSshd, tmp_path: Path) -> None:
    broken = "echo 'python3: error while loading shared libraries: libnone.so' >&2\nexit 1\n"
    server = make_sshd(options=options_without_python(tmp_path, {"python3": broken}))
    with (
        Runtime(server.host, resident=False, **server.connection_kwargs) as runtime,
        pytest.raises(RemoteFunctionError, match="ended with exit status 1") as caught,
    ):
        runtime.call(int)
    with assert_no_leaks(server), pytest.raises(InvalidRuntimeError, match="ended with exit status 1") as refused:
        Runtime(server.host, **server.connection_kwargs)
    assert isinstance(refused.value.__cause__, SupervisorError)
    for error in (caught.value, refused.value):
        assert "error while loading shared libraries" in str(error)


@pytest.mark.parametrize("shell", ["bash", "fish", "tcsh"])
def test_start_up_files_that_print_and_login_shells_of_any_kind(
    make_sshd: MakeSshd, shell: str, resident: bool
) -> None:
    if shutil.which(shell) is None:
        skip_or_fail(f"there is no {shell} on this machine")
    server = make_sshd(shell=shell)
    for name in (".bashrc", ".tcshrc", ".config/fish/config.fish"):
        (server.home / name).parent.mkdir(parents=True, exist_ok=True)
        (server.home / name).write_text("echo noise from a start-up file\n")
    with Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime:
        assert runtime.call(lambda text: text, "it's $HOME\n!") == "it's $HOME\n!"
        assert run(runtime, print, "printed").execution_log == ["printed\n"]


# Nothing stays -------------------------------------------------------------------------------------------------------


def test_nothing_is_left_on_the_host(make_sshd: MakeSshd) -> None:
    server = make_sshd()
    with Connection(server.host, **server.connection_kwargs) as connection:
        connection.run("true")
        with assert_no_leaks(server):
            task = RuntimeTask().run_function(tempfile.gettempdir)
            assert list(task.execute(connection).function_returns)
            with pytest.raises(TaskExecutionError):
                RuntimeTask().run_function(os._exit, 1).execute(connection)
            task.cleanup()
        assert [path.name for path in server.home.rglob("*")] == []


def with_children(number: str, deaf: str = "true") -> None:
    """Start children that hide in sessions of their own, and wait for ever; one may be deaf to SIGTERM."""
    subprocess.Popen(("sleep", number), start_new_session=True)
    subprocess.Popen(("sh", "-c", f"(setsid sleep {number} &) ; {deaf}; sleep {number}"))
    time.sleep(10_000)


def sleeping(server: LocalSshd, number: str) -> list[int]:
    return [pid for pid in server.processes() if number in command_line(pid)]


def test_stopping_ends_the_function_with_everything_that_it_started(sshd: LocalSshd, resident: bool) -> None:
    number = unique_sleep_seconds()
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        task = runtime.execute_task(RuntimeTask("endless").run_function(with_children, number))
        assert_eventually(lambda: len(sleeping(sshd, number)) >= 3, "it has started its children")
        [key] = runtime.get_processes()
        begun = time.monotonic()
        runtime.stop_process(key)
        took = time.monotonic() - begun

        assert took < 4
        assert_eventually(lambda: not sleeping(sshd, number), "all are gone", timeout=8)
        with pytest.raises(TaskExecutionError, match="was stopped before it ended"):
            task.join()
        assert runtime.get_process(key).exitcode == -signal.SIGTERM


def test_a_timeout_ends_the_function_with_everything_that_it_started(sshd: LocalSshd, tmp_path: Path) -> None:
    number = unique_sleep_seconds()
    with (
        Runtime(sshd.host, resident=False, grace=1.0, **sshd.connection_kwargs) as runtime,
        (tmp_path / "outcome").open("w+b") as outcome,
    ):
        call = FunctionCall(serialize_call(with_children, number, "trap '' TERM"), timeout=1)
        begun = time.monotonic()
        with pytest.raises(CommandTimeoutError, match="took longer than its timeout of 1 s"):
            core_of(runtime).transport.call(call, outcome)
        assert time.monotonic() - begun < 5
        assert_eventually(lambda: not sleeping(sshd, number), "all are gone", timeout=8)


def test_a_link_that_breaks_is_told_and_ends_the_function(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    number = unique_sleep_seconds()
    work = str(tmp_path / "work")
    with (
        running_relay(sshd, tmp_path) as (relay, keywords),
        Runtime(sshd.host, work, resident=resident, **keywords) as runtime,
    ):
        task = runtime.execute_task(RuntimeTask("cut off").run_function(with_children, number))
        assert_eventually(lambda: len(sleeping(sshd, number)) >= 3, "it has started its children")
        relay.drop()
        with pytest.raises(TaskExecutionError) as caught:
            task.join()

        assert isinstance(caught.value.__cause__, ConnectionLostError)
        assert caught.value.__cause__.started
        assert_eventually(lambda: not sleeping(sshd, number), "all are gone", timeout=8)
        assert runtime.call(os.getcwd) == work


def test_what_the_function_leaves_in_the_background_does_not_keep_the_call_waiting(
    sshd: LocalSshd, resident: bool
) -> None:
    number = unique_sleep_seconds()
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        begun = time.monotonic()
        runtime.call(lambda: subprocess.Popen(("sleep", number), start_new_session=True).pid)
        assert time.monotonic() - begun < 5
    assert_eventually(lambda: not sleeping(sshd, number), "the end of the runtime is its end")
