"""Users of the library, as threads and as programs; and their traces: connections, masters, processes on the host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs
import psutil

from lazycluster import CommandResult, Connection
from lazycluster.results import Stream
from lazycluster.testing import LocalSshd
from tests.processes import command_line, parent_by_pid
from tests.waiting import assert_eventually, wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


# Traces on the host and on this machine ------------------------------------------------------------------------------


def is_idle(server: LocalSshd) -> bool:
    """Return whether no connection is open, and no process that one started is left."""
    return server.processes() == (server.pid,)


def assert_becomes_idle(server: LocalSshd, timeout: float = 10.0) -> None:
    assert wait_until(lambda: is_idle(server), timeout), f"left on the host: {list_command_lines(server)}"


def list_command_lines(server: LocalSshd) -> list[str]:
    return [command_line(pid) for pid in server.processes()]


def find_host_pids(server: LocalSshd, text: str) -> list[int]:
    """Return the processes on the host whose whole command line is `text`."""
    return [pid for pid in server.processes() if command_line(pid) == text]


def count_connections(server: LocalSshd) -> int:
    """Return how many connections were opened so far, closed ones included (sshd logs each at LogLevel VERBOSE)."""
    return server.log.count("Connection from ")


def count_log_ins(server: LocalSshd) -> int:
    """Return how many log-ins succeeded so far, by any method."""
    return len(re.findall(r"Accepted \S+ for ", server.log))


@attrs.frozen
class MasterProcess:
    """The ssh process that keeps a shared connection, and the path of its control socket."""

    pid: int
    socket_path: Path


def find_masters(port: int) -> list[MasterProcess]:
    """Return the masters of the library with a connection to a port of this machine."""
    masters = []
    for pid in parent_by_pid():
        arguments = command_line(pid)
        path = re.search(r" ControlPath=(\S+)", arguments)
        if path is not None and " ControlMaster=yes " in arguments and port in _connected_ports(pid):
            masters.append(MasterProcess(pid, Path(path[1])))
    return masters


def _connected_ports(pid: int) -> set[int]:
    try:
        return {row.raddr.port for row in psutil.Process(pid).net_connections("tcp") if row.raddr}
    except psutil.Error:
        return set()


def find_master(port: int) -> MasterProcess:
    """Return the only master with a connection to a port of this machine."""
    (master,) = find_masters(port)
    return master


# Users ---------------------------------------------------------------------------------------------------------------


class BackgroundCommand:
    """A command that runs beside the test: `wait_output()` waits for its output, `join()` for its end."""

    def __init__(self, connection: Connection, command: str, *, timeout: float | None = None) -> None:
        self.output = b""
        self.error: Exception | None = None
        self.result: CommandResult | None = None

        def on_output(stream: Stream, data: bytes) -> None:
            self.output += data

        def run() -> None:
            try:
                self.result = connection.run(command, timeout=timeout, on_output=on_output)
            except Exception as error:  # noqa: BLE001 - join() raises it
                self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def wait_output(self, text: bytes, timeout: float = 10.0) -> None:
        assert_eventually(
            lambda: text in self.output or self.error is not None, f"the command printed {text!r}", timeout
        )
        assert self.error is None, self.error

    def join(self, timeout: float) -> CommandResult:
        self.thread.join(timeout)
        assert not self.thread.is_alive(), f"still running after {timeout:g} s"
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


def call_in_parallel(functions: list[Callable[[], T]]) -> list[T]:
    """Call all functions at the same instant, each in a thread, and return their results in order.

    An error of a function is raised; of several, the first.
    """
    barrier = threading.Barrier(len(functions))
    results: dict[int, T] = {}
    errors: list[Exception] = []

    def work(index: int) -> None:
        barrier.wait()
        try:
            results[index] = functions[index]()
        except Exception as error:  # noqa: BLE001 - the caller raises it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert len(results) == len(functions)
    return [results[index] for index in range(len(functions))]


class ClientProgram:
    """A Python program that uses the library, in a process of its own; a context manager that kills it.

    Its text can call `say()`, which prints a line at once. With a server it also has a `Connection` to it as
    `connection`, which has not logged in yet. `prefix` has words before the command.
    """

    def __init__(
        self,
        text: str,
        *,
        server: LocalSshd | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        lines = ["import os, signal, sys, threading, time", "def say(*words): print(*words, flush=True)"]
        if server is not None:
            lines.append("from lazycluster import Connection")
            lines.append(f"connection = Connection({server.host!r}, config_file={str(server.config_file)!r})")
        source = "\n".join([*lines, textwrap.dedent(text)])
        self._stack = ExitStack()
        self.process = self._stack.enter_context(
            subprocess.Popen(
                (*prefix, sys.executable, "-c", source),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})},
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self._stack.close()

    def read_line(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def wait(self, timeout: float = 30.0) -> tuple[int, str, str]:
        """Wait for its end, and return its exit status and the rest of its output and errors."""
        stdout, stderr = self.process.communicate(timeout=timeout)
        return self.process.returncode, stdout, stderr
