"""The content of files and the names in directories on a host, each through the streams of one script."""

from __future__ import annotations

import re
import secrets
import shlex

from lazycluster._files.scripts import transfer_script
from lazycluster._files.transfer import raising_transfer_errors
from lazycluster._model.command import Command
from lazycluster._model.running_command import CommandRunner, Conversation, RunningCommand
from lazycluster._model.watch import Watch
from lazycluster._ssh.host_scripts import GLOB_PATHS, LIST_DIRECTORY, PATH_EXISTS, READ_FILE, WRITE_FILE
from lazycluster._ssh.shell import quote_path
from lazycluster.exceptions import TransferError, transfer_error
from lazycluster.results import Collector, Stream

_MAX_LISTING_BYTES = 1 << 26
_WRITE_BYTES = 1 << 18
_TILDE = re.compile(r"(~[A-Za-z0-9_.-]*)(?:/+(.*))?", re.DOTALL)


def read_file(runner: CommandRunner, path: str, max_size: int, *, cwd: str | None) -> bytes:
    """Return the content of a file; see `Runtime.read_bytes()`."""
    script = transfer_script(READ_FILE, quote_path(path), title=f"read {path}", cwd=cwd)
    with raising_transfer_errors(runner.host, "read", path):
        return _read_output(runner, script, "read", path, max_size)


def write_file(runner: CommandRunner, path: str, data: bytes, *, cwd: str | None) -> None:
    """Replace or make a file; see `Runtime.write_bytes()`."""
    words = quote_path(path), secrets.token_hex(8), str(len(data))
    script = transfer_script(WRITE_FILE, *words, title=f"write {path}", cwd=cwd, stdin=None)

    def send(running: RunningCommand) -> None:
        for start in range(0, len(data), _WRITE_BYTES):
            running.write(data[start : start + _WRITE_BYTES])
        running.close_stdin()
        running.wait()

    with raising_transfer_errors(runner.host, "write", path):
        _communicate(runner, script, send, "write", path)


def path_exists(runner: CommandRunner, path: str, *, cwd: str | None) -> bool:
    """Return whether a path leads to something; see `Runtime.exists()`."""
    script = transfer_script(PATH_EXISTS, quote_path(path), title=f"exists {path}", cwd=cwd)
    with raising_transfer_errors(runner.host, "find", path):
        return _read_output(runner, script, "find", path, 1) == b"y"


def list_dir(runner: CommandRunner, path: str, *, cwd: str | None) -> list[str]:
    """Return the names in a directory; see `Runtime.listdir()`."""
    script = transfer_script(LIST_DIRECTORY, quote_path(path), title=f"list {path}", cwd=cwd)
    with raising_transfer_errors(runner.host, "list", path):
        return sorted(_decode_names(_read_output(runner, script, "list", path, _MAX_LISTING_BYTES)))


def glob(runner: CommandRunner, pattern: str, *, cwd: str | None) -> list[str]:
    """Return the paths that match a pattern; see `Runtime.glob()`."""
    tilde = _TILDE.fullmatch(pattern)
    start, rest = (quote_path(tilde[1]), tilde[2] or ".") if tilde is not None else ("''", pattern)
    # A backslash in a bracket expression is one in every shell; outside, only some shells take it for a quote.
    words = start, shlex.quote(rest.replace("\\", "[\\\\]"))
    script = transfer_script(GLOB_PATHS, *words, title=f"glob {pattern}", cwd=cwd)
    with raising_transfer_errors(runner.host, "list", pattern):
        found = _decode_names(_read_output(runner, script, "list", pattern, _MAX_LISTING_BYTES))
    return sorted(path for path in found if _matches_dots(path, rest))


def _matches_dots(path: str, pattern: str) -> bool:
    """Return whether each `.` and `..` at the end of a path is in the pattern, too: `.*` finds them in some shells."""
    names, parts = path.split("/"), pattern.split("/")
    both = zip(reversed(names), reversed(parts), strict=False)
    return all(name not in {".", ".."} or name == part for name, part in both)


def _decode_names(data: bytes) -> list[str]:
    return [name.decode("utf-8", "surrogateescape") for name in data.split(b"\0")[:-1]]


def _read_output(runner: CommandRunner, script: Command, action: str, path: str, max_size: int) -> bytes:
    chunks: list[bytes] = []

    def receive(running: RunningCommand) -> None:
        chunks.clear()
        size = 0
        while data := running.read_some():
            size += len(data)
            if size > max_size:
                raise TransferError(runner.host, action, path, f"it has more than {max_size} bytes (max_size)")
            chunks.append(data)
        running.wait()

    _communicate(runner, script, receive, action, path)
    return b"".join(chunks)


def _communicate(runner: CommandRunner, script: Command, conversation: Conversation, action: str, path: str) -> None:
    collector = Collector()
    exit_code = runner.communicate(script, conversation, Watch(collector=collector))
    if exit_code != 0:
        reason = collector.getvalue(Stream.STDERR).decode("utf-8", "surrogateescape").strip()
        raise transfer_error(runner.host, action, path, reason or f"exit status {exit_code}")
