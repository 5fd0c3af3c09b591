"""Replace a configuration on disk: whole or not at all, one process at a time, and undone if the caller then fails."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from lazycluster._waiting import Deadline
from lazycluster.exceptions import LazyclusterError, indented_tail

_LOCK_POLL_SECONDS = 0.05


@attrs.frozen(slots=False)
class ConfigFileError(LazyclusterError):
    """An ssh configuration was not changed."""

    path: Path
    reason: str
    advice: str = ""
    output: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        advice = f" {self.advice}" if self.advice else ""
        return f"{self.path} was not changed: {self.reason}.{advice}{indented_tail(self.output)}"


@contextlib.contextmanager
def os_errors_explained(path: Path, advice: str = "") -> Iterator[None]:
    """Raise a `ConfigFileError` for each `OSError`."""
    try:
        yield
    except OSError as error:
        raise ConfigFileError(path, error.strerror or str(error), advice) from error


@contextlib.contextmanager
def locked_directory(path: Path, *, timeout: float = 30.0) -> Iterator[None]:
    """Hold a lock on the directory of a file, which is made if it is missing; some file systems have no locks.

    Args:
        path: The file in that directory.
        timeout: How many seconds to wait for the lock.

    Raises:
        ConfigFileError: If another process keeps the lock.
        OSError: If the directory cannot be made or opened.
    """
    if not path.parent.exists():
        path.parent.mkdir(mode=0o700)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    deadline = Deadline(timeout)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline.has_passed:
                    reason = f"another process has had the lock for {timeout:g} s"
                    raise ConfigFileError(path, reason, "Try again.") from None
                time.sleep(_LOCK_POLL_SECONDS)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


def read_config_text(path: Path) -> str | None:
    """Return the text of a file, None if there is no file; bytes that are not UTF-8 become surrogates.

    Raises:
        ConfigFileError: If the file is a directory or a device.
        OSError: If the file cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigFileError(path, "it is not a regular file")
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


def replace_config(path: Path, before: str | None, after: str, undo: contextlib.ExitStack) -> None:
    """Replace the text of a file at a single instant; a symbolic link stays, and its target is replaced.

    Owner and mode stay; a new file is for this user alone. `undo` gets a callback that restores the text, unless the
    file has changed again.

    Raises:
        OSError: If the file is read-only, or cannot be written.
    """
    path = Path(os.path.realpath(path))
    if before is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is read-only")

    def restore() -> None:
        if read_config_text(path) == after:
            if before is None:
                path.unlink()
            else:
                _write(path, before, like=path)

    undo.callback(restore)
    _write(path, after, like=path)


def back_up(path: Path, text: str, undo: contextlib.ExitStack) -> Path:
    """Write the text of a file to a new one beside it, under a name that the pattern of no Include matches (glob(7)).

    Raises:
        OSError: If the backup cannot be written.
    """
    path = Path(os.path.realpath(path))
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.lazycluster-backup-", dir=path.parent)
    os.close(descriptor)
    backup = Path(name)
    undo.callback(backup.unlink)
    _write(backup, text, like=path)
    return backup


def _write(path: Path, text: str, *, like: Path) -> None:
    """Replace a file; owner and mode are those of another file, if that exists."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.lazycluster-new-", dir=path.parent)
    candidate = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            if like.exists():
                status, own = like.stat(), os.fstat(file.fileno())
                if (status.st_uid, status.st_gid) != (own.st_uid, own.st_gid):
                    os.fchown(file.fileno(), status.st_uid, status.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
            os.fsync(file.fileno())
        candidate.replace(path)
    finally:
        candidate.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(directory)
    finally:
        os.close(directory)
