"""What a runtime holds, and gives back once, in the process that made it."""

from __future__ import annotations

import os

import attrs
import pytest

from lazycluster import Connection, RuntimeClosedError
from lazycluster.holdings import Holdings
from lazycluster.openssh.sessions import Sessions


@attrs.define
class Process:
    """A process that notes how it is treated."""

    name: str = "p"
    pid: int | None = None
    exitcode: int | None = None
    ended: int = 0
    killed: int = 0

    def is_alive(self) -> bool:
        return self.ended + self.killed == 0

    def join(self, timeout: float | None = None) -> None: ...

    def terminate(self) -> None:
        self.ended += 1

    def kill(self) -> None:
        self.killed += 1


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


@pytest.mark.parametrize("reached", [True, False])
def test_everything_is_released_once(holdings: Holdings, monkeypatch: pytest.MonkeyPatch, reached: bool) -> None:
    """Gently where the host answers; where the link is dead quickly, and without asking the host again."""
    cleaned: list[Holdings] = []
    monkeypatch.setattr(Sessions, "reaches_host", lambda _self, _seconds: reached)

    def clean(self: Holdings) -> None:
        cleaned.append(self)

    monkeypatch.setattr(Holdings, "_clean_host", clean)
    processes = [Process(), Process()]
    for number, process in enumerate(processes):
        holdings.keep(str(number), process)
    holdings.release()
    holdings.release()
    assert [(process.ended, process.killed) for process in processes] == [(reached, not reached)] * 2
    assert cleaned == [holdings] * reached
    assert holdings.connection.sessions.closed


def test_a_host_that_was_never_reached_is_not_dialled(holdings: Holdings) -> None:
    holdings.release()
    assert not holdings.connection.sessions.connected
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

    monkeypatch.setattr(Sessions, "reaches_host", lambda _self, _seconds: True)
    monkeypatch.setattr(Holdings, "_clean_host", interrupt)
    with pytest.raises(KeyboardInterrupt):
        holdings.release()
    assert holdings.connection.sessions.closed
