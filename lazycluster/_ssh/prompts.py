"""Log-ins for which ssh asks for a password or passphrase, which it does only on a terminal.

ssh gets a pseudo-terminal of its own. `log_in()` answers a prompt only if it asks for the password of the destination,
or for the passphrase of a key. `run_interactive()` answers no prompt by itself: it puts them to a person.
This module moves characters; `prompt_text` recognises a prompt in them.

pexpect starts and ends the process and types. It is not used to read: at the end of the output it waits for the process
with no limit of time (4.9, ptyprocess 0.7). Its exceptions show the typed text.
"""

from __future__ import annotations

import codecs
import contextlib
import enum
import logging
import os
import selectors
import signal
import sys
import termios
import threading
import time
import warnings
from collections.abc import Callable, Collection, Sequence

import attrs
import pexpect

from lazycluster._ssh.prompt_text import PromptKind, check_typeable, classify_prompt, last_line, printable_lines
from lazycluster._waiting import uninterruptible

_log = logging.getLogger(__name__)
_TERMINAL_POLL_SECONDS = 0.02
"""Seconds between two looks whether ssh has ended while a process in the background keeps its terminal."""
# poll() has no limit of 1024 descriptors; on macOS it does not work on terminals.
_Selector = selectors.SelectSelector if sys.platform == "darwin" else selectors.PollSelector
_ECHO_OFF_TIMEOUT_SECONDS = 1.0  # ssh itself switches the echo off before it prints a prompt
_PROMPT_SILENCE_SECONDS = 0.3
"""Seconds of silence after which a line without an end, while the echo is off, is taken for a prompt."""
_TERMINATE_GRACE_SECONDS = 1.0  # seconds that a script has to remove its temporary files once it is asked to end
_SPAWN_LOCK = threading.Lock()
# A host may send a long text before the log-in; a prompt and the lines before it that belong to it are short.
_MAX_PROMPT_CONTEXT_CHARACTERS = 16_384
_MAX_TERMINAL_OUTPUT_CHARACTERS = 1 << 18


class LoginEndReason(enum.Enum):
    """Why an attempt to log in ended."""

    EXITED = "ssh ended; 0 means that it is logged in"
    REFUSED = "the host asked for the password again"
    OTHER_HOST = "another host than the destination asked for a password"
    UNKNOWN_HOST_KEY = "ssh asked whether to trust a host key"
    TIMED_OUT = "the time was up"


@attrs.frozen
class LoginOutcome:
    """The outcome of an attempt to log in.

    `exit_code` is the exit status of ssh, negative for a signal; None if it was ended from here. `text` is the output
    on its terminal, or the end of it if that was long; it never holds the password. Its last line is the prompt that
    was left unanswered, if any.
    """

    end_reason: LoginEndReason
    exit_code: int | None
    text: str = attrs.field(repr=lambda text: f"<{len(text)} characters>")

    @property
    def prompt(self) -> str:
        """The prompt at which ssh was ended; '' if it was not at a prompt."""
        return "" if self.end_reason is LoginEndReason.EXITED else last_line(self.text)


@attrs.frozen
class InteractiveOutcome:
    """The outcome of a program that put its questions to a person.

    `exit_code` is its exit status, negative for a signal. None means that the program was ended from here, because the
    time was up or the person left a question open, which is then the `unanswered_prompt`. `text` is the output on its
    terminal, without secrets.
    """

    exit_code: int | None
    text: str = attrs.field(repr=lambda text: f"<{len(text)} characters>")
    unanswered_prompt: str = ""


AskUser = Callable[[str, bool], "str | None"]
"""Shows a person some lines, the last of which is a question, and returns the answer; None to give up.

The flag is whether the answer is a secret.
"""


def log_in(
    argv: Sequence[str],
    password: str,
    *,
    deadline: float,
    host_names: Collection[str],
    cancel_event: threading.Event | None = None,
) -> LoginOutcome:
    """Run an ssh that logs in and goes to the background, and answer its prompts.

    A password that the host does not take ends the attempt at once; a passphrase that does not fit lets ssh go on to
    the next key. Host key questions are never answered. The master that ssh leaves in the background survives.

    Args:
        argv: The whole call: with -f, and without BatchMode.
        password: The password of the destination, or the passphrase of a key.
        deadline: The instant, in terms of `time.monotonic()`, at which to give up.
        host_names: The names that a prompt may give the destination: its name as given, its HostName, its HostKeyAlias.
        cancel_event: Once this is set, the attempt is given up as if the time were up.

    Raises:
        OSError: If ssh cannot be started.
        ValueError: If the password is not a single line of text; the error does not show it.
    """
    check_typeable(password)
    child = _spawn(argv)
    try:
        return _LoginPromptLoop(child, password, host_names, deadline).run(cancel_event)
    finally:
        _terminate(child)


def run_interactive(
    argv: Sequence[str], ask: AskUser, *, timeout: float, clock: Callable[[], float] = time.monotonic
) -> InteractiveOutcome:
    """Run ssh, or a program that runs it, and put its questions to a person; no question is answered otherwise.

    Args:
        argv: The whole call, without BatchMode.
        ask: Puts a question. The time that it takes does not count.
        timeout: The time after which to give up.
        clock: Measures that time, in seconds.

    Raises:
        OSError: If the program cannot be started.
        ValueError: If an answer is not a single line of text; the error does not show it.
    """
    child = _spawn(argv)
    try:
        prompt_loop = _InteractivePromptLoop(child, ask, clock() + timeout, clock)
        outcome = prompt_loop.run()
        return InteractiveOutcome(outcome.exit_code, outcome.text, prompt_loop.unanswered_prompt)
    finally:
        _terminate(child, grace=_TERMINATE_GRACE_SECONDS)


def _spawn(argv: Sequence[str]) -> pexpect.spawn:
    _log.debug("start %s on a terminal", argv)
    # A prompt must come to the terminal, never to a window of SSH_ASKPASS (ssh(1), ENVIRONMENT).
    environment = {**os.environ, "SSH_ASKPASS_REQUIRE": "never"}

    def start() -> pexpect.spawn:
        with _SPAWN_LOCK, warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads. Here the child runs only the code up to exec.
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
        return uninterruptible(start, _terminate)
    except pexpect.ExceptionPexpect:
        raise FileNotFoundError(f"{argv[0]} is not there or cannot be executed") from None


def _terminate(child: pexpect.spawn, *, grace: float = 0.0) -> None:
    """End ssh with its helpers if it still runs, and close the terminal; a master in the background is out of reach.

    With `grace`, it first gets SIGTERM and that many seconds to end.
    """
    try:
        deadline = time.monotonic() + grace
        if grace and child.isalive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGTERM)
            while child.isalive() and time.monotonic() < deadline:
                time.sleep(_TERMINAL_POLL_SECONDS)
        if child.isalive():
            # ssh leads the process group; unreaped as it is, no other process can have its number.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        child.close(force=False)
    except pexpect.ExceptionPexpect:
        # Other code waited for the process, so it is gone. The message of the exception shows the typed text.
        _log.debug("process %d was waited for by other code", child.pid)


def _read_terminal(terminal: int) -> bytes:
    """Return the next output on the terminal; nothing once its other end is closed, which is an error on Linux."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


class _PromptLoop:
    """The conversation with one ssh."""

    def __init__(self, child: pexpect.spawn, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._child = child
        self._deadline = deadline
        self._clock = clock
        self._secrets: list[str] = []
        self._output = ""
        self._answered_length = 0  # the length of the output when the last prompt was answered

    def run(self, cancel_event: threading.Event | None = None) -> LoginOutcome:
        """Read and answer until ssh ends, or there is a reason to end it, such as a set `cancel_event`."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        is_open = True
        with _Selector() as selector:
            selector.register(self._child.child_fd, selectors.EVENT_READ)
            while True:
                alive = self._is_alive()
                if alive and (self._remaining_seconds() <= 0 or (cancel_event is not None and cancel_event.is_set())):
                    return self._outcome(LoginEndReason.TIMED_OUT)
                data = b""
                if is_open and selector.select(min(_TERMINAL_POLL_SECONDS, self._remaining_seconds()) if alive else 0):
                    data = _read_terminal(self._child.child_fd)
                    is_open = bool(data)
                elif not alive:
                    return self._outcome(LoginEndReason.EXITED)
                elif not is_open:
                    time.sleep(min(_TERMINAL_POLL_SECONDS, self._remaining_seconds()))
                self._append_output(decoder.decode(data))
                reason = self._handle_output() if data else self._handle_silence()
                if reason is not None:
                    return self._outcome(reason)

    def _append_output(self, text: str) -> None:
        self._output += text
        excess = len(self._output) - _MAX_TERMINAL_OUTPUT_CHARACTERS
        if excess > _MAX_TERMINAL_OUTPUT_CHARACTERS:
            self._output = self._output[excess:]
            self._answered_length = max(0, self._answered_length - excess)

    def _remaining_seconds(self) -> float:
        return max(0.0, self._deadline - self._clock())

    def _is_alive(self) -> bool:
        try:
            return self._child.isalive()
        except pexpect.ExceptionPexpect:
            _log.debug("process %d was waited for by other code", self._child.pid)
            return False

    @property
    def _unanswered_output(self) -> str:
        """The text since the last answer, or the end of it."""
        return self._output[max(self._answered_length, len(self._output) - _MAX_PROMPT_CONTEXT_CHARACTERS) :]

    def _handle_output(self) -> LoginEndReason | None:
        """Answer the prompt that is shown, if there is one; return the reason to end the attempt, or None."""
        raise NotImplementedError

    def _handle_silence(self) -> LoginEndReason | None:
        """Do the same if nothing new is shown."""
        return None

    def _is_echo_off(self) -> bool:
        """Return whether the terminal hides typed text; otherwise there is no prompt for a secret."""
        try:
            return self._child.waitnoecho(min(_ECHO_OFF_TIMEOUT_SECONDS, self._remaining_seconds()))
        except (OSError, termios.error):  # the program has ended; the next read shows it
            return False

    def _send_line(self, answer: str) -> None:
        self._answered_length = len(self._output)
        with contextlib.suppress(OSError):  # as above
            self._child.sendline(answer)

    def _outcome(self, end_reason: LoginEndReason) -> LoginOutcome:
        status = None
        if end_reason is LoginEndReason.EXITED:
            signal_number = self._child.signalstatus
            status = self._child.exitstatus if signal_number is None else -signal_number
        text = self._output
        for secret in self._secrets:  # a host may echo the answers
            text = text.replace(secret, "[password]") if len(secret) >= 4 else text
        return LoginOutcome(end_reason, status, text)


class _LoginPromptLoop(_PromptLoop):
    """A conversation in which the given password answers the prompts."""

    def __init__(self, child: pexpect.spawn, password: str, host_names: Collection[str], deadline: float) -> None:
        super().__init__(child, deadline)
        self._password = password
        self._host_names = frozenset(name.casefold() for name in host_names)
        self._secrets = [password]
        self._answered_prompts: set[str] = set()

    def _handle_output(self) -> LoginEndReason | None:
        output = self._unanswered_output
        kind = classify_prompt(output, self._host_names)
        prompt = last_line(output)
        if kind is PromptKind.HOST_KEY:
            return LoginEndReason.UNKNOWN_HOST_KEY
        if kind is PromptKind.PASSWORD_OF_ANOTHER_HOST:
            return LoginEndReason.OTHER_HOST
        if kind is PromptKind.PASSWORD:
            if prompt in self._answered_prompts:
                return LoginEndReason.REFUSED
            self._answer(prompt, self._password)
        elif kind is PromptKind.PASSPHRASE:
            # An empty passphrase makes ssh leave this key and try the next one.
            self._answer(prompt, "" if prompt in self._answered_prompts else self._password)
        return None

    def _answer(self, prompt: str, answer: str) -> None:
        if self._is_echo_off():
            self._answered_prompts.add(prompt)
            self._send_line(answer)


class _InteractivePromptLoop(_PromptLoop):
    """A conversation in which a person answers."""

    def __init__(self, child: pexpect.spawn, ask: AskUser, deadline: float, clock: Callable[[], float]) -> None:
        super().__init__(child, deadline, clock)
        self.unanswered_prompt = ""
        self._ask = ask
        self._last_output_at = self._clock()
        self._last_visible_answer = ""  # the terminal shows it, too

    def _handle_output(self) -> LoginEndReason | None:
        self._last_output_at = self._clock()
        kind = classify_prompt(self._unanswered_output, ())
        return None if kind is None else self._ask_user(secret=kind is not PromptKind.HOST_KEY)

    def _handle_silence(self) -> LoginEndReason | None:
        """Ask the person for the answer to a prompt in a host's own words, such as one for a code."""
        if not last_line(self._unanswered_output) or self._clock() - self._last_output_at < _PROMPT_SILENCE_SECONDS:
            return None
        self._last_output_at = self._clock()
        return None if self._is_echo_on() else self._ask_user(secret=True)

    def _is_echo_on(self) -> bool:
        try:
            return self._child.getecho()
        except (OSError, termios.error):  # the program has ended; the next read shows it
            return True

    def _ask_user(self, *, secret: bool) -> LoginEndReason | None:
        if secret and not self._is_echo_off():
            return None
        started_at = self._clock()
        answer = self._ask(
            printable_lines(self._unanswered_output.lstrip().removeprefix(self._last_visible_answer)), secret
        )
        self._deadline += self._clock() - started_at
        if answer is None:
            self.unanswered_prompt = last_line(self._unanswered_output)
            return LoginEndReason.REFUSED
        check_typeable(answer)
        if secret:
            self._secrets.append(answer)
        self._last_visible_answer = "" if secret else answer
        self._send_line(answer)
        return None
