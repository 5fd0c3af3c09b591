"""Tunnels: `ssh -N` processes that carry forwardings, watched and brought back.

A tunnel is a master of its own, apart from that of the commands: made in the same way, held in the same way, and gone
with its manager in the same way. Forwardings are opened over its control socket, so that the forwardings in a user's
configuration can be cleared without losing ours, and so that a refusal comes with its reason.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Sequence

from lazycluster.exceptions import (
    ConnectError,
    ForwardingRefusedError,
    LazyclusterError,
    PortInUseError,
    TunnelError,
)
from lazycluster.openssh.destination import Destination
from lazycluster.openssh.diagnosis import ForwardFailure, forwarding_refused
from lazycluster.openssh.forwarding import Forwarding, ForwardType
from lazycluster.openssh.keeper import Keeper
from lazycluster.openssh.master import Master
from lazycluster.openssh.mux import ControlSocketError, RequestRefusedError, readable
from lazycluster.openssh.ports import is_free

_log = logging.getLogger(__name__)
_BACK_OFF = (0.5, 15.0)
_CHECK_EVERY = 5.0
_PARTING = 2.0
"""Seconds for the host to confirm that it has closed a port, when a tunnel is stopped."""
_LOCAL = "localhost"


class Tunnel:
    """One connection that carries forwardings until it is stopped; a `ManagedProcess`.

    When the link breaks it is dialled again, with pauses that grow from 0.5 s to 15 s, until it is back or stopped.
    """

    def __init__(
        self,
        to: Destination,
        forwardings: Sequence[Forwarding],
        *,
        password: str | None = None,
        owner: object | None = None,
    ) -> None:
        """Log in, open the forwardings, and see that traffic flows. The owner lives as long as the tunnel runs.

        Raises:
            PortInUseError: A port to listen on is taken, here or on the host.
            ForwardingRefusedError: The host does not allow it.
            ConnectError: The log-in failed.
            TunnelError: The link broke meanwhile.
        """
        self._to = to
        self._password = password
        self._owner = owner
        self.forwardings = tuple(forwardings)
        self.name = f"tunnel to {to.host}: " + ", ".join(str(forwarding) for forwarding in self.forwardings)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._gently = True
        self._wake_read, self._wake_write = os.pipe()
        self._exitcode: int | None = None
        for forwarding in self.forwardings:
            if forwarding.type is ForwardType.LOCAL and not is_free(forwarding.listen_port):
                self._close_pipe()
                raise PortInUseError(_LOCAL, forwarding.listen_port)
        try:
            self._link: _Link | None = _Link(to, self.forwardings, password)
        except BaseException:
            self._close_pipe()
            raise
        self._thread = threading.Thread(target=self._watch, name=self.name, daemon=True)
        self._thread.start()

    def _close_pipe(self) -> None:
        os.close(self._wake_read)
        os.close(self._wake_write)

    def __repr__(self) -> str:
        """Return what it carries, and whether it does."""
        return f"<Tunnel {self.name}, {'alive' if self.is_alive() else 'stopped'}>"

    @property
    def pid(self) -> int | None:
        """Return the process id of the ssh that carries it, None while it is being brought back."""
        link = self._link
        return None if link is None else link.master.pid

    @property
    def exitcode(self) -> int | None:
        """Return None while it runs, 0 once it was stopped."""
        return self._exitcode

    def is_alive(self) -> bool:
        """Tell whether it has not been stopped; also while it is being brought back."""
        return self._exitcode is None

    @property
    def is_up(self) -> bool:
        """Tell whether its connection stands just now."""
        link = self._link
        return link is not None and not link.master.gone

    def join(self, timeout: float | None = None) -> None:
        """Wait until it was stopped, at most so many seconds."""
        self._thread.join(timeout)

    def terminate(self) -> None:
        """Close the ports on both ends, then the connection. Stopping twice is fine."""
        self._stop(gently=True)

    def kill(self) -> None:
        """Kill the ssh process."""
        self._stop(gently=False)

    def request_stop(self) -> None:
        """Ask it to end, and do not wait."""
        with self._lock:
            if not self._stopping.is_set():
                self._stopping.set()
                os.write(self._wake_write, b"x")

    def _stop(self, *, gently: bool) -> None:
        self._gently = self._gently and gently
        self.request_stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _watch(self) -> None:
        """Notice that the link is gone, and bring it back, until the tunnel is stopped."""
        link: _Link | None = self._link
        try:
            while link is not None and not self._stopping.is_set():
                if link.wait_gone(self._wake_read):
                    _log.warning("%s: the link is gone (%s); bringing it back", self.name, link.master.reason)
                    self._link = None
                    link.close(gently=False)
                    self._link = link = self._dial_again()
            if link is not None:
                link.close(gently=self._gently)
        finally:
            with self._lock:
                self._stopping.set()
                self._link = None
                self._exitcode = 0
                self._owner = None
                self._close_pipe()

    def _dial_again(self) -> _Link | None:
        pause = _BACK_OFF[0]
        while not self._stopping.wait(pause):
            try:
                link = _Link(self._to, self.forwardings, self._password, self._stopping)
            except (LazyclusterError, OSError) as error:
                _log.debug("%s: not back yet: %s", self.name, error)
                pause = min(2 * pause, _BACK_OFF[1])
            else:
                _log.warning("%s: the link is back", self.name)
                return link
        return None


class _Link:
    """One connection with its forwardings open, and its keeper."""

    def __init__(
        self,
        to: Destination,
        forwardings: Sequence[Forwarding],
        password: str | None,
        stopping: threading.Event | None = None,
    ) -> None:
        self._to = to
        self._forwardings = forwardings
        self._keeper: Keeper | None = None
        self.master = Master.dial(to, password=password, stopping=stopping)
        self._finalizer = weakref.finalize(self, self.master.let_go)
        # At the end of the program the owner of the tunnel stops it; else the link would go first and be missed.
        self._finalizer.atexit = False
        try:
            if self.master.control is None:
                raise TunnelError(to.host, "-N", f"the connection ended at once ({self.master.reason})")
            self.control = self.master.control
            self._keeper = Keeper(self.control)
            for forwarding in forwardings:
                self._open(forwarding)
        except ControlSocketError as error:
            self.close(gently=False)
            raise ConnectError(to.host, f"the connection of a tunnel broke: {error}, {self.master.reason}") from error
        except BaseException:
            self.close(gently=False)
            raise

    def _open(self, forwarding: Forwarding) -> None:
        said = len(self.master.log)
        if forwarding.type is ForwardType.REMOTE:
            self._check_free_there(forwarding.listen_port)
        try:
            self.control.open_forward(forwarding)
        except RequestRefusedError as error:
            if forwarding.type is ForwardType.LOCAL:
                raise PortInUseError(_LOCAL, forwarding.listen_port) from error
            raise ForwardingRefusedError(self._to.host, str(forwarding), self.master.log[said:].strip()) from error
        local = forwarding.type is ForwardType.LOCAL
        try:
            # On the host's side this is where the traffic goes in or comes out, in either direction.
            port = forwarding.connect_port if local else forwarding.listen_port
            self.control.probe(forwarding.connect_host if local else _LOCAL, port)
        except RequestRefusedError as error:
            failure = forwarding_refused(self.master.log[said:])
            if local and failure is ForwardFailure.PROHIBITED:
                reason = self.master.log[said:].strip()
                raise ForwardingRefusedError(self._to.host, str(forwarding), reason) from error
            # Nothing listens at the far end yet: the tunnel itself has carried the question and the answer.

    def _check_free_there(self, port: int) -> None:
        """See that nothing answers on the port; sshd is content with one of IPv4 and IPv6 where the other is taken."""
        for address in ("127.0.0.1", "::1"):
            with contextlib.suppress(RequestRefusedError):
                self.control.probe(address, port)
                raise PortInUseError(self._to.host, port)

    def wait_gone(self, wake: int) -> bool:
        """Wait until the connection is gone or stuck, or `wake` is readable; return whether it is gone."""
        while not self.control.wait_closed(_CHECK_EVERY, wake):
            if self._stopped(wake):
                return False
            if not self.master.check():
                return True
        return True

    @staticmethod
    def _stopped(wake: int) -> bool:
        return wake in readable([wake], 0)

    def close(self, *, gently: bool) -> None:
        """Close the forwardings, then the connection."""
        if gently:
            with contextlib.suppress(ControlSocketError, RequestRefusedError):
                for forwarding in self._forwardings:
                    self.control.close_forward(forwarding)
                for forwarding in self._forwardings:
                    if forwarding.type is ForwardType.REMOTE:
                        # The host handles requests in order: when this one is answered the port is closed there.
                        with contextlib.suppress(RequestRefusedError):
                            self.control.probe(_LOCAL, forwarding.listen_port, timeout=_PARTING)
        if self._keeper is not None:
            self._keeper.lose()
        self._finalizer.detach()
        self.master.close(stuck=not gently)
