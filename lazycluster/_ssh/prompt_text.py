"""Text on ssh's terminal: the kind of the prompt at its end, and the check whether an answer can be typed."""

from __future__ import annotations

import enum
import re
from collections.abc import Collection

_MAX_PROMPT_CHARACTERS = 500
_MAX_QUESTION_LINES = 20

_SSH_PASSWORD_PROMPT = re.compile(r"(?P<user>.+)@(?P<host>[^@\s]+)'s password: ?$")
_KEYBOARD_INTERACTIVE_PREFIX = re.compile(r"^\((?P<user>[^\r\n]+?)@(?P<host>[^@\s)]+)\) ", re.MULTILINE)
# The prompt for a one-time code differs from that for a password only in its text: both have the echo off (RFC 4256).
# PAM asks in English under sshd (seen with OpenSSH 9.2 and LC_ALL=de_DE.UTF-8); other servers have other languages.
# The line must hold nothing else: at "New password:" the answer would become the new password.
_KEYBOARD_INTERACTIVE_PASSWORD_PROMPT = re.compile(
    r"^(?:\([^)]*@[^)]*\) )?(?:[\w.@-]+'s )?(?:password|passwort|kennwort|mot de passe|contraseña|senha|wachtwoord"
    r"|hasło|heslo|lösenord|adgangskode|salasana|пароль|密码|密碼|パスワード|암호)(?: for [^:]+)?\s*[:\uff1a] ?$",
    re.IGNORECASE,
)
_PASSPHRASE_PROMPT = re.compile(r"Enter passphrase for .+: ?$")
_HOST_KEY_PROMPT = re.compile(r"Are you sure you want to continue connecting|Please type 'yes', 'no'")


class PromptKind(enum.Enum):
    """The kind of answer that a prompt of ssh asks for."""

    PASSWORD = enum.auto()
    PASSPHRASE = enum.auto()
    PASSWORD_OF_ANOTHER_HOST = enum.auto()
    HOST_KEY = enum.auto()


def classify_prompt(output: str, host_names: Collection[str]) -> PromptKind | None:
    """Return the kind of the prompt with which the output ends; None if that is no known prompt.

    A keyboard-interactive prompt is in the server's words, after `(user@host) ` (since OpenSSH 8.5). It may have
    several lines. The host in the parentheses is the one that asks, whatever the lines say.

    Args:
        output: The text that the terminal has shown since the last answer.
        host_names: The names of the destination, case-folded.
    """
    line = last_line(output)[-_MAX_PROMPT_CHARACTERS:]
    if _HOST_KEY_PROMPT.search(line):
        return PromptKind.HOST_KEY
    if _PASSPHRASE_PROMPT.search(line):
        return PromptKind.PASSPHRASE
    if not (_SSH_PASSWORD_PROMPT.match(line) or _KEYBOARD_INTERACTIVE_PASSWORD_PROMPT.match(line)):
        return None
    return PromptKind.PASSWORD_OF_ANOTHER_HOST if other_asking_host(output, host_names) else PromptKind.PASSWORD


def other_asking_host(output: str, host_names: Collection[str]) -> str:
    """Return the first host other than the destination that asks for a password in the output, or ''."""
    direct = _SSH_PASSWORD_PROMPT.match(last_line(output)[-_MAX_PROMPT_CHARACTERS:])
    # ssh begins a prompt with a carriage return, after which `^` does not match.
    interactive_prompts = _KEYBOARD_INTERACTIVE_PREFIX.finditer(output.replace("\r", "\n"))
    asking_hosts = [match["host"] for match in (direct, *interactive_prompts) if match is not None]
    return next((host for host in asking_hosts if host.casefold() not in host_names), "")


def printable_lines(text: str) -> str:
    """Return the last lines of a text without characters that would control a person's terminal."""
    lines = text.replace("\r", "").strip().split("\n")[-_MAX_QUESTION_LINES:]
    return "\n".join("".join(char for char in line if char.isprintable()) for line in lines)


def last_line(text: str) -> str:
    """Return the last line, which no newline has ended yet."""
    return text.replace("\r", "\n").rpartition("\n")[2].strip()


def check_typeable(password: str) -> None:
    """Refuse a password with characters that a terminal takes for editing or for an interrupt.

    Raises:
        ValueError: If the password is not a single line of text; the error does not show it.
    """
    try:
        password.encode()
    except UnicodeEncodeError:
        raise ValueError("password must be valid text (it is not shown here)") from None
    if any(ord(char) < 32 or ord(char) == 127 for char in password):
        raise ValueError("password must not hold control characters, which cannot be typed (it is not shown here)")
