"""The tunnels of a host share one ssh process: opened, lost, restored and stopped, one at a time and all at once."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import ForwardingRefusedError, PortInUseError, Runtime
from lazycluster.managed import ManagedProcess
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
from tests.processes import find_local_pids, is_alive
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd

COUNT = 10


class TunnelSet:
    """Tunnels of one runtime to one service; every second one listens on the host."""

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
    def processes(self) -> list[ManagedProcess]:
        return [self.runtime.get_process(key) for key in self.keys]

    @property
    def pid(self) -> int:
        """The one ssh process of the tunnels."""
        [pid] = {process.pid for process in self.processes if process.is_alive()}
        assert pid is not None
        return pid

    def are_echoing(self) -> list[bool]:
        return [is_echoing(port, timeout=2) for port in self.ports]

    def wait_until_restored(self, lost_pid: int) -> None:
        """Wait until all of the tunnels are open again, in another process."""
        assert_eventually(lambda: self.processes[0].pid != lost_pid, "the loss is noticed", timeout=30)
        assert_eventually(lambda: all(map(is_echoing, self.ports)), "all tunnels are open again", timeout=60)
        assert self.pid != lost_pid

    def stop(self) -> None:
        for key in self.keys:
            self.runtime.stop_process(key)


@pytest.fixture
def server(make_sshd: MakeSshd) -> LocalSshd:
    return make_sshd()


@pytest.fixture
def runtime(server: LocalSshd) -> Iterator[Runtime]:
    with Runtime(server.host, **server.connection_kwargs) as runtime:
        yield runtime


def find_master_pids() -> set[int]:
    """Return the ssh processes of this run that stay in the background; the path of the socket is their title."""
    return {*find_local_pids(str(Path(os.environ["TMPDIR"], "lazycluster-m-")))}


def tunnel_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tunnels to")]


# Shared --------------------------------------------------------------------------------------------------------------


def test_tunnels_share_one_process_and_one_connection(server: LocalSshd, runtime: Runtime) -> None:
    with assert_no_leaks(server), EchoServer() as service:
        connections, log_ins, masters = server.connections(), count_connections(server), find_master_pids()
        tunnels = TunnelSet(runtime, service)
        assert server.connections() == connections + 1
        assert count_connections(server) == log_ins + 1
        assert find_master_pids() - masters == {tunnels.pid}
        assert tunnel_threads() == ["tunnels to local"]
        assert tunnels.are_echoing() == [True] * COUNT
        assert len(set(tunnels.keys)) == runtime.alive_process_count == COUNT
        call_in_parallel([lambda port=port: is_echoing(port, b"x" * 100_000) for port in tunnels.ports])  # type: ignore[misc]

        for number, key in enumerate(tunnels.keys[:-1], start=1):
            runtime.stop_process(key)
            assert listening_addresses(tunnels.ports[number - 1]) == []
            assert tunnels.are_echoing() == [False] * number + [True] * (COUNT - number)
            assert server.connections() == connections + 1
        pid = tunnels.pid
        runtime.stop_process(tunnels.keys[-1])
        assert_eventually(lambda: not is_alive(pid), "the ssh process has ended")
        assert find_master_pids() == masters
        assert not any(listening_addresses(port) for port in tunnels.ports)
        assert_eventually(lambda: server.connections() == connections, "the connection ends")


@pytest.mark.parametrize("to", [True, False], ids=["to the host", "from the host"])
def test_tunnel_stop_frees_port_and_keeps_other_traffic(server: LocalSshd, runtime: Runtime, to: bool) -> None:
    """Several times with one port, and while connections are open through all tunnels."""
    with assert_no_leaks(server), EchoServer() as service, contextlib.ExitStack() as stack:
        tunnels = TunnelSet(runtime, service)
        pid = tunnels.pid
        others = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 5)) for port in tunnels.ports]
        port = reserve_free_port()
        expose = runtime.expose_port_to_runtime if to else runtime.expose_port_from_runtime
        for kill in (False, True) * 3:
            process = runtime.get_process(expose(service.port, port))
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(b"open")
                assert receive_exactly(connection, 4) == b"open"
                if kill:
                    process.kill()
                    assert_eventually(lambda: listening_addresses(port) == [], "the port is free")
                else:
                    process.terminate()
                assert listening_addresses(port) == []
                connection.sendall(b"on")  # ssh cannot end an open connection, only its ends or the last tunnel can
                assert receive_exactly(connection, 2) == b"on"
            for other in others:
                other.sendall(b"other")
                assert receive_exactly(other, 5) == b"other"
        assert tunnels.pid == pid
        for key in tunnels.keys:
            runtime.stop_process(key)
        for other in others:
            with contextlib.suppress(ConnectionResetError):
                assert other.recv(1) == b""


def test_tunnels_opened_at_once_share_one_log_in(server: LocalSshd, runtime: Runtime) -> None:
    with assert_no_leaks(server), EchoServer() as service:
        exposes = [runtime.expose_port_to_runtime, runtime.expose_port_from_runtime]
        for _ in range(3):
            log_ins, ports = count_connections(server), [reserve_free_port() for _ in range(8)]
            keys = call_in_parallel(
                [lambda port=port, n=n: exposes[n % 2](service.port, port) for n, port in enumerate(ports)]  # type: ignore[misc]
            )
            assert count_connections(server) == log_ins + 1
            assert all(is_echoing(port) for port in ports)
            call_in_parallel([lambda key=key: runtime.stop_process(key) for key in keys])  # type: ignore[misc]
            assert not any(listening_addresses(port) for port in ports)


def test_tunnels_to_one_port_at_once_one_gets_it(server: LocalSshd, runtime: Runtime) -> None:
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


def test_tunnels_opened_and_stopped_at_once(server: LocalSshd, runtime: Runtime) -> None:
    """Also the last tunnel, while another thread opens the next."""
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


def test_tunnel_refused_keeps_other_tunnels(make_sshd: MakeSshd) -> None:
    with EchoServer() as service:
        allowed, forbidden = reserve_free_port(), reserve_free_port()
        options = {"PermitListen": f"localhost:{allowed}", "PermitOpen": f"localhost:{service.port}"}
        server = make_sshd(options=options)
        with assert_no_leaks(server), Runtime(server.host, **server.connection_kwargs) as runtime:
            with pytest.raises(ForwardingRefusedError):
                runtime.expose_port_to_runtime(service.port, forbidden)
            tunnels = TunnelSet(runtime, service, count=1)
            tunnels.keys.append(runtime.expose_port_to_runtime(service.port, allowed))
            tunnels.ports.append(allowed)
            pid = tunnels.pid
            for _ in range(2):
                with pytest.raises(ForwardingRefusedError) as caught:
                    runtime.expose_port_to_runtime(service.port, forbidden)
                assert str(forbidden) in caught.value.forwarding
                port = reserve_free_port()
                with pytest.raises(ForwardingRefusedError) as caught:
                    runtime.expose_port_from_runtime(9, port)
                assert str(port) in caught.value.forwarding
                assert listening_addresses(port) == []
                with pytest.raises(PortInUseError):
                    runtime.expose_port_from_runtime(service.port, tunnels.ports[0])
            assert tunnels.pid == pid
            assert tunnels.are_echoing() == [True, True]


# Lost connections ----------------------------------------------------------------------------------------------------


def test_tunnels_reopen_after_host_ends_connection(
    server: LocalSshd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        assert_no_leaks(server),
        EchoServer() as service,
        Runtime(server.host, str(tmp_path), **server.connection_kwargs) as runtime,
    ):
        tunnels = TunnelSet(runtime, service)
        first_pid = tunnels.pid
        server.kill_connections()
        tunnels.wait_until_restored(first_pid)
        warnings = [message for message in caplog.messages if message.startswith("tunnels to local")]
        assert len(warnings) == 2, "one for the loss and one for the new connection"
        tunnels.stop()
        assert not any(listening_addresses(port) for port in tunnels.ports)
        assert runtime.run("true").ok


def test_tunnels_reopen_after_their_ssh_is_killed(server: LocalSshd, runtime: Runtime) -> None:
    with assert_no_leaks(server), EchoServer() as service:
        tunnels = TunnelSet(runtime, service)
        for _ in range(2):
            first_pid, log_ins = tunnels.pid, count_connections(server)
            os.kill(first_pid, signal.SIGKILL)
            tunnels.wait_until_restored(first_pid)
            assert count_connections(server) == log_ins + 1
        runtime.stop_process(tunnels.keys[0])
        assert tunnels.are_echoing() == [False] + [True] * (COUNT - 1)
        tunnels.stop()


def test_tunnel_port_taken_while_lost_is_retried(server: LocalSshd, tmp_path: Path) -> None:
    with (
        assert_no_leaks(server),
        EchoServer() as service,
        running_relay(server, tmp_path) as (relay, keywords),
        Runtime(server.host, **keywords) as runtime,
        contextlib.ExitStack() as stack,
    ):
        tunnels = TunnelSet(runtime, service, count=4)
        first_pid = tunnels.pid
        relay.cut()  # so that no new connection opens the ports before they are taken
        relay.drop()
        for port in tunnels.ports[:2]:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            assert_eventually(functools.partial(try_listen, listener, port), "the port is taken", timeout=30)
        relay.restore()
        assert_eventually(lambda: all(map(is_echoing, tunnels.ports[2:])), "two tunnels are open again", timeout=60)
        assert all(process.is_alive() for process in tunnels.processes)
        assert tunnels.pid != first_pid
        runtime.stop_process(tunnels.keys[2])
        added = tunnels.add(to=True)
        assert is_echoing(added)
        stack.close()
        expected = [True, True, False, True, True]
        assert_eventually(lambda: tunnels.are_echoing() == expected, "the other tunnels are open again", timeout=60)
        tunnels.stop()


def try_listen(listener: socket.socket, port: int) -> bool:
    with contextlib.suppress(OSError):
        listener.bind(("127.0.0.1", port))
        listener.listen()
        return True
    return False


def test_tunnel_opened_while_connection_lost_restores_all(server: LocalSshd, tmp_path: Path) -> None:
    with (
        assert_no_leaks(server),
        EchoServer() as service,
        running_relay(server, tmp_path) as (relay, keywords),
        Runtime(server.host, **keywords) as runtime,
    ):
        tunnels = TunnelSet(runtime, service, count=4)
        first_pid = tunnels.pid
        relay.drop()
        port = tunnels.add(to=False)
        assert is_echoing(port)
        tunnels.wait_until_restored(first_pid)
    assert not any(listening_addresses(port) for port in tunnels.ports)


# Forks ---------------------------------------------------------------------------------------------------------------


def test_fork_keeps_tunnels_of_parent(server: LocalSshd) -> None:
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
            own = runtime.expose_port_from_runtime({service.port}, {ports[2]})
            say(echoes({ports[2]}))
            runtime.stop_process(own)
            runtime.cleanup()
            os._exit(0)
        os.waitpid(child, 0)
        say(*[runtime.get_process(key).is_alive() for key in keys], echoes({ports[0]}), echoes({ports[1]}))
        """
        # Python 3.12 warns of fork() in a program with threads.
        with ClientProgram(text, environment={"PYTHONWARNINGS": "ignore"}) as program:
            assert program.wait(100) == (0, "False False\nTrue\nTrue True True True\n", "")


# Many ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, pytest.param(0.01, marks=pytest.mark.soak)])
def test_tunnels_hundred_open_reopen_and_stop(
    server: LocalSshd, tmp_path: Path, delay: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test prints its times and has no limits for them."""
    count = 100 if not delay else 40
    with (
        assert_no_leaks(server),
        EchoServer() as service,
        running_relay(server, tmp_path) as (relay, keywords),
        Runtime(server.host, **keywords) as runtime,
    ):
        relay.delay = delay
        connections = server.connections()
        start = time.monotonic()
        tunnels = TunnelSet(runtime, service, count=count)
        opened = time.monotonic() - start
        assert server.connections() == connections + 1
        assert all(tunnels.are_echoing())
        first_pid = tunnels.pid
        start = time.monotonic()
        os.kill(first_pid, signal.SIGKILL)
        tunnels.wait_until_restored(first_pid)
        restored = time.monotonic() - start
        start = time.monotonic()
        call_in_parallel([process.terminate for process in tunnels.processes])
        stopped = time.monotonic() - start
        assert not any(listening_addresses(port) for port in tunnels.ports)
    with capsys.disabled():
        print(
            f"\n{count} tunnels at {2e3 * delay:g} ms round-trip time: opened in {opened:.2f} s, "
            f"restored in {restored:.2f} s, stopped in {stopped:.2f} s"
        )
