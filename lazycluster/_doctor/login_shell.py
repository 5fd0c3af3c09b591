"""Which shell gets our commands, what do its start-up files print, and how long do they take?"""

from __future__ import annotations

import contextlib
import itertools
import time
from pathlib import PurePosixPath

import attrs

from lazycluster._doctor.findings import Finding, failed, ok, quote_output, warning
from lazycluster._model.command import Command
from lazycluster._remote.spawn import POSIX_SHELLS
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.host_scripts import text
from lazycluster._ssh.session import Session
from lazycluster.exceptions import CommandTimeoutError, LazyclusterError, LoginShellError
from lazycluster.results import Stream

LOGIN_SHELL_CHECK = "login shell"
SLOW_START_UP_SECONDS = 0.2
"""Seconds that start-up files may take before they are worth a warning."""
_SHELL_PROBE_TIMEOUT_SECONDS = 15.0
_START_UP_FILES = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshenv",
    "fish": "~/.config/fish/config.fish",
    "tcsh": "~/.tcshrc or ~/.cshrc",
    "csh": "~/.cshrc",
}
_NON_INTERACTIVE_GUARDS = {
    "bash": "case $- in *i*) ;; *) return ;; esac",
    "zsh": "[[ -o interactive ]] || return",
    "fish": "status is-interactive; or exit",
    "tcsh": "if (! $?prompt) exit",
    "csh": "if (! $?prompt) exit",
}


@attrs.frozen
class LoginShellProbe:
    """The login shell: its path, and its output before the first command.

    `seconds_with_files` and `seconds_without_files` are the seconds of a shell that does nothing, with its start-up
    files and without. `server_address` is the host's own address and port of our connection; None if it is unknown.
    """

    path: str
    stdout: str = ""
    stderr: str = ""
    seconds_with_files: tuple[float, ...] = ()
    seconds_without_files: tuple[float, ...] = ()
    server_address: tuple[str, int] | None = None

    @property
    def name(self) -> str:
        """The name of the shell."""
        return PurePosixPath(self.path).name or "sh"

    @property
    def start_up_seconds(self) -> float | None:
        """The seconds that start-up files take, at their fastest; None if it was not measured."""
        if not self.seconds_with_files or not self.seconds_without_files:
            return None
        return max(0.0, min(self.seconds_with_files) - min(self.seconds_without_files))


def probe_login_shell(ssh_client: SshClient) -> LoginShellProbe:
    """Start a session, and shells in it.

    Raises:
        LoginShellError: If it runs no commands.
        ConnectionLostError: If the connection broke.
    """
    command = Command(
        text("doctor_login_shell"),
        timeout=_SHELL_PROBE_TIMEOUT_SECONDS,
        title="look at the login shell",
        login_shell=False,
    )
    facts: list[str] = []
    preambles: list[str] = ["", ""]
    instants: list[float] = []

    def read_output(session: Session) -> None:
        facts.extend((session.read_until(b"\0") or b"").decode(errors="replace") for _ in range(2))
        preambles[:] = [session.preamble(stream).decode(errors="replace") for stream in (Stream.STDOUT, Stream.STDERR)]
        while session.read(1):
            instants.append(time.monotonic())
        session.wait()

    try:
        ssh_client.run_script(ssh_client.script(command), read_output)
    except CommandTimeoutError:
        if len(instants) < 2:  # it has not measured a single shell
            raise
    lengths = [end - begin for begin, end in itertools.pairwise(instants)]
    # Each round prints three dots, so every third interval lies between two rounds.
    path, connection = [*facts, "", ""][:2]
    return LoginShellProbe(
        path, preambles[0], preambles[1], tuple(lengths[0::3]), tuple(lengths[1::3]), parse_server_address(connection)
    )


def parse_server_address(connection: str) -> tuple[str, int] | None:
    """Read the server's address and port from $SSH_CONNECTION (ssh(1), ENVIRONMENT)."""
    words = connection.split()
    if len(words) != 4 or not words[3].isdecimal() or words[2] == "UNKNOWN":
        return None
    with contextlib.suppress(ValueError):
        return words[2].partition("%")[0], int(words[3])
    return None


def judge_login_shell(probe: LoginShellProbe) -> Finding:
    """Judge a shell that runs our commands."""
    file = _START_UP_FILES.get(probe.name, "its start-up files")
    guard = _NON_INTERACTIVE_GUARDS.get(probe.name)
    return_early = f"let {file} begin with `{guard}`" if guard else f"see that {file} do so in a terminal only"
    facts = [probe.path or "not known"]
    if probe.name not in POSIX_SHELLS:
        facts.append("no Bourne shell, so commands run in /bin/sh")
    if probe.start_up_seconds is not None:
        facts.append(f"start-up files take {probe.start_up_seconds * 1000:.0f} ms")
    if probe.stderr.strip():
        facts.append(f"standard error begins with {quote_output(probe.stderr)}, which is harmless")
    advice = []
    if probe.stdout.strip():
        facts.append(f"start-up files print {quote_output(probe.stdout)}")
        advice.append(f"Their output stands in the way of scp and sftp: {return_early}.")
    if probe.start_up_seconds is not None and probe.start_up_seconds >= SLOW_START_UP_SECONDS:
        remedy = (
            "the same mends that"
            if advice
            else f"{return_early}, so that pyenv, conda and the like wait for a terminal"
        )
        advice.append(f"Each session waits for them, with a supervisor only the first one: {remedy}.")
    found = "; ".join(facts)
    return warning(LOGIN_SHELL_CHECK, found, " ".join(advice)) if advice else ok(LOGIN_SHELL_CHECK, found)


def judge_failed_login_shell(error: LazyclusterError) -> Finding:
    """Judge a shell that ran no command."""
    if isinstance(error, LoginShellError):
        output = f": {quote_output(error.output)}" if error.output.strip() else " and printed nothing"
        return failed(
            LOGIN_SHELL_CHECK,
            f"it ended with exit status {error.exit_code} before our command began{output}",
            "The account allows no commands: its shell (`getent passwd`; nologin? git-shell?), a ForceCommand, or a "
            "start-up file that calls exit.",
        )
    host = getattr(error, "host", "")
    return judge_hanging_login_shell(host, str(error).removeprefix(f"{host}: "))


def judge_hanging_login_shell(host: str, found: str) -> Finding:
    """Judge a shell that never begins our command."""
    advice = f"Its start-up files wait for something that does not come. Try `ssh {host} true`."
    return failed(LOGIN_SHELL_CHECK, found, advice)
