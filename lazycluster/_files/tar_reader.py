"""A tar stream that comes from a host, extracted without trusting it.

Python's own extraction filters exist only in newer releases, and follow the links of a stream where these stay inside.
Here nothing is ever written through a link, because no link exists before everything else has been written.
"""

from __future__ import annotations

import os
import re
import tarfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol, cast

import attrs

from lazycluster._files.tar_writer import NAME_ENCODING
from lazycluster.exceptions import BrokenArchiveError, LazyclusterError, UnsafeArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lazycluster._typing import Self

_STREAM_READ_BYTES: Final = 1 << 18
_MAX_NAME_RECORD_BYTES: Final = 1 << 20
_MAX_TIMESTAMP_SECONDS: Final = 1 << 53
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PERMISSION_BITS: Final = 0o777
_REGULAR_TYPES: Final = (b"0", b"\0")
_OCTAL_FIELD: Final = re.compile(rb" *[0-7]+[ \0]*")
_NAME_RECORD_TYPES: Final = frozenset(
    (
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    )
)


class ByteSource(Protocol):
    """Where a stream is read from: at most `size` bytes a call, none only at its end."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes."""
        ...


def extract_tar(stream: ByteSource, into: Path, *, on_progress: Callable[[int], None] | None = None) -> None:
    """Extract an uncompressed tar stream (GNU, pax, ustar, v7) into an existing, empty, private directory.

    The stream is read up to its end of file, also behind the end of the archive. Permissions and modification times
    are kept; owners and the set-uid, set-gid and sticky bits are not. Symbolic links are kept as they are, wherever
    they lead. Of several members with one name the last wins. `on_progress` gets the bytes read since it was last
    called. After an error `into` holds a part of the tree, for its owner to remove.

    Raises:
        UnsafeArchiveError: A member lies outside of `into` or below something that is no directory, is a hard link to
            something that is not in the stream, stands where a directory stands, or is a device, FIFO or the like.
        BrokenArchiveError: The stream ends before the archive does, or is damaged.
        OSError: Something cannot be written; `filename` tells which.
    """
    source = _StreamReader(stream, on_progress)
    tree = _TreeExtractor(into)
    for member in _iter_members(source):
        if isinstance(member, _RegularFile):
            tree.add_file(member, source)
        else:
            tree.add(member, source)
    source.drain()
    tree.finish()


@attrs.define
class _StreamReader:
    """A stream as the file that `tarfile` wants: it tells its position, and seeks forward only."""

    _stream: ByteSource
    _on_progress: Callable[[int], None] | None
    _buffer: bytes = b""
    _buffer_position: int = 0
    _buffer_offset: int = 0
    """The position in the stream where the buffer begins."""

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer only at the end of the stream."""
        while len(self._buffer) - self._buffer_position < size:
            fresh = self._stream.read(_STREAM_READ_BYTES)
            if not fresh:
                break
            self._buffer_offset += self._buffer_position
            self._buffer = self._buffer[self._buffer_position :] + fresh
            self._buffer_position = 0
            if self._on_progress is not None:
                self._on_progress(len(fresh))
        data = self._buffer[self._buffer_position : self._buffer_position + size]
        self._buffer_position += len(data)
        return data

    def peek(self, size: int) -> bytes:
        """Return what `read` would, and leave it there."""
        data = self.read(size)
        self._buffer_position -= len(data)
        return data

    def tell(self) -> int:
        return self._buffer_offset + self._buffer_position

    def seek(self, position: int) -> None:
        if position < self.tell():
            raise tarfile.StreamError("a member overlaps another")
        while (remaining := position - self.tell()) and self.read(min(remaining, _STREAM_READ_BYTES)):
            pass

    def drain(self) -> None:
        """Read up to the end, so that the sender does not break on a closed pipe."""
        while self.read(_STREAM_READ_BYTES):
            pass


@attrs.frozen
class _RegularFile:
    """What the header of an ordinary file says."""

    name: str
    mode: int
    size: int
    mtime: int

    def to_tarinfo(self) -> tarfile.TarInfo:
        """Return it as `tarfile` would have it."""
        member = tarfile.TarInfo(self.name)
        member.mode, member.size, member.mtime = self.mode, self.size, self.mtime
        return member

    @classmethod
    def parse(cls, block: bytes) -> _RegularFile | None:
        """Read the header of an ordinary file with a short name; None where it is anything else.

        That is nearly all of what most trees hold, and `tarfile` takes several times as long for it (POSIX.1-2017,
        pax, ustar format; GNU tar manual, Basic Tar Format).
        """
        if len(block) < tarfile.BLOCKSIZE or block[156:157] not in _REGULAR_TYPES or block[257:262] != b"ustar":
            return None
        name = block[:100].rstrip(b"\0")
        if block[345] and block[257:265] == tarfile.POSIX_MAGIC:
            name = block[345:500].rstrip(b"\0") + b"/" + name
        numbers = (block[100:108], block[124:136], block[136:148], block[148:156])
        if not name or name.endswith(b"/") or b"\0" in name or not all(map(_OCTAL_FIELD.fullmatch, numbers)):
            return None
        mode, size, mtime, checksum = (int(field.strip(b" \0"), 8) for field in numbers)
        # The checksum is the sum of all bytes, its own field counted as eight spaces.
        if checksum != sum(block) - sum(block[148:156]) + 256:
            return None
        return cls(os.fsdecode(name), mode, size, mtime)


class _EndOfArchiveError(tarfile.HeaderError):
    """A block of zeros stands where a header might (POSIX.1-2017, pax, ustar format)."""


class _StrictTarInfo(tarfile.TarInfo):
    """A header that is whole: `tarfile` itself takes a damaged or missing one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a block, and refuse what would read backwards or fill the memory."""
        if not buf:
            raise tarfile.ReadError("the stream ends before the archive does")
        if buf == bytes(tarfile.BLOCKSIZE):
            raise _EndOfArchiveError("a block of zeros")
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _NAME_RECORD_TYPES and header.size > _MAX_NAME_RECORD_BYTES):
            raise tarfile.ReadError(f"a record of {header.size} bytes")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile, /) -> Self:
        """Read a header with the records before it."""
        try:
            return super().fromtarfile(archive)
        except _EndOfArchiveError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class _TarFile(tarfile.TarFile):
    # What the type declarations of the class lack.
    members: list[tarfile.TarInfo]
    firstmember: tarfile.TarInfo | None


def _iter_members(source: _StreamReader) -> Iterator[tarfile.TarInfo | _RegularFile]:
    """Yield the members of a stream, which stands at the content of each."""
    name = ""
    try:
        # Read and seek are all that tarfile uses of a file that it reads from.
        archive = _TarFile(
            fileobj=cast("IO[bytes]", source), tarinfo=_StrictTarInfo, encoding=NAME_ENCODING, errors="surrogateescape"
        )
        while True:
            while not archive.pax_headers and (file := _read_regular_file(archive, source)):
                name = file.name
                yield file
            member = archive.next()
            if member is None:
                return
            archive.members.clear()
            name = member.name
            if member.size < 0 or not abs(member.mtime) < _MAX_TIMESTAMP_SECONDS:
                raise tarfile.ReadError("its size or time is no such thing")
            yield member
    except _EndOfArchiveError:
        return
    except LazyclusterError:
        raise
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        # What tarfile lets through of damaged numbers, sparse maps and chains of headers is each of these.
        raise BrokenArchiveError(name, str(error)) from error


def _read_regular_file(archive: _TarFile, source: _StreamReader) -> _RegularFile | None:
    """Read the next header where it is that of an ordinary file; where it is not, have `archive` read it."""
    if archive.firstmember is not None or source.tell() > archive.offset:
        return None  # it has read one already, or has to say what is wrong
    source.seek(archive.offset)
    file = _RegularFile.parse(source.peek(tarfile.BLOCKSIZE))
    if file is not None:
        source.read(tarfile.BLOCKSIZE)
        archive.offset = source.tell() + file.size + -file.size % tarfile.BLOCKSIZE
    return file


@attrs.define
class _TreeExtractor:
    """What the stream has put into the directory so far. It alone decides, as nobody else writes there."""

    _root: Path
    _directories: dict[str, tarfile.TarInfo | None] = attrs.field(factory=lambda: {"": None})
    _files: set[str] = attrs.field(factory=set)
    _links: dict[str, tarfile.TarInfo] = attrs.field(factory=dict)
    """Symbolic links, made when all else is there."""

    def add(self, member: tarfile.TarInfo, source: _StreamReader) -> None:
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

    def add_file(self, file: _RegularFile, source: _StreamReader) -> None:
        """Write an ordinary file; the short way for most of what a stream holds."""
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
                data = source.read(min(remaining, _STREAM_READ_BYTES))
                if not data:
                    raise BrokenArchiveError(file.name, f"the stream ends {remaining} bytes before the file does")
                remaining -= len(data)
                while data:
                    data = data[os.write(descriptor, data) :]
            os.fchmod(descriptor, file.mode & _PERMISSION_BITS)
            os.utime(descriptor, (file.mtime, file.mtime))
        except OSError as error:
            if not isinstance(error, LazyclusterError):  # which a broken link raises where it is read from
                error.filename = path
            raise
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        """Make the symbolic links, then give the directories their modes and times, the deepest first."""
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
                raise UnsafeArchiveError(member_name, f"{parent!r} above it is no directory")
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

    def _write_file(self, name: str, member: tarfile.TarInfo, source: _StreamReader) -> None:
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

    Errors name the member as `member_name`, which is the name itself where it is left out.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise UnsafeArchiveError(member_name or name, f"{name!r} leads out of the target or is no valid name")
    return "/".join(parts)


def _extents(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Return offset and size of what the stream holds of a file; the rest are holes."""
    # A list of pairs once tarfile has read it, which its type declaration does not say.
    extents = cast("list[tuple[int, int]] | None", member.sparse)
    if extents is None:
        return [(0, member.size)]
    if any(offset < 0 or size < 0 or offset + size > member.size for offset, size in extents):
        raise BrokenArchiveError(member.name, "the map of the sparse file leads out of it")
    return extents


def _copy_extent(
    source: _StreamReader, descriptor: int, extent: tuple[int, int], *, path: Path, member: tarfile.TarInfo
) -> None:
    offset, size = extent
    end = offset + size
    while offset < end:
        data = source.read(min(end - offset, _STREAM_READ_BYTES))
        if not data:
            raise BrokenArchiveError(member.name, f"the stream ends {end - offset} bytes before the file does")
        with _adding_path_to_errors(path):
            # A full disk may take a part; the next call then fails, or takes the rest.
            while data:
                written = os.pwrite(descriptor, data, offset)
                offset += written
                data = data[written:]


def _times(member: tarfile.TarInfo) -> tuple[int, int]:
    """Return access and modification time in nanoseconds; pax has fractions of seconds."""
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
