"""What a runtime holds, and gives back once, in the process that made it."""

from __future__ import annotations

import os

import attrs
import pytest

from lazycluster import Connection, RuntimeClosedError
from lazycluster.holdings import Holdings


@attrs.define
class Process:
    """A process that notes how it is treated."""

    name: str = "p"
    pid: int | None = None
    exitcode: int | None = None
    ended: int = 0

    def is_alive(self) -> bool:
        return self.ended == 0

    def join(self, timeout: float | None = None) -> None: ...

    def terminate(self) -> None:
        self.ended += 1

    def kill(self) -> None: ...


@pytest.fixture
def holdings() -> Holdings:
    return Holdings(Connection("web1"))


def test_processes_by_key(holdings: Holdings) -> None:
    one, other = Process(), Process()
    assert (holdings.keep("a", one), holdings.keep("b", other)) == ("a", "b")
    other.terminate()
    assert holdings.living(only_alive=False) == {"a": one, "b": other}
    assert holdings.living(only_alive=True) == {"a": one}
    holdings.forget(["b", "no such key"])
    assert holdings.living(only_alive=False) == {"a": one}


def test_everything_is_released_once(holdings: Holdings) -> None:
    processes = [Process(), Process()]
    for number, process in enumerate(processes):
        holdings.keep(str(number), process)
    holdings.release()
    holdings.release()
    assert [process.ended for process in processes] == [1, 1]
    assert holdings.connection.sessions.closed


def test_what_comes_too_late_is_stopped(holdings: Holdings) -> None:
    holdings.release()
    late = Process()
    with pytest.raises(RuntimeClosedError, match="web1: closed already"):
        holdings.keep("late", late)
    assert late.ended == 1


def test_a_fork_of_the_owner_releases_nothing(holdings: Holdings) -> None:
    process = Process()
    holdings.keep("a", process)
    holdings.pid = os.getppid()
    holdings.release()
    assert (process.ended, holdings.released, holdings.connection.sessions.closed) == (0, False, False)


def test_the_connection_is_closed_though_the_host_cannot_be_cleaned(
    holdings: Holdings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Holdings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Holdings, "_clean_host", interrupt)
    with pytest.raises(KeyboardInterrupt):
        holdings.release()
    assert holdings.connection.sessions.closed
