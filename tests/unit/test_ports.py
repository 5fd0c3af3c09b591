"""Which ports are free, here and by the program that a host runs."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lazycluster._remote.ports import is_port_free, port_check_program

ADDRESSES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")]


@pytest.fixture(params=ADDRESSES, ids=["v4 loopback", "v4", "v6 loopback", "v6"])
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return a port on which somebody listens."""
    family, address = request.param
    try:
        listener = socket.socket(family)
        listener.bind((address, 0))
    except OSError:
        pytest.skip("this machine has no such address")
    with listener:
        listener.listen()
        yield listener.getsockname()[1]


def run(ports: list[int]) -> list[int]:
    argv = [sys.executable, "-I", "-S", "-c", port_check_program()]
    asked = "".join(f"{port}\n" for port in ports).encode()
    ended = subprocess.run(argv, input=asked, capture_output=True, check=True)
    return [int(line) for line in ended.stdout.split()]


def test_a_taken_port(taken: int) -> None:
    assert not is_port_free(taken)
    assert run([taken]) == []


def test_a_port_is_free_again_once_nobody_listens() -> None:
    with socket.socket() as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        client.connect(("127.0.0.1", port))
        served, _ = listener.accept()
        served.close()  # whose side then waits (TIME_WAIT)
    assert is_port_free(port)


def test_the_program_keeps_the_order() -> None:
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in (first, second)]
    ports = sorted(ports, reverse=True)
    assert run(ports) == ports
    assert run([]) == []


class Refusing:
    """A socket that cannot be bound."""

    def __init__(self, number: int) -> None:
        self.number = number

    def setsockopt(self, *_: object) -> None: ...

    def bind(self, _address: object) -> None:
        raise OSError(self.number, "refused")

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("number", "free"),
    [(errno.EADDRINUSE, False), (errno.EACCES, False), (errno.EADDRNOTAVAIL, True)],
)
def test_why_a_port_cannot_be_bound(number: int, free: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_: Refusing(number))
    assert is_port_free(80) is free


def test_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sockets(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "no such family")

    monkeypatch.setattr(socket, "socket", no_sockets)
    assert is_port_free(80)
