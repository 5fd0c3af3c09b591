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

FIND_MARKED = """\
lc_pids() {
    if [ -r /proc/self/environ ]; then
        grep -lsF -e "$lc_mark" /proc/[0-9]*/environ | sed 's,^/proc/,,; s,/environ$,,'
    else
        ps -A -E -ww -o pid= -o command= | awk -v m="$lc_mark" 'index($0, m) && $2 != "awk" { print $1 }'
    fi
}
"""
"""Defines `lc_pids`, which prints the processes that have $lc_mark in their environment. macOS has no /proc, and a `ps`
that shows it."""

# Standard input is 3 here. Signals to the group reach this shell too, not the watcher.
_WATCHER = (
    FIND_MARKED
    + """\
{
    trap '' HUP INT TERM
    while IFS= read -r lc_x; do :; done
    kill -s TERM -- -$$
    lc_list=' '
    lc_n=0
    while :; do
        lc_left=$(lc_pids)
        for lc_x in $lc_left; do
            case $lc_list in *" $lc_x "*) ;; *) kill -s TERM "$lc_x"; lc_list="$lc_list$lc_x " ;; esac
        done
        # Looked at twice: in the moment of its exec a process shows no environment.
        if [ -z "$lc_left" ] && [ $lc_n -gt 0 ]; then break; fi
        [ $lc_n -lt "${lc_grace}0" ] || break
        if sleep 0.1; then lc_n=$((lc_n + 1)); else sleep 1; lc_n=$((lc_n + 10)); fi
    done
    kill -s KILL $lc_list $(lc_pids)
    kill -s KILL -- -$$
} <&3 >/dev/null 2>&1 6>&- &
lc_watcher=$!
"""
)
# The watcher first: standard input may end as soon as the marks are read, and what the command left in the background
# is not to be ended with it.
_END = """\
lc_end() {{
    [ -z "$lc_watcher" ] || kill -s KILL "$lc_watcher"
    printf '%s' '{mark}='"$1"';'
    printf '%s' '{mark}='"$1"';' >&6
    exit 0
}}
"""
_SPOOL = """\
lc_full() {{ printf 'standard input cannot be stored in %s\n' "${{TMPDIR:-/tmp}}" >&6; lc_end 1; }}
lc_t=$(mktemp) && exec 4<>"$lc_t" 5<"$lc_t" || lc_full
head -c {size} <&3 >&4
lc_size=$(wc -c <"$lc_t")
rm -f -- "$lc_t"
exec 4>&-
[ "$lc_size" -eq {size} ] || lc_full
"""


def escape(text: str) -> bytes:
    """Return text as one line of ASCII that `printf %b` turns back into its bytes (UTF-8)."""
    return _ESCAPED.sub(lambda match: b"\\0%03o" % match[0][0], text.encode("utf-8", "surrogateescape"))


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
        cwd = [] if self.cwd is None else [f"CDPATH= cd -- {quote_path(self.cwd)} || lc_end cd"]
        return "\n".join(
            [
                f"lc_mark={JOB_VARIABLE}={self.job} lc_grace={self.grace}",
                _END.format(mark=self.mark),
                "lc_watcher=",
                f"printf '%s' '{self.mark}<'; printf '%s' '{self.mark}<' >&2",
                "exec 6>&2",
                # bash reads ~/.bashrc again below ssh unless it sees that it is not the first shell there.
                '[ "${SHLVL:-0}" -gt 0 ] 2>/dev/null || SHLVL=1; export SHLVL',
                *cwd,
                "lc_shell=/bin/sh",
                *([_CHOOSE_SHELL] if self.login_shell else []),
                "exec 2>/dev/null",  # where a shell says how its child died, which is no output of the command's
                *self._input_and_watcher(),
                "lc_end $?",
            ]
        )

    def _input_and_watcher(self) -> list[str]:
        # The command's environment is not that of the programs that the watcher needs.
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.env.items()]
        start = f'export {JOB_VARIABLE}={self.job}; exec "$lc_shell" -c {shlex.quote(self.command)}'
        if not self.own_shell and "IFS" not in self.env:  # which a shell that starts does not heed
            return ["(exec 2>&6 6>&-", *exports, "set --", self.command, ")"]
        if self.raw_stdin:
            return ["(exec 2>&6 6>&-", *exports, f"{start})"]
        spool = [_SPOOL.format(size=self.stdin_size)] if self.stdin_size else []
        source = "<&5 5<&-" if self.stdin_size else "</dev/null"
        return ["exec 3<&0", *spool, _WATCHER, f"(exec {source} 3<&- 2>&6 6>&-", *exports, f"{start})"]


# Text for a POSIX shell must reach one: an account's fish, tcsh or zsh would read it otherwise.
_CHOOSE_SHELL = (
    'case "${SHELL##*/}" in sh|bash|dash|ash|ksh|ksh93|mksh|yash) [ ! -x "$SHELL" ] || lc_shell=$SHELL;; esac'
)
BOOTSTRAP_BY_HAND = (
    'exec /bin/sh -c \'IFS= read -r lc_p && lc_p=$(printf %b "$lc_p") || exit; export SHLVL=1; lc_shell=/bin/sh; '
    f'{_CHOOSE_SHELL}; exec "$lc_shell" -c "$lc_p"\''
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
