"""Steps as the lines of shell that do the same by hand. Pure: nothing is run, and nothing is looked up.

The lines suit bash, dash, ksh and zsh, pasted or as a script. Functions at the top hold ssh and scp with all their
options, so that each step shows only what it does.
"""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import attrs

from lazycluster._functions.python_finder import python_candidates
from lazycluster._ssh.argv import OPTIONS_SINCE_8_7, exit_argv, master_argv, remote_operand, scp_argv, session_argv
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.shell import MANUAL_SHELL_BOOTSTRAP, quote_path
from lazycluster._typing import assert_never
from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile, Step

EXPLAINED_MASTER_PERSIST_SECONDS = 600
"""Seconds after which an unused connection closes by itself."""
READ_OUTCOME_PROGRAM = (
    "import sys; from lazycluster._functions.outcome import read_outcome; "
    'print(read_outcome(open(sys.argv[1], "rb"), *sys.argv[2:]).unwrap())'
)
"""For `python3 -c`: prints the value of a function, or raises its exception. The arguments are the file with the
standard output of a `render_standalone_file()` program, the host, and the name of the function."""

_CONTROL_PATH = Path("$lc_dir/m")
_MAX_LINE_WIDTH = 110
# Every version of scp takes such a path as it is; older versions pass the path to a shell on the host.
_SCP_SAFE_PATH = re.compile(r"[A-Za-z0-9_./+,=@-]+")
_HOME_PREFIX = re.compile(r"~/*")
_DOT_NAMES = {"", ".", ".."}
_DIRECTORY_NAME_COMMAND = 'basename -- "$(pwd -P)"'
_SPECIAL_IN_DOUBLE_QUOTES = frozenset('"$`\\!')
_MAX_COMMENT_WIDTH = 70


@attrs.frozen
class ShellBlock:
    """Lines of shell that belong together, after a comment of one line or more."""

    comment: str
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the comment and the lines as text of a shell."""
        comment = (f"# {line}" for line in self.comment.splitlines())
        return "\n".join([*comment, *self.lines])


def quote(text: str) -> str:
    """Return text as a word of a POSIX shell in which every character is visible.

    The shell itself prints the others, such as a tab or a byte that is not UTF-8. Newlines stay, because a command
    substitution would lose them.
    """
    runs = itertools.groupby(text, _is_visible)
    return "".join((_quote_visible if shown else _quote_as_octal)("".join(run)) for shown, run in runs) or "''"


def _is_visible(character: str) -> bool:
    return character.isprintable() or character == "\n"


def _quote_visible(text: str) -> str:
    """Return a word as `shlex.quote` does, but in double quotes if these read better and change nothing."""
    if "'" not in text:
        return shlex.quote(text)
    if not _SPECIAL_IN_DOUBLE_QUOTES & set(text):
        return f'"{text}"'
    return "'" + text.replace("'", "'\\''") + "'"


def _quote_as_octal(text: str) -> str:
    digits = "".join(f"\\{byte:03o}" for byte in text.encode("utf-8", "surrogateescape"))
    return f"\"$(printf '{digits}')\""


def setup_blocks(destination: Destination, working_dir: str | None) -> tuple[ShellBlock, ...]:
    """Return the first blocks: the functions, the connection, and the working directory, made if it is missing."""
    master = master_argv(
        destination, _CONTROL_PATH, None, batch=False, persist_seconds=EXPLAINED_MASTER_PERSIST_SECONDS
    )
    session = session_argv(destination, _CONTROL_PATH, (MANUAL_SHELL_BOOTSTRAP,), unsupported_options=OPTIONS_SINCE_8_7)
    end = exit_argv(destination, _CONTROL_PATH)
    *scp, _, _ = scp_argv(destination, _CONTROL_PATH, "", "", unsupported_options=OPTIONS_SINCE_8_7)
    blocks = [
        ShellBlock("", ('[ -z "${ZSH_VERSION-}" ] || setopt interactive_comments',)),
        ShellBlock(
            "Nothing of this has been run. As a script, with sh, it stops at the first step that fails, as a task\n"
            "does. Pasted into a terminal it goes on. By hand, files are not written under a temporary name first and\n"
            "then renamed. Nothing is ended on the host when you stop ssh, and start-up files may add to the output.",
        ),
        ShellBlock(
            "A session: without the connection it fails, ProxyCommand=false, and does not connect by itself. The text\n"
            "for the host, the argument or else standard input, goes there in octal digits, which any login shell can\n"
            "pass to a POSIX one. The rest of standard input follows.",
            (
                "lc_ssh() {",
                '    [ $# -gt 0 ] || set -- "$(cat)"',
                "    {",
                "        printf %s \"$1\" | od -An -v -to1 | tr -c 0-7 '\\n' | sed -n 's/..*/\\\\0&/p' | tr -d '\\n'",
                "        echo",
                "        cat",
                "    } | " + "\n".join(_wrap_argv(session, indent="        ")),
                "}",
            ),
        ),
        ShellBlock(
            "A copy of one file, with its mode and time.", _define_function("lc_scp", _wrap_argv(scp, tail='"$@"'))
        ),
        ShellBlock(
            "The end of the connection, which comes in a script whatever happens.",
            (
                *_define_function("lc_close", (*_wrap_argv(end, tail="2>/dev/null || :"), 'rm -rf "$lc_dir"')),
                "case $- in *i*) ;; *)",
                "    set -e",
                '    [ -z "${ZSH_VERSION-}" ] || setopt posix_traps',
                "    trap lc_close EXIT",
                "    trap 'exit 130' HUP INT TERM",
                "esac",
            ),
        ),
        ShellBlock(
            "One connection for all steps. Its socket is in a directory of your own, and it closes by itself when\n"
            f"it was not used for {EXPLAINED_MASTER_PERSIST_SECONDS // 60} minutes. The options overrule what your "
            "configuration may say for\nterminals, such as forwardings and commands, "
            "and have a broken connection noticed after 15 seconds.",
            ("lc_dir=$(mktemp -d /tmp/lazycluster-XXXXXX)", *_wrap_argv(master)),
        ),
    ]
    if working_dir is not None:
        make = f"mkdir -p -- {quote_path(working_dir)}"
        blocks.append(ShellBlock("The working directory, made if it is missing.", _session_lines(make)))
    return tuple(blocks)


def teardown_block() -> ShellBlock:
    """Return the last block, which closes the connection."""
    return ShellBlock("The connection is closed: ssh -O exit", ("lc_close",))


def explain_steps(
    steps: Sequence[Step],
    destination: Destination,
    working_dir: str | None = None,
    *,
    is_directory: Callable[[Path], bool],
    payloads: Mapping[int, Path] | None = None,
    python: str | None = None,
) -> tuple[ShellBlock, ...]:
    """Return a block for each step: its description, and its lines, which need those of `setup_blocks()`.

    Args:
        steps: The steps of one task.
        destination: The host.
        working_dir: The directory to run in, as for `Runtime(host, working_dir)`; None for the home directory.
        is_directory: Returns whether a local path that is sent is a directory.
        payloads: The file with the `render_standalone_file()` text of a `RunFunction`, by the index of its step. A step
            without one fails.
        python: The Python for functions on the host, as for `Runtime(host, python=)`.
    """
    explainer = _StepExplainer(destination, working_dir, is_directory, payloads or {}, python)
    return tuple(explainer.explain_step(index, step) for index, step in enumerate(steps))


@attrs.frozen
class _StepExplainer:
    """One task on one host."""

    destination: Destination
    cwd: str | None
    is_directory: Callable[[Path], bool]
    payloads: Mapping[int, Path]
    python: str | None

    def explain_step(self, index: int, step: Step) -> ShellBlock:
        match step:
            case RunCommand():
                limit = "" if step.timeout is None else f"\nThe library ends it after {step.timeout:g} seconds."
                comment = f"run_command: {_comment_text(step.title)}{limit}"
                lines = _session_lines("\n".join([*self._preamble(), step.title]))
            case SendFile():
                target = "the working directory" if step.remote is None else _comment_text(step.remote)
                comment = f"send_file: {_comment_text(str(step.local))} to {target}"
                send = self._send_tree if self.is_directory(step.local) else self._send_file
                lines = send(step.local, step.remote, index)
            case GetFile():
                local = step.local_path_for(self.destination.host)
                comment = f"get_file: {_comment_text(step.remote)} to {_comment_text(str(local))}"
                make = (f"mkdir -p {quote(str(local.parent))}",) if step.has_host_placeholder else ()
                lines = (*make, *self._get(step.remote, local, index))
            case RunFunction():
                comment = f"run_function: {_comment_text(step.name)}"
                payload = self.payloads.get(index)
                if payload is None:
                    comment += "\nIt travels as a pickle, which --write-payloads DIR writes to a file for these lines."
                left_out = f"echo 'step {index + 1} is left out, see --write-payloads' >&2; false"
                lines = (left_out,) if payload is None else self._function_lines(step, payload)
            case _:
                assert_never(step)
        return ShellBlock(f"{index + 1}. {comment}", lines)

    def _preamble(self) -> list[str]:
        """Return the lines before a command, which change to the working directory."""
        return [] if self.cwd is None else [f'cd {quote_path(self.cwd)} && export WORKING_DIR="$PWD" || exit']

    def _in_working_dir(self, *commands: str) -> str:
        """Return the text that runs commands in the working directory, up to the first that fails."""
        return " && ".join([*([] if self.cwd is None else [f"cd {quote_path(self.cwd)}"]), *commands])

    def _scp_safe_path(self, path: str) -> str | None:
        """Return a path on the host as every version of scp takes it, None if some versions misread it."""
        if self.cwd is None and not path:
            return "."
        whole = path if path.startswith(("/", "~")) or self.cwd is None else f"{self.cwd.rstrip('/')}/{path}"
        # scp begins in the home directory, and not every version knows ~.
        relative = _HOME_PREFIX.sub("", whole, count=1) or "." if whole == "~" or whole.startswith("~/") else whole
        return relative if _SCP_SAFE_PATH.fullmatch(relative) else None

    def _operand(self, path: str) -> str:
        return quote(remote_operand(self.destination, path))

    # Files -------------------------------------------------------------------------------------------------------

    def _send_file(self, local: Path, remote: str | None, index: int) -> tuple[str, ...]:
        source = quote(str(local))
        plain = self._scp_safe_path(remote or "")
        if plain is not None and local.name.isprintable():
            return (f"lc_scp {source} {self._operand(plain)}",)
        # Under a plain name first, which no shell or scp can misread.
        temporary = f".lazycluster-step-{index + 1}"
        place = self._in_working_dir(*_set_remote_path(remote, local.name), f'mv -f -- ~/{temporary} "$t"')
        return (
            f"lc_scp {source} {self._operand(temporary)}",
            *_session_lines(f"{place} || {{ rm -f ~/{temporary}; exit 1; }}"),
        )

    def _send_tree(self, local: Path, remote: str | None, _index: int) -> tuple[str, ...]:
        make = '{ [ -d "$t" ] || mkdir -- "$t"; }'
        receive = self._in_working_dir(*_set_remote_path(remote, local.name), make, 'cd -- "$t"', "tar -xpof -")
        # Not -C: GNU tar takes backslashes in its argument for escapes.
        return (f"(cd {quote(str(local))} && tar -cf - .) | lc_ssh {quote(receive)}",)

    def _get(self, remote: str, local: Path, index: int) -> tuple[str, ...]:
        path = quote_path(remote)
        name = PurePosixPath(remote).name
        if name in _DOT_NAMES or remote.rstrip("/") == "~":  # a directory, and only the host knows its name
            own_name = self._host_line(f"cd {path}", _DIRECTORY_NAME_COMMAND)
            return self._get_tree(path, local, f'"$({own_name})"')
        tree = (f"    {line}" for line in self._get_tree(path, local, quote(name)))
        file = (f"    {line}" for line in self._get_file(remote, local, index))
        return (f"if {self._host_line(f'[ -d {path} ]')}; then", *tree, "else", *file, "fi")

    def _host_line(self, *commands: str) -> str:
        """Return the line that runs commands on the host; one line, so that it can be indented."""
        return f"lc_ssh {quote(self._in_working_dir(*commands))} </dev/null"

    def _get_tree(self, path: str, local: Path, name: str) -> tuple[str, ...]:
        return (
            *_set_local_path(local, name),
            '[ -d "$lc_t" ] || mkdir "$lc_t"',
            f'{self._host_line(f"cd {path}", "tar -cf - .")} | (cd "$lc_t" && tar -xpof -)',
        )

    def _get_file(self, remote: str, local: Path, index: int) -> tuple[str, ...]:
        plain = self._scp_safe_path(remote)
        if plain is not None:
            return (f"lc_scp {self._operand(plain)} {quote(str(local))}",)
        # Through a link with a plain name, which no shell or scp can misread.
        link = f".lazycluster-step-{index + 1}"
        path = quote_path(remote)
        here = '"$PWD"/' if not remote.startswith(("/", "~")) else ""
        return (
            self._host_line(f"[ -f {path} ]", f"ln -sf -- {here}{path} ~/{link}"),
            *_set_local_path(local, quote(PurePosixPath(remote).name)),
            f'lc_scp {self._operand(link)} "$lc_t"',
            f"lc_ssh {quote(f'rm -f -- ~/{link}')} </dev/null",
        )

    # Functions ---------------------------------------------------------------------------------------------------

    def _function_lines(self, step: RunFunction, payload: Path) -> tuple[str, ...]:
        names = " ".join(map(quote_path, python_candidates(self.python)))
        # Each is tried first: pyenv has a shim for every version, which fails if that version is not activated.
        found = f'for p in {names}; do "$p" -c "" </dev/null 2>/dev/null && exec "$p" -; done'
        start = "\n".join([*self._preamble(), f"{found}; echo no Python: {names} >&2; exit 127"])
        answer = quote(str(payload.with_suffix(".answer")))
        reader = f"{quote(sys.executable)} -c {quote(READ_OUTCOME_PROGRAM)}"
        return (
            f"lc_ssh {quote(start)} <{quote(str(payload))} >{answer}",
            f"{reader} {answer} {quote(self.destination.host)} {quote(step.name)}",
        )


def _set_remote_path(remote: str | None, name: str) -> tuple[str, ...]:
    """Return the lines that set $t on the host to the target; a directory takes a file or tree under its own name."""
    if remote is None:
        return (f"t=./{shlex.quote(name)}",)
    return (f"t={quote_path(remote)}", f'{{ [ ! -d "$t" ] || t=$t/{shlex.quote(name)}; }}')


def _set_local_path(local: Path, name: str) -> tuple[str, ...]:
    """Return the line that sets $lc_t to the local target of a file or tree; the name is quoted already."""
    return (f'lc_t={quote(str(local))}; [ ! -d "$lc_t" ] || lc_t=$lc_t/{name}',)


def _session_lines(text: str) -> tuple[str, ...]:
    """Return the lines that run text on the host; text that is hard to read in quotes is a here-document."""
    if all(map(_is_visible, text)) and ("'" in text or "\n" in text):
        lines = text.split("\n")
        end = next(end for number in itertools.count() if (end := f"EOF{number or ''}") not in lines)
        return (f"lc_ssh <<'{end}'", *lines, end)
    return (f"lc_ssh {quote(text)} </dev/null",)


def _define_function(name: str, body: Sequence[str]) -> tuple[str, ...]:
    return (f"{name}() {{", *(f"    {line}" for line in body), "}")


def _wrap_argv(argv: Sequence[str], *, tail: str = "", indent: str = "") -> tuple[str, ...]:
    """Return argv as lines of shell, each option on one line with its value; `tail` is shell text already."""
    words = [f'"{word}"' if word == f"ControlPath={_CONTROL_PATH}" else quote(word) for word in argv]
    pieces: list[str] = []
    for word in words:
        if pieces and pieces[-1] in {"-o", "-i", "-F", "-O"}:
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
    lines = [""]
    for piece in [*pieces, *([tail] if tail else [])]:
        if lines[-1] and len(lines[-1]) + len(piece) > _MAX_LINE_WIDTH:
            lines.append(f"{indent}    {piece}")
        else:
            lines[-1] += f" {piece}" if lines[-1] else piece
    return (*(f"{line} \\" for line in lines[:-1]), lines[-1])


def _comment_text(text: str) -> str:
    """Return text for a comment: a quoted word, which is harmless in a shell without comments, too."""
    line = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return _quote_visible(line if len(line) <= _MAX_COMMENT_WIDTH else f"{line[: _MAX_COMMENT_WIDTH - 1]}…")
