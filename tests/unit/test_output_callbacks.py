"""The thread that calls a user's callbacks with output."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycluster._model.line_splitter import LineSplitter
from lazycluster._model.output_callbacks import (
    MAX_LINE_CHARACTERS,
    MAX_QUEUED_BYTES,
    CallbackThread,
)
from lazycluster._model.run_options import RunOptions
from lazycluster._model.watch import Watch
from lazycluster._waiting import CancelToken
from lazycluster.exceptions import CommandFailedError, CommandStoppedError, CommandTimeoutError
from lazycluster.results import CommandResult, Stream
from tests.keyboard_interrupt import interrupt, library_thread_names
from tests.waiting import assert_eventually

OUT, ERR = Stream.STDOUT, Stream.STDERR
THREAD_NAME = "lazycluster-output"


def run(options: RunOptions, work: Callable[[Watch], CommandResult], timeout: float | None = None) -> CommandResult:
    """Run a function in the place of a transport."""
    return options.run(work, host="web1", title="x", timeout=timeout)


def printing(*pieces: tuple[Stream, bytes], exit_code: int = 0) -> Callable[[Watch], CommandResult]:
    """Return a function that does what a transport does with a command that prints."""

    def work(watch: Watch) -> CommandResult:
        assert watch.collector is not None
        for stream, data in pieces:
            watch.collector.write(stream, data)
            watch.on_output(stream, data)
            if watch.cancel_token is not None and watch.cancel_token.is_cancelled:
                raise CommandStoppedError("web1", "x")
        return watch.collector.result("x", exit_code, 0.0, host="web1")

    return work


# Lines ---------------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=6)))
def test_line_splitter_gives_lines_of_whole_text(pieces: list[bytes]) -> None:
    splitter = LineSplitter()
    lines = [line for data in pieces for line in splitter.feed(data)] + splitter.feed(b"", final=True)
    expected = b"".join(pieces).decode(errors="replace").split("\n")
    assert lines == (expected if expected[-1] else expected[:-1])


def test_line_splitter_long_line_comes_in_parts() -> None:
    splitter = LineSplitter(MAX_LINE_CHARACTERS)
    lines = [line for _ in range(3) for line in splitter.feed(b"x" * (MAX_LINE_CHARACTERS - 1))]
    lines += splitter.feed(b"end\nnext", final=True)
    assert "".join(lines) == "x" * 3 * (MAX_LINE_CHARACTERS - 1) + "endnext"
    assert lines[-1] == "next"
    assert max(map(len, lines)) < 2 * MAX_LINE_CHARACTERS


# Callbacks -----------------------------------------------------------------------------------------------------------


def test_run_without_callbacks_starts_no_thread() -> None:
    before = threading.active_count()
    seen: list[int] = []

    def work(watch: Watch) -> CommandResult:
        assert watch.cancel_token is None
        seen.append(threading.active_count())
        return printing((OUT, b"a"))(watch)

    assert run(RunOptions(), work).stdout == "a"
    assert seen == [before]


def test_run_callbacks_get_pieces_and_lines_in_order() -> None:
    seen: list[tuple[Stream, bytes | str]] = []
    threads: set[str] = set()

    def follow(stream: Stream, piece: bytes | str) -> None:
        threads.add(threading.current_thread().name)
        seen.append((stream, piece))

    run(RunOptions(False, follow, follow), printing((OUT, b"a\nb"), (ERR, b"e"), (OUT, b"c\n\nd")))
    assert seen == [
        (OUT, b"a\nb"),
        (OUT, "a"),
        (ERR, b"e"),
        (OUT, b"c\n\nd"),
        (OUT, "bc"),
        (OUT, ""),
        (OUT, "d"),
        (ERR, "e"),
    ]
    assert threads == {THREAD_NAME}
    assert library_thread_names(THREAD_NAME) == []


def test_run_callback_sees_context_variables() -> None:
    variable = contextvars.ContextVar("variable", default="default")
    variable.set("of the caller")
    seen = []
    run(RunOptions(False, lambda *_: seen.append(variable.get())), printing((OUT, b"a")))
    assert seen == ["of the caller"]


def test_run_callback_error_stops_command_and_is_raised() -> None:
    """The command is silent after its first line; the error must reach a transport that only waits."""
    problem = KeyError("mine")
    cancelled = threading.Event()

    def work(watch: Watch) -> CommandResult:
        assert watch.cancel_token is not None
        with watch.cancel_token.on_cancel(cancelled.set):
            watch.on_output(OUT, b"a\n")
            assert cancelled.wait(30)
        watch.on_output(OUT, b"while it ends\n")
        raise CommandStoppedError("web1", "x")

    seen: list[str] = []

    def follow(_stream: Stream, line: str) -> None:
        seen.append(line)
        raise problem

    with pytest.raises(KeyError) as caught:
        run(RunOptions(False, None, follow), work)
    assert caught.value is problem
    assert seen == ["a"]
    assert library_thread_names(THREAD_NAME) == []


def test_run_callback_error_after_end_is_raised() -> None:
    def follow(_stream: Stream, _line: str) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        run(RunOptions(True, None, follow), printing((OUT, b"rest"), exit_code=1))


def test_run_slow_callback_slows_command() -> None:
    piece = b"x" * 2**16
    released = threading.Event()
    passed: list[int] = []

    def work(watch: Watch) -> CommandResult:
        for number in range(3 * MAX_QUEUED_BYTES // len(piece)):
            watch.on_output(OUT, piece)
            passed.append(number)
        return CommandResult("x", 0)

    seen: list[int] = []

    def follow(_stream: Stream, data: bytes) -> None:
        assert released.wait(30)
        seen.append(len(data))

    thread = threading.Thread(target=run, args=(RunOptions(False, follow, max_output=None), work))
    thread.start()
    full = MAX_QUEUED_BYTES // len(piece)
    assert_eventually(lambda: len(passed) == full, "the command has filled the queue")
    released.set()
    thread.join(30)
    assert sum(seen) == 3 * MAX_QUEUED_BYTES


def test_run_blocked_callback_ends_at_time_limit() -> None:
    """The transport raises as soon as the wait for the callback lets it look at the clock."""
    released = threading.Event()

    def work(watch: Watch) -> CommandResult:
        for _ in range(3):
            watch.on_output(OUT, b"x" * MAX_QUEUED_BYTES)
        raise KeyboardInterrupt  # a time-out would wait some seconds for the callback

    with pytest.raises(KeyboardInterrupt):
        run(RunOptions(False, lambda *_: released.wait(30)), work, timeout=0.1)
    released.set()
    assert_eventually(lambda: library_thread_names(THREAD_NAME) == [], "the thread ends after the callback")


def test_run_blocked_callback_ends_with_cancel_token() -> None:
    released, token = threading.Event(), CancelToken()

    def follow(*_: object) -> None:
        token.cancel()
        assert released.wait(30)

    def work(watch: Watch) -> CommandResult:
        for _ in range(3):
            watch.on_output(OUT, b"x" * MAX_QUEUED_BYTES)
        return CommandResult("x", 0)

    RunOptions(False, follow).run(work, host="web1", title="x", timeout=None, cancel_token=token)
    released.set()
    token.close()
    assert_eventually(lambda: library_thread_names(THREAD_NAME) == [], "the thread ends after the callback")


def test_run_ctrl_c_while_callback_blocks_is_raised() -> None:
    started, released = threading.Event(), threading.Event()

    def follow(*_: object) -> None:
        started.set()
        released.wait(30)

    interrupt(lambda: run(RunOptions(False, follow), printing((OUT, b"a"))), started.is_set)
    released.set()
    assert_eventually(lambda: library_thread_names(THREAD_NAME) == [], "the thread ends after the callback")


def test_run_error_comes_after_last_output() -> None:
    seen: list[str] = []

    def work(watch: Watch) -> CommandResult:
        watch.on_output(OUT, b"one\ntwo")
        raise CommandTimeoutError("web1", "x", 1.0)

    with pytest.raises(CommandTimeoutError):
        run(RunOptions(False, None, lambda _stream, line: seen.append(line)), work)
    assert seen == ["one", "two"]


def test_callback_thread_error_of_one_command_spares_others() -> None:
    seen: list[bytes] = []

    def fail(*_: object) -> None:
        raise KeyError("mine")

    with CallbackThread() as thread:
        with pytest.raises(KeyError):
            RunOptions(False, fail).run(printing((OUT, b"a")), host="a", title="x", timeout=None, thread=thread)
        follow = RunOptions(False, lambda _stream, data: seen.append(data))
        follow.run(printing((OUT, b"b")), host="b", title="x", timeout=None, thread=thread)
    assert seen == [b"b"]


# Other options -------------------------------------------------------------------------------------------------------


def test_run_callback_without_limit_keeps_last_64_kib() -> None:
    pieces = [(OUT, b"a" * 2**17), (ERR, b"b"), (OUT, b"end")]
    result = run(RunOptions(False, lambda *_: None, max_output=None), printing(*pieces))
    assert (result.stdout_bytes, result.stderr_bytes) == (b"a" * (2**16 - 3) + b"end", b"b")


def test_run_without_callback_and_limit_keeps_all() -> None:
    assert len(run(RunOptions(max_output=None), printing((OUT, b"a" * 2**17))).stdout_bytes) == 2**17


def test_run_check_raises_after_last_callback() -> None:
    seen: list[str] = []
    options = RunOptions(True, None, lambda _stream, line: seen.append(line))
    with pytest.raises(CommandFailedError) as caught:
        run(options, printing((OUT, b"why"), exit_code=3))
    assert (caught.value.host, caught.value.output, seen) == ("web1", "why", ["why"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_output": "f"}, "on_output must be a function or None, got 'f'"),
        ({"on_line": 1}, "on_line must be a function or None, got 1"),
        ({"max_output": -1}, "max_output must be a whole number of bytes from 0 on, or None, got -1"),
        ({"max_output": True}, "max_output must be a whole number of bytes from 0 on, or None, got True"),
        ({"max_output": 1.5}, "max_output must be a whole number of bytes from 0 on, or None, got 1.5"),
    ],
)
def test_run_options_bad_value_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        RunOptions(**options)
    assert str(caught.value) == message


def test_callback_thread_interrupted_at_its_start_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), CallbackThread():
        pytest.fail("the block does not begin")
    assert library_thread_names(THREAD_NAME) == []
