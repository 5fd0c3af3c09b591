"""A directory of this machine that plays the file system of a host, by the rules of real transfers."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from lazycluster._files.install import discard, move_into_place, temporary_path_beside
from lazycluster._files.tar_reader import extract_tar
from lazycluster._files.tar_writer import END_MARKER, write_tar
from lazycluster._files.transfer import raising_transfer_errors
from lazycluster._model.checks import absolute_path
from lazycluster.exceptions import TransferError, WorkingDirectoryError

_TILDE_PATH = re.compile(r"~([A-Za-z0-9_][A-Za-z0-9_.-]*)?(?:/(.*))?", re.DOTALL)
_PATH_ENDS_WITHOUT_NAME = {"", ".", "..", "~"}
_MAX_TAR_BYTES_IN_MEMORY = 1 << 20

ProgressCallback = Callable[[int, int | None], object]


class HostFiles:
    """The files of one host, all under `root`, with a home directory and a directory for temporary files.

    These two have the same paths locally as on the host, so that a function finds them under the paths that it gets.
    Other absolute paths of the host lie under the root: `/data` is `root/data`.
    """

    def __init__(self, root: Path) -> None:
        """Use an empty directory."""
        self.root: Path = root
        self.home: Path = root / "home" / "me"
        self.temp_root: Path = root / "tmp"
        self.home.mkdir(parents=True)
        self.temp_root.mkdir()

    def absolute_path(self, path: str, cwd: str | None = None) -> str:
        """Return a path of the host in full; a relative one starts in `cwd`, or in the home directory.

        Raises:
            ValueError: If the path is empty or contains NUL.
        """
        if not path or "\0" in path:
            raise ValueError(f"path must not be empty or contain NUL, got {path!r}")
        tilde = _TILDE_PATH.fullmatch(path)
        if tilde is not None:
            home = str(self.home if tilde[1] is None else self.home.parent / tilde[1])
            return posixpath.normpath(posixpath.join(home, tilde[2] or ""))
        start = str(self.home) if cwd is None else self.absolute_path(cwd)
        return posixpath.normpath(posixpath.join(start, path))

    def local_path(self, path: str, cwd: str | None = None) -> Path:
        """Return the local path that plays a path of the host; it need not exist."""
        full = self.absolute_path(path, cwd)
        root = str(self.root)
        return Path(full if full == root or full.startswith(f"{root}/") else f"{root}/{full.lstrip('/')}")

    # Directories ------------------------------------------------------------------------------------------------------

    def resolve_cwd(self, host: str, cwd: str | None) -> Path:
        """Return the directory to work in.

        Raises:
            WorkingDirectoryError: If it does not exist, is not a directory, or cannot be entered.
        """
        path = self.home if cwd is None else self.local_path(cwd)
        reason = "" if os.access(path, os.X_OK) else "Permission denied"
        if not path.is_dir():
            reason = "Not a directory" if path.exists() else "No such file or directory"
        if reason:
            raise WorkingDirectoryError(host, cwd or "~", reason)
        return path

    def make_dir(self, path: str, cwd: str | None) -> str:
        """Make a directory with its parents, and return its full path on the host.

        Raises:
            OSError: If it cannot be made.
        """
        self.local_path(path, cwd).mkdir(parents=True, exist_ok=True)
        return self.absolute_path(path, cwd)

    def make_temp_dir(self) -> str:
        """Make a temporary directory, and return its path."""
        return tempfile.mkdtemp(prefix="lazycluster-", dir=self.temp_root)

    def delete(self, path: str, cwd: str | None = None) -> bool:
        """Delete a file or directory as `rm -rf` does; return whether nothing of it is left."""
        local = self.local_path(path, cwd)
        if PurePosixPath(path).name in {"", ".."}:  # rm refuses these: `..`, and `.` or `/`, which have no name
            return False
        with contextlib.suppress(OSError):
            discard(local)
        return not os.path.lexists(local)

    def write(self, path: str, cwd: str | None, content: bytes) -> None:
        """Write a file, and make its missing parents."""
        local = self.local_path(path, cwd)
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(content)

    # Transfers --------------------------------------------------------------------------------------------------------

    def put(self, host: str, local: Path, remote: str | None, cwd: str | None, progress: ProgressCallback) -> None:
        """Send a file or a directory; see `Connection.put()`."""
        with raising_transfer_errors(host, "send", str(local)):
            self.resolve_cwd(host, cwd)
            status = local.stat()
            name = absolute_path(local).name
            if not name:
                raise TransferError(host, "send", str(local), "the root directory has no name to send it under")
            if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
                raise TransferError(host, "send", str(local), "neither a regular file nor a directory")
            remote_path = remote or "."
            reason, target = self._check_put_target(remote_path, name, cwd, is_directory=stat.S_ISDIR(status.st_mode))
            if reason:
                raise TransferError(host, "send", str(local), reason, remote_path)
            _copy_atomically(local, target, progress)

    def _check_put_target(
        self, remote_path: str, name: str, cwd: str | None, *, is_directory: bool
    ) -> tuple[str, Path]:
        """Return why a target is refused, or '', and the local path that plays it."""
        full, path = self.absolute_path(remote_path, cwd), self.local_path(remote_path, cwd)
        if path.is_dir():
            full, path = posixpath.join(full, name), path / name
        elif remote_path.endswith("/") and not is_directory:
            return f"no such directory: {remote_path}", path
        reason = ""
        if not path.parent.is_dir():
            reason = f"no such directory: {posixpath.dirname(full)}"
        elif is_directory:
            if path.exists() and not path.is_dir():
                reason = f"is not a directory: {full}"
        elif path.is_dir():
            reason = f"is a directory: {full}"
        elif path.exists() and not path.is_file():
            reason = f"is no regular file: {full}"
        return reason, path

    def get(self, host: str, remote: str, local: Path, cwd: str | None, progress: ProgressCallback) -> None:
        """Fetch a file or a directory; see `Connection.get()`."""
        if not remote:
            raise ValueError(f"remote must not be empty, got {remote!r}")
        with raising_transfer_errors(host, "fetch", remote):
            self.resolve_cwd(host, cwd)
            source = self.local_path(remote, cwd)
            if not source.exists() or (remote.endswith("/") and not source.is_dir()):
                raise TransferError(host, "fetch", remote, "no such file or directory")
            if not source.is_dir() and not source.is_file():
                raise TransferError(host, "fetch", remote, "neither a regular file nor a directory")
            name = PurePosixPath(remote).name
            target = local / (source.name if name in _PATH_ENDS_WITHOUT_NAME else name) if local.is_dir() else local
            _copy_atomically(source, target, progress)


def _copy_atomically(source: Path, target: Path, progress: ProgressCallback) -> None:
    """Copy a file or a tree under a temporary name, and move it into place."""
    temporary = temporary_path_beside(target)
    try:
        if source.is_dir():
            _copy_tree_as_tar(source, temporary, progress)
        else:
            shutil.copyfile(source, temporary)
            _copy_mode_and_times(source, temporary)
            size = temporary.stat().st_size
            progress(size, size)
        move_into_place(temporary, target)
    finally:
        discard(temporary)


def _copy_tree_as_tar(source: Path, target: Path, progress: ProgressCallback) -> None:
    """Copy a tree through the archive that would be sent over ssh."""
    moved = 0

    def on_progress(count: int) -> None:
        nonlocal moved
        moved += count
        progress(moved, None)

    with tempfile.SpooledTemporaryFile(_MAX_TAR_BYTES_IN_MEMORY) as stream:
        write_tar(source, stream, on_progress=on_progress)
        stream.seek(0)
        target.mkdir(mode=0o700)
        extract_tar(stream, target)
    (target / END_MARKER).unlink()
    _copy_mode_and_times(source, target)


def _copy_mode_and_times(source: Path, target: Path) -> None:
    status = source.stat()
    target.chmod(status.st_mode & 0o777)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
