"""Sessions wait for a free slot."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lazycluster._ssh.session_limit import NoSessionAvailableError, SessionLimit
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError
from tests.waiting import wait_until

NEVER = Deadline(None)


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


def test_long_lived_sessions_with_all_slots_refuse_others_at_once() -> None:
    sessions = SessionLimit(2)
    with sessions.acquire(NEVER, long_lived=True):
        with sessions.acquire(NEVER, long_lived=True), pytest.raises(NoSessionAvailableError), sessions.acquire(NEVER):
            pytest.fail("there was no slot")
        with sessions.acquire(Deadline(0)):
            pass


def test_acquire_if_free_takes_a_free_slot_only() -> None:
    sessions = SessionLimit(2)
    with sessions.acquire(NEVER):
        with sessions.acquire_if_free() as first, sessions.acquire_if_free() as second:
            assert (first, second) == (True, False)
            with pytest.raises(DeadlinePassedError), sessions.acquire(Deadline(0)):
                pytest.fail("there was no slot")
        with sessions.acquire(Deadline(0)):
            pass


def test_wait_for_release_ends_with_a_session() -> None:
    sessions = SessionLimit(2)
    inside, leave, waited = threading.Event(), threading.Event(), threading.Event()

    def session() -> None:
        with sessions.acquire(NEVER):
            inside.set()
            leave.wait(10)

    def waiter() -> None:
        sessions.wait_for_release(60.0)
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
        with sessions.acquire(NEVER):
            pass
        return waited.is_set()

    assert wait_until(another, 10)
    threads[1].join(10)


def test_wait_for_release_is_bounded() -> None:
    SessionLimit(1).wait_for_release(0.01)
