"""The local end of a child of a supervisor, with a fake channel that records the frames."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import attrs
import pytest

from lazycluster._model.running_command import CommandEndedError
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._remote import protocol
from lazycluster._transports.remote_child import ExitInfo, RemoteChild
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError
from lazycluster.exceptions import ConnectionLostError
from lazycluster.results import Stream


@pytest.mark.parametrize(
    ("exit_info", "exit_code"),
    [
        (ExitInfo("exit", "0"), 0),
        (ExitInfo("exit", str(3 << 8)), 3),
        (ExitInfo("exit", str(255 << 8)), 255),
        (ExitInfo("exit", str(143 << 8)), 143),
        (ExitInfo("signal", "15"), 143),
        (ExitInfo("signal", str(11 | 0x80)), 139),
        (ExitInfo("done", "0"), 0),
    ],
)
def test_exit_info_exit_code_counts_signals_from_128(exit_info: ExitInfo, exit_code: int) -> None:
    assert exit_info.exit_code == exit_code


@attrs.define
class FakeChannel:
    """Records the frames that a child sends."""

    sent: list[tuple[int, bytes]] = attrs.field(factory=list)
    discarded: list[int] = attrs.field(factory=list)
    on_send: Callable[[int], object] = lambda _kind: None

    def send(self, message: bytes) -> None:
        """Record a frame."""
        [(kind, number, body)] = protocol.FrameDecoder().feed(message) or [(message[2], 7, b"")]
        assert number == 7
        self.sent.append((kind, body))
        self.on_send(kind)

    def discard(self, number: int) -> None:
        """Record the number."""
        self.discarded.append(number)


@attrs.define
class Harness:
    """A child under test, its channel, and the output that it has delivered."""

    child: RemoteChild
    channel: FakeChannel
    output: list[tuple[Stream, bytes]] = attrs.field(factory=list)
    outcome: list[bytes] = attrs.field(factory=list)

    def follow(
        self,
        seconds: float,
        cancel_token: CancelToken | None = None,
        accepts_output: Callable[[], bool] = UNWATCHED.accepts_output,
    ) -> None:
        watch = Watch(cancel_token=cancel_token, accepts_output=accepts_output)
        self.child.follow(lambda stream, data: self.output.append((stream, data)), Deadline(seconds), watch)

    def receive(self, *events: tuple[int, bytes] | Exception) -> None:
        """Give the child frames, or the error of the channel."""
        for event in events:
            self.child.events.put(event)


@pytest.fixture
def harness() -> Harness:
    channel = FakeChannel()
    harness = Harness(RemoteChild(channel, 7, "title"), channel)
    harness.follow(60)
    harness.child.on_outcome = harness.outcome.append
    return harness


EXIT_0 = (protocol.ENDED, protocol.pack(b"exit", b"0"))


def out(data: bytes) -> tuple[int, bytes]:
    return protocol.STDOUT, data


def test_wait_delivers_output_until_end(harness: Harness) -> None:
    harness.receive(
        out(b"a"),
        (protocol.STDERR, b"b"),
        (protocol.OUTCOME, b"c"),
        out(b"d"),
        (protocol.KEEPALIVE, b""),
        EXIT_0,
        out(b"late"),
    )
    harness.child.wait()
    assert harness.output == [(Stream.STDOUT, b"a"), (Stream.STDERR, b"b"), (Stream.STDOUT, b"d")]
    assert harness.outcome == [b"c"]
    assert harness.child.exit_info == ExitInfo("exit", "0")
    harness.child.wait()  # a second time
    assert harness.channel.sent == []


@pytest.mark.parametrize(
    ("event", "started"),
    [
        ((protocol.STARTED, b"4711"), True),
        (out(b"x"), True),
        ((protocol.INPUT_WINDOW_UPDATE, b"1"), False),
        ((protocol.KEEPALIVE, b""), False),
    ],
)
def test_has_started_after_output_or_started_frame(harness: Harness, event: tuple[int, bytes], started: bool) -> None:
    assert not harness.child.has_started
    harness.receive(event, EXIT_0)
    harness.child.wait()
    assert harness.child.has_started is started


def test_wait_raises_error_of_channel(harness: Harness) -> None:
    error = ConnectionLostError("web1", "title", "why")
    harness.receive(out(b"x"), error)
    with pytest.raises(ConnectionLostError) as caught:
        harness.child.wait()
    assert caught.value is error
    assert harness.output == [(Stream.STDOUT, b"x")]


def test_wait_sends_window_update_at_threshold(harness: Harness) -> None:
    half = bytes(protocol.WINDOW_UPDATE_THRESHOLD_BYTES // 2)
    kinds = (protocol.STDOUT, protocol.STDERR, protocol.OUTCOME)
    harness.receive(*((kind, half) for kind in kinds), out(bytes(protocol.WINDOW_UPDATE_THRESHOLD_BYTES)), EXIT_0)
    harness.child.wait()
    # All streams count together: two halves, then another half and a whole.
    assert harness.channel.sent == [
        (protocol.WINDOW_UPDATE, b"%d" % protocol.WINDOW_UPDATE_THRESHOLD_BYTES),
        (protocol.WINDOW_UPDATE, b"%d" % (3 * protocol.WINDOW_UPDATE_THRESHOLD_BYTES // 2)),
    ]


# Standard input -------------------------------------------------------------------------------------------------------


def test_write_sends_pieces_as_window_allows(harness: Harness) -> None:
    data = bytes(range(256)) * 256 * 65  # more than a window
    threading.Timer(
        0.05,
        harness.receive,
        [(protocol.INPUT_WINDOW_UPDATE, b"10"), (protocol.INPUT_WINDOW_UPDATE, b"%d" % protocol.WINDOW_BYTES)],
    ).start()
    harness.child.write(data)
    assert {kind for kind, _ in harness.channel.sent} == {protocol.INPUT}
    pieces = [body for _, body in harness.channel.sent]
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) == protocol.STREAM_CHUNK_BYTES
    sizes = [sum(map(len, pieces[:number])) for number in range(len(pieces) + 1)]
    assert {protocol.WINDOW_BYTES, protocol.WINDOW_BYTES + 10} <= set(sizes)


def test_write_handles_output_while_waiting(harness: Harness) -> None:
    """A child that answers each input would otherwise wait until its output is read."""
    harness.child.write(bytes(protocol.WINDOW_BYTES))
    harness.receive(out(bytes(protocol.WINDOW_UPDATE_THRESHOLD_BYTES)), (protocol.INPUT_WINDOW_UPDATE, b"3"))
    harness.child.write(b"abc")
    assert harness.channel.sent[-2:] == [
        (protocol.WINDOW_UPDATE, b"%d" % protocol.WINDOW_UPDATE_THRESHOLD_BYTES),
        (protocol.INPUT, b"abc"),
    ]


def test_write_to_ended_child_raises(harness: Harness) -> None:
    harness.child.write(bytes(protocol.WINDOW_BYTES))
    harness.receive(EXIT_0)
    for _ in range(2):
        with pytest.raises(CommandEndedError):
            harness.child.write(b"more")
    assert len(harness.channel.sent) == protocol.WINDOW_BYTES // protocol.STREAM_CHUNK_BYTES


def test_write_of_nothing_sends_nothing(harness: Harness) -> None:
    harness.child.write(b"")
    assert harness.channel.sent == []


def test_close_stdin_twice_sends_one_frame(harness: Harness) -> None:
    harness.child.close_stdin()
    harness.child.close_stdin()
    assert harness.channel.sent == [(protocol.INPUT_END, b"")]


def test_write_after_deadline_raises(harness: Harness) -> None:
    harness.follow(0)
    with pytest.raises(DeadlinePassedError):
        harness.child.write(b"x")


# Standard output ------------------------------------------------------------------------------------------------------


def test_read_returns_what_has_come(harness: Harness) -> None:
    harness.receive(out(b"before"))
    assert harness.child.pump(lambda: bool(harness.output))
    harness.receive(out(b"abc"), (protocol.STDERR, b"err"), out(b"de\0f"), out(b"g\0"), out(b"hij"), EXIT_0)
    child = harness.child
    assert (child.read(2), child.read(0), child.read_until(b"\0"), child.read_until(b"\0")) == (
        b"ab",
        b"",
        b"cde",
        b"fg",
    )
    assert (child.read_some(), child.read_some(), child.read(5), child.read_until(b"\0")) == (b"hij", b"", b"", None)
    assert harness.output == [(Stream.STDOUT, b"before"), (Stream.STDERR, b"err")]


def test_read_beyond_end_returns_the_rest(harness: Harness) -> None:
    harness.receive(out(b"abc"), EXIT_0)
    assert (harness.child.read(10), harness.child.read(10)) == (b"abc", b"")
    assert harness.child.exit_info is not None


def test_read_until_long_delimiter_spans_frames(harness: Harness) -> None:
    harness.receive(out(b"a--b-"), out(b"-\n-c"), EXIT_0)
    assert (harness.child.read_until(b"--\n"), harness.child.read_until(b"--\n")) == (b"a--b", None)


def test_read_some_does_not_wait_for_more(harness: Harness) -> None:
    harness.receive(out(b"abc"))
    assert harness.child.read_some() == b"abc"


# The end --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 0.05])
def test_wait_and_read_after_deadline_raise(harness: Harness, seconds: float) -> None:
    harness.follow(seconds)
    harness.receive(out(b"x"))
    with pytest.raises(DeadlinePassedError):
        harness.child.wait()
    with pytest.raises(DeadlinePassedError):
        harness.child.read(1000)


def test_cancel_token_wakes_waiting_thread(harness: Harness) -> None:
    with contextlib.closing(CancelToken()) as cancel_token:
        waiting = threading.Event()
        harness.child.follow(lambda *_: waiting.set(), Deadline(60), Watch(cancel_token=cancel_token))
        errors: list[Exception] = []

        def wait() -> None:
            try:
                harness.child.wait()
            except Exception as error:  # noqa: BLE001 - the test looks at it
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        harness.receive(out(b"x"))
        assert waiting.wait(10)
        cancel_token.cancel()
        thread.join(10)
        assert [type(error) for error in errors] == [CancelledError]
        with pytest.raises(CancelledError):
            harness.child.read(1)


def test_cancel_waits_for_end_of_child(harness: Harness) -> None:
    harness.channel.on_send = lambda kind: harness.receive(
        out(b"last words"), (protocol.ENDED, protocol.pack(b"signal", b"15"))
    )
    with contextlib.closing(CancelToken()) as cancel_token:
        cancel_token.cancel()
        harness.follow(60, cancel_token)
        harness.child.cancel(timeout=10)
    assert (harness.channel.sent, harness.channel.discarded) == ([(protocol.STOP, b"")], [])
    assert harness.output == [(Stream.STDOUT, b"last words")]
    assert harness.child.exit_info == ExitInfo("signal", "15")


def test_cancel_at_once_ends_grace_period(harness: Harness) -> None:
    """The second request comes while the child uses its grace period."""
    with contextlib.closing(CancelToken()) as cancel_token:
        stops = [lambda: cancel_token.cancel(at_once=True), lambda: harness.receive(EXIT_0)]
        harness.channel.on_send = lambda _kind: stops.pop(0)()
        cancel_token.cancel()
        harness.follow(60, cancel_token)
        harness.child.cancel(timeout=1e9)
    assert harness.channel.sent == [(protocol.STOP, b"")] * 2
    assert harness.child.exit_code == 0


def test_output_not_accepted_updates_no_window(harness: Harness) -> None:
    accepts: list[bool] = []
    size = protocol.WINDOW_UPDATE_THRESHOLD_BYTES
    with contextlib.closing(CancelToken()) as cancel_token:
        harness.follow(60, cancel_token, lambda: bool(accepts))
        harness.receive(out(bytes(size)), out(bytes(size)))
        harness.child.wait_until(lambda: len(harness.output) == 2)
        assert harness.channel.sent == []

        def accept() -> None:
            accepts.append(True)
            cancel_token.wake()

        harness.channel.on_send = lambda _kind: harness.receive(EXIT_0)
        thread = threading.Thread(target=accept)
        thread.start()
        harness.child.wait()
        thread.join()
    assert harness.channel.sent == [(protocol.WINDOW_UPDATE, protocol.encode_number(2 * size))]


def test_cancel_accepts_all_output(harness: Harness) -> None:
    harness.follow(60, None, lambda: False)
    harness.receive(out(bytes(protocol.WINDOW_UPDATE_THRESHOLD_BYTES)), EXIT_0)
    harness.child.cancel(timeout=60)
    assert [kind for kind, _ in harness.channel.sent] == [protocol.STOP, protocol.WINDOW_UPDATE]


@pytest.mark.parametrize("lost", [False, True])
def test_cancel_without_answer_detaches_child(harness: Harness, lost: bool) -> None:
    if lost:
        harness.receive(ConnectionLostError("web1", "title", "why"))
    harness.child.cancel(timeout=1e9 if lost else 0.05)
    assert harness.channel.sent == [(protocol.STOP, b""), (protocol.DETACH, b"")]
    assert harness.channel.discarded == [7]
