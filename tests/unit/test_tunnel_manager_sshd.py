"""The tunnels of one host over a real connection, with time limits and forwardings that a runtime does not choose."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import ConnectError, InvalidRuntimeError, PortInUseError, Runtime, SessionRefusedError, TunnelError
from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._model.timeouts import Timeouts
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.tunnel import Tunnel
from lazycluster._ssh.tunnel_manager import TunnelManager
from tests.observation import EchoServer, assert_no_leaks, is_echoing, listening_addresses, running_relay
from tests.processes import is_alive
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from lazycluster.testing import LocalSshd
    from tests.sshd_fixtures import MakeSshd


@pytest.fixture
def server(make_sshd: MakeSshd) -> LocalSshd:
    return make_sshd()


def destination(server: LocalSshd) -> Destination:
    return Destination(server.host, config_file=server.config_file)


def test_tunnel_host_without_sessions_opens(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxSessions": "0"})
    with assert_no_leaks(server), EchoServer() as service:
        for kind in ForwardType:
            port = reserve_free_port()
            tunnel = Tunnel(TunnelManager(destination(server)), [Forwarding(kind, port, service.port)])
            assert is_echoing(port)
            tunnel.terminate()
            assert listening_addresses(port) == []
    with pytest.raises(InvalidRuntimeError) as caught:
        Runtime(server.host, **server.connection_kwargs)
    assert isinstance(caught.value.__cause__, SessionRefusedError)


def test_tunnel_stopped_ssh_is_replaced(server: LocalSshd) -> None:
    manager = TunnelManager(
        destination(server), timeouts=Timeouts(tunnel_check_interval=0.2, control_socket=2.0, lifeline_close=1.0)
    )
    with assert_no_leaks(server), EchoServer() as service:
        port = reserve_free_port()
        tunnel = Tunnel(manager, [Forwarding(ForwardType.LOCAL, port, service.port)])
        first_pid = tunnel.pid
        assert first_pid is not None
        os.kill(first_pid, signal.SIGSTOP)

        assert_eventually(lambda: tunnel.is_up and tunnel.pid not in {first_pid, None}, "the tunnel is open again", 60)
        assert is_echoing(port)
        assert not is_alive(first_pid)
        tunnel.terminate()


def test_tunnel_refused_once_opens_at_the_next_request(server: LocalSshd) -> None:
    """ssh reports a forwarding that it has once been asked for as open."""
    manager = TunnelManager(destination(server))
    with assert_no_leaks(server), EchoServer() as service:
        first = Tunnel(manager, [Forwarding(ForwardType.LOCAL, reserve_free_port(), service.port)])
        for kind in ForwardType:
            port = reserve_free_port()
            with socket.create_server(("127.0.0.1", port)), pytest.raises(PortInUseError):
                Tunnel(manager, [Forwarding(kind, port, service.port)])
            second = Tunnel(manager, [Forwarding(kind, port, service.port)])
            assert is_echoing(port)
            second.terminate()
        first.terminate()


def test_tunnel_of_several_forwardings_opens_all_or_none(server: LocalSshd) -> None:
    manager = TunnelManager(destination(server))
    with assert_no_leaks(server), EchoServer() as service, socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [reserve_free_port() for _ in range(4)]
        kinds = [ForwardType.LOCAL, ForwardType.REMOTE] * 2
        forwardings = [Forwarding(kind, port, service.port) for kind, port in zip(kinds, ports, strict=True)]
        for kind in ForwardType:
            with pytest.raises(PortInUseError):
                Tunnel(manager, [*forwardings, Forwarding(kind, taken.getsockname()[1], service.port)])
            assert not any(listening_addresses(port) for port in ports)
            assert manager.connection is None
        tunnel = Tunnel(manager, forwardings)
        assert all(is_echoing(port) for port in ports)
        tunnel.terminate()
        assert not any(listening_addresses(port) for port in ports)


def test_tunnels_stop_and_start_while_host_is_unreachable(server: LocalSshd, tmp_path: Path) -> None:
    with EchoServer() as service, running_relay(server, tmp_path) as (relay, keywords):
        manager = TunnelManager(Destination(server.host, config_file=Path(keywords["config_file"]), connect_timeout=5))
        with assert_no_leaks(server):
            ports = [reserve_free_port() for _ in range(4)]
            tunnels = [Tunnel(manager, [Forwarding(ForwardType.LOCAL, port, service.port)]) for port in ports[:3]]
            pid = tunnels[0].pid
            assert pid is not None
            relay.cut()
            os.kill(pid, signal.SIGKILL)
            assert_eventually(lambda: not any(tunnel.is_up for tunnel in tunnels), "the loss is noticed")
            tunnels[0].terminate()
            tunnels[1].kill()
            assert [tunnel.is_alive() for tunnel in tunnels] == [False, False, True]
            with pytest.raises(ConnectError):
                Tunnel(manager, [Forwarding(ForwardType.LOCAL, ports[3], service.port)])
            assert tunnels[2].is_alive()
            relay.restore()
            assert_eventually(lambda: tunnels[2].is_up, "the third tunnel is open again", timeout=60)
            assert [is_echoing(port, timeout=1) for port in ports] == [False, False, True, False]
            tunnels[2].terminate()


def test_tunnel_without_answer_fails_and_keeps_others(server: LocalSshd, tmp_path: Path) -> None:
    with assert_no_leaks(server), EchoServer() as service, running_relay(server, tmp_path) as (relay, keywords):
        manager = TunnelManager(
            Destination(server.host, config_file=Path(keywords["config_file"])), timeouts=Timeouts(control_socket=2.0)
        )
        first_port, ports = reserve_free_port(), {kind: reserve_free_port() for kind in ForwardType}
        first = Tunnel(manager, [Forwarding(ForwardType.REMOTE, first_port, service.port)])
        pid = first.pid
        relay.cut()
        for kind, port in ports.items():
            with pytest.raises(TunnelError) as caught:
                Tunnel(manager, [Forwarding(kind, port, service.port)])
            assert caught.value.host == server.host
        relay.restore()
        assert is_echoing(first_port)
        assert first.pid == pid
        assert_eventually(
            lambda: not any(listening_addresses(port) for port in ports.values()), "the failed tunnels leave no port"
        )
        for kind, port in ports.items():
            tunnel = Tunnel(manager, [Forwarding(kind, port, service.port)])
            assert is_echoing(port)
            tunnel.terminate()
        first.terminate()
