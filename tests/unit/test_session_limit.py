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
    slots = SessionLimit(limit)
    now, most, done = 0, 0, 0
    lock, go = threading.Lock(), threading.Event()

    def work() -> None:
        nonlocal now, most, done
        with slots.acquire(NEVER):
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
    slots = SessionLimit(1)
    with slots.acquire(NEVER):
        with pytest.raises(DeadlinePassedError), slots.acquire(Deadline(seconds)):
            pytest.fail("there was no slot")
        with pytest.raises(DeadlinePassedError), slots.acquire(Deadline(seconds)):
            pytest.fail("a refused waiter must not free a slot")
    with slots.acquire(Deadline(0)):
        pass


@pytest.fixture
def cancel_token() -> Iterator[CancelToken]:
    made = CancelToken()
    yield made
    made.close()


def test_a_cancellation_ends_the_waiting_for_a_slot(cancel_token: CancelToken) -> None:
    slots = SessionLimit(1)
    ended: list[type[BaseException] | None] = []

    def wait() -> None:
        try:
            with slots.acquire(NEVER, cancel_token):
                ended.append(None)
        except CancelledError as error:
            ended.append(type(error))

    thread = threading.Thread(target=wait)
    with slots.acquire(NEVER):
        thread.start()
        assert wait_until(lambda: cancel_token._callback is not None, 10)
        assert ended == []
        cancel_token.cancel()
        thread.join(10)
        assert ended == [CancelledError]
    with slots.acquire(Deadline(0)):  # who was cancelled holds none
        pass


def test_after_a_cancellation_no_slot_is_taken(cancel_token: CancelToken) -> None:
    slots = SessionLimit(1)
    cancel_token.cancel()
    with pytest.raises(CancelledError), slots.acquire(NEVER, cancel_token):
        pytest.fail("it was cancelled")
    with slots.acquire(Deadline(0)):
        pass


def test_a_cancellation_during_a_session_is_not_the_affair_of_the_slots(cancel_token: CancelToken) -> None:
    slots = SessionLimit(1)
    with slots.acquire(NEVER, cancel_token):
        assert cancel_token._callback is None
        cancel_token.cancel()
    with slots.acquire(Deadline(0)):
        pass


def test_with_a_cancellation_the_deadline_holds_too(cancel_token: CancelToken) -> None:
    slots = SessionLimit(1)
    with slots.acquire(NEVER), pytest.raises(DeadlinePassedError), slots.acquire(Deadline(0.02), cancel_token):
        pytest.fail("there was no slot")
    with slots.acquire(Deadline(0), cancel_token):
        pass


def test_a_slot_is_free_again_after_an_error() -> None:
    slots = SessionLimit(1)
    with pytest.raises(KeyError), slots.acquire(NEVER):
        raise KeyError
    with slots.acquire(Deadline(0)):
        pass


def hold(slots: SessionLimit, count: int, body: Callable[[], object]) -> None:
    """Call something while so many slots are held."""
    if count == 0:
        body()
        return
    with slots.acquire(NEVER):
        hold(slots, count - 1, body)


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
    slots = SessionLimit(limit)
    seen: list[bool] = []
    hold(slots, held, lambda: seen.append(slots.record_refusal()))
    assert seen == [others]
    assert slots.max_sessions == learned


def test_each_refusal_lowers_the_limit() -> None:
    slots = SessionLimit(10)
    hold(slots, 3, slots.record_refusal)
    hold(slots, 2, slots.record_refusal)
    assert slots.max_sessions == 1


def test_the_lower_limit_holds_back_who_comes_later() -> None:
    slots = SessionLimit(10)

    def body() -> None:
        slots.record_refusal()
        with pytest.raises(DeadlinePassedError), slots.acquire(Deadline(0.02)):
            pytest.fail("there are two allowed, and three held")

    hold(slots, 3, body)


def test_waiting_for_a_change_ends_with_a_session() -> None:
    slots = SessionLimit(2)
    inside, leave, waited = threading.Event(), threading.Event(), threading.Event()

    def session() -> None:
        with slots.acquire(NEVER):
            inside.set()
            leave.wait(10)

    def waiter() -> None:
        slots.wait_for_change(NEVER, 60.0)
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
        hold(slots, 1, lambda: None)
        return waited.is_set()

    assert wait_until(another, 10)
    threads[1].join(10)


def test_waiting_for_a_change_is_bounded() -> None:
    slots = SessionLimit(1)
    slots.wait_for_change(NEVER, 0.01)
    slots.wait_for_change(Deadline(0.01), 60.0)


def test_the_limit_grows_again_after_many_sessions_and_not_above_where_it_began() -> None:
    slots = SessionLimit(3)
    hold(slots, 2, slots.record_refusal)
    assert slots.max_sessions == 1
    limits = []
    for _ in range(100):
        with slots.acquire(NEVER):
            slots.record_success()
        limits.append(slots.max_sessions)
    assert sorted(limits) == limits
    assert (limits[10], limits[-1]) == (1, 3)


def test_a_refusal_puts_the_next_trial_off() -> None:
    slots = SessionLimit(2)
    hold(slots, 2, slots.record_refusal)
    for _ in range(100):
        hold(slots, 1, slots.record_refusal)
        with slots.acquire(NEVER):
            slots.record_success()
    assert slots.max_sessions == 1


def test_a_growing_limit_lets_a_waiter_in() -> None:
    slots = SessionLimit(2)
    hold(slots, 2, slots.record_refusal)
    inside, leave, second = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with slots.acquire(NEVER):
            inside.set()
            leave.wait(10)

    def waiter() -> None:
        with slots.acquire(Deadline(10)):
            second.set()

    threads = [threading.Thread(target=first), threading.Thread(target=waiter)]
    threads[0].start()
    inside.wait(10)
    threads[1].start()
    assert not second.wait(0.05)
    for _ in range(30):
        slots.record_success()
    assert second.wait(10)
    leave.set()
    for thread in threads:
        thread.join(10)
