"""What a runtime holds, and gives back once, in the process that made it."""

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
from lazycluster import _resources as resources_module
from lazycluster._execution import TaskProcess, state_of
from lazycluster._resources import ResourceRegistry
from lazycluster._transports.host_context import HostContext
from lazycluster._waiting import CancelToken
from lazycluster.executor import Executor
from lazycluster.steps import SendFile
from lazycluster.tasks import RuntimeTask
from lazycluster.testing import FakeHost
from lazycluster.testing._fake_transport import FakeTransport
from tests.waiting import wait_until


@attrs.define
class Process:
    """A process that notes how it is treated, and does something when it is ended."""

    name: str = "p"
    pid: int | None = None
    exitcode: int | None = None
    notes: list[str] = attrs.field(factory=list)
    on_end: Callable[[], object] = lambda: None

    def is_alive(self) -> bool:
        return not {"terminate", "kill"} & set(self.notes)

    def join(self, timeout: float | None = None) -> None: ...

    def request_stop(self) -> None:
        self.notes.append("ask")

    def terminate(self) -> None:
        self.notes.append("terminate")
        self.on_end()

    def kill(self) -> None:
        self.notes.append("kill")
        self.on_end()


class CountingTransport(FakeTransport):
    """Counts its clean-ups, and does before each of them what a test asks for."""

    clean_up_count = 0

    def __init__(self, fake_host: FakeHost) -> None:
        super().__init__(fake_host._state, "web1")
        self.on_clean_up: Callable[[], object] = lambda: None

    def clean_up(self) -> None:
        self.on_clean_up()
        super().clean_up()
        self.clean_up_count += 1


@pytest.fixture
def transport(fake_host: FakeHost) -> CountingTransport:
    return CountingTransport(fake_host)


@pytest.fixture
def registry(transport: CountingTransport) -> Iterator[ResourceRegistry]:
    made = ResourceRegistry(transport)
    yield made
    made.disconnect()


def state(registry: ResourceRegistry) -> tuple[bool, bool, bool, bool]:
    """Return what holds: closed, released, the transport is closed, the end of the program will look at it."""
    assert isinstance(registry.transport, FakeTransport)
    return (
        registry.closed,
        registry.released,
        registry.transport.closed,
        registry in resources_module._unreleased_registries,
    )


OPEN, RELEASED, INTERRUPTED = (False, False, False, True), (True, True, True, False), (True, False, False, True)
FAILED = (True, False, True, True)


def test_processes_by_key(registry: ResourceRegistry) -> None:
    one, other = Process(), Process()
    assert (registry.register("a", one), registry.register("b", other)) == ("a", "b")
    other.terminate()
    assert registry.get_processes(only_alive=False) == {"a": one, "b": other}
    assert registry.get_processes(only_alive=True) == {"a": one}
    registry.discard(["b", "no such key"])
    assert registry.get_processes(only_alive=False) == {"a": one}


@pytest.mark.parametrize("reached", [True, False])
def test_everything_is_released_once(
    registry: ResourceRegistry, transport: CountingTransport, reached: bool, fake_host: FakeHost
) -> None:
    """Gently where the host answers; where the link is dead quickly, and without asking the host again."""
    if not reached:
        fake_host.go_down()
    notes: list[str] = []
    for number in range(2):
        registry.register(str(number), Process(notes=notes))
    assert state(registry) == OPEN
    registry.release()
    registry.release()
    assert notes == ["ask", "ask", *["terminate" if reached else "kill"] * 2]  # all are asked before one is waited for
    assert transport.clean_up_count == reached
    assert state(registry) == RELEASED


def test_where_the_link_is_dead_the_connection_goes_before_what_waits_for_it(
    registry: ResourceRegistry, transport: CountingTransport, fake_host: FakeHost
) -> None:
    fake_host.go_down()
    closed: list[bool] = []
    registry.register("a", Process(on_end=lambda: closed.append(transport.closed)))
    registry.release()
    assert (closed, state(registry)) == ([True], RELEASED)


def test_what_was_not_set_up_is_abandoned_without_a_word_to_the_host(
    registry: ResourceRegistry, transport: CountingTransport
) -> None:
    registry.disconnect()
    registry.release()
    assert (state(registry), transport.clean_up_count) == (RELEASED, 0)


def test_what_comes_too_late_is_stopped(registry: ResourceRegistry) -> None:
    registry.release()
    late = Process()
    with pytest.raises(RuntimeClosedError, match="web1: closed already"):
        registry.register("late", late)
    assert late.notes == ["terminate"]


def test_what_comes_while_everything_is_released_is_stopped(
    registry: ResourceRegistry, transport: CountingTransport
) -> None:
    late, refused = Process(), []

    def come() -> None:
        with pytest.raises(RuntimeClosedError) as caught:
            registry.register("late", late)
        refused.append(caught.value)

    registry.register("a", Process(on_end=come))
    registry.release()
    assert (len(refused), late.notes, list(registry.get_processes(only_alive=False))) == (1, ["terminate"], ["a"])
    assert transport.clean_up_count == 1


def test_a_fork_of_the_owner_releases_only_what_it_began_itself(
    registry: ResourceRegistry, transport: CountingTransport
) -> None:
    """The transport knows: it has begun afresh since the fork."""
    process = Process()
    registry.register("a", process)
    registry.creator_pid = os.getppid()
    before = threading.active_count()
    registry.release()
    registry.release_in_background()
    assert (process.notes, transport.clean_up_count, threading.active_count()) == ([], 1, before)
    assert registry.released


# Interruptions --------------------------------------------------------------------------------------------------------


def test_a_release_that_was_interrupted_can_be_repeated(
    registry: ResourceRegistry, transport: CountingTransport
) -> None:
    """Such as by Ctrl-C while a process is waited for."""

    def interrupt() -> None:
        if interrupted.notes.count("terminate") == 1:
            raise KeyboardInterrupt

    interrupted, after = Process(on_end=interrupt), Process()
    registry.register("a", interrupted)
    registry.register("b", after)
    with pytest.raises(KeyboardInterrupt):
        registry.release()
    assert (after.notes, transport.clean_up_count, state(registry)) == (["ask"], 0, INTERRUPTED)
    with pytest.raises(RuntimeClosedError):
        registry.register("c", Process())
    registry.release()
    assert (after.notes, transport.clean_up_count, state(registry)) == (["ask", "ask", "terminate"], 1, RELEASED)


def test_an_interrupt_while_the_host_cleans_up_leaves_the_connection_for_the_next_time(
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


def test_the_connection_is_closed_though_a_process_cannot_be_ended(
    registry: ResourceRegistry, transport: CountingTransport
) -> None:
    def fail() -> None:
        raise OSError("no more")

    registry.register("a", Process(on_end=fail))
    with pytest.raises(OSError, match="no more"):
        registry.release()
    assert (transport.clean_up_count, state(registry)) == (0, FAILED)


# Threads --------------------------------------------------------------------------------------------------------------


def test_a_task_may_release_what_holds_it(
    registry: ResourceRegistry, transport: CountingTransport, fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot wait for its own thread."""

    def release(*_: object, **__: object) -> None:
        kept.wait(10)
        registry.release()

    kept, cancel_token, other_transport = threading.Event(), CancelToken(), fake_host._connect("web1", {})
    monkeypatch.setattr(other_transport, "put", release)
    task = RuntimeTask("t").send_file("/").run_command("never")
    executor = Executor(HostContext(other_transport, cancel_token=cancel_token))
    process: TaskProcess = state_of(task).start_in_background(executor, cancel_token)
    registry.register("t", process)
    kept.set()
    process.join(10)
    assert (process.exitcode, fake_host.calls) == (-15, [])
    assert isinstance(task.steps[0], SendFile)
    assert (transport.clean_up_count, state(registry)) == (1, RELEASED)


def test_who_comes_second_waits_for_the_first(registry: ResourceRegistry, transport: CountingTransport) -> None:
    inside, go, second = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        inside.set()
        go.wait(10)

    def release_too() -> None:
        registry.release()
        second.set()

    process = Process(on_end=block)
    registry.register("a", process)
    threads = [threading.Thread(target=registry.release), threading.Thread(target=release_too)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    assert not second.wait(0.05)
    go.set()
    for thread in threads:
        thread.join(10)
    assert (second.is_set(), process.notes, transport.clean_up_count) == (True, ["ask", "terminate"], 1)


def test_the_garbage_collector_does_not_wait(registry: ResourceRegistry, transport: CountingTransport) -> None:
    go, names = threading.Event(), []

    def block() -> None:
        names.append(threading.current_thread().name)
        go.wait(10)

    registry.register("a", Process(on_end=block))
    registry.release_in_background()
    assert not registry.released
    go.set()
    assert wait_until(lambda: state(registry) == RELEASED, 10)
    assert (names, transport.clean_up_count) == (["clean-up of web1"], 1)


# What is left, and the end of the program -----------------------------------------------------------------------------


def test_what_is_left_on_a_host_that_is_not_reached_is_logged(
    registry: ResourceRegistry, transport: CountingTransport, caplog: pytest.LogCaptureFixture, fake_host: FakeHost
) -> None:
    left = [transport.create_tempdir(), transport.create_tempdir()]
    fake_host.go_down()
    registry.release()
    assert caplog.messages == [f"web1: not reached; left there: {left[0]}, {left[1]}"]
    assert state(registry) == RELEASED


def test_at_the_end_of_the_program_one_failure_does_not_keep_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fake_host: FakeHost
) -> None:
    def fail() -> None:
        raise OSError("no more")

    monkeypatch.setattr(resources_module, "_unreleased_registries", set())
    fake_host.go_down()
    made = [ResourceRegistry(fake_host._connect(f"web{number}", {})) for number in range(3)]
    processes = [Process(on_end=fail if number == 1 else lambda: None) for number in range(3)]
    for registry, process in zip(made, processes, strict=True):
        registry.register("a", process)
    resources_module._release_all_registries()
    assert [process.notes for process in processes] == [["ask", "kill"]] * 3
    assert [state(registry) for registry in made] == [RELEASED, FAILED, RELEASED]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "web1: the clean-up failed")
    ]


def test_runtimes_are_released_before_the_connections_that_they_need() -> None:
    """What is registered last is called first (atexit)."""
    program = """
import atexit
registered = []
atexit.register = lambda function: registered.append(f"{function.__module__}.{function.__name__}")
from lazycluster._resources import ResourceRegistry
from lazycluster._transports.factory import make_transport
ResourceRegistry(make_transport("never-dialled", {})).disconnect()
wanted = ["lazycluster._ssh.client._disconnect_all", "lazycluster._resources._release_all_registries"]
print([name for name in registered if name in wanted] == wanted)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.stdout, ended.stderr) == ("True\n", "")


@pytest.mark.parametrize(
    ("end", "printed"),
    [("", "asked\nkilled\n"), ("registry.release()", "asked\nkilled\n"), ("registry.disconnect()", "")],
)
@pytest.mark.parametrize("resident", [True, False])
def test_the_end_of_the_program_releases_what_was_not(end: str, printed: str, resident: bool) -> None:
    program = f"""
from lazycluster._resources import ResourceRegistry
from lazycluster._transports.factory import make_transport

class Process:
    def request_stop(self): print("asked")
    def kill(self): print("killed")

registry = ResourceRegistry(make_transport("web1", {{"resident": {resident}}}))
registry.register("a", Process())
{end}
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.stdout, ended.stderr, ended.returncode) == (printed, "", 0)
