"""All tunnels of a host travel in one ssh: opened, broken, brought back and stopped, each by itself and all at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import ConnectError, ForwardingRefusedError, PortInUseError, Runtime, TunnelError
from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._model.timeouts import Timeouts
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.tunnel import Tunnel
from lazycluster._ssh.tunnel_manager import TunnelManager
from lazycluster.testing import LocalSshd
from tests.client_programs import ClientProgram, call_in_parallel, count_connections
from tests.observation import (
    EchoServer,
    assert_no_leaks,
    is_echoing,
    listening_addresses,
    receive_exactly,
    running_relay,
)
from tests.processes import command_line, is_alive, parent_by_pid
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd

COUNT = 10


class Ten:
    """A service, and tunnels to it in both directions by turns, all of one runtime."""

    def __init__(self, runtime: Runtime, service: EchoServer, count: int = COUNT) -> None:
        self.runtime, self.service = runtime, service
        self.ports: list[int] = []
        self.keys: list[str] = []
        for number in range(count):
            self.add(to=bool(number % 2))

    def add(self, *, to: bool) -> int:
        port = reserve_free_port()
        expose = self.runtime.expose_port_to_runtime if to else self.runtime.expose_port_from_runtime
        self.keys.append(expose(self.service.port, port))
        self.ports.append(port)
        return port

    @property
    def tunnels(self) -> list[Tunnel]:
        found = [self.runtime.get_process(key) for key in self.keys]
        assert all(isinstance(process, Tunnel) for process in found)
        return [process for process in found if isinstance(process, Tunnel)]

    @property
    def pid(self) -> int:
        """The one process behind them."""
        [pid] = {tunnel.pid for tunnel in self.tunnels if tunnel.is_alive()}
        assert pid is not None
        return pid

    def answering(self) -> list[bool]:
        return [is_echoing(port, timeout=2) for port in self.ports]

    def come_back(self, before: int) -> None:
        """Wait until all of them are back, in another process."""
        assert_eventually(lambda: all(tunnel.is_up for tunnel in self.tunnels), "all are up again", timeout=20)
        assert self.answering() == [True] * len(self.ports)
        assert self.pid != before


@pytest.fixture
def server(make_sshd: MakeSshd) -> LocalSshd:
    return make_sshd()


@pytest.fixture
def runtime(server: LocalSshd) -> Iterator[Runtime]:
    with Runtime(server.host, **server.connection_kwargs) as runtime:
        yield runtime


def masters() -> list[int]:
    """Return the ssh processes that stay in the background for this process; they call themselves by their sockets."""
    mark = str(Path(os.environ["TMPDIR"], "lazycluster-m-"))
    return [pid for pid in parent_by_pid() if mark in command_line(pid)]


def destination(server: LocalSshd) -> Destination:
    return Destination(server.host, config_file=server.config_file)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


# One -----------------------------------------------------------------------------------------------------------------


def test_ten_tunnels_are_one_process_and_one_connection(server: LocalSshd, runtime: Runtime) -> None:
    with assert_no_leaks(server), EchoServer() as service:
        connections, dialled, ours, running = server.connections(), count_connections(server), set(masters()), threads()
        ten = Ten(runtime, service)
        assert server.connections() == connections + 1
        assert count_connections(server) == dialled + 1
        assert set(masters()) - ours == {ten.pid}
        assert {name for name in threads() - running if "tunnel" in name} == {"tunnels to local"}
        assert ten.answering() == [True] * COUNT
        assert len(set(ten.keys)) == runtime.alive_process_count == COUNT
        call_in_parallel([lambda port=port: is_echoing(port, b"x" * 100_000) for port in ten.ports])  # type: ignore[misc]

        for number, key in enumerate(ten.keys[:-1], start=1):
            runtime.stop_process(key)
            assert listening_addresses(ten.ports[number - 1]) == []
            assert ten.answering() == [False] * number + [True] * (COUNT - number)
            assert server.connections() == connections + 1
        pid = ten.pid
        runtime.stop_process(ten.keys[-1])
        assert_eventually(lambda: not is_alive(pid), "its ssh is gone")
        assert set(masters()) == ours
        assert not any(listening_addresses(port) for port in ten.ports)
        assert_eventually(lambda: server.connections() == connections, "the connection ends")


@pytest.mark.parametrize("to", [True, False])
def test_stopping_one_frees_its_port_and_leaves_the_others_their_traffic(
    server: LocalSshd, runtime: Runtime, to: bool
) -> None:
    """Again and again with one port, and while connections are open through all of them."""
    with assert_no_leaks(server), EchoServer() as service, contextlib.ExitStack() as stack:
        ten = Ten(runtime, service)
        pid = ten.pid
        others = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 5)) for port in ten.ports]
        port = reserve_free_port()
        expose = runtime.expose_port_to_runtime if to else runtime.expose_port_from_runtime
        for stop in (Tunnel.terminate, Tunnel.kill) * 3:
            process = runtime.get_process(expose(service.port, port))
            assert isinstance(process, Tunnel)
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(b"open")
                assert receive_exactly(connection, 4) == b"open"
                stop(process)
                if stop is Tunnel.kill and to:  # which did not wait for the host
                    assert_eventually(lambda: listening_addresses(port) == [], "the port is free")
                assert listening_addresses(port) == []
                connection.sendall(b"on")  # ssh has no way to end it; it ends with its ends, or with the last tunnel
                assert receive_exactly(connection, 2) == b"on"
            for other in others:
                other.sendall(b"other")
                assert receive_exactly(other, 5) == b"other"
        assert ten.pid == pid
        for key in ten.keys:
            runtime.stop_process(key)
        for other in others:
            with contextlib.suppress(ConnectionResetError):
                assert other.recv(1) == b""


def test_eight_threads_that_expose_at_once_dial_once(server: LocalSshd, runtime: Runtime) -> None:
    with assert_no_leaks(server), EchoServer() as service:
        exposes = [runtime.expose_port_to_runtime, runtime.expose_port_from_runtime]
        for _ in range(3):
            dialled, ports = count_connections(server), [reserve_free_port() for _ in range(8)]
            keys = call_in_parallel(
                [lambda port=port, n=n: exposes[n % 2](service.port, port) for n, port in enumerate(ports)]  # type: ignore[misc]
            )
            assert count_connections(server) == dialled + 1
            assert all(is_echoing(port) for port in ports)
            call_in_parallel([lambda key=key: runtime.stop_process(key) for key in keys])  # type: ignore[misc]
            assert not any(listening_addresses(port) for port in ports)


def test_of_eight_threads_that_want_one_port_one_gets_it(server: LocalSshd, runtime: Runtime) -> None:
    with assert_no_leaks(server), EchoServer() as service:
        for expose in (runtime.expose_port_to_runtime, runtime.expose_port_from_runtime):
            port = reserve_free_port()

            def attempt(expose: Callable[[int, int], str] = expose, port: int = port) -> str | PortInUseError:
                try:
                    return expose(service.port, port)
                except PortInUseError as error:
                    return error

            outcomes = call_in_parallel([attempt] * 8)
            [key] = [outcome for outcome in outcomes if isinstance(outcome, str)]
            assert is_echoing(port)
            runtime.stop_process(key)
            assert listening_addresses(port) == []


def test_opening_and_stopping_at_once_again_and_again(server: LocalSshd, runtime: Runtime) -> None:
    """Also the last one, while somebody else opens the next."""
    with assert_no_leaks(server), EchoServer() as service:

        def work(number: int) -> None:
            expose = runtime.expose_port_to_runtime if number % 2 else runtime.expose_port_from_runtime
            port = reserve_free_port()
            for _ in range(5):
                key = expose(service.port, port)
                assert is_echoing(port)
                runtime.stop_process(key)
                assert listening_addresses(port) == []

        call_in_parallel([lambda number=number: work(number) for number in range(4)])  # type: ignore[misc]


# Refused -------------------------------------------------------------------------------------------------------------


def test_a_refused_one_among_good_ones_disturbs_none(make_sshd: MakeSshd) -> None:
    with EchoServer() as service:
        allowed, forbidden = reserve_free_port(), reserve_free_port()
        options = {"PermitListen": f"localhost:{allowed}", "PermitOpen": f"localhost:{service.port}"}
        server = make_sshd(options=options)
        with assert_no_leaks(server), Runtime(server.host, **server.connection_kwargs) as runtime:
            with pytest.raises(ForwardingRefusedError):
                runtime.expose_port_to_runtime(service.port, forbidden)
            ten = Ten(runtime, service, count=1)
            ten.keys.append(runtime.expose_port_to_runtime(service.port, allowed))
            ten.ports.append(allowed)
            pid = ten.pid
            for _ in range(2):
                with pytest.raises(ForwardingRefusedError) as caught:
                    runtime.expose_port_to_runtime(service.port, forbidden)
                assert caught.value.reason.endswith(f"remote port forwarding failed for listen port {forbidden}")
                port = reserve_free_port()
                with pytest.raises(ForwardingRefusedError) as caught:
                    runtime.expose_port_from_runtime(9, port)
                assert "administratively prohibited" in caught.value.reason
                assert listening_addresses(port) == []
                with pytest.raises(PortInUseError):
                    runtime.expose_port_from_runtime(service.port, ten.ports[0])
            assert ten.pid == pid
            assert ten.answering() == [True, True]


def test_one_that_was_refused_is_really_opened_when_it_is_asked_for_again(server: LocalSshd) -> None:
    """And not taken for open already, which ssh says of what it has once opened."""
    manager = TunnelManager(destination(server))
    with assert_no_leaks(server), EchoServer() as service:
        first = Tunnel(manager, [Forwarding(ForwardType.LOCAL, reserve_free_port(), service.port)])
        for kind in ForwardType:
            port = reserve_free_port()
            with socket.create_server(("127.0.0.1", port)), pytest.raises(PortInUseError):
                Tunnel(manager, [Forwarding(kind, port, service.port)])
            again = Tunnel(manager, [Forwarding(kind, port, service.port)])
            assert is_echoing(port)
            again.terminate()
        first.terminate()


def test_of_several_forwardings_of_one_tunnel_all_are_opened_or_none(server: LocalSshd) -> None:
    manager = TunnelManager(destination(server))
    with assert_no_leaks(server), EchoServer() as service, socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [reserve_free_port() for _ in range(4)]
        kinds = [ForwardType.LOCAL, ForwardType.REMOTE] * 2
        wanted = [Forwarding(kind, port, service.port) for kind, port in zip(kinds, ports, strict=True)]
        for kind in ForwardType:
            with pytest.raises(PortInUseError):
                Tunnel(manager, [*wanted, Forwarding(kind, taken.getsockname()[1], service.port)])
            assert not any(listening_addresses(port) for port in ports)
            assert manager.connection is None
        tunnel = Tunnel(manager, wanted)
        assert all(is_echoing(port) for port in ports)
        tunnel.terminate()
        assert not any(listening_addresses(port) for port in ports)


# Broken and brought back ---------------------------------------------------------------------------------------------


def test_all_come_back_when_the_connection_is_ended_from_the_host(
    server: LocalSshd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        assert_no_leaks(server),
        EchoServer() as service,
        Runtime(server.host, str(tmp_path), **server.connection_kwargs) as runtime,
    ):
        ten = Ten(runtime, service)
        first = ten.pid
        server.kill_connections()
        ten.come_back(first)
        said = "\n".join(caplog.messages)
        assert said.count("the connection is gone") == said.count("the connection is back") == 1
        assert "bringing back 10" in said
        assert "Connection refused" not in said, "that was something else"
        for key in ten.keys:
            runtime.stop_process(key)
        assert not any(listening_addresses(port) for port in ten.ports)
        assert runtime.run("true").ok


def test_all_come_back_when_their_ssh_is_killed(server: LocalSshd, runtime: Runtime) -> None:
    with assert_no_leaks(server), EchoServer() as service:
        ten = Ten(runtime, service)
        for _ in range(2):
            first, dialled = ten.pid, count_connections(server)
            os.kill(first, signal.SIGKILL)
            assert_eventually(lambda first=first: not is_alive(first), "it is gone")  # type: ignore[misc]
            ten.come_back(first)
            assert count_connections(server) == dialled + 1
        runtime.stop_process(ten.keys[0])
        assert ten.answering() == [False] + [True] * (COUNT - 1)
        for key in ten.keys:
            runtime.stop_process(key)


def test_one_whose_port_is_taken_meanwhile_is_tried_again_and_disturbs_none(
    server: LocalSshd, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """In both directions, which lie on one machine in this test."""
    with assert_no_leaks(server), EchoServer() as service, contextlib.ExitStack() as stack:
        ten = Ten(runtime, service, count=4)
        first = ten.pid
        os.kill(first, signal.SIGKILL)
        for port in ten.ports[:2]:
            thief = socket.socket()
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            assert_eventually(lambda thief=thief, port=port: _taken(thief, port), "it is taken")  # type: ignore[misc]
            stack.enter_context(thief)
        assert_eventually(
            lambda: [tunnel.is_up for tunnel in ten.tunnels] == [False, False, True, True], "two are back", 20
        )
        assert all(is_echoing(port) for port in ten.ports[2:])
        assert all(tunnel.is_alive() and tunnel.pid == ten.pid for tunnel in ten.tunnels)
        runtime.stop_process(ten.keys[2])
        added = ten.add(to=True)
        assert is_echoing(added)
        stack.close()
        assert_eventually(lambda: ten.tunnels[0].is_up and ten.tunnels[1].is_up, "the others are back", 20)
        assert ten.answering() == [True, True, False, True, True]
        assert sum("not open again yet" in message for message in caplog.messages) == 2
        assert sum("open again" in message for message in caplog.messages) == 4
        for key in ten.keys:
            runtime.stop_process(key)


def _taken(thief: socket.socket, port: int) -> bool:
    with contextlib.suppress(OSError):
        thief.bind(("127.0.0.1", port))
        thief.listen()
        return True
    return False


def test_who_exposes_while_the_link_is_down_gets_it_up(server: LocalSshd, tmp_path: Path) -> None:
    with (
        assert_no_leaks(server),
        EchoServer() as service,
        running_relay(server, tmp_path) as (relay, keywords),
        Runtime(server.host, **keywords) as runtime,
    ):
        ten = Ten(runtime, service, count=4)
        first = ten.pid
        relay.drop()
        port = ten.add(to=False)
        assert is_echoing(port)
        ten.come_back(first)


def test_one_stops_and_one_comes_while_the_host_is_gone(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd()
    with EchoServer() as service, running_relay(server, tmp_path) as (relay, keywords):
        manager = TunnelManager(Destination(server.host, config_file=Path(keywords["config_file"]), connect_timeout=5))
        with assert_no_leaks(server):
            ports = [reserve_free_port() for _ in range(4)]
            tunnels = [Tunnel(manager, [Forwarding(ForwardType.LOCAL, port, service.port)]) for port in ports[:3]]
            relay.cut()
            os.kill(tunnels[0].pid or 0, signal.SIGKILL)
            assert_eventually(lambda: not any(tunnel.is_up for tunnel in tunnels), "it is noticed")
            for stop, tunnel in ((Tunnel.terminate, tunnels[0]), (Tunnel.kill, tunnels[1])):
                begun = time.monotonic()
                stop(tunnel)
                assert time.monotonic() - begun < 3, "the log-in that hangs is for another"
                assert not tunnel.is_alive()
            with pytest.raises(ConnectError):
                Tunnel(manager, [Forwarding(ForwardType.LOCAL, ports[3], service.port)])
            assert tunnels[2].is_alive()
            relay.restore()
            assert_eventually(lambda: tunnels[2].is_up, "it is back", timeout=20)
            assert [is_echoing(port, timeout=1) for port in ports] == [False, False, True, False]
            tunnels[2].terminate()


def test_a_host_that_does_not_answer_costs_who_asks_and_nobody_else(server: LocalSshd, tmp_path: Path) -> None:
    with (
        assert_no_leaks(server),
        EchoServer() as service,
        running_relay(server, tmp_path) as (relay, keywords),
    ):
        manager = TunnelManager(
            Destination(server.host, config_file=Path(keywords["config_file"])), timeouts=Timeouts(control_socket=0.5)
        )
        first_port, ports = reserve_free_port(), {kind: reserve_free_port() for kind in ForwardType}
        first = Tunnel(manager, [Forwarding(ForwardType.REMOTE, first_port, service.port)])
        pid = first.pid
        relay.cut()
        for kind, port in ports.items():
            with pytest.raises(TunnelError, match="no answer from the master"):
                Tunnel(manager, [Forwarding(kind, port, service.port)])
        relay.restore()
        assert is_echoing(first_port)
        assert first.pid == pid
        assert_eventually(
            lambda: not any(listening_addresses(port) for port in ports.values()), "nothing is left of the others"
        )
        for kind, port in ports.items():
            tunnel = Tunnel(manager, [Forwarding(kind, port, service.port)])
            assert is_echoing(port)
            tunnel.terminate()
        first.terminate()


# Forks ---------------------------------------------------------------------------------------------------------------


def test_a_fork_neither_uses_nor_ends_the_tunnels_of_its_parent(server: LocalSshd) -> None:
    with assert_no_leaks(server), EchoServer() as service:
        ports = [reserve_free_port() for _ in range(3)]
        text = f"""
        import socket
        from lazycluster import Runtime
        def echoes(port):
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(b"hello")
                return connection.recv(5) == b"hello"
        runtime = Runtime({server.host!r}, config_file={str(server.config_file)!r})
        keys = [runtime.expose_port_from_runtime({service.port}, {ports[0]}),
                runtime.expose_port_to_runtime({service.port}, {ports[1]})]
        child = os.fork()
        if child == 0:
            say(*[runtime.get_process(key).is_alive() for key in keys])
            for key in keys:
                runtime.stop_process(key)
                runtime.get_process(key).kill()
            mine = runtime.expose_port_from_runtime({service.port}, {ports[2]})
            say(echoes({ports[2]}))
            runtime.stop_process(mine)
            runtime.cleanup()
            os._exit(0)
        os.waitpid(child, 0)
        say(*[runtime.get_process(key).is_up for key in keys], echoes({ports[0]}), echoes({ports[1]}))
        """
        with ClientProgram(text) as program:
            assert program.wait(30) == (0, "False False\nTrue\nTrue True True True\n", "")


# Many ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, pytest.param(0.01, marks=pytest.mark.soak)])
def test_a_hundred_of_them(server: LocalSshd, tmp_path: Path, delay: float, capsys: pytest.CaptureFixture[str]) -> None:
    """How long that takes is printed, and not judged."""
    count = 100 if not delay else 40
    with (
        assert_no_leaks(server),
        EchoServer() as service,
        running_relay(server, tmp_path) as (relay, keywords),
        Runtime(server.host, **keywords) as runtime,
    ):
        relay.delay = delay
        connections = server.connections()
        begun = time.monotonic()
        ten = Ten(runtime, service, count=count)
        opened = time.monotonic() - begun
        assert server.connections() == connections + 1
        assert all(ten.answering())
        first = ten.pid
        begun = time.monotonic()
        os.kill(first, signal.SIGKILL)
        assert_eventually(lambda: not ten.tunnels[0].is_up, "it is noticed")
        assert_eventually(lambda: all(tunnel.is_up for tunnel in ten.tunnels), "all are back", timeout=60)
        back = time.monotonic() - begun
        assert ten.pid != first
        begun = time.monotonic()
        for tunnel in ten.tunnels:
            tunnel.request_stop()
        for tunnel in ten.tunnels:
            tunnel.terminate()
        stopped = time.monotonic() - begun
        assert not any(listening_addresses(port) for port in ten.ports)
    with capsys.disabled():
        print(
            f"\n{count} tunnels at {2e3 * delay:g} ms round-trip time: opened in {opened:.2f} s, "
            f"brought back in {back:.2f} s, stopped in {stopped:.2f} s"
        )
