"""Checks for free ports: on this machine, and by the program that a host runs."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lazycluster._remote.ports import is_port_free, port_check_program
from tests.reserved_ports import reserve_free_port

ADDRESSES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")]


@pytest.fixture(params=ADDRESSES, ids=["IPv4 loopback", "IPv4 any", "IPv6 loopback", "IPv6 any"])
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return a port on which a socket listens."""
    family, address = request.param
    try:
        listener = socket.socket(family)
        listener.bind((address, 0))
    except OSError:
        pytest.skip("this machine has no such address")
    with listener:
        listener.listen()
        yield listener.getsockname()[1]


def run_port_check(ports: list[int]) -> list[int]:
    argv = [sys.executable, "-I", "-S", "-c", port_check_program()]
    stdin = "".join(f"{port}\n" for port in ports).encode()
    ended = subprocess.run(argv, input=stdin, capture_output=True, check=True)
    return [int(line) for line in ended.stdout.split()]


def test_is_port_free_taken_port(taken: int) -> None:
    assert not is_port_free(taken)
    assert run_port_check([taken]) == []


def test_is_port_free_after_listener_closed() -> None:
    with socket.socket() as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        client.connect(("127.0.0.1", port))
        served, _ = listener.accept()
        served.close()  # this side is then in TIME_WAIT (tcp(7))
    assert is_port_free(port)


def test_port_check_program_keeps_the_order() -> None:
    ports = sorted((reserve_free_port() for _ in range(2)), reverse=True)
    assert run_port_check(ports) == ports
    assert run_port_check([]) == []


class UnbindableSocket:
    def __init__(self, number: int) -> None:
        self.number = number

    def setsockopt(self, *_: object) -> None: ...

    def bind(self, _address: object) -> None:
        raise OSError(self.number, "refused")

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("number", "free"),
    [(errno.EADDRINUSE, False), (errno.EACCES, False), (errno.EADDRNOTAVAIL, True)],
    ids=["in use", "no permission", "no such address"],
)
def test_is_port_free_bind_error_decides(number: int, free: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_: UnbindableSocket(number))
    assert is_port_free(80) is free


def test_is_port_free_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sockets(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "no such family")

    monkeypatch.setattr(socket, "socket", no_sockets)
    assert is_port_free(80)
