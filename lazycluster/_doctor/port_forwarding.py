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
from lazycluster._functions.python_finder import exec_python_script
from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._remote.ports import find_free_port
from lazycluster._transports.interface import Stoppable
from lazycluster._transports.per_command import PerCommandTransport
from lazycluster.exceptions import ForwardingRefusedError, PortInUseError

PORTS_FROM_HOST_CHECK, PORTS_TO_HOST_CHECK = "ports from the host", "ports to the host"
_SOCKET_TIMEOUT_SECONDS = 10.0
_ECHO_BYTES = 1 << 15
_MAX_PORT_ATTEMPTS = 3
_HOST_PORT_RANGE = range(20000, 32768)
"""Ports on the host to try, below those that Linux gives to clients (ip_local_port_range in ip(7))."""
_LOOPBACK_ADDRESS = "127.0.0.1"
# Sends as many bytes as it was given and counts those that come back; argv: port, size.
_ECHO_CLIENT_PROGRAM = """\
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

_FORWARDING_DIRECTIONS = {
    PORTS_FROM_HOST_CHECK: ("-L", "expose_port_from_runtime()", "PermitOpen"),
    PORTS_TO_HOST_CHECK: ("-R", "expose_port_to_runtime()", "PermitListen"),
}


@attrs.frozen
class ForwardingProbe:
    """The test of a tunnel: `refusal` says why there was no tunnel, `failure` why no traffic flowed; '' for neither.

    `is_tested` is False if the tunnel was made and nothing could be sent through it.
    """

    description: str
    refusal: str = ""
    failure: str = ""
    is_tested: bool = True


def probe_port_from_host(
    transport: PerCommandTransport, server_address: tuple[str, int] | None, ssh_port: int | None
) -> ForwardingProbe:
    """Open a local port (-L) that leads to the host's own sshd, and read its identification (RFC 4253, 4.2).

    If the host's own address is unknown (`server_address`), its localhost is tried, at the port to which ssh connects.
    """
    address, port = server_address or ("localhost", ssh_port or 22)
    description = f"sshd's identification from {address}:{port} there"

    def make_forwarding() -> tuple[Forwarding, int]:
        listen = find_free_port()
        return Forwarding(ForwardType.LOCAL, listen, port, connect_host=address), listen

    try:
        with _open_tunnel(transport, make_forwarding) as listen:
            identification = _read_identification(listen)
    except ForwardingRefusedError as error:
        return ForwardingProbe(description, refusal=error.reason)
    if identification.startswith(b"SSH-"):
        return ForwardingProbe(description)
    return ForwardingProbe(
        description, is_tested=server_address is not None, failure="nothing came" if server_address is not None else ""
    )


def probe_port_to_host(
    transport: PerCommandTransport, *, use_second_tunnel: bool, python: str | None, has_python: bool
) -> ForwardingProbe:
    """Open a port on the host (-R) that leads to a local echo server, and send bytes through it and back.

    A second tunnel connects to it on the host if the host allows one (`use_second_tunnel`), otherwise a Python does.
    """
    description = f"{_ECHO_BYTES >> 10} KiB there and back"

    def make_forwarding(port: int) -> tuple[Forwarding, int]:
        listen = secrets.choice(_HOST_PORT_RANGE)
        return Forwarding(ForwardType.REMOTE, listen, port), listen

    def make_return_forwarding(port: int) -> tuple[Forwarding, int]:
        listen = find_free_port()
        return Forwarding(ForwardType.LOCAL, listen, port, connect_host=_LOOPBACK_ADDRESS), listen

    with _echo_server() as echo_port:
        try:
            with _open_tunnel(transport, lambda: make_forwarding(echo_port)) as listen:
                if use_second_tunnel:
                    with _open_tunnel(transport, lambda: make_return_forwarding(listen)) as return_port:
                        returned = _count_echoed_bytes(return_port)
                elif has_python:
                    returned = _count_echoed_bytes_on_host(transport, listen, python)
                else:
                    return ForwardingProbe(description, is_tested=False)
        except ForwardingRefusedError as error:
            return ForwardingProbe(description, refusal=error.reason)
    return ForwardingProbe(
        description, failure="" if returned == _ECHO_BYTES else f"{returned} of {_ECHO_BYTES} bytes came back"
    )


@contextlib.contextmanager
def _open_tunnel(
    transport: PerCommandTransport, make_forwarding: Callable[[], tuple[Forwarding, int]]
) -> Iterator[int]:
    """Yield the port on which a tunnel listens, another one if the first is in use.

    A host does not say why it refuses one of its own ports (-R), so after every such refusal another one is tried.
    """
    for attempt in range(_MAX_PORT_ATTEMPTS):
        forwarding, listen = make_forwarding()
        try:
            tunnel: Stoppable = transport.open_tunnel(forwarding, None)
        except (PortInUseError, ForwardingRefusedError) as error:
            is_final = isinstance(error, ForwardingRefusedError) and forwarding.type is ForwardType.LOCAL
            if is_final or attempt == _MAX_PORT_ATTEMPTS - 1:
                raise
            continue
        try:
            yield listen
        finally:
            tunnel.terminate()
        return


def _read_identification(port: int) -> bytes:
    data = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((_LOOPBACK_ADDRESS, port), timeout=_SOCKET_TIMEOUT_SECONDS) as client,
    ):
        while len(data) < 4 and (piece := client.recv(4 - len(data))):
            data += piece
    return data


def _count_echoed_bytes(port: int) -> int:
    """Send bytes to a local port, and return how many of them came back as they were."""
    sent = os.urandom(_ECHO_BYTES)
    got = bytearray()
    with (
        contextlib.suppress(OSError),
        socket.create_connection((_LOOPBACK_ADDRESS, port), timeout=_SOCKET_TIMEOUT_SECONDS) as client,
    ):
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        while len(got) < _ECHO_BYTES and (piece := client.recv(_ECHO_BYTES)):
            got += piece
    return sum(ours == theirs for ours, theirs in zip(sent, got, strict=False))


def _count_echoed_bytes_on_host(transport: PerCommandTransport, port: int, python: str | None) -> int:
    """Send bytes to a port on the host, and return how many came back."""
    program = f"import sys; sys.argv[1:] = [{str(port)!r}, {str(_ECHO_BYTES)!r}]\n{_ECHO_CLIENT_PROGRAM}"
    count = transport.run_sh(exec_python_script(python, program), "try a port").stdout.strip()
    return int(count) if count.isdecimal() else 0


@contextlib.contextmanager
def _echo_server() -> Iterator[int]:
    """Yield the port of a local echo server, which serves one client after the other."""
    with socket.create_server((_LOOPBACK_ADDRESS, 0)) as server:
        thread = threading.Thread(target=_serve_echo, args=(server,), name="lazycluster-echo", daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            # A client wakes a thread in accept() on every system.
            with contextlib.suppress(OSError), socket.create_connection(server.getsockname()[:2], timeout=1):
                server.close()
            thread.join(_SOCKET_TIMEOUT_SECONDS)


def _serve_echo(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while server.fileno() >= 0:
            client, _ = server.accept()
            client.settimeout(_SOCKET_TIMEOUT_SECONDS)
            with client, contextlib.suppress(OSError):
                while data := client.recv(_ECHO_BYTES):
                    client.sendall(data)


def judge_forwarding(check: str, probe: ForwardingProbe) -> Finding:
    """Judge a direction of forwarding."""
    flag, use, keyword = _FORWARDING_DIRECTIONS[check]
    if probe.refusal:
        return failed(
            check,
            f"{flag} is refused: {probe.refusal}",
            f"{use} needs it: see AllowTcpForwarding, {keyword} and DisableForwarding in its sshd_config, and the "
            "options in front of the key in its authorized_keys.",
        )
    if probe.failure:
        return failed(
            check, f"{flag} is allowed, and {probe.failure}", f"See {keyword} in its sshd_config, and its firewall."
        )
    if not probe.is_tested:
        return ok(check, f"{flag} is allowed; nothing could be sent through it to try")
    return ok(check, f"{flag}: {probe.description}")
