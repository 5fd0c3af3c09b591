"""Tunnels in both directions: traffic, refusals, stops, lost connections, and the end of their owner."""

from __future__ import annotations

import contextlib
import ctypes
import http.server
import os
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import ForwardingRefusedError, HostError, PortInUseError, Runtime
from lazycluster.testing import LocalSshd, write_config
from tests.client_programs import ClientProgram, call_in_parallel
from tests.observation import (
    EchoServer,
    assert_no_leaks,
    is_echoing,
    listening_addresses,
    receive_exactly,
    running_relay,
)
from tests.processes import is_alive
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd

LOOPBACK = {"0100007F", "00000000000000000000000001000000"}
FROM_HOST, TO_HOST = DIRECTIONS = ["from the host", "to the host"]
UNUSED_SERVICE = 9
"""The port of a service that no test connects to."""
PIDFD_GETFD = 438
"""The number of the system call pidfd_getfd(2), for which Python has no function."""


@pytest.fixture(scope="module")
def shared_runtime(sshd: LocalSshd) -> Iterator[Runtime]:
    with Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        yield runtime


@pytest.fixture
def runtime(shared_runtime: Runtime) -> Iterator[Runtime]:
    """Return a runtime without tunnels; those that a failed test leaves are stopped."""
    yield shared_runtime
    for key in shared_runtime.get_processes(only_alive=True):
        shared_runtime.stop_process(key)


def expose(runtime: Runtime, direction: str, service: int, port: int) -> str:
    """Make a service reachable at another port; both ends are this machine."""
    if direction == FROM_HOST:
        return runtime.expose_port_from_runtime(service, port)
    return runtime.expose_port_to_runtime(service, port)


# Traffic -------------------------------------------------------------------------------------------------------------


class Page(http.server.BaseHTTPRequestHandler):
    """Serves one page."""

    def do_GET(self) -> None:  # the name that http.server calls
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"page\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Print no log."""


def fetch_page(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        page: bytes = response.read()
        return page


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tunnel_serves_http(sshd: LocalSshd, direction: str, resident: bool) -> None:
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
        page = fetch_page(url) if direction == FROM_HOST else runtime.call(fetch_page, url)

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


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tunnel_carries_large_data_in_parallel(runtime: Runtime, direction: str) -> None:
    with EchoServer() as service:
        port = reserve_free_port()
        key = expose(runtime, direction, service.port, port)
        data, repeats = os.urandom(100_000), 50
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            received: list[bytes] = []
            reader = threading.Thread(target=lambda: received.append(receive_exactly(connection, repeats * len(data))))
            reader.start()
            for _ in range(repeats):
                connection.sendall(data)
            reader.join()
        assert received == [data * repeats]
        assert all(call_in_parallel([lambda: is_echoing(port, data)] * 10))
        runtime.stop_process(key)


def test_tunnel_default_port_is_that_of_the_service(make_sshd: MakeSshd) -> None:
    """Both ends are this machine, so the port of the service is in use at the other end, too."""
    server = make_sshd()
    with Runtime(server.host, **server.connection_kwargs) as runtime, EchoServer() as service:
        for attempt in (runtime.expose_port_to_runtime, runtime.expose_port_from_runtime):
            with pytest.raises(PortInUseError) as caught:
                attempt(service.port)
            assert caught.value.port == service.port


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tunnel_listens_on_loopback_only(runtime: Runtime, direction: str) -> None:
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
def test_tunnel_service_may_start_later(runtime: Runtime, direction: str) -> None:
    service_port, port = reserve_free_port(), reserve_free_port()
    key = expose(runtime, direction, service_port, port)
    assert not is_echoing(port, timeout=2)
    with EchoServer(service_port):
        assert is_echoing(port)
    assert not is_echoing(port, timeout=2)
    with EchoServer(service_port):
        assert is_echoing(port)
    runtime.stop_process(key)


def test_tunnel_connection_has_no_nagle_delay(sshd: LocalSshd, runtime: Runtime) -> None:
    """Without the session of the lifeline, sshd leaves Nagle's algorithm on, and some exchanges take 40 ms more."""
    with EchoServer() as service:
        key = runtime.expose_port_from_runtime(service.port, reserve_free_port())
        pids = [runtime.get_process(key).pid, *sshd.processes()]
        options = [option for pid in pids if pid is not None for option in read_nodelay_options(pid, sshd.port)]
        assert len(options) >= 2, "both ends of the connection are found"
        assert all(options)
        runtime.stop_process(key)


def read_nodelay_options(pid: int, port: int) -> list[bool]:
    """Return TCP_NODELAY (tcp(7)) of the connections of a process from or to a port; skip the test if it is hidden."""
    libc, options = ctypes.CDLL(None, use_errno=True), []
    if sys.platform != "linux":
        pytest.skip("only Linux shows the sockets of other processes")
    pid_fd = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if not entry.is_socket():
                continue
            duplicate = libc.syscall(PIDFD_GETFD, pid_fd, int(entry.name), 0)
            if duplicate < 0:
                pytest.skip(f"pidfd_getfd(2) failed: {os.strerror(ctypes.get_errno())}")
            with socket.socket(fileno=duplicate) as end, contextlib.suppress(OSError):  # a listener has no peer
                if end.family == socket.AF_INET and port in {end.getsockname()[1], end.getpeername()[1]}:
                    options.append(bool(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
    finally:
        os.close(pid_fd)
    return options


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tunnel_taken_port_is_an_error(sshd: LocalSshd, runtime: Runtime, direction: str, address: str) -> None:
    with assert_no_leaks(sshd), socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as taken:
        if ":" in address:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind((address, 0))
        taken.listen()
        port = taken.getsockname()[1]
        before = listening_addresses(port)

        with pytest.raises(PortInUseError) as caught:
            expose(runtime, direction, UNUSED_SERVICE, port)

        assert (caught.value.host, caught.value.port) == ("localhost" if direction == FROM_HOST else "local", port)
        assert listening_addresses(port) == before
        assert runtime.alive_process_count == 0


def test_tunnel_port_of_other_tunnel_is_an_error(sshd: LocalSshd, runtime: Runtime) -> None:
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
        ({"AllowTcpForwarding": "local"}, [TO_HOST]),
        ({"AllowTcpForwarding": "remote"}, [FROM_HOST]),
        ({"PermitOpen": "none"}, [FROM_HOST]),
        ({"PermitListen": "none"}, [TO_HOST]),
    ],
    ids=[
        "AllowTcpForwarding no",
        "DisableForwarding yes",
        "AllowTcpForwarding local",
        "AllowTcpForwarding remote",
        "PermitOpen none",
        "PermitListen none",
    ],
)
def test_tunnel_forwarding_refused_by_host_is_an_error(
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
                    assert caught.value.reason
                else:
                    key = expose(runtime, direction, service.port, port)
                    assert is_echoing(port)
                    runtime.stop_process(key)
                assert listening_addresses(port) == []
                assert runtime.alive_process_count == 0


def test_tunnel_to_stopped_host_is_an_error(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd()
    runtime = Runtime(server.host, str(tmp_path), connect_timeout=5, **server.connection_kwargs)
    server.stop()
    port = reserve_free_port()
    for direction in DIRECTIONS:
        with pytest.raises(HostError):
            expose(runtime, direction, UNUSED_SERVICE, port)
    assert runtime.get_processes() == {}
    assert listening_addresses(port) == []
    runtime.cleanup()


# The user's configuration --------------------------------------------------------------------------------------------


def test_tunnel_ignores_forwardings_of_configuration(sshd: LocalSshd, tmp_path: Path) -> None:
    with EchoServer() as taken, EchoServer() as service:
        configured = reserve_free_port()
        extra = (
            f"Match all\n    ExitOnForwardFailure yes\n    LocalForward {taken.port} localhost:{service.port}\n"
            f"    LocalForward {configured} localhost:{service.port}\n"
            f"    RemoteForward {taken.port} localhost:{service.port}\n"
            "    ControlMaster auto\n    ControlPath ~/no/such/directory\n    RemoteCommand echo configured\n"
            "    RequestTTY force\n    LogLevel QUIET\n"
        )
        config = write_config(tmp_path / "config", sshd, extra=extra)
        with assert_no_leaks(sshd), Runtime(sshd.host, config_file=str(config)) as runtime:
            for direction in DIRECTIONS:
                port = reserve_free_port()
                key = expose(runtime, direction, service.port, port)
                assert is_echoing(port)
                assert listening_addresses(configured) == []
                runtime.stop_process(key)


# Stopped -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tunnel_stop_frees_port_before_it_returns(sshd: LocalSshd, runtime: Runtime, direction: str) -> None:
    """Also while a connection is open through it, and several times with one port."""
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
def test_tunnel_kill_frees_port(sshd: LocalSshd, runtime: Runtime, direction: str) -> None:
    with assert_no_leaks(sshd), EchoServer() as service:
        port = reserve_free_port()
        process = runtime.get_process(expose(runtime, direction, service.port, port))
        process.kill()
        process.join()
        assert not process.is_alive()
        assert_eventually(lambda: listening_addresses(port) == [], "the port is free")


# Lost connections ----------------------------------------------------------------------------------------------------


@pytest.mark.soak  # ssh itself takes 20 s
def test_tunnel_cut_connection_is_restored(sshd: LocalSshd, tmp_path: Path) -> None:
    with (
        assert_no_leaks(sshd),
        EchoServer() as service,
        running_relay(sshd, tmp_path) as (relay, keywords),
        Runtime(sshd.host, **keywords) as runtime,
    ):
        ports = {direction: reserve_free_port() for direction in DIRECTIONS}
        tunnels = [
            runtime.get_process(expose(runtime, direction, service.port, port)) for direction, port in ports.items()
        ]
        relay.cut()
        # ssh ends after 20 s (ServerAliveInterval, ssh_config(5)); TCP itself would take minutes.
        assert_eventually(lambda: all(tunnel.pid is None for tunnel in tunnels), "the cut is noticed", timeout=60)
        assert all(tunnel.is_alive() for tunnel in tunnels)
        assert all(tunnel.exitcode is None for tunnel in tunnels)
        assert not is_echoing(ports[FROM_HOST], timeout=1)
        relay.restore()
        assert_eventually(lambda: all(map(is_echoing, ports.values())), "the tunnels are open again", timeout=60)
        assert len({tunnel.pid for tunnel in tunnels}) == 1, "the tunnels share the new connection"
    assert not any(listening_addresses(port) for port in ports.values())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tunnel_to_stopped_host_can_be_stopped(make_sshd: MakeSshd, tmp_path: Path, direction: str) -> None:
    server = make_sshd()
    with EchoServer() as service, running_relay(server, tmp_path) as (_, keywords):
        runtime = Runtime(server.host, str(tmp_path), connect_timeout=5, **keywords)
        port = reserve_free_port()
        key = expose(runtime, direction, service.port, port)
        tunnel = runtime.get_process(key)
        server.stop()
        assert_eventually(lambda: tunnel.pid is None, "the end of the host is noticed", timeout=30)
        assert tunnel.is_alive()
        assert listening_addresses(port) == []

        runtime.stop_process(key)
        assert not tunnel.is_alive()
        runtime.cleanup()


# Killed owner --------------------------------------------------------------------------------------------------------


_OWNER_PROGRAM = """
    from lazycluster import Runtime
    runtime = Runtime({host!r}, {directory!r}, config_file={config!r})
    runtime.expose_port_from_runtime({service}, {local})
    runtime.expose_port_to_runtime({service}, {remote})
    say(*[process.pid for process in runtime.get_processes().values()])
    time.sleep(1000)
"""


def test_tunnel_killed_owner_leaves_nothing(make_sshd: MakeSshd, tmp_path: Path, short_tmpdir: Path) -> None:
    """Neither an ssh process nor a listener is left on any side, even if connections are open through the tunnels."""
    server = make_sshd()
    local, remote = reserve_free_port(), reserve_free_port()
    with EchoServer() as service, contextlib.ExitStack() as stack:
        text = _OWNER_PROGRAM.format(
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

        assert_eventually(lambda: not any(is_alive(pid) for pid in pids), "no ssh is left", timeout=30)
        assert_eventually(
            lambda: not listening_addresses(local) and not listening_addresses(remote), "no port is left", timeout=30
        )
        assert_eventually(lambda: server.processes() == (server.pid,), "nothing is left on the host", timeout=30)
        for connection in connections:
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
