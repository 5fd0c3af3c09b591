"""Deadlines, cancel tokens, and waits that Ctrl-C ends."""

from __future__ import annotations

import errno
import os
import queue
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from lazycluster._gather import gather
from lazycluster._processes.local_process import LocalProcess
from lazycluster._processes.run import run_daemonizing
from lazycluster._waiting import (
    NO_DEADLINE,
    SIGNAL_POLL_SECONDS,
    BackOff,
    CancelToken,
    Deadline,
    DeadlinePassedError,
    Waker,
    hold,
    queue_get,
    start_thread,
    uninterruptible,
    wait_event,
    wait_for,
)
from tests.keyboard_interrupt import interrupt, library_threads
from tests.waiting import wait_until


@pytest.fixture
def cancel_token() -> Iterator[CancelToken]:
    token = CancelToken()
    yield token
    token.close()


# Deadline -------------------------------------------------------------------------------------------------------------


def test_deadline_real_clock_has_time_left() -> None:
    deadline = Deadline(1e6)
    assert deadline.when is not None
    assert deadline.when > time.monotonic()
    assert deadline.remaining is not None
    assert 0 < deadline.remaining <= 1e6
    assert not deadline.has_passed


@pytest.mark.parametrize("seconds", [0, -1, -1e9])
def test_deadline_in_the_past_has_passed(seconds: float) -> None:
    deadline = Deadline(seconds)
    assert (deadline.remaining, deadline.has_passed, deadline.clamp(5)) == (0.0, True, 0.0)


def test_deadline_none_never_passes() -> None:
    deadline = Deadline(None)
    assert (deadline.when, deadline.remaining, deadline.has_passed, deadline.clamp(5)) == (None, None, False, 5)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_deadline_follows_its_clock() -> None:
    clock = Clock()
    deadline = Deadline(10, clock=clock)
    states = []
    for clock.now in (1000.0, 1009.5, 1010.0, 1011.0):
        states.append((deadline.remaining, deadline.has_passed, deadline.clamp(1)))
    assert states == [(10.0, False, 1), (0.5, False, 0.5), (0.0, True, 0.0), (0.0, True, 0.0)]


# BackOff --------------------------------------------------------------------------------------------------------------


def test_back_off_doubles_pauses_up_to_the_longest() -> None:
    clock = Clock()
    back_off = BackOff(0.5, 15.0, clock=clock)
    pauses = []
    assert (back_off.has_failed, back_off.remaining) == (False, 0.0)
    for _ in range(7):
        back_off.record_failure()
        pauses.append(back_off.remaining)
        clock.now += back_off.remaining
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert (back_off.has_failed, back_off.remaining) == (True, 0.0)


# CancelToken ----------------------------------------------------------------------------------------------------------


def test_cancel_token_wakes_waiter_for_good(cancel_token: CancelToken) -> None:
    states = [cancel_token.is_cancelled]
    os.set_blocking(cancel_token.fileno(), False)
    with pytest.raises(BlockingIOError):
        os.read(cancel_token.fileno(), 9)
    cancel_token.cancel()
    cancel_token.cancel()
    assert [*states, cancel_token.is_cancelled] == [False, True]
    assert os.read(cancel_token.fileno(), 9) == b"x"


def test_cancel_token_at_once_wakes_again(cancel_token: CancelToken) -> None:
    calls: list[bool] = []
    with cancel_token.on_cancel(lambda: calls.append(cancel_token.at_once)):
        for at_once in (False, True, True, False):
            cancel_token.cancel(at_once=at_once)
    assert calls == [False, True]


def test_cancel_token_wake_cancels_nothing(cancel_token: CancelToken) -> None:
    calls: list[int] = []
    with cancel_token.on_cancel(lambda: calls.append(1)):
        for _ in range(100_000):  # more than a pipe takes
            cancel_token.wake()
    assert (len(calls), cancel_token.is_cancelled) == (100_000, False)
    cancel_token.drain()
    cancel_token.drain()
    with pytest.raises(BlockingIOError):
        os.read(cancel_token.fileno(), 1)
    cancel_token.close()
    cancel_token.wake()


def test_cancel_token_closed_can_still_be_cancelled() -> None:
    cancel_token = CancelToken()
    descriptor = cancel_token.fileno()
    cancel_token.close()
    cancel_token.close()
    with pytest.raises(OSError) as caught:
        os.fstat(descriptor)
    assert caught.value.errno == errno.EBADF
    cancel_token.cancel()
    assert cancel_token.is_cancelled
    assert cancel_token.fileno() == -1


def test_on_cancel_calls_listener_once(cancel_token: CancelToken) -> None:
    calls: list[bool] = []
    with cancel_token.on_cancel(lambda: calls.append(cancel_token.is_cancelled)):
        assert calls == []
        cancel_token.cancel()
        assert calls == [True]
    cancel_token.cancel()
    assert calls == [True]
    assert os.read(cancel_token.fileno(), 9) == b"x"  # a thread that waits for the descriptor sees it, too


def test_on_cancel_listener_removed_after_error(cancel_token: CancelToken) -> None:
    calls: list[int] = []
    with pytest.raises(KeyError), cancel_token.on_cancel(lambda: calls.append(1)):
        raise KeyError
    cancel_token.cancel()
    assert calls == []


def test_on_cancel_listener_is_called_without_lock(cancel_token: CancelToken) -> None:
    """The end of the `with` block takes the lock while the listener runs."""
    is_listening, called, has_left = threading.Event(), threading.Event(), threading.Event()

    def listener() -> None:
        called.set()
        assert has_left.wait(10)

    def listen() -> None:
        with cancel_token.on_cancel(listener):
            is_listening.set()
            called.wait(10)
        has_left.set()

    thread = threading.Thread(target=listen)
    thread.start()
    assert is_listening.wait(10)
    cancel_token.cancel()
    thread.join(10)
    assert has_left.is_set()


# Waits ----------------------------------------------------------------------------------------------------------------


def test_queue_get_after_deadline_returns_waiting_item() -> None:
    events: queue.SimpleQueue[int] = queue.SimpleQueue()
    events.put(1)
    assert queue_get(events, Deadline(0)) == 1
    with pytest.raises(DeadlinePassedError):
        queue_get(events, Deadline(0))


def start_timer(work: Callable[[], object]) -> threading.Timer:
    """Call something when the main thread has begun its wait again at least once."""
    timer = threading.Timer(1.2 * SIGNAL_POLL_SECONDS, work)
    timer.start()
    return timer


@pytest.mark.parametrize("seconds", [None, 60])
def test_waits_see_events_after_signal_poll(seconds: float | None) -> None:
    deadline = Deadline(seconds)
    events: queue.SimpleQueue[int] = queue.SimpleQueue()
    event, changed = threading.Event(), threading.Condition()

    def change() -> None:
        with changed:
            event.set()
            changed.notify_all()

    timer = start_timer(lambda: events.put(1))
    assert queue_get(events, deadline) == 1
    timer.join()
    timer = start_timer(event.set)
    assert wait_event(event, deadline)
    timer.join()
    event.clear()
    timer = start_timer(change)
    with changed:
        assert wait_for(event.is_set, changed, deadline)
    timer.join()


@pytest.mark.parametrize("seconds", [0.1, 1.2 * SIGNAL_POLL_SECONDS])
def test_waits_after_deadline_give_up(seconds: float) -> None:
    changed = threading.Condition()
    deadlines = [Deadline(seconds)]
    with pytest.raises(DeadlinePassedError):
        queue_get(queue.SimpleQueue[int](), deadlines[-1])
    assert deadlines[-1].has_passed
    deadlines.append(Deadline(seconds))
    assert not wait_event(threading.Event(), deadlines[-1])
    assert deadlines[-1].has_passed
    deadlines.append(Deadline(seconds))
    with changed:
        assert not wait_for(lambda: False, changed, deadlines[-1])
    assert deadlines[-1].has_passed


def queue_get_for_ever() -> None:
    queue_get(queue.SimpleQueue[int]())


def wait_event_for_ever() -> None:
    wait_event(threading.Event())


def wait_for_condition_for_ever() -> None:
    changed = threading.Condition()
    with changed:
        wait_for(lambda: False, changed)


def pump_for_ever() -> None:
    child = LocalProcess(["sleep", "60"], on_output=lambda *_: None, deadline=NO_DEADLINE)
    try:
        child.pump(lambda: False)
    finally:
        child.close()


def is_waiting() -> bool:
    """Return whether the main thread is in the call in which it waits."""
    thread = threading.main_thread().ident
    assert thread is not None
    frame = sys._current_frames()[thread]  # noqa: SLF001 - the name is CPython's own, and documented
    stack = [each.f_code.co_name for each, _ in traceback.walk_stack(frame)]
    waits = {"queue_get", "wait_event", "wait_for", "pump"}
    return stack[0] in {"queue_get", "wait", "select"} and not waits.isdisjoint(stack)


@pytest.mark.parametrize("wait", [queue_get_for_ever, wait_event_for_ever, wait_for_condition_for_ever, pump_for_ever])
@pytest.mark.timeout(30)
def test_wait_ends_by_unseen_ctrl_c(wait: Callable[[], object]) -> None:
    interrupt(wait, is_waiting, in_other_thread=True)


@pytest.mark.timeout(30)
def test_gather_ends_by_unseen_ctrl_c() -> None:
    is_over = threading.Event()
    try:
        interrupt(lambda: gather({"a": partial(is_over.wait, 60)}), is_waiting, in_other_thread=True)
    finally:
        is_over.set()


class RecordingEvent(threading.Event):
    """An event that records the time-out of each wait for it, and happens at the second."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.timeouts.append(timeout)
        return len(self.timeouts) > 1


def test_wait_event_in_main_thread_polls_for_signals() -> None:
    event = RecordingEvent()
    assert wait_event(event)
    assert event.timeouts == [SIGNAL_POLL_SECONDS, SIGNAL_POLL_SECONDS]


@pytest.mark.parametrize(("seconds", "expected"), [(None, 86_400), (6000, 6000), (1e8, 86_400)])
def test_wait_event_in_other_thread_waits_to_deadline(seconds: float | None, expected: float) -> None:
    event = RecordingEvent()
    thread = threading.Thread(target=wait_event, args=(event, Deadline(seconds)))
    thread.start()
    thread.join(10)
    assert event.timeouts == pytest.approx([expected, expected], abs=100)


def test_pump_in_other_thread_takes_long_deadline() -> None:
    """More milliseconds than epoll_wait(2) can count."""
    process = LocalProcess(["echo"], on_output=lambda *_: None, deadline=Deadline(1e8))
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(process.pump(lambda: False)))
    thread.start()
    thread.join(10)
    process.close()
    assert ended == [False]


# Waker ----------------------------------------------------------------------------------------------------------------


def test_waker_is_readable_until_drained() -> None:
    waker = Waker()
    readable = []
    for act in (waker.drain, waker.wake, waker.wake, waker.drain, waker.drain):
        act()
        readable.append(bool(select.select([waker], [], [], 0)[0]))
    waker.close()
    assert readable == [False, True, True, False, False]


def test_waker_with_full_pipe_does_not_block() -> None:
    waker = Waker()
    for _ in range(1 << 17):
        waker.wake()
    waker.drain()
    assert select.select([waker], [], [], 0)[0] == []
    waker.close()


# Uninterruptible ------------------------------------------------------------------------------------------------------


@pytest.fixture
def restored_sigint_handler() -> Iterator[None]:
    """Restore the handler of SIGINT after the test."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_uninterruptible_ctrl_c_rolls_back_then_raises() -> None:
    events: list[str] = []

    def make() -> str:
        signal.raise_signal(signal.SIGINT)
        events.append("made")
        return "result"

    with pytest.raises(KeyboardInterrupt):
        uninterruptible(make, events.append)
    assert events == ["made", "result"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("restored_sigint_handler")
def test_uninterruptible_calls_custom_handler_afterwards() -> None:
    events: list[str] = []

    def handler(number: int, frame: object) -> None:
        events.append(f"handled {number}")

    def make() -> str:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        events.append("made")
        return "result"

    signal.signal(signal.SIGINT, handler)
    assert uninterruptible(make, events.append) == "result"
    assert events == ["made", "handled 2"]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("restored_sigint_handler")
@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_uninterruptible_keeps_other_dispositions(handler: signal.Handlers) -> None:
    signal.signal(signal.SIGINT, handler)
    assert uninterruptible(lambda: signal.getsignal(signal.SIGINT), lambda _: None) is handler


def test_uninterruptible_in_other_thread_sets_no_handler() -> None:
    handlers: list[object] = []
    thread = threading.Thread(
        target=uninterruptible, args=(lambda: handlers.append(signal.getsignal(signal.SIGINT)), handlers.append)
    )
    thread.start()
    thread.join(10)
    assert handlers == [signal.default_int_handler]


def test_uninterruptible_error_is_raised() -> None:
    def make() -> None:
        raise OSError("no")

    with pytest.raises(OSError) as caught:
        uninterruptible(make, lambda _: pytest.fail("there is nothing to roll back"))
    assert caught.value.args == ("no",)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Errors that CPython raises in place of KeyboardInterrupt -------------------------------------------------------------


@pytest.fixture
def interrupted_without_the_lock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt the main thread once, as it takes back the lock of a condition that it has waited for."""
    interval = sys.getswitchinterval()
    acquire = threading.Condition._acquire_restore  # type: ignore[attr-defined]  # noqa: SLF001 - to fail in it
    pending = [KeyboardInterrupt()]

    def interrupted(condition: threading.Condition, state: object) -> None:
        if pending and threading.current_thread() is threading.main_thread():
            raise pending.pop()
        acquire(condition, state)

    sys.setswitchinterval(1)  # so that the main thread waits for a thread that starts
    monkeypatch.setattr(threading.Condition, "_acquire_restore", interrupted)
    yield
    sys.setswitchinterval(interval)
    assert not pending


def wait_for_holding_condition() -> None:
    condition = threading.Condition(threading.Lock())  # the lock whose methods the fixture replaces
    with hold(condition):
        wait_for(lambda: False, condition, Deadline(0.01))


@pytest.mark.parametrize(
    "wait",
    [
        lambda: wait_event(threading.Event(), Deadline(0.01)),
        wait_for_holding_condition,
        lambda: gather({"a": partial(time.sleep, 0.1)}),
        lambda: run_daemonizing(["true"], Path(os.devnull), timeout=10),
    ],
    ids=["wait_event", "wait_for", "gather", "run_daemonizing"],
)
@pytest.mark.usefixtures("interrupted_without_the_lock")
def test_wait_interrupted_without_lock_raises_interrupt(wait: Callable[[], object]) -> None:
    others = library_threads()
    with pytest.raises(KeyboardInterrupt):
        wait()
    assert wait_until(lambda: library_threads() <= others, timeout=10)


def test_start_thread_failure_raises_runtime_error(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("can't start new thread")

    def refuse() -> None:
        raise error

    thread = threading.Thread(target=time.sleep)
    monkeypatch.setattr(thread, "start", refuse)
    with pytest.raises(RuntimeError) as caught:
        start_thread(thread)
    assert caught.value is error
    try:
        raise KeyError
    except KeyError:
        with pytest.raises(RuntimeError) as during_another:
            start_thread(thread)
    assert during_another.value is error
