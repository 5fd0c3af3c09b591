"""Functions of a fake host run in this process: what they share with it, and what they leave alone."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazycluster import RemoteFunctionError, Runtime, RuntimeTask, TaskExecutionError, WorkingDirectoryError
from lazycluster.testing import FakeHost
from tests.unit import fake_host_functions as peer
from tests.waiting import assert_eventually


@pytest.fixture
def runtime(fake_host: FakeHost) -> Iterator[Runtime]:
    with Runtime("any-host") as runtime:
        yield runtime


def new_events() -> tuple[threading.Event, threading.Event]:
    """Return new events for the functions of `peer`: they set the first when they run, and the second ends them."""
    peer.events[:] = [threading.Event(), threading.Event()]
    return peer.events[0], peer.events[1]


def is_thread_alive(name: str) -> bool:
    return any(thread.name == name for thread in threading.enumerate())


class Registry:
    """A class with a state of its own, which a pickle of it must not reset."""

    known: dict[str, int] = {}  # noqa: RUF012 - a class attribute is the subject of the test

    def add(self, name: str) -> int:
        return len(self.known) + len(name)


def test_fake_host_call_shares_modules_with_test(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.call(os.getpid) == os.getpid()
    state, calls = peer.state, peer.state["calls"]
    assert runtime.call(peer.answer) == "of the module"
    assert peer.state is state
    assert state["calls"] == calls + 1
    monkeypatch.setattr(peer, "source", lambda: "patched")
    assert runtime.call(peer.answer) == "patched"
    assert runtime.call(lambda: peer.answer()) == "patched"  # noqa: PLW0108 - a function of this module


def test_fake_host_call_keeps_classes(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Registry.known, "one", 1)
    add, known = Registry.add, Registry.known

    registry = runtime.call(lambda given: given, Registry())

    assert type(registry) is Registry
    assert runtime.call(registry.add, "two") == 4
    assert Registry.add is add
    assert Registry.known is known


def test_fake_host_call_captures_its_own_threads_only(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    started, release = new_events()
    task = runtime.execute_task(RuntimeTask().run_function(peer.print_around_wait))
    assert started.wait(30)

    print("of the test")
    print("error of the test", file=sys.stderr)
    release.set()
    task.join()

    assert capsys.readouterr() == ("of the test\n", "error of the test\n")
    assert task.execution_log == ["before\nof a thread\nafter\n"]
    print("again")
    assert capsys.readouterr().out == "again\n"


def test_fake_host_call_keeps_replaced_stdout(runtime: Runtime) -> None:
    original = sys.stdout
    started, release = new_events()
    task = runtime.execute_task(RuntimeTask().run_function(peer.wait))
    assert started.wait(30)
    assert sys.stdout is not original

    sys.stdout = replaced = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - closed below
    try:
        release.set()
        task.join()
        assert sys.stdout is replaced
    finally:
        sys.stdout = original
        replaced.close()


def test_fake_host_call_can_be_stopped_before_its_turn(runtime: Runtime) -> None:
    started, release = new_events()
    first = runtime.execute_task(RuntimeTask("first").run_function(peer.wait))
    assert started.wait(30)
    second = runtime.execute_task(RuntimeTask("second").run_function(peer.answer))
    third = runtime.execute_task(RuntimeTask("third").run_function(peer.answer))

    assert second.process is not None
    second.process.terminate()
    assert second.process.exitcode == -15
    assert first.process is not None
    assert first.process.is_alive()
    release.set()

    assert list(first.function_returns) == [runtime.working_dir]
    assert list(third.function_returns) == ["of the module"]


def test_fake_host_stopped_call_restores_process_state(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    started, release = new_events()
    before = (Path.cwd(), dict(os.environ), (sys.stdout, sys.stderr))
    runtime.set_env_variables({"LAZYCLUSTER_TEST_ADDED": "1"})
    task = runtime.execute_task(RuntimeTask().run_function(peer.wait))
    assert started.wait(30)
    assert task.process is not None

    task.process.terminate()

    assert (Path.cwd(), dict(os.environ), (sys.stdout, sys.stderr)) == before
    assert runtime.call(peer.answer) == "of the module"
    assert is_thread_alive("function wait"), "nothing can end a thread"
    release.set()
    assert_eventually(lambda: not is_thread_alive("function wait"), "the thread has ended", timeout=30)


def test_fake_host_call_unpickling_error_is_reported(runtime: Runtime) -> None:
    with pytest.raises(RemoteFunctionError) as caught:
        runtime.call(len, peer.Unloadable())
    assert "RuntimeError: cannot be loaded" in caught.value.reason
    assert "in fail_to_unpickle" in caught.value.remote_traceback


def test_fake_host_call_directory_removed_before_its_turn(fake_host: FakeHost, runtime: Runtime) -> None:
    started, release = new_events()
    runtime.execute_task(RuntimeTask().run_function(peer.wait))
    assert started.wait(30)
    with Runtime("other", "~/gone") as other:
        task = other.execute_task(RuntimeTask().run_function(peer.answer))
        assert_eventually(lambda: len(fake_host.calls) == 2, "both have reached the host")
        assert_eventually(lambda: is_thread_alive("function answer"), "the second one waits for its turn")
        fake_host.path("~/gone").rmdir()
        release.set()

        with pytest.raises(TaskExecutionError) as caught:
            task.join()
        assert isinstance(caught.value.__cause__, WorkingDirectoryError)
