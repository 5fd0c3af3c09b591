"""Sessions wait for a free slot, and learn how many there are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from lazycluster._ssh.session_limit import DEFAULT_MAX_SESSIONS, SessionLimit
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError
from lazycluster.testing._process_guard import wait_until

NEVER = Deadline(None)


def test_default() -> None:
    assert SessionLimit().max_sessions == DEFAULT_MAX_SESSIONS == 10


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_as_many_at_once_as_allowed_and_no_more(limit: int) -> None:
    sessions = SessionLimit(limit)
    now, most, done = 0, 0, 0
    lock, go = threading.Lock(), threading.Event()

    def work() -> None:
        nonlocal now, most, done
        with sessions.acquire(NEVER):
            with lock:
                now += 1
                most = max(most, now)
            go.wait(10)
            with lock:
                now -= 1
                done += 1

    threads = [threading.Thread(target=work) for _ in range(25)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: now == limit, 10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert (most <= limit, done, now) == (True, 25, 0)


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_no_slot_in_time(seconds: float) -> None:
    sessions = SessionLimit(1)
    with sessions.acquire(NEVER):
        with pytest.raises(DeadlinePassedError), sessions.acquire(Deadline(seconds)):
            pytest.fail("there was no slot")
        with pytest.raises(DeadlinePassedError), sessions.acquire(Deadline(seconds)):
            pytest.fail("a refused waiter must not free a slot")
    with sessions.acquire(Deadline(0)):
        pass


@pytest.fixture
def cancel_token() -> Iterator[CancelToken]:
    made = CancelToken()
    yield made
    made.close()


def test_a_cancellation_ends_the_waiting_for_a_slot(cancel_token: CancelToken) -> None:
    sessions = SessionLimit(1)
    ended: list[type[BaseException] | None] = []

    def wait() -> None:
        try:
            with sessions.acquire(NEVER, cancel_token):
                ended.append(None)
        except CancelledError as error:
            ended.append(type(error))

    thread = threading.Thread(target=wait)
    with sessions.acquire(NEVER):
        thread.start()
        assert wait_until(lambda: cancel_token._callback is not None, 10)
        assert ended == []
        cancel_token.cancel()
        thread.join(10)
        assert ended == [CancelledError]
    with sessions.acquire(Deadline(0)):  # who was cancelled holds none
        pass


def test_after_a_cancellation_no_slot_is_taken(cancel_token: CancelToken) -> None:
    sessions = SessionLimit(1)
    cancel_token.cancel()
    with pytest.raises(CancelledError), sessions.acquire(NEVER, cancel_token):
        pytest.fail("it was cancelled")
    with sessions.acquire(Deadline(0)):
        pass


def test_a_cancellation_during_a_session_is_not_the_affair_of_the_slots(cancel_token: CancelToken) -> None:
    sessions = SessionLimit(1)
    with sessions.acquire(NEVER, cancel_token):
        assert cancel_token._callback is None
        cancel_token.cancel()
    with sessions.acquire(Deadline(0)):
        pass


def test_with_a_cancellation_the_deadline_holds_too(cancel_token: CancelToken) -> None:
    sessions = SessionLimit(1)
    with sessions.acquire(NEVER), pytest.raises(DeadlinePassedError), sessions.acquire(Deadline(0.02), cancel_token):
        pytest.fail("there was no slot")
    with sessions.acquire(Deadline(0), cancel_token):
        pass


def test_a_slot_is_free_again_after_an_error() -> None:
    sessions = SessionLimit(1)
    with pytest.raises(KeyError), sessions.acquire(NEVER):
        raise KeyError
    with sessions.acquire(Deadline(0)):
        pass


def hold(sessions: SessionLimit, count: int, body: Callable[[], object]) -> None:
    """Call something while so many sessions are held."""
    if count == 0:
        body()
        return
    with sessions.acquire(NEVER):
        hold(sessions, count - 1, body)


@pytest.mark.parametrize(
    ("limit", "held", "others", "learned"),
    [
        (10, 10, True, 9),
        (10, 4, True, 3),
        (10, 2, True, 1),
        (10, 1, False, 1),  # nobody else is there: the host still counts one that ended, or allows none
        (1, 1, False, 1),
    ],
)
def test_a_refusal_teaches(limit: int, held: int, others: bool, learned: int) -> None:
    sessions = SessionLimit(limit)
    seen: list[bool] = []
    hold(sessions, held, lambda: seen.append(sessions.record_refusal()))
    assert seen == [others]
    assert sessions.max_sessions == learned


def test_each_refusal_lowers_the_limit() -> None:
    sessions = SessionLimit(10)
    hold(sessions, 3, sessions.record_refusal)
    hold(sessions, 2, sessions.record_refusal)
    assert sessions.max_sessions == 1


def test_the_lower_limit_holds_back_who_comes_later() -> None:
    sessions = SessionLimit(10)

    def body() -> None:
        sessions.record_refusal()
        with pytest.raises(DeadlinePassedError), sessions.acquire(Deadline(0.02)):
            pytest.fail("there are two allowed, and three held")

    hold(sessions, 3, body)


def test_waiting_for_a_change_ends_with_a_session() -> None:
    sessions = SessionLimit(2)
    inside, leave, waited = threading.Event(), threading.Event(), threading.Event()

    def session() -> None:
        with sessions.acquire(NEVER):
            inside.set()
            leave.wait(10)

    def waiter() -> None:
        sessions.wait_for_change(NEVER, 60.0)
        waited.set()

    threads = [threading.Thread(target=session), threading.Thread(target=waiter)]
    threads[0].start()
    inside.wait(10)
    threads[1].start()
    assert not waited.wait(0.05)
    leave.set()
    threads[0].join(10)

    # The waiter may have come to wait only after the session had left: then another one ends.
    def another() -> bool:
        hold(sessions, 1, lambda: None)
        return waited.is_set()

    assert wait_until(another, 10)
    threads[1].join(10)


def test_waiting_for_a_change_is_bounded() -> None:
    sessions = SessionLimit(1)
    sessions.wait_for_change(NEVER, 0.01)
    sessions.wait_for_change(Deadline(0.01), 60.0)


def test_the_limit_grows_again_after_many_sessions_and_not_above_where_it_began() -> None:
    sessions = SessionLimit(3)
    hold(sessions, 2, sessions.record_refusal)
    assert sessions.max_sessions == 1
    limits = []
    for _ in range(100):
        with sessions.acquire(NEVER):
            sessions.record_success()
        limits.append(sessions.max_sessions)
    assert sorted(limits) == limits
    assert (limits[10], limits[-1]) == (1, 3)


def test_a_refusal_puts_the_next_trial_off() -> None:
    sessions = SessionLimit(2)
    hold(sessions, 2, sessions.record_refusal)
    for _ in range(100):
        hold(sessions, 1, sessions.record_refusal)
        with sessions.acquire(NEVER):
            sessions.record_success()
    assert sessions.max_sessions == 1


def test_a_growing_limit_lets_a_waiter_in() -> None:
    sessions = SessionLimit(2)
    hold(sessions, 2, sessions.record_refusal)
    inside, leave, second = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with sessions.acquire(NEVER):
            inside.set()
            leave.wait(10)

    def waiter() -> None:
        with sessions.acquire(Deadline(10)):
            second.set()

    threads = [threading.Thread(target=first), threading.Thread(target=waiter)]
    threads[0].start()
    inside.wait(10)
    threads[1].start()
    assert not second.wait(0.05)
    for _ in range(30):
        sessions.record_success()
    assert second.wait(10)
    leave.set()
    for thread in threads:
        thread.join(10)
