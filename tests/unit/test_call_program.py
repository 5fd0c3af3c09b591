"""The program that calls a function: as a local process, and its parts in this process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import importlib
import io
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster._functions import bootstrap, outcome, serialize
from lazycluster._remote import call_outcome, call_program, memory_importer
from lazycluster.exceptions import PythonVersionMismatchError, RemoteFunctionError, RemoteTraceback
from lazycluster.results import Value
from tests.installed_pythons import find_pyenv_pythons
from tests.unit.local_calls import SUPERVISOR_TOKEN, LocalHost
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PYTHONS = find_pyenv_pythons()


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "python"), PYTHONS.items(), ids=PYTHONS)
def test_call_program_hello_under_every_python(version: str, python: Path, tmp_path: Path) -> None:
    program = bootstrap.build_call_program(SUPERVISOR_TOKEN)
    trap = tmp_path / "zlib.py"
    trap.write_text("raise SystemExit('the current directory was imported from')")
    done = subprocess.run(
        [python, "-c", program.bootstrap], input=program.stdin_prefix, capture_output=True, cwd=tmp_path, check=True
    )
    assert done.stderr == b""
    python_info = bootstrap.parse_python_info(done.stdout, SUPERVISOR_TOKEN)
    assert python_info is not None
    assert version.startswith(python_info.version)
    assert python_info.executable == str(python)
    if python_info.version.split(".")[:2] != [str(number) for number in sys.version_info[:2]]:
        with pytest.raises(PythonVersionMismatchError) as caught:
            bootstrap.check_python_version(python_info, "h")
        assert caught.value.remote_version == python_info.version
    assert list(tmp_path.iterdir()) == [trap]


@pytest.mark.parametrize("collects", [True, False])
def test_call_program_keeps_garbage_collection_setting(collects: bool, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("" if collects else "import gc; gc.disable()")
    host = LocalHost(python=(sys.executable,), env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert host.value(gc.isenabled) is collects


def test_call_program_reads_request_byte_by_byte() -> None:
    program, sent = bootstrap.build_call_program(SUPERVISOR_TOKEN), serialize.serialize_call(len, "four")
    process = subprocess.Popen(
        [sys.executable, "-c", program.bootstrap], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for byte in program.stdin_prefix + serialize.full_request(sent):
        process.stdin.write(bytes([byte]))
    _, _, value = process.stdout.read().partition(b"\n")
    assert pickle.loads(value) == 4
    process.stdin.close()
    process.stdout.close()
    assert process.wait(10) == 0


@pytest.mark.parametrize("length", [0, 10, 24, 100, -1])
def test_call_program_incomplete_request_calls_nothing(length: int) -> None:
    program, sent = bootstrap.build_call_program(SUPERVISOR_TOKEN), serialize.serialize_call(print, "called")
    done = subprocess.run(
        [sys.executable, "-c", program.bootstrap],
        input=program.stdin_prefix + serialize.full_request(sent)[:length],
        capture_output=True,
        check=True,
    )
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""


def test_call_program_prints_come_in_order() -> None:
    def talk() -> None:
        print("1 é \udcff")
        subprocess.run(["/bin/sh", "-c", "echo 2; echo 3 >&2"], check=True)
        print("4", file=sys.stderr)
        os.write(1, b"5\n")
        print("6", end="")

    assert LocalHost().call(talk).stderr == "1 é \\udcff\n2\n3\n4\n5\n6"


def test_call_program_function_may_close_stdout() -> None:
    result = LocalHost().call(lambda: [print("printed"), sys.stdout.close()])
    assert result.outcome == Value([None, None])
    assert result.stderr == "printed\n"


def test_call_program_surroundings_of_function(tmp_path: Path) -> None:
    def inherited(number: int) -> bool:
        try:
            return os.get_inheritable(number)
        except OSError:  # the descriptor of the listing itself
            return False

    def look() -> dict[str, object]:
        descriptors = {int(entry.name) for entry in os.scandir("/dev/fd") if entry.is_symlink()}
        return {
            "stdin": sys.stdin.read(),
            "descriptors": {number for number in descriptors if inherited(number)},
            "others": len([number for number in descriptors if number > 2]),
            "path": sys.path[0],
            "cwd": str(Path.cwd()),
            "main": [name for name in vars(sys.modules["__main__"]) if not name.startswith("__")],
            "argv": sys.argv,
            "group": os.getpgid(0) == os.getpid(),
        }

    seen = LocalHost(cwd=tmp_path).value(look)
    assert isinstance(seen, dict)
    assert seen.pop("others") <= 2  # one for the outcome, and a duplicate that the listing needs
    assert seen == {
        "stdin": "",
        "descriptors": {0, 1, 2},
        "path": "",
        "cwd": str(tmp_path),
        "main": [],
        "argv": ["-c"],
        "group": True,
    }


def test_call_program_writes_no_file(tmp_path: Path) -> None:
    directories = [tmp_path / "cwd", tmp_path / "tmp", tmp_path / "home"]
    for directory in directories:
        directory.mkdir()
    env = {"TMPDIR": str(directories[1]), "HOME": str(directories[2]), "PATH": os.environ["PATH"]}
    assert LocalHost(directories[0], env, (sys.executable,)).value(abs, -1) == 1
    assert [list(directory.iterdir()) for directory in directories] == [[], [], []]


def test_call_program_overrides_installed_cloudpickle(tmp_path: Path) -> None:
    (tmp_path / "cloudpickle.py").write_text("raise SystemError")
    host = LocalHost(tmp_path, {"PYTHONPATH": str(tmp_path)}, (sys.executable,))
    assert host.value(lambda: sys.modules["cloudpickle"].__file__) == "<cloudpickle>/__init__.py"


# Outcomes -------------------------------------------------------------------------------------------------------------


class AwkwardError(Exception):
    """An exception that plain pickle cannot restore: `__init__` has other parameters than `args`."""

    def __init__(self, code: int, *, what: str) -> None:
        super().__init__(f"{what} ({code})")
        self.code = code


class DoublingError(Exception):
    """An exception whose message would grow each time that it is unpickled."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")


class OwnWayError(Exception):
    """An exception with a `__reduce__` of its own."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__("own way")
        self.both = (left, right)

    def __reduce__(self) -> tuple[type[OwnWayError], tuple[int, int]]:
        return OwnWayError, self.both


class HolderError(Exception):
    """An exception that holds a lock, which cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class UnreadableError(Exception):
    """An exception that unpickles as an int."""

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("1",)


def chained() -> None:
    try:
        dict[str, int]()["missing"]
    except KeyError as error:
        raise ValueError("outer") from error


def raise_(error: BaseException) -> None:
    raise error


def iter_nothing() -> Iterator[None]:
    yield None


def unicode_error() -> None:
    b"\xff".decode()


@pytest.mark.parametrize(
    ("function", "kind", "text", "attributes"),
    [
        (lambda: raise_(ValueError("bad")), ValueError, "bad", {}),
        (lambda: dict[str, int]()["key"], KeyError, "'key'", {}),
        (lambda: raise_(AwkwardError(7, what="odd")), AwkwardError, r"odd \(7\)", {"code": 7}),
        (lambda: raise_(DoublingError("thing")), DoublingError, "no thing", {}),
        (lambda: raise_(OwnWayError(1, 2)), OwnWayError, "own way", {"both": (1, 2)}),
        (lambda: Path("/no/such").stat(), FileNotFoundError, "No such file or directory: '/no/such'", {}),
        (unicode_error, UnicodeDecodeError, "'utf-8' codec can't decode byte 0xff", {"start": 0}),
        (lambda: next(iter(())), StopIteration, "", {"value": None}),
        (lambda: compile("(", "f", "eval"), SyntaxError, "was never closed", {"lineno": 1}),
        (chained, ValueError, "outer", {}),
        (len, TypeError, "takes exactly one argument", {}),
        (iter_nothing, TypeError, "returned a generator, .*; return a list", {}),
        (lambda: asyncio.sleep(0), TypeError, "returned a coroutine, .*; use asyncio.run", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_exception_arrives_as_its_own_type(
    function: Callable[[], object], kind: type[Exception], text: str, attributes: dict[str, object]
) -> None:
    with pytest.raises(kind) as caught:
        LocalHost().value(function)
    error = caught.value
    assert type(error) is kind
    assert re.search(text, str(error))
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert isinstance(error.__cause__, RemoteTraceback)
    formatted = "".join(traceback.format_exception(error))
    assert "raised on h:\nTraceback (most recent call last):" in formatted
    assert outcome.remote_traceback(error) in formatted


def test_remote_traceback_shows_chain_without_own_frames() -> None:
    with pytest.raises(ValueError) as caught:
        LocalHost().value(chained)
    text = outcome.remote_traceback(caught.value)
    assert "KeyError: 'missing'" in text
    assert "was the direct cause" in text
    assert "in chained" in text
    assert "_call_and_write_outcome" not in text
    assert 'raise ValueError("outer") from error' in text


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: raise_(HolderError()), "HolderError: holds a lock"),
        (lambda: raise_(UnreadableError("x")), "UnreadableError: x"),
        (lambda: sys.exit(3), "SystemExit: 3"),
        (lambda: raise_(KeyboardInterrupt()), "KeyboardInterrupt"),
        (threading.Lock, "its result cannot be sent back: TypeError: cannot pickle '_thread.lock' object"),
        (lambda: [list(range(1000000)), threading.Lock()], "its result cannot be sent back: TypeError: cannot pickle"),
    ],
)
def test_unsendable_outcome_raises_remote_function_error(function: Callable[[], object], reason: str) -> None:
    with pytest.raises(RemoteFunctionError) as caught:
        LocalHost().value(function)
    assert reason in caught.value.reason
    assert "Traceback (most recent call last)" in caught.value.remote_traceback
    assert outcome.remote_traceback(caught.value) == caught.value.remote_traceback


@pytest.mark.parametrize(
    ("function", "end"),
    [
        (lambda: os._exit(3), "ended with exit status 3 before the function returned (os._exit?)"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by signal 9 (SIGKILL)"),
        (os.abort, "was killed by signal 6 (SIGABRT)"),
        (lambda: os.execvp("true", ["true"]), "ended with exit status 0 before"),
    ],
)
def test_dead_process_raises_remote_function_error(function: Callable[[], object], end: str) -> None:
    with pytest.raises(RemoteFunctionError) as caught:
        LocalHost().value(function)
    assert f"its process {end}" in caught.value.reason


def test_missing_module_raises_remote_function_error(tmp_path: Path) -> None:
    with pytest.raises(RemoteFunctionError) as caught:
        LocalHost(tmp_path).value(RemoteTraceback, "h", "text")
    assert "ModuleNotFoundError: No module named 'lazycluster'" in caught.value.reason


def test_function_returning_twice_from_fork_has_one_value() -> None:
    assert LocalHost().value(lambda: os.fork() >= 0) is True


def test_large_argument_and_result_are_complete() -> None:
    data = os.urandom(1 << 20) * 30
    assert LocalHost().value(lambda got: got[::-1], data) == data[::-1]


def test_background_process_outlives_call() -> None:
    def start() -> int:
        return subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid

    pid = LocalHost().value(start)
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)


def test_exit_functions_run_after_call() -> None:
    def leave() -> None:
        atexit.register(print, "at exit")

    assert LocalHost().call(leave).stderr == "at exit\n"


# The end of the local process -----------------------------------------------------------------------------------------


def sleep_alone() -> None:
    print(os.getpid())
    print("ready")
    time.sleep(60)


def sleep_with_children() -> None:
    print(os.getpid())
    print(subprocess.Popen(["sleep", "60"]).pid)
    subprocess.run(["/bin/sh", "-c", "echo $$; sleep 60 & echo $!; echo ready; wait"], check=False)


def sleep_with_sessions() -> None:
    print(os.getpid())
    orphan = "setsid sleep 60 & echo $!"  # its parent ends at once
    subprocess.run(["/bin/sh", "-c", orphan], check=True)
    print(subprocess.Popen(["sleep", "60"], start_new_session=True).pid)
    print("ready")
    time.sleep(60)


def sleep_ignoring_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sleep_with_sessions()


def sleep_stopped() -> None:
    print(os.getpid())
    child = subprocess.Popen(["sleep", "60"])
    os.kill(child.pid, signal.SIGSTOP)
    print(child.pid)
    print("ready")
    time.sleep(60)


def is_reaped(pid: int) -> bool:
    """Return whether a process has left the process table. A zombie is still in it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    "function", [sleep_alone, sleep_with_children, sleep_with_sessions, sleep_ignoring_signals, sleep_stopped]
)
@pytest.mark.parametrize("event", ["end of input", "SIGTERM", "SIGHUP"])
def test_lost_local_process_ends_all_processes(function: Callable[[], None], event: str) -> None:
    running = LocalHost(grace=0.5 if function is sleep_ignoring_signals else 1e9).start(function)
    pids = [int(line) for line in iter(running.next_line, "ready")]
    assert not any(is_reaped(pid) for pid in pids)
    if event == "end of input":
        running.close_stdin()
    else:
        running.process.send_signal(signal.Signals[event])
    result = running.wait_result()
    assert all(is_reaped(pid) for pid in pids)
    with pytest.raises(RemoteFunctionError) as caught:
        result.outcome.unwrap()
    assert "the local process closed the connection" in caught.value.reason


def test_killed_watchdog_ends_worker() -> None:
    running = LocalHost().start(sleep_alone)
    pids = [int(line) for line in iter(running.next_line, "ready")]
    running.process.kill()
    with pytest.raises(RemoteFunctionError):
        running.wait_result().outcome.unwrap()  # standard error ends when the worker does
    assert_eventually(lambda: all(is_reaped(pid) for pid in pids), "init has collected the worker")


def test_input_after_request_does_not_end_call() -> None:
    running = LocalHost().start(sleep_alone)
    pid = int(running.next_line())
    assert running.next_line() == "ready"
    assert running.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        running.process.stdin.write(b"more")
        running.process.stdin.flush()
    os.kill(pid, signal.SIGINT)  # raises KeyboardInterrupt in the function
    with pytest.raises(RemoteFunctionError) as caught:
        running.wait_result().outcome.unwrap()
    assert "KeyboardInterrupt" in caught.value.reason


# The parts of the program, in this process ----------------------------------------------------------------------------


@pytest.fixture
def _import_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo the changes that a test makes to the import system."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def call_in_this_process(function: Callable[..., object], path: Path, *args: object) -> object:
    """Make both halves of a call in this process; the outcome is written to a file."""
    data = serialize.full_request(serialize.serialize_call(function, *args))
    lengths = call_program.CALL_REQUEST_HEADER.unpack_from(data)
    stream = io.BytesIO(data[call_program.CALL_REQUEST_HEADER.size :])
    with path.open("wb", buffering=0) as file:
        out = call_outcome.DescriptorWriter(file.fileno())
        call_program.load_and_call(out, lambda: call_program.load_request([stream.read(length) for length in lengths]))
        call_outcome.write_record(out, call_outcome.END_RECORD, b"ended")
    with path.open("rb") as file:
        return outcome.read_outcome(file, "h", "f").unwrap()


@pytest.mark.usefixtures("_import_state")
def test_load_and_call_writes_outcome(tmp_path: Path) -> None:
    assert call_in_this_process(lambda: 5, tmp_path / "outcome") == 5
    with pytest.raises(AwkwardError):
        call_in_this_process(lambda: raise_(AwkwardError(1, what="x")), tmp_path / "outcome")
    for function in (lambda: raise_(HolderError()), threading.Lock):
        with pytest.raises(RemoteFunctionError):
            call_in_this_process(function, tmp_path / "outcome")
    with pytest.raises(TypeError):
        call_in_this_process(iter_nothing, tmp_path / "outcome")
    assert sys.path[0] == ""


@pytest.mark.usefixtures("_import_state")
def test_load_and_call_import_error_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: raise_(ImportError(name)))
    with pytest.raises(RemoteFunctionError) as caught:
        call_in_this_process(len, tmp_path / "outcome", "x")
    assert "ImportError: cloudpickle" in caught.value.reason


@pytest.mark.usefixtures("_import_state")
def test_load_and_call_in_fork_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = iter([1, 2])
    monkeypatch.setattr(os, "getpid", lambda: next(pids))
    with pytest.raises(RemoteFunctionError):
        call_in_this_process(len, tmp_path / "outcome", "x")


@pytest.mark.usefixtures("_import_state")
def test_memory_importer_imports_and_fills_modules() -> None:
    left_out = {("shell_of_test", "lock"): "it is a lock"}
    sent = {
        "package_of_test": ("/host/package_of_test/__init__.py", True, "from .part import value"),
        "package_of_test.part": ("/host/package_of_test/part.py", False, "value = 5"),
        "shell_of_test": ("/host/shell_of_test.py", False, None),
    }
    finder = memory_importer.MemoryImporter(sent, left_out)
    sys.meta_path.insert(0, finder)
    package_of_test = importlib.import_module("package_of_test")
    shell_of_test = importlib.import_module("shell_of_test")
    assert package_of_test.value == 5
    assert package_of_test.__file__ == "/host/package_of_test/__init__.py"
    assert finder.get_source("package_of_test.part") == "value = 5"
    contents = [("shell_of_test", "a", 1, None), ("shell_of_test", "b", None, "json")]
    contents += [("shell_of_test", "c", None, "no_such_module"), None]  # type: ignore[list-item]
    memory_importer.fill_modules(types.SimpleNamespace(load=iter(contents).__next__), left_out)  # type: ignore[arg-type]
    assert (shell_of_test.a, shell_of_test.b) == (1, sys.modules["json"])
    for name, reason in {"lock": "it is a lock", "other": "does not name it", "c": "No module named"}.items():
        with pytest.raises(AttributeError, match=f"was sent without '{name}': .*{reason}"):
            getattr(shell_of_test, name)


@pytest.mark.parametrize("child", [True, False])
def test_main_greets_and_runs_or_watches(child: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    loaded: list[list[bytes]] = []
    prepared: list[bool] = []
    copied: list[tuple[int, int]] = []

    def write(_: int, data: memoryview) -> int:
        written.append(bytes(data))
        return len(data)

    sent = [zlib.compress(b"a"), b"", b"ccc", b"d"]
    stream = io.BytesIO(call_program.CALL_REQUEST_HEADER.pack(*map(len, sent)) + b"".join(sent))
    monkeypatch.setattr(os, "dup", lambda _: 77)
    monkeypatch.setattr(os, "dup2", lambda *descriptors: copied.append(descriptors))
    monkeypatch.setattr(os, "read", lambda _, length: stream.read(min(length, 2)))
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(call_program, "prepare_interpreter", lambda: prepared.append(True))
    monkeypatch.setattr(call_program, "load_request", loaded.append)
    monkeypatch.setattr(call_program, "load_and_call", lambda _, load: load())
    call_program.main(SUPERVISOR_TOKEN, lambda: 0 if child else 9, lambda worker: f"{worker} ended")
    assert bootstrap.parse_python_info(written.pop(0), SUPERVISOR_TOKEN) is not None
    assert loaded == ([sent] if child else [])
    assert prepared == [True] * child
    assert [target for _, target in copied] == [1, 0][: 1 + child]  # prints do not get into the outcome
    assert written == (
        []
        if child
        else [b"9 ended" + call_outcome.RECORD_TRAILER.pack(call_outcome.RECORD_MAGIC, call_outcome.END_RECORD, 7)]
    )
    call_program.main(SUPERVISOR_TOKEN, lambda: pytest.fail("forked without a request"), lambda _: "")


def test_prepare_interpreter_cleans_main_and_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    main = types.ModuleType("__main__")
    vars(main).update(left="from the bootstrap")
    monkeypatch.setattr(sys, "modules", {**sys.modules, "__main__": main, "lazyclusters": main})
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    call_program.prepare_interpreter()
    assert not hasattr(main, "left")
    assert [name for name in sys.modules if name.startswith("lazycluster")] == ["lazyclusters"]
    assert [stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)] == [0, 1, 2]
    assert sys.stdout.line_buffering
