"""The one ssh connection for all tunnels of a host: made for the first, restored, and ended after the last.

One thread owns the connection and works in steps; before each step it looks at the tunnels that are wanted now. Other
threads post requests and wait. So all events are serialized: an opening, a stop, the end of the connection.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Sequence

from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._model.timeouts import DEFAULT_TIMEOUTS, Timeouts
from lazycluster._processes.forks import reset_in_forks
from lazycluster._remote.ports import is_port_free
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.mux import wait_readable
from lazycluster._ssh.tunnel import Tunnel
from lazycluster._ssh.tunnel_connection import LOCALHOST, TunnelConnection, TunnelConnectionLostError
from lazycluster._waiting import BackOff, Waker, start_thread, wait_event
from lazycluster.exceptions import ConnectError, PortInUseError, TunnelError

_log = logging.getLogger(__name__)
_MAX_LOST_CONNECTIONS_BEFORE_OPEN = 2
"""Lost connections after which a tunnel that never opened fails: the first may have been dead before."""


class TunnelManager:
    """Carries the tunnels of one host through one connection, for as long as there are any. Any thread may use it.

    When the connection breaks, a new one is made, with pauses between the tries that grow from 0.5 s to 15 s. All
    forwardings are then opened again. One that cannot be opened, such as for a taken port, is tried again likewise.
    """

    def __init__(
        self, destination: Destination, *, password: str | None = None, timeouts: Timeouts = DEFAULT_TIMEOUTS
    ) -> None:
        """Keep the destination; the first tunnel logs in."""
        self.timeouts = timeouts
        self.host = destination.host
        self._destination = destination
        self._password = password
        self._initialize()
        reset_in_forks(self)

    def _initialize(self) -> None:
        self._lock = threading.RLock()  # a destructor that stops a tunnel may run anywhere
        self._tunnels: list[Tunnel] = []
        self._connect_cancelled = threading.Event()
        self._thread: threading.Thread | None = None
        self._waker: Waker | None = None
        self._connection: TunnelConnection | None = None
        self._back_off = self.new_back_off()
        self._outage_reported = False

    def reset_after_fork(self) -> None:
        """Begin without a connection, in a forked child: there its parent's tunnels have ended."""
        tunnels, waker = self._tunnels, self._waker
        self._initialize()
        if waker is not None:
            waker.close()
        for tunnel in tunnels:
            tunnel.reset()

    def new_back_off(self) -> BackOff:
        """Return the pauses between tries of one forwarding."""
        return BackOff(*self.timeouts.tunnel_retry)

    # Requests ------------------------------------------------------------------------------------------------------

    @property
    def connection(self) -> TunnelConnection | None:
        """The connection; None while there is no connection."""
        return self._connection

    @property
    def tunnels(self) -> tuple[Tunnel, ...]:
        """The tunnels that have not ended, in the order in which they were opened."""
        with self._lock:
            return tuple(self._tunnels)

    def open_tunnel(self, tunnel: Tunnel) -> None:
        """Open all forwardings of a tunnel, and log in first if need be; when this returns, traffic flows.

        If one cannot be opened, all are closed, and so is a connection that no other tunnel uses.

        Raises:
            PortInUseError: If a port to listen on is taken, here or on the host.
            ForwardingRefusedError: If the host does not allow it.
            ConnectError: If the log-in fails.
            TunnelError: If the connection breaks, or the host does not answer.
        """
        for forwarding in tunnel.forwardings:
            if forwarding.type is ForwardType.LOCAL and not is_port_free(forwarding.listen_port):
                raise PortInUseError(LOCALHOST, forwarding.listen_port)
        try:
            self._add(tunnel)
            wait_event(tunnel.settled)
        except BaseException:
            self.stop_tunnel(tunnel, graceful=False)
            raise
        error, tunnel.error = tunnel.error, None
        if error is not None:
            # Several may have waited for the same log-in, and each needs an exception of its own to raise.
            raise copy.copy(error).with_traceback(error.__traceback__) from error.__cause__

    def stop_tunnel(self, tunnel: Tunnel, *, graceful: bool, wait: bool = True) -> None:
        """Close the forwardings of a tunnel, and the connection if no other tunnel uses it. Stopping twice is fine."""
        with self._lock:
            tunnel.graceful = tunnel.graceful and graceful
            if tunnel in self._tunnels:
                tunnel.stop_requested = True
                others = any(not other.stop_requested for other in self._tunnels)
                if not others:
                    self._connect_cancelled.set()
                elif self._connection is None:  # no forwarding of it is open, and the log-in goes on for others
                    self._tunnels.remove(tunnel)
                self._wake()
            ended = tunnel not in self._tunnels
        if ended:
            tunnel.mark_ended()
        elif wait and threading.current_thread() is not self._thread:
            wait_event(tunnel.ended)

    def _add(self, tunnel: Tunnel) -> None:
        with self._lock:
            taken = {(each.type, each.listen_port) for other in self._tunnels for each in other.forwardings}
            for forwarding in tunnel.forwardings:
                # ssh itself would say that the second was open, and close it with the first.
                if (forwarding.type, forwarding.listen_port) in taken:
                    here = forwarding.type is ForwardType.LOCAL
                    raise PortInUseError(LOCALHOST if here else self.host, forwarding.listen_port)
                taken.add((forwarding.type, forwarding.listen_port))
            if self._thread is None:
                self._start_thread()
            self._tunnels.append(tunnel)
            self._connect_cancelled.clear()
            self._wake()

    def _start_thread(self) -> None:
        """Start the thread, which waits for the lock and then finds its work."""
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, args=(self._waker,), name=f"tunnels to {self.host}")
        self._thread.daemon = True
        try:
            start_thread(self._thread)
        except BaseException:
            self._waker.close()
            self._waker = self._thread = None
            raise

    def _wake(self) -> None:
        if self._waker is not None:
            self._waker.wake()

    # The thread ----------------------------------------------------------------------------------------------------

    def _run(self, waker: Waker) -> None:
        try:
            while self._run_step(waker):
                pass
        except BaseException as error:
            self._fail_all(waker, error)
            raise

    def _run_step(self, waker: Waker) -> bool:
        """Do the next thing that is due, or wait for one; return whether to go on."""
        with self._lock:
            stopped = [tunnel for tunnel in self._tunnels if tunnel.stop_requested]
            active = [tunnel for tunnel in self._tunnels if not tunnel.stop_requested]
            if not self._tunnels:  # the connection ended with the last
                self._finish_thread(waker)
                return False
        if stopped:
            self._close_stopped(stopped, last=not active)
        elif self._connection is None:
            self._connect(active, waker)
        elif self._connection.is_lost():
            self._handle_lost_connection(self._connection.exit_reason)
        else:
            self._open_next(self._connection, active, waker)
        return True

    def _finish_thread(self, waker: Waker) -> None:
        self._thread = self._waker = None
        self._back_off, self._outage_reported = self.new_back_off(), False
        waker.close()

    def _close_stopped(self, stopped: Sequence[Tunnel], *, last: bool) -> None:
        """Close stopped tunnels, with the connection if no other is left; only then record that they have ended."""
        forwardings = [forwarding for tunnel in stopped for forwarding in tunnel.open_forwardings]
        graceful = any(tunnel.graceful for tunnel in stopped)
        if self._connection is not None:
            if last:
                self._connection.close(forwardings, graceful=graceful)
                self._connection = None
            else:
                try:
                    self._connection.close_forwardings(forwardings, graceful=graceful)
                except TunnelConnectionLostError as error:
                    self._handle_lost_connection(str(error))
        with self._lock:
            self._tunnels = [tunnel for tunnel in self._tunnels if tunnel not in stopped]
        for tunnel in stopped:
            tunnel.mark_ended()

    def _connect(self, active: Sequence[Tunnel], waker: Waker) -> None:
        opening = [tunnel for tunnel in active if not tunnel.has_opened]
        if not opening and self._back_off.remaining:
            wait_readable([waker.fileno()], self._back_off.remaining)
            waker.drain()
            return
        try:
            connection = TunnelConnection.connect(
                self._destination, self._password, self._connect_cancelled, self.timeouts
            )
        except Exception as error:  # noqa: BLE001 - it is raised in the threads that wait
            is_first_failure = (
                len(opening) < len(active) and not self._outage_reported and not self._connect_cancelled.is_set()
            )
            self._outage_reported = self._outage_reported or is_first_failure
            level = logging.WARNING if is_first_failure else logging.DEBUG
            _log.log(level, "tunnels to %s: the connection is not back yet: %s", self.host, error)
            self._back_off.record_failure()
            with self._lock:
                for tunnel in opening:
                    if not tunnel.stop_requested:
                        tunnel.fail(error)
        else:
            self._connection, self._back_off, self._outage_reported = connection, self.new_back_off(), False
            if len(opening) < len(active):
                _log.warning("tunnels to %s: the connection is back", self.host)

    def _handle_lost_connection(self, reason: str) -> None:
        """Close a connection that is gone or stuck; its forwardings are opened again on the next one."""
        if self._connection is not None:
            self._connection.close(graceful=False)  # before others see that it is gone, and take its ports for free
            self._connection = None
        self._back_off = self.new_back_off()
        self._back_off.record_failure()
        with self._lock:
            active = [tunnel for tunnel in self._tunnels if not tunnel.stop_requested]
            for tunnel in self._tunnels:
                tunnel.mark_closed()
        for tunnel in active:
            tunnel.lost_connections += not tunnel.has_opened
            if tunnel.lost_connections >= _MAX_LOST_CONNECTIONS_BEFORE_OPEN:
                tunnel.fail(ConnectError(self.host, f"the connection of a tunnel broke: {reason}"))
        reopening = sum(tunnel.has_opened for tunnel in active)
        if reopening:
            _log.warning("tunnels to %s: the connection is gone (%s); bringing back %d", self.host, reason, reopening)

    def _open_next(self, connection: TunnelConnection, active: Sequence[Tunnel], waker: Waker) -> None:
        closed = [
            (back_off.remaining, tunnel, forwarding)
            for tunnel in active
            for forwarding, back_off in tunnel.closed_forwardings.items()
        ]
        for remaining, tunnel, forwarding in closed:
            if not remaining:
                self._open_forwarding(connection, tunnel, forwarding)
                return
        connection.wait(
            min([remaining for remaining, _, _ in closed], default=self.timeouts.tunnel_check_interval), waker.fileno()
        )
        waker.drain()

    def _open_forwarding(self, connection: TunnelConnection, tunnel: Tunnel, forwarding: Forwarding) -> None:
        back_off = tunnel.closed_forwardings[forwarding]
        try:
            connection.open_forwarding(forwarding)
        except TunnelConnectionLostError as error:
            self._handle_lost_connection(str(error))
        except Exception as error:  # noqa: BLE001 - it is raised in the threads that wait
            if not tunnel.has_opened:
                tunnel.fail(error)
                return
            level = logging.DEBUG if back_off.has_failed else logging.WARNING
            back_off.record_failure()
            _log.log(level, "%s: not open again yet: %s", tunnel.name, error)
        else:
            if back_off.has_failed:
                _log.warning("%s: open again", tunnel.name)
            tunnel.mark_open(forwarding)

    def _fail_all(self, waker: Waker, error: BaseException) -> None:
        """End everything after an unforeseen error, so that no thread waits for ever."""
        with self._lock:
            tunnels, self._tunnels = self._tunnels, []
            connection, self._connection = self._connection, None
            self._finish_thread(waker)
        for tunnel in tunnels:
            if not tunnel.has_opened:
                tunnel.error = TunnelError(self.host, tunnel.name, f"{type(error).__name__}: {error}")
            tunnel.mark_ended(exitcode=1)
        if connection is not None:
            connection.close(graceful=False)
