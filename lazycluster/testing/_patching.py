"""Where the library reaches a host: for a while, every such place leads to a fake one."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from lazycluster._model.options import RuntimeOptions
from lazycluster._ssh.client import SshClient
from lazycluster._transports import factory
from lazycluster._transports.interface import RuntimeTransport
from lazycluster.connection import Connection
from lazycluster.exceptions import RuntimeClosedError
from lazycluster.testing.fake_transport import FakeTransport

TransportFactory: TypeAlias = Callable[[str, RuntimeOptions], FakeTransport]


@contextlib.contextmanager
def patch_transports(connect: TransportFactory, check_reachable: Callable[[str], None]) -> Iterator[None]:
    """For a while, make new runtimes and all connections get their transports from `connect`.

    `check_reachable` raises where a host is down; it takes the place of the log-in.
    """
    transports: weakref.WeakKeyDictionary[Connection, FakeTransport] = weakref.WeakKeyDictionary()

    def make_transport(host: str, options: RuntimeOptions) -> RuntimeTransport:
        factory.check_options(options, host)  # refuses arguments that cannot be right, and dials nothing
        return connect(host, options)

    def transport_of(connection: Connection) -> FakeTransport:
        if connection not in transports:
            transports[connection] = connect(connection.host, {"env": connection.ssh_client.env, "resident": False})
        return transports[connection]

    def close(connection: Connection) -> None:
        transport_of(connection).close()
        connection.ssh_client.close()

    def master(ssh_client: SshClient) -> None:
        if ssh_client.closed:
            raise RuntimeClosedError(ssh_client.host)
        check_reachable(ssh_client.host)

    def redirect(name: str) -> property:
        def get(connection: Connection) -> object:
            return getattr(transport_of(connection), name)

        return property(get)

    methods = {name: redirect(name) for name in ("run", "call", "put", "get", "is_alive")}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_patch_attributes(factory, {"make_transport": make_transport}))
        stack.enter_context(_patch_attributes(Connection, {**methods, "close": close}))
        stack.enter_context(_patch_attributes(SshClient, {"master": master}))
        yield


@contextlib.contextmanager
def _patch_attributes(owner: object, attributes: Mapping[str, object]) -> Iterator[None]:
    before = {name: vars(owner)[name] for name in attributes}
    for name, thing in attributes.items():
        setattr(owner, name, thing)
    try:
        yield
    finally:
        for name, thing in before.items():
            setattr(owner, name, thing)
