"""Hosts that exist in a test only, for code that uses lazycluster: scripted, in this process, without any ssh."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from types import TracebackType

from lazycluster._typing import Self
from lazycluster.options import RuntimeOptions
from lazycluster.testing._fake_transport import FakeTransport
from lazycluster.testing._host_state import HostState
from lazycluster.testing._patching import patch_transports
from lazycluster.testing.scripted_host import ScriptedHost


class _NamedHost(ScriptedHost):
    """A fake host of its own for one name."""

    def __init__(self, state: HostState) -> None:
        self._state = state


class FakeHost(ScriptedHost):
    """Plays every host, for as long as its `with` block or the fixture `fake_host` lasts.

    Each `Runtime` and `Connection` lands on it, whichever host it names, and no ssh is started. Commands get the
    answers of `on()`. Functions are called in this process, one at a time, through the pickle that would be sent. They
    run in the working directory and with the environment of the step. Files lie in a temporary directory, see `path()`.
    Tunnels hold their ports and carry nothing. `calls` has a record of everything that was asked.

    It differs from a real host in four ways. A function shares its modules with the test, so that it sees the patches
    of the test in them. An absolute path outside of the home, the temporary and the working directory, opened in a
    function, is this machine's. The output of programs that a function starts is not in its log. A function that is
    stopped goes on in its thread, unobserved, because a thread cannot be ended.
    """

    def __init__(self) -> None:
        """Make the directory of its files, which can be used before the `with` block and are removed at its end."""
        # The real path: a function finds it as its current directory.
        self._directory = Path(os.path.realpath(tempfile.mkdtemp(prefix="lazycluster-fake-")))
        self._remove_directory = weakref.finalize(self, shutil.rmtree, str(self._directory), ignore_errors=True)
        self._state = HostState(self._directory / "host")
        self._named_hosts: dict[str, ScriptedHost] = {}
        self._states: dict[str, HostState] = {}
        self._exit_stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Play every host from now on."""
        self._exit_stack.enter_context(patch_transports(self._connect))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Play no host any more, end everything that is still under way, and remove the files."""
        self._exit_stack.close()
        for transport in list(self._state.transports):
            transport.abandon()
        self._remove_directory()

    def host(self, name: str) -> ScriptedHost:
        """Return a host of its own for one name: with its own files, facts, ports and calls.

        Commands that it has no answer for are answered by this one, whose `calls` are those of all hosts.

        Raises:
            ValueError: If a runtime or connection has used the name already, and so is on this host.
        """
        if name not in self._named_hosts:
            if any(transport.host == name for transport in self._state.transports):
                raise ValueError(f"{name!r} has been reached already; call host({name!r}) before that")
            state = HostState(self._directory / f"host-{len(self._named_hosts) + 1}", self._state)
            self._states[name] = state
            self._named_hosts[name] = _NamedHost(state)
        return self._named_hosts[name]

    def _connect(self, host: str, options: RuntimeOptions) -> FakeTransport:
        machine = self._states.get(host, self._state)
        return FakeTransport(machine, host, python=options.get("python"), resident=options.get("resident", True))
