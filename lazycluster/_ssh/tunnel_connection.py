"""One ssh connection that carries forwardings: a master of its own, apart from that of the commands, and its keeper.

Forwardings are opened over its control socket, so that those in a user's configuration can be cleared without losing
ours, so that a refusal comes with its reason, and so that one more takes no further connection.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Sequence

from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._remote.ports import is_free
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.diagnosis import ForwardFailure, forwarding_refused
from lazycluster._ssh.lifeline import Keeper
from lazycluster._ssh.master import Master
from lazycluster._ssh.mux import ControlSocket, ControlSocketError, RequestRefusedError
from lazycluster.exceptions import ConnectError, ForwardingRefusedError, PortInUseError, TunnelError

_CHECK_EVERY = 5.0
_ANSWER_TIMEOUT = 5.0
_PARTING = 2.0
"""Seconds for the host to confirm that it has closed its ports, when a tunnel is stopped."""
LOCALHOST = "localhost"
# What ssh writes of a forwarding that it could not open, or of a connection through one that nobody takes.
_TRAFFIC = re.compile(r"(?:channel \d+: |connect_to |channel_setup_fwd_|mux_\w+: |bind \S+: )")


class LinkLostError(Exception):
    """The connection is gone, or its ssh does not answer."""


class Link:
    """A connection, used by one thread; any may look at its `pid` and whether it is `gone`."""

    def __init__(self, to: Destination, master: Master, control: ControlSocket, keeper: Keeper) -> None:
        """Take over a master that is logged in."""
        self._to = to
        self._master = master
        self._control = control
        self._keeper = keeper
        self._stuck = False
        self._check_at = time.monotonic() + _CHECK_EVERY

    @classmethod
    def dial(cls, to: Destination, password: str | None, stopping: threading.Event) -> Link:
        """Log in.

        Raises:
            ConnectError: The log-in failed, or was given up because `stopping` was set.
            TunnelError: The connection ended at once.
        """
        master = Master.dial(to, password=password, stopping=stopping)
        try:
            if master.control is None:
                raise TunnelError(to.host, "-N", f"the connection ended at once ({master.reason})")
            return cls(to, master, master.control, Keeper(master.control))
        except ControlSocketError as error:
            reason = master.reason
            master.close(stuck=True)
            raise ConnectError(to.host, f"the connection of a tunnel broke: {error}, {reason}") from error
        except BaseException:
            master.close(stuck=True)
            raise

    @property
    def pid(self) -> int | None:
        """Return the process id of its ssh."""
        return self._master.pid

    @property
    def gone(self) -> bool:
        """Tell whether its ssh is known to have ended."""
        return self._master.gone

    @property
    def reason(self) -> str:
        """Return the last thing that its ssh has said, as the cause of its end; not what it said of the traffic."""
        lines = [line.strip() for line in self._master.log.splitlines() if line.strip() and not _TRAFFIC.match(line)]
        return lines[-1] if lines else "the ssh process of the tunnels is gone"

    def lost(self) -> bool:
        """Tell whether it is gone or stuck; it is asked every few seconds."""
        if not self.gone and time.monotonic() >= self._check_at:
            self._check()
        return self.gone or self._stuck

    def wait(self, seconds: float, bell: int) -> None:
        """Wait until it is lost, or `bell` is readable, at most so many seconds."""
        until_check = max(0.0, self._check_at - time.monotonic())
        self._control.wait_closed(min(seconds, until_check), bell)

    def open(self, forwarding: Forwarding) -> None:
        """Open a forwarding; when this returns traffic flows, and where it raises nothing of it is left.

        Raises:
            PortInUseError: The port to listen on is taken, here or on the host.
            ForwardingRefusedError: The host does not allow it.
            TunnelError: The host does not answer.
            LinkLostError: The connection broke.
        """
        try:
            if forwarding.type is ForwardType.LOCAL:
                self._open_local(forwarding)
            else:
                self._open_remote(forwarding)
        except (ControlSocketError, FileNotFoundError) as error:
            self.close([forwarding], gently=False)
            if not self._check():
                raise LinkLostError(f"{error}, {self.reason}") from error
            raise TunnelError(self._to.host, str(forwarding), str(error)) from error

    def close(self, forwardings: Sequence[Forwarding], *, gently: bool) -> None:
        """Stop to listen; gently: and wait until the host has stopped, too. Connections that are open go on.

        Raises:
            LinkLostError: The connection broke.
        """
        try:
            for forwarding in forwardings:
                with contextlib.suppress(RequestRefusedError):  # it was not open
                    self._control.close_forward(forwarding)
        except ControlSocketError as error:
            self._stuck = True
            raise LinkLostError(f"{error}, {self.reason}") from error
        if gently and any(forwarding.type is ForwardType.REMOTE for forwarding in forwardings):
            # The host handles requests in order: when this one is answered, in whatever way, its ports are closed.
            with contextlib.suppress(ControlSocketError, FileNotFoundError, RequestRefusedError):
                self._control.probe(LOCALHOST, 0, timeout=_PARTING)

    def end(self, forwardings: Sequence[Forwarding] = (), *, gently: bool) -> None:
        """End the connection; gently: after the forwardings, so that the host has closed its ports before."""
        if gently:
            with contextlib.suppress(LinkLostError):
                self.close(forwardings, gently=True)
        self._keeper.lose()
        self._master.close(stuck=self._stuck or not gently)

    def _check(self) -> bool:
        """Ask its ssh whether it is well, and return that."""
        self._check_at = time.monotonic() + _CHECK_EVERY
        self._stuck = self._stuck or not self._master.check()
        return not self._stuck

    def _open_local(self, forwarding: Forwarding) -> None:
        if not is_free(forwarding.listen_port):  # ssh is content with one of IPv4 and IPv6 where the other is taken
            raise PortInUseError(LOCALHOST, forwarding.listen_port)
        said = self._master.log_size
        try:
            self._request(forwarding)
        except RequestRefusedError as error:
            raise PortInUseError(LOCALHOST, forwarding.listen_port) from error
        try:
            self._control.probe(forwarding.connect_host, forwarding.connect_port)
        except RequestRefusedError as error:
            lines = self._master.log_since(said)
            if forwarding_refused(lines) is ForwardFailure.PROHIBITED:
                self.close([forwarding], gently=False)
                reason = _reason(lines, ForwardFailure.PROHIBITED)
                raise ForwardingRefusedError(self._to.host, str(forwarding), reason) from error
            # Nothing listens at the far end yet: the question and the answer have gone through all the same.

    def _open_remote(self, forwarding: Forwarding) -> None:
        for address in ("127.0.0.1", "::1"):  # sshd, too, is content with one of them
            with contextlib.suppress(RequestRefusedError):
                self._control.probe(address, forwarding.listen_port)
                raise PortInUseError(self._to.host, forwarding.listen_port)
        said = self._master.log_size
        try:
            self._request(forwarding)
        except RequestRefusedError as error:
            reason = _reason(self._master.log_since(said), ForwardFailure.LISTEN_THERE)
            raise ForwardingRefusedError(self._to.host, str(forwarding), reason) from error

    def _request(self, forwarding: Forwarding) -> None:
        """Ask for a forwarding over a connection of its own: one answer that is late must not cost the others."""
        control = ControlSocket(self._master.socket, timeout=_ANSWER_TIMEOUT)
        try:
            control.open_forward(forwarding)
        finally:
            control.close()


def _reason(log: str, failure: ForwardFailure) -> str:
    """Return what ssh said of a failure, without what it said meanwhile of the traffic of others."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return "\n".join([line for line in lines if forwarding_refused(line) is failure] or lines)
