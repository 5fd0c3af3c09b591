"""Send and fetch files and directories: a large file through `scp`, all else in the streams of a script.

A file or tree gets a temporary name in the directory where it belongs, and is renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

import attrs

from lazycluster._files.scp import get_file_by_scp, put_file_by_scp
from lazycluster._files.streams import fetch, local_target, put_file_by_stdin, put_tree
from lazycluster._model.checks import absolute_path
from lazycluster._model.running_command import CommandRunner
from lazycluster._model.watch import Watch
from lazycluster._ssh.client import SshClient
from lazycluster.exceptions import (
    CommandStoppedError,
    ConnectError,
    LazyclusterError,
    RuntimeClosedError,
    SessionRefusedError,
    TransferError,
)

_UNLIMITED_BYTES = 1 << 62
_STREAM_NO_FILES = -1
"""The value of `max_streamed_bytes` with which all files go through scp, also empty ones."""


@attrs.frozen
class TransferBackend:
    """The means of a transfer: scripts on the host, and the ssh client for scp.

    Files of up to `max_streamed_bytes` bytes go through a script's own streams, which takes one round trip. With -1
    all files go through scp. If not, and the host allows no session for scp, large files are streamed as well.
    """

    runner: CommandRunner
    ssh_client: SshClient
    max_streamed_bytes: int = _STREAM_NO_FILES

    @property
    def can_stream_files(self) -> bool:
        """Whether files may go through the streams of a script."""
        return self.max_streamed_bytes != _STREAM_NO_FILES

    @property
    def host(self) -> str:
        """The host as it was given."""
        return self.runner.host


def put(backend: TransferBackend, local: Path, remote: str | None, *, cwd: str | None, watch: Watch) -> None:
    """Send a file or a directory; see `Connection.put()`."""
    with raising_transfer_errors(backend.host, "send", str(local)):
        status = local.stat()
        name = absolute_path(local).name
        if not name:
            raise TransferError(backend.host, "send", str(local), "the root directory has no name to send it under")
        target = remote or "."
        if stat.S_ISDIR(status.st_mode):
            put_tree(backend.runner, local, name, target, cwd, watch)
        elif not stat.S_ISREG(status.st_mode):
            raise TransferError(backend.host, "send", str(local), "neither a regular file nor a directory")
        elif status.st_size <= backend.max_streamed_bytes:
            put_file_by_stdin(backend.runner, local, name, target, cwd, watch)
        else:
            try:
                put_file_by_scp(backend.runner, backend.ssh_client, local, name, target, cwd, watch)
            except SessionRefusedError:  # the supervisor has the only session
                if not backend.can_stream_files:
                    raise
                put_file_by_stdin(backend.runner, local, name, target, cwd, watch)


def get(backend: TransferBackend, remote: str, local: Path, *, cwd: str | None, watch: Watch) -> None:
    """Fetch a file or a directory; see `Connection.get()`."""
    if not remote:
        raise ValueError(f"remote must not be empty, got {remote!r}")
    with raising_transfer_errors(backend.host, "fetch", remote):
        large_file = fetch(backend.runner, remote, local, cwd, watch, max_streamed_bytes=backend.max_streamed_bytes)
        if large_file is None:
            return
        try:
            target = local_target(local, remote, large_file.name)
            get_file_by_scp(backend.runner, backend.ssh_client, large_file, target, watch)
        except SessionRefusedError:  # the supervisor has the only session
            if not backend.can_stream_files:
                raise
            fetch(backend.runner, remote, local, cwd, watch, max_streamed_bytes=_UNLIMITED_BYTES)


@contextlib.contextmanager
def raising_transfer_errors(host: str, action: str, path: str) -> Iterator[None]:
    """Turn errors of a transfer into a `TransferError` that names the path; errors of the connection stay."""
    try:
        yield
    except (TransferError, ConnectError, CommandStoppedError, RuntimeClosedError):
        raise
    except LazyclusterError as error:
        raise TransferError(host, action, path, str(error).removeprefix(f"{host}: ")) from error
    except OSError as error:
        reason = error.strerror or str(error)
        named = f" ({error.filename})" if error.filename and str(error.filename) != path else ""
        raise TransferError(host, action, path, f"{reason}{named}") from error
