"""Python functions on a real host: their processes, the interpreter that runs them, and their end.

That functions work on every transport is tested in `tests/contract`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lazycluster import (
    CommandStoppedError,
    Connection,
    ConnectionLostError,
    FunctionNotSerializableError,
    InvalidRuntimeError,
    PythonNotFoundError,
    PythonVersionMismatchError,
    RemoteFunctionError,
    Runtime,
    RuntimeTask,
    SupervisorError,
    TaskExecutionError,
)
from lazycluster.testing import LocalSshd
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
from tests.processes import command_line, is_alive
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd

LOCAL_VERSION = "{}.{}".format(*sys.version_info)


@pytest.fixture(scope="module")
def runtime(sshd: LocalSshd, resident: bool) -> Iterator[Runtime]:
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        yield runtime


def run_function_and_wait(
    runtime: Runtime, function: Callable[..., object], /, *args: object, **kwargs: object
) -> RuntimeTask:
    task = RuntimeTask("calling").run_function(function, *args, **kwargs)
    return runtime.execute_task(task, execute_async=False)


# Processes and modules -----------------------------------------------------------------------------------------------


def read_input() -> str:
    return sys.stdin.read()


def test_call_runs_in_another_process_without_input(runtime: Runtime) -> None:
    assert runtime.call(os.getpid) != os.getpid()
    assert runtime.call(read_input) == ""


def test_call_ignores_modules_in_working_directory(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
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


def test_call_functions_of_script_and_its_modules(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
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


# Output and errors ---------------------------------------------------------------------------------------------------


def print_and_start_program() -> str:
    print("printed")
    os.system("echo from a command")
    sys.stdout.write("no end")
    return "returned"


def test_run_function_log_has_output_of_programs(runtime: Runtime) -> None:
    task = run_function_and_wait(runtime, print_and_start_program)

    assert task.execution_log == ["printed\nfrom a command\nno end"]
    assert list(task.function_returns) == ["returned"]


def test_call_result_survives_raw_output(runtime: Runtime) -> None:
    def noisy() -> str:
        os.write(1, b"\x93lzcall\nV" * 1000)
        os.write(2, os.urandom(100_000))
        return "intact"

    assert runtime.call(noisy) == "intact"


class UnreadableError(Exception):
    def __reduce__(self) -> Any:
        return _create_on_host_only, ()


def _create_on_host_only() -> Exception:
    if "LAZYCLUSTER_JOB" in os.environ:
        return UnreadableError("on the host")
    raise RuntimeError("cannot be made in the local process")


def raise_error(kind: type[BaseException], *args: object, **kwargs: object) -> object:
    raise kind(*args, **kwargs)


def test_call_error_that_cannot_be_unpickled_is_described(runtime: Runtime) -> None:
    with pytest.raises(RemoteFunctionError) as caught:
        runtime.call(raise_error, UnreadableError, "x")

    assert "UnreadableError" in caught.value.reason
    assert caught.value.host == "local"
    assert "Traceback (most recent call last)" in caught.value.remote_traceback


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: os._exit(3), "exit status 3"),
        (lambda: os._exit(0), "exit status 0"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
        (os.abort, "SIGABRT"),
    ],
    ids=["exit 3", "exit 0", "SIGKILL", "SIGSEGV", "abort"],
)
def test_call_process_death_is_named(runtime: Runtime, function: Callable[[], object], reason: str) -> None:
    with pytest.raises(RemoteFunctionError) as caught:
        runtime.call(function)

    assert reason in caught.value.reason
    assert caught.value.function.endswith(function.__name__)
    assert runtime.call(lambda: "still usable") == "still usable"


def test_call_unserializable_starts_no_session(sshd: LocalSshd, runtime: Runtime) -> None:
    before = count_sessions(sshd)

    with pytest.raises(FunctionNotSerializableError):
        runtime.call(closure_over(threading.Lock()))
    with pytest.raises(TaskExecutionError) as caught:
        run_function_and_wait(runtime, closure_over(threading.Lock()))

    assert isinstance(caught.value.__cause__, FunctionNotSerializableError)
    assert count_sessions(sshd) == before


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
def test_call_hundred_megabytes_in_bounded_memory(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    """The result goes to a file as it arrives. An argument is held as an object, a pickle and a request at most."""
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


def test_call_starts_one_session_or_none(sshd: LocalSshd, runtime: Runtime, resident: bool) -> None:
    """With a supervisor a call starts nothing; without one it takes one process and one session."""
    runtime.call(int)
    before = count_sessions(sshd)
    with record_program_starts() as programs:
        runtime.call(int)
    assert [argv[0] for argv in programs] == ([] if resident else ["ssh"])
    assert count_sessions(sshd) == before + (0 if resident else 1)


def test_call_other_minor_version_is_refused(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    other = require_other_python()
    server = make_sshd(options=options_without_python(tmp_path, {"python3": other}))
    with Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime:
        version = runtime.python_version
        assert not version.startswith(f"{LOCAL_VERSION}.")
        with pytest.raises(PythonVersionMismatchError) as caught:
            runtime.call(raise_error, ValueError)
        with pytest.raises(TaskExecutionError) as wrapped:
            run_function_and_wait(runtime, int)
        assert runtime.run("echo commands still work").ok
        assert runtime.has_free_port(1) in {True, False}

    assert isinstance(wrapped.value.__cause__, PythonVersionMismatchError)
    error = caught.value
    assert (error.host, error.local_version, error.remote_version) == (server.host, LOCAL_VERSION, version)


def test_python_of_same_minor_version_is_preferred(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    options = options_without_python(
        tmp_path, {"python3": require_other_python(), f"python{LOCAL_VERSION}": Path(sys.executable).resolve()}
    )
    server = make_sshd(options=options)
    with Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime:
        assert runtime.call(lambda: sys.version) == sys.version
        assert runtime.python_version.startswith(LOCAL_VERSION)


def test_python3_is_used_without_versioned_name(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    server = make_sshd(options=options_without_python(tmp_path, {"python3": Path(sys.executable).resolve()}))
    with Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime:
        assert runtime.call(lambda: sys.version) == sys.version


def test_host_without_python_runs_commands(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd(options=options_without_python(tmp_path, {}))
    with Runtime(server.host, resident=False, **server.connection_kwargs) as runtime:
        assert runtime.python_version == ""
        assert not runtime.is_valid_runtime()
        with pytest.raises(PythonNotFoundError) as caught:
            runtime.call(int)
        assert caught.value.wanted == f"python{LOCAL_VERSION} and python3"
        with pytest.raises(PythonNotFoundError):
            runtime.has_free_port(80)
        (tmp_path / "file").write_text("content")
        task = RuntimeTask().send_file(tmp_path / "file").run_command("cat file")
        assert runtime.execute_task(task, execute_async=False).execution_log == ["", "content"]


def test_resident_runtime_without_python_is_refused(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd(options=options_without_python(tmp_path, {}))
    with assert_no_leaks(server), pytest.raises(InvalidRuntimeError) as caught:
        Runtime(server.host, **server.connection_kwargs)
    assert isinstance(caught.value.__cause__, PythonNotFoundError)
    assert caught.value.__cause__.wanted == f"python{LOCAL_VERSION} and python3"


@pytest.mark.parametrize("where", ["{home}/my own python", "~/my own python", "known"])
def test_python_option_names_the_interpreter(make_sshd: MakeSshd, tmp_path: Path, where: str, resident: bool) -> None:
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


def test_python_option_missing_interpreter_is_error(sshd: LocalSshd) -> None:
    python = "/no/such/python"
    with Runtime(sshd.host, python=python, resident=False, **sshd.connection_kwargs) as runtime:
        with pytest.raises(PythonNotFoundError) as caught:
            runtime.call(int)
        assert caught.value.wanted == python
        assert runtime.python_version == ""
    with assert_no_leaks(sshd), pytest.raises(InvalidRuntimeError) as refused:
        Runtime(sshd.host, python=python, **sshd.connection_kwargs)
    assert isinstance(refused.value.__cause__, PythonNotFoundError)
    assert refused.value.__cause__.wanted == python


def test_python_inactive_pyenv_shim_is_skipped(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    """pyenv has shims on the PATH for every installed version; those of inactive versions end with status 127."""
    options = options_without_python(tmp_path, {"python3": Path(sys.executable).resolve()})
    shims = tmp_path / "shims"
    shims.mkdir()
    write_script(
        shims / f"python{LOCAL_VERSION}", f"echo 'pyenv: python{LOCAL_VERSION}: command not found' >&2\nexit 127\n"
    )
    launcher = tmp_path / "launch-bare"
    launcher.write_text(launcher.read_text().replace("PATH=", f"PATH={shims}:", 1))
    server = make_sshd(options=options)

    with Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime:
        assert runtime.call(lambda: sys.version) == sys.version
        assert runtime.python_version.startswith(LOCAL_VERSION)


def test_python_that_cannot_start_is_reported(make_sshd: MakeSshd, tmp_path: Path) -> None:
    broken = "echo 'python3: error while loading shared libraries: libnone.so' >&2\nexit 1\n"
    server = make_sshd(options=options_without_python(tmp_path, {"python3": broken}))
    with (
        Runtime(server.host, resident=False, **server.connection_kwargs) as runtime,
        pytest.raises(RemoteFunctionError) as caught,
    ):
        runtime.call(int)
    with assert_no_leaks(server), pytest.raises(InvalidRuntimeError) as refused:
        Runtime(server.host, **server.connection_kwargs)
    assert isinstance(refused.value.__cause__, SupervisorError)
    assert "exit status 1" in caught.value.reason
    assert "exit status 1" in refused.value.__cause__.reason
    for error in (caught.value, refused.value):
        assert "error while loading shared libraries" in str(error), "the error output of the interpreter"


@pytest.mark.parametrize("shell", ["bash", "fish", "tcsh"])
def test_call_login_shell_with_noisy_start_up_file(make_sshd: MakeSshd, shell: str, resident: bool) -> None:
    if shutil.which(shell) is None:
        skip_or_fail(f"there is no {shell} on this machine")
    server = make_sshd(shell=shell)
    for name in (".bashrc", ".tcshrc", ".config/fish/config.fish"):
        (server.home / name).parent.mkdir(parents=True, exist_ok=True)
        (server.home / name).write_text("echo noise from a start-up file\n")
    with Runtime(server.host, resident=resident, **server.connection_kwargs) as runtime:
        assert runtime.call(lambda text: text, "it's $HOME\n!") == "it's $HOME\n!"
        assert run_function_and_wait(runtime, print, "printed").execution_log == ["printed\n"]


# The end -------------------------------------------------------------------------------------------------------------


def test_run_function_leaves_nothing_on_host(make_sshd: MakeSshd) -> None:
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


def start_children_and_wait(seconds: str) -> None:
    """Start children in sessions of their own, and wait."""
    subprocess.Popen(("sleep", seconds), start_new_session=True)
    subprocess.Popen(("sh", "-c", f"(setsid sleep {seconds} &) ; sleep {seconds}"))
    time.sleep(10_000)


def sleeping_pids(server: LocalSshd, seconds: str) -> list[int]:
    return [pid for pid in server.processes() if seconds in command_line(pid)]


def test_stop_process_ends_children_of_function(sshd: LocalSshd, resident: bool) -> None:
    seconds = unique_sleep_seconds()
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        task = runtime.execute_task(RuntimeTask("endless").run_function(start_children_and_wait, seconds))
        assert_eventually(lambda: len(sleeping_pids(sshd, seconds)) >= 3, "it has started its children", timeout=30)
        [key] = runtime.get_processes()

        runtime.stop_process(key)

        assert_eventually(lambda: not sleeping_pids(sshd, seconds), "all are gone", timeout=30)
        with pytest.raises(TaskExecutionError) as caught:
            task.join()
        assert isinstance(caught.value.__cause__, CommandStoppedError)
        assert runtime.get_process(key).exitcode == -signal.SIGTERM


def test_run_function_broken_connection_ends_children(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    seconds = unique_sleep_seconds()
    working_dir = str(tmp_path / "work")
    with (
        running_relay(sshd, tmp_path) as (relay, keywords),
        Runtime(sshd.host, working_dir, resident=resident, **keywords) as runtime,
    ):
        task = runtime.execute_task(RuntimeTask("cut off").run_function(start_children_and_wait, seconds))
        assert_eventually(lambda: len(sleeping_pids(sshd, seconds)) >= 3, "it has started its children", timeout=30)

        relay.drop()

        with pytest.raises(TaskExecutionError) as caught:
            task.join()
        assert isinstance(caught.value.__cause__, ConnectionLostError)
        assert caught.value.__cause__.started
        assert_eventually(lambda: not sleeping_pids(sshd, seconds), "all are gone", timeout=30)
        assert runtime.call(os.getcwd) == working_dir


def test_call_does_not_wait_for_background_process(sshd: LocalSshd, resident: bool) -> None:
    seconds = unique_sleep_seconds()
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        pid = runtime.call(lambda: subprocess.Popen(("sleep", seconds), start_new_session=True).pid)
        assert is_alive(pid)
    assert_eventually(lambda: not sleeping_pids(sshd, seconds), "the end of the runtime ends it, too", timeout=30)
