"""A fake master of ssh: it listens on a control socket and answers as the test says."""

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

from lazycluster._ssh.mux import encode_message

HELLO_MESSAGE = encode_message(1, 4)
MASTER_PID = 4711
"""The process id in the answers of a fake master."""

# The types of messages, as OpenSSH's PROTOCOL.mux lists them; written out, because these tests check the codec.
MUX_C_NEW_SESSION = 0x10000002
MUX_C_ALIVE_CHECK = 0x10000004
MUX_C_TERMINATE = 0x10000005
MUX_C_OPEN_FWD = 0x10000006
MUX_C_CLOSE_FWD = 0x10000007
MUX_C_NEW_STDIO_FWD = 0x10000008
MUX_S_OK = 0x80000001
MUX_S_PERMISSION_DENIED = 0x80000002
MUX_S_FAILURE = 0x80000003
MUX_S_EXIT_MESSAGE = 0x80000004
MUX_S_ALIVE = 0x80000005
MUX_S_SESSION_OPENED = 0x80000006


@attrs.frozen
class MuxRequest:
    """One request: its type, its id, the fields after it, and the targets of the descriptors that came with it."""

    type: int
    id: int
    body: bytes
    descriptors: tuple[str, ...] = ()


MuxResponder = Callable[[MuxRequest], bytes | None]
"""Returns the bytes to send, or None to close the connection."""


def make_responder(kind: int, *fields: int | str) -> MuxResponder:
    """Return a responder that answers as a master does, with the id of the request."""
    return lambda request: encode_message(kind, request.id, *fields)


@attrs.define
class FakeMaster:
    """Sends a hello, and answers each request by its responder."""

    path: Path
    hello: bytes | None = HELLO_MESSAGE
    responder: MuxResponder = attrs.field(factory=lambda: make_responder(MUX_S_ALIVE, MASTER_PID))
    descriptors_per_request: int = 0
    send_byte_by_byte: bool = False
    requests: list[MuxRequest] = attrs.field(factory=list)
    received_hellos: list[bytes] = attrs.field(factory=list)
    closed_connections: int = 0
    keep_descriptors_open: bool = False
    descriptors: list[int] = attrs.field(factory=list)
    connections: list[socket.socket] = attrs.field(factory=list)

    def serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self.serve_connection, args=(connection,), daemon=True).start()

    def serve_connection(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            if self.hello is None:
                return
            connection.sendall(self.hello)
            self.received_hellos.append(receive_message(connection))
            while True:
                message = receive_message(connection)
                kind, number = struct.unpack(">II", message[:8])
                links = tuple(self.receive_descriptor(connection) for _ in range(self.descriptors_per_request))
                self.requests.append(MuxRequest(kind, number, message[8:], links))
                data = self.responder(self.requests[-1])
                if data is None:
                    break
                self.send(connection, data)
        self.closed_connections += 1

    def send(self, connection: socket.socket, data: bytes) -> None:
        size = 1 if self.send_byte_by_byte else len(data)
        for start in range(0, len(data), max(1, size)):
            connection.sendall(data[start : start + size])

    def receive_descriptor(self, connection: socket.socket) -> str:
        _, (descriptor, *_), _, _ = socket.recv_fds(connection, 1, 1)
        try:
            return str(Path(f"/proc/self/fd/{descriptor}").readlink()) if Path("/proc/self/fd").exists() else ""
        finally:
            if self.keep_descriptors_open:
                self.descriptors.append(descriptor)
            else:
                os.close(descriptor)

    def close_descriptors(self) -> None:
        """Close the descriptors that clients passed."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    def close_connections(self) -> None:
        """Close every connection and the descriptors that came over it, as the end of a master does."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.close_descriptors()


def receive_message(connection: socket.socket) -> bytes:
    """Return one message without its length."""

    def receive_exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = connection.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    return receive_exactly(struct.unpack(">I", receive_exactly(4))[0])


@contextlib.contextmanager
def running_fake_master() -> Iterator[FakeMaster]:
    """Run a fake master with a socket of its own."""
    with tempfile.TemporaryDirectory(prefix="lcmux-") as directory, socket.socket(socket.AF_UNIX) as listener:
        fake_master = FakeMaster(Path(directory, "m"))
        listener.bind(str(fake_master.path))
        listener.listen()
        thread = threading.Thread(target=fake_master.serve, args=(listener,))
        thread.start()
        yield fake_master
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        fake_master.close_descriptors()


def count_open_descriptors() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())
