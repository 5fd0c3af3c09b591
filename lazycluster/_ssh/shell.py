"""The program of a session on the host, as text for a POSIX shell, and the output between its marks.

The login shell, whichever it is, sees only `SHELL_BOOTSTRAP`; all else goes over standard input as one line and is
decoded there. Standard input then stays open as a lifeline. When it ends before the command, the local process is gone
or has cancelled the command, which is ended with its children.

On standard output and standard error the output of the command lies between two marks. The output of start-up files
comes before the first. The second carries the exit status, so that a command's 255 is not taken for ssh's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import attrs

from lazycluster._model.command import Command
from lazycluster._ssh import host_scripts
from lazycluster.options import DEFAULT_GRACE_SECONDS
from lazycluster.results import Stream

SHELL_BOOTSTRAP = """exec /bin/sh -c 'IFS= read -r lc_p && eval "$(printf %b "$lc_p")"'"""
"""Understood alike by POSIX shells, fish and tcsh: no backslash, no `!`, no newline, no single quote inside."""

PROCESS_MARK_VARIABLE = "LAZYCLUSTER_JOB"
"""The environment variable that marks every process of a command, also those that made sessions of their own."""

_LABEL_UNSAFE_CHARACTERS = re.compile(r"[^ -~]|[\\!'\"]")
_MAX_LABEL_CHARACTERS = 200
_BYTES_TO_ESCAPE = re.compile(rb"[^ -~]|\\")
_STATUS_REPORT = re.compile(rb"(\d{1,3}|cd);")
_HOME_RELATIVE_PATH = re.compile(r"(~[A-Za-z0-9_][A-Za-z0-9_.-]*|~)(?:/(.*))?", re.DOTALL)


def escape_for_printf(text: str) -> bytes:
    """Return text as one line of ASCII that `printf %b` turns back into its bytes (UTF-8)."""
    data = text.encode("utf-8", "surrogateescape")
    return _BYTES_TO_ESCAPE.sub(lambda match: b"\\n" if match[0] == b"\n" else b"\\0%03o" % match[0][0], data)


def quote_path(path: str) -> str:
    """Return a path as a word of a POSIX shell, its `~` or `~user` left to the shell, and never an option.

    Raises:
        ValueError: If it holds NUL, which no path can.
    """
    if "\0" in path:
        raise ValueError(f"path must be text without NUL, got {path!r}")
    match = _HOME_RELATIVE_PATH.fullmatch(path)
    if match is None:
        return shlex.quote(f"./{path}" if path.startswith("-") else path)
    home = '"$HOME"' if match[1] == "~" else match[1]
    return home if match[2] is None else f"{home}/{shlex.quote(match[2])}"


def process_label(command: str) -> str:
    """Return a command as `ps` and a mocked ssh see it: on one line, safe in any login shell, not too long."""
    text = _LABEL_UNSAFE_CHARACTERS.sub("?", command)
    return shlex.quote(text if len(text) <= _MAX_LABEL_CHARACTERS else text[: _MAX_LABEL_CHARACTERS - 3] + "...")


@attrs.frozen
class Script:
    """A command as one session runs it, with the marks by which its output and its processes are recognised.

    `output_mark` is random and delimits the output of the command; `process_mark` marks its processes on the host.
    `grace` is the time in seconds between SIGTERM and SIGKILL. A command without `stdin` of its own gets the rest of
    the session's input, and watches it for its end, or gets it in confirmed pieces if it has a lifeline. With
    `inline`, for a command that watches it, the shell of the session reads the command itself, and its processes have
    no mark.
    """

    command: Command
    output_mark: str
    process_mark: str
    grace: float = DEFAULT_GRACE_SECONDS
    inline: bool = False

    @property
    def command_words(self) -> tuple[str, str]:
        """The words for ssh to run on the host: the bootstrap, and the command as its label."""
        return SHELL_BOOTSTRAP, process_label(self.command.title)

    def encode(self) -> bytes:
        """Return the line that the bootstrap reads: everything, encoded."""
        return escape_for_printf(self.text()) + b"\n"

    def text(self) -> str:
        """Return the program for the host's /bin/sh."""
        command = self.command
        # A shell that starts ignores IFS in its environment; a running shell would heed it.
        inline = self.inline and "IFS" not in command.env
        values = {"lc_output_mark": shlex.quote(self.output_mark), "lc_command": shlex.quote(command.shell_text)}
        parts = ["session_begin"]
        if command.cwd is not None:
            values["lc_cwd"] = quote_path(command.cwd)
            parts.append("session_directory")
        if inline:
            parts.append("session_inline")
        else:
            values["lc_mark"] = shlex.quote(f"{PROCESS_MARK_VARIABLE}={self.process_mark}")
            if command.login_shell and isinstance(command.program, str):
                parts.append("choose_shell")
            else:
                values["lc_shell"] = "/bin/sh"
            parts.append("exec_command")
            stdin_size = command.stdin_size if command.stdin is None else len(command.stdin)
            if stdin_size is None and not command.has_lifeline:
                parts.append("session_raw")
            else:
                values["lc_grace_tenths"] = host_scripts.grace_tenths(self.grace)
                parts.append("terminate_marked")
                if stdin_size is None:
                    parts.append("session_fed")
                else:
                    values["lc_stdin_size"] = str(stdin_size)
                    parts.append("session_watched")
        # The command's environment is not that of the programs that the watchdog needs.
        exports = [f"export {name}={shlex.quote(value)}" for name, value in command.env.items()] or [":"]
        assignments = [f"{name}={value}" for name, value in values.items()]
        return "\n".join([*assignments, "lc_env() {", *exports, "}", host_scripts.text(*parts)])


MANUAL_SHELL_BOOTSTRAP = (
    """exec /bin/sh -c 'IFS= read -r lc_p && lc_p=$(printf %b "$lc_p") || exit; export SHLVL=1; """
    f"""{"; ".join(host_scripts.text("choose_shell").splitlines())}; exec "$lc_shell" -c "$lc_p"'"""
)
"""As `SHELL_BOOTSTRAP`, but the line that it reads is the command itself, which gets the rest of standard input."""


@attrs.define
class _MarkedStream:
    """One stream between its marks, fed piece by piece."""

    start_mark: bytes
    end_mark: bytes
    """The mark before a status."""
    piece_mark: bytes
    """The mark that confirms a piece of the input."""
    confirmed_pieces: int = 0
    preamble: bytearray = attrs.field(factory=bytearray)
    partial_mark: bytes = b""
    has_started: bool = False
    reported_status: str | None = None

    def feed(self, data: bytes) -> bytes:
        """Return the part of the data that is the command's for certain."""
        if self.reported_status is not None:
            return data.replace(self.piece_mark, b"")
        if not self.has_started:
            self.preamble += data
            position = self.preamble.find(self.start_mark)
            if position < 0:
                return b""
            self.has_started = True
            data = bytes(self.preamble[position + len(self.start_mark) :])
            del self.preamble[position:]
        data = self.partial_mark + data
        self.partial_mark = b""
        confirmed = data.count(self.piece_mark)
        if confirmed:
            self.confirmed_pieces += confirmed
            data = data.replace(self.piece_mark, b"")
        position = data.find(self.end_mark)
        while position >= 0:
            self.reported_status = self.parse_status_report(data, position)
            if self.reported_status is not None:
                return data[:position] + data[position + len(self.end_mark) + len(self.reported_status) + 1 :]
            position = data.find(self.end_mark, position + 1)
        keep = self._partial_mark_length(data)
        if keep:
            self.partial_mark = data[-keep:]
            data = data[:-keep]
        return data

    def parse_status_report(self, data: bytes, position: int = 0) -> str | None:
        """Return the status in an end mark at a position of data; None if there is no such mark."""
        match = (
            _STATUS_REPORT.match(data, position + len(self.end_mark))
            if data.startswith(self.end_mark, position)
            else None
        )
        return None if match is None else match[1].decode("ascii")

    def flush(self) -> bytes:
        """Return the output that was held back as the possible beginning of a mark, at the end of the stream."""
        rest, self.partial_mark = self.partial_mark, b""
        return rest

    def _partial_mark_length(self, data: bytes) -> int:
        """Return how many bytes at the end of the data may be the beginning of a mark."""
        tail = data[-(len(self.end_mark) + 8) :]
        position = tail.rfind(self.end_mark)
        if position >= 0 and re.fullmatch(rb"[0-9a-z]*", tail[position + len(self.end_mark) :]):
            return len(tail) - position
        for length in range(min(len(self.end_mark) - 1, len(data)), 0, -1):
            if data.endswith(self.end_mark[:length]):
                return length
        return 0


class OutputDecoder:
    """Reads the two streams of a session as they come, and removes text that is not the command's."""

    def __init__(self, output_mark: str) -> None:
        """Prepare for the marks of one script."""
        self._streams = {
            stream: _MarkedStream(f"{output_mark}<".encode(), f"{output_mark}=".encode(), f"{output_mark}+".encode())
            for stream in Stream
        }

    @property
    def has_started(self) -> bool:
        """Whether the host's shell is known to have begun."""
        return any(marked.has_started for marked in self._streams.values())

    @property
    def has_ended(self) -> bool:
        """Whether both streams are complete."""
        return all(marked.reported_status is not None for marked in self._streams.values())

    @property
    def reported_status(self) -> str | None:
        """The exit status that the host's shell reported, or `cd` if it could not enter the directory."""
        statuses: Sequence[str | None] = [marked.reported_status for marked in self._streams.values()]
        return next((status for status in statuses if status is not None), None)

    @property
    def confirmed_pieces(self) -> int:
        """The number of pieces of input that the command has read, or will never read."""
        return self._streams[Stream.STDERR].confirmed_pieces

    def parse_status_report(self, data: bytes) -> str | None:
        """Return the status in the end mark with which data begins; None if it does not."""
        return self._streams[Stream.STDOUT].parse_status_report(data)

    def preamble(self, stream: Stream) -> bytes:
        """Return the text before the first mark, which start-up files or ssh printed."""
        return bytes(self._streams[stream].preamble)

    def feed(self, stream: Stream, data: bytes) -> bytes:
        """Return the command's output in the data."""
        return self._streams[stream].feed(data)

    def flush(self, stream: Stream) -> bytes:
        """Return the output that was held back of a stream that has ended."""
        return self._streams[stream].flush()
