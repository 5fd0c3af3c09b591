"""What a session runs on the host, as text for a POSIX shell, and what it says back between its marks.

The login shell, whichever it is, sees only `BOOTSTRAP`; all else goes over standard input as one line and is decoded
there. Standard input then stays open as a lifeline: when it ends before the command has, the manager is gone or has
given up, and the command is ended with its children.

On standard output and standard error a mark stands before and after what the command prints. Before it comes what
start-up files print; the mark at the end carries the exit status, so that a command's 255 is not taken for ssh's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

import attrs

from lazycluster._ssh import host_scripts
from lazycluster.results import Stream

BOOTSTRAP = """exec /bin/sh -c 'IFS= read -r lc_p && eval "$(printf %b "$lc_p")"'"""
"""Understood alike by POSIX shells, fish and tcsh: no backslash, no `!`, no newline, no single quote inside."""

JOB_VARIABLE = "LAZYCLUSTER_JOB"
"""The environment variable that marks every process of a command, also those that made sessions of their own."""

_LABEL_FORBIDDEN = re.compile(r"[^ -~]|[\\!'\"]")
_LABEL_LENGTH = 200
_ESCAPED = re.compile(rb"[^ -~]|\\")
_STATUS = re.compile(rb"(\d{1,3}|cd);")
_TILDE = re.compile(r"(~[A-Za-z0-9_][A-Za-z0-9_.-]*|~)(?:/(.*))?", re.DOTALL)


def escape(text: str) -> bytes:
    """Return text as one line of ASCII that `printf %b` turns back into its bytes (UTF-8)."""
    data = text.encode("utf-8", "surrogateescape")
    return _ESCAPED.sub(lambda match: b"\\n" if match[0] == b"\n" else b"\\0%03o" % match[0][0], data)


def quote_path(path: str) -> str:
    """Return a path as a word of a POSIX shell, its `~` or `~user` left to the shell, and never an option.

    Raises:
        ValueError: It holds the one character that no path can.
    """
    if "\0" in path:
        raise ValueError(f"a path cannot hold NUL: {path!r}")
    match = _TILDE.fullmatch(path)
    if match is None:
        return shlex.quote(f"./{path}" if path.startswith("-") else path)
    home = '"$HOME"' if match[1] == "~" else match[1]
    return home if match[2] is None else f"{home}/{shlex.quote(match[2])}"


def label(command: str) -> str:
    """Return how `ps` and a test's stand-in see a command: on one line, safe in any login shell, not too long."""
    text = _LABEL_FORBIDDEN.sub("?", command)
    return shlex.quote(text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 3] + "...")


@attrs.frozen
class Script:
    """A command with its surroundings, and the marks by which its output is known.

    `mark` is random and says which output is the command's; `job` marks its processes on the host. `grace` is how many
    seconds lie between SIGTERM and SIGKILL. With `raw_stdin` the command gets the rest of the session's input as its
    own and watches itself for its end; otherwise it gets `stdin_size` bytes of it. `title` is what `ps` shows. Without
    `own_shell`, and then with `raw_stdin`, the command is read by the shell that is there already, and has no mark.
    """

    command: str = attrs.field(repr=False)
    mark: str
    job: str
    title: str
    cwd: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    grace: int = 5
    stdin_size: int = 0
    raw_stdin: bool = False
    login_shell: bool = True
    own_shell: bool = True

    @property
    def words(self) -> tuple[str, str]:
        """Return what ssh is asked to run: the bootstrap, and the command as its label."""
        return BOOTSTRAP, label(self.title)

    def line(self) -> bytes:
        """Return the line that the bootstrap reads: everything, encoded."""
        return escape(self.text()) + b"\n"

    def text(self) -> str:
        """Return the program for the host's /bin/sh."""
        # A shell that starts ignores IFS in its environment; the one that is there would heed it.
        inline = not self.own_shell and "IFS" not in self.env
        values = {"lc_output_mark": shlex.quote(self.mark), "lc_command": shlex.quote(self.command)}
        parts = ["session_begin"]
        if self.cwd is not None:
            values["lc_cwd"] = quote_path(self.cwd)
            parts.append("session_directory")
        if inline:
            parts.append("session_inline")
        else:
            values["lc_mark"] = shlex.quote(f"{JOB_VARIABLE}={self.job}")
            if self.login_shell:
                parts.append("choose_shell")
            else:
                values["lc_shell"] = "/bin/sh"
            if self.raw_stdin:
                parts.append("session_raw")
            else:
                values |= {"lc_grace": str(self.grace), "lc_stdin_size": str(self.stdin_size)}
                parts += ["find_marked", "session_watched"]
        # The command's environment is not that of the programs that the watcher needs.
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.env.items()] or [":"]
        assignments = [f"{name}={value}" for name, value in values.items()]
        return "\n".join([*assignments, "lc_env() {", *exports, "}", host_scripts.text(*parts)])


BOOTSTRAP_BY_HAND = (
    """exec /bin/sh -c 'IFS= read -r lc_p && lc_p=$(printf %b "$lc_p") || exit; export SHLVL=1; """
    f"""{"; ".join(host_scripts.text("choose_shell").splitlines())}; exec "$lc_shell" -c "$lc_p"'"""
)
"""As `BOOTSTRAP`, but the line that it reads is the command itself, which gets the rest of standard input."""


@attrs.define
class _Marked:
    """One stream between its marks, fed piece by piece."""

    start: bytes
    end: bytes
    """What stands before a status."""
    before: bytearray = attrs.field(factory=bytearray)
    held: bytes = b""
    started: bool = False
    status: str | None = None

    def feed(self, data: bytes) -> bytes:
        """Return what of the data is the command's, as far as that is certain."""
        if self.status is not None:
            return data
        if not self.started:
            self.before += data
            position = self.before.find(self.start)
            if position < 0:
                return b""
            self.started = True
            data = bytes(self.before[position + len(self.start) :])
            del self.before[position:]
        data = self.held + data
        self.held = b""
        position = data.find(self.end)
        while position >= 0:
            self.status = self.reported(data, position)
            if self.status is not None:
                return data[:position] + data[position + len(self.end) + len(self.status) + 1 :]
            position = data.find(self.end, position + 1)
        keep = self._undecided(data)
        if keep:
            self.held = data[-keep:]
            data = data[:-keep]
        return data

    def reported(self, data: bytes, position: int = 0) -> str | None:
        """Return the status in a mark of the end that stands at a position of data."""
        match = _STATUS.match(data, position + len(self.end)) if data.startswith(self.end, position) else None
        return None if match is None else match[1].decode("ascii")

    def finish(self) -> bytes:
        """Return what was held back, at the end of the stream; all of it where no mark ever came."""
        rest = self.held if self.started else bytes(self.before)
        self.held = b""
        return rest

    def _undecided(self, data: bytes) -> int:
        """Return how many bytes at the end of the data may be the beginning of a mark."""
        tail = data[-(len(self.end) + 8) :]
        position = tail.rfind(self.end)
        if position >= 0 and re.fullmatch(rb"[0-9a-z]*", tail[position + len(self.end) :]):
            return len(tail) - position
        for length in range(min(len(self.end) - 1, len(data)), 0, -1):
            if data.endswith(self.end[:length]):
                return length
        return 0


class Marks:
    """Reads the two streams of a session as they come, and takes away what is not the command's."""

    def __init__(self, mark: str) -> None:
        """Prepare for the marks of one script."""
        self._streams = {stream: _Marked(f"{mark}<".encode(), f"{mark}=".encode()) for stream in Stream}

    @property
    def started(self) -> bool:
        """Tell whether the host's shell is known to have begun."""
        return any(marked.started for marked in self._streams.values())

    @property
    def ended(self) -> bool:
        """Tell whether both streams are complete."""
        return all(marked.status is not None for marked in self._streams.values())

    @property
    def status(self) -> str | None:
        """Return the exit status that the host's shell reported, or `cd` where it could not enter the directory."""
        statuses: Sequence[str | None] = [marked.status for marked in self._streams.values()]
        return next((status for status in statuses if status is not None), None)

    def reported(self, data: bytes) -> str | None:
        """Return the status in a mark of the end with which data begins."""
        return self._streams[Stream.STDOUT].reported(data)

    def noise(self, stream: Stream) -> bytes:
        """Return what came before the first mark: start-up files, or ssh itself."""
        return bytes(self._streams[stream].before)

    def feed(self, stream: Stream, data: bytes) -> bytes:
        """Return what of the data is the command's output."""
        return self._streams[stream].feed(data)

    def finish(self, stream: Stream) -> bytes:
        """Return what is left of a stream that has ended; all of it where no mark ever came (a test's stand-in)."""
        return self._streams[stream].finish()
