"""Files of one host: whole transfers, the content of a file as a value, and directories."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lazycluster._model.checks import absolute_path, check_path, is_whole_number
from lazycluster._model.watch import make_watch
from lazycluster._runtime_core import RuntimeCore

DEFAULT_MAX_SIZE = 256 * 2**20


class RuntimeFiles:
    """The part of `Runtime` about files. Relative paths on the host start in the working directory."""

    _core: RuntimeCore

    def put(
        self,
        local: str | os.PathLike[str],
        remote: str | None = None,
        *,
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> None:
        """Send a file or a directory, with modes and times; symbolic links inside a directory stay links.

        Args:
            local: The local file or directory.
            remote: The target on the host: a new name, an existing file, or an existing directory to put it into.
                `~` is the host's. Default: its own name in the working directory.
            on_progress: Called with the bytes moved so far, and with all of them, or None if that is unknown.

        Raises:
            TransferError: If it could not be sent; the target is then as it was before.
            ConnectError: If the host could not be reached.
        """
        context, watch = self._core.context(), make_watch(on_progress=on_progress)
        context.transport.put(absolute_path(local), remote, cwd=context.cwd, watch=watch)

    def get(
        self,
        remote: str,
        local: str | os.PathLike[str] | None = None,
        *,
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> None:
        """Fetch a file or a directory, with modes and times; symbolic links inside a directory stay links.

        Args:
            remote: The file or directory on the host; `~` is the host's.
            local: The local target: a new name, an existing file, or an existing directory to put it into. Default:
                its own name in the current directory.
            on_progress: Called with the bytes moved so far, and with all of them, or None if that is unknown.

        Raises:
            TransferError: If it could not be fetched; the target is then as it was before.
            HostFileNotFoundError: If there is no such file on the host; it is also a `FileNotFoundError`.
            ConnectError: If the host could not be reached.
        """
        target = Path.cwd() if local is None else absolute_path(local)
        context, watch = self._core.context(), make_watch(on_progress=on_progress)
        context.transport.get(remote, target, cwd=context.cwd, watch=watch)

    def read_bytes(self, path: str, *, max_size: int = DEFAULT_MAX_SIZE) -> bytes:
        """Return the content of a file on the host, with one round trip.

        Args:
            path: The file; `~` is the host's. Links are followed.
            max_size: The most bytes that it may have, which bounds the memory; `get()` fetches larger files.

        Raises:
            HostFileNotFoundError: If there is no such file; it is also a `FileNotFoundError`.
            TransferError: If it is no regular file, cannot be read, or is larger than `max_size`.
        """
        check_path("path", path)
        if not is_whole_number(max_size, 0):
            raise ValueError(f"max_size must be a whole number from 0 on, got {max_size!r}")
        self._core.resources.check_open()
        return self._core.transport.read_file(path, max_size, cwd=self._core.working_dir)

    def read_text(
        self, path: str, *, encoding: str = "utf-8", errors: str = "strict", max_size: int = DEFAULT_MAX_SIZE
    ) -> str:
        """Return the content of a text file on the host, with one round trip; newlines stay as they are.

        Args:
            path: As in `read_bytes()`.
            encoding: The encoding of the file.
            errors: How bytes that are no such text are decoded, as in `bytes.decode()`.
            max_size: As in `read_bytes()`.

        Raises:
            HostFileNotFoundError: If there is no such file; it is also a `FileNotFoundError`.
            TransferError: If it is no regular file, cannot be read, or is larger than `max_size`.
            UnicodeDecodeError: If it is not text of this encoding.
        """
        return self.read_bytes(path, max_size=max_size).decode(encoding, errors)

    def write_bytes(self, path: str, data: bytes) -> None:
        """Replace or make a file on the host, with one round trip.

        It is written under a temporary name and renamed, so that no reader sees half of it. A file that is replaced
        keeps its mode, and a link its place: the file that it leads to is replaced. The directory must exist.

        Args:
            path: The file; `~` is the host's.
            data: The whole content.

        Raises:
            TransferError: If it cannot be written; the file is then as it was before.
        """
        check_path("path", path)
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise ValueError(f"data must be bytes, got {type(data).__name__}")  # noqa: TRY004 - as every bad value
        self._core.resources.check_open()
        self._core.transport.write_file(path, bytes(data), cwd=self._core.working_dir)

    def write_text(self, path: str, text: str, *, encoding: str = "utf-8", errors: str = "strict") -> None:
        """Replace or make a text file on the host, as `write_bytes()` does; newlines stay as they are.

        Args:
            path: The file; `~` is the host's.
            text: The whole content.
            encoding: The encoding of the file.
            errors: How characters that the encoding lacks are encoded, as in `str.encode()`.

        Raises:
            TransferError: If it cannot be written; the file is then as it was before.
            UnicodeEncodeError: If the encoding lacks a character.
        """
        if not isinstance(text, str):
            raise ValueError(f"text must be a str, got {type(text).__name__}")  # noqa: TRY004 - as every bad value
        self.write_bytes(path, text.encode(encoding, errors))

    def exists(self, path: str) -> bool:
        """Return whether a path on the host leads to a file, directory or anything else, with one round trip.

        A link to nothing does not exist, nor does anything in a directory that may not be entered.

        Raises:
            TransferError: If the working directory cannot be entered.
        """
        check_path("path", path)
        self._core.resources.check_open()
        return self._core.transport.path_exists(path, cwd=self._core.working_dir)

    def listdir(self, path: str = ".") -> list[str]:
        """Return the names in a directory on the host, sorted and with hidden ones, with one round trip.

        Bytes that are not UTF-8 become surrogates, as in `os.listdir()`. All methods take such names.

        Raises:
            HostFileNotFoundError: If there is no such directory; it is also a `FileNotFoundError`.
            TransferError: If it is no directory, or cannot be read.
        """
        check_path("path", path)
        self._core.resources.check_open()
        return self._core.transport.list_dir(path, cwd=self._core.working_dir)

    def glob(self, pattern: str) -> list[str]:
        """Return the paths on the host that match a pattern, sorted, with one round trip.

        `*`, `?` and `[...]` are as in `glob.glob()`: no `*` matches a `/`, or a dot at the beginning of a name. `?`
        matches one byte. Paths are relative if the pattern is.

        Args:
            pattern: The pattern, without `**`. For a search in all subdirectories, run `find`.

        Raises:
            ValueError: If the pattern contains `**`.
            TransferError: If the working directory cannot be entered.
        """
        check_path("pattern", pattern)
        if "**" in pattern:
            raise ValueError(f"pattern must not contain '**', got {pattern!r:.200}; run `find` to search a tree")
        self._core.resources.check_open()
        return self._core.transport.glob(pattern, cwd=self._core.working_dir)

    def create_dir(self, path: str) -> None:
        """Make a directory on the host, with its parents; one that exists is fine.

        Raises:
            CommandFailedError: If it cannot be made.
        """
        self._core.resources.check_open()
        self._core.transport.create_dir(path, cwd=self._core.working_dir)

    def create_tempdir(self) -> str:
        """Make a temporary directory on the host and return its path; it is removed with the runtime."""
        self._core.resources.check_open()
        return self._core.transport.create_tempdir()

    def delete_dir(self, path: str) -> bool:
        """Delete a directory on the host with its contents; return whether nothing of it is left.

        Raises:
            ValueError: If the path is empty or the root directory.
        """
        if not path.rstrip("/"):
            raise ValueError(f"path must be neither empty nor the root directory, got {path!r}")
        self._core.resources.check_open()
        return self._core.transport.delete_dir(path, cwd=self._core.working_dir)
