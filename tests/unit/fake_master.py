"""A small stand-in for a master of ssh: it listens on a control socket and answers as it is told."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from lazycluster._ssh.mux import encode

HELLO = encode(1, 4)
OK, FAILURE, DENIED, ALIVE, OPENED = 0x80000001, 0x80000003, 0x80000002, 0x80000005, 0x80000006


@attrs.frozen
class Request:
    """What a client asked: its type, its id, what followed, and what the descriptors that it passed point at."""

    type: int
    id: int
    body: bytes
    descriptors: tuple[str, ...] = ()


Answer = Callable[[Request], bytes | None]
"""Bytes to send; None: close the connection."""


def reply(kind: int, *fields: int | str) -> Answer:
    """Answer as a master does, with the id of the request."""
    return lambda request: encode(kind, request.id, *fields)


@attrs.define
class Master:
    """A stand-in for a master: greets, and answers each request as it is told."""

    path: Path
    hello: bytes | None = HELLO
    answer: Answer = attrs.field(factory=lambda: reply(ALIVE, 4711))
    takes_descriptors: int = 0
    requests: list[Request] = attrs.field(factory=list)
    greetings: list[bytes] = attrs.field(factory=list)
    closed: int = 0
    keeps_descriptors: bool = False
    descriptors: list[int] = attrs.field(factory=list)
    connections: list[socket.socket] = attrs.field(factory=list)

    def serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            if self.hello is None:
                return
            connection.sendall(self.hello)
            self.greetings.append(receive(connection))
            while True:
                message = receive(connection)
                kind, number = struct.unpack(">II", message[:8])
                links = tuple(self.take(connection) for _ in range(self.takes_descriptors))
                self.requests.append(Request(kind, number, message[8:], links))
                data = self.answer(self.requests[-1])
                if data is None:
                    break
                connection.sendall(data)
        self.closed += 1

    def take(self, connection: socket.socket) -> str:
        _, (descriptor, *_), _, _ = socket.recv_fds(connection, 1, 1)
        try:
            return str(Path(f"/proc/self/fd/{descriptor}").readlink()) if Path("/proc/self/fd").exists() else ""
        finally:
            if self.keeps_descriptors:
                self.descriptors.append(descriptor)
            else:
                os.close(descriptor)

    def close_descriptors(self) -> None:
        """Close what was passed."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    def hang_up(self) -> None:
        """Die: close every connection, and what was passed over it."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.close_descriptors()


def receive(connection: socket.socket) -> bytes:
    """Return one message without its length."""

    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = connection.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    return exactly(struct.unpack(">I", exactly(4))[0])


@contextlib.contextmanager
def running_master() -> Iterator[Master]:
    """Run a stand-in with a socket of its own."""
    with tempfile.TemporaryDirectory(prefix="lcmux-") as directory, socket.socket(socket.AF_UNIX) as listener:
        stand_in = Master(Path(directory, "m"))
        listener.bind(str(stand_in.path))
        listener.listen()
        thread = threading.Thread(target=stand_in.serve, args=(listener,))
        thread.start()
        yield stand_in
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        stand_in.close_descriptors()


def open_descriptors() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())
