"""The program on the host, run as a local process; and its parts, run here."""

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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PYTHONS = find_pyenv_pythons()


# Streams -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "python"), PYTHONS.items(), ids=PYTHONS)
def test_every_python_greets(version: str, python: Path, tmp_path: Path) -> None:
    program = bootstrap.build_call_program(SUPERVISOR_TOKEN)
    trap = tmp_path / "zlib.py"
    trap.write_text("raise SystemExit('the current directory was imported from')")
    done = subprocess.run(
        [python, "-c", program.bootstrap], input=program.stdin_prefix, capture_output=True, cwd=tmp_path, check=True
    )
    assert done.stderr == b""
    greeting = bootstrap.parse_python_info(done.stdout, SUPERVISOR_TOKEN)
    assert greeting is not None
    assert version.startswith(greeting.version)
    assert greeting.executable == str(python)
    if greeting.version.split(".")[:2] != [str(number) for number in sys.version_info[:2]]:
        with pytest.raises(PythonVersionMismatchError, match=greeting.version):
            bootstrap.check_python_version(greeting, "h")
    assert list(tmp_path.iterdir()) == [trap]


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_collected_as_the_host_wants_it(collects: bool, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("" if collects else "import gc; gc.disable()")
    host = LocalHost(python=(sys.executable,), env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert host.value(gc.isenabled) is collects


def test_streams_byte_by_byte() -> None:
    program, sent = bootstrap.build_call_program(SUPERVISOR_TOKEN), serialize.serialize_call(len, "four")
    process = subprocess.Popen(
        [sys.executable, "-c", program.bootstrap], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for byte in program.stdin_prefix + serialize.full_request(sent):
        process.stdin.write(bytes([byte]))
    _, _, answer = process.stdout.read().partition(b"\n")
    assert pickle.loads(answer) == 4
    process.stdin.close()
    process.stdout.close()
    assert process.wait(10) == 0


@pytest.mark.parametrize("length", [0, 10, 24, 100, -1])
def test_a_manager_that_goes_before_the_call(length: int) -> None:
    program, sent = bootstrap.build_call_program(SUPERVISOR_TOKEN), serialize.serialize_call(print, "called")
    done = subprocess.run(
        [sys.executable, "-c", program.bootstrap],
        input=program.stdin_prefix + serialize.full_request(sent)[:length],
        capture_output=True,
        check=True,
    )
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""


def test_prints_come_in_order() -> None:
    def talk() -> None:
        print("1 é \udcff")
        subprocess.run(["/bin/sh", "-c", "echo 2; echo 3 >&2"], check=True)
        print("4", file=sys.stderr)
        os.write(1, b"5\n")
        print("6", end="")

    assert LocalHost().call(talk).stderr == "1 é \\udcff\n2\n3\n4\n5\n6"


def test_prints_of_a_function_that_closes_standard_output() -> None:
    answer = LocalHost().call(lambda: [print("said"), sys.stdout.close()])
    assert answer.outcome == Value([None, None])
    assert answer.stderr == "said\n"


def test_surroundings_of_the_function(tmp_path: Path) -> None:
    def inherited(number: int) -> bool:
        try:
            return os.get_inheritable(number)
        except OSError:  # was that of the listing itself
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
    assert seen.pop("others") <= 2  # where the answer goes, and a duplicate that listing needs
    assert seen == {
        "stdin": "",
        "descriptors": {0, 1, 2},
        "path": "",
        "cwd": str(tmp_path),
        "main": [],
        "argv": ["-c"],
        "group": True,
    }


def test_nothing_is_written(tmp_path: Path) -> None:
    places = [tmp_path / "cwd", tmp_path / "tmp", tmp_path / "home"]
    for place in places:
        place.mkdir()
    env = {"TMPDIR": str(places[1]), "HOME": str(places[2]), "PATH": os.environ["PATH"]}
    assert LocalHost(places[0], env, (sys.executable,)).value(abs, -1) == 1
    assert [list(place.iterdir()) for place in places] == [[], [], []]


def test_installed_cloudpickle_is_overridden(tmp_path: Path) -> None:
    (tmp_path / "cloudpickle.py").write_text("raise SystemError")
    host = LocalHost(tmp_path, {"PYTHONPATH": str(tmp_path)}, (sys.executable,))
    assert host.value(lambda: sys.modules["cloudpickle"].__file__) == "<cloudpickle>/__init__.py"


# Outcomes ------------------------------------------------------------------------------------------------------------


class AwkwardError(Exception):
    """Cannot be unpickled in the usual way: `__init__` has other parameters than `args`."""

    def __init__(self, code: int, *, what: str) -> None:
        super().__init__(f"{what} ({code})")
        self.code = code


class DoublingError(Exception):
    """Would change its message on every journey."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")


class OwnWayError(Exception):
    """Says how it is pickled."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__("own way")
        self.both = (left, right)

    def __reduce__(self) -> tuple[type[OwnWayError], tuple[int, int]]:
        return OwnWayError, self.both


class HolderError(Exception):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class UnreadableError(Exception):
    """Is no exception any more when it arrives."""

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
    ("function", "kind", "text", "facts"),
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
def test_exceptions_arrive_as_themselves(
    function: Callable[[], object], kind: type[Exception], text: str, facts: dict[str, object]
) -> None:
    with pytest.raises(kind) as caught:
        LocalHost().value(function)
    error = caught.value
    assert type(error) is kind
    assert re.search(text, str(error))
    assert {name: getattr(error, name) for name in facts} == facts
    assert isinstance(error.__cause__, RemoteTraceback)
    shown = "".join(traceback.format_exception(error))
    assert "raised on h:\nTraceback (most recent call last):" in shown
    assert outcome.remote_traceback(error) in shown


def test_remote_traceback_shows_the_chain_and_not_our_frames() -> None:
    with pytest.raises(ValueError, match="outer") as caught:
        LocalHost().value(chained)
    text = outcome.remote_traceback(caught.value)
    assert "KeyError: 'missing'" in text
    assert "was the direct cause" in text
    assert "in chained" in text
    assert "in _work" not in text
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
def test_failures_that_cannot_arrive_as_themselves(function: Callable[[], object], reason: str) -> None:
    with pytest.raises(RemoteFunctionError) as caught:
        LocalHost().value(function)
    assert reason in caught.value.reason
    assert "Traceback (most recent call last)" in str(caught.value)
    assert outcome.remote_traceback(caught.value) == caught.value.remote_traceback


@pytest.mark.parametrize(
    ("function", "how"),
    [
        (lambda: os._exit(3), "ended with exit status 3 before the function returned (os._exit?)"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by signal 9 (SIGKILL)"),
        (os.abort, "was killed by signal 6 (SIGABRT)"),
        (lambda: os.execvp("true", ["true"]), "ended with exit status 0 before"),
    ],
)
def test_process_that_dies(function: Callable[[], object], how: str) -> None:
    with pytest.raises(RemoteFunctionError) as caught:
        LocalHost().value(function)
    assert f"its process {how}" in caught.value.reason


def test_what_is_missing_on_the_host(tmp_path: Path) -> None:
    with pytest.raises(
        RemoteFunctionError, match="cannot be loaded there: ModuleNotFoundError: No module named 'lazycluster'"
    ):
        LocalHost(tmp_path).value(RemoteTraceback, "h", "text")


def test_function_that_forks_and_comes_back_twice() -> None:
    assert LocalHost().value(lambda: os.fork() >= 0) is True


def test_large_result_and_argument() -> None:
    data = os.urandom(1 << 20) * 30
    assert LocalHost().value(lambda got: got[::-1], data) == data[::-1]


def test_background_process_of_a_function_that_returned_goes_on() -> None:
    def start() -> int:
        return subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid

    pid = LocalHost().value(start)
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)


def test_what_runs_at_exit_runs() -> None:
    def leave() -> None:
        atexit.register(print, "at exit")

    assert LocalHost().call(leave).stderr == "at exit\n"


# The end of the manager ----------------------------------------------------------------------------------------------


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


def sleep_deaf() -> None:
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


def gone(pid: int) -> bool:
    """Tell whether a process has left the process table, zombies included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("function", [sleep_alone, sleep_with_children, sleep_with_sessions, sleep_deaf, sleep_stopped])
@pytest.mark.parametrize("way", ["end of input", "SIGTERM", "SIGHUP"])
def test_nothing_outlives_the_manager(function: Callable[[], None], way: str) -> None:
    deaf = function is sleep_deaf
    running = LocalHost(grace=0.5 if deaf else 20).start(function)
    pids = [int(line) for line in iter(running.next_line, "ready")]
    assert not any(gone(pid) for pid in pids)
    began = time.monotonic()
    if way == "end of input":
        running.close_stdin()
    else:
        running.process.send_signal(signal.Signals[way])
    answer = running.wait_result()
    took = time.monotonic() - began
    assert took > 0.5 or not deaf
    assert took < 10  # half of the grace of those that are not
    assert all(gone(pid) for pid in pids)
    with pytest.raises(RemoteFunctionError, match="ended because the local process closed the connection"):
        answer.outcome.unwrap()


def test_worker_does_not_outlive_its_watcher() -> None:
    running = LocalHost().start(sleep_alone)
    pids = [int(line) for line in iter(running.next_line, "ready")]
    running.process.kill()
    with pytest.raises(RemoteFunctionError, match="incomplete"):
        running.wait_result().outcome.unwrap()  # standard error ends when the worker does
    deadline = time.monotonic() + 10
    while not all(gone(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)  # the system's init collects it
    assert all(gone(pid) for pid in pids)


def test_input_after_the_payload_is_no_end() -> None:
    running = LocalHost().start(sleep_alone)
    pid = int(running.next_line())
    assert running.next_line() == "ready"
    assert running.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        running.process.stdin.write(b"more")
        running.process.stdin.flush()
    os.kill(pid, signal.SIGINT)  # ends the call by itself
    with pytest.raises(RemoteFunctionError, match="KeyboardInterrupt"):
        running.wait_result().outcome.unwrap()


# The parts of the program, in this process ---------------------------------------------------------------------------


@pytest.fixture
def _stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the program an interpreter to change."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(call_program, "_prepare_interpreter", lambda: None)
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def answer_of(function: Callable[..., object], path: Path, *args: object) -> object:
    """Do both halves of a call here."""
    data = serialize.full_request(serialize.serialize_call(function, *args))
    lengths = call_program.CALL_REQUEST_HEADER.unpack_from(data)
    stream = io.BytesIO(data[call_program.CALL_REQUEST_HEADER.size :])
    with path.open("wb", buffering=0) as file:
        out = call_outcome.DescriptorWriter(file.fileno())
        call_program.load_and_call(out, lambda: call_program._load_request([stream.read(length) for length in lengths]))
        call_outcome.write_record(out, call_outcome.END_RECORD, b"ended")
    with path.open("rb") as file:
        return outcome.read_outcome(file, "h", "f").unwrap()


@pytest.mark.usefixtures("_stage")
def test_work(tmp_path: Path) -> None:
    assert answer_of(lambda: 5, tmp_path / "answer") == 5
    with pytest.raises(AwkwardError):
        answer_of(lambda: raise_(AwkwardError(1, what="x")), tmp_path / "answer")
    with pytest.raises(RemoteFunctionError, match="holds a lock"):
        answer_of(lambda: raise_(HolderError()), tmp_path / "answer")
    with pytest.raises(RemoteFunctionError, match="cannot be sent back"):
        answer_of(threading.Lock, tmp_path / "answer")
    with pytest.raises(TypeError, match="a list"):
        answer_of(iter_nothing, tmp_path / "answer")
    assert sys.path[0] == ""


@pytest.mark.usefixtures("_stage")
def test_work_with_what_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: raise_(ImportError(name)))
    with pytest.raises(RemoteFunctionError, match="cannot be loaded there: ImportError: cloudpickle"):
        answer_of(len, tmp_path / "answer", "x")


@pytest.mark.usefixtures("_stage")
def test_work_in_a_fork_of_the_function_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = iter([1, 2])
    monkeypatch.setattr(os, "getpid", lambda: next(pids))
    with pytest.raises(RemoteFunctionError, match="its process ended"):
        answer_of(len, tmp_path / "answer", "x")


@pytest.mark.usefixtures("_stage")
def test_memory_modules() -> None:
    left_out = {("shell_of_test", "lock"): "it is a lock"}
    sent = {
        "package_of_test": ("/there/package_of_test/__init__.py", True, "from .part import value"),
        "package_of_test.part": ("/there/package_of_test/part.py", False, "value = 5"),
        "shell_of_test": ("/there/shell_of_test.py", False, None),
    }
    finder = memory_importer.MemoryImporter(sent, left_out)
    sys.meta_path.insert(0, finder)
    package_of_test = importlib.import_module("package_of_test")
    shell_of_test = importlib.import_module("shell_of_test")
    assert package_of_test.value == 5
    assert package_of_test.__file__ == "/there/package_of_test/__init__.py"
    assert finder.get_source("package_of_test.part") == "value = 5"
    contents = [("shell_of_test", "a", 1, None), ("shell_of_test", "b", None, "json")]
    contents += [("shell_of_test", "c", None, "nobody_has_this"), None]  # type: ignore[list-item]
    memory_importer.fill_modules(types.SimpleNamespace(load=iter(contents).__next__), left_out)  # type: ignore[arg-type]
    assert (shell_of_test.a, shell_of_test.b) == (1, sys.modules["json"])
    for name, reason in {"lock": "it is a lock", "other": "does not name it", "c": "No module named"}.items():
        with pytest.raises(AttributeError, match=f"was sent without '{name}': .*{reason}"):
            getattr(shell_of_test, name)


@pytest.mark.parametrize("child", [True, False])
def test_main(child: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bytes] = []
    worked: list[list[bytes]] = []
    staged: list[bool] = []
    copied: list[tuple[int, int]] = []

    def write(_: int, data: memoryview) -> int:
        said.append(bytes(data))
        return len(data)

    sent = [zlib.compress(b"a"), b"", b"ccc", b"d"]
    stream = io.BytesIO(call_program.CALL_REQUEST_HEADER.pack(*map(len, sent)) + b"".join(sent))
    monkeypatch.setattr(os, "dup", lambda _: 77)
    monkeypatch.setattr(os, "dup2", lambda *descriptors: copied.append(descriptors))
    monkeypatch.setattr(os, "read", lambda _, length: stream.read(min(length, 2)))
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(call_program, "_prepare_interpreter", lambda: staged.append(True))
    monkeypatch.setattr(call_program, "_load_request", worked.append)
    monkeypatch.setattr(call_program, "load_and_call", lambda _, load: load())
    call_program.main(SUPERVISOR_TOKEN, lambda: 0 if child else 9, lambda worker: f"{worker} ended")
    assert bootstrap.parse_python_info(said.pop(0), SUPERVISOR_TOKEN) is not None
    assert worked == ([sent] if child else [])
    assert staged == [True] * child
    assert [target for _, target in copied] == [1, 0][: 1 + child]  # prints do not get into the answer
    assert said == (
        []
        if child
        else [b"9 ended" + call_outcome.RECORD_TRAILER.pack(call_outcome.RECORD_MAGIC, call_outcome.END_RECORD, 7)]
    )
    call_program.main(SUPERVISOR_TOKEN, lambda: pytest.fail("forked without a request"), lambda _: "")


def test_set_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    main = types.ModuleType("__main__")
    vars(main).update(left="from the bootstrap")
    monkeypatch.setattr(sys, "modules", {**sys.modules, "__main__": main, "lazyclusters": main})
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    call_program._prepare_interpreter()
    assert not hasattr(main, "left")
    assert [name for name in sys.modules if name.startswith("lazycluster")] == ["lazyclusters"]
    assert [stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)] == [0, 1, 2]
    assert sys.stdout.line_buffering
