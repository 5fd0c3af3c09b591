"""The registry of a runtime's resources, which releases them once, in the process that made it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import attrs
import pytest

from lazycluster import RuntimeClosedError
from lazycluster._execution import TaskProcess, state_of
from lazycluster._resources import ResourceRegistry, release_all, unreleased_registries
from lazycluster._transports.host_context import HostContext
from lazycluster._waiting import CancelToken
from lazycluster.executor import Executor
from lazycluster.steps import SendFile
from lazycluster.tasks import RuntimeTask
from lazycluster.testing import FakeHost
from lazycluster.testing._fake_transport import FakeTransport
from tests.unit.fake_transports import connect_to_fake_host
from tests.waiting import wait_until


@attrs.define
class Process:
    """A process that records the calls of its methods, and calls a function when it is ended."""

    name: str = "p"
    pid: int | None = None
    exitcode: int | None = None
    calls: list[str] = attrs.field(factory=list)
    on_end: Callable[[], object] = lambda: None

    def is_alive(self) -> bool:
        return not {"terminate", "kill"} & set(self.calls)

    def join(self, timeout: float | None = None) -> None: ...

    def request_stop(self) -> None:
        self.calls.append("request_stop")

    def terminate(self) -> None:
        self.calls.append("terminate")
        self.on_end()

    def kill(self) -> None:
        self.calls.append("kill")
        self.on_end()


class CountingTransport(FakeTransport):
    """Counts its clean-ups, and calls a function before each of them."""

    def __init__(self, transport: FakeTransport) -> None:
        super().__init__(transport.machine, transport.host)
        self.clean_up_count = 0
        self.on_clean_up: Callable[[], object] = lambda: None

    def clean_up(self) -> None:
        self.on_clean_up()
        super().clean_up()
        self.clean_up_count += 1


@pytest.fixture
def transport(fake_host: FakeHost) -> CountingTransport:
    return CountingTransport(connect_to_fake_host())


@pytest.fixture
def registry(transport: CountingTransport) -> Iterator[ResourceRegistry]:
    registry = ResourceRegistry(transport)
    yield registry
    registry.disconnect()


def state(registry: ResourceRegistry) -> tuple[bool, bool, bool, bool]:
    """Return whether it is closed and released, its transport is closed, and the end of the program releases it."""
    assert isinstance(registry.transport, FakeTransport)
    return (
        registry.closed,
        registry.released,
        registry.transport.closed,
        registry in unreleased_registries,
    )


OPEN, RELEASED, INTERRUPTED = (False, False, False, True), (True, True, True, False), (True, False, False, True)
FAILED = (True, False, True, True)


def test_registry_returns_processes_by_key(registry: ResourceRegistry) -> None:
    one, other = Process(), Process()
    assert (registry.register("a", one), registry.register("b", other)) == ("a", "b")
    other.terminate()
    assert registry.get_processes(only_alive=False) == {"a": one, "b": other}
    assert registry.get_processes(only_alive=True) == {"a": one}
    registry.discard(["b", "no such key"])
    assert registry.get_processes(only_alive=False) == {"a": one}


@pytest.mark.parametrize(("keys", "known"), [((), "none"), (("a", "b"), "a, b")], ids=["no process", "two processes"])
def test_registry_unknown_key_error_names_known_keys(
    registry: ResourceRegistry, keys: tuple[str, ...], known: str
) -> None:
    for key in keys:
        registry.register(key, Process())
    with pytest.raises(ValueError) as caught:
        registry.get_process("c")
    assert str(caught.value) == f"web1: no process with the key 'c' (there are: {known})"


@pytest.mark.parametrize("reached", [True, False], ids=["reached", "not reached"])
def test_registry_release_twice_releases_once(
    registry: ResourceRegistry, transport: CountingTransport, reached: bool, fake_host: FakeHost
) -> None:
    """A host that answers ends its processes in time; one that does not answer is asked for nothing."""
    if not reached:
        fake_host.go_down()
    calls: list[str] = []
    for number in range(2):
        registry.register(str(number), Process(calls=calls))
    assert state(registry) == OPEN
    registry.release()
    registry.release()
    assert calls == ["request_stop"] * 2 + ["terminate" if reached else "kill"] * 2, (
        "all are asked before the first wait"
    )
    assert transport.clean_up_count == reached
    assert state(registry) == RELEASED


def test_registry_release_dead_host_closes_transport_first(
    registry: ResourceRegistry, transport: CountingTransport, fake_host: FakeHost
) -> None:
    fake_host.go_down()
    closed: list[bool] = []
    registry.register("a", Process(on_end=lambda: closed.append(transport.closed)))
    registry.release()
    assert (closed, state(registry)) == ([True], RELEASED)


def test_registry_disconnect_never_contacts_the_host(registry: ResourceRegistry, transport: CountingTransport) -> None:
    registry.disconnect()
    registry.release()
    assert (state(registry), transport.clean_up_count) == (RELEASED, 0)


def test_registry_register_after_release_stops_process(registry: ResourceRegistry) -> None:
    registry.release()
    late = Process()
    with pytest.raises(RuntimeClosedError):
        registry.register("late", late)
    assert late.calls == ["terminate"]


def test_registry_register_during_release_stops_process(
    registry: ResourceRegistry, transport: CountingTransport
) -> None:
    late, refused = Process(), []

    def register_late() -> None:
        with pytest.raises(RuntimeClosedError) as caught:
            registry.register("late", late)
        refused.append(caught.value)

    registry.register("a", Process(on_end=register_late))
    registry.release()
    assert (len(refused), late.calls, list(registry.get_processes(only_alive=False))) == (1, ["terminate"], ["a"])
    assert transport.clean_up_count == 1


def test_registry_release_in_fork_leaves_processes_alone(
    registry: ResourceRegistry, transport: CountingTransport
) -> None:
    """The clean-up is left to the transport, which began afresh with the fork."""
    process = Process()
    registry.register("a", process)
    registry.creator_pid = os.getppid()
    before = threading.active_count()
    registry.release()
    registry.release_in_background()
    assert (process.calls, transport.clean_up_count, threading.active_count()) == ([], 1, before)
    assert registry.released


# Interruptions --------------------------------------------------------------------------------------------------------


def test_registry_release_interrupted_can_be_repeated(registry: ResourceRegistry, transport: CountingTransport) -> None:
    """Ctrl-C may come while a process is waited for."""

    def interrupt() -> None:
        if interrupted.calls.count("terminate") == 1:
            raise KeyboardInterrupt

    interrupted, after = Process(on_end=interrupt), Process()
    registry.register("a", interrupted)
    registry.register("b", after)
    with pytest.raises(KeyboardInterrupt):
        registry.release()
    assert (after.calls, transport.clean_up_count, state(registry)) == (["request_stop"], 0, INTERRUPTED)
    with pytest.raises(RuntimeClosedError):
        registry.register("c", Process())
    registry.release()
    assert (after.calls, transport.clean_up_count, state(registry)) == (
        ["request_stop", "request_stop", "terminate"],
        1,
        RELEASED,
    )


def test_registry_interrupted_clean_up_keeps_connection(
    registry: ResourceRegistry, transport: CountingTransport
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    transport.on_clean_up = interrupt
    with pytest.raises(KeyboardInterrupt):
        registry.release()
    assert state(registry) == INTERRUPTED
    transport.on_clean_up = lambda: None
    registry.release()
    assert (transport.clean_up_count, state(registry)) == (1, RELEASED)


def test_registry_release_failed_stop_closes_connection(
    registry: ResourceRegistry, transport: CountingTransport
) -> None:
    def fail() -> None:
        raise OSError("no more")

    registry.register("a", Process(on_end=fail))
    with pytest.raises(OSError):
        registry.release()
    assert (transport.clean_up_count, state(registry)) == (0, FAILED)


# Threads --------------------------------------------------------------------------------------------------------------


def test_registry_release_from_task_does_not_wait_for_it(
    registry: ResourceRegistry, transport: CountingTransport, fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task cannot wait for its own thread."""

    def release(*_: object, **__: object) -> None:
        registered.wait(10)
        registry.release()

    registered, cancel_token, other_transport = threading.Event(), CancelToken(), connect_to_fake_host()
    monkeypatch.setattr(other_transport, "put", release)
    task = RuntimeTask("t").send_file("/").run_command("never")
    executor = Executor(HostContext(other_transport, cancel_token=cancel_token))
    process: TaskProcess = state_of(task).start_in_background(executor, cancel_token)
    registry.register("t", process)
    registered.set()
    process.join(10)
    assert (process.exitcode, fake_host.calls) == (-15, [])
    assert isinstance(task.steps[0], SendFile)
    assert (transport.clean_up_count, state(registry)) == (1, RELEASED)


def test_registry_release_in_two_threads_waits(registry: ResourceRegistry, transport: CountingTransport) -> None:
    entered, proceed = threading.Event(), threading.Event()
    order: list[str] = []

    def block() -> None:
        entered.set()
        proceed.wait(10)
        order.append("process ended")

    def release_too() -> None:
        second_started.set()
        registry.release()
        order.append("second release returned")

    second_started = threading.Event()
    process = Process(on_end=block)
    registry.register("a", process)
    threads = [threading.Thread(target=registry.release), threading.Thread(target=release_too)]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    assert second_started.wait(10)
    threads[1].join(0.05)
    proceed.set()
    for thread in threads:
        thread.join(10)
    assert order == ["process ended", "second release returned"]
    assert (process.calls, transport.clean_up_count) == (["request_stop", "terminate"], 1)


def test_registry_release_in_background_returns_at_once(
    registry: ResourceRegistry, transport: CountingTransport
) -> None:
    proceed, thread_names = threading.Event(), []

    def block() -> None:
        thread_names.append(threading.current_thread().name)
        proceed.wait(10)

    registry.register("a", Process(on_end=block))
    registry.release_in_background()
    assert not registry.released
    proceed.set()
    assert wait_until(lambda: state(registry) == RELEASED, 10)
    assert (thread_names, transport.clean_up_count) == (["clean-up of web1"], 1)


# The end of the program -----------------------------------------------------------------------------------------------


def test_registry_release_dead_host_logs_directories_left(
    registry: ResourceRegistry, transport: CountingTransport, caplog: pytest.LogCaptureFixture, fake_host: FakeHost
) -> None:
    left = [transport.create_tempdir(), transport.create_tempdir()]
    fake_host.go_down()
    registry.release()
    assert caplog.messages == [f"web1: not reached; left there: {left[0]}, {left[1]}"]
    assert state(registry) == RELEASED


def test_release_all_failure_does_not_keep_the_others(caplog: pytest.LogCaptureFixture, fake_host: FakeHost) -> None:
    def fail() -> None:
        raise OSError("no more")

    fake_host.go_down()
    registries = [ResourceRegistry(connect_to_fake_host(f"web{number}")) for number in range(3)]
    processes = [Process(on_end=fail if number == 1 else lambda: None) for number in range(3)]
    for registry, process in zip(registries, processes, strict=True):
        registry.register("a", process)
    release_all(registries)
    assert [process.calls for process in processes] == [["request_stop", "kill"]] * 3
    assert [state(registry) for registry in registries] == [RELEASED, FAILED, RELEASED]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "web1: the clean-up failed")
    ]
    registries[1].disconnect()


def test_import_keeps_signal_handlers() -> None:
    program = """
import signal
handlers = [signal.getsignal(number) for number in signal.valid_signals()]
import lazycluster.testing, lazycluster.runtimes
print(handlers == [signal.getsignal(number) for number in signal.valid_signals()])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.stdout, ended.stderr) == ("True\n", "")


def test_atexit_releases_registries_before_connections() -> None:
    """The function that is registered last is called first (atexit)."""
    program = """
import atexit
registered = []
atexit.register = lambda function, *arguments: registered.append(function.__module__)
from lazycluster._resources import ResourceRegistry
from lazycluster._transports.factory import make_transport
ResourceRegistry(make_transport("web1", {})).disconnect()
print([name for name in registered if name in ("lazycluster._ssh.client", "lazycluster._resources")])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.stdout, ended.stderr) == ("['lazycluster._ssh.client', 'lazycluster._resources']\n", "")


@pytest.mark.parametrize(
    ("last_line", "printed"),
    [("", "asked\nkilled\n"), ("registry.release()", "asked\nkilled\n"), ("registry.disconnect()", "")],
    ids=["nothing", "released", "disconnected"],
)
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "per command"])
def test_atexit_releases_unreleased_registry(last_line: str, printed: str, resident: bool) -> None:
    program = f"""
from lazycluster._resources import ResourceRegistry
from lazycluster._transports.factory import make_transport

class Process:
    def request_stop(self): print("asked")
    def kill(self): print("killed")

registry = ResourceRegistry(make_transport("web1", {{"resident": {resident}}}))
registry.register("a", Process())
{last_line}
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.stdout, ended.stderr, ended.returncode) == (printed, "", 0)
