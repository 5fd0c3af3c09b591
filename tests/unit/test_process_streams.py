"""The streams of a started process, without a process: the test is the thread of the process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import attrs
import pytest

from lazycluster import ConnectionLostError
from lazycluster._model.running_command import CommandEndedError, RunningCommand
from lazycluster._process_streams import ProcessStreams
from lazycluster._waiting import CancelToken
from lazycluster.results import Stream
from tests.keyboard_interrupt import interrupt

OUT, ERR = Stream.STDOUT, Stream.STDERR
MIB = 1 << 20


@attrs.define
class Woken:
    """Streams, and how often their thread was woken."""

    streams: ProcessStreams
    cancel_token: CancelToken
    count: int = 0

    def wake(self) -> None:
        self.count += 1


@pytest.fixture
def woken() -> Iterator[Woken]:
    with contextlib.closing(CancelToken()) as cancel_token:
        woken = Woken(ProcessStreams(cancel_token, has_input=False), cancel_token)
        with cancel_token.on_cancel(woken.wake):
            yield woken


@pytest.fixture
def streams(woken: Woken) -> ProcessStreams:
    return woken.streams


class ScriptedCommand(RunningCommand):
    """Records its input; `on_wait` is called in place of each wait."""

    def __init__(self, on_wait: Callable[[], object] = lambda: None, *, ended_after: int = 1 << 30) -> None:
        super().__init__(lambda _stream, _data: None)
        self.input: list[bytes] = []
        self.calls: list[str] = []
        self._on_wait = on_wait
        self._ended_after = ended_after

    @property
    def exit_code(self) -> int | None:
        return None

    def wait_until(self, predicate: Callable[[], bool]) -> None:
        while not predicate() and len(self.input) < self._ended_after:
            self._on_wait()

    def write(self, data: bytes) -> None:
        if len(self.input) >= self._ended_after:
            raise CommandEndedError
        self.input.append(data)

    def close_stdin(self) -> None:
        self.calls.append("close_stdin")

    def wait(self) -> None:
        self.calls.append("wait")


def test_reader_returns_output_as_it_comes(streams: ProcessStreams) -> None:
    stdout, stderr = streams.open_reader(OUT), streams.open_reader(ERR)
    streams.receive(OUT, b"line\nrest")
    streams.receive(ERR, b"err")
    assert (stdout.readable(), stdout.writable(), stdout.seekable()) == (True, False, False)
    assert (stdout.readline(), stdout.read(2)) == (b"line\n", b"re")
    streams.end(None)
    assert (stdout.read(), stdout.read(), stderr.read(1), stderr.readlines()) == (b"st", b"", b"e", [b"rr"])


def test_reader_waits_for_output_of_another_thread(streams: ProcessStreams) -> None:
    def receive() -> None:
        streams.receive(OUT, b"x")
        streams.end(None)

    timer = threading.Timer(0.05, receive)
    timer.start()
    assert streams.open_reader(OUT).read() == b"x"
    timer.join()


def test_reader_raises_error_after_the_output(streams: ProcessStreams) -> None:
    error = ConnectionLostError("web1", "sleep", "gone")
    stdout = streams.open_reader(OUT)
    streams.receive(OUT, b"last")
    streams.end(error)
    assert stdout.read(4) == b"last"
    for _ in range(2):
        with pytest.raises(ConnectionLostError) as caught:
            stdout.read(1)
        assert str(caught.value) == str(error)
        assert caught.value is not error, "its traceback would hold the variables of each reader"


def test_accepts_output_until_one_stream_is_unread(woken: Woken) -> None:
    streams = woken.streams
    stdout, stderr = streams.open_reader(OUT), streams.open_reader(ERR)
    streams.receive(OUT, bytes(MIB - 1))
    assert streams.accepts_output()
    streams.receive(ERR, bytes(MIB + 1))
    assert not streams.accepts_output()
    stdout.read(MIB - 1)
    assert (streams.accepts_output(), woken.count) == (False, 0)
    stderr.read(MIB)
    assert (streams.accepts_output(), woken.count) == (True, 1)


def test_receive_from_stopping_process_is_bounded(streams: ProcessStreams) -> None:
    for _ in range(40):
        streams.receive(OUT, bytes(MIB))
    streams.end(None)
    assert len(streams.open_reader(OUT).read()) == 16 * MIB


def test_reader_closed_drops_output(woken: Woken) -> None:
    stdout = woken.streams.open_reader(OUT)
    woken.streams.receive(OUT, bytes(2 * MIB))
    stdout.close()
    stdout.close()
    assert (woken.streams.accepts_output(), woken.count) == (True, 1)
    woken.streams.receive(OUT, bytes(2 * MIB))
    assert woken.streams.accepts_output()
    with pytest.raises(ValueError):
        stdout.read()


def test_writer_sends_in_order_and_closes(streams: ProcessStreams) -> None:
    stdin = streams.open_writer()
    assert (stdin.readable(), stdin.writable()) == (False, True)
    steps: list[Callable[[], object]] = [stdin.flush, lambda: stdin.write(b" and last"), stdin.close]
    stdin.write(b"first")

    def take_step() -> None:
        steps.pop(0)()

    command = ScriptedCommand(take_step)

    streams.converse(command)

    assert (command.input, command.calls) == ([b"first", b" and last"], ["close_stdin", "wait"])


def test_writer_waits_until_input_is_sent(streams: ProcessStreams) -> None:
    stdin = streams.open_writer()
    data = bytes(range(256)) * 4096 * 3

    def write() -> None:
        stdin.write(data)
        stdin.close()

    thread = threading.Thread(target=write)
    thread.start()
    command = ScriptedCommand()
    streams.converse(command)
    thread.join()
    assert b"".join(command.input) == data
    assert max(map(len, command.input)) == 1 << 16


def test_writer_of_ended_process_is_broken(streams: ProcessStreams) -> None:
    stdin = streams.open_writer()
    stdin.write(b"unsent")
    streams.end(None)
    with pytest.raises(BrokenPipeError):
        stdin.flush()
    with pytest.raises(BrokenPipeError):
        stdin.close()
    assert stdin.closed


def test_writer_waiting_at_end_of_process_is_broken(streams: ProcessStreams) -> None:
    timer = threading.Timer(0.05, lambda: streams.end(None))
    timer.start()
    with pytest.raises(BrokenPipeError):
        streams.open_writer().write(bytes(4 * MIB))
    timer.join()


def test_writer_interrupted_can_be_closed(woken: Woken) -> None:
    """Ctrl-C comes when there is no more room. The input that was taken is sent."""
    streams = woken.streams
    stdin = streams.open_writer()
    interrupt(lambda: stdin.write(bytes(4 * MIB)), lambda: woken.count > 0)
    command = ScriptedCommand(stdin.close)
    streams.converse(command)
    assert len(b"".join(command.input)) == MIB


def test_converse_again_repeats_the_last_piece(streams: ProcessStreams) -> None:
    """A command that cannot have started is started once more."""
    stdin = streams.open_writer()
    stdin.write(b"input")
    stdin.close()
    with pytest.raises(CommandEndedError):
        streams.converse(ScriptedCommand(ended_after=0))
    command = ScriptedCommand()
    streams.converse(command)
    assert command.input == [b"input"]


def test_converse_ended_command_is_not_written_to(streams: ProcessStreams) -> None:
    command = ScriptedCommand(ended_after=0)
    streams.converse(command)
    assert command.calls == ["wait"]


def test_converse_given_input_is_not_closed_again(woken: Woken) -> None:
    streams = ProcessStreams(woken.cancel_token, has_input=True)
    command = ScriptedCommand()
    assert streams.open_writer().closed
    streams.converse(command)
    assert command.calls == ["wait"]
