"""A directory as one tar stream, written for a host's `tar`."""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
import sys
import tarfile
from typing import TYPE_CHECKING, Final, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)

END_MARKER: Final = ".lazycluster-complete"
"""The last member of every packed stream, an empty file. The extraction looks for this file, and removes it: GNU tar
takes a stream that was cut between two members for a whole one, and exits with 0."""

_FILE_READ_BYTES: Final = 1 << 20
_WRITE_BUFFER_BYTES: Final = 1 << 18
_USTAR_HEADER: Final = struct.Struct("100s8s8s8s12s12s8s1s100s8s247x")
_OCTAL_LIMIT: Final = 8**11
NAME_ENCODING: Final = sys.getfilesystemencoding()
"""The encoding of the names in a stream; with surrogateescape they keep the bytes that they have on disk."""


class ByteSink(Protocol):
    """The sink of a stream; each `write` takes all of its data, as that of a buffered binary file does."""

    def write(self, data: bytes, /) -> object:
        """Take all of the bytes."""
        ...


def write_tar(source: Path, out: ByteSink, *, on_progress: Callable[[int], None] | None = None) -> None:
    """Write the content of a directory to `out` as an uncompressed tar stream, its members named `./...`.

    It is in GNU format: GNU tar, bsdtar and busybox tar all read its long names and large sizes, and its names may hold
    any bytes. Modes, modification times in whole seconds, symbolic links and hard links inside the tree are kept,
    owners are not. Sockets, FIFOs and devices are left out with a warning. A file that grows during the copy is cut at
    its first size. `on_progress` gets the bytes written since it was last called.

    Every directory comes twice. Before its content it is writable for its owner, so that a tar that applies modes at
    once (busybox) can fill it. After its content it has its true mode and time. The directory itself comes once, as
    `.`, and writable, so that `END_MARKER` can be created in it and removed. `END_MARKER` bears the directory's time.

    Raises:
        OSError: If something cannot be read, or a file becomes shorter while it is read; `filename` is its path.
    """
    _TarWriter(out, on_progress).write_tree(source)


@attrs.define
class _TarWriter:
    """The state of one `write_tar()`: the data to be written, and the first names of files with several."""

    _out: ByteSink
    _on_progress: Callable[[int], None] | None
    _pending: list[bytes] = attrs.field(factory=list)
    _pending_bytes: int = 0
    _written_bytes: int = 0
    _first_name_by_inode: dict[tuple[int, int], str] = attrs.field(factory=dict)

    def write_tree(self, source: Path) -> None:
        root = source.stat()
        self._write_header(".", tarfile.DIRTYPE, root, mode=root.st_mode | stat.S_IRWXU)
        # A stack, not recursion: trees may be deeper than Python's stack. A directory's second header lies under
        # its content.
        todo: list[tuple[str, str, os.stat_result | None]] = [*self._list_directory(os.fspath(source), ".")]
        while todo:
            path, name, directory_status = todo.pop()
            if directory_status is not None:
                self._write_header(name, tarfile.DIRTYPE, directory_status)
                continue
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                self._write_header(name, tarfile.DIRTYPE, status, mode=status.st_mode | stat.S_IRWXU)
                todo.append((path, name, status))
                todo.extend(self._list_directory(path, name))
            else:
                self._write_member(path, name, status)
        self._write_header(f"./{END_MARKER}", tarfile.REGTYPE, root, mode=0o600)
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self._written_bytes % tarfile.RECORDSIZE))
        self._flush()

    def _list_directory(self, path: str, name: str) -> Iterator[tuple[str, str, None]]:
        """Yield the path and member name of each entry of a directory, the last name first."""
        with os.scandir(path) as entries:
            names = sorted((entry.name for entry in entries), reverse=True)
        for entry in names:
            if name == "." and entry == END_MARKER:
                _log.warning("%s/%s is left out: it would be taken for the end of the stream", path, entry)
            else:
                yield f"{path}/{entry}", f"{name}/{entry}", None

    def _write_member(self, path: str, name: str, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            # Path.readlink() would tidy the target up; it is kept as it is.
            self._write_header(name, tarfile.SYMTYPE, status, linkname=os.readlink(path))  # noqa: PTH115
        elif not stat.S_ISREG(status.st_mode):
            _log.warning("%s is left out: it is neither file, directory nor link", path)
        elif (first := self._earlier_name(name, status)) is not None:
            self._write_header(name, tarfile.LNKTYPE, status, linkname=first)
        else:
            self._write_file(path, name)

    def _earlier_name(self, name: str, status: os.stat_result) -> str | None:
        """Return the name under which this very file is in the stream already."""
        if status.st_nlink == 1:
            return None
        first = self._first_name_by_inode.setdefault((status.st_dev, status.st_ino), name)
        return first if first != name else None

    def _write_file(self, path: str, name: str) -> None:
        # Not through a link and not waiting for a FIFO's writer, if one of these took the place of the file just now.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                _log.warning("%s is left out: it is no longer a file", path)
                return
            self._write_header(name, tarfile.REGTYPE, status, size=status.st_size)
            remaining = status.st_size
            while remaining:
                data = _read_chunk(descriptor, min(remaining, _FILE_READ_BYTES), path)
                if not data:
                    raise OSError(errno.EIO, f"became shorter by {remaining} bytes while it was read", path)
                remaining -= len(data)
                self._write(data)
            self._write(bytes(-status.st_size % tarfile.BLOCKSIZE))
        finally:
            os.close(descriptor)

    def _write_header(
        self,
        name: str,
        kind: bytes,
        status: os.stat_result,
        *,
        mode: int | None = None,
        size: int = 0,
        linkname: str = "",
    ) -> None:
        info = tarfile.TarInfo(name)
        info.type = kind
        info.mode = stat.S_IMODE(status.st_mode if mode is None else mode)
        info.mtime = status.st_mtime_ns // 1_000_000_000
        info.size = size
        info.linkname = linkname
        self._write(encode_tar_header(info))

    def _write(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        self._written_bytes += len(data)
        if self._pending_bytes >= _WRITE_BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        self._out.write(data)
        if self._on_progress is not None:
            self._on_progress(len(data))


def _read_chunk(descriptor: int, size: int, path: str) -> bytes:
    """Read at most `size` bytes; an error names the path, which one of `os.read` does not."""
    try:
        return os.read(descriptor, size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def encode_tar_header(info: tarfile.TarInfo) -> bytes:
    """Return the header of a member of owner 0 in GNU format, as `TarInfo.tobuf` does.

    `tobuf` takes most of the time of packing small files. So a header of short names, and of numbers that fit in their
    octal fields, is built here (GNU tar manual, Basic Tar Format: the "old GNU format" magic).
    """
    name = os.fsencode(f"{info.name}/" if info.isdir() else info.name)
    link = os.fsencode(info.linkname)
    mtime = int(info.mtime)
    fits = len(name) <= tarfile.LENGTH_NAME and len(link) <= tarfile.LENGTH_LINK
    if not fits or not 0 <= mtime < _OCTAL_LIMIT or info.size >= _OCTAL_LIMIT:
        return info.tobuf(tarfile.GNU_FORMAT, NAME_ENCODING, "surrogateescape")
    numbers = b"%07o\0" % info.mode, b"%07o\0" % 0, b"%07o\0" % 0, b"%011o\0" % info.size, b"%011o\0" % mtime
    # The checksum is the sum of all bytes, its own field counted as eight spaces.
    block = _USTAR_HEADER.pack(name, *numbers, b" " * 8, info.type, link, tarfile.GNU_MAGIC)
    return b"%b%06o\0%b" % (block[:148], sum(block), block[155:])
