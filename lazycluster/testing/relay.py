"""A TCP relay on loopback that plays the network: slow, cut like a cable, or reset."""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet
    from types import TracebackType

    from lazycluster._typing import Self

_ADDRESS = "127.0.0.1"
_CHUNK = 1 << 16
_IN_FLIGHT = 1 << 24  # bytes on their way in one direction; above it the relay stops to read, as a full pipe does
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no time: close() sends a reset


class _Flow:
    """One direction of one connection: what was read, and when it is due at the other end."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.pieces: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.ended = False  # the source has sent its last byte
        self.done = False  # and the target has been told

    def read(self, due: float) -> None:
        """Take in what the source has; an empty piece stands for its end."""
        try:
            data = self.source.recv(_CHUNK)
        except BlockingIOError:
            return
        self.ended = not data
        self.size += len(data)
        self.pieces.append((due, data))

    def write(self, now: float) -> None:
        """Hand on what is due, as far as the target takes it."""
        while self.pieces and self.pieces[0][0] <= now:
            due, data = self.pieces.popleft()
            if not data:
                self.target.shutdown(socket.SHUT_WR)
                self.done = True
                return
            try:
                sent = self.target.send(data)
            except BlockingIOError:
                sent = 0
            self.size -= sent
            if sent < len(data):
                self.pieces.appendleft((due, data[sent:]))
                return

    def wants_to_read(self) -> bool:
        """Return whether there is room for more."""
        return not self.ended and self.size < _IN_FLIGHT


class Relay:
    """A relay to a port on loopback, with a network's faults to choose.

    `delay` is the time in seconds that a byte takes in each direction (a round trip takes twice as long); it may be
    changed at any time. Connections themselves are accepted without delay. A context manager.
    """

    def __init__(self, target: int, *, delay: float = 0.0) -> None:
        self.target = target
        self.delay = delay
        self._listener = socket.create_server((_ADDRESS, 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._flows: list[tuple[_Flow, _Flow]] = []
        self._is_cut = False
        self._is_closed = False
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]] = queue.SimpleQueue()
        self._bell, self._ring = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name=f"relay-{self.port}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._flows)

    def cut(self) -> None:
        """Forward nothing any more, and say nothing: a cut cable. New connections get no answer either."""
        self._call(lambda: setattr(self, "_is_cut", True))

    def restore(self) -> None:
        """Mend the cable; what was on its way arrives, as it does with TCP."""
        self._call(lambda: setattr(self, "_is_cut", False))

    def drop(self) -> None:
        """Reset every connection at once, on both ends; new ones are taken."""
        self._call(self._drop)

    def close(self) -> None:
        """End the relay and its connections. May be called again."""
        if not self._is_closed:
            self._call(lambda: setattr(self, "_is_closed", True))
            self._thread.join()

    # In the relay's thread, the only one that touches sockets and flows -----------------------------------------------

    def _call(self, function: Callable[[], None]) -> None:
        """Have the relay's thread call a function, and wait for that."""
        if self._is_closed:
            raise ValueError("the relay is closed")
        called = threading.Event()
        self._calls.put((function, called))
        self._ring.send(b"!")
        called.wait(10)

    def _serve(self) -> None:
        try:
            while not self._is_closed:
                self._turn()
        finally:
            self._drop()
            for resource in (self._selector, self._listener, self._bell, self._ring):
                resource.close()

    def _turn(self) -> None:
        """Wait for something to happen, and do it."""
        self._watch(self._listener, 0 if self._is_cut else selectors.EVENT_READ)
        now = time.monotonic()
        for pair in self._flows:
            self._watch_pair(*pair, now)
        ready = {key.fileobj for key, _ in self._selector.select(self._next_due(now))}
        if self._bell in ready:
            self._bell.recv(_CHUNK)
            self._take_calls()
        if self._is_cut or self._is_closed:
            return
        if self._listener in ready:
            self._accept()
        for pair in list(self._flows):
            self._forward(pair, ready)

    def _take_calls(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                function, called = self._calls.get_nowait()
                function()
                called.set()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection((_ADDRESS, self.target))
        except OSError:
            client.close()
            return
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._flows.append((_Flow(client, server), _Flow(server, client)))

    def _forward(self, pair: tuple[_Flow, _Flow], ready: AbstractSet[object]) -> None:
        now = time.monotonic()
        try:
            for flow in pair:
                if flow.source in ready and flow.wants_to_read():
                    flow.read(now + self.delay)
                flow.write(now)
        except OSError:
            self._close(pair, reset=True)
            return
        if all(flow.done for flow in pair):
            self._close(pair)

    def _drop(self) -> None:
        for pair in list(self._flows):
            self._close(pair, reset=True)

    def _close(self, pair: tuple[_Flow, _Flow], *, reset: bool = False) -> None:
        self._flows.remove(pair)
        for flow in pair:
            self._watch(flow.source, 0)
            if reset:
                flow.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            flow.source.close()

    def _watch_pair(self, there: _Flow, back: _Flow, now: float) -> None:
        """Tell the selector what each socket waits for: `there` reads from the client, `back` writes to it."""
        for reader, writer in ((there, back), (back, there)):
            events = 0
            if not self._is_cut:
                events |= selectors.EVENT_READ if reader.wants_to_read() else 0
                events |= selectors.EVENT_WRITE if writer.pieces and writer.pieces[0][0] <= now else 0
            self._watch(reader.source, events)

    def _watch(self, sock: socket.socket, events: int) -> None:
        known = self._selector.get_map().get(sock)
        if known is None:
            if events:
                self._selector.register(sock, events)
        elif not events:
            self._selector.unregister(sock)
        elif known.events != events:
            self._selector.modify(sock, events)

    def _next_due(self, now: float) -> float | None:
        """Return the seconds until a piece gets due, None where none will; what is due by now waits for its target."""
        if self._is_cut:
            return None
        due = (flow.pieces[0][0] - now for pair in self._flows for flow in pair if flow.pieces)
        return min((wait for wait in due if wait > 0), default=None)
