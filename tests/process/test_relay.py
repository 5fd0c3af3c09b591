"""The relay that plays the network, in front of a server of a few lines."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from lazycluster.testing import Relay
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def echo() -> Iterator[int]:
    """Return the port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            except OSError:
                pass

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def connect(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=10)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    got = b""
    while len(got) < len(data):
        got += connection.recv(1 << 16)
    return got


def test_bytes_go_there_and_back_and_the_end_too(echo: int) -> None:
    with Relay(echo) as relay, connect(relay) as connection:
        assert exchange(connection, b"hello") == b"hello"
        assert relay.connections == 1
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
        assert wait_until(lambda: relay.connections == 0, timeout=10)


def test_more_than_fits_on_the_way_goes_through(echo: int) -> None:
    size = 64 << 20
    with Relay(echo, delay=0.001) as relay, connect(relay) as connection:
        sender = threading.Thread(target=connection.sendall, args=(bytes(size),))
        sender.start()
        assert wait_until(lambda: relay.connections == 1, timeout=10)
        # Nobody reads, so that everything on the way fills up.
        assert wait_until(lambda: not all(f.can_read() for f in relay._flow_pairs[0]), timeout=10)
        got = 0
        while got < size:
            got += len(connection.recv(1 << 20))
        sender.join()
    assert got == size


def test_a_delay_counts_in_each_direction(echo: int) -> None:
    with Relay(echo, delay=0.05) as relay, connect(relay) as connection:
        start = time.monotonic()
        assert exchange(connection, b"x") == b"x"
        assert 0.1 <= time.monotonic() - start < 1
        relay.delay = 0
        start = time.monotonic()
        assert exchange(connection, b"y") == b"y"
        assert time.monotonic() - start < 0.1


def test_a_cut_cable_is_silent_and_can_be_mended(echo: int) -> None:
    with Relay(echo) as relay, connect(relay) as connection:
        assert exchange(connection, b"a") == b"a"
        relay.cut()
        connection.sendall(b"b")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        with connect(relay) as late:
            late.settimeout(0.1)
            late.sendall(b"c")
            with pytest.raises(TimeoutError):
                late.recv(1)
            relay.restore()
            late.settimeout(10)
            connection.settimeout(10)
            assert connection.recv(1) == b"b"
            assert late.recv(1) == b"c"


def test_dropping_resets_both_ends_and_takes_new_connections(echo: int) -> None:
    with Relay(echo) as relay, connect(relay) as connection:
        assert exchange(connection, b"a") == b"a"
        relay.drop()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        with connect(relay) as again:
            assert exchange(again, b"b") == b"b"


def test_a_client_that_resets_takes_the_other_side_with_it(echo: int) -> None:
    with Relay(echo) as relay:
        connection = connect(relay)
        assert exchange(connection, b"a") == b"a"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
        assert wait_until(lambda: relay.connections == 0, timeout=10)


def test_a_target_that_refuses_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with Relay(port) as relay, connect(relay) as connection:
        assert connection.recv(1) == b""


def test_closing_again_is_fine_and_using_it_then_is_not(echo: int) -> None:
    relay = Relay(echo)
    relay.close()
    relay.close()
    with pytest.raises(ValueError, match="closed"):
        relay.cut()
