"""The relay that plays a slow or broken network, in front of an echo server."""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING

import pytest

from lazycluster.testing import Relay
from tests.observation import EchoServer, receive_exactly
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def echo_port() -> Iterator[int]:
    with EchoServer() as server:
        yield server.port


def connect(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=30)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    return receive_exactly(connection, len(data))


def test_relay_forwards_bytes_and_their_end(echo_port: int) -> None:
    with Relay(echo_port) as relay, connect(relay) as connection:
        assert exchange(connection, b"hello") == b"hello"
        assert relay.connections == 1
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
        assert_eventually(lambda: relay.connections == 0, "the relay has closed the connection")


def test_relay_full_buffers_lose_no_bytes(echo_port: int) -> None:
    limit = 512 << 20
    with Relay(echo_port, delay=0.001) as relay, connect(relay) as connection:
        sent = received = 0
        while sent < limit and select.select([], [connection], [], 1.0)[1]:
            sent += connection.send(bytes(1 << 16))
        assert sent < limit, "the relay stops reading when its buffers are full"
        while received < sent and (piece := connection.recv(1 << 20)):
            received += len(piece)
    assert received == sent


def test_relay_delay_counts_in_each_direction(echo_port: int) -> None:
    with Relay(echo_port, delay=0.05) as relay, connect(relay) as connection:
        start = time.monotonic()
        assert exchange(connection, b"x") == b"x"
        assert time.monotonic() - start >= 0.1


def test_relay_delay_may_be_changed(echo_port: int) -> None:
    with Relay(echo_port, delay=1000.0) as relay, connect(relay) as connection:
        relay.delay = 0.0
        assert exchange(connection, b"x") == b"x"


def test_relay_cut_is_silent_until_restore(echo_port: int) -> None:
    with Relay(echo_port) as relay, connect(relay) as connection:
        assert exchange(connection, b"a") == b"a"
        relay.cut()
        connection.sendall(b"b")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        with connect(relay) as second:
            second.settimeout(0.1)
            second.sendall(b"c")
            with pytest.raises(TimeoutError):
                second.recv(1)
            relay.restore()
            second.settimeout(10)
            connection.settimeout(10)
            assert connection.recv(1) == b"b"
            assert second.recv(1) == b"c"


def test_relay_drop_resets_connections_and_takes_new_ones(echo_port: int) -> None:
    with Relay(echo_port) as relay, connect(relay) as connection:
        assert exchange(connection, b"a") == b"a"
        relay.drop()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        with connect(relay) as again:
            assert exchange(again, b"b") == b"b"


def test_relay_client_reset_ends_both_connections(echo_port: int) -> None:
    with Relay(echo_port) as relay:
        connection = connect(relay)
        assert exchange(connection, b"a") == b"a"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
        assert_eventually(lambda: relay.connections == 0, "the relay has closed the connection")


def test_relay_refused_target_closes_connection() -> None:
    with Relay(reserve_free_port()) as relay, connect(relay) as connection:
        assert connection.recv(1) == b""


def test_relay_close_may_be_called_twice(echo_port: int) -> None:
    relay = Relay(echo_port)
    relay.close()
    relay.close()
    with pytest.raises(ValueError):
        relay.cut()
