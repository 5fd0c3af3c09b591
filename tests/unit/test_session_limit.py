"""The limit of sessions at once: waiting, cancelling, and release."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from lazycluster._ssh.session_limit import NoSessionAvailableError, SessionLimit
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError
from tests.waiting import wait_until

NEVER = Deadline(None)


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_session_limit_bounds_sessions_at_once(limit: int) -> None:
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
def test_session_limit_deadline_passed_raises(seconds: float) -> None:
    sessions = SessionLimit(1)
    with sessions.acquire(NEVER):
        with pytest.raises(DeadlinePassedError), sessions.acquire(Deadline(seconds)):
            pytest.fail("all sessions were in use")
        with pytest.raises(DeadlinePassedError), sessions.acquire(Deadline(seconds)):
            pytest.fail("a refused waiter must not release a session")
    with sessions.acquire(Deadline(0)):
        pass


class ObservedToken(CancelToken):
    """A cancel token that shows whether a wait is registered with it."""

    has_waiter = False

    @contextlib.contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        with super().on_cancel(callback):
            self.has_waiter = True
            try:
                yield
            finally:
                self.has_waiter = False


@pytest.fixture
def cancel_token() -> Iterator[ObservedToken]:
    token = ObservedToken()
    yield token
    token.close()


def test_session_limit_cancel_ends_wait(cancel_token: ObservedToken) -> None:
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
        assert wait_until(lambda: cancel_token.has_waiter, 10)
        assert ended == []
        cancel_token.cancel()
        thread.join(10)
        assert ended == [CancelledError]
    with sessions.acquire(Deadline(0)):  # the cancelled one holds no session
        pass


def test_session_limit_cancelled_before_raises(cancel_token: ObservedToken) -> None:
    sessions = SessionLimit(1)
    cancel_token.cancel()
    with pytest.raises(CancelledError), sessions.acquire(NEVER, cancel_token):
        pytest.fail("it was cancelled")
    with sessions.acquire(Deadline(0)):
        pass


def test_session_limit_cancel_during_session_is_ignored(cancel_token: ObservedToken) -> None:
    sessions = SessionLimit(1)
    with sessions.acquire(NEVER, cancel_token):
        assert not cancel_token.has_waiter
        cancel_token.cancel()
    with sessions.acquire(Deadline(0)):
        pass


def test_session_limit_deadline_holds_with_cancel_token(cancel_token: ObservedToken) -> None:
    sessions = SessionLimit(1)
    with sessions.acquire(NEVER), pytest.raises(DeadlinePassedError), sessions.acquire(Deadline(0.02), cancel_token):
        pytest.fail("all sessions were in use")
    with sessions.acquire(Deadline(0), cancel_token):
        pass


def test_session_limit_released_after_error() -> None:
    sessions = SessionLimit(1)
    with pytest.raises(KeyError), sessions.acquire(NEVER):
        raise KeyError
    with sessions.acquire(Deadline(0)):
        pass


def test_session_limit_all_long_lived_raises() -> None:
    sessions = SessionLimit(2)
    with sessions.acquire(NEVER, long_lived=True):
        with sessions.acquire(NEVER, long_lived=True), pytest.raises(NoSessionAvailableError), sessions.acquire(NEVER):
            pytest.fail("all sessions were in use")
        with sessions.acquire(Deadline(0)):
            pass


def test_acquire_if_free_takes_only_a_free_session() -> None:
    sessions = SessionLimit(2)
    with sessions.acquire(NEVER):
        with sessions.acquire_if_free() as first, sessions.acquire_if_free() as second:
            assert (first, second) == (True, False)
            with pytest.raises(DeadlinePassedError), sessions.acquire(Deadline(0)):
                pytest.fail("all sessions were in use")
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

    # If the session had ended before the waiter waited, another one has to end.
    def another() -> bool:
        with sessions.acquire(NEVER):
            pass
        return waited.is_set()

    assert wait_until(another, 10)
    threads[1].join(10)


def test_wait_for_release_is_bounded() -> None:
    SessionLimit(1).wait_for_release(0.01)
