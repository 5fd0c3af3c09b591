"""A tar stream that comes from a host, extracted without trusting it.

Python's own extraction filters exist only in newer releases, and follow the links of a stream that stay inside.
Here nothing is ever written through a link, because no link exists before everything else has been written.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

import attrs

from lazycluster._files.tar_members import STREAM_READ_BYTES, ByteSource, RegularFile, StreamReader, iter_members
from lazycluster.exceptions import BrokenArchiveError, LazyclusterError, UnsafeArchiveError

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PERMISSION_BITS: Final = 0o777


def extract_tar(stream: ByteSource, into: Path, *, on_progress: Callable[[int], None] | None = None) -> None:
    """Extract an uncompressed tar stream (GNU, pax, ustar, v7) into an existing, empty, private directory.

    The stream is read up to its end of file, even after the end of the archive. Permissions and modification times
    are kept; owners and the set-uid, set-gid and sticky bits are not. Symbolic links are kept as they are, wherever
    they lead. Of several members with one name the last wins. `on_progress` gets the bytes read since it was last
    called. After an error `into` holds a part of the tree, for its owner to remove.

    Raises:
        UnsafeArchiveError: If a member lies outside of `into` or in something that is not a directory, is a hard link
            to something that is not in the stream, would replace a directory, or is a device, FIFO or the like.
        BrokenArchiveError: If the stream ends before the archive does, or is damaged.
        OSError: If something cannot be written; `filename` is its path.
    """
    source = StreamReader(stream, on_progress)
    tree = _TreeExtractor(into)
    for member in iter_members(source):
        if isinstance(member, RegularFile):
            tree.add_file(member, source)
        else:
            tree.add(member, source)
    source.drain()
    tree.finish()


@attrs.define
class _TreeExtractor:
    """The directory that is filled, and a record of its entries, which is complete: no other process writes there."""

    _root: Path
    _directories: dict[str, tarfile.TarInfo | None] = attrs.field(factory=lambda: {"": None})
    _files: set[str] = attrs.field(factory=set)
    _links: dict[str, tarfile.TarInfo] = attrs.field(factory=dict)
    """Symbolic links, created after all other members."""

    def add(self, member: tarfile.TarInfo, source: StreamReader) -> None:
        name = _relative_name(member.name)
        self._make_parents(name, member.name)
        if member.isdir():
            self._add_directory(name, member)
        elif name in self._directories:
            raise UnsafeArchiveError(member.name, "it would replace a directory")
        elif member.isreg():
            self._remove(name)
            self._write_file(name, member, source)
        elif member.issym():
            if not member.linkname or "\0" in member.linkname:
                raise UnsafeArchiveError(member.name, "a symbolic link without a valid target")
            self._remove(name)
            self._links[name] = member
        elif member.islnk():
            self._add_hard_link(name, member)
        else:
            raise UnsafeArchiveError(member.name, f"type {member.type!r} is neither file, directory nor link")

    def add_file(self, file: RegularFile, source: StreamReader) -> None:
        """Write an ordinary file: the fast path for most members of a stream."""
        name = _relative_name(file.name)
        if name in self._files or name in self._links or name in self._directories:
            self.add(file.to_tarinfo(), source)
            return
        self._make_parents(name, file.name)
        path = f"{self._root}/{name}"
        descriptor = os.open(path, _CREATE_FLAGS, 0o600)
        self._files.add(name)
        try:
            remaining = file.size
            while remaining:
                data = source.read(min(remaining, STREAM_READ_BYTES))
                if not data:
                    raise BrokenArchiveError(file.name, f"the stream ends {remaining} bytes before the file does")
                remaining -= len(data)
                while data:
                    data = data[os.write(descriptor, data) :]
            os.fchmod(descriptor, file.mode & _PERMISSION_BITS)
            os.utime(descriptor, (file.mtime, file.mtime))
        except OSError as error:
            if not isinstance(error, LazyclusterError):  # such as a broken connection raises in `read()`
                error.filename = path
            raise
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        """Create the symbolic links, then set modes and times of the directories, the deepest first."""
        for name, link in self._links.items():
            path = self._path(name)
            path.symlink_to(link.linkname)
            if os.utime in os.supports_follow_symlinks:
                os.utime(path, ns=_times(link), follow_symlinks=False)
        for name, directory in sorted(self._directories.items(), reverse=True):
            if directory is not None:
                path = self._path(name)
                path.chmod(directory.mode & _PERMISSION_BITS)
                os.utime(path, ns=_times(directory))

    def _path(self, name: str) -> Path:
        return self._root / name

    def _make_parents(self, name: str, member_name: str) -> None:
        end = name.rfind("/")
        if end < 0 or name[:end] in self._directories:
            return
        end = name.find("/")
        while end >= 0:
            parent = name[:end]
            if parent in self._files or parent in self._links:
                raise UnsafeArchiveError(member_name, f"{parent!r} above it is not a directory")
            if parent not in self._directories:
                self._path(parent).mkdir()
                self._directories[parent] = None
            end = name.find("/", end + 1)

    def _add_directory(self, name: str, member: tarfile.TarInfo) -> None:
        if name in self._files or name in self._links:
            raise UnsafeArchiveError(member.name, "this directory would replace a file or link")
        if name not in self._directories:
            self._path(name).mkdir(0o700)
        self._directories[name] = member

    def _write_file(self, name: str, member: tarfile.TarInfo, source: StreamReader) -> None:
        path = self._path(name)
        descriptor = os.open(path, _CREATE_FLAGS, 0o600)
        self._files.add(name)
        try:
            for extent in _extents(member):
                _copy_extent(source, descriptor, extent, path=path, member=member)
            with _adding_path_to_errors(path):
                if member.issparse():
                    os.ftruncate(descriptor, member.size)
                os.fchmod(descriptor, member.mode & _PERMISSION_BITS)
                os.utime(descriptor, ns=_times(member))
        finally:
            with _adding_path_to_errors(path):
                os.close(descriptor)

    def _add_hard_link(self, name: str, member: tarfile.TarInfo) -> None:
        first = _relative_name(member.linkname, member.name)
        if first == name and (name in self._files or name in self._links):
            return
        if first in self._links:
            self._remove(name)
            self._links[name] = self._links[first]
        elif first in self._files:
            self._remove(name)
            os.link(self._path(first), self._path(name), follow_symlinks=False)
            self._files.add(name)
        else:
            raise UnsafeArchiveError(member.name, f"a hard link to {member.linkname!r}, which is no file of the stream")

    def _remove(self, name: str) -> None:
        self._links.pop(name, None)
        if name in self._files:
            self._path(name).unlink()
            self._files.remove(name)


def _relative_name(name: str, member_name: str | None = None) -> str:
    """Return a name of the stream relative to the target, without `.` and empty parts; the target itself is ''.

    Errors name the member as `member_name`, by default `name`.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise UnsafeArchiveError(member_name or name, f"{name!r} leads out of the target or is not a valid name")
    return "/".join(parts)


def _extents(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Return offset and size of each part of a file that the stream holds; the rest are holes."""
    # A list of pairs once tarfile has read it, which its type declaration does not say.
    extents = cast("list[tuple[int, int]] | None", member.sparse)
    if extents is None:
        return [(0, member.size)]
    if any(offset < 0 or size < 0 or offset + size > member.size for offset, size in extents):
        raise BrokenArchiveError(member.name, "the map of the sparse file leads out of it")
    return extents


def _copy_extent(
    source: StreamReader, descriptor: int, extent: tuple[int, int], *, path: Path, member: tarfile.TarInfo
) -> None:
    offset, size = extent
    end = offset + size
    while offset < end:
        data = source.read(min(end - offset, STREAM_READ_BYTES))
        if not data:
            raise BrokenArchiveError(member.name, f"the stream ends {end - offset} bytes before the file does")
        with _adding_path_to_errors(path):
            # A full disk may take a part; the next call then fails, or takes the rest.
            while data:
                written = os.pwrite(descriptor, data, offset)
                offset += written
                data = data[written:]


def _times(member: tarfile.TarInfo) -> tuple[int, int]:
    """Return access and modification time in nanoseconds; pax records have fractions of seconds."""
    mtime = member.mtime
    nanoseconds = mtime * 10**9 if isinstance(mtime, int) else round(mtime * 10**9)
    return nanoseconds, nanoseconds


@contextmanager
def _adding_path_to_errors(path: Path) -> Iterator[None]:
    """Put the path into errors of calls that know only the descriptor."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
