"""What tunnels share, with a stand-in for the connection: who waits for whom, whatever comes at the same time."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import time
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
from tests.waiting import wait_until

UNREACHABLE = HostUnreachableError("web1", "no route")


class FakeTunnelConnection:
    """Plays a connection: it notes what is asked of it."""

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


def nothing(*_: object) -> None:
    """Do nothing."""


@attrs.define
class Network:
    """Where connections come from, and what happens to them."""

    links: list[FakeTunnelConnection] = attrs.field(factory=list)
    dials: int = 0
    on_dial: Callable[[threading.Event], object] = nothing
    on_open: Callable[[FakeTunnelConnection, Forwarding], object] = nothing
    on_close: Callable[[], object] = nothing
    on_end: Callable[[], object] = nothing

    def connect(
        self, destination: Destination, password: str | None, cancel_event: threading.Event, timeouts: Timeouts
    ) -> FakeTunnelConnection:
        assert (destination.host, password) == ("web1", "secret")
        self.dials += 1
        self.on_dial(cancel_event)
        if cancel_event.is_set():
            raise ConnectError("web1", "given up")
        self.links.append(FakeTunnelConnection(self, 1000 + self.dials))
        return self.links[-1]

    @property
    def link(self) -> FakeTunnelConnection:
        return self.links[-1]

    @property
    def living(self) -> int:
        return sum(not link.ended for link in self.links)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network()

    class FakeConnector:
        connect = made.connect

    monkeypatch.setattr(tunnel_manager_module, "TunnelConnection", FakeConnector)
    monkeypatch.setattr(tunnel_manager_module, "is_port_free", lambda _port: True)
    return made


@pytest.fixture
def manager(network: Network) -> Iterator[TunnelManager]:
    threads = threading.active_count()
    made = TunnelManager(Destination("web1"), password="secret", timeouts=Timeouts(tunnel_retry=(0.05, 15.0)))
    yield made
    for opening in list(made._tunnels):
        made.stop_tunnel(opening, graceful=False)
    assert wait_until(lambda: made._thread is None and threading.active_count() <= threads, 10)
    assert network.living == 0
    assert made.connection is None


def remote(port: int) -> Forwarding:
    return Forwarding(ForwardType.REMOTE, port, 80)


def local(port: int) -> Forwarding:
    return Forwarding(ForwardType.LOCAL, port, 80)


def tunnel(manager: TunnelManager, *ports: int, owner: object = None) -> Tunnel:
    return Tunnel(manager, [remote(port) for port in ports], owner=owner)


@attrs.define
class Caller:
    """Somebody who opens a tunnel, in a thread of their own."""

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
            self.opened = tunnel(self.manager, self.port)
        except Exception as error:  # noqa: BLE001 - it is looked at where the test waits
            self.error = error

    def done(self) -> Caller:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self


def waits(manager: TunnelManager, count: int) -> None:
    assert wait_until(lambda: len(manager._tunnels) == count, 10)


class Gate:
    """Holds up whoever comes, until it is opened; or, for a log-in, until nobody wants it any more."""

    def __init__(self) -> None:
        self.reached, self._go = threading.Event(), threading.Event()

    def __call__(self, *arguments: object) -> None:
        self.reached.set()
        [unwanted] = [each for each in arguments if isinstance(each, threading.Event)] or [self._go]
        assert wait_until(lambda: self._go.is_set() or unwanted.is_set(), 10)
        if not self._go.is_set():
            raise ConnectError("web1", "given up")

    def open(self) -> None:
        self._go.set()


# Shared ---------------------------------------------------------------------------------------------------------------


def test_the_first_dials_and_the_last_ends_it(manager: TunnelManager, network: Network) -> None:
    assert network.dials == 0
    tunnels = [tunnel(manager, port) for port in range(1, 11)]
    assert network.dials == 1
    assert {each.pid for each in tunnels} == {1001}
    assert all(each.is_up and each.is_alive() and each.exitcode is None for each in tunnels)
    for each in tunnels[:-1]:
        each.terminate()
        each.terminate()
        assert (each.is_alive(), each.is_up, each.exitcode, each.pid) == (False, False, 0, None)
        each.join()
    assert network.link.closed == [([remote(port)], True) for port in range(1, 10)]
    assert network.link.open_now == [remote(10)]
    assert tunnels[-1].is_up
    tunnels[-1].terminate()
    assert network.link.ended == [True]
    again = tunnel(manager, 1)
    assert (network.dials, again.pid) == (2, 1002)
    again.terminate()


def test_killing_one_does_not_kill_the_others(manager: TunnelManager, network: Network) -> None:
    first, second = tunnel(manager, 1), tunnel(manager, 2)
    first.kill()
    assert network.link.closed == [([remote(1)], False)]
    assert second.is_up
    second.kill()
    assert network.link.ended == [False]


def test_many_that_are_asked_to_end_end_together(manager: TunnelManager, network: Network) -> None:
    tunnels = [tunnel(manager, port) for port in range(1, 11)]
    gate = network.on_close = Gate()
    tunnels[0].request_stop()
    assert gate.reached.wait(10)
    for each in tunnels:
        each.request_stop()
    assert all(each.is_alive() for each in tunnels)
    assert not tunnels[1].join(0)  # type: ignore[func-returns-value]  # as of a process
    gate.open()
    for each in tunnels:
        each.terminate()
    assert network.link.closed == [([remote(1)], True)]
    assert network.link.ended == [True]


def test_several_forwardings_of_one_tunnel_stand_or_fall_together(manager: TunnelManager, network: Network) -> None:
    def refuse(_link: FakeTunnelConnection, forwarding: Forwarding) -> None:
        if forwarding.listen_port == 3:
            raise ForwardingRefusedError("web1", str(forwarding), "no")

    both = Tunnel(manager, [local(1), remote(2)])
    assert both.name == "tunnel to web1: -L localhost:1:localhost:80, -R localhost:2:localhost:80"
    assert repr(both) == f"<Tunnel {both.name}, alive>"
    network.on_open = refuse
    with pytest.raises(ForwardingRefusedError):
        tunnel(manager, 4, 5, 3, 6)
    assert network.link.open_now == [local(1), remote(2)]
    both.terminate()
    assert repr(both) == f"<Tunnel {both.name}, stopped>"


def test_a_tunnel_of_nothing(manager: TunnelManager, network: Network) -> None:
    with pytest.raises(ValueError, match="forwardings must not be empty"):
        Tunnel(manager, [])
    assert network.dials == 0


def test_a_port_that_another_tunnel_of_the_host_has_is_in_use(manager: TunnelManager, network: Network) -> None:
    """Two that come at once both find it free, and ssh says of the second that it is open already."""
    one, other = Tunnel(manager, [remote(1)]), Tunnel(manager, [local(1)])
    for forwarding, host in ((remote(1), "web1"), (local(1), "localhost")):
        with pytest.raises(PortInUseError) as caught:
            Tunnel(manager, [remote(2), forwarding])
        assert (caught.value.host, caught.value.port) == (host, 1)
    with pytest.raises(PortInUseError):
        Tunnel(manager, [remote(3), remote(3)])
    assert network.link.open_now == [remote(1), local(1)]
    one.terminate()
    other.terminate()


def test_a_port_that_is_taken_here_is_found_before_anybody_is_dialled(
    manager: TunnelManager, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel_manager_module, "is_port_free", lambda port: port != 1)
    with pytest.raises(PortInUseError):
        Tunnel(manager, [local(1)])
    assert network.dials == 0


# At the same time -----------------------------------------------------------------------------------------------------


def test_those_who_come_at_once_share_one_log_in(manager: TunnelManager, network: Network) -> None:
    gate = network.on_dial = Gate()
    callers = [Caller(manager, port) for port in range(1, 9)]
    waits(manager, 8)
    gate.open()
    assert all(caller.done().opened for caller in callers)
    assert network.dials == 1
    assert len(network.link.open_now) == 8


def test_those_who_wait_for_a_log_in_that_fails_get_an_error_each(manager: TunnelManager, network: Network) -> None:
    gate = Gate()

    def fail(_stopping: threading.Event) -> None:
        gate()
        raise UNREACHABLE from OSError("cause")

    network.on_dial = fail
    first = Caller(manager, 1)
    assert gate.reached.wait(10)
    others = [Caller(manager, port) for port in range(2, 9)]
    waits(manager, 8)
    gate.open()
    errors = [caller.done().error for caller in (first, *others)]
    assert [type(error) for error in errors] == [HostUnreachableError] * 8
    assert {str(error) for error in errors} == {str(UNREACHABLE)}
    assert len({id(error) for error in errors}) == 8
    assert all(error is not None and isinstance(error.__cause__, OSError) for error in errors)
    assert network.dials == 2, "who came after the first began shares the second"


def test_a_stop_gives_up_a_log_in_that_nobody_else_wants(manager: TunnelManager, network: Network) -> None:
    gate = network.on_dial = Gate()
    caller = Caller(manager, 1)
    assert gate.reached.wait(10)
    [opening] = manager._tunnels
    manager.stop_tunnel(opening, graceful=True)
    assert opening.ended.is_set()
    caller.done()
    assert network.links == []


def test_who_comes_when_a_log_in_was_given_up_has_one_of_their_own(manager: TunnelManager, network: Network) -> None:
    gate = Gate()

    def given_up(stopping: threading.Event) -> None:
        network.on_dial = nothing
        assert stopping.wait(10)
        gate()
        raise ConnectError("web1", "given up")

    network.on_dial = given_up
    Caller(manager, 1)
    assert wait_until(lambda: network.dials == 1, 10)
    [opening] = manager._tunnels
    manager.stop_tunnel(opening, graceful=True, wait=False)
    assert gate.reached.wait(10)
    caller = Caller(manager, 2)
    waits(manager, 2)
    gate.open()
    assert caller.done().opened is not None
    assert (network.dials, network.link.open_now) == (2, [remote(2)])


def test_an_interrupt_while_it_waits_leaves_nothing(
    manager: TunnelManager, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = network.on_dial = Gate()

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert gate.reached.wait(10)
            raise KeyboardInterrupt

    add = manager._add

    def adding(opening: Tunnel) -> None:
        opening.settled = Interrupted()
        add(opening)

    monkeypatch.setattr(manager, "_add", adding)
    with pytest.raises(KeyboardInterrupt):
        tunnel(manager, 1)
    assert (manager._tunnels, network.links) == ([], [])


def test_who_comes_while_the_last_one_is_stopped_gets_a_connection(manager: TunnelManager, network: Network) -> None:
    first = tunnel(manager, 1)
    gate = network.on_end = Gate()
    stopping = threading.Thread(target=first.terminate)
    stopping.start()
    assert gate.reached.wait(10)
    caller = Caller(manager, 2)
    waits(manager, 2)
    assert first.is_alive()
    gate.open()
    stopping.join(10)
    assert caller.done().opened is not None
    assert (network.dials, network.living, network.link.open_now) == (2, 1, [remote(2)])


def test_stopping_while_one_is_opened_waits_and_closes_it(manager: TunnelManager, network: Network) -> None:
    first = tunnel(manager, 1)
    gate = network.on_open = Gate()
    caller = Caller(manager, 2)
    assert gate.reached.wait(10)
    opening = manager._tunnels[-1]
    stopping = threading.Thread(target=manager.stop_tunnel, args=(opening,), kwargs={"graceful": False})
    stopping.start()
    assert wait_until(lambda: opening.stop_requested, 10)
    gate.open()
    stopping.join(10)
    caller.done()
    assert network.link.open_now == [remote(1)]
    first.terminate()


@pytest.mark.parametrize("error", [PortInUseError("web1", 1), ForwardingRefusedError("web1", "-R", "no")])
def test_a_first_one_that_fails_leaves_no_connection(
    manager: TunnelManager, network: Network, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    network.on_open = fail
    with pytest.raises(type(error)) as caught:
        tunnel(manager, 1)
    assert str(caught.value) == str(error)
    assert network.link.ended == [True], "before it is raised"


def test_one_that_fails_among_good_ones_disturbs_none(manager: TunnelManager, network: Network) -> None:
    def fail(_link: FakeTunnelConnection, forwarding: Forwarding) -> None:
        if forwarding.listen_port % 2:
            raise ForwardingRefusedError("web1", str(forwarding), "no")

    network.on_open = fail
    callers = [Caller(manager, port).done() for port in range(1, 9)]
    assert [caller.opened is None for caller in callers] == [True, False] * 4
    assert network.link.open_now == [remote(2), remote(4), remote(6), remote(8)]
    assert all(caller.opened.is_up for caller in callers if caller.opened)


# Brought back ---------------------------------------------------------------------------------------------------------


def test_all_that_stood_is_brought_back(
    manager: TunnelManager, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    tunnels = [tunnel(manager, port) for port in range(1, 11)]
    failures = iter([UNREACHABLE, UNREACHABLE])

    def fail(_stopping: threading.Event) -> None:
        for error in failures:
            raise error

    network.on_dial = fail
    with caplog.at_level(logging.WARNING):
        network.link.break_connection()
        assert wait_until(lambda: all(each.is_up for each in tunnels), 10)
    assert (network.dials, network.living) == (4, 1)
    assert network.links[0].ended == [False]
    assert {each.pid for each in tunnels} == {1004}
    assert network.link.open_now == [remote(port) for port in range(1, 11)]
    assert caplog.messages == [
        "tunnels to web1: the connection is gone (broken pipe); bringing back 10",
        f"tunnels to web1: the connection is not back yet: {UNREACHABLE}",
        "tunnels to web1: the connection is back",
    ]


def test_one_that_cannot_be_opened_again_is_tried_again_and_disturbs_none(
    manager: TunnelManager, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    tunnels = [tunnel(manager, port) for port in range(1, 4)]
    tries: list[Forwarding] = []

    def taken(_link: FakeTunnelConnection, forwarding: Forwarding) -> None:
        if forwarding.listen_port == 2 and len(tries) < 3:
            tries.append(forwarding)
            raise PortInUseError("web1", 2)

    network.on_open = taken
    with caplog.at_level(logging.WARNING):
        network.link.break_connection()
        assert wait_until(lambda: tunnels[0].is_up and tunnels[2].is_up, 10)
        assert tunnels[1].is_alive()
        assert wait_until(lambda: tunnels[1].is_up, 10)
    assert (len(tries), network.dials) == (3, 2)
    said = [message for message in caplog.messages if ", port" not in message and "-R localhost:2:" in message]
    assert len(said) == 2
    assert "not open again yet: " in said[0]
    assert said[1] == f"{tunnels[1].name}: open again"


def test_one_may_come_and_one_may_go_while_the_link_is_down(manager: TunnelManager, network: Network) -> None:
    first, second = tunnel(manager, 1), tunnel(manager, 2)
    gate = network.on_dial = Gate()
    network.link.break_connection()
    assert gate.reached.wait(10)
    assert (first.is_up, first.pid, first.is_alive()) == (False, None, True)
    caller = Caller(manager, 3)
    waits(manager, 3)
    begun = time.monotonic()
    first.terminate()  # though nobody lets the log-in go on
    assert not first.is_alive()
    assert time.monotonic() - begun < 5
    gate.open()
    assert caller.done().opened is not None
    assert wait_until(lambda: second.is_up, 10)
    assert sorted(forwarding.listen_port for forwarding in network.link.open_now) == [2, 3]


def test_the_last_one_may_go_while_the_link_is_down(manager: TunnelManager, network: Network) -> None:
    tunnels = [tunnel(manager, 1), tunnel(manager, 2)]
    gate = network.on_dial = Gate()
    network.link.break_connection()
    assert gate.reached.wait(10)
    for each in tunnels:
        each.terminate()
        assert not each.is_alive()
    assert network.living == 0


def test_who_comes_during_a_pause_does_not_wait_for_its_end(manager: TunnelManager, network: Network) -> None:
    manager.timeouts = Timeouts(tunnel_retry=(1000.0, 1000.0))
    first = tunnel(manager, 1)
    network.link.break_connection()
    assert wait_until(lambda: manager.connection is None, 10)
    second = tunnel(manager, 2)
    assert wait_until(lambda: first.is_up and second.is_up, 10)


def test_who_comes_while_the_host_is_gone_hears_it_and_the_others_wait_on(
    manager: TunnelManager, network: Network
) -> None:
    def fail(_stopping: threading.Event) -> None:
        raise UNREACHABLE

    first = tunnel(manager, 1)
    network.on_dial = fail
    network.link.break_connection()
    with pytest.raises(HostUnreachableError):
        tunnel(manager, 2)
    assert first.is_alive()
    network.on_dial = nothing
    assert wait_until(lambda: first.is_up, 10)


def test_a_connection_that_was_dead_already_costs_a_newcomer_nothing(manager: TunnelManager, network: Network) -> None:
    first = tunnel(manager, 1)
    dead = network.link

    def die(link: FakeTunnelConnection, _forwarding: Forwarding) -> None:
        link.has_exited = link is dead

    network.on_open = die
    second = tunnel(manager, 2)
    assert second.pid == 1002
    assert wait_until(lambda: first.is_up, 10)


def test_a_connection_that_dies_again_and_again_is_an_error_to_a_newcomer(
    manager: TunnelManager, network: Network
) -> None:
    def die(link: FakeTunnelConnection, _forwarding: Forwarding) -> None:
        link.has_exited = True

    network.on_open = die
    with pytest.raises(ConnectError, match="the connection of a tunnel broke: no answer, broken pipe"):
        tunnel(manager, 1)
    assert (network.dials, network.living) == (2, 0)


def test_a_loss_that_a_stop_finds_brings_the_others_back(manager: TunnelManager, network: Network) -> None:
    first, second = tunnel(manager, 1), tunnel(manager, 2)

    def die() -> None:
        network.links[0].has_exited = True

    network.on_close = die
    first.terminate()
    assert not first.is_alive()
    assert network.links[0].ended == [False], "its ports are free"
    assert wait_until(lambda: second.is_up and network.link.open_now == [remote(2)], 10)


# Owners, destructors, forks -------------------------------------------------------------------------------------------


class Owner:
    """Somebody whose end is noticed."""


def test_an_owner_lives_as_long_as_their_tunnel(manager: TunnelManager, network: Network) -> None:
    first, second = Owner(), Owner()
    gone = [weakref.ref(first), weakref.ref(second)]
    tunnels = [tunnel(manager, 1, owner=first), tunnel(manager, 2, owner=second)]
    del first, second
    network.link.break_connection()
    assert wait_until(lambda: all(each.is_up for each in tunnels), 10)
    gc.collect()
    assert [reference() is None for reference in gone] == [False, False]
    tunnels[0].terminate()
    assert wait_until(lambda: [reference() is None for reference in gone] == [True, False], 10)
    tunnels[1].request_stop()
    assert wait_until(lambda: gone[1]() is None, 10)
    with pytest.raises(PortInUseError):
        Tunnel(manager, [remote(1), remote(1)], owner=(third := Owner()))
    gone, third = [weakref.ref(third)], Owner()
    gc.collect()
    assert gone[0]() is None


def test_a_tunnel_may_be_stopped_in_the_thread_that_carries_it(manager: TunnelManager, network: Network) -> None:
    """As by the destructor of something that is collected there."""
    first, second = tunnel(manager, 1), tunnel(manager, 2)

    def stop() -> None:
        assert threading.current_thread() is manager._thread
        second.terminate()

    network.on_close = stop
    first.terminate()
    second.join(10)
    assert not second.is_alive()


def test_after_a_fork_the_tunnels_are_the_parents(manager: TunnelManager, network: Network) -> None:
    first = tunnel(manager, 1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            states: list[object] = [first.is_alive(), first.exitcode, first.pid, first.is_up]
            first.terminate()
            first.kill()
            first.request_stop()
            first.join()
            mine = tunnel(manager, 1)
            states += [mine.pid, mine.is_up]
            mine.terminate()
            states += [network.links[0].ended, network.links[1].ended]
            os.write(writer, repr(states).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        assert answer.read() == repr([False, 0, None, False, 1002, True, [], [True]])
    os.waitpid(child, 0)
    assert first.is_up
    assert network.link.open_now == [remote(1)]
    first.terminate()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_lets_nobody_wait_for_ever(manager: TunnelManager, network: Network) -> None:
    first = tunnel(manager, 1)

    def fail() -> None:
        raise AssertionError("a defect")

    network.on_close = fail
    second = tunnel(manager, 2)
    second.terminate()
    first.join(10)
    assert (first.exitcode, second.exitcode) == (1, 1)
    network.on_close = nothing
    assert tunnel(manager, 3).is_up


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_is_told_to_who_waits(
    manager: TunnelManager, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a defect")

    monkeypatch.setattr(manager, "_connect", fail)
    with pytest.raises(TunnelError, match="AssertionError: a defect"):
        tunnel(manager, 1)


def test_no_thread_to_be_had(manager: TunnelManager, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            tunnel(manager, 1)
    assert tunnel(manager, 1).is_up


def test_everything_at_once_again_and_again(manager: TunnelManager, network: Network) -> None:
    """Threads that open and stop, and a link that breaks: whoever opened has it, and at the end nothing is left."""
    ends = threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            while not ends.is_set():
                mine = tunnel(manager, number)
                (mine.kill if number % 2 else mine.terminate)()
                assert not mine.is_alive()
                assert mine.exitcode == 0
        except ConnectError as error:
            assert "broke" in str(error)  # twice in a row  # noqa: PT017
        except BaseException as error:  # noqa: BLE001 - it is raised where the test waits
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    lasting = tunnel(manager, 100)
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert wait_until(lambda: lasting.is_up, 10)
        link = network.link
        if not link.ended:
            with contextlib.suppress(OSError):  # it was ended just now
                link.break_connection()
        assert wait_until(lambda: network.living <= 1, 10)
    ends.set()
    for thread in threads:
        thread.join(10)
    assert failures == []
    assert wait_until(lambda: lasting.is_up and network.link.open_now == [remote(100)], 10)
    lasting.terminate()
