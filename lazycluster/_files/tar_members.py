"""The members of a tar stream that comes from a host, read without trusting it."""

from __future__ import annotations

import os
import re
import tarfile
from typing import IO, TYPE_CHECKING, Final, Protocol, cast

import attrs

from lazycluster._files.tar_writer import NAME_ENCODING
from lazycluster.exceptions import BrokenArchiveError, LazyclusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lazycluster._typing import Self

STREAM_READ_BYTES: Final = 1 << 18
_MAX_NAME_RECORD_BYTES: Final = 1 << 20
_MAX_TIMESTAMP_SECONDS: Final = 1 << 53
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
    """A stream that is read: at most `size` bytes a call, no bytes only at its end."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes."""
        ...


@attrs.define
class StreamReader:
    """A stream as the file that `tarfile` needs: it knows its position, and seeks forward only."""

    _stream: ByteSource
    _on_progress: Callable[[int], None] | None
    _buffer: bytes = b""
    _buffer_position: int = 0
    _buffer_offset: int = 0
    """The position in the stream where the buffer begins."""

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer only at the end of the stream."""
        while len(self._buffer) - self._buffer_position < size:
            fresh = self._stream.read(STREAM_READ_BYTES)
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
        """Return the next `size` bytes without taking them."""
        data = self.read(size)
        self._buffer_position -= len(data)
        return data

    def tell(self) -> int:
        """Return the position in the stream."""
        return self._buffer_offset + self._buffer_position

    def seek(self, position: int) -> None:
        """Skip to a later position, or to the end.

        Raises:
            StreamError: If the position lies before the current one.
        """
        if position < self.tell():
            raise tarfile.StreamError("a member overlaps another")
        while (remaining := position - self.tell()) and self.read(min(remaining, STREAM_READ_BYTES)):
            pass

    def drain(self) -> None:
        """Read up to the end, so that the sender never finds a closed pipe."""
        while self.read(STREAM_READ_BYTES):
            pass


@attrs.frozen
class RegularFile:
    """The header of an ordinary file."""

    name: str
    mode: int
    size: int
    mtime: int

    def to_tarinfo(self) -> tarfile.TarInfo:
        """Return the header as `tarfile` represents it."""
        member = tarfile.TarInfo(self.name)
        member.mode, member.size, member.mtime = self.mode, self.size, self.mtime
        return member

    @classmethod
    def parse(cls, block: bytes) -> RegularFile | None:
        """Read the header of an ordinary file with a short name; return None if the block is anything else.

        Most members of most trees are such files, and `tarfile` takes several times as long for them (POSIX.1-2017,
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
    """A block of zeros comes in place of a header (POSIX.1-2017, pax, ustar format)."""


class _StrictTarInfo(tarfile.TarInfo):
    """A header that must be whole: `tarfile` takes a damaged or missing one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a block, and refuse sizes that would read backwards or fill the memory."""
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
    # The type declarations of the class lack these.
    members: list[tarfile.TarInfo]
    firstmember: tarfile.TarInfo | None


def iter_members(source: StreamReader) -> Iterator[tarfile.TarInfo | RegularFile]:
    """Yield the members of a stream, each when the stream is at its content.

    Raises:
        BrokenArchiveError: If the stream ends before the archive does, or is damaged.
    """
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
                raise tarfile.ReadError("its size or time is out of range")
            yield member
    except _EndOfArchiveError:
        return
    except LazyclusterError:
        raise
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        # tarfile raises each of these for damaged numbers, sparse maps and chains of headers.
        raise BrokenArchiveError(name, str(error)) from error


def _read_regular_file(archive: _TarFile, source: StreamReader) -> RegularFile | None:
    """Read the next header if it is that of an ordinary file; return None if `archive` must read it."""
    if archive.firstmember is not None or source.tell() > archive.offset:
        return None  # it has read a header already, or must raise the error
    source.seek(archive.offset)
    file = RegularFile.parse(source.peek(tarfile.BLOCKSIZE))
    if file is not None:
        source.read(tarfile.BLOCKSIZE)
        archive.offset = source.tell() + file.size + -file.size % tarfile.BLOCKSIZE
    return file
