"""Where the library reaches a host: for a while, every such place leads to a fake one."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from lazycluster._model.options import RuntimeOptions
from lazycluster._ssh.client import Sessions
from lazycluster._transports import factory
from lazycluster._transports.interface import HostTransport
from lazycluster.connection import Connection
from lazycluster.exceptions import RuntimeClosedError
from lazycluster.testing.fake_transport import FakeTransport

Way: TypeAlias = Callable[[str, RuntimeOptions], FakeTransport]


@contextlib.contextmanager
def standing_in(way: Way, check: Callable[[str], None]) -> Iterator[None]:
    """Have runtimes that are made meanwhile, and every connection, reach hosts by `way`.

    `check` raises where a host is down; it takes the place of the log-in.
    """
    ways: weakref.WeakKeyDictionary[Connection, FakeTransport] = weakref.WeakKeyDictionary()

    def reach(host: str, options: RuntimeOptions) -> HostTransport:
        factory.check_options(options, host)  # refuses arguments that cannot be right, and dials nothing
        return way(host, options)

    def of(connection: Connection) -> FakeTransport:
        if connection not in ways:
            ways[connection] = way(connection.host, {"env": connection.sessions.env, "resident": False})
        return ways[connection]

    def close(connection: Connection) -> None:
        of(connection).close()
        connection.sessions.close()

    def master(sessions: Sessions) -> None:
        if sessions.closed:
            raise RuntimeClosedError(sessions.host)
        check(sessions.host)

    def routed(name: str) -> property:
        def get(connection: Connection) -> object:
            return getattr(of(connection), name)

        return property(get)

    methods = {name: routed(name) for name in ("run", "call", "put", "get", "is_alive")}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(factory, {"reach": reach}))
        stack.enter_context(_replaced(Connection, {**methods, "close": close}))
        stack.enter_context(_replaced(Sessions, {"master": master}))
        yield


@contextlib.contextmanager
def _replaced(owner: object, things: Mapping[str, object]) -> Iterator[None]:
    before = {name: vars(owner)[name] for name in things}
    for name, thing in things.items():
        setattr(owner, name, thing)
    try:
        yield
    finally:
        for name, thing in before.items():
            setattr(owner, name, thing)
