"""The state of a fake host, as its transports see it."""

from __future__ import annotations

import platform
import re
import shlex
import sys
import threading
from pathlib import Path
from typing import Protocol

from lazycluster._functions.bootstrap import PythonInfo, check_python_version
from lazycluster._functions.python_finder import python_candidates
from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster.exceptions import HostUnreachableError, LazyclusterError, PortInUseError, PythonNotFoundError
from lazycluster.hardware import HostInfo
from lazycluster.testing._fake_tunnel import FakeTunnel, FakeTunnelRegistry
from lazycluster.testing._host_files import HostFiles
from lazycluster.testing.answers import AnswerTable, ScriptedAnswer, UnexpectedCommandError
from lazycluster.testing.calls import Asked, Ran

_MISSING_EXECUTABLES_COMMAND = re.compile(
    r"""for e in (.*); do command -v "\$e" >/dev/null \|\| echo "\$e"; done""", re.DOTALL
)
"""The command with which `Runtime.check_filter()` looks for programs."""


class AttachedTransport(Protocol):
    """The part of a fake transport that its host uses."""

    closed: bool

    @property
    def host(self) -> str:
        """The name of the host."""

    @property
    def temp_dirs(self) -> list[str]:
        """The temporary directories that are to be removed."""

    @property
    def calls_under_way(self) -> int:
        """The number of functions that run."""

    def wake(self) -> None:
        """Have each function under way look at its host again."""

    def abandon(self) -> None:
        """End each function under way."""


def default_host_info() -> HostInfo:
    """Return the hardware of a fake host by default: the same on every machine, except for the Python."""
    return HostInfo(
        os="Fake Linux 1.0",
        kernel="Linux",
        kernel_version="6.1.0",
        machine="x86_64",
        cpu_cores=4.0,
        memory=8 * 2**30,
        python_version=platform.python_version(),
        python_executable=sys.executable,
    )


class HostState:
    """One host: its files and facts, the answers to commands, and the calls so far. Any thread may use it."""

    def __init__(self, root: Path, fallback: HostState | None = None) -> None:
        """Play the host in an empty directory; `fallback` answers the commands for which it has no answer."""
        self.files: HostFiles = HostFiles(root)
        self.info: HostInfo = default_host_info()
        self.ports_in_use: set[int] = set()
        self.executables: set[str] = set()
        self.strict = True
        self.working_dir: str | None = None
        self.transports: list[AttachedTransport] = []
        self._is_down = False
        self._down_error: LazyclusterError | None = None
        self.answer_table: AnswerTable = AnswerTable()
        self.local_tunnels: FakeTunnelRegistry = FakeTunnelRegistry() if fallback is None else fallback.local_tunnels
        self._fallback = fallback
        self._calls: list[Asked] = []
        self._host_tunnels = FakeTunnelRegistry()
        self._lock = threading.Lock()

    # Reachability -----------------------------------------------------------------------------------------------------

    def register(self, transport: AttachedTransport) -> None:
        """Add a transport of this host."""
        with self._lock:
            self.transports.append(transport)
        if self._fallback is not None:
            self._fallback.register(transport)

    def go_down(self, error: LazyclusterError | None) -> None:
        """Be unreachable from now on."""
        self._down_error = error
        self._is_down = True
        for transport in list(self.transports):
            transport.wake()

    def come_up(self) -> None:
        """Be reachable again."""
        self._is_down = False

    def unreachable_error(self, host: str) -> LazyclusterError | None:
        """Return why the host cannot be reached under a name now, None if it can."""
        if not self._is_down:
            return None
        return self._down_error or HostUnreachableError(host, "the test took it down")

    def check_reachable(self, host: str) -> None:
        """Check that the host can be reached.

        Raises:
            LazyclusterError: If the host is down.
        """
        failure = self.unreachable_error(host)
        if failure is not None:
            raise failure

    # Calls ------------------------------------------------------------------------------------------------------------

    def record(self, call: Asked) -> None:
        """Add a call to `calls`."""
        with self._lock:
            self._calls.append(call)
        if self._fallback is not None:
            self._fallback.record(call)

    def replace(self, call: Asked, complete: Asked) -> None:
        """Replace a call by one with all of its facts."""
        with self._lock:
            self._calls = [complete if each is call else each for each in self._calls]
        if self._fallback is not None:
            self._fallback.replace(call, complete)

    @property
    def calls(self) -> list[Asked]:
        """The calls so far, in order."""
        with self._lock:
            return list(self._calls)

    def find_answer(self, call: Ran) -> ScriptedAnswer:
        """Return the answer to a command.

        Raises:
            UnexpectedCommandError: If the test gives no answer, and the host is strict.
        """
        hosts = [self] if self._fallback is None else [self, self._fallback]
        for machine in hosts:
            answer = machine.answer_table.find(call)
            if answer is not None:
                return answer
        wanted = _MISSING_EXECUTABLES_COMMAND.fullmatch(call.command)
        if wanted is not None:
            missing = [name for name in shlex.split(wanted[1]) if name not in self.executables]
            return ScriptedAnswer("".join(f"{name}\n" for name in missing))
        if all(machine.strict for machine in hosts):
            scripted = [line for machine in reversed(hosts) for line in machine.answer_table.describe()]
            raise UnexpectedCommandError(call.host, call.command, tuple(scripted))
        return ScriptedAnswer()

    def check_python(self, host: str, python: str | None) -> None:
        """Check that functions can run on the host.

        Raises:
            PythonNotFoundError: If the host has no Python.
            PythonVersionMismatchError: If the host's Python has another minor version than this one.
        """
        if self.info.python_version is None:
            raise PythonNotFoundError(host, " and ".join(python_candidates(python)))
        executable = self.info.python_executable or "python3"
        check_python_version(PythonInfo(self.info.python_version, executable, sys.implementation.name), host)

    # Ports ------------------------------------------------------------------------------------------------------------

    def is_free(self, port: int) -> bool:
        """Return whether a server could listen on a port of the host."""
        return port not in self.ports_in_use and not self._host_tunnels.is_listening_on(port)

    def open_tunnel(self, host: str, forwarding: Forwarding, owner: object) -> FakeTunnel:
        """Open a tunnel.

        Raises:
            PortInUseError: If the port to listen on is in use on the host, or by another local tunnel of a fake host.
        """
        port = forwarding.listen_port
        tunnel = FakeTunnel(host, forwarding, owner)
        if forwarding.type is ForwardType.LOCAL:
            if not self.local_tunnels.add(tunnel):
                raise PortInUseError("localhost", port)
        elif port in self.ports_in_use or not self._host_tunnels.add(tunnel):
            raise PortInUseError(host, port)
        return tunnel
