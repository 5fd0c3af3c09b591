"""One ssh connection that carries forwardings: a master of its own, apart from that of the commands, and its lifeline.

Forwardings are opened over its control socket. So those in a user's configuration can be cleared without losing ours, a
refusal comes with its reason, and one more takes no further connection.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Sequence

from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._model.timeouts import Timeouts
from lazycluster._remote.ports import is_port_free
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.diagnosis import ForwardingFailure, diagnose_forwarding
from lazycluster._ssh.lifeline import Lifeline
from lazycluster._ssh.master import Master
from lazycluster._ssh.mux import ControlSocket, ControlSocketError, RequestRefusedError
from lazycluster.exceptions import ConnectError, ForwardingRefusedError, PortInUseError, TunnelError

LOCALHOST = "localhost"
# ssh writes these lines if it cannot open a forwarding, or if no server takes a connection through one.
_TRAFFIC_LOG_LINE = re.compile(r"(?:channel \d+: |connect_to |channel_setup_fwd_|mux_\w+: |bind \S+: )")


class TunnelConnectionLostError(Exception):
    """The connection is gone, or its ssh does not answer."""


class TunnelConnection:
    """A connection, used by one thread; any may look at its `pid` and whether it is `has_exited`."""

    def __init__(
        self,
        destination: Destination,
        master: Master,
        control_socket: ControlSocket,
        lifeline: Lifeline,
        timeouts: Timeouts,
    ) -> None:
        """Take over a master that is logged in."""
        self._timeouts = timeouts
        self._destination = destination
        self._master = master
        self._control_socket = control_socket
        self._lifeline = lifeline
        self._unresponsive = False
        self._next_check = time.monotonic() + self._timeouts.tunnel_check_interval

    @classmethod
    def connect(
        cls, destination: Destination, password: str | None, cancel_event: threading.Event, timeouts: Timeouts
    ) -> TunnelConnection:
        """Log in.

        Raises:
            ConnectError: If the log-in fails or `cancel_event` ends it, or the connection ends.
        """
        master = Master.connect(destination, password=password, cancel_event=cancel_event, timeouts=timeouts)
        try:
            lifeline = Lifeline(master.control_socket, timeouts=timeouts)
            return cls(destination, master, master.control_socket, lifeline, timeouts)
        except ControlSocketError as error:
            reason = master.exit_reason
            master.close(force=True)
            raise ConnectError(destination.host, f"the connection of a tunnel broke: {error}, {reason}") from error
        except BaseException:
            master.close(force=True)
            raise

    @property
    def pid(self) -> int | None:
        """The process id of its ssh."""
        return self._master.pid

    @property
    def has_exited(self) -> bool:
        """Whether its ssh is known to have ended."""
        return self._master.has_exited

    @property
    def exit_reason(self) -> str:
        """The last line that its ssh has printed, as the cause of its end; lines about the traffic do not count."""
        lines = [
            line.strip() for line in self._master.log.splitlines() if line.strip() and not _TRAFFIC_LOG_LINE.match(line)
        ]
        return lines[-1] if lines else "the ssh process of the tunnels is gone"

    def is_lost(self) -> bool:
        """Return whether it is gone or stuck; it is asked every few seconds."""
        if not self.has_exited and time.monotonic() >= self._next_check:
            self._check_master()
        return self.has_exited or self._unresponsive

    def wait(self, timeout: float, wake_fd: int) -> None:
        """Wait until it is lost, or `wake_fd` is readable, at most `timeout` seconds."""
        until_check = max(0.0, self._next_check - time.monotonic())
        self._control_socket.wait_closed(min(timeout, until_check), wake_fd)

    def open_forwarding(self, forwarding: Forwarding) -> None:
        """Open a forwarding. When this returns, traffic flows; if it raises, nothing of the forwarding is left.

        Raises:
            PortInUseError: If the port to listen on is taken, here or on the host.
            ForwardingRefusedError: If the host does not allow it.
            TunnelError: If the host does not answer.
            TunnelConnectionLostError: If the connection breaks.
        """
        try:
            if forwarding.type is ForwardType.LOCAL:
                self._open_local(forwarding)
            else:
                self._open_remote(forwarding)
        except (ControlSocketError, FileNotFoundError) as error:
            self.close_forwardings([forwarding], graceful=False)
            if not self._check_master():
                raise TunnelConnectionLostError(f"{error}, {self.exit_reason}") from error
            raise TunnelError(self._destination.host, str(forwarding), str(error)) from error

    def close_forwardings(self, forwardings: Sequence[Forwarding], *, graceful: bool) -> None:
        """Stop listening. If `graceful`, wait until the host has closed its ports. Open connections go on.

        Raises:
            TunnelConnectionLostError: If the connection breaks.
        """
        try:
            for forwarding in forwardings:
                with contextlib.suppress(RequestRefusedError):  # it was not open
                    self._control_socket.close_forward(forwarding)
        except ControlSocketError as error:
            self._unresponsive = True
            raise TunnelConnectionLostError(f"{error}, {self.exit_reason}") from error
        if graceful and any(forwarding.type is ForwardType.REMOTE for forwarding in forwardings):
            # The host handles requests in order: when this one is answered, even by a refusal, its ports are closed.
            with contextlib.suppress(ControlSocketError, FileNotFoundError, RequestRefusedError):
                self._control_socket.probe(LOCALHOST, 0, timeout=self._timeouts.tunnel_close)

    def close(self, forwardings: Sequence[Forwarding] = (), *, graceful: bool) -> None:
        """End the connection. If `graceful`, close the forwardings first, so that the host has closed its ports."""
        if graceful:
            with contextlib.suppress(TunnelConnectionLostError):
                self.close_forwardings(forwardings, graceful=True)
        self._lifeline.drop()
        self._master.close(force=self._unresponsive or not graceful)

    def _check_master(self) -> bool:
        """Ask its ssh for an answer, and return whether one came."""
        self._next_check = time.monotonic() + self._timeouts.tunnel_check_interval
        self._unresponsive = self._unresponsive or not self._master.check()
        return not self._unresponsive

    def _open_local(self, forwarding: Forwarding) -> None:
        # ssh is content with one of IPv4 and IPv6 if the other is taken.
        if not is_port_free(forwarding.listen_port):
            raise PortInUseError(LOCALHOST, forwarding.listen_port)
        log_offset = self._master.log_size
        try:
            self._request_forwarding(forwarding)
        except RequestRefusedError as error:
            raise PortInUseError(LOCALHOST, forwarding.listen_port) from error
        try:
            self._control_socket.probe(forwarding.connect_host, forwarding.connect_port)
        except RequestRefusedError as error:
            lines = self._master.log_since(log_offset)
            if diagnose_forwarding(lines) is ForwardingFailure.PROHIBITED:
                self.close_forwardings([forwarding], graceful=False)
                reason = _failure_reason(lines, ForwardingFailure.PROHIBITED)
                raise ForwardingRefusedError(self._destination.host, str(forwarding), reason) from error
            # No program listens at the far end yet: the request and its answer have gone through all the same.

    def _open_remote(self, forwarding: Forwarding) -> None:
        for address in ("127.0.0.1", "::1"):  # sshd, too, is content with one of them
            with contextlib.suppress(RequestRefusedError):
                self._control_socket.probe(address, forwarding.listen_port)
                raise PortInUseError(self._destination.host, forwarding.listen_port)
        log_offset = self._master.log_size
        try:
            self._request_forwarding(forwarding)
        except RequestRefusedError as error:
            reason = _failure_reason(self._master.log_since(log_offset), ForwardingFailure.REMOTE_LISTEN)
            raise ForwardingRefusedError(self._destination.host, str(forwarding), reason) from error

    def _request_forwarding(self, forwarding: Forwarding) -> None:
        """Request a forwarding over a connection of its own, so that a late answer affects no other request."""
        control_socket = ControlSocket(self._master.socket_path, timeout=self._timeouts.control_socket)
        try:
            control_socket.open_forward(forwarding)
        finally:
            control_socket.close()


def _failure_reason(log: str, failure: ForwardingFailure) -> str:
    """Return the lines of ssh about a failure, without those about the traffic of other tunnels."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return "\n".join([line for line in lines if diagnose_forwarding(line) is failure] or lines)
