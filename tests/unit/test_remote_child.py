"""A child of a supervisor, seen from here: a stand-in for the supervisor's channel notes the frames that it sends."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import attrs
import pytest

from lazycluster._model.running_command import CommandEndedError
from lazycluster._remote import protocol
from lazycluster._transports.remote_child import ExitInfo, RemoteChild
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError
from lazycluster.exceptions import ConnectionLostError
from lazycluster.results import Stream


@pytest.mark.parametrize(
    ("ended", "code"),
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
def test_exit_codes(ended: ExitInfo, code: int) -> None:
    assert ended.exit_code == code


@attrs.define
class Channel:
    """Stands in for the supervisor: notes what a child sends."""

    sent: list[tuple[int, bytes]] = attrs.field(factory=list)
    forgotten: list[int] = attrs.field(factory=list)
    on_send: Callable[[int], object] = lambda _kind: None

    def send(self, message: bytes) -> None:
        """Note a frame, which has to be one."""
        [(kind, name, body)] = protocol.FrameDecoder().feed(message) or [(message[2], 7, b"")]
        assert name == 7
        self.sent.append((kind, body))
        self.on_send(kind)

    def discard(self, number: int) -> None:
        """Note it."""
        self.forgotten.append(number)


@attrs.define
class Under:
    """A child under test, and what it has handed on."""

    child: RemoteChild
    channel: Channel
    output: list[tuple[Stream, bytes]]
    outcome: list[bytes]

    def comes(self, *events: tuple[int, bytes] | Exception) -> None:
        """Have something come for it."""
        for event in events:
            self.child.events.put(event)


@pytest.fixture
def under() -> Under:
    channel = Channel()
    made = Under(RemoteChild(channel, 7, "title"), channel, [], [])
    made.child.deadline = Deadline(10)
    made.child._on_output = lambda stream, data: made.output.append((stream, data))
    made.child.on_outcome = made.outcome.append
    return made


OVER = (protocol.ENDED, protocol.pack(b"exit", b"0"))


def out(data: bytes) -> tuple[int, bytes]:
    return protocol.STDOUT, data


def test_what_comes_is_handed_on_until_the_end(under: Under) -> None:
    under.comes(
        out(b"a"),
        (protocol.STDERR, b"b"),
        (protocol.OUTCOME, b"c"),
        out(b"d"),
        (protocol.KEEPALIVE, b""),
        OVER,
        out(b"late"),
    )
    under.child.wait()
    assert under.output == [(Stream.STDOUT, b"a"), (Stream.STDERR, b"b"), (Stream.STDOUT, b"d")]
    assert under.outcome == [b"c"]
    assert under.child.exit_info == ExitInfo("exit", "0")
    under.child.wait()  # again
    assert under.channel.sent == []


@pytest.mark.parametrize(
    ("event", "started"),
    [
        ((protocol.STARTED, b"4711"), True),
        (out(b"x"), True),
        ((protocol.INPUT_WINDOW_UPDATE, b"1"), False),
        ((protocol.KEEPALIVE, b""), False),
    ],
)
def test_whether_it_has_started(under: Under, event: tuple[int, bytes], started: bool) -> None:
    assert not under.child.has_started
    under.comes(event, OVER)
    under.child.wait()
    assert under.child.has_started is started


def test_what_went_wrong_is_raised(under: Under) -> None:
    error = ConnectionLostError("web1", "title", "why")
    under.comes(out(b"x"), error)
    with pytest.raises(ConnectionLostError) as caught:
        under.child.wait()
    assert caught.value is error
    assert under.output == [(Stream.STDOUT, b"x")]


def test_leave_for_more_is_given_when_enough_was_taken(under: Under) -> None:
    half = bytes(protocol.WINDOW_UPDATE_THRESHOLD_BYTES // 2)
    kinds = (protocol.STDOUT, protocol.STDERR, protocol.OUTCOME)
    under.comes(*((kind, half) for kind in kinds), out(bytes(protocol.WINDOW_UPDATE_THRESHOLD_BYTES)), OVER)
    under.child.wait()
    # of all streams together: after two halves, and then after another half and a whole
    assert under.channel.sent == [
        (protocol.WINDOW_UPDATE, b"%d" % protocol.WINDOW_UPDATE_THRESHOLD_BYTES),
        (protocol.WINDOW_UPDATE, b"%d" % (3 * protocol.WINDOW_UPDATE_THRESHOLD_BYTES // 2)),
    ]


# Its input ------------------------------------------------------------------------------------------------------------


def test_input_is_sent_in_pieces_as_far_as_there_is_leave(under: Under) -> None:
    data = bytes(range(256)) * 256 * 65  # more than a window
    threading.Timer(
        0.05,
        under.comes,
        [(protocol.INPUT_WINDOW_UPDATE, b"10"), (protocol.INPUT_WINDOW_UPDATE, b"%d" % protocol.WINDOW_BYTES)],
    ).start()
    under.child.write(data)
    assert {kind for kind, _ in under.channel.sent} == {protocol.INPUT}
    pieces = [body for _, body in under.channel.sent]
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) == protocol.STREAM_CHUNK_BYTES
    sizes = [sum(map(len, pieces[:number])) for number in range(len(pieces) + 1)]
    assert {protocol.WINDOW_BYTES, protocol.WINDOW_BYTES + 10} <= set(sizes)


def test_output_is_taken_while_input_waits(under: Under) -> None:
    """Or a child that answers what it reads, and is not read, would wait for ever."""
    under.child.write(bytes(protocol.WINDOW_BYTES))
    under.comes(out(bytes(protocol.WINDOW_UPDATE_THRESHOLD_BYTES)), (protocol.INPUT_WINDOW_UPDATE, b"3"))
    under.child.write(b"abc")
    assert under.channel.sent[-2:] == [
        (protocol.WINDOW_UPDATE, b"%d" % protocol.WINDOW_UPDATE_THRESHOLD_BYTES),
        (protocol.INPUT, b"abc"),
    ]


def test_a_job_that_has_ended_takes_no_input(under: Under) -> None:
    under.child.write(bytes(protocol.WINDOW_BYTES))
    under.comes(OVER)
    for _ in range(2):
        with pytest.raises(CommandEndedError):
            under.child.write(b"more")
    assert len(under.channel.sent) == protocol.WINDOW_BYTES // protocol.STREAM_CHUNK_BYTES


def test_nothing_to_feed_is_nothing_to_send(under: Under) -> None:
    under.child.write(b"")
    assert under.channel.sent == []


def test_the_end_of_input_is_sent_once(under: Under) -> None:
    under.child.close_stdin()
    under.child.close_stdin()
    assert under.channel.sent == [(protocol.INPUT_END, b"")]


def test_a_deadline_ends_feeding_that_never_has_to_wait(under: Under) -> None:
    under.child.deadline = Deadline(0)
    with pytest.raises(DeadlinePassedError):
        under.child.write(b"x")


# Its output -----------------------------------------------------------------------------------------------------------


def test_reading(under: Under) -> None:
    under.comes(out(b"before"))
    assert under.child.pump(lambda: bool(under.output))
    under.comes(out(b"abc"), (protocol.STDERR, b"err"), out(b"de\0f"), out(b"g\0"), out(b"hij"), OVER)
    child = under.child
    assert (child.read(2), child.read(0), child.read_until(b"\0"), child.read_until(b"\0")) == (
        b"ab",
        b"",
        b"cde",
        b"fg",
    )
    assert (child.read_some(), child.read_some(), child.read(5), child.read_until(b"\0")) == (b"hij", b"", b"", None)
    assert under.output == [(Stream.STDOUT, b"before"), (Stream.STDERR, b"err")]


def test_reading_more_than_there_is(under: Under) -> None:
    under.comes(out(b"abc"), OVER)
    assert (under.child.read(10), under.child.read(10)) == (b"abc", b"")
    assert under.child.exit_info is not None


def test_an_end_that_is_longer_than_a_byte(under: Under) -> None:
    under.comes(out(b"a--b-"), out(b"-\n-c"), OVER)
    assert (under.child.read_until(b"--\n"), under.child.read_until(b"--\n")) == (b"a--b", None)


def test_what_is_there_is_read_without_waiting(under: Under) -> None:
    """The rest need not have come."""
    under.comes(out(b"abc"))
    assert under.child.read_some() == b"abc"


# Its end --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 0.05])
def test_a_deadline(under: Under, seconds: float) -> None:
    under.child.deadline = Deadline(seconds)
    under.comes(out(b"x"))
    with pytest.raises(DeadlinePassedError):
        under.child.wait()
    with pytest.raises(DeadlinePassedError):
        under.child.read(1000)


def test_a_cancellation_wakes_who_waits(under: Under) -> None:
    with contextlib.closing(CancelToken()) as cancel_token:
        under.child.cancel_token = cancel_token
        waiting = threading.Event()
        under.child._on_output = lambda *_: waiting.set()
        errors: list[Exception] = []

        def wait() -> None:
            try:
                under.child.wait()
            except Exception as error:  # noqa: BLE001 - looked at below
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        under.comes(out(b"x"))
        assert waiting.wait(10)
        cancel_token.cancel()
        thread.join(10)
        assert [type(error) for error in errors] == [CancelledError]
        with pytest.raises(CancelledError):
            under.child.read(1)


def test_giving_up_waits_for_the_end(under: Under) -> None:
    under.channel.on_send = lambda kind: under.comes(
        out(b"last words"), (protocol.ENDED, protocol.pack(b"signal", b"15"))
    )
    with contextlib.closing(CancelToken()) as cancel_token:
        cancel_token.cancel()
        under.child.cancel_token = cancel_token
        under.child.cancel(timeout=10)
    assert (under.channel.sent, under.channel.forgotten) == ([(protocol.STOP, b"")], [])
    assert under.output == [(Stream.STDOUT, b"last words")]
    assert under.child.exit_info == ExitInfo("signal", "15")


@pytest.mark.parametrize("lost", [False, True])
def test_giving_up_does_not_wait_for_ever(under: Under, lost: bool) -> None:
    if lost:
        under.comes(ConnectionLostError("web1", "title", "why"))
    begun = time.monotonic()
    under.child.cancel(timeout=10 if lost else 0.05)
    assert time.monotonic() - begun < 5
    assert under.channel.sent == [(protocol.STOP, b""), (protocol.DETACH, b"")]
    assert under.channel.forgotten == [7]
