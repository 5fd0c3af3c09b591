"""A connection to a master's control socket, held open.

A master with ControlPersist leaves when nobody has been connected to its socket for a while. So holding a connection
keeps it, and when this process ends, however that comes about, the kernel closes the connection and the master goes.
Over the same connection the master tells that it is well, and opens forwardings: OpenSSH's PROTOCOL.mux, version 4.
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
import weakref
from pathlib import Path

import attrs

from lazycluster._model.forwarding import Forwarding, ForwardType

_VERSION = 4
_HELLO = 0x00000001
_NEW_SESSION = 0x10000002
_ALIVE_CHECK = 0x10000004
_TERMINATE = 0x10000005
_OPEN_FORWARD = 0x10000006
_CLOSE_FORWARD = 0x10000007
_NEW_STDIO_FORWARD = 0x10000008
_OK = 0x80000001
_FAILURE = 0x80000003
_IS_ALIVE = 0x80000005
_SESSION_OPENED = 0x80000006
_NO_ESCAPE_CHARACTER = 0xFFFFFFFF
_FORWARD_TYPES = {ForwardType.LOCAL: 1, ForwardType.REMOTE: 2}
_LARGEST = 1 << 20

_held: weakref.WeakSet[ControlSocket] = weakref.WeakSet()


class ControlSocketError(Exception):
    """The master is gone, does not answer, or speaks something else."""


class RequestRefusedError(Exception):
    """The master, or the host behind it, refused a request."""


@attrs.frozen
class Reply:
    """One message of the master: its type, and what follows it."""

    type: int
    body: bytes

    def word(self, index: int) -> int:
        """Return one of the 32-bit words of the body."""
        start = 4 * index
        if len(self.body) < start + 4:
            raise ControlSocketError("the master's answer is too short")
        return int.from_bytes(self.body[start : start + 4], "big")

    @property
    def reason(self) -> str:
        """Return the reason of a refusal: a string behind the request's id."""
        return self.body[8 : 8 + self.word(1)].decode(errors="replace")


def encode(*fields: int | str) -> bytes:
    """Return a message: its length, then 32-bit words and strings that carry their length."""
    body = b"".join(
        struct.pack(">I", field) if isinstance(field, int) else struct.pack(">I", len(raw := field.encode())) + raw
        for field in fields
    )
    return struct.pack(">I", len(body)) + body


class ControlSocket:
    """One connection to a master; any thread may use it."""

    def __init__(self, path: Path, *, timeout: float) -> None:
        """Connect and exchange greetings within `timeout` seconds, which also bounds every later answer.

        Raises:
            FileNotFoundError: There is no such socket.
            ControlSocketError: The master did not answer as one does.
        """
        self._path = path
        self._timeout = timeout
        self._lock = threading.Lock()
        self._request = 0
        self._broken = False
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            hello = self._receive()
            if hello.type != _HELLO or hello.word(0) != _VERSION:
                raise ControlSocketError("the control socket does not speak version 4 of the multiplexing protocol")
            self._socket.sendall(encode(_HELLO, _VERSION))
        except FileNotFoundError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise ControlSocketError(f"no answer from the master: {error}") from error
        except ControlSocketError:
            self.close()
            raise
        _held.add(self)

    def check(self) -> int:
        """Return the master's process id if it answers.

        Raises:
            ControlSocketError: It does not, or not in time.
        """
        reply = self._ask(_ALIVE_CHECK)
        if reply.type != _IS_ALIVE:
            raise ControlSocketError(f"the master answered a check with {reply.type:#x}")
        return reply.word(1)

    def open_forward(self, forwarding: Forwarding) -> None:
        """Open a forwarding.

        Raises:
            RequestRefusedError: The port to listen on is taken, or the host does not allow it.
            ControlSocketError: The master is gone.
        """
        self._expect(_OK, self._ask(_OPEN_FORWARD, *_forward_fields(forwarding)))

    def close_forward(self, forwarding: Forwarding) -> None:
        """Close a forwarding; connections that it carries go on."""
        self._expect(_OK, self._ask(_CLOSE_FORWARD, *_forward_fields(forwarding)))

    def probe(self, host: str, port: int, *, timeout: float | None = None) -> None:
        """Open a connection from the host to an address that it can reach, and close it, within `timeout` seconds.

        Raises:
            RequestRefusedError: It could not be opened; the master's log says why.
            ControlSocketError: The master is gone, or the host does not answer.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            other = ControlSocket(self._path, timeout=self._timeout if timeout is None else timeout)
            try:
                descriptors = (theirs.fileno(), theirs.fileno())
                other._expect(_SESSION_OPENED, other._ask(_NEW_STDIO_FORWARD, "", host, port, descriptors=descriptors))
            finally:
                other.close()

    def open_session(self, command: str, stdin: int) -> ControlSocket:
        """Run a command in a session of its own, reading from a descriptor and printing nowhere.

        Returns:
            The connection that holds the session: the session ends with it.

        Raises:
            RequestRefusedError: The host allows no (further) session.
            ControlSocketError: The master is gone.
        """
        other = ControlSocket(self._path, timeout=self._timeout)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            # Fields: reserved, tty, X11 forwarding, agent forwarding, subsystem, escape character, terminal, command.
            fields = ("", 0, 0, 0, 0, _NO_ESCAPE_CHARACTER, "dumb", command)
            reply = other._ask(_NEW_SESSION, *fields, descriptors=(stdin, nowhere, nowhere))
            other._expect(_SESSION_OPENED, reply)
        except BaseException:
            other.close()
            raise
        finally:
            os.close(nowhere)
        return other

    def terminate(self) -> None:
        """Ask the master to end at once; it does, and does not answer."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(encode(_TERMINATE, 0))

    def wait_closed(self, seconds: float | None, wake: int | None = None) -> bool:
        """Wait until the master has closed its end, at most so many seconds, or until `wake` is readable; return which.

        Nothing else may be asked over this connection meanwhile.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.closed:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            found = readable([self._socket.fileno(), *([] if wake is None else [wake])], left)
            if not found or wake in found or left == 0:
                return self.closed
        return True

    def wait_message(self, seconds: float) -> None:
        """Wait until the master says something unasked, such as that a session has ended, or closes its end."""
        readable([self._socket.fileno()], seconds)

    @property
    def closed(self) -> bool:
        """Tell whether either side has closed the connection."""
        with self._lock:  # so that no other thread's answer is on its way, which would look like something to read
            try:
                while readable([self._socket.fileno()], 0):
                    if not self._socket.recv(1 << 16, 0 if self._broken else socket.MSG_PEEK):
                        return True
                    if not self._broken:
                        return False
            except (OSError, ValueError):
                return True
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Let go of the master."""
        with self._lock:
            self._socket.close()

    def forget(self) -> None:
        """Close the descriptor in a forked child, without a word to the master."""
        self._socket.close()

    def _ask(self, kind: int, *fields: int | str, descriptors: tuple[int, ...] = ()) -> Reply:
        with self._lock:
            if self._broken:
                raise ControlSocketError("the master did not answer before")
            self._request += 1
            # Until the answer is here, and for ever where it comes late, or Ctrl-C before it: it would be taken for
            # that of the next request. The socket stays open: its end is how we see the master's.
            self._broken = True
            try:
                self._socket.sendall(encode(kind, self._request, *fields))
                for descriptor in descriptors:
                    socket.send_fds(self._socket, [b"\0"], [descriptor])
                reply = self._receive()
            except OSError as error:
                raise ControlSocketError(f"no answer from the master: {error}") from error
            self._broken = False
            return reply

    def _receive(self) -> Reply:
        length = struct.unpack(">I", self._exactly(4))[0]
        if not 4 <= length <= _LARGEST:
            raise ControlSocketError("the master's answer is garbled")
        message = self._exactly(length)
        return Reply(int.from_bytes(message[:4], "big"), message[4:])

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise ControlSocketError("the master closed its control socket")
            data += piece
        return data

    @staticmethod
    def _expect(kind: int, reply: Reply) -> None:
        if reply.type != kind:
            raise RequestRefusedError(reply.reason or f"answer {reply.type:#x}")


def readable(descriptors: list[int], seconds: float | None) -> set[int]:
    """Return which descriptors can be read, waiting so long at most; by poll, because select ends at 1023."""
    if min(descriptors) < 0:
        return set()
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if seconds is None else math.ceil(seconds * 1000))}


def _forward_fields(forwarding: Forwarding) -> tuple[int | str, ...]:
    return (
        _FORWARD_TYPES[forwarding.type],
        forwarding.listen_host,
        forwarding.listen_port,
        forwarding.connect_host,
        forwarding.connect_port,
    )


def _forget_all() -> None:
    """Close what a fork copied, or the child would keep the parent's masters after the parent's death."""
    for held in list(_held):
        held.forget()
    _held.clear()


os.register_at_fork(after_in_child=_forget_all)
