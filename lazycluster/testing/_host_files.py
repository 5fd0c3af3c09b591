"""A directory of this machine that plays the file system of a host, by the rules of real transfers."""

from __future__ import annotations

import contextlib
import glob
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
from lazycluster.exceptions import TransferError, WorkingDirectoryError, transfer_error
from lazycluster.exceptions.files import NO_SUCH_FILE

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
            if not _leads_to_something(source, remote):
                raise transfer_error(host, "fetch", remote, NO_SUCH_FILE)
            if not source.is_dir() and not source.is_file():
                raise TransferError(host, "fetch", remote, "neither a regular file nor a directory")
            name = PurePosixPath(remote).name
            target = local / (source.name if name in _PATH_ENDS_WITHOUT_NAME else name) if local.is_dir() else local
            _copy_atomically(source, target, progress)

    # Contents ---------------------------------------------------------------------------------------------------------

    def read_file(self, host: str, path: str, max_size: int, cwd: str | None) -> bytes:
        """Return the content of a file; see `Runtime.read_bytes()`."""
        with raising_transfer_errors(host, "read", path):
            self.resolve_cwd(host, cwd)
            source = self.local_path(path, cwd)
            if not _leads_to_something(source, path):
                raise transfer_error(host, "read", path, NO_SUCH_FILE)
            if not source.is_file():
                raise TransferError(host, "read", path, "is a directory" if source.is_dir() else "not a regular file")
            with source.open("rb") as file:
                data = file.read(max_size + 1)
            if len(data) > max_size:
                raise TransferError(host, "read", path, f"it has more than {max_size} bytes (max_size)")
            return data

    def write_file(self, host: str, path: str, data: bytes, cwd: str | None) -> None:
        """Replace or make a file; see `Runtime.write_bytes()`."""
        with raising_transfer_errors(host, "write", path):
            self.resolve_cwd(host, cwd)
            target = self.local_path(path, cwd)
            reason = "is a directory" if target.is_dir() else ""
            if not reason:
                reason, target = self._check_put_target(path, "", cwd, is_directory=False)
            if reason:
                raise TransferError(host, "write", path, reason)
            temporary = temporary_path_beside(target)
            try:
                temporary.write_bytes(data)
                if target.exists():
                    temporary.chmod(target.stat().st_mode & 0o777)
                move_into_place(temporary, target)
            finally:
                discard(temporary)

    def path_exists(self, host: str, path: str, cwd: str | None) -> bool:
        """Return whether a path leads to something; see `Runtime.exists()`."""
        with raising_transfer_errors(host, "find", path):
            self.resolve_cwd(host, cwd)
            return _leads_to_something(self.local_path(path, cwd), path)

    def list_dir(self, host: str, path: str, cwd: str | None) -> list[str]:
        """Return the names in a directory; see `Runtime.listdir()`."""
        with raising_transfer_errors(host, "list", path):
            self.resolve_cwd(host, cwd)
            source = self.local_path(path, cwd)
            if not _leads_to_something(source, path):
                raise transfer_error(host, "list", path, NO_SUCH_FILE)
            if not source.is_dir():
                raise TransferError(host, "list", path, "not a directory")
            return sorted(entry.name for entry in source.iterdir())

    def glob(self, host: str, pattern: str, cwd: str | None) -> list[str]:
        """Return the paths that match a pattern; see `Runtime.glob()`."""
        with raising_transfer_errors(host, "list", pattern):
            start = self.resolve_cwd(host, cwd)
        prefix, tilde = "", _TILDE_PATH.fullmatch(pattern)
        if tilde is not None:
            start, pattern = self.local_path(pattern.partition("/")[0]), tilde[2] or "."
            prefix = f"{start}/"
        elif pattern.startswith("/"):
            prefix = "/"
            start = Path("/") if pattern.startswith(f"{self.root}/") else self.root
            pattern = pattern.lstrip("/")
        return sorted(prefix + path for path in glob.glob(pattern, root_dir=start))  # noqa: PTH207 - as the host's


def _leads_to_something(local: Path, path: str) -> bool:
    """Return whether a path of the host exists; with a slash at its end it must be a directory."""
    return local.is_dir() if path.endswith("/") else local.exists()


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
