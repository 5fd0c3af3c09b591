"""A file or a directory through the standard streams of a script on the host; a directory is one tar stream."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import stat
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import attrs

from lazycluster._files.install import discard, move_into_place, temporary_path_beside
from lazycluster._files.scripts import script_fields, transfer_script
from lazycluster._files.tar_reader import extract_tar
from lazycluster._files.tar_writer import END_MARKER, write_tar
from lazycluster._model.command import Command
from lazycluster._model.running_command import CommandEndedError, CommandRunner, Conversation, RunningCommand
from lazycluster._model.watch import Watch
from lazycluster._ssh.host_scripts import FETCH, RECEIVE_FILE, RECEIVE_TREE
from lazycluster._ssh.shell import quote_path
from lazycluster.exceptions import UnsafeArchiveError, transfer_error
from lazycluster.results import Collector, CommandResult

_HARMLESS_TAR_WARNING = re.compile(r".*: (file changed as we read it|File removed before we read it)\s*")
_PATHS_WITHOUT_NAME = {"", ".", "..", "~"}
_UPLOAD_READ_BYTES = 1 << 18
_MAX_TOUCH_SECONDS = 253402300799
"""The last second of the year 9999, the last one that touch(1) accepts."""


def put_file_by_stdin(
    runner: CommandRunner, local: Path, name: str, target: str, cwd: str | None, watch: Watch
) -> None:
    """Send a file through the standard input of a script that writes it."""
    with local.open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        mtime = min(max(int(status.st_mtime), 0), _MAX_TOUCH_SECONDS)
        when = time.strftime("%Y%m%d%H%M.%S", time.gmtime(mtime))
        mode = f"{stat.S_IMODE(status.st_mode) & 0o777:o}"
        words = quote_path(target), shlex.quote(name), secrets.token_hex(8), str(status.st_size), mode, when
        script = transfer_script(RECEIVE_FILE, *words, title=f"receive {target}", cwd=cwd, stdin=None)

        def send(running: RunningCommand) -> None:
            done = 0
            while done < status.st_size and (data := file.read(min(_UPLOAD_READ_BYTES, status.st_size - done))):
                running.write(data)
                done += len(data)
                watch.on_progress(done, status.st_size)
            running.close_stdin()
            running.wait()

        result = _communicate(runner, script, send, watch)
    script_fields(runner.host, "send", str(local), result, target)


def _communicate(runner: CommandRunner, script: Command, conversation: Conversation, watch: Watch) -> CommandResult:
    """Run a script; its output is data of the transfer, which the watch does not get."""
    collector = Collector()
    exit_code = runner.communicate(script, conversation, Watch(cancel_token=watch.cancel_token, collector=collector))
    return collector.result(script.title, exit_code, 0.0)


def _receive_file(running: RunningCommand, temporary: Path, size: int, watch: Watch) -> None:
    """Write a file that comes after its mode and modification time."""
    mode, _, mtime = (running.read_until(b"\0") or b"").decode("ascii").partition(" ")
    done = 0
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        while data := running.read_some():
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            done += len(data)
            watch.on_progress(done, size)
        os.fchmod(descriptor, int(mode, 8) & 0o777)
        os.utime(descriptor, (int(mtime), int(mtime)))


@attrs.frozen
class FoundFile:
    """A file on the host: its directory, its name in it, and its size in bytes."""

    directory: str
    name: str
    size: int


@attrs.frozen
class _StdinWriter:
    """The standard input of a command, as a file that is written to."""

    command: RunningCommand

    def write(self, data: bytes, /) -> None:
        """Send all of the data."""
        self.command.write(data)


@attrs.frozen
class _StdoutReader:
    """The standard output of a command, as a file that is read from."""

    command: RunningCommand

    def read(self, size: int, /) -> bytes:
        """Return `size` bytes, fewer only at the end."""
        return self.command.read(size)


@attrs.define
class _ProgressCounter:
    """Adds up the bytes that were moved."""

    on_progress: Callable[[int, int | None], object]
    done: int = 0

    def add(self, size: int) -> None:
        """Count, and report."""
        self.done += size
        self.on_progress(self.done, None)


def put_tree(runner: CommandRunner, local: Path, name: str, target: str, cwd: str | None, watch: Watch) -> None:
    """Send a directory as a tar stream through the standard input of a script that extracts it."""
    mode = stat.S_IMODE(local.stat().st_mode) & 0o777
    words = quote_path(target), shlex.quote(name), secrets.token_hex(8), END_MARKER, f"{mode:o}"
    script = transfer_script(RECEIVE_TREE, *words, title=f"receive {target}", cwd=cwd, stdin=None)

    def send(running: RunningCommand) -> None:
        write_tar(local, _StdinWriter(running), on_progress=_ProgressCounter(watch.on_progress).add)
        running.close_stdin()
        running.wait()

    script_fields(runner.host, "send", str(local), _communicate(runner, script, send, watch), target)


def fetch(
    runner: CommandRunner, remote: str, local: Path, cwd: str | None, watch: Watch, *, max_streamed_bytes: int
) -> FoundFile | None:
    """Fetch a directory, or a file of up to `max_streamed_bytes` bytes; a larger file is only found and returned."""
    script = transfer_script(FETCH, quote_path(remote), str(max_streamed_bytes), title=f"fetch {remote}", cwd=cwd)
    header: list[str] = []
    received: list[tuple[Path, Path]] = []

    def receive(running: RunningCommand) -> None:
        header.clear()
        fields = [running.read_until(b"\0") for _ in range(4)]
        if None in fields:
            raise CommandEndedError
        header.extend((field or b"").decode("utf-8", "surrogateescape") for field in fields)
        if header[0] == "d":
            target = local_target(local, remote, header[2])
            temporary = temporary_path_beside(target)
            received.append((temporary, target))
            temporary.mkdir(mode=0o700)
            extract_tar(_StdoutReader(running), temporary, on_progress=_ProgressCounter(watch.on_progress).add)
        elif int(header[3]) <= max_streamed_bytes:
            target = local_target(local, remote, header[2])
            temporary = temporary_path_beside(target)
            received.append((temporary, target))
            _receive_file(running, temporary, int(header[3]), watch)
        running.wait()

    try:
        result = _communicate(runner, script, receive, watch)
        stderr_text = result.stderr.strip()
        changed = (
            result.exit_code == 1
            and bool(stderr_text)
            and all(_HARMLESS_TAR_WARNING.fullmatch(line) for line in stderr_text.splitlines())
        )
        if not header or not (result.ok or changed):
            raise transfer_error(runner.host, "fetch", remote, stderr_text or f"exit status {result.exit_code}")
        for temporary, target in received[-1:]:
            move_into_place(temporary, target)
    finally:
        for temporary, _ in received:
            discard(temporary)
    return None if received else FoundFile(header[1], header[2], int(header[3]))


def local_target(local: Path, remote: str, name: str) -> Path:
    """Return the local path for a fetched file or tree: `local`, or a name in it if `local` is a directory.

    Raises:
        UnsafeArchiveError: If the name that the host gives leads out of the directory.
    """
    if not local.is_dir():
        return local
    requested_name = PurePosixPath(remote).name
    if requested_name not in _PATHS_WITHOUT_NAME:
        return local / requested_name
    if name in {"", ".", ".."} or "/" in name:
        raise UnsafeArchiveError(name, "the host gives that as the directory's name; give a target that does not exist")
    return local / name
