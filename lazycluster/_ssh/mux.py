"""A connection to a master's control socket, held open.

A master with ControlPersist ends when its socket has had no connection for a while. So a held connection keeps it. When
this process ends, for whatever reason, the kernel closes the connection and the master ends. Over the same connection
the master answers checks and opens forwardings: OpenSSH's PROTOCOL.mux, version 4.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import struct
import threading
import time
from pathlib import Path

import attrs

from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._processes.forks import reset_in_forks

_MUX_VERSION = 4
_MUX_MSG_HELLO = 0x00000001
_MUX_C_NEW_SESSION = 0x10000002
_MUX_C_ALIVE_CHECK = 0x10000004
_MUX_C_TERMINATE = 0x10000005
_MUX_C_OPEN_FWD = 0x10000006
_MUX_C_CLOSE_FWD = 0x10000007
_MUX_C_NEW_STDIO_FWD = 0x10000008
_MUX_S_OK = 0x80000001
_MUX_S_ALIVE = 0x80000005
_MUX_S_SESSION_OPENED = 0x80000006
_NO_ESCAPE_CHARACTER = 0xFFFFFFFF
_MUX_FWD_TYPES = {ForwardType.LOCAL: 1, ForwardType.REMOTE: 2}
_MAX_MUX_MESSAGE_BYTES = 1 << 20


class ControlSocketError(Exception):
    """The master is gone, does not answer, or speaks another protocol."""


class RequestRefusedError(Exception):
    """The master or its host refused a request."""


@attrs.frozen
class MuxReply:
    """One message of the master: its type, and the bytes after it."""

    type: int
    body: bytes

    def uint32(self, index: int) -> int:
        """Return one of the 32-bit words of the body."""
        start = 4 * index
        if len(self.body) < start + 4:
            raise ControlSocketError("the master's answer is too short")
        return int.from_bytes(self.body[start : start + 4], "big")

    @property
    def reason(self) -> str:
        """The reason of a refusal: a string after the request's id."""
        return self.body[8 : 8 + self.uint32(1)].decode(errors="replace")


def encode_message(*fields: int | str) -> bytes:
    """Return a message: its length, then 32-bit words and strings that carry their length."""
    body = b"".join(
        struct.pack(">I", field) if isinstance(field, int) else struct.pack(">I", len(raw := field.encode())) + raw
        for field in fields
    )
    return struct.pack(">I", len(body)) + body


class ControlSocket:
    """One connection to a master; any thread may use it."""

    def __init__(self, path: Path, *, timeout: float) -> None:
        """Connect and exchange hello messages within `timeout` seconds, which also bounds every later answer.

        Raises:
            FileNotFoundError: If there is no such socket.
            ControlSocketError: If no master answers.
        """
        self._path = path
        self._timeout = timeout
        self._lock = threading.Lock()
        self._request_id = 0
        self._out_of_sync = False
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            hello = self._receive()
            if hello.type != _MUX_MSG_HELLO or hello.uint32(0) != _MUX_VERSION:
                raise ControlSocketError("the control socket does not speak version 4 of the multiplexing protocol")
            self._socket.sendall(encode_message(_MUX_MSG_HELLO, _MUX_VERSION))
        except FileNotFoundError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise ControlSocketError(f"no answer from the master: {error}") from error
        except ControlSocketError:
            self.close()
            raise
        reset_in_forks(self)  # a copy of the socket in a child would keep the master after the end of this process

    def check(self) -> int:
        """Return the master's process id if it answers.

        Raises:
            ControlSocketError: If it does not answer in time.
        """
        reply = self._send_request(_MUX_C_ALIVE_CHECK)
        if reply.type != _MUX_S_ALIVE:
            raise ControlSocketError(f"the master answered a check with {reply.type:#x}")
        return reply.uint32(1)

    def open_forward(self, forwarding: Forwarding) -> None:
        """Open a forwarding.

        Raises:
            RequestRefusedError: If the port to listen on is taken, or the host does not allow it.
            ControlSocketError: If the master is gone.
        """
        self._expect(_MUX_S_OK, self._send_request(_MUX_C_OPEN_FWD, *_forward_fields(forwarding)))

    def close_forward(self, forwarding: Forwarding) -> None:
        """Close a forwarding; connections that it carries go on."""
        self._expect(_MUX_S_OK, self._send_request(_MUX_C_CLOSE_FWD, *_forward_fields(forwarding)))

    def probe(self, host: str, port: int, *, timeout: float | None = None) -> None:
        """Open a connection from the host to an address that it can reach, and close it, within `timeout` seconds.

        Raises:
            RequestRefusedError: If the connection cannot be opened; the master's log says why.
            ControlSocketError: If the master is gone, or the host does not answer.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection = ControlSocket(self._path, timeout=self._timeout if timeout is None else timeout)
            try:
                descriptors = (theirs.fileno(), theirs.fileno())
                connection._expect(
                    _MUX_S_SESSION_OPENED,
                    connection._send_request(_MUX_C_NEW_STDIO_FWD, "", host, port, descriptors=descriptors),
                )
            finally:
                connection.close()

    def open_session(self, command: str, stdin: int) -> ControlSocket:
        """Run a command in a session of its own, reading from a descriptor and printing nowhere.

        Returns:
            The connection that holds the session: the session ends with it.

        Raises:
            RequestRefusedError: If the host allows no (further) session.
            ControlSocketError: If the master is gone.
        """
        connection = ControlSocket(self._path, timeout=self._timeout)
        devnull = os.open(os.devnull, os.O_WRONLY)
        try:
            # Fields: reserved, tty, X11 forwarding, agent forwarding, subsystem, escape character, terminal, command.
            fields = ("", 0, 0, 0, 0, _NO_ESCAPE_CHARACTER, "dumb", command)
            reply = connection._send_request(_MUX_C_NEW_SESSION, *fields, descriptors=(stdin, devnull, devnull))
            connection._expect(_MUX_S_SESSION_OPENED, reply)
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(devnull)
        return connection

    def terminate(self) -> None:
        """Ask the master to end at once; it does, and does not answer."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(encode_message(_MUX_C_TERMINATE, 0))

    def wait_closed(self, timeout: float | None, wake_fd: int | None = None) -> bool:
        """Wait until the master closes its end, the time is up or `wake_fd` is readable; return whether it is closed.

        No other request may use this connection during the wait.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.poll_closed():
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            found = wait_readable([self._socket.fileno(), *([] if wake_fd is None else [wake_fd])], remaining)
            if not found or wake_fd in found or remaining == 0:
                return self.poll_closed()
        return True

    def wait_message(self, timeout: float) -> None:
        """Wait until the master sends a message unasked, such as that a session has ended, or closes its end."""
        wait_readable([self._socket.fileno()], timeout)

    def poll_closed(self) -> bool:
        """Look at the socket, and return whether either side has closed the connection.

        It waits while another thread waits for an answer. An answer that came too late is read and dropped.
        """
        with self._lock:  # an answer on its way to another thread would look like something to read
            try:
                while wait_readable([self._socket.fileno()], 0):
                    if not self._socket.recv(1 << 16, 0 if self._out_of_sync else socket.MSG_PEEK):
                        return True
                    if not self._out_of_sync:
                        return False
            except (OSError, ValueError):
                return True
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Close the connection to the master."""
        with self._lock:
            self._socket.close()

    def reset_after_fork(self) -> None:
        """Close the descriptor in a forked child, without a word to the master."""
        self._socket.close()

    def _send_request(self, message_type: int, *fields: int | str, descriptors: tuple[int, ...] = ()) -> MuxReply:
        with self._lock:
            if self._out_of_sync:
                raise ControlSocketError("the master did not answer before")
            self._request_id += 1
            # Until the answer has come. If it comes too late, or after Ctrl-C, the socket stays out of sync: the answer
            # would be taken for that to the next request. It stays open, since its end shows that of the master.
            self._out_of_sync = True
            try:
                self._socket.sendall(encode_message(message_type, self._request_id, *fields))
                for descriptor in descriptors:
                    socket.send_fds(self._socket, [b"\0"], [descriptor])
                reply = self._receive()
            except OSError as error:
                raise ControlSocketError(f"no answer from the master: {error}") from error
            self._out_of_sync = False
            return reply

    def _receive(self) -> MuxReply:
        length = struct.unpack(">I", self._receive_exactly(4))[0]
        if not 4 <= length <= _MAX_MUX_MESSAGE_BYTES:
            raise ControlSocketError("the master's answer is garbled")
        message = self._receive_exactly(length)
        return MuxReply(int.from_bytes(message[:4], "big"), message[4:])

    def _receive_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise ControlSocketError("the master closed its control socket")
            data += piece
        return data

    @staticmethod
    def _expect(message_type: int, reply: MuxReply) -> None:
        if reply.type != message_type:
            raise RequestRefusedError(reply.reason or f"answer {reply.type:#x}")


def wait_readable(descriptors: list[int], timeout: float | None) -> set[int]:
    """Return the descriptors that can be read, after `timeout` seconds at most; select(2) would end at 1023."""
    if min(descriptors) < 0:
        return set()
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if timeout is None else math.ceil(timeout * 1000))}


def _forward_fields(forwarding: Forwarding) -> tuple[int | str, ...]:
    return (
        _MUX_FWD_TYPES[forwarding.type],
        forwarding.listen_host,
        forwarding.listen_port,
        forwarding.connect_host,
        forwarding.connect_port,
    )
