"""The one ssh connection for all tunnels of a host: dialled for the first, brought back, and ended after the last.

One thread does everything to the connection, a step at a time, and looks after each step at what is wanted now. Others
only say what they want and wait for it. So whatever comes at the same time, an opening, a stop, the end of the link,
meets in that thread, one after the other.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence

import attrs

from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._remote.ports import is_free
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.mux import readable
from lazycluster._ssh.tunnel_connection import LOCALHOST, Link, LinkLostError
from lazycluster._waiting import happens, start
from lazycluster.exceptions import ConnectError, PortInUseError, TunnelError

_log = logging.getLogger(__name__)
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_LOSSES = 2
"""How many connections may break before a tunnel that never stood is given up: the first may have been dead before."""


@attrs.define
class BackOff:
    """When to try again: after pauses that grow."""

    at: float = 0.0
    pause: float = attrs.field(factory=lambda: _SHORTEST_PAUSE)

    def later(self) -> None:
        """Let the next try be after a pause, and the pause after that be longer."""
        self.at = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)

    @property
    def failed(self) -> bool:
        """Tell whether a try was in vain."""
        return self.pause != _SHORTEST_PAUSE

    @property
    def remaining(self) -> float:
        """Return the seconds until the next try."""
        return max(0.0, self.at - time.monotonic())


@attrs.define(eq=False)
class Item:
    """One forwarding, whether it stands on the connection that there is now, and when it is tried again."""

    forwarding: Forwarding
    stands: bool = False
    back_off: BackOff = attrs.field(factory=BackOff)

    def down(self) -> None:
        """Note that it is to be opened at once."""
        self.stands, self.back_off = False, BackOff()


def _items(forwardings: Sequence[Forwarding]) -> tuple[Item, ...]:
    return tuple(map(Item, forwardings))


@attrs.define(eq=False)
class Load:
    """What one tunnel has carried, and how that stands. The owner lives as long as it is carried."""

    name: str
    items: tuple[Item, ...] = attrs.field(converter=_items)
    owner: object | None = None
    begun: bool = False
    """Every forwarding stood once: from then on what fails is tried again."""
    losses: int = 0
    stopping: bool = False
    gently: bool = True
    exitcode: int | None = None
    error: Exception | None = None
    settled: threading.Event = attrs.field(factory=threading.Event)
    ended: threading.Event = attrs.field(factory=threading.Event)

    @property
    def forwardings(self) -> tuple[Forwarding, ...]:
        """Return what it consists of."""
        return tuple(item.forwarding for item in self.items)

    @property
    def standing(self) -> list[Forwarding]:
        """Return what of it is open."""
        return [item.forwarding for item in self.items if item.stands]

    def begin(self) -> None:
        """Let it be carried from now on."""
        self.begun = True
        self.settled.set()

    def fail(self, error: Exception) -> None:
        """Give it up before it has begun: it is ended like any other, and whoever waits for it gets the error."""
        self.error, self.stopping = error, True

    def end(self, exitcode: int = 0) -> None:
        """Let go of it. Ending twice is fine."""
        self.exitcode = exitcode if self.exitcode is None else self.exitcode
        self.settled.set()
        self.ended.set()
        self.owner = None


class _Bell:
    """Wakes a thread that waits for descriptors."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has rung often enough
            os.write(self._write, b"x")

    def hush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 1 << 12):
                pass

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


_all: weakref.WeakSet[Carrier] = weakref.WeakSet()


def _start_afresh() -> None:
    """Let a forked child have a connection of its own: what there is belongs to its parent."""
    for carrier in list(_all):
        carrier.start_afresh()


os.register_at_fork(after_in_child=_start_afresh)


class Carrier:
    """Carries the tunnels of one host through one connection, for as long as there are any. Any thread may use it.

    When the link breaks it is dialled again, with pauses that grow from 0.5 s to 15 s, and all that was open is opened
    again. A forwarding that cannot be, its port being taken meanwhile, is tried again in the same way.
    """

    def __init__(self, to: Destination, *, password: str | None = None) -> None:
        """Remember whom to dial; nothing is dialled yet."""
        self.host = to.host
        self._to = to
        self._password = password
        self._begin_empty()
        _all.add(self)

    def _begin_empty(self) -> None:
        self._lock = threading.RLock()  # a destructor that stops a tunnel may run anywhere
        self._loads: list[Load] = []
        self._unwanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._bell: _Bell | None = None
        self._link: Link | None = None
        self._back_off = BackOff()
        self._told = False

    def start_afresh(self) -> None:
        """Begin without a connection, in a forked child: there its parent's tunnels have ended."""
        loads, bell = self._loads, self._bell
        self._begin_empty()
        if bell is not None:
            bell.close()
        for load in loads:
            load.exitcode = 0
            load.settled, load.ended = threading.Event(), threading.Event()  # others may have held their locks
            load.settled.set()
            load.ended.set()

    # What others want ----------------------------------------------------------------------------------------------

    @property
    def link(self) -> Link | None:
        """Return the connection, None while there is none."""
        return self._link

    def carry(self, load: Load) -> None:
        """Open all forwardings of a load, dialling if need be; when this returns traffic flows.

        Where one cannot be opened none of them is left, nor a connection that nobody else uses.

        Raises:
            PortInUseError: A port to listen on is taken, here or on the host.
            ForwardingRefusedError: The host does not allow it.
            ConnectError: The log-in failed.
            TunnelError: The link broke meanwhile, or the host does not answer.
        """
        for forwarding in load.forwardings:
            if forwarding.type is ForwardType.LOCAL and not is_free(forwarding.listen_port):
                raise PortInUseError(LOCALHOST, forwarding.listen_port)
        try:
            self._add(load)
            happens(load.settled)
        except BaseException:
            self.stop(load, gently=False)
            raise
        error, load.error = load.error, None
        if error is not None:
            # Several may have waited for the same log-in, and each needs an exception of its own to raise.
            raise copy.copy(error).with_traceback(error.__traceback__) from error.__cause__

    def stop(self, load: Load, *, gently: bool, wait: bool = True) -> None:
        """Close the forwardings of a load, and the connection if nobody else uses it. Stopping twice is fine."""
        with self._lock:
            load.gently = load.gently and gently
            if load in self._loads:
                load.stopping = True
                others = any(not other.stopping for other in self._loads)
                if not others:
                    self._unwanted.set()
                elif self._link is None:  # nothing of it is open, and nobody waits for the log-in for its sake
                    self._loads.remove(load)
                self._ring()
            ended = load not in self._loads
        if ended:
            load.end()
        elif wait and threading.current_thread() is not self._thread:
            happens(load.ended)

    def _add(self, load: Load) -> None:
        with self._lock:
            taken = {(kind.type, kind.listen_port) for other in self._loads for kind in other.forwardings}
            for forwarding in load.forwardings:
                # ssh itself would say that the second was open, and close it with the first.
                if (forwarding.type, forwarding.listen_port) in taken:
                    here = forwarding.type is ForwardType.LOCAL
                    raise PortInUseError(LOCALHOST if here else self.host, forwarding.listen_port)
                taken.add((forwarding.type, forwarding.listen_port))
            if self._thread is None:
                self._begin()
            self._loads.append(load)
            self._unwanted.clear()
            self._ring()

    def _begin(self) -> None:
        """Start the thread, which waits for the lock and then finds what there is to do."""
        self._bell = _Bell()
        self._thread = threading.Thread(target=self._serve, args=(self._bell,), name=f"tunnels to {self.host}")
        self._thread.daemon = True
        try:
            start(self._thread)
        except BaseException:
            self._bell.close()
            self._bell = self._thread = None
            raise

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.ring()

    # What the thread does ------------------------------------------------------------------------------------------

    def _serve(self, bell: _Bell) -> None:
        try:
            while self._step(bell):
                pass
        except BaseException as error:
            self._give_up(bell, error)
            raise

    def _step(self, bell: _Bell) -> bool:
        """Do the next thing that there is to do, or wait for one; return whether there can be more."""
        with self._lock:
            stopped = [load for load in self._loads if load.stopping]
            living = [load for load in self._loads if not load.stopping]
            if not self._loads:  # the link went with the last
                self._close(bell)
                return False
        if stopped:
            self._end(stopped, last=not living)
        elif self._link is None:
            self._dial(living, bell)
        elif self._link.lost():
            self._lose(self._link.reason)
        else:
            self._open_next(self._link, living, bell)
        return True

    def _close(self, bell: _Bell) -> None:
        self._thread = self._bell = None
        self._back_off, self._told = BackOff(), False
        bell.close()

    def _end(self, stopped: Sequence[Load], *, last: bool) -> None:
        """Close what was stopped, with the connection where that was all, and only then say that it has ended."""
        forwardings = [forwarding for load in stopped for forwarding in load.standing]
        gently = any(load.gently for load in stopped)
        if self._link is not None:
            if last:
                self._link.end(forwardings, gently=gently)
                self._link = None
            else:
                try:
                    self._link.close(forwardings, gently=gently)
                except LinkLostError as error:
                    self._lose(str(error))
        with self._lock:
            self._loads = [load for load in self._loads if load not in stopped]
        for load in stopped:
            for item in load.items:
                item.down()
            load.end()

    def _dial(self, living: Sequence[Load], bell: _Bell) -> None:
        new = [load for load in living if not load.begun]
        if not new and self._back_off.remaining:
            readable([bell.fileno()], self._back_off.remaining)
            bell.hush()
            return
        try:
            link = Link.dial(self._to, self._password, self._unwanted)
        except Exception as error:  # noqa: BLE001 - it is raised where somebody waits
            first = len(new) < len(living) and not self._told and not self._unwanted.is_set()
            self._told = self._told or first
            level = logging.WARNING if first else logging.DEBUG
            _log.log(level, "tunnels to %s: the link is not back yet: %s", self.host, error)
            self._back_off.later()
            with self._lock:
                for load in new:
                    if not load.stopping:
                        load.fail(error)
        else:
            self._link, self._back_off, self._told = link, BackOff(), False
            if len(new) < len(living):
                _log.warning("tunnels to %s: the link is back", self.host)

    def _lose(self, reason: str) -> None:
        """Let go of a connection that is gone or stuck; what it carried is opened again on the next."""
        if self._link is not None:
            self._link.end(gently=False)  # before others see that there is none, and take its ports for free
            self._link = None
        self._back_off = BackOff()
        self._back_off.later()
        with self._lock:
            living = [load for load in self._loads if not load.stopping]
            for load in self._loads:
                for item in load.items:
                    item.down()
        for load in living:
            load.losses += not load.begun
            if load.losses >= _LOSSES:
                load.fail(ConnectError(self.host, f"the connection of a tunnel broke: {reason}"))
        begun = sum(load.begun for load in living)
        if begun:
            _log.warning("tunnels to %s: the link is gone (%s); bringing back %d", self.host, reason, begun)

    def _open_next(self, link: Link, living: Sequence[Load], bell: _Bell) -> None:
        down = [(item.back_off.remaining, load, item) for load in living for item in load.items if not item.stands]
        for remaining, load, item in down:
            if not remaining:
                self._open(link, load, item)
                return
        link.wait(min([remaining for remaining, _, _ in down], default=_LONGEST_PAUSE), bell.fileno())
        bell.hush()

    def _open(self, link: Link, load: Load, item: Item) -> None:
        try:
            link.open(item.forwarding)
        except LinkLostError as error:
            self._lose(str(error))
        except Exception as error:  # noqa: BLE001 - it is raised where somebody waits
            if not load.begun:
                load.fail(error)
                return
            level = logging.DEBUG if item.back_off.failed else logging.WARNING
            item.back_off.later()
            _log.log(level, "%s: not open again yet: %s", load.name, error)
        else:
            if item.back_off.failed:
                _log.warning("%s: open again", load.name)
            item.stands, item.back_off = True, BackOff()
            if not load.begun and all(each.stands for each in load.items):
                load.begin()

    def _give_up(self, bell: _Bell, error: BaseException) -> None:
        """End everything after an error that nobody foresaw, so that nobody waits for ever."""
        with self._lock:
            loads, self._loads = self._loads, []
            link, self._link = self._link, None
            self._close(bell)
        for load in loads:
            if not load.begun:
                load.error = TunnelError(self.host, load.name, f"{type(error).__name__}: {error}")
            load.end(exitcode=1)
        if link is not None:
            link.end(gently=False)
