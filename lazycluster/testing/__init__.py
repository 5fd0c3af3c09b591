"""For tests: a host that is scripted, a private real sshd on loopback, and a relay that plays a slow or broken network.

The fixtures `fake_host` and `local_sshd` of `plugin` give the first two to every pytest run. The names of this package
are imported when they are first used, because pytest imports the package in every run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazycluster.testing.answers import CommandMatcher, UnexpectedCommandError
    from lazycluster.testing.calls import (
        Asked,
        AskedForPorts,
        Called,
        DeletedDir,
        Fetched,
        Looked,
        MadeDir,
        OpenedTunnel,
        Ran,
        Read,
        Sent,
        Wrote,
    )
    from lazycluster.testing.fake_host import FakeHost
    from lazycluster.testing.local_sshd import (
        ConnectionKeywords,
        LocalSshd,
        LocalSshdError,
        SshdNotFoundError,
        find_sshd,
        write_config,
    )
    from lazycluster.testing.relay import Relay
    from lazycluster.testing.scripted_host import ScriptedHost

__all__ = [
    "Asked",
    "AskedForPorts",
    "Called",
    "CommandMatcher",
    "ConnectionKeywords",
    "DeletedDir",
    "FakeHost",
    "Fetched",
    "LocalSshd",
    "LocalSshdError",
    "Looked",
    "MadeDir",
    "OpenedTunnel",
    "Ran",
    "Read",
    "Relay",
    "ScriptedHost",
    "Sent",
    "SshdNotFoundError",
    "UnexpectedCommandError",
    "Wrote",
    "find_sshd",
    "write_config",
]

_LAZY_IMPORTS = {
    "CommandMatcher": "answers",
    "ConnectionKeywords": "local_sshd",
    "FakeHost": "fake_host",
    "LocalSshd": "local_sshd",
    "LocalSshdError": "local_sshd",
    "Relay": "relay",
    "ScriptedHost": "scripted_host",
    "SshdNotFoundError": "local_sshd",
    "UnexpectedCommandError": "answers",
    "find_sshd": "local_sshd",
    "write_config": "local_sshd",
}
"""The modules of the names; all other names are records of calls, from `calls`."""


def __getattr__(name: str) -> object:
    """Import a name of this package when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_LAZY_IMPORTS.get(name, 'calls')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of the package, also those that were not used yet."""
    return sorted({*globals(), *__all__})
