"""Logging in where ssh asks for a password or passphrase, which it does only of a terminal.

ssh gets a pseudo-terminal of its own. `log_in()` answers a prompt only if it asks for what we have: the password of the
destination, or the passphrase of a key. `converse()` answers none by itself: it puts them to a person. `recognise()`,
which is pure, tells what is a prompt and for what; the rest moves characters.

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
from collections.abc import Callable, Collection, Mapping, Sequence

import attrs
import pexpect

from lazycluster._waiting import sheltered

_log = logging.getLogger(__name__)
_POLL = 0.02  # seconds between two looks whether ssh has ended while something in the background keeps its terminal
# poll() has no limit of 1024 descriptors; on macOS it does not work on terminals.
_Selector = selectors.SelectSelector if sys.platform == "darwin" else selectors.PollSelector
_ECHO_OFF_WITHIN = 1.0  # ssh itself switches the echo off before it prints a prompt
_QUIET = 0.3  # seconds of silence after which a line that is not ended, while the echo is off, is taken for a prompt
_CLEANING = 1.0  # seconds that a script has to remove its temporary files once it is asked to end
_SPAWNING = threading.Lock()
# What a host sends before the log-in may be long; a prompt and the lines before it that belong to it are not.
_LONGEST_PROMPT = 500
_LOOK_BACK = 16_384
_LINES_SHOWN = 20
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


@attrs.frozen
class Conversation:
    """What came of a program that put its questions to a person.

    `status` is its exit status, negative for a signal; None where it was ended from here: at `unanswered`, the question
    that the person left open, or because the time was up. `text` is what its terminal showed, without secrets.
    """

    status: int | None
    text: str = attrs.field(repr=lambda text: f"<{len(text)} characters>")
    unanswered: str = ""


Ask = Callable[[str, bool], "str | None"]
"""Shows a person some lines, the last of which is a question, and returns the answer; None to give up.

The flag is whether the answer is a secret.
"""


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
    stopping: threading.Event | None = None,
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
        stopping: Once this is set, the attempt is given up as if the time were up.

    Raises:
        OSError: ssh cannot be started.
        ValueError: The password is no single line of text; the error does not show it.
    """
    _check(password)
    child = _spawn(argv, env)
    try:
        return _LogIn(child, password, names, deadline).hold(stopping)
    finally:
        _end(child)


def converse(argv: Sequence[str], ask: Ask, *, seconds: float, env: Mapping[str, str] | None = None) -> Conversation:
    """Run ssh, or a program that runs it, and put its questions to a person; none is answered otherwise.

    Args:
        argv: The whole call, without BatchMode.
        ask: Puts a question. The time that it takes does not count.
        seconds: The time after which to give up.
        env: The environment of the program; this process's unless given.

    Raises:
        OSError: The program cannot be started.
        ValueError: An answer is no single line of text; the error does not show it.
    """
    child = _spawn(argv, env)
    try:
        interview = _Interview(child, ask, time.monotonic() + seconds)
        outcome = interview.hold()
        return Conversation(outcome.status, outcome.text, interview.unanswered)
    finally:
        _end(child, patience=_CLEANING)


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

    def start() -> pexpect.spawn:
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
        child.delaybeforesend = None
        child.delayafterclose = child.ptyproc.delayafterclose = 0.0
        return child

    try:
        return sheltered(start, _end)
    except pexpect.ExceptionPexpect:
        raise FileNotFoundError(f"{argv[0]} is not there or cannot be executed") from None


def _end(child: pexpect.spawn, *, patience: float = 0.0) -> None:
    """End ssh with its helpers if it still runs, and close the terminal; a master in the background is out of reach.

    With `patience` it is asked first, and has so many seconds.
    """
    try:
        until = time.monotonic() + patience
        if patience and child.isalive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGTERM)
            while child.isalive() and time.monotonic() < until:
                time.sleep(_POLL)
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

    def __init__(self, child: pexpect.spawn, deadline: float) -> None:
        self._child = child
        self._deadline = deadline
        self._secrets: list[str] = []
        self._shown = ""
        self._answered_to = 0  # how much of it was shown when the last prompt was answered

    def hold(self, stopping: threading.Event | None = None) -> LoginOutcome:
        """Read and answer until ssh ends, or there is a reason to end it, such as that `stopping` is set."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        open_still = True
        with _Selector() as selector:
            selector.register(self._child.child_fd, selectors.EVENT_READ)
            while True:
                alive = self._is_alive()
                if alive and (self._left() <= 0 or (stopping is not None and stopping.is_set())):
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
                reason = self._react() if data else self._react_to_silence()
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

    @property
    def _fresh(self) -> str:
        """Return what was shown since the last answer, or the end of it."""
        return self._shown[max(self._answered_to, len(self._shown) - _LOOK_BACK) :]

    def _react(self) -> LoginEnd | None:
        """Answer the prompt that is shown, if there is one; return why to end instead."""
        raise NotImplementedError

    def _react_to_silence(self) -> LoginEnd | None:
        """Do the same where nothing new is shown."""
        return None

    def _takes_secret(self) -> bool:
        """Tell whether the terminal would not show what is typed; else there is no prompt for a secret."""
        try:
            return self._child.waitnoecho(min(_ECHO_OFF_WITHIN, self._left()))
        except (OSError, termios.error):  # the program has ended meanwhile; the next read tells
            return False

    def _type(self, answer: str) -> None:
        self._answered_to = len(self._shown)
        with contextlib.suppress(OSError):  # as above
            self._child.sendline(answer)

    def _outcome(self, end: LoginEnd) -> LoginOutcome:
        status = None
        if end is LoginEnd.EXITED:
            died = self._child.signalstatus
            status = self._child.exitstatus if died is None else -died
        text = self._shown
        for secret in self._secrets:  # a host may send back what was typed
            text = text.replace(secret, "[password]") if len(secret) >= 4 else text
        return LoginOutcome(end, status, text)


class _LogIn(_Dialogue):
    """A conversation in which we answer, with what we were given."""

    def __init__(self, child: pexpect.spawn, password: str, names: Collection[str], deadline: float) -> None:
        super().__init__(child, deadline)
        self._password = password
        self._names = frozenset(name.casefold() for name in names)
        self._secrets = [password]
        self._answered: set[str] = set()

    def _react(self) -> LoginEnd | None:
        fresh = self._fresh
        asked = recognise(fresh, self._names)
        prompt = _last_line(fresh)
        if asked is Question.HOST_KEY:
            return LoginEnd.UNKNOWN_HOST_KEY
        if asked is Question.PASSWORD_OF_ANOTHER_HOST:
            return LoginEnd.OTHER_HOST
        if asked is Question.PASSWORD:
            if prompt in self._answered:
                return LoginEnd.REFUSED
            self._answer(prompt, self._password)
        elif asked is Question.PASSPHRASE:
            # An empty passphrase makes ssh leave this key and try what comes next.
            self._answer(prompt, "" if prompt in self._answered else self._password)
        return None

    def _answer(self, prompt: str, answer: str) -> None:
        if self._takes_secret():
            self._answered.add(prompt)
            self._type(answer)


class _Interview(_Dialogue):
    """A conversation in which a person answers."""

    def __init__(self, child: pexpect.spawn, ask: Ask, deadline: float) -> None:
        super().__init__(child, deadline)
        self.unanswered = ""
        self._ask = ask
        self._heard_at = time.monotonic()
        self._echo = ""  # of the last answer, which the terminal shows, too

    def _react(self) -> LoginEnd | None:
        self._heard_at = time.monotonic()
        asked = recognise(self._fresh, ())
        return None if asked is None else self._put(secret=asked is not Question.HOST_KEY)

    def _react_to_silence(self) -> LoginEnd | None:
        """Put what a host asks in words of its own, such as for a code."""
        if not _last_line(self._fresh) or time.monotonic() - self._heard_at < _QUIET:
            return None
        self._heard_at = time.monotonic()
        return None if self._echoes() else self._put(secret=True)

    def _echoes(self) -> bool:
        try:
            return self._child.getecho()
        except (OSError, termios.error):  # the program has ended; the next read tells
            return True

    def _put(self, *, secret: bool) -> LoginEnd | None:
        if secret and not self._takes_secret():
            return None
        begun = time.monotonic()
        answer = self._ask(_presentable(self._fresh.lstrip().removeprefix(self._echo)), secret)
        self._deadline += time.monotonic() - begun
        if answer is None:
            self.unanswered = _last_line(self._fresh)
            return LoginEnd.REFUSED
        _check(answer)
        if secret:
            self._secrets.append(answer)
        self._echo = "" if secret else answer
        self._type(answer)
        return None


def _presentable(text: str) -> str:
    """Return the last lines of a text without what would steer a person's terminal."""
    lines = text.replace("\r", "").strip().split("\n")[-_LINES_SHOWN:]
    return "\n".join("".join(char for char in line if char.isprintable()) for line in lines)


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
