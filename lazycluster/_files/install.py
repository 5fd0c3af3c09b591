"""A received file or tree: its temporary name, and its move into place, so that no half of it is ever seen."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs

_MAX_NAME_BYTES: Final = 100
"""Bytes of the target's name in a temporary one, which must fit in NAME_MAX: 255, and 143 on an encrypted home."""


def temporary_path_beside(target: Path) -> Path:
    """Return a new name on the file system of `target`; nothing is created.

    It lies in the directory that holds `target`. If `target` is a directory already, it lies in `target`: that may
    be a mount point, or lie in a directory that is not writable. A link is followed.

    Raises:
        OSError: If the directory that would hold `target` does not exist; `filename` names it.
    """
    real = _resolve(target)
    shown = os.fsencode(real.name)[:_MAX_NAME_BYTES].decode(errors="ignore")
    holder = real if real.is_dir() else real.parent
    holder.stat()
    return holder / f".{shown}.lazycluster-{secrets.token_hex(8)}"


def move_into_place(temporary: Path, target: Path) -> None:
    """Move a completely received file or tree to `target`, on the same file system; `temporary` is gone then.

    A file replaces a file at once. A tree over a directory is merged into it as `cp -r` does: its files replace those
    of the same name one by one, links too. All else in the directory stays, and so do modes and times of directories
    that were there. If `target` itself is a link, the file or directory that it leads to is replaced.

    These errors come before anything has been changed, and `temporary` is still there.

    Raises:
        IsADirectoryError: If a directory is in the way of a file.
        NotADirectoryError: If a file is in the way of a directory.
        PermissionError: If a directory may not be written to.
    """
    plan = _plan_moves(temporary, _resolve(target))
    for source, destination in plan.moves:
        _move(source, destination)
    for directory in reversed(plan.merged):
        directory.rmdir()


def discard(temporary: Path) -> None:
    """Remove a file or tree, received in part or whole, with read-only directories; a missing one is fine."""
    if not _is_directory(temporary):
        temporary.unlink(missing_ok=True)
        return
    directories = [temporary]
    for directory in directories:
        directory.chmod(stat.S_IRWXU)
        for entry in _sorted_entries(directory):
            if _is_directory(entry):
                directories.append(entry)
            else:
                entry.unlink()
    for directory in reversed(directories):
        directory.rmdir()


@attrs.define
class _MovePlan:
    """Renames, and the directories of the received tree that these empty, the topmost first."""

    moves: list[tuple[Path, Path]] = attrs.field(factory=list)
    merged: list[Path] = attrs.field(factory=list)


def _plan_moves(temporary: Path, target: Path) -> _MovePlan:
    """Plan all moves and check them, before anything is changed at the target."""
    plan = _MovePlan()
    todo = [(temporary, target)]
    while todo:
        source, destination = todo.pop()
        if not _is_directory(source):
            if _is_directory(destination):
                raise IsADirectoryError(errno.EISDIR, "a directory is in the way of a file", str(destination))
            plan.moves.append((source, destination))
        elif _is_directory(destination):
            if not os.access(destination, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not allowed to write to the directory", str(destination))
            # A directory that is emptied must be readable and writable; its own mode is of no further use.
            source.chmod(stat.S_IRWXU)
            plan.merged.append(source)
            todo += [(entry, destination / entry.name) for entry in _sorted_entries(source)]
        elif _lexists(destination):
            raise NotADirectoryError(errno.ENOTDIR, "a file is in the way of a directory", str(destination))
        else:
            plan.moves.append((source, destination))
    return plan


def _move(source: Path, destination: Path) -> None:
    """Rename, also a read-only directory into another one: rename(2) writes to it, namely its `..`."""
    mode = source.lstat().st_mode
    locked = stat.S_ISDIR(mode) and not mode & stat.S_IWUSR and source.parent != destination.parent
    if locked:
        source.chmod(stat.S_IMODE(mode) | stat.S_IWUSR)
    try:
        source.replace(destination)
    except OSError:
        if locked:
            source.chmod(stat.S_IMODE(mode))
        raise
    if locked:
        destination.chmod(stat.S_IMODE(mode))


def _sorted_entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def _resolve(target: Path) -> Path:
    """Return a path without links; a loop of links is an `OSError` in every version, unlike in `Path.resolve()`."""
    with suppress(FileNotFoundError):
        target.stat()
    return Path(os.path.realpath(target))


def _lexists(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _is_directory(path: Path) -> bool:
    """Return whether there is a directory, not a link to one."""
    return _lexists(path) and stat.S_ISDIR(path.lstat().st_mode)
