"""The tunnels of one host over a fake connection: opened, stopped and lost, one at a time and at once."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import attrs
import pytest

from lazycluster import ConnectError, ForwardingRefusedError, HostUnreachableError, PortInUseError, TunnelError
from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._model.timeouts import Timeouts
from lazycluster._ssh import tunnel_manager as tunnel_manager_module
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.mux import wait_readable
from lazycluster._ssh.tunnel import Tunnel
from lazycluster._ssh.tunnel_connection import TunnelConnectionLostError
from lazycluster._ssh.tunnel_manager import TunnelManager
from tests.waiting import assert_eventually, wait_until

UNREACHABLE = HostUnreachableError("web1", "no route")


class FakeTunnelConnection:
    """A connection that only records the calls. `closed` has each call of `close_forwardings()`: these, and `graceful`.

    `ended` has the `graceful` of each call of `close()`, of which there may be one.
    """

    def __init__(self, network: Network, pid: int) -> None:
        self.network, self.pid = network, pid
        self.open_now: list[Forwarding] = []
        self.has_exited = False
        self.exit_reason = "broken pipe"
        self.closed: list[tuple[list[Forwarding], bool]] = []
        self.ended: list[bool] = []
        self._read, self._write = os.pipe()

    def is_lost(self) -> bool:
        return self.has_exited

    def break_connection(self) -> None:
        self.has_exited = True
        os.write(self._write, b"x")

    def wait(self, timeout: float, wake_fd: int) -> None:
        wait_readable([wake_fd, self._read], timeout)

    def open_forwarding(self, forwarding: Forwarding) -> None:
        self.network.on_open(self, forwarding)
        if self.has_exited:
            raise TunnelConnectionLostError("no answer, broken pipe")
        assert forwarding not in self.open_now
        self.open_now.append(forwarding)

    def close_forwardings(self, forwardings: Sequence[Forwarding], *, graceful: bool) -> None:
        self.network.on_close()
        if self.has_exited:
            raise TunnelConnectionLostError("no answer, broken pipe")
        self.closed.append((list(forwardings), graceful))
        for forwarding in forwardings:
            self.open_now.remove(forwarding)

    def close(self, forwardings: Sequence[Forwarding] = (), *, graceful: bool) -> None:
        self.network.on_end()
        assert not graceful or list(forwardings) == self.open_now
        assert not self.ended, "it is ended once"
        self.ended.append(graceful)
        self.open_now, self.has_exited = [], True
        os.close(self._read)
        os.close(self._write)


def do_nothing(*_: object) -> None: ...


@attrs.define
class Network:
    """Makes fake connections, and calls the hooks of a test when a connection is used."""

    connections: list[FakeTunnelConnection] = attrs.field(factory=list)
    connect_count: int = 0
    on_connect: Callable[[threading.Event], object] = do_nothing
    on_open: Callable[[FakeTunnelConnection, Forwarding], object] = do_nothing
    on_close: Callable[[], object] = do_nothing
    on_end: Callable[[], object] = do_nothing

    def connect(
        self, destination: Destination, password: str | None, cancel_event: threading.Event, timeouts: Timeouts
    ) -> FakeTunnelConnection:
        assert (destination.host, password) == ("web1", "secret")
        self.connect_count += 1
        self.on_connect(cancel_event)
        if cancel_event.is_set():
            raise ConnectError("web1", "cancelled")
        self.connections.append(FakeTunnelConnection(self, 1000 + self.connect_count))
        return self.connections[-1]

    @property
    def connection(self) -> FakeTunnelConnection:
        return self.connections[-1]

    @property
    def open_count(self) -> int:
        return sum(not connection.ended for connection in self.connections)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()

    class FakeConnector:
        connect = network.connect

    monkeypatch.setattr(tunnel_manager_module, "TunnelConnection", FakeConnector)
    monkeypatch.setattr(tunnel_manager_module, "is_port_free", lambda _port: True)
    return network


@pytest.fixture
def manager(network: Network) -> Iterator[TunnelManager]:
    threads = threading.active_count()
    manager = TunnelManager(Destination("web1"), password="secret", timeouts=Timeouts(tunnel_retry=(0.05, 15.0)))
    yield manager
    for left in manager.tunnels:
        manager.stop_tunnel(left, graceful=False)
    assert_eventually(lambda: threading.active_count() <= threads, "the thread of the manager ends")
    assert network.open_count == 0
    assert manager.connection is None


def remote(port: int) -> Forwarding:
    return Forwarding(ForwardType.REMOTE, port, 80)


def local(port: int) -> Forwarding:
    return Forwarding(ForwardType.LOCAL, port, 80)


def open_tunnel(manager: TunnelManager, *ports: int, owner: object = None) -> Tunnel:
    """Open a tunnel with a remote forwarding for each port."""
    return Tunnel(manager, [remote(port) for port in ports], owner=owner)


@attrs.define
class TunnelOpener:
    """Opens a tunnel in a thread of its own, which begins at once."""

    manager: TunnelManager
    port: int
    opened: Tunnel | None = None
    error: Exception | None = None
    thread: threading.Thread = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.thread = threading.Thread(target=self._call, daemon=True)
        self.thread.start()

    def _call(self) -> None:
        try:
            self.opened = open_tunnel(self.manager, self.port)
        except Exception as error:  # noqa: BLE001 - it is looked at where the test waits
            self.error = error

    def join(self) -> TunnelOpener:
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self


def wait_for_tunnels(manager: TunnelManager, count: int) -> None:
    assert_eventually(lambda: len(manager.tunnels) == count, f"{count} tunnels")


class Gate:
    """Blocks each call until the gate is open; a call of `connect()` also ends when it is cancelled."""

    def __init__(self) -> None:
        self.reached, self._opened = threading.Event(), threading.Event()

    def __call__(self, *arguments: object) -> None:
        self.reached.set()
        cancel_events = [each for each in arguments if isinstance(each, threading.Event)]  # `connect()` has one
        assert wait_until(lambda: self._opened.is_set() or any(each.is_set() for each in cancel_events), 30)
        if not self._opened.is_set():
            raise ConnectError("web1", "cancelled")

    def open(self) -> None:
        self._opened.set()


# One connection for all -----------------------------------------------------------------------------------------------


def test_tunnels_first_connects_and_last_disconnects(manager: TunnelManager, network: Network) -> None:
    assert network.connect_count == 0
    tunnels = [open_tunnel(manager, port) for port in range(1, 11)]
    assert network.connect_count == 1
    assert {each.pid for each in tunnels} == {1001}
    assert all(each.is_up and each.is_alive() and each.exitcode is None for each in tunnels)
    for each in tunnels[:-1]:
        each.terminate()
        each.terminate()
        assert (each.is_alive(), each.is_up, each.exitcode, each.pid) == (False, False, 0, None)
        each.join()
    assert network.connection.closed == [([remote(port)], True) for port in range(1, 10)]
    assert network.connection.open_now == [remote(10)]
    assert tunnels[-1].is_up
    tunnels[-1].terminate()
    assert network.connection.ended == [True]
    again = open_tunnel(manager, 1)
    assert (network.connect_count, again.pid) == (2, 1002)
    again.terminate()


def test_tunnel_kill_keeps_other_tunnels(manager: TunnelManager, network: Network) -> None:
    first, second = open_tunnel(manager, 1), open_tunnel(manager, 2)
    first.kill()
    assert network.connection.closed == [([remote(1)], False)]
    assert second.is_up
    second.kill()
    assert network.connection.ended == [False]


def test_tunnel_request_stop_of_all_ends_them_together(manager: TunnelManager, network: Network) -> None:
    tunnels = [open_tunnel(manager, port) for port in range(1, 11)]
    gate = network.on_close = Gate()
    tunnels[0].request_stop()
    assert gate.reached.wait(30)
    for each in tunnels:
        each.request_stop()
    assert all(each.is_alive() for each in tunnels)
    assert not tunnels[1].join(0)  # type: ignore[func-returns-value]  # as of a process
    gate.open()
    for each in tunnels:
        each.terminate()
    assert network.connection.closed == [([remote(1)], True)]
    assert network.connection.ended == [True]


def test_tunnel_opens_all_forwardings_or_none(manager: TunnelManager, network: Network) -> None:
    def refuse(_connection: FakeTunnelConnection, forwarding: Forwarding) -> None:
        if forwarding.listen_port == 3:
            raise ForwardingRefusedError("web1", str(forwarding), "no")

    both = Tunnel(manager, [local(1), remote(2)])
    assert both.name == "tunnel to web1: -L localhost:1:localhost:80, -R localhost:2:localhost:80"
    assert repr(both) == f"<Tunnel {both.name}, alive>"
    network.on_open = refuse
    with pytest.raises(ForwardingRefusedError):
        open_tunnel(manager, 4, 5, 3, 6)
    assert network.connection.open_now == [local(1), remote(2)]
    both.terminate()
    assert repr(both) == f"<Tunnel {both.name}, stopped>"


def test_tunnel_without_forwarding_is_refused(manager: TunnelManager, network: Network) -> None:
    with pytest.raises(ValueError, match="forwardings must not be empty"):
        Tunnel(manager, [])
    assert network.connect_count == 0


def test_tunnel_port_of_other_tunnel_is_in_use(manager: TunnelManager, network: Network) -> None:
    """Two tunnels opened at once both find the port free, and ssh reports the second as open already."""
    one, other = Tunnel(manager, [remote(1)]), Tunnel(manager, [local(1)])
    for forwarding, host in ((remote(1), "web1"), (local(1), "localhost")):
        with pytest.raises(PortInUseError) as caught:
            Tunnel(manager, [remote(2), forwarding])
        assert (caught.value.host, caught.value.port) == (host, 1)
    with pytest.raises(PortInUseError):
        Tunnel(manager, [remote(3), remote(3)])
    assert network.connection.open_now == [remote(1), local(1)]
    one.terminate()
    other.terminate()


def test_tunnel_taken_local_port_is_found_before_connect(
    manager: TunnelManager, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel_manager_module, "is_port_free", lambda port: port != 1)
    with pytest.raises(PortInUseError):
        Tunnel(manager, [local(1)])
    assert network.connect_count == 0


# At the same time -----------------------------------------------------------------------------------------------------


def test_tunnels_opened_at_once_share_one_connection(manager: TunnelManager, network: Network) -> None:
    gate = network.on_connect = Gate()
    openers = [TunnelOpener(manager, port) for port in range(1, 9)]
    wait_for_tunnels(manager, 8)
    gate.open()
    assert all(opener.join().opened for opener in openers)
    assert network.connect_count == 1
    assert len(network.connection.open_now) == 8


def test_tunnels_failed_connect_raises_an_error_for_each(manager: TunnelManager, network: Network) -> None:
    gate = Gate()

    def fail(_cancel_event: threading.Event) -> None:
        gate()
        raise UNREACHABLE from OSError("cause")

    network.on_connect = fail
    first = TunnelOpener(manager, 1)
    assert gate.reached.wait(30)
    others = [TunnelOpener(manager, port) for port in range(2, 9)]
    wait_for_tunnels(manager, 8)
    gate.open()
    errors = [opener.join().error for opener in (first, *others)]
    assert [type(error) for error in errors] == [HostUnreachableError] * 8
    assert {str(error) for error in errors} == {str(UNREACHABLE)}
    assert len({id(error) for error in errors}) == 8
    assert all(error is not None and isinstance(error.__cause__, OSError) for error in errors)
    assert network.connect_count == 2, "the tunnels that came after the first attempt began share the second"


def test_stop_tunnel_cancels_connect_for_it_alone(manager: TunnelManager, network: Network) -> None:
    gate = network.on_connect = Gate()
    opener = TunnelOpener(manager, 1)
    assert gate.reached.wait(30)
    [opening] = manager.tunnels
    manager.stop_tunnel(opening, graceful=True)
    assert opening.ended.is_set()
    opened = opener.join().opened
    assert opened is not None
    assert not opened.is_alive()
    assert network.connections == []


def test_open_tunnel_after_cancelled_connect_connects_again(manager: TunnelManager, network: Network) -> None:
    gate = Gate()

    def wait_for_cancel(cancel_event: threading.Event) -> None:
        network.on_connect = do_nothing
        assert cancel_event.wait(30)
        gate()
        raise ConnectError("web1", "cancelled")

    network.on_connect = wait_for_cancel
    TunnelOpener(manager, 1)
    assert wait_until(lambda: network.connect_count == 1, 30)
    [opening] = manager.tunnels
    manager.stop_tunnel(opening, graceful=True, wait=False)
    assert gate.reached.wait(30)
    opener = TunnelOpener(manager, 2)
    wait_for_tunnels(manager, 2)
    gate.open()
    assert opener.join().opened is not None
    assert (network.connect_count, network.connection.open_now) == (2, [remote(2)])


def test_open_tunnel_interrupted_leaves_nothing(manager: TunnelManager, network: Network) -> None:
    gate = network.on_connect = Gate()

    class InterruptedEvent(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert gate.reached.wait(30)
            raise KeyboardInterrupt

    class InterruptedManager(TunnelManager):
        def open_tunnel(self, tunnel: Tunnel) -> None:
            tunnel.settled = InterruptedEvent()
            super().open_tunnel(tunnel)

    interrupted = InterruptedManager(Destination("web1"), password="secret")
    with pytest.raises(KeyboardInterrupt):
        open_tunnel(interrupted, 1)
    assert (interrupted.tunnels, network.connections) == ((), [])


def test_open_tunnel_while_last_one_stops_connects_again(manager: TunnelManager, network: Network) -> None:
    first = open_tunnel(manager, 1)
    gate = network.on_end = Gate()
    stopping = threading.Thread(target=first.terminate)
    stopping.start()
    assert gate.reached.wait(30)
    opener = TunnelOpener(manager, 2)
    wait_for_tunnels(manager, 2)
    assert first.is_alive()
    gate.open()
    stopping.join(30)
    assert opener.join().opened is not None
    assert (network.connect_count, network.open_count, network.connection.open_now) == (2, 1, [remote(2)])


def test_stop_tunnel_while_it_opens_waits_and_closes_it(manager: TunnelManager, network: Network) -> None:
    first = open_tunnel(manager, 1)
    gate = network.on_open = Gate()
    opener = TunnelOpener(manager, 2)
    assert gate.reached.wait(30)
    opening = manager.tunnels[-1]
    stopping = threading.Thread(target=manager.stop_tunnel, args=(opening,), kwargs={"graceful": False})
    stopping.start()
    assert_eventually(lambda: opening.stop_requested, "the stop is requested")
    gate.open()
    stopping.join(30)
    opener.join()
    assert network.connection.open_now == [remote(1)]
    first.terminate()


@pytest.mark.parametrize(
    "error",
    [PortInUseError("web1", 1), ForwardingRefusedError("web1", "-R", "no")],
    ids=lambda error: type(error).__name__,
)
def test_open_tunnel_first_one_fails_ends_connection(
    manager: TunnelManager, network: Network, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    network.on_open = fail
    with pytest.raises(type(error)) as caught:
        open_tunnel(manager, 1)
    assert str(caught.value) == str(error)
    assert network.connection.ended == [True], "before it is raised"


def test_open_tunnel_failure_keeps_other_tunnels(manager: TunnelManager, network: Network) -> None:
    def fail(_connection: FakeTunnelConnection, forwarding: Forwarding) -> None:
        if forwarding.listen_port % 2:
            raise ForwardingRefusedError("web1", str(forwarding), "no")

    network.on_open = fail
    openers = [TunnelOpener(manager, port).join() for port in range(1, 9)]
    assert [opener.opened is None for opener in openers] == [True, False] * 4
    assert network.connection.open_now == [remote(2), remote(4), remote(6), remote(8)]
    assert all(opener.opened.is_up for opener in openers if opener.opened)


# Lost connections -----------------------------------------------------------------------------------------------------


def test_lost_connection_reopens_all_tunnels(
    manager: TunnelManager, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    tunnels = [open_tunnel(manager, port) for port in range(1, 11)]
    failures = iter([UNREACHABLE, UNREACHABLE])

    def fail(_cancel_event: threading.Event) -> None:
        for error in failures:
            raise error

    network.on_connect = fail
    with caplog.at_level(logging.WARNING):
        network.connection.break_connection()
        assert wait_until(lambda: all(each.is_up for each in tunnels), 30)
    assert (network.connect_count, network.open_count) == (4, 1)
    assert network.connections[0].ended == [False]
    assert {each.pid for each in tunnels} == {1004}
    assert network.connection.open_now == [remote(port) for port in range(1, 11)]
    assert caplog.messages == [
        "tunnels to web1: the connection is gone (broken pipe); bringing back 10",
        f"tunnels to web1: the connection is not back yet: {UNREACHABLE}",
        "tunnels to web1: the connection is back",
    ]


def test_lost_connection_retries_a_taken_port_alone(
    manager: TunnelManager, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    tunnels = [open_tunnel(manager, port) for port in range(1, 4)]
    refused: list[Forwarding] = []

    def refuse(_connection: FakeTunnelConnection, forwarding: Forwarding) -> None:
        if forwarding.listen_port == 2 and len(refused) < 3:
            refused.append(forwarding)
            raise PortInUseError("web1", 2)

    network.on_open = refuse
    with caplog.at_level(logging.WARNING):
        network.connection.break_connection()
        assert wait_until(lambda: tunnels[0].is_up and tunnels[2].is_up, 30)
        assert tunnels[1].is_alive()
        assert wait_until(lambda: tunnels[1].is_up, 30)
    assert (len(refused), network.connect_count) == (3, 2)
    messages = [message for message in caplog.messages if message.startswith(tunnels[1].name)]
    assert messages == [
        f"{tunnels[1].name}: not open again yet: {PortInUseError('web1', 2)}",
        f"{tunnels[1].name}: open again",
    ], "three refusals, and one warning"


def test_lost_connection_tunnels_can_open_and_stop(manager: TunnelManager, network: Network) -> None:
    first, second = open_tunnel(manager, 1), open_tunnel(manager, 2)
    gate = network.on_connect = Gate()
    network.connection.break_connection()
    assert gate.reached.wait(30)
    assert (first.is_up, first.pid, first.is_alive()) == (False, None, True)
    opener = TunnelOpener(manager, 3)
    wait_for_tunnels(manager, 3)
    first.terminate()  # while the gate still blocks the log-in
    assert not first.is_alive()
    gate.open()
    assert opener.join().opened is not None
    assert wait_until(lambda: second.is_up, 30)
    assert sorted(forwarding.listen_port for forwarding in network.connection.open_now) == [2, 3]


def test_lost_connection_last_tunnel_can_stop(manager: TunnelManager, network: Network) -> None:
    tunnels = [open_tunnel(manager, 1), open_tunnel(manager, 2)]
    gate = network.on_connect = Gate()
    network.connection.break_connection()
    assert gate.reached.wait(30)
    for each in tunnels:
        each.terminate()
        assert not each.is_alive()
    assert network.open_count == 0


def test_lost_connection_new_tunnel_skips_the_back_off(manager: TunnelManager, network: Network) -> None:
    manager.timeouts = Timeouts(tunnel_retry=(1000.0, 1000.0))
    first = open_tunnel(manager, 1)
    network.connection.break_connection()
    assert wait_until(lambda: manager.connection is None, 30)
    second = open_tunnel(manager, 2)
    assert wait_until(lambda: first.is_up and second.is_up, 30)


def test_lost_connection_new_tunnel_fails_if_host_is_gone(manager: TunnelManager, network: Network) -> None:
    def fail(_cancel_event: threading.Event) -> None:
        raise UNREACHABLE

    first = open_tunnel(manager, 1)
    network.on_connect = fail
    network.connection.break_connection()
    with pytest.raises(HostUnreachableError):
        open_tunnel(manager, 2)
    assert first.is_alive()
    network.on_connect = do_nothing
    assert wait_until(lambda: first.is_up, 30)


def test_open_tunnel_on_dead_connection_connects_again(manager: TunnelManager, network: Network) -> None:
    first = open_tunnel(manager, 1)
    dead = network.connection

    def die(connection: FakeTunnelConnection, _forwarding: Forwarding) -> None:
        connection.has_exited = connection is dead

    network.on_open = die
    second = open_tunnel(manager, 2)
    assert second.pid == 1002
    assert wait_until(lambda: first.is_up, 30)


def test_open_tunnel_connection_lost_twice_is_an_error(manager: TunnelManager, network: Network) -> None:
    def die(connection: FakeTunnelConnection, _forwarding: Forwarding) -> None:
        connection.has_exited = True

    network.on_open = die
    with pytest.raises(ConnectError) as caught:
        open_tunnel(manager, 1)
    assert caught.value.reason == "the connection of a tunnel broke: no answer, broken pipe"
    assert (network.connect_count, network.open_count) == (2, 0)


def test_stop_tunnel_on_dead_connection_reopens_the_others(manager: TunnelManager, network: Network) -> None:
    first, second = open_tunnel(manager, 1), open_tunnel(manager, 2)

    def die() -> None:
        network.connections[0].has_exited = True

    network.on_close = die
    first.terminate()
    assert not first.is_alive()
    assert network.connections[0].ended == [False], "its ports are free"
    assert wait_until(lambda: second.is_up and network.connection.open_now == [remote(2)], 30)


# Owners, destructors, forks -------------------------------------------------------------------------------------------


class Owner:
    """An owner of a tunnel, for a weak reference."""


def test_tunnel_owner_lives_until_tunnel_ends(manager: TunnelManager, network: Network) -> None:
    first, second = Owner(), Owner()
    owners = [weakref.ref(first), weakref.ref(second)]
    tunnels = [open_tunnel(manager, 1, owner=first), open_tunnel(manager, 2, owner=second)]
    del first, second
    network.connection.break_connection()
    assert wait_until(lambda: all(each.is_up for each in tunnels), 30)
    gc.collect()
    assert [reference() is None for reference in owners] == [False, False]
    tunnels[0].terminate()
    assert wait_until(lambda: [reference() is None for reference in owners] == [True, False], 30)
    tunnels[1].request_stop()
    assert_eventually(lambda: owners[1]() is None, "the second owner is released")


def test_tunnel_refused_releases_its_owner(manager: TunnelManager) -> None:
    owner = Owner()
    reference = weakref.ref(owner)
    with pytest.raises(PortInUseError):
        Tunnel(manager, [remote(1), remote(1)], owner=owner)
    del owner
    gc.collect()
    assert reference() is None


def test_stop_tunnel_in_thread_of_manager_returns(manager: TunnelManager, network: Network) -> None:
    """A destructor may run in any thread."""
    first, second = open_tunnel(manager, 1), open_tunnel(manager, 2)

    def stop() -> None:
        assert threading.current_thread().name == "tunnels to web1"
        second.terminate()

    network.on_close = stop
    first.terminate()
    second.join(30)
    assert not second.is_alive()


def test_fork_leaves_tunnels_to_the_parent(manager: TunnelManager, network: Network) -> None:
    first = open_tunnel(manager, 1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found: dict[str, object] = {"first": (first.is_alive(), first.exitcode, first.pid, first.is_up)}
            first.terminate()
            first.kill()
            first.request_stop()
            first.join()
            own = open_tunnel(manager, 1)
            found["own"] = (own.pid, own.is_up)
            own.terminate()
            found["ended"] = [connection.ended for connection in network.connections]
            os.write(writer, repr(found).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        expected = {"first": (False, 0, None, False), "own": (1002, True), "ended": [[], [True]]}
        assert answer.read() == repr(expected)
    os.waitpid(child, 0)
    assert first.is_up
    assert network.connection.open_now == [remote(1)]
    first.terminate()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_manager_thread_defect_ends_all_tunnels(manager: TunnelManager, network: Network) -> None:
    first = open_tunnel(manager, 1)

    def fail() -> None:
        raise AssertionError("a defect")

    network.on_close = fail
    second = open_tunnel(manager, 2)
    second.terminate()
    first.join(30)
    assert (first.exitcode, second.exitcode) == (1, 1)
    network.on_close = do_nothing
    assert open_tunnel(manager, 3).is_up


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_manager_thread_defect_is_raised_by_open_tunnel(manager: TunnelManager, network: Network) -> None:
    class DefectError(BaseException):
        """An error that the manager does not expect of a log-in."""

    def fail(_cancel_event: threading.Event) -> None:
        raise DefectError("a defect")

    network.on_connect = fail
    with pytest.raises(TunnelError) as caught:
        open_tunnel(manager, 1)
    assert caught.value.reason == "DefectError: a defect"


def test_open_tunnel_without_thread_can_be_repeated(manager: TunnelManager, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            open_tunnel(manager, 1)
    assert open_tunnel(manager, 1).is_up


def test_tunnels_opened_stopped_and_lost_at_once_work(manager: TunnelManager, network: Network) -> None:
    """An opened tunnel is open, though threads open and stop others and the connection breaks; nothing is left."""
    finished = threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            while not finished.is_set():
                own = open_tunnel(manager, number)
                (own.kill if number % 2 else own.terminate)()
                assert not own.is_alive()
                assert own.exitcode == 0
        except ConnectError:
            pass  # the connection broke twice in a row
        except BaseException as error:  # noqa: BLE001 - it is raised where the test waits
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    lasting = open_tunnel(manager, 100)
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert wait_until(lambda: lasting.is_up, 30)
        connection = network.connection
        if not connection.ended:
            with contextlib.suppress(OSError):  # it was ended just now
                connection.break_connection()
        assert wait_until(lambda: network.open_count <= 1, 30)
    finished.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert wait_until(lambda: lasting.is_up and network.connection.open_now == [remote(100)], 30)
    lasting.terminate()
