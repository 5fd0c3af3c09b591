"""The patch with which runtimes and connections get their transports from a fake host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from lazycluster._transports import factory
from lazycluster._transports.interface import RuntimeTransport
from lazycluster.options import RuntimeOptions


@contextlib.contextmanager
def patch_transports(connect: Callable[[str, RuntimeOptions], RuntimeTransport]) -> Iterator[None]:
    """For a while, have new runtimes and connections get their transports from `connect`."""

    def make_transport(host: str, options: RuntimeOptions) -> RuntimeTransport:
        factory.check_options(options, host)  # as the real one does, without a log-in
        return connect(host, options)

    original, factory.make_transport = factory.make_transport, make_transport
    try:
        yield
    finally:
        factory.make_transport = original
