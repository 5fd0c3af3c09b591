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
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from types import TracebackType

from lazycluster._typing import Self

_LOOPBACK_ADDRESS = "127.0.0.1"
_SOCKET_READ_BYTES = 1 << 16
_MAX_BUFFERED_BYTES = 1 << 24
"""Bytes on their way in one direction, from which on the relay stops reading, as a full pipe does."""
_LINGER_RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no time: close() sends a reset


class _RelayFlow:
    """One direction of one connection: the bytes read, and the times at which they are due at the other end."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.chunks: deque[tuple[float, bytes]] = deque()
        self.buffered_bytes = 0
        self.source_eof = False  # the source has sent its last byte
        self.eof_sent = False  # and the target has got it

    def read(self, due: float) -> None:
        """Read from the source; an empty piece stands for its end."""
        try:
            data = self.source.recv(_SOCKET_READ_BYTES)
        except BlockingIOError:
            return
        self.source_eof = not data
        self.buffered_bytes += len(data)
        self.chunks.append((due, data))

    def write(self, now: float) -> None:
        """Send the pieces that are due, as far as the target takes them."""
        while self.chunks and self.chunks[0][0] <= now:
            due, data = self.chunks.popleft()
            if not data:
                self.target.shutdown(socket.SHUT_WR)
                self.eof_sent = True
                return
            try:
                sent = self.target.send(data)
            except BlockingIOError:
                sent = 0
            self.buffered_bytes -= sent
            if sent < len(data):
                self.chunks.appendleft((due, data[sent:]))
                return

    def can_read(self) -> bool:
        """Return whether the source is open and there is room for more."""
        return not self.source_eof and self.buffered_bytes < _MAX_BUFFERED_BYTES


class Relay:
    """A relay to a port on loopback, with a network's faults to choose.

    `delay` is the time in seconds that a byte takes in each direction, so a round trip takes twice as long. It may be
    changed at any time. Connections themselves are accepted without delay. It is a context manager.
    """

    def __init__(self, target: int, *, delay: float = 0.0) -> None:
        self.target = target
        self.delay = delay
        self._listener = socket.create_server((_LOOPBACK_ADDRESS, 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._flow_pairs: list[tuple[_RelayFlow, _RelayFlow]] = []
        self._is_cut = False
        self._is_closed = False
        self._pending_calls: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]] = queue.SimpleQueue()
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup_reader, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name=f"relay-{self.port}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._flow_pairs)

    def cut(self) -> None:
        """Forward nothing any more, without a sign: a cut cable. New connections get no answer either."""
        self._call_threadsafe(lambda: setattr(self, "_is_cut", True))

    def restore(self) -> None:
        """Mend the cable; the bytes on their way arrive, as they do with TCP."""
        self._call_threadsafe(lambda: setattr(self, "_is_cut", False))

    def drop(self) -> None:
        """Reset every connection at once, on both ends; new ones are accepted."""
        self._call_threadsafe(self._reset_all)

    def close(self) -> None:
        """End the relay and its connections. May be called again."""
        if not self._is_closed:
            self._call_threadsafe(lambda: setattr(self, "_is_closed", True))
            self._thread.join()

    # In the relay's thread, the only one that touches sockets and flows -----------------------------------------------

    def _call_threadsafe(self, function: Callable[[], None]) -> None:
        """Have the relay's thread call a function, and wait for that."""
        if self._is_closed:
            raise ValueError("the relay is closed")
        done = threading.Event()
        self._pending_calls.put((function, done))
        self._wakeup_writer.send(b"!")
        done.wait(10)

    def _serve(self) -> None:
        try:
            while not self._is_closed:
                self._serve_once()
        finally:
            self._reset_all()
            for resource in (self._selector, self._listener, self._wakeup_reader, self._wakeup_writer):
                resource.close()

    def _serve_once(self) -> None:
        """Wait for events, and handle them."""
        self._set_selector_events(self._listener, 0 if self._is_cut else selectors.EVENT_READ)
        now = time.monotonic()
        for pair in self._flow_pairs:
            self._set_pair_events(*pair, now)
        ready = {key.fileobj for key, _ in self._selector.select(self._seconds_until_due(now))}
        if self._wakeup_reader in ready:
            self._wakeup_reader.recv(_SOCKET_READ_BYTES)
            self._run_pending_calls()
        if self._is_cut or self._is_closed:
            return
        if self._listener in ready:
            self._accept()
        for pair in list(self._flow_pairs):
            self._forward(pair, ready)

    def _run_pending_calls(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                function, called = self._pending_calls.get_nowait()
                function()
                called.set()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection((_LOOPBACK_ADDRESS, self.target))
        except OSError:
            client.close()
            return
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._flow_pairs.append((_RelayFlow(client, server), _RelayFlow(server, client)))

    def _forward(self, pair: tuple[_RelayFlow, _RelayFlow], ready: AbstractSet[object]) -> None:
        now = time.monotonic()
        try:
            for flow in pair:
                if flow.source in ready and flow.can_read():
                    flow.read(now + self.delay)
                flow.write(now)
        except OSError:
            self._close_pair(pair, reset=True)
            return
        if all(flow.eof_sent for flow in pair):
            self._close_pair(pair)

    def _reset_all(self) -> None:
        for pair in list(self._flow_pairs):
            self._close_pair(pair, reset=True)

    def _close_pair(self, pair: tuple[_RelayFlow, _RelayFlow], *, reset: bool = False) -> None:
        self._flow_pairs.remove(pair)
        for flow in pair:
            self._set_selector_events(flow.source, 0)
            if reset:
                flow.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            flow.source.close()

    def _set_pair_events(self, to_server: _RelayFlow, to_client: _RelayFlow, now: float) -> None:
        """Register the events of each socket: `to_server` reads from the client, `to_client` writes to it."""
        for reader, writer in ((to_server, to_client), (to_client, to_server)):
            events = 0
            if not self._is_cut:
                events |= selectors.EVENT_READ if reader.can_read() else 0
                events |= selectors.EVENT_WRITE if writer.chunks and writer.chunks[0][0] <= now else 0
            self._set_selector_events(reader.source, events)

    def _set_selector_events(self, sock: socket.socket, events: int) -> None:
        known = self._selector.get_map().get(sock)
        if known is None:
            if events:
                self._selector.register(sock, events)
        elif not events:
            self._selector.unregister(sock)
        elif known.events != events:
            self._selector.modify(sock, events)

    def _seconds_until_due(self, now: float) -> float | None:
        """Return the seconds until a piece is due, None if there is no such piece.

        Pieces that are due already wait for their targets.
        """
        if self._is_cut:
            return None
        due = (flow.chunks[0][0] - now for pair in self._flow_pairs for flow in pair if flow.chunks)
        return min((wait for wait in due if wait > 0), default=None)
