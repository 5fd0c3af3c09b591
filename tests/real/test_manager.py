"""The manager with real hosts and a configuration as people write it."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import (
    AuthenticationError,
    ConnectTimeoutError,
    NoRuntimesDetectedError,
    PortRefusedError,
    RuntimeManager,
)
from lazycluster.testing import LocalSshd
from tests.client_programs import count_log_ins
from tests.keyboard_interrupt import interrupt
from tests.observation import assert_no_leaks
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from typing_extensions import Self


class SilentServer:
    """A listener on loopback that accepts every connection and sends nothing. A context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted: list[socket.socket] = []
        self.most_open = 0
        """The greatest number of connections that were open at the same time."""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for connection in self.accepted:
            connection.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self.accepted.append(connection)
                self.most_open = max(self.most_open, sum(map(is_open, self.accepted)))

    def config(self, name: str) -> str:
        return f"Host {name}\n    HostName 127.0.0.1\n    Port {self.port}\n"


def is_open(connection: socket.socket) -> bool:
    """Read what has come on a non-blocking connection, and return whether its client has not closed it."""
    try:
        while connection.recv(1 << 12):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def test_manager_configuration_with_include_and_wildcards(sshd: LocalSshd, tmp_path: Path) -> None:
    included = tmp_path / "included"
    included.mkdir()
    (included / "b").write_text(
        f"Host second first\n    Port {reserve_free_port()}\n"
    )  # the first entry of a name wins
    (included / "a").write_text(sshd.config(name="first"))
    strange = "\n".join(line for line in sshd.config(name="strange").splitlines() if "IdentityFile" not in line)
    (tmp_path / "config").write_text(
        f"# Mine\nInclude {included}/*\n"
        f"{sshd.config(name='third fourth third')}"
        f"{strange}\n    IdentityFile {tmp_path}/none\n"
        "Host *.example ?x !fifth\n    Port 1\n"
        "Host *\n    HostName 127.0.0.1\n    ServerAliveInterval 30\n"
    )
    with assert_no_leaks(sshd), RuntimeManager(tmp_path / "config", connect_timeout=20.0) as manager:
        assert manager.hosts == ["first", "third", "fourth"]
        assert {host: type(error) for host, error in manager.inactive_hosts.items()} == {
            "second": PortRefusedError,
            "strange": AuthenticationError,
        }
        with manager.create_group(
            exclude_hosts="first", working_dir=str(tmp_path), filter_commands="echo true"
        ) as group:
            assert {host: result.stdout.strip() for host, result in group.run("pwd").items()} == {
                "third": str(tmp_path),
                "fourth": str(tmp_path),
            }
        with manager.create_group() as group:
            assert group.hosts == ["first", "third", "fourth"]
            assert group.call(len, "four") == dict.fromkeys(group.hosts, 4)
        with pytest.raises(NoRuntimesDetectedError) as caught:
            manager.create_group(installed_executables="no-such-program", include_hosts=["third", "second"])
        assert [host for host, _ in caught.value.tried] == ["second", "third"]


def test_manager_dead_hosts_time_out_together(sshd: LocalSshd, tmp_path: Path) -> None:
    """Ten of thirty hosts are dead; that takes one time-out."""
    with assert_no_leaks(sshd), SilentServer() as silent:
        living = [f"host{number}" for number in range(20)]
        dead = [f"dead{number}" for number in range(10)]
        (tmp_path / "config").write_text(
            "".join(sshd.config(name=host) for host in living[:10])
            + "".join(silent.config(name=host) for host in dead)
            + "".join(sshd.config(name=host) for host in living[10:])
        )
        with RuntimeManager(tmp_path / "config", connect_timeout=10.0) as manager:
            assert manager.hosts == living
            assert list(manager.inactive_hosts) == dead
            assert {type(error) for error in manager.inactive_hosts.values()} == {ConnectTimeoutError}
        assert len(silent.accepted) == silent.most_open == 10


def test_manager_ctrl_c_during_detect_closes_connections(sshd: LocalSshd, tmp_path: Path) -> None:
    with assert_no_leaks(sshd), SilentServer() as silent:
        (tmp_path / "config").write_text(
            sshd.config(name="living") + "".join(silent.config(name=f"dead{number}") for number in range(3))
        )
        before = count_log_ins(sshd)
        with RuntimeManager(tmp_path / "config", connect_timeout=600.0) as manager:
            interrupt(manager.detect, lambda: count_log_ins(sshd) > before and len(silent.accepted) == 3)
            assert_eventually(lambda: sshd.connections() == 0, "the connections are closed")
