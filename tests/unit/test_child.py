"""The states of a child of a supervisor, without a process of its own."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable, Iterator

import pytest

from lazycluster._remote import protocol
from lazycluster._remote.child import (
    EXITED,
    FINISHED,
    NEW,
    RUNNING,
    STOPPED,
    STOPPING,
    TRANSITIONS,
    Child,
)
from lazycluster._remote.send_queue import SendQueue

MARK = "MARK=t."


class Harness:
    """A child with a pipe for its output, and the frames that it sends."""

    def __init__(self) -> None:
        """Make a child in the state NEW."""
        self.finished: list[Child] = []
        self.frames_reader, frames_writer = os.pipe()
        self.selector = selectors.DefaultSelector()
        self.send_queue = SendQueue(frames_writer, self.selector, lambda: None, lambda: None)
        self.child = Child(7, 5.0, self.selector, self.send_queue, self.finished.append)
        reading, self.output_writer = os.pipe()
        os.set_blocking(reading, False)
        self.output_reader = reading
        self.descriptors = [self.frames_reader, frames_writer, reading, self.output_writer]

    def start(self) -> None:
        """Give the child a process: that of the test, which gets no signal."""
        self.child.process_started(os.getpid(), -1, ((self.output_reader, protocol.STDOUT),))

    def frames(self) -> list[tuple[int, list[bytes] | bytes]]:
        """Return the frames that were sent since the last call."""
        self.send_queue.write(protocol.encode_frame(protocol.KEEPALIVE))
        self.send_queue.flush()
        found = protocol.FrameDecoder().feed(os.read(self.frames_reader, 1 << 20))
        assert {number for _, number, _ in found[:-1]} <= {7}
        return [(kind, protocol.unpack(body) if kind == protocol.ENDED else body) for kind, _, body in found[:-1]]


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.selector.close()
    for descriptor in harness.descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue


STEPS: dict[str, Callable[[Harness], object]] = {
    "start": lambda harness: harness.start(),
    "exit": lambda harness: harness.child.process_exited(3 << 8),
    "stop": lambda harness: harness.child.stop(MARK),
    "tree gone": lambda harness: harness.child.tree_terminated(),
    "detach": lambda harness: harness.child.detach(),
    "finish": lambda harness: harness.child.finish(),
    "no window": lambda harness: harness.child.increase_window(-protocol.WINDOW_BYTES),
    "window": lambda harness: harness.child.increase_window(protocol.WINDOW_BYTES),
    "output": lambda harness: os.write(harness.output_writer, b"out"),
}
OUTPUT = (protocol.STDOUT, b"out")
EXIT_3 = (protocol.ENDED, [b"exit", b"768"])
UNKILLABLE = (protocol.ENDED, [b"failed", b"it could not be killed"])


@pytest.mark.parametrize(
    ("steps", "state", "frames"),
    [
        ("start", RUNNING, []),
        ("start, exit", FINISHED, [EXIT_3]),
        ("start, output, exit", FINISHED, [OUTPUT, EXIT_3]),
        ("start, no window, output, exit", EXITED, []),
        ("start, no window, output, exit, window", FINISHED, [OUTPUT, EXIT_3]),
        ("start, no window, output, exit, detach", FINISHED, []),
        ("start, no window, output, exit, stop", STOPPED, []),
        ("start, no window, output, exit, stop, window", STOPPED, []),
        ("start, no window, output, exit, stop, tree gone", EXITED, []),
        ("start, no window, output, exit, stop, window, tree gone", FINISHED, [OUTPUT, EXIT_3]),
        ("start, stop", STOPPING, []),
        ("start, stop, stop", STOPPING, []),
        ("start, stop, exit", STOPPED, []),
        ("start, stop, exit, stop", STOPPED, []),
        ("start, stop, exit, tree gone", FINISHED, [EXIT_3]),
        ("start, stop, tree gone", FINISHED, [UNKILLABLE]),
        ("start, stop, tree gone, exit", FINISHED, [UNKILLABLE]),
        ("start, stop, detach, exit, tree gone", FINISHED, []),
        ("start, detach, exit", FINISHED, []),
        ("start, finish", FINISHED, []),
        ("start, finish, exit, stop", FINISHED, []),
        ("finish", FINISHED, []),
    ],
)
def test_child_events_lead_to_state_and_frames(harness: Harness, steps: str, state: str, frames: list[object]) -> None:
    assert harness.child.state == NEW

    for step in steps.split(", "):
        STEPS[step](harness)

    assert harness.child.state == state
    assert harness.frames() == frames
    silent = "finish" in steps
    assert harness.finished == ([harness.child] if state == FINISHED and not silent else [])


@pytest.mark.parametrize("steps", ["exit", "stop", "tree gone", "start, start", "start, exit, tree gone"])
def test_child_impossible_event_raises(harness: Harness, steps: str) -> None:
    *first, last = steps.split(", ")
    for step in first:
        STEPS[step](harness)

    with pytest.raises(KeyError):
        STEPS[last](harness)


def test_child_second_stop_ends_grace(harness: Harness) -> None:
    harness.start()
    harness.child.stop(MARK)
    terminator = harness.child.terminator
    assert terminator is not None
    kill_at = terminator.kill_at

    harness.child.stop(MARK)

    assert harness.child.terminator is terminator
    assert terminator.kill_at < kill_at


def test_child_transitions_lead_to_known_states() -> None:
    states = {NEW, RUNNING, STOPPING, STOPPED, EXITED, FINISHED}

    assert set(TRANSITIONS) == states
    assert {state for events in TRANSITIONS.values() for state in events.values()} == states - {NEW}
    assert all(FINISHED in events.values() for events in TRANSITIONS.values())
