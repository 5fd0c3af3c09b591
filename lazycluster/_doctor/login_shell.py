"""Which shell gets our commands, what do its start-up files print, and how long do they take?"""

from __future__ import annotations

import contextlib
import itertools
import time
from pathlib import PurePosixPath

import attrs

from lazycluster._doctor.findings import Finding, failed, ok, quoted, warning
from lazycluster._remote.spawn import BOURNE
from lazycluster._ssh.client import Sessions
from lazycluster._ssh.host_scripts import text
from lazycluster._ssh.session import Session
from lazycluster.exceptions import CommandTimeoutError, LazyclusterError, LoginShellError
from lazycluster.results import Collector, Stream

LOGIN_SHELL = "login shell"
SLOW = 0.2
"""Seconds that start-up files may take before they are worth a warning."""
_PATIENCE = 15.0
_START_UP_FILES = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshenv",
    "fish": "~/.config/fish/config.fish",
    "tcsh": "~/.tcshrc or ~/.cshrc",
    "csh": "~/.cshrc",
}
_GUARDS = {
    "bash": "case $- in *i*) ;; *) return ;; esac",
    "zsh": "[[ -o interactive ]] || return",
    "fish": "status is-interactive; or exit",
    "tcsh": "if (! $?prompt) exit",
    "csh": "if (! $?prompt) exit",
}


@attrs.frozen
class Shell:
    """The login shell: its path, and what came before the first command.

    `with_files` and `without_files` are the seconds of a shell that does nothing, with its start-up files and without.
    `server` is the address and port at which the host has seen us, as it calls itself; None where it does not say.
    """

    path: str
    stdout: str = ""
    stderr: str = ""
    with_files: tuple[float, ...] = ()
    without_files: tuple[float, ...] = ()
    server: tuple[str, int] | None = None

    @property
    def name(self) -> str:
        """Return its name."""
        return PurePosixPath(self.path).name or "sh"

    @property
    def start_up(self) -> float | None:
        """Return the seconds that start-up files take, at their fastest; None where it was not measured."""
        if not self.with_files or not self.without_files:
            return None
        return max(0.0, min(self.with_files) - min(self.without_files))


def look_at_shell(sessions: Sessions) -> Shell:
    """Start a session, and shells in it.

    Raises:
        LoginShellError: It runs no commands.
        ConnectionLostError: The link broke.
    """
    script = sessions.script(text("doctor_login_shell"), title="look at the login shell", login_shell=False)
    facts: list[str] = []
    noise: list[str] = ["", ""]
    instants: list[float] = []

    def work(session: Session) -> None:
        facts.extend((session.read_until(b"\0") or b"").decode(errors="replace") for _ in range(2))
        noise[:] = [session.noise(stream).decode(errors="replace") for stream in (Stream.STDOUT, Stream.STDERR)]
        while session.read(1):
            instants.append(time.monotonic())
        session.finish()

    try:
        sessions.perform(script, work, collector=Collector(), timeout=_PATIENCE)
    except CommandTimeoutError:
        if len(instants) < 2:  # it is not in the shells that we start
            raise
    lengths = [end - begin for begin, end in itertools.pairwise(instants)]
    # Of each round's three dots the last and the next round's first lie next to each other.
    path, connection = [*facts, "", ""][:2]
    return Shell(path, noise[0], noise[1], tuple(lengths[0::3]), tuple(lengths[1::3]), parse_server(connection))


def parse_server(connection: str) -> tuple[str, int] | None:
    """Read the server's address and port from $SSH_CONNECTION (ssh(1), ENVIRONMENT)."""
    words = connection.split()
    if len(words) != 4 or not words[3].isdecimal() or words[2] == "UNKNOWN":
        return None
    with contextlib.suppress(ValueError):
        return words[2].partition("%")[0], int(words[3])
    return None


def judge_login_shell(shell: Shell) -> Finding:
    """Judge a shell that runs our commands."""
    file = _START_UP_FILES.get(shell.name, "its start-up files")
    guard = _GUARDS.get(shell.name)
    return_early = f"let {file} begin with `{guard}`" if guard else f"see that {file} do so in a terminal only"
    facts = [shell.path or "not known"]
    if shell.name not in BOURNE:
        facts.append("no Bourne shell, so commands run in /bin/sh")
    if shell.start_up is not None:
        facts.append(f"start-up files take {shell.start_up * 1000:.0f} ms")
    if shell.stderr.strip():
        facts.append(f"standard error begins with {quoted(shell.stderr)}, which is harmless")
    advice = []
    if shell.stdout.strip():
        facts.append(f"start-up files print {quoted(shell.stdout)}")
        advice.append(f"What they print stands in the way of scp and sftp: {return_early}.")
    if shell.start_up is not None and shell.start_up >= SLOW:
        mend = (
            "the same mends that"
            if advice
            else f"{return_early}, so that pyenv, conda and the like wait for a terminal"
        )
        advice.append(f"Each session waits for them, with a supervisor only the first one: {mend}.")
    found = "; ".join(facts)
    return warning(LOGIN_SHELL, found, " ".join(advice)) if advice else ok(LOGIN_SHELL, found)


def judge_no_login_shell(error: LazyclusterError) -> Finding:
    """Judge a shell that ran no command."""
    if isinstance(error, LoginShellError):
        said = f": {quoted(error.output)}" if error.output.strip() else " and printed nothing"
        return failed(
            LOGIN_SHELL,
            f"it ended with exit status {error.exit_status} before our command began{said}",
            "The account allows no commands: its shell (`getent passwd`; nologin? git-shell?), a ForceCommand, or a "
            "start-up file that calls exit.",
        )
    host = getattr(error, "host", "")
    return judge_hanging(host, str(error).removeprefix(f"{host}: "))


def judge_hanging(host: str, found: str) -> Finding:
    """Judge a shell that does not come to our command."""
    advice = f"Something that its start-up files wait for does not come. Try `ssh {host} true`."
    return failed(LOGIN_SHELL, found, advice)
