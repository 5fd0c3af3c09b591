"""How a fake host calls functions in this process, and what that means for the rest of the process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazycluster import Runtime, RuntimeTask, WorkingDirectoryError
from lazycluster.testing import FakeHost
from tests.unit import fake_host_functions as peer
from tests.waiting import wait_until


@pytest.fixture
def runtime(fake_host: FakeHost) -> Iterator[Runtime]:
    with Runtime("any-host") as runtime:
        yield runtime


class Registry:
    """A class with a state of its own, which a pickle of it must not reset."""

    known: dict[str, int] = {}  # noqa: RUF012 - that is what is tested

    def add(self, name: str) -> int:
        return len(self.known) + len(name)


def test_it_is_called_in_this_process_and_shares_its_modules(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.call(os.getpid) == os.getpid()
    state, calls = peer.state, peer.state["calls"]
    assert runtime.call(peer.answer) == "of the module"
    assert peer.state is state
    assert state["calls"] == calls + 1
    monkeypatch.setattr(peer, "source", lambda: "patched")
    assert runtime.call(peer.answer) == "patched"
    assert runtime.call(lambda: peer.answer()) == "patched"  # noqa: PLW0108 - a function of this module


def test_its_classes_stay_what_they_are(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Registry.known, "one", 1)
    add, known = Registry.add, Registry.known

    registry = runtime.call(lambda given: given, Registry())

    assert type(registry) is Registry
    assert runtime.call(registry.add, "two") == 4
    assert Registry.add is add
    assert Registry.known is known


def test_what_other_threads_print_is_theirs(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    begun, go = threading.Event(), threading.Event()
    peer.events[:] = [begun, go]
    task = runtime.execute_task(RuntimeTask().run_function(peer.print_around_wait))
    assert begun.wait(10)

    print("ours")
    print("ours, too", file=sys.stderr)
    go.set()
    task.join()

    assert capsys.readouterr() == ("ours\n", "ours, too\n")
    assert task.execution_log == ["before\nof a thread\nafter\n"]
    print("again")
    assert capsys.readouterr().out == "again\n"


def test_a_stream_that_was_replaced_meanwhile_stays_so(runtime: Runtime) -> None:
    ours = sys.stdout
    begun, go = threading.Event(), threading.Event()
    peer.events[:] = [begun, go]
    task = runtime.execute_task(RuntimeTask().run_function(peer.wait))
    assert begun.wait(10)
    theirs = sys.stdout
    assert theirs is not ours

    sys.stdout = replaced = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - closed below
    try:
        go.set()
        task.join()
        assert sys.stdout is replaced
    finally:
        sys.stdout = ours
        replaced.close()


def test_one_waits_for_its_turn_and_can_be_stopped_meanwhile(runtime: Runtime) -> None:
    begun, go = threading.Event(), threading.Event()
    peer.events[:] = [begun, go]
    first = runtime.execute_task(RuntimeTask("first").run_function(peer.wait))
    assert begun.wait(10)
    second = runtime.execute_task(RuntimeTask("second").run_function(peer.answer))
    third = runtime.execute_task(RuntimeTask("third").run_function(peer.answer))

    assert second.process is not None
    second.process.terminate()
    assert second.process.exitcode == -15
    assert first.process is not None
    assert first.process.is_alive()
    go.set()

    assert list(first.function_returns) == [runtime.working_dir]
    assert list(third.function_returns) == ["of the module"]


def test_one_that_is_stopped_gives_everything_back_at_once(
    runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, go = threading.Event(), threading.Event()
    peer.events[:] = [begun, go]
    here, environment, streams = Path.cwd(), dict(os.environ), (sys.stdout, sys.stderr)
    runtime.set_env_variables({"LAZYCLUSTER_TEST_ADDED": "1"})
    task = runtime.execute_task(RuntimeTask().run_function(peer.wait))
    assert begun.wait(10)
    assert task.process is not None

    task.process.terminate()

    assert (Path.cwd(), dict(os.environ), (sys.stdout, sys.stderr)) == (here, environment, streams)
    assert runtime.call(peer.answer) == "of the module"
    assert [each for each in threading.enumerate() if each.name == "function wait"], "it waits where nothing ends it"
    go.set()
    assert wait_until(lambda: not [each for each in threading.enumerate() if each.name == "function wait"], timeout=10)


def test_what_fails_to_load_is_told(runtime: Runtime) -> None:
    with pytest.raises(Exception, match="it cannot be loaded there: RuntimeError: not here") as caught:
        runtime.call(len, peer.Unloadable())
    assert "in fail_to_unpickle" in caught.value.remote_traceback  # type: ignore[attr-defined]  # a RemoteFunctionError


def test_a_directory_that_goes_away_while_it_waits_for_its_turn(fake_host: FakeHost, runtime: Runtime) -> None:
    begun, go = threading.Event(), threading.Event()
    peer.events[:] = [begun, go]
    runtime.execute_task(RuntimeTask().run_function(peer.wait))
    assert begun.wait(10)
    with Runtime("other", "~/gone") as other:
        task = other.execute_task(RuntimeTask().run_function(peer.answer))
        assert wait_until(lambda: len(fake_host.calls) == 2, timeout=10)
        assert wait_until(lambda: any(each.name == "function answer" for each in threading.enumerate()), timeout=10)
        fake_host.path("~/gone").rmdir()
        go.set()

        with pytest.raises(Exception, match="cannot enter the working directory") as caught:
            task.join()
        assert isinstance(caught.value.__cause__, WorkingDirectoryError)
