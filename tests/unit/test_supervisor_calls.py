"""Functions under a supervisor: each runs in a forked process of its own."""

from __future__ import annotations

import atexit
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazycluster._functions import bootstrap, outcome, serialize
from lazycluster._remote import call_outcome, protocol
from lazycluster._ssh.shell import PROCESS_MARK_VARIABLE
from lazycluster.exceptions import RemoteFunctionError
from tests.unit.local_supervisor import (
    LocalSupervisor,
    ObservedChild,
    coverage_environment,
    is_reaped,
    local_supervisor,
)
from tests.unit.test_call_program import PYTHONS
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look for leftovers")
SAME_MINOR_PYTHONS = {
    version: path
    for version, path in PYTHONS.items()
    if version.split(".")[:2] == [str(part) for part in sys.version_info[:2]]
}


@pytest.fixture
def host() -> Iterator[LocalSupervisor]:
    with local_supervisor(grace=0.5) as host:
        host.prepare_calls()
        yield host


def wait_spare_pid(host: LocalSupervisor, *other_pids: object) -> int:
    """Wait until the spare worker is the only child beside the others, and return its pid."""
    found: list[int] = []

    def is_alone() -> bool:
        found[:] = [pid for pid in host.child_pids() if pid not in other_pids]
        return len(found) == 1

    host.receive_until(is_alone, "a spare worker")
    return found[0]


def count_descriptors(host: LocalSupervisor) -> int:
    """Return the number of descriptors that the supervisor has open."""
    return len(os.listdir(f"/proc/{host.process.pid}/fd"))  # noqa: PTH208


# Outcomes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", SAME_MINOR_PYTHONS.values(), ids=SAME_MINOR_PYTHONS)
def test_call_with_sent_program_returns_value(python: Path, tmp_path: Path) -> None:
    trap = tmp_path / "pickle.py"
    trap.write_text("raise SystemExit('the current directory was imported from')")
    with local_supervisor(python, cwd=tmp_path) as host:
        host.prepare_calls()
        assert host.call(lambda a, b: a * b, 6, 7).value() == 42
        assert host.call(lambda: (sys.modules["cloudpickle"].__file__, "lazycluster" in sys.modules)).value() == (
            "<cloudpickle>/__init__.py",
            False,
        )


@pytest.mark.parametrize("python", SAME_MINOR_PYTHONS.values(), ids=SAME_MINOR_PYTHONS)
def test_call_finds_site_packages(python: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('customized')")
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONPATH": "."}
    source = "import sys; print([path for path in sys.path if path])"
    plain = subprocess.run([python, "-c", source], cwd=tmp_path, env=environment, capture_output=True, check=True)

    with local_supervisor(python, cwd=tmp_path, env=environment, expected_stderr=b"customized") as host:
        assert host.run("pwd", cwd=str(tmp_path / "elsewhere")).wait_exit_code() == 0
        assert host.read_stderr() == b""
        host.prepare_calls()
        sys_path = host.call(lambda: [path for path in sys.path if path]).value()
        assert f"{sys_path}\n" == plain.stdout.decode().removeprefix("customized\n")


@pytest.mark.parametrize("python", SAME_MINOR_PYTHONS.values(), ids=SAME_MINOR_PYTHONS)
def test_call_spawned_process_finds_site_packages(python: Path) -> None:
    """The supervisor starts with -S, which multiprocessing passes on to the Pythons that it starts."""
    source = "import sysconfig; print(sysconfig.get_path('purelib'), end='')"
    purelib = subprocess.run([python, "-c", source], capture_output=True, check=True).stdout.decode()

    def spawned_sys_path() -> list[str]:
        import multiprocessing  # noqa: PLC0415 - on the host

        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(eval, ("__import__('sys').path",))

    with local_supervisor(python) as host:
        host.prepare_calls()
        assert purelib in host.call(spawned_sys_path).value()


def test_call_failing_sitecustomize_is_reported(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit(3)")
    with local_supervisor(sys.executable, env={**os.environ, "PYTHONPATH": str(tmp_path)}) as host:
        host.prepare_calls()
        kind, reason = host.call(int).wait()
        assert (kind, reason.endswith("ends Python: SystemExit(3)")) == ("failed", True), reason
        assert host.run("echo well").result() == (0, b"well\n", b"")


def test_call_returns_value_or_raises_exception(host: LocalSupervisor) -> None:
    child = host.call(lambda text: print(text) or [text], "é\n")
    assert child.value() == ["é\n"]
    assert child.stderr == b"\xc3\xa9\n\n"
    failing = host.call(lambda: dict[str, int]()["key"])
    with pytest.raises(KeyError) as missing:
        failing.value()
    assert missing.value.args == ("key",)
    for error, function in ((SystemExit, sys.exit), (KeyboardInterrupt, lambda: os.kill(os.getpid(), signal.SIGINT))):
        with pytest.raises(RemoteFunctionError) as caught:
            host.call(function).value()
        assert error.__name__ in caught.value.reason
    assert host.call(lambda: "well").value() == "well"


def test_call_prints_are_sent_at_once_and_complete(host: LocalSupervisor, tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    os.mkfifo(go)

    def talk() -> str:
        print("first")
        with open(go) as file:  # noqa: PTH123 - waits for a writer
            file.read()
        print("out")
        print("err", file=sys.stderr)
        os.write(1, b"raw\n")
        subprocess.run(["sh", "-c", "echo of a command; echo and its errors >&2"], check=True)
        sys.stdout.write("no end" + "x" * 100_000)
        return "value"

    child = host.call(talk)
    host.receive_until(lambda: child.stderr == b"first\n", "the first line")
    with open(go, "w"):  # noqa: PTH123 - ends the wait
        pass
    assert child.value() == "value"
    printed = b"first\nout\nerr\nraw\nof a command\nand its errors\nno end" + b"x" * 100_000
    assert child.stderr == printed


@pytest.mark.parametrize(
    ("function", "end"),
    [
        (lambda: os._exit(3), ("exit", str(3 << 8))),
        (lambda: os._exit(0), ("exit", "0")),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), ("signal", "9")),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), ("signal", "15")),
        (lambda: os.execvp("false", ["false"]), ("exit", str(1 << 8))),
    ],
    ids=["exit 3", "exit 0", "SIGKILL", "SIGTERM", "another program"],
)
def test_call_dead_process_reports_wait_status(
    host: LocalSupervisor, function: Callable[[], object], end: tuple[str, str]
) -> None:
    child = host.call(lambda: (print("last words"), sys.stdout.flush(), function()))
    assert child.wait() == end
    assert child.stderr == b"last words\n"
    assert host.call(abs, -1).value() == 1


def test_call_large_argument_and_result_are_complete(host: LocalSupervisor) -> None:
    data = os.urandom(1 << 20) * 13
    assert host.call(lambda received: received[::-1], data).value() == data[::-1]


def test_call_result_window_holds_function_up(host: LocalSupervisor) -> None:
    child = host.call(lambda: bytes(20_000_000))
    child.updates_window = False
    host.receive_until(lambda: child.received_bytes >= protocol.WINDOW_BYTES, "a whole window")
    host.sync()
    assert child.received_bytes == protocol.WINDOW_BYTES
    assert host.call(abs, -2).value() == 2
    child.updates_window = True
    child.send_window_update(1 << 30)
    assert child.value() == bytes(20_000_000)


# The program of a call, without a supervisor --------------------------------------------------------------------------

DONE_RECORD = b"done"
CALL_PROGRAM = f"""
import os, sys
from lazycluster._remote import call_program
def main(program):  # with local names, because the program of a call clears the globals of __main__
    outcome_writer = os.dup(1)
    os.dup2(2, 1)  # as in a worker, printed text goes to standard error
    program.prepare(sys.stdin.buffer.raw.read(int(sys.argv[1])))
    program.run_call(0, outcome_writer, {DONE_RECORD!r})
main(call_program)
"""
"""Reads cloudpickle's sources, whose length is its argument, and then a request; writes the outcome of the call."""


@pytest.mark.parametrize(
    ("function", "expected", "printed"),
    [
        (lambda: "value", "value", b""),
        (lambda: bytes(1_000_000), bytes(1_000_000), b""),
        (lambda: [print("printed"), atexit.register(print, "at exit")][0], None, b"printed\nat exit\n"),
        (lambda: threading.Timer(0.05, print, ["of a thread"]).start(), None, b"of a thread\n"),
        (lambda: os.fork() == 0 or os.wait() is None, False, b""),
    ],
    ids=["value", "large", "prints", "thread", "fork"],
)
def test_run_call_writes_outcome_then_done_record(
    function: Callable[[], object], expected: object, printed: bytes
) -> None:
    sources, request = serialize.cloudpickle_source(), serialize.serialize_call(function).encode_request()
    done = subprocess.run(
        [sys.executable, "-c", CALL_PROGRAM, str(len(sources))],
        input=sources + request,
        capture_output=True,
        env={**os.environ, **coverage_environment()},
        timeout=60,
    )
    assert done.stderr == printed
    assert done.stdout.endswith(DONE_RECORD)
    assert done.stdout.count(DONE_RECORD) == 1
    end_record = call_outcome.RECORD_TRAILER.pack(call_outcome.RECORD_MAGIC, call_outcome.END_RECORD, 0)
    with tempfile.TemporaryFile() as file:
        file.write(done.stdout.removesuffix(DONE_RECORD) + end_record)
        assert outcome.read_outcome(file, "h", "f").unwrap() == expected


# The surroundings of a function ---------------------------------------------------------------------------------------


def test_call_surroundings_are_those_of_a_new_process(tmp_path: Path) -> None:
    def surroundings() -> dict[str, object]:
        import types  # noqa: PLC0415 - on the host

        names = {name for name, value in vars(sys.modules["__main__"]).items() if not name.startswith("__")}
        numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD)
        handlers = {number.name: signal.getsignal(number) for number in numbers}
        return {
            "cwd": os.getcwd(),  # noqa: PTH109
            "path": sys.path[0],
            "stdin": sys.stdin.read(),
            "main": names,
            "variables": {name: os.environ.get(name) for name in ("A", "PWD", "KEPT")},
            "mark": os.environ["LAZYCLUSTER_JOB"],
            "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:4],  # noqa: PTH208
            "handlers": {
                name: "builtin" if isinstance(handler, types.BuiltinFunctionType) else handler
                for name, handler in handlers.items()
            },
            "leader": os.getsid(0) == os.getpgid(0) == os.getpid(),
            "threads": [thread.name for thread in threading.enumerate()],
            "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
        }

    with local_supervisor(env={**os.environ, "KEPT": "yes", "A": "supervisor"}, cwd="/usr") as host:
        host.prepare_calls()
        child = host.call(surroundings, cwd=tmp_path, A="two\nlines")
        seen = child.value()
        assert isinstance(seen, dict)
        descriptors = seen.pop("descriptors")
        assert descriptors[:3] == [0, 1, 2]
        assert seen == {
            "cwd": str(tmp_path),
            "path": "",
            "stdin": "",
            "main": set(),
            "variables": {"A": "two\nlines", "PWD": str(tmp_path), "KEPT": "yes"},
            "mark": f"{host.token}.{child.number}.",
            "handlers": {
                "SIGHUP": signal.SIG_DFL,
                "SIGINT": "builtin",
                "SIGPIPE": signal.SIG_IGN,
                "SIGTERM": signal.SIG_DFL,
                "SIGCHLD": signal.SIG_DFL,
            },
            "leader": True,
            "threads": ["MainThread"],
            "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
        }
        assert PROCESS_MARK_VARIABLE == "LAZYCLUSTER_JOB"
        assert host.call(os.getcwd).value() == "/usr"
        assert host.call(lambda: os.environ["A"]).value() == "supervisor"
        assert host.call(abs, -1, cwd=tmp_path / "gone").wait() == ("cd", "No such file or directory")


def test_call_shares_nothing_with_later_calls(host: LocalSupervisor) -> None:
    def leave_traces() -> int:
        import json  # noqa: PLC0415 - one of the traces

        sys.modules["of_a_call"] = json
        os.environ["TRACE"] = "1"
        sys.path.append("/trace")
        os.chdir("/")
        atexit.register(print, "at exit")
        return os.getpid()

    def traces() -> tuple[int, list[object]]:
        return os.getpid(), [
            "of_a_call" in sys.modules,
            os.environ.get("TRACE"),
            "/trace" in sys.path,
            Path.cwd() == Path("/"),
        ]

    pids = []
    for _ in range(3):
        child = host.call(leave_traces)
        pids.append(child.value())
        assert child.stderr == b"at exit\n"
        pid, found = host.call(traces).value()
        pids.append(pid)
        assert found == [False, None, False, False]
    assert len(set(pids)) == 6


def test_call_waits_for_threads_and_exit_functions(host: LocalSupervisor) -> None:
    def leave_work() -> str:
        def late() -> None:
            time.sleep(0.05)
            print("of a thread")

        threading.Thread(target=late).start()
        atexit.register(print, "at exit")
        return "value"

    child = host.call(leave_work)
    assert child.value() == "value"
    assert child.stderr == b"of a thread\nat exit\n"


# Forks ----------------------------------------------------------------------------------------------------------------


def test_call_background_fork_ends_with_supervisor(host: LocalSupervisor) -> None:
    """The forked process delays no end of a call, and ends with the supervisor."""

    def daemon() -> int:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        return pid

    pid = host.call(daemon).value()
    assert isinstance(pid, int)
    assert not is_reaped(pid)


@pytest.mark.parametrize("first", ["parent", "child"])
def test_call_returning_twice_from_fork_has_one_value(host: LocalSupervisor, first: str) -> None:
    """A child of os.fork() may forget to exit. The value is that of the process that was called."""

    def return_twice(first: str) -> str:
        reading, writing = os.pipe()
        pid = os.fork()
        me = "parent" if pid else "child"
        if me == first:
            os.close(reading)
            return f"{me}, first"  # the exit of its process closes the other end
        os.close(writing)
        os.read(reading, 1)
        return f"{me}, last"

    child = host.call(return_twice, first)
    assert child.value() == ("parent, first" if first == "parent" else "parent, last")


def test_call_uses_multiprocessing(host: LocalSupervisor) -> None:
    def in_processes() -> list[int]:
        import multiprocessing  # noqa: PLC0415 - on the host

        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, -2, -3])

    assert host.call(in_processes).value() == [1, 2, 3]


def start_stubborn_family() -> None:
    """Print the pids of processes in sessions of their own, orphans among them, and wait."""
    print(os.getpid())
    print(subprocess.Popen(["sleep", "60"], start_new_session=True).pid)
    if os.fork() == 0:  # a daemon: two forks, and a session
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print(os.getpid())
            time.sleep(60)
        os._exit(0)
    os.wait()
    print("ready")
    time.sleep(60)


def start_family(host: LocalSupervisor) -> tuple[ObservedChild, list[int]]:
    child = host.call(start_stubborn_family, grace=0.4)
    host.receive_until(lambda: b"ready" in child.stderr and child.stderr.count(b"\n") == 4, "all of the family")
    pids = [int(word) for word in child.stderr.split() if word != b"ready"]
    assert not any(is_reaped(pid) for pid in pids)
    return child, pids


def test_call_stop_ends_all_processes_of_function(host: LocalSupervisor) -> None:
    child, pids = start_family(host)
    child.stop()
    assert child.wait() == ("signal", "15")
    assert is_reaped(*pids)


def test_call_ends_with_supervisor(host: LocalSupervisor) -> None:
    _, pids = start_family(host)
    host.close_stdin()
    assert host.wait_goodbye() == []
    assert is_reaped(*pids)


# The spare worker, forked ahead of the next call ----------------------------------------------------------------------


def test_spare_worker_takes_next_call(host: LocalSupervisor) -> None:
    used = host.call(os.getpid).value()
    for _ in range(3):
        spare = wait_spare_pid(host, used)
        assert host.call(os.getpid).value() == spare
        used = spare


def test_spare_worker_is_forked_during_long_call(host: LocalSupervisor, tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    long = host.call(lambda path: (os.getpid(), open(path).read()), str(go))  # noqa: PTH123, SIM115 - waits for a writer
    host.receive_until(lambda: long.pid is not None, "the report of its start")
    spare = wait_spare_pid(host, long.pid)
    assert host.call(os.getpid).value() == spare
    go.write_text("on")
    assert long.value() == (long.pid, "on")


def test_spare_worker_killed_is_replaced(host: LocalSupervisor) -> None:
    spare = wait_spare_pid(host, host.call(os.getpid).value())
    os.kill(spare, signal.SIGKILL)
    host.receive_until(lambda: is_reaped(spare), "that it is collected")
    assert host.call(lambda: "well").value() == "well"


def test_call_forty_at_once_have_own_processes(host: LocalSupervisor) -> None:
    children = [host.call(lambda number: (number, os.getpid()), number) for number in range(40)]
    values = [child.value() for child in children]
    assert [number for number, _ in values] == list(range(40))
    assert len({pid for _, pid in values}) == 40


def test_spare_worker_idle_is_killed() -> None:
    with local_supervisor(limits={"keepalive_interval": 0.2}) as host:
        host.prepare_calls()
        assert host.call(abs, -1).value() == 1
        host.receive_until(lambda: host.keepalives and not host.child_pids(), "no child is left")
        assert host.call(abs, -1).value() == 1


def test_call_inherits_no_descriptor_of_supervisor(host: LocalSupervisor) -> None:
    """An inherited descriptor would keep other children from ending, and the channel from closing."""
    other = host.run("cat", stdin=None)
    daemon = host.call(lambda: subprocess.Popen(["sleep", "60"], close_fds=False, stdin=0, stdout=1, stderr=2).pid)
    pid = daemon.value()
    other.write(b"")
    assert other.wait_exit_code() == 0
    links = {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH115, PTH208
    ours = {os.readlink(f"/proc/{host.process.pid}/fd/{name}") for name in ("0", "1")}  # noqa: PTH115
    assert not links & ours


# Failures -------------------------------------------------------------------------------------------------------------


def test_call_without_extension_fails() -> None:
    with local_supervisor() as host:
        assert host.call(abs, -1).wait() == ("failed", "")


@pytest.mark.parametrize(
    ("text", "data", "reason"),
    [
        (b"not compressed", b"", "error: Error -3 while decompressing data"),
        (zlib.compress(b"nothing = 1"), b"", "KeyError: 'install'"),
        (zlib.compress(b"raise ValueError('why')"), b"", "ValueError: why"),
        (bootstrap.calls_extension(), b"no module", "error: Error -3 while decompressing data"),
    ],
)
def test_call_with_broken_extension_reports_error(text: bytes, data: bytes, reason: str) -> None:
    with local_supervisor() as host:
        host.send(protocol.PREPARE, 0, protocol.pack(text, data))
        kind, detail = host.call(abs, -1).wait()
        assert kind == "failed"
        assert detail.startswith(reason)
        host.sync()
        assert host.run("echo well").result()[1] == b"well\n"


def test_call_truncated_request_ends_with_exit_status_1(host: LocalSupervisor) -> None:
    request = serialize.serialize_call(abs, -1).encode_request()
    number, input_ended = 900, protocol.encode_number(protocol.FLAG_INPUT_ENDED)
    child = host.observed_children[number] = ObservedChild(host, number)
    host.send(protocol.CALL, number, protocol.pack(input_ended, b"", b"5", b"abs", request[:-1]))
    assert child.wait() == ("exit", str(1 << 8))
    assert b"EOFError" in child.stderr


def test_call_without_fork_fails_and_leaks_no_descriptor() -> None:
    setup_code = """
import os
def refuse():
    raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork = refuse
"""
    with local_supervisor(setup_code=setup_code) as host:
        host.prepare_calls()
        host.sync()
        before = count_descriptors(host)
        for _ in range(3):
            assert host.call(abs, -1).wait() == ("failed", "no process for it: Resource temporarily unavailable")
        host.sync()
        assert count_descriptors(host) == before


def test_supervisor_children_leak_no_descriptor(host: LocalSupervisor, tmp_path: Path) -> None:
    """Children of every kind and end are tried."""

    def round_trip() -> None:
        assert host.call(abs, -1).value() == 1
        assert host.call(os._exit, 1).wait() == ("exit", str(1 << 8))
        assert host.run("cat", stdin=b"in").wait_exit_code() == 0
        assert host.run("exec <&- >&- 2>&-; exit 3", stdin=None).wait_exit_code() == 3
        assert host.run("true", cwd="/no/such").wait()[0] == "cd"
        assert host.run("x" * 200_000).wait_exit_code() == 126
        stopped = host.run("sleep 60", stdin=None)
        stopped.stop()
        assert stopped.wait_exit_code() == -signal.SIGTERM

    def count_with_spare_worker() -> int:
        wait_spare_pid(host)
        return count_descriptors(host)

    round_trip()
    before = count_with_spare_worker()
    for _ in range(5):
        round_trip()
    assert wait_until(lambda: count_with_spare_worker() == before, 10)


def test_call_open_port_delays_no_end_of_call(host: LocalSupervisor) -> None:
    """A server that a function leaves running delays neither the end of its call nor the supervisor."""

    def serve() -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        if os.fork() == 0:
            listener.accept()
            os._exit(0)
        return port

    port = host.call(serve).value()
    assert isinstance(port, int)
    socket.create_connection(("127.0.0.1", port), 5).close()
