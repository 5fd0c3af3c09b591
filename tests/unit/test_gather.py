"""The same work on many hosts: order, bounds, outcomes, and an end in the middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from lazycluster import HostsFailedError
from lazycluster._gather import CancelGroup, capture, errors_by_host, gather, unwrap_all, values_or_errors
from lazycluster._waiting import CancelToken
from lazycluster.results import Error, Value
from tests.keyboard_interrupt import interrupt, library_thread_names
from tests.waiting import wait_until

HOSTS = [f"host-{number}" for number in range(20)]


def test_outcomes_are_in_the_order_given() -> None:
    def work(number: int) -> int:
        time.sleep((20 - number) / 1000)
        return number

    outcomes = gather({host: partial(work, number) for number, host in enumerate(HOSTS)})
    assert list(outcomes) == HOSTS
    assert (
        unwrap_all(outcomes, "it") == values_or_errors(outcomes) == {host: number for number, host in enumerate(HOSTS)}
    )


def test_no_hosts() -> None:
    outcomes = gather(dict[str, Callable[[], int]]())
    assert outcomes == {}
    assert unwrap_all(outcomes, "it") == values_or_errors(outcomes) == {}


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_never_more_than_so_many_at_once(limit: int) -> None:
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


def test_an_error_is_that_of_its_host_alone() -> None:
    def fail() -> int:
        raise KeyError("why")

    told: list[tuple[str, bool]] = []
    outcomes = gather(
        {"a": lambda: 1, "b": fail, "c": lambda: 3},
        on_result=lambda host, outcome: told.append((host, isinstance(outcome, Value))),
    )
    assert sorted(told) == [("a", True), ("b", False), ("c", True)]
    assert values_or_errors(outcomes)["a"] == 1
    assert isinstance(values_or_errors(outcomes)["b"], Error)
    with pytest.raises(HostsFailedError) as caught:
        unwrap_all(outcomes, "it")
    assert str(caught.value) == "it failed on 1 of 3 hosts:\n  b: KeyError: 'why'"
    assert caught.value.values == {"a": 1, "c": 3}
    assert caught.value.__cause__ is None, "a traceback shows its members"
    assert [host for host, _ in errors_by_host(outcomes)] == ["b"]


def test_what_is_no_error_of_a_host_is_raised_as_it_is() -> None:
    def leave() -> int:
        raise SystemExit(3)

    outcomes = gather({"a": leave})
    with pytest.raises(SystemExit):
        unwrap_all(outcomes, "it")
    assert isinstance(capture(leave), Error)


def test_capture_raises_what_it_is_not_asked_to_catch() -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(leave, Exception)
    assert isinstance(capture(leave, KeyboardInterrupt), Error)


def test_who_is_told_is_the_caller_and_may_raise() -> None:
    seen: list[int] = []

    def told(_host: str, _outcome: object) -> None:
        seen.append(threading.get_ident())
        raise LookupError

    with pytest.raises(LookupError):
        gather(dict.fromkeys(HOSTS, int), limit=2, on_result=told)
    assert seen == [threading.get_ident()]
    assert wait_until(lambda: not library_thread_names(), timeout=10)


# Ctrl-C --------------------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_what_is_under_way_and_begins_nothing_more() -> None:
    begun: list[str] = []
    stopped = threading.Event()

    def work(host: str) -> None:
        begun.append(host)
        stopped.wait(20)

    interrupt(
        lambda: gather({host: partial(work, host) for host in HOSTS}, limit=3, cancel=stopped.set),
        lambda: len(begun) == 3,
    )

    assert sorted(begun) == HOSTS[:3]
    assert wait_until(lambda: not library_thread_names(), timeout=10)


def test_ctrl_c_takes_back_what_was_done_and_what_still_comes() -> None:
    begun: list[str] = []
    undone: list[tuple[str, str]] = []
    stopped = threading.Event()

    def work(host: str) -> str:
        begun.append(host)
        if host in HOSTS[:2]:
            return host.upper()
        assert stopped.wait(20)
        if host == HOSTS[2]:
            raise KeyError(host)
        return host.upper()

    interrupt(
        lambda: gather(
            {host: partial(work, host) for host in HOSTS},
            limit=3,
            cancel=stopped.set,
            rollback=lambda host, made: undone.append((host, made)),
        ),
        lambda: len(begun) == 5,
    )

    assert sorted(undone) == [(host, host.upper()) for host in [*HOSTS[:2], *HOSTS[3:5]]]
    assert wait_until(lambda: not library_thread_names(), timeout=10)


def test_after_ctrl_c_nobody_waits_for_what_cannot_be_stopped() -> None:
    going_on = threading.Event()
    try:
        begun = time.monotonic()
        interrupt(
            lambda: gather({"a": partial(going_on.wait, 60), "b": partial(going_on.wait, 60)}),
            lambda: len(library_thread_names()) == 2,
        )
        assert time.monotonic() - begun < 30
    finally:
        going_on.set()
    assert wait_until(lambda: not library_thread_names(), timeout=10)


def test_what_does_not_stop_is_waited_for_once_and_not_for_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lazycluster._gather._CANCEL_WAIT_SECONDS", 0.5)
    going_on = threading.Event()
    stopped: list[float] = []
    try:
        interrupt(
            lambda: gather(
                {host: partial(going_on.wait, 60) for host in HOSTS},
                cancel=lambda: stopped.append(time.monotonic()),
            ),
            lambda: len(library_thread_names()) == len(HOSTS),
        )
        assert 0.4 < time.monotonic() - stopped[0] < 5, "ten seconds, if each were waited for"
    finally:
        going_on.set()
    assert wait_until(lambda: not library_thread_names(), timeout=10)


# What stops things ---------------------------------------------------------------------------------------------------


def test_a_stop_reaches_all_that_is_under_way() -> None:
    stopping = CancelGroup()
    called: list[str] = []
    with stopping.on_cancel(lambda: called.append("a")), stopping.on_cancel(lambda: called.append("b")):
        with stopping.on_cancel(lambda: called.append("over")):
            pass
        stopping.cancel()
        assert sorted(called) == ["a", "b"]
        with stopping.on_cancel(lambda: called.append("late")):
            assert called[2:] == ["late"], "what begins afterwards is stopped at once"


def test_cancellations_are_closed_with_what_they_are_for() -> None:
    stopping = CancelGroup()
    kept: list[CancelToken] = []

    def work(one: CancelToken) -> str:
        def nested(two: CancelToken) -> str:
            kept.extend([one, two])
            assert all(cancel_token.fileno() >= 0 for cancel_token in kept)
            assert not any(cancel_token.is_cancelled for cancel_token in kept)
            stopping.cancel()
            assert all(cancel_token.is_cancelled for cancel_token in kept)
            return "done"

        return stopping.run(nested)

    assert stopping.run(work) == "done"
    assert stopping.run(lambda late: late.is_cancelled)
    assert [cancel_token.fileno() for cancel_token in kept] == [-1, -1]
    stopping.cancel()


def test_what_had_ended_before_an_interruption_is_told_too() -> None:
    """Also what nobody has looked at yet."""
    told: list[str] = []
    ended = threading.Barrier(3)

    def done(host: str, _outcome: Value[int] | Error) -> None:
        told.append(host)
        if len(told) == 1:
            ended.wait(20)
            assert wait_until(lambda: not [name for name in library_thread_names() if "host" in name], 20)
            raise KeyboardInterrupt

    def work() -> int:
        ended.wait(20)
        return 1

    with pytest.raises(KeyboardInterrupt):
        gather({"a": lambda: 0, "b": work, "c": work}, on_result=done)
    assert sorted(told) == ["a", "b", "c"]
