"""Can ports be forwarded, in either direction, and does traffic flow?"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator

import attrs

from lazycluster._doctor.findings import Finding, failed, ok
from lazycluster._functions.python_finder import start_python
from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._remote.ports import free_port
from lazycluster._transports.interface import Stoppable
from lazycluster._transports.per_command import PerStep
from lazycluster.exceptions import ForwardingRefusedError, PortInUseError

FROM_HOST, TO_HOST = "ports from the host", "ports to the host"
_PATIENCE = 10.0
_SIZE = 1 << 15
_ATTEMPTS = 3
_PORTS = range(20000, 32768)
"""Ports on the host to try, below those that Linux gives to clients (ip_local_port_range in ip(7))."""
_LOOPBACK = "127.0.0.1"
# Sends as many bytes as it was given and counts those that come back; argv: port, size.
_CLIENT = """\
import socket, sys
port, size = int(sys.argv[1]), int(sys.argv[2])
with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
    link.sendall(b"x" * size)
    link.shutdown(socket.SHUT_WR)
    got = 0
    while True:
        data = link.recv(65536)
        if not data:
            break
        got += len(data)
print(got)
"""

_DIRECTIONS = {
    FROM_HOST: ("-L", "expose_port_from_runtime()", "PermitOpen"),
    TO_HOST: ("-R", "expose_port_to_runtime()", "PermitListen"),
}


@attrs.frozen
class Traffic:
    """What went through a tunnel: `refused` says why there was none, `flaw` why it did not flow; '' for neither.

    `tried` is False where the tunnel was made and nothing could be sent through it.
    """

    what: str
    refused: str = ""
    flaw: str = ""
    tried: bool = True


def look_from_host(host: PerStep, server: tuple[str, int] | None, dialled: int | None = None) -> Traffic:
    """Open a port here (-L) that leads to the host's own sshd, and read its greeting through it.

    Where the host did not say its address (`server`), it is tried at the port that is dialled.
    """
    address, port = server or ("localhost", dialled or 22)
    what = f"sshd's greeting from {address}:{port} there"

    def make() -> tuple[Forwarding, int]:
        listen = free_port()
        return Forwarding(ForwardType.LOCAL, listen, port, connect_host=address), listen

    try:
        with _tunnel(host, make) as listen:
            greeting = _greeting(listen)
    except ForwardingRefusedError as error:
        return Traffic(what, refused=error.reason)
    if greeting.startswith(b"SSH-"):
        return Traffic(what)
    return Traffic(what, tried=server is not None, flaw="nothing came" if server is not None else "")


def look_to_host(host: PerStep, *, through_host: bool, python: str | None, has_python: bool) -> Traffic:
    """Open a port on the host (-R) that leads to an echo here, and send something through it and back.

    What connects to it on the host is a second tunnel where the host allows one (`through_host`), or a Python.
    """
    what = f"{_SIZE >> 10} KiB there and back"

    def make(port: int) -> tuple[Forwarding, int]:
        listen = secrets.choice(_PORTS)
        return Forwarding(ForwardType.REMOTE, listen, port), listen

    def make_back(port: int) -> tuple[Forwarding, int]:
        listen = free_port()
        return Forwarding(ForwardType.LOCAL, listen, port, connect_host=_LOOPBACK), listen

    with _echo() as echo:
        try:
            with _tunnel(host, lambda: make(echo)) as listen:
                if through_host:
                    with _tunnel(host, lambda: make_back(listen)) as back:
                        returned = _exchange(back)
                elif has_python:
                    returned = _exchange_there(host, listen, python)
                else:
                    return Traffic(what, tried=False)
        except ForwardingRefusedError as error:
            return Traffic(what, refused=error.reason)
    return Traffic(what, flaw="" if returned == _SIZE else f"{returned} of {_SIZE} bytes came back")


@contextlib.contextmanager
def _tunnel(host: PerStep, make: Callable[[], tuple[Forwarding, int]]) -> Iterator[int]:
    """Give the port on which a tunnel listens, another one where the first is taken.

    Of a port of its own (-R) a host does not say why it refuses it.
    """
    for attempt in range(_ATTEMPTS):
        forwarding, listen = make()
        try:
            tunnel: Stoppable = host.expose(forwarding, None)
        except (PortInUseError, ForwardingRefusedError) as error:
            certain = isinstance(error, ForwardingRefusedError) and forwarding.type is ForwardType.LOCAL
            if certain or attempt == _ATTEMPTS - 1:
                raise
            continue
        try:
            yield listen
        finally:
            tunnel.terminate()
        return


def _greeting(port: int) -> bytes:
    data = b""
    with contextlib.suppress(OSError), socket.create_connection((_LOOPBACK, port), timeout=_PATIENCE) as link:
        while len(data) < 4 and (piece := link.recv(4 - len(data))):
            data += piece
    return data


def _exchange(port: int) -> int:
    """Send bytes to a port here, and return how many of them came back as they were."""
    sent = os.urandom(_SIZE)
    got = bytearray()
    with contextlib.suppress(OSError), socket.create_connection((_LOOPBACK, port), timeout=_PATIENCE) as link:
        link.sendall(sent)
        link.shutdown(socket.SHUT_WR)
        while len(got) < _SIZE and (piece := link.recv(_SIZE)):
            got += piece
    return sum(ours == theirs for ours, theirs in zip(sent, got, strict=False))


def _exchange_there(host: PerStep, port: int, python: str | None) -> int:
    """Send bytes to a port on the host, and return how many came back."""
    program = f"import sys; sys.argv[1:] = [{str(port)!r}, {str(_SIZE)!r}]\n{_CLIENT}"
    said = host.shell(start_python(python, program), "try a port").stdout.strip()
    return int(said) if said.isdecimal() else 0


@contextlib.contextmanager
def _echo() -> Iterator[int]:
    """Give the port of a server here that returns what it gets, to one client after the other."""
    with socket.create_server((_LOOPBACK, 0)) as server:
        thread = threading.Thread(target=_serve, args=(server,), name="lazycluster-echo", daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            # What wakes a thread in accept() on every system is a client.
            with contextlib.suppress(OSError), socket.create_connection(server.getsockname()[:2], timeout=1):
                server.close()
            thread.join(_PATIENCE)


def _serve(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while server.fileno() >= 0:
            client, _ = server.accept()
            client.settimeout(_PATIENCE)
            with client, contextlib.suppress(OSError):
                while data := client.recv(_SIZE):
                    client.sendall(data)


def judge_traffic(check: str, traffic: Traffic) -> Finding:
    """Judge a direction of forwarding."""
    flag, use, keyword = _DIRECTIONS[check]
    if traffic.refused:
        return failed(
            check,
            f"{flag} is refused: {traffic.refused}",
            f"{use} needs it: see AllowTcpForwarding, {keyword} and DisableForwarding in its sshd_config, and the "
            "options in front of the key in its authorized_keys.",
        )
    if traffic.flaw:
        return failed(
            check, f"{flag} is allowed, and {traffic.flaw}", f"See {keyword} in its sshd_config, and its firewall."
        )
    if not traffic.tried:
        return ok(check, f"{flag} is allowed; nothing could be sent through it to try")
    return ok(check, f"{flag}: {traffic.what}")
