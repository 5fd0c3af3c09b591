"""Observations from outside the library: programs, sessions, ports, processes and files. And surroundings for them."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from lazycluster.testing import Relay, write_config
from tests.installed_pythons import find_other_minor_python
from tests.processes import command_line, descendant_pids, parent_by_pid
from tests.reserved_ports import reserved_descriptors
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Self

    from lazycluster.testing import LocalSshd
    from lazycluster.testing.local_sshd import ConnectionKeywords


def skip_or_fail(reason: str) -> NoReturn:
    """Skip a test that needs something this machine lacks; in CI, which has everything, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


# Programs started by this process ------------------------------------------------------------------------------------

_argv_recorders: list[list[tuple[str, ...]]] = []
_ARGV_POSITIONS = {
    "subprocess.Popen": 1,
    "os.exec": 1,
    "os.posix_spawn": 1,
    "os.spawn": 2,
    "os.system": 0,
    "os.startfile": 0,
    "pty.spawn": 0,
}
"""The audit events of the functions that start a program, each with the position of the program's arguments."""


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _argv_recorders and event in _ARGV_POSITIONS:
        argv = args[_ARGV_POSITIONS[event]]
        words = [argv] if isinstance(argv, (str, bytes)) else argv  # os.system() takes one text
        for recorder in _argv_recorders:
            recorder.append(tuple(os.fsdecode(word) for word in words))


sys.addaudithook(_audit)


@contextlib.contextmanager
def record_program_starts() -> Iterator[list[tuple[str, ...]]]:
    """Record the argument vectors of the programs that this process starts by any function of Python."""
    recorder: list[tuple[str, ...]] = []
    _argv_recorders.append(recorder)
    try:
        yield recorder
    finally:
        _argv_recorders.remove(recorder)


def count_sessions(server: LocalSshd) -> int:
    """Return how many sessions were started so far, as the log of the server shows (LogLevel VERBOSE)."""
    return server.log.count("Starting session: ")


# Processes, files ----------------------------------------------------------------------------------------------------


def unique_sleep_seconds() -> str:
    """Return a long time for `sleep`, whose number identifies the process."""
    return f"1000{secrets.randbelow(10**9):09d}"


def list_resources(server: LocalSshd) -> dict[str, str]:
    """Return the processes, files, descriptors and threads of the library and its hosts, each with a description.

    The description is no part of the name, because the title of an sshd changes. A fork counts as its parent, because
    the supervisor of a shared runtime may fork its next worker at any time.
    """
    directory, parents = Path(tempfile.gettempdir()), parent_by_pid()
    found = set(server.processes()) | descendant_pids(os.getpid())
    found |= {pid for pid in parents if str(directory) in command_line(pid)}
    found.discard(os.getpid())
    resources = {f"process {_forked_from(pid, parents)}": command_line(pid) for pid in found}
    # Path.rglob() raises an error if a directory is removed during the search; os.walk() does not.
    for parent, directories, files in os.walk(directory):
        resources |= {f"file {Path(parent, name)}": "" for name in (*directories, *files)}
    resources |= {f"thread {thread.name}": "" for thread in threading.enumerate()}
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if int(descriptor.name) not in reserved_descriptors():
                resources[f"descriptor {descriptor.readlink()}"] = ""
    return resources


def _forked_from(pid: int, parents: Mapping[int, int]) -> int:
    """Return the oldest process in an unbroken line of ancestors with the same command line."""
    while parents.get(pid, 0) > 1 and command_line(pid) == command_line(parents[pid]):
        pid = parents[pid]
    return pid


@contextlib.contextmanager
def assert_no_leaks(server: LocalSshd) -> Iterator[None]:
    """Assert that the block leaves nothing on this machine and on the host."""
    before = list_resources(server).keys()
    yield
    left: list[str] = []

    def is_clean() -> bool:
        resources = sorted(list_resources(server).items())
        left[:] = [f"{name}: {description}" for name, description in resources if name not in before]
        return not left

    assert wait_until(is_clean, timeout=10), "left behind:\n" + "\n".join(left)


# Ports ---------------------------------------------------------------------------------------------------------------


_TCP_LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""


def listening_addresses(port: int) -> list[str]:
    """Return the addresses with a listener on a port, as the kernel writes them (proc_net(5))."""
    rows = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            rows += [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    local = [row[1].split(":") for row in rows if row[3] == _TCP_LISTEN]
    return [address for address, number in local if int(number, 16) == port]


class EchoServer:
    """A service on loopback that echoes, and closes a connection when its client does. A context manager."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._open_connections: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for connection in list(self._open_connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open_connections.add(connection)
                self._threads.append(threading.Thread(target=self._echo_back, args=(connection,)))
                self._threads[-1].start()

    def _echo_back(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)
        self._open_connections.discard(connection)


def is_echoing(port: int, data: bytes = b"hello", host: str = "127.0.0.1", timeout: float = 5.0) -> bool:
    """Return whether a port echoes."""
    try:
        with socket.create_connection((host, port), timeout) as connection:
            connection.sendall(data)
            return receive_exactly(connection, len(data)) == data
    except OSError:
        return False


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Receive `size` bytes, or fewer if the connection ends before."""
    data = b""
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return data


# Hosts ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running_relay(server: LocalSshd, directory: Path) -> Iterator[tuple[Relay, ConnectionKeywords]]:
    """Start a relay in front of a server; yield the relay, and the keywords for a connection through it."""
    with Relay(server.port) as relay:
        config = write_config(directory / f"config-{relay.port}", server.config(port=relay.port))
        yield relay, {"config_file": str(config)}


def options_without_python(directory: Path, programs: dict[str, Path | str]) -> dict[str, str]:
    """Return options for a server whose PATH has the programs of this machine, without Python, and those given.

    A program given as text is a script.
    """
    path = directory / "bin"
    path.mkdir()
    for source in ("/usr/bin", "/bin"):
        for program in Path(source).iterdir():
            link = path / program.name
            if not program.name.startswith("python") and not link.is_symlink():
                link.symlink_to(program)
    for name, given in programs.items():
        (path / name).unlink(missing_ok=True)
        if isinstance(given, Path):
            (path / name).symlink_to(given)
        else:
            write_script(path / name, given)
    home = directory / "bare-home"
    home.mkdir()
    launcher = write_script(
        directory / "launch-bare",
        f'HOME={home} PATH={path} SHELL=/bin/sh\nexport HOME PATH SHELL\ncd\nexec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n',
    )
    return {"ForceCommand": f"exec {launcher}"}


def write_script(path: Path, text: str) -> Path:
    """Write a shell script that can be run."""
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return path


def require_other_python() -> Path:
    """Return a Python of another minor version; without one, skip the test."""
    return find_other_minor_python() or skip_or_fail("this machine has no second Python")


# File systems --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted_small_disk(path: Path, size: str = "2m") -> Iterator[Path]:
    """Mount a small file system of its own."""
    if os.geteuid() != 0 or sys.platform != "linux":
        skip_or_fail("only root can mount a file system")
    path.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    try:
        yield path
    finally:
        subprocess.run(("umount", "-l", str(path)), check=True)


@contextlib.contextmanager
def read_only_directory(path: Path) -> Iterator[Path]:
    """Make a directory read-only; for root, who ignores modes, by a mount."""
    if os.geteuid() != 0:
        path.chmod(0o555)
        yield path
        path.chmod(0o755)
        return
    if sys.platform != "linux":
        skip_or_fail("root can write to every directory on this system")
    _mount("--bind", str(path), str(path))
    try:
        _mount("-o", "remount,bind,ro", str(path))
        yield path
    finally:
        subprocess.run(("umount", "-l", str(path)), check=True)


def _mount(*arguments: str) -> None:
    ended = subprocess.run(("mount", *arguments), capture_output=True, text=True, check=False)
    if ended.returncode:
        skip_or_fail(f"cannot mount: {ended.stderr.strip()}")
