"""Parallel work on many hosts: order, limits, outcomes, and Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from lazycluster import HostsFailedError
from lazycluster._gather import (
    CancelGroup,
    capture,
    errors_by_host,
    gather,
    join_threads,
    unwrap_all,
    values_or_errors,
)
from lazycluster._waiting import CancelToken
from lazycluster.results import Error, Value
from tests.keyboard_interrupt import interrupt
from tests.unit.group_hosts import group_thread_names
from tests.waiting import wait_until

HOSTS = [f"host-{number}" for number in range(20)]


def test_gather_outcomes_keep_order() -> None:
    ended = [threading.Event() for _ in HOSTS]

    def work(number: int) -> int:
        if number + 1 < len(HOSTS):  # the last host is the first to end
            assert ended[number + 1].wait(20)
        ended[number].set()
        return number

    outcomes = gather({host: partial(work, number) for number, host in enumerate(HOSTS)})
    assert list(outcomes) == HOSTS
    assert (
        unwrap_all(outcomes, "it") == values_or_errors(outcomes) == {host: number for number, host in enumerate(HOSTS)}
    )


def test_gather_no_hosts_returns_nothing() -> None:
    outcomes = gather(dict[str, Callable[[], int]]())
    assert outcomes == {}
    assert unwrap_all(outcomes, "it") == values_or_errors(outcomes) == {}


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_gather_limit_bounds_parallel_work(limit: int) -> None:
    lock, running, most = threading.Lock(), 0, 0
    together = threading.Barrier(min(limit, 5))

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(10)
        with lock:
            running -= 1

    gather(dict.fromkeys(HOSTS[:15], work), limit=limit)
    assert min(limit, 5) <= most <= limit


def test_gather_error_keeps_other_values() -> None:
    def fail() -> int:
        raise KeyError("why")

    results: list[tuple[str, bool]] = []
    outcomes = gather(
        {"a": lambda: 1, "b": fail, "c": lambda: 3},
        on_result=lambda host, outcome: results.append((host, isinstance(outcome, Value))),
    )
    assert sorted(results) == [("a", True), ("b", False), ("c", True)]
    assert values_or_errors(outcomes)["a"] == 1
    assert isinstance(values_or_errors(outcomes)["b"], Error)
    with pytest.raises(HostsFailedError) as caught:
        unwrap_all(outcomes, "it")
    assert [(host, type(error)) for host, error in caught.value.errors] == [("b", KeyError)]
    assert (caught.value.action, caught.value.total, caught.value.values) == ("it", 3, {"a": 1, "c": 3})
    assert caught.value.__cause__ is None, "a traceback shows its members"
    assert [host for host, _ in errors_by_host(outcomes)] == ["b"]


def test_unwrap_all_system_exit_is_raised() -> None:
    def leave() -> int:
        raise SystemExit(3)

    outcomes = gather({"a": leave})
    with pytest.raises(SystemExit):
        unwrap_all(outcomes, "it")
    assert isinstance(capture(leave), Error)


def test_capture_other_error_is_raised() -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(leave, Exception)
    assert isinstance(capture(leave, KeyboardInterrupt), Error)


def test_gather_on_result_runs_in_caller_and_may_raise() -> None:
    callers: list[int] = []

    def on_result(_host: str, _outcome: object) -> None:
        callers.append(threading.get_ident())
        raise LookupError

    with pytest.raises(LookupError):
        gather(dict.fromkeys(HOSTS, int), limit=2, on_result=on_result)
    assert callers == [threading.get_ident()]
    assert wait_until(lambda: not group_thread_names(), timeout=10)


# Ctrl-C --------------------------------------------------------------------------------------------------------------


def test_gather_ctrl_c_cancels_and_starts_no_more() -> None:
    started: list[str] = []
    cancelled = threading.Event()

    def work(host: str) -> None:
        started.append(host)
        cancelled.wait(20)

    interrupt(
        lambda: gather({host: partial(work, host) for host in HOSTS}, limit=3, cancel=cancelled.set),
        lambda: len(started) == 3,
    )

    assert sorted(started) == HOSTS[:3]
    assert wait_until(lambda: not group_thread_names(), timeout=10)


def test_gather_ctrl_c_rolls_back_finished_work() -> None:
    started: list[str] = []
    rolled_back: list[tuple[str, str]] = []
    cancelled = threading.Event()

    def work(host: str) -> str:
        started.append(host)
        if host in HOSTS[:2]:
            return host.upper()
        assert cancelled.wait(20)
        if host == HOSTS[2]:
            raise KeyError(host)
        return host.upper()

    interrupt(
        lambda: gather(
            {host: partial(work, host) for host in HOSTS},
            limit=3,
            cancel=cancelled.set,
            rollback=lambda host, value: rolled_back.append((host, value)),
        ),
        lambda: len(started) == 5,
    )

    assert sorted(rolled_back) == [(host, host.upper()) for host in [*HOSTS[:2], *HOSTS[3:5]]]
    assert wait_until(lambda: not group_thread_names(), timeout=10)


class StuckWork:
    """Work that runs until `release` is set, whatever else happens."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.running: list[str] = []

    def run(self, host: str) -> None:
        self.running.append(host)
        self.release.wait()
        self.running.remove(host)


@pytest.fixture
def stuck() -> Iterator[StuckWork]:
    stuck = StuckWork()
    yield stuck
    stuck.release.set()
    assert wait_until(lambda: not group_thread_names(), timeout=10)


def test_gather_ctrl_c_without_cancel_does_not_wait(stuck: StuckWork) -> None:
    interrupt(lambda: gather({host: partial(stuck.run, host) for host in "ab"}), lambda: len(stuck.running) == 2)
    assert len(stuck.running) == 2


def test_gather_ctrl_c_stuck_work_is_left_running(stuck: StuckWork) -> None:
    cancelled = threading.Event()
    work = {host: partial(stuck.run, host) for host in HOSTS}
    interrupt(
        lambda: gather(work, cancel=cancelled.set, cancel_wait=0.1),
        lambda: len(stuck.running) == len(HOSTS),
    )
    assert cancelled.is_set()
    assert len(stuck.running) == len(HOSTS)


def test_join_threads_share_one_time_limit() -> None:
    release, now, timeouts = threading.Event(), 100.0, []

    class StuckThread(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            nonlocal now
            assert timeout is not None
            timeouts.append(timeout)
            now += timeout

    threads = [StuckThread(target=release.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert join_threads(threads, 8.0, clock=lambda: now) == threads
        assert timeouts == [8.0, 0.0, 0.0]
    finally:
        release.set()
    assert wait_until(lambda: not any(thread.is_alive() for thread in threads), timeout=10)


# CancelGroup ---------------------------------------------------------------------------------------------------------


def test_cancel_group_cancels_present_and_later_work() -> None:
    cancel_group = CancelGroup()
    called: list[str] = []
    with cancel_group.on_cancel(lambda: called.append("a")), cancel_group.on_cancel(lambda: called.append("b")):
        with cancel_group.on_cancel(lambda: called.append("ended before")):
            pass
        cancel_group.cancel()
        assert sorted(called) == ["a", "b"]
        with cancel_group.on_cancel(lambda: called.append("late")):
            assert called[2:] == ["late"], "work that begins later is cancelled at once"


def test_cancel_group_run_closes_token() -> None:
    cancel_group = CancelGroup()
    tokens: list[CancelToken] = []

    def work(outer: CancelToken) -> str:
        def nested(inner: CancelToken) -> str:
            tokens.extend([outer, inner])
            assert all(token.fileno() >= 0 for token in tokens)
            assert not any(token.is_cancelled for token in tokens)
            cancel_group.cancel()
            assert all(token.is_cancelled for token in tokens)
            return "done"

        return cancel_group.run(nested)

    assert cancel_group.run(work) == "done"
    assert cancel_group.run(lambda token: token.is_cancelled)
    assert [token.fileno() for token in tokens] == [-1, -1]
    cancel_group.cancel()


def test_gather_ctrl_c_reports_finished_work() -> None:
    """Outcomes that the caller has not read yet are reported, too."""
    reported: list[str] = []
    ended = threading.Barrier(3)

    def on_result(host: str, _outcome: Value[int] | Error) -> None:
        reported.append(host)
        if len(reported) == 1:
            ended.wait(20)
            assert wait_until(lambda: not [name for name in group_thread_names() if "host" in name], 20)
            raise KeyboardInterrupt

    def work() -> int:
        ended.wait(20)
        return 1

    with pytest.raises(KeyboardInterrupt):
        gather({"a": lambda: 0, "b": work, "c": work}, on_result=on_result)
    assert sorted(reported) == ["a", "b", "c"]
