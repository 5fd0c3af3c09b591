"""Ports that travel: both directions, refused, broken, brought back, and closed on both ends."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import socket
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import (
    ConnectError,
    ForwardingRefusedError,
    InvalidRuntimeError,
    LazyclusterError,
    PortInUseError,
    Runtime,
)
from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._model.timeouts import Timeouts
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.tunnel import Tunnel
from lazycluster._ssh.tunnel_manager import TunnelManager
from lazycluster.testing import LocalSshd, write_config
from tests.client_programs import ClientProgram, call_in_parallel
from tests.internals import transport_of
from tests.observation import (
    EchoServer,
    assert_no_leaks,
    is_echoing,
    listening_addresses,
    receive_exactly,
    running_relay,
)
from tests.processes import command_line, is_alive
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd

LOOPBACK = {"0100007F", "00000000000000000000000001000000"}
DIRECTIONS = ["from the host", "to the host"]


@pytest.fixture(scope="module")
def shared_runtime(sshd: LocalSshd) -> Iterator[Runtime]:
    with Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        yield runtime


@pytest.fixture
def runtime(shared_runtime: Runtime) -> Iterator[Runtime]:
    """Return a runtime without tunnels: those that a test leaves, because it failed, are no concern of the next."""
    yield shared_runtime
    for key in shared_runtime.get_processes(only_alive=True):
        shared_runtime.stop_process(key)


def expose(runtime: Runtime, direction: str, service: int, port: int) -> str:
    """Make a service reachable at another port: the two ends are one machine in these tests."""
    if direction == "from the host":
        return runtime.expose_port_from_runtime(service, port)
    return runtime.expose_port_to_runtime(service, port)


def tunnel_of(runtime: Runtime, key: str) -> Tunnel:
    process = runtime.get_process(key)
    assert isinstance(process, Tunnel)
    return process


def destination(server: LocalSshd) -> Destination:
    return Destination(server.host, config_file=server.config_file)


# Traffic -------------------------------------------------------------------------------------------------------------


class Page(http.server.BaseHTTPRequestHandler):
    """Serves one page."""

    def do_GET(self) -> None:  # the name that http.server calls
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"page\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Say nothing."""


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_page_is_fetched_through_a_tunnel(sshd: LocalSshd, direction: str, resident: bool) -> None:
    with (
        assert_no_leaks(sshd),
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server,
        Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime,
    ):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = reserve_free_port()
        key = expose(runtime, direction, server.server_address[1], port)
        url = f"http://localhost:{port}/"
        if direction == "from the host":
            with urllib.request.urlopen(url, timeout=10) as answer:
                page = answer.read()
        else:
            page = runtime.call(fetch, url)

        assert page == b"page\n"
        process = runtime.get_process(key)
        assert process.is_alive()
        assert process.exitcode is None
        assert is_alive(process.pid or 0)
        assert str(port) in process.name
        runtime.stop_process(key)
        process.join(1)
        assert not runtime.get_process(key).is_alive()
        assert runtime.get_process(key).exitcode == 0
        assert runtime.get_process(key).pid is None
        server.shutdown()
        thread.join()


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        page: bytes = answer.read()
        return page


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_much_goes_through_at_once_and_whole(runtime: Runtime, direction: str) -> None:
    with EchoServer() as service:
        port = reserve_free_port()
        key = expose(runtime, direction, service.port, port)
        data = os.urandom(100_000)
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            received: list[bytes] = []
            reader = threading.Thread(target=lambda: received.append(receive_exactly(connection, 50 * len(data))))
            reader.start()
            for _ in range(50):
                connection.sendall(data)
            reader.join()
        assert received == [data * 50]
        assert all(call_in_parallel([lambda: is_echoing(port, data)] * 10))
        runtime.stop_process(key)


def test_the_same_port_is_taken_on_the_other_side_where_none_is_given(make_sshd: MakeSshd) -> None:
    """Both sides are this machine: the port is in use, which names it."""
    server = make_sshd()
    with Runtime(server.host, **server.connection_kwargs) as runtime, EchoServer() as service:
        for attempt in (runtime.expose_port_to_runtime, runtime.expose_port_from_runtime):
            with pytest.raises(PortInUseError, match=str(service.port)):
                attempt(service.port)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_only_loopback_listens_on_both_address_families(runtime: Runtime, direction: str) -> None:
    with EchoServer() as service:
        port = reserve_free_port()
        key = expose(runtime, direction, service.port, port)
        addresses = listening_addresses(port)
        assert addresses
        assert set(addresses) <= LOOPBACK
        assert is_echoing(port)
        if len(addresses) == 2:
            assert is_echoing(port, host="::1")
        runtime.stop_process(key)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_service_may_start_later(runtime: Runtime, direction: str) -> None:
    service_port, port = reserve_free_port(), reserve_free_port()
    key = expose(runtime, direction, service_port, port)
    assert not is_echoing(port, timeout=2)
    with EchoServer(service_port):
        assert is_echoing(port)
    assert not is_echoing(port, timeout=2)
    with EchoServer(service_port):
        assert is_echoing(port)
    runtime.stop_process(key)


def test_several_tunnels_at_once_in_both_directions(sshd: LocalSshd) -> None:
    with assert_no_leaks(sshd), EchoServer() as service, Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        ports = [reserve_free_port() for _ in range(6)]
        keys = call_in_parallel(
            [
                lambda port=port, n=n: expose(runtime, DIRECTIONS[n % 2], service.port, port)  # type: ignore[misc]
                for n, port in enumerate(ports)
            ]
        )
        assert len(set(keys)) == 6
        assert set(runtime.get_processes(only_alive=True)) == set(keys)
        assert runtime.alive_process_count == 6
        assert runtime.alive_task_process_count == 0
        assert runtime.task_processes == []
        assert all(is_echoing(port) for port in ports)
        runtime.stop_process(keys[0])
        assert runtime.alive_process_count == 5
        assert [is_echoing(port, timeout=2) for port in ports] == [False, *[True] * 5]
    assert not any(listening_addresses(port) for port in ports)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_small_exchanges_are_fast(runtime: Runtime, direction: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the lifeline's session Nagle's algorithm makes some connections take 40 ms for each exchange."""
    with EchoServer() as service:
        port = reserve_free_port()
        key = expose(runtime, direction, service.port, port)
        times = []
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for _ in range(50):
                    begun = time.perf_counter()
                    # Two writes, as of a header and its body, are what Nagle's algorithm delays.
                    connection.sendall(b"x" * 10)
                    connection.sendall(b"y" * 20)
                    assert len(receive_exactly(connection, 30)) == 30
                    times.append(time.perf_counter() - begun)
        runtime.stop_process(key)
    median = statistics.median(times)
    with capsys.disabled():
        print(f"\n200 exchanges, {direction}: median {median * 1e3:.2f} ms, longest {max(times) * 1e3:.2f} ms")
    assert sorted(times)[150] < 0.035, "three quarters of them took less than one delay"


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_port_that_is_taken_is_named_and_nothing_is_left(
    sshd: LocalSshd, runtime: Runtime, direction: str, address: str
) -> None:
    with assert_no_leaks(sshd), socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as taken:
        if ":" in address:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind((address, 0))
        taken.listen()
        port = taken.getsockname()[1]
        before = listening_addresses(port)

        with pytest.raises(PortInUseError) as caught:
            expose(runtime, direction, 9, port)

        assert (caught.value.host, caught.value.port) == ("localhost" if direction == DIRECTIONS[0] else "local", port)
        assert f"port {port} is in use" in str(caught.value)
        assert ("on this machine" if direction == DIRECTIONS[0] else "one there.") in str(caught.value)
        assert isinstance(caught.value, ValueError)
        assert listening_addresses(port) == before
        assert runtime.alive_process_count == 0


def test_of_two_tunnels_to_one_port_the_second_is_refused(sshd: LocalSshd, runtime: Runtime) -> None:
    with assert_no_leaks(sshd), EchoServer() as service:
        port = reserve_free_port()
        key = runtime.expose_port_to_runtime(service.port, port)
        for direction in DIRECTIONS:
            with pytest.raises(PortInUseError):
                expose(runtime, direction, service.port, port)
        assert is_echoing(port)
        runtime.stop_process(key)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"AllowTcpForwarding": "no"}, DIRECTIONS),
        ({"DisableForwarding": "yes"}, DIRECTIONS),
        ({"AllowTcpForwarding": "local"}, DIRECTIONS[1:]),
        ({"AllowTcpForwarding": "remote"}, DIRECTIONS[:1]),
        ({"PermitOpen": "none"}, DIRECTIONS[:1]),
        ({"PermitListen": "none"}, DIRECTIONS[1:]),
    ],
    ids=lambda value: "-".join(map(str, value.items())) if isinstance(value, dict) else str(len(value)),
)
def test_forwarding_that_the_host_refuses_is_an_error_that_says_so(
    make_sshd: MakeSshd, options: dict[str, str], refused: list[str]
) -> None:
    server = make_sshd(options=options)
    with Runtime(server.host, **server.connection_kwargs) as runtime, EchoServer() as service:
        for direction in DIRECTIONS:
            port = reserve_free_port()
            with assert_no_leaks(server):
                if direction in refused:
                    with pytest.raises(ForwardingRefusedError) as caught:
                        expose(runtime, direction, service.port, port)
                    assert caught.value.host == "local"
                    assert str(port) in caught.value.forwarding
                    assert "AllowTcpForwarding, PermitOpen and PermitListen" in str(caught.value)
                    assert caught.value.reason
                else:
                    key = expose(runtime, direction, service.port, port)
                    assert is_echoing(port)
                    runtime.stop_process(key)
                assert listening_addresses(port) == []
                assert runtime.alive_process_count == 0


def test_a_host_that_refuses_sessions_gets_tunnels_all_the_same(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxSessions": "0"})
    with assert_no_leaks(server), EchoServer() as service:
        for kind in ForwardType:
            port = reserve_free_port()
            tunnel = Tunnel(TunnelManager(destination(server)), [Forwarding(kind, port, service.port)])
            assert is_echoing(port)
            tunnel.terminate()
            assert listening_addresses(port) == []
    with pytest.raises(InvalidRuntimeError, match="MaxSessions"):
        Runtime(server.host, **server.connection_kwargs)


def test_a_host_that_is_gone_is_an_error_and_nothing_is_left(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd()
    runtime = Runtime(server.host, str(tmp_path), connect_timeout=5, **server.connection_kwargs)
    server.stop()
    port = reserve_free_port()
    for direction in DIRECTIONS:
        with pytest.raises((ConnectError, LazyclusterError)):
            expose(runtime, direction, 9, port)
    assert runtime.get_processes() == {}
    assert listening_addresses(port) == []
    runtime.cleanup()


# The user's configuration --------------------------------------------------------------------------------------------


def test_the_forwardings_of_the_users_own_configuration_do_not_disturb(sshd: LocalSshd, tmp_path: Path) -> None:
    with EchoServer() as taken, EchoServer() as service:
        own = reserve_free_port()
        extra = (
            f"Match all\n    ExitOnForwardFailure yes\n    LocalForward {taken.port} localhost:{service.port}\n"
            f"    LocalForward {own} localhost:{service.port}\n"
            f"    RemoteForward {taken.port} localhost:{service.port}\n"
            "    ControlMaster auto\n    ControlPath ~/no/such/directory\n    RemoteCommand echo mine\n"
            "    RequestTTY force\n    LogLevel QUIET\n"
        )
        config = write_config(tmp_path / "config", sshd, extra=extra)
        with assert_no_leaks(sshd), Runtime(sshd.host, config_file=str(config)) as runtime:
            for direction in DIRECTIONS:
                port = reserve_free_port()
                key = expose(runtime, direction, service.port, port)
                assert is_echoing(port)
                assert listening_addresses(own) == []
                runtime.stop_process(key)


# Stopped -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_stopping_frees_the_port_before_it_returns(sshd: LocalSshd, runtime: Runtime, direction: str) -> None:
    """Also while a connection is open through it; and again and again with one port."""
    with assert_no_leaks(sshd), EchoServer() as service:
        port = reserve_free_port()
        for _ in range(3):
            key = expose(runtime, direction, service.port, port)
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(b"open")
                assert receive_exactly(connection, 4) == b"open"
                runtime.stop_process(key)
                assert listening_addresses(port) == []
                connection.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
            runtime.stop_process(key)
            assert listening_addresses(port) == []


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_killing_it_ends_it_too(sshd: LocalSshd, runtime: Runtime, direction: str) -> None:
    with assert_no_leaks(sshd), EchoServer() as service:
        port = reserve_free_port()
        process = runtime.get_process(expose(runtime, direction, service.port, port))
        process.kill()
        process.join()
        assert not process.is_alive()
        assert_eventually(lambda: listening_addresses(port) == [], "the port is free")


# Broken and brought back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_ssh_that_is_killed_is_replaced_at_once(sshd: LocalSshd, runtime: Runtime, direction: str) -> None:
    with assert_no_leaks(sshd), EchoServer() as service:
        port = reserve_free_port()
        key = expose(runtime, direction, service.port, port)
        tunnel = tunnel_of(runtime, key)
        first = tunnel.pid
        assert first is not None
        assert command_line(first).startswith("ssh")
        os.kill(first, signal.SIGKILL)

        # Traffic flows a moment before ssh has said so, and that is before it has been tried.
        assert_eventually(lambda: tunnel.is_up and tunnel.pid not in {first, None}, "it is back", timeout=10)
        assert is_echoing(port)
        assert tunnel.is_alive()
        runtime.stop_process(key)
        assert listening_addresses(port) == []


def test_a_stopped_ssh_is_replaced(sshd: LocalSshd, runtime: Runtime) -> None:
    transport_of(runtime)._tunnel_manager.timeouts = Timeouts(tunnel_check_interval=0.2, control_socket=0.5)
    with assert_no_leaks(sshd), EchoServer() as service:
        port = reserve_free_port()
        key = runtime.expose_port_from_runtime(service.port, port)
        tunnel = tunnel_of(runtime, key)
        first = tunnel.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)

        assert_eventually(lambda: tunnel.is_up and tunnel.pid not in {first, None}, "it is back", timeout=10)
        assert is_echoing(port)
        assert not is_alive(first)
        runtime.stop_process(key)


@pytest.mark.soak  # ssh itself takes 20 s
def test_a_cut_cable_is_noticed_by_ssh_and_mended(
    sshd: LocalSshd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In both directions, in one wait for the two of them."""
    with (
        assert_no_leaks(sshd),
        EchoServer() as service,
        running_relay(sshd, tmp_path) as (relay, keywords),
        Runtime(sshd.host, **keywords) as runtime,
    ):
        ports = {direction: reserve_free_port() for direction in DIRECTIONS}
        tunnels = [
            tunnel_of(runtime, expose(runtime, direction, service.port, port)) for direction, port in ports.items()
        ]
        relay.cut()
        # By ServerAlive after 20 s, in whole seconds; TCP itself would take minutes.
        assert_eventually(lambda: not any(tunnel.is_up for tunnel in tunnels), "the cut is noticed", timeout=30)
        assert all(tunnel.is_alive() for tunnel in tunnels)
        assert all(tunnel.exitcode is None for tunnel in tunnels)
        assert not is_echoing(ports[DIRECTIONS[0]], timeout=1)
        relay.restore()
        assert_eventually(lambda: all(tunnel.is_up for tunnel in tunnels), "it is mended", timeout=20)
        assert_eventually(lambda: all(is_echoing(port) for port in ports.values()), "traffic flows", timeout=5)
        said = "\n".join(caplog.messages)
        assert said.count("the connection is gone") == said.count("the connection is back") == 1, "they share it"
    assert not any(listening_addresses(port) for port in ports.values())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_tunnel_whose_host_is_gone_waits_for_it_and_is_stopped_quickly(
    make_sshd: MakeSshd, tmp_path: Path, direction: str
) -> None:
    server = make_sshd()
    with EchoServer() as service, running_relay(server, tmp_path) as (_, keywords):
        runtime = Runtime(server.host, str(tmp_path), connect_timeout=5, **keywords)
        port = reserve_free_port()
        key = expose(runtime, direction, service.port, port)
        tunnel = tunnel_of(runtime, key)
        server.stop()
        assert_eventually(lambda: not tunnel.is_up, "the end of the host is noticed")
        assert_eventually(lambda: tunnel.pid is None, "its ssh is gone")
        assert tunnel.is_alive()
        assert listening_addresses(port) == []

        begun = time.monotonic()
        runtime.stop_process(key)
        assert time.monotonic() - begun < 5
        runtime.cleanup()
        assert_eventually(lambda: not tunnel.is_alive(), "its thread ends")


# Nobody left to stop it ----------------------------------------------------------------------------------------------


_OWNER = """
    from lazycluster import Runtime
    runtime = Runtime({host!r}, {directory!r}, config_file={config!r})
    runtime.expose_port_from_runtime({service}, {local})
    runtime.expose_port_to_runtime({service}, {remote})
    say(*[process.pid for process in runtime.get_processes().values()])
    time.sleep(1000)
"""


def test_nothing_is_left_of_a_manager_that_is_killed_while_a_connection_is_open(
    make_sshd: MakeSshd, tmp_path: Path, short_tmpdir: Path
) -> None:
    """On neither side: no ssh process, no listener; though the connections that it carries are still in use."""
    server = make_sshd()
    local, remote = reserve_free_port(), reserve_free_port()
    with EchoServer() as service, contextlib.ExitStack() as stack:
        text = _OWNER.format(
            host=server.host,
            directory=str(tmp_path),
            config=str(server.config_file),
            service=service.port,
            local=local,
            remote=remote,
        )
        program = stack.enter_context(ClientProgram(text, environment={"TMPDIR": str(short_tmpdir)}))
        pids = [int(word) for word in program.read_line().split()]
        assert all(is_alive(pid) for pid in pids)
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 5)) for port in (local, remote)
        ]
        for connection in connections:
            connection.sendall(b"open")
            assert receive_exactly(connection, 4) == b"open"

        program.process.send_signal(signal.SIGKILL)
        begun = time.monotonic()

        assert_eventually(lambda: not any(is_alive(pid) for pid in pids), "no ssh is left", timeout=10)
        assert_eventually(
            lambda: not listening_addresses(local) and not listening_addresses(remote), "no port is left", timeout=10
        )
        assert_eventually(lambda: server.processes() == (server.pid,), "nothing is left on the host", timeout=10)
        assert time.monotonic() - begun < 10
        for connection in connections:
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
