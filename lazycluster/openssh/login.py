"""Logging in where ssh asks for a password or passphrase, which it does only of a terminal.

ssh gets a pseudo-terminal of its own. A prompt is answered only if it asks for what we have: the password of the
destination, or the passphrase of a key. `recognise()`, which is pure, decides that; the rest moves characters.

pexpect starts and ends the process and types. It does not read: at the end of the output it waits for the process with
no limit of time (4.9, ptyprocess 0.7), and its exceptions show what was typed.
"""

from __future__ import annotations

import codecs
import contextlib
import enum
import logging
import os
import re
import selectors
import signal
import sys
import termios
import threading
import time
import warnings
from collections.abc import Collection, Mapping, Sequence

import attrs
import pexpect

_log = logging.getLogger(__name__)
_POLL = 0.02  # seconds between two looks whether ssh has ended while something in the background keeps its terminal
# poll() has no limit of 1024 descriptors; on macOS it does not work on terminals.
_Selector = selectors.SelectSelector if sys.platform == "darwin" else selectors.PollSelector
_ECHO_OFF_WITHIN = 1.0  # ssh itself switches the echo off before it prints a prompt
_SPAWNING = threading.Lock()
# What a host sends before the log-in may be long; a prompt and the lines before it that belong to it are not.
_LONGEST_PROMPT = 500
_LOOK_BACK = 16_384
_KEPT = 1 << 18

_PASSWORD = re.compile(r"(?P<user>.+)@(?P<host>[^@\s]+)'s password: ?$")
_INTERACTIVE = re.compile(r"^\((?P<user>[^\r\n]+?)@(?P<host>[^@\s)]+)\) ", re.MULTILINE)
# A server words its keyboard-interactive prompts as it likes, PAM in the language of its administrator. Nothing else
# may stand in the line: at "New password:" the answer would become the new one.
_INTERACTIVE_PASSWORD = re.compile(
    r"^(?:\([^)]*@[^)]*\) )?(?:[\w.@-]+'s )?(?:password|passwort|kennwort|mot de passe|contraseña|senha|wachtwoord"
    r"|hasło|heslo|lösenord|adgangskode|salasana|пароль|密码|密碼|パスワード|암호)(?: for [^:]+)?\s*[:\uff1a] ?$",
    re.IGNORECASE,
)
_PASSPHRASE = re.compile(r"Enter passphrase for .+: ?$")
_HOST_KEY = re.compile(r"Are you sure you want to continue connecting|Please type 'yes', 'no'")


class LoginEnd(enum.Enum):
    """How an attempt to log in came to its end."""

    EXITED = "ssh ended; 0 means that it is logged in"
    REFUSED = "the host asked for the password again"
    OTHER_HOST = "another host than the destination asked for a password"
    UNKNOWN_HOST_KEY = "ssh asked whether to trust a host key"
    TIMED_OUT = "the time was up"


@attrs.frozen
class LoginOutcome:
    """What came of an attempt to log in.

    `status` is the exit status of ssh, negative for a signal; None where it was ended from here. `text` is what its
    terminal showed, or the end of it where that was long; it never holds the password. Its last line is the prompt that
    was left unanswered, if any.
    """

    end: LoginEnd
    status: int | None
    text: str = attrs.field(repr=lambda text: f"<{len(text)} characters>")

    @property
    def prompt(self) -> str:
        """Return the prompt at which ssh was ended; '' where it was at none."""
        return "" if self.end is LoginEnd.EXITED else _last_line(self.text)


class Question(enum.Enum):
    """What a prompt of ssh asks for."""

    PASSWORD = enum.auto()
    PASSPHRASE = enum.auto()
    PASSWORD_OF_ANOTHER_HOST = enum.auto()
    HOST_KEY = enum.auto()


def log_in(
    argv: Sequence[str],
    password: str,
    *,
    deadline: float,
    names: Collection[str],
    env: Mapping[str, str] | None = None,
) -> LoginOutcome:
    """Run an ssh that logs in and goes to the background, and answer its prompts.

    A password that the host does not take ends the attempt at once; a passphrase that does not fit lets ssh go on to
    the next key. Host key questions are never answered. The master that ssh leaves behind survives.

    Args:
        argv: The whole call: with -f, and without BatchMode.
        password: The password of the destination, or the passphrase of a key.
        deadline: The instant, in terms of `time.monotonic()`, at which to give up.
        names: What a prompt may call the destination: its name as given, its HostName, its HostKeyAlias.
        env: The environment of ssh; this process's unless given.

    Raises:
        OSError: ssh cannot be started.
        ValueError: The password is no single line of text; the error does not show it.
    """
    _check(password)
    child = _spawn(argv, env)
    try:
        return _Dialogue(child, password, names, deadline).hold()
    finally:
        _end(child)


def _check(password: str) -> None:
    """Refuse what a terminal would take for editing or for an interrupt."""
    try:
        password.encode()
    except UnicodeEncodeError:
        raise ValueError("the password is no valid text") from None
    if any(ord(char) < 32 or ord(char) == 127 for char in password):
        raise ValueError("the password holds control characters, which cannot be typed")


def _spawn(argv: Sequence[str], env: Mapping[str, str] | None) -> pexpect.spawn:
    _log.debug("start %s on a terminal", argv)
    # A prompt must come to the terminal, never to a window of SSH_ASKPASS (ssh(1), ENVIRONMENT).
    environment = {**(os.environ if env is None else env), "SSH_ASKPASS_REQUIRE": "never"}
    try:
        with _SPAWNING, warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads. Here the child runs only what leads to exec.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = pexpect.spawn(
                argv[0],
                list(argv[1:]),
                env=environment,
                encoding="utf-8",
                dimensions=(24, 1000),
                # The terminal hangs up when ssh, the leader of its session, goes to the background. Neither the
                # background process, which may not have left the session yet, nor the ssh to a jump host, which stays
                # in it, may die of that.
                ignore_sighup=True,
            )
    except pexpect.ExceptionPexpect:
        raise FileNotFoundError(f"{argv[0]} is not there or cannot be executed") from None
    child.delaybeforesend = None
    child.delayafterclose = child.ptyproc.delayafterclose = 0.0
    return child


def _end(child: pexpect.spawn) -> None:
    """End ssh with its helpers if it still runs, and close the terminal; a master in the background is out of reach."""
    try:
        if child.isalive():
            # ssh leads the process group; unreaped as it is, nobody else can have its number.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        child.close(force=False)
    except pexpect.ExceptionPexpect:
        # Somebody else waited for the process, so it is gone. The text of the exception shows what was typed.
        _log.debug("process %d was waited for by somebody else", child.pid)


def _read(terminal: int) -> bytes:
    """Return what the terminal shows next; nothing once it is closed at the other end, which Linux makes an error."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


class _Dialogue:
    """The conversation with one ssh."""

    def __init__(self, child: pexpect.spawn, password: str, names: Collection[str], deadline: float) -> None:
        self._child = child
        self._password = password
        self._names = frozenset(name.casefold() for name in names)
        self._deadline = deadline
        self._shown = ""
        self._answered_to = 0  # how much of it was shown when the last prompt was answered
        self._answered: set[str] = set()

    def hold(self) -> LoginOutcome:
        """Read and answer until ssh ends, or there is a reason to end it."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        open_still = True
        with _Selector() as selector:
            selector.register(self._child.child_fd, selectors.EVENT_READ)
            while True:
                alive = self._is_alive()
                if alive and self._left() <= 0:
                    return self._outcome(LoginEnd.TIMED_OUT)
                data = b""
                if open_still and selector.select(min(_POLL, self._left()) if alive else 0):
                    data = _read(self._child.child_fd)
                    open_still = bool(data)
                elif not alive:
                    return self._outcome(LoginEnd.EXITED)
                elif not open_still:
                    time.sleep(min(_POLL, self._left()))
                self._show(decoder.decode(data))
                reason = self._react() if data else None
                if reason is not None:
                    return self._outcome(reason)

    def _show(self, text: str) -> None:
        self._shown += text
        excess = len(self._shown) - _KEPT
        if excess > _KEPT:
            self._shown = self._shown[excess:]
            self._answered_to = max(0, self._answered_to - excess)

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _is_alive(self) -> bool:
        try:
            return self._child.isalive()
        except pexpect.ExceptionPexpect:
            _log.debug("process %d was waited for by somebody else", self._child.pid)
            return False

    def _react(self) -> LoginEnd | None:
        """Answer the prompt that is shown, if there is one; return why to end instead."""
        fresh = self._shown[max(self._answered_to, len(self._shown) - _LOOK_BACK) :]
        asked = recognise(fresh, self._names)
        prompt = _last_line(fresh)
        if asked is Question.HOST_KEY:
            return LoginEnd.UNKNOWN_HOST_KEY
        if asked is Question.PASSWORD_OF_ANOTHER_HOST:
            return LoginEnd.OTHER_HOST
        if asked is Question.PASSWORD:
            if prompt in self._answered:
                return LoginEnd.REFUSED
            self._type(prompt, self._password)
        elif asked is Question.PASSPHRASE:
            # An empty passphrase makes ssh leave this key and try what comes next.
            self._type(prompt, "" if prompt in self._answered else self._password)
        return None

    def _type(self, prompt: str, answer: str) -> None:
        """Type an answer, unless the terminal would show it: then it is no prompt for a secret."""
        with contextlib.suppress(OSError, termios.error):  # ssh has ended meanwhile; the next read tells
            if self._child.waitnoecho(min(_ECHO_OFF_WITHIN, self._left())):
                self._answered.add(prompt)
                self._answered_to = len(self._shown)
                self._child.sendline(answer)

    def _outcome(self, end: LoginEnd) -> LoginOutcome:
        status = None
        if end is LoginEnd.EXITED:
            died = self._child.signalstatus
            status = self._child.exitstatus if died is None else -died
        # A host may send back what was typed.
        text = self._shown.replace(self._password, "[password]") if len(self._password) >= 4 else self._shown
        return LoginOutcome(end, status, text)


def _last_line(text: str) -> str:
    """Return the line that is not ended."""
    return text.replace("\r", "\n").rpartition("\n")[2].strip()


def recognise(shown: str, names: Collection[str]) -> Question | None:
    """Return what ssh asks for, given what was shown since the last answer; None if it is not known to ask anything.

    Keyboard-interactive prompts are the server's words, after `(user@host) ` (since OpenSSH 8.5), and may have several
    lines: the host named there asks, whatever the lines say.

    Args:
        shown: The text.
        names: The names of the destination, case-folded.
    """
    line = _last_line(shown)[-_LONGEST_PROMPT:]
    if _HOST_KEY.search(line):
        return Question.HOST_KEY
    if _PASSPHRASE.search(line):
        return Question.PASSPHRASE
    direct = _PASSWORD.match(line)
    if direct is None and not _INTERACTIVE_PASSWORD.match(line):
        return None
    # ssh begins a prompt with a carriage return, which for `^` begins no line.
    named = _INTERACTIVE.finditer(shown.replace("\r", "\n"))
    asking = [match["host"] for match in (direct, *named) if match is not None]
    others = [host for host in asking if host.casefold() not in names]
    return Question.PASSWORD_OF_ANOTHER_HOST if others else Question.PASSWORD
