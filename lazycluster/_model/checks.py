"""Checks of arguments, made before anything runs: ports, commands, paths, time-outs, environment variables."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

_MAX_CONNECT_TIMEOUT_SECONDS = 1e6
_MAX_GRACE_SECONDS = 1e6
_MAX_COMMAND_CHARACTERS = 1 << 20
"""More than any system takes as the argument of a shell (execve(2), limits on size of arguments)."""
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def absolute_path(path: str | os.PathLike[str]) -> Path:
    """Return a local path that does not depend on the working directory; links are not followed."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - resolve() would follow links


def to_list(names: str | Iterable[str] | None) -> list[str]:
    """Return names as a list; a single name may come as plain text, and None stands for no names."""
    return [names] if isinstance(names, str) else list(names or ())


def is_whole_number(value: object, minimum: int) -> bool:
    """Return whether a value is an int, and no bool, from a minimum on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def check_port(port: int) -> int:
    """Return the port.

    Raises:
        ValueError: If it is not a whole number from 1 to 65535.
    """
    if not is_whole_number(port, 1) or port > 65535:
        raise ValueError(f"port must be a whole number from 1 to 65535, got {port!r}")
    return port


def check_program(program: str | Sequence[str]) -> str | tuple[str, ...]:
    """Return text for a shell, or the words of a program as a tuple.

    Raises:
        ValueError: If the text or a word is unusable.
    """
    if isinstance(program, str):
        if not program or "\0" in program:
            raise ValueError(f"command must be text, not empty and without NUL, got {program!r:.200}")
        if len(program) > _MAX_COMMAND_CHARACTERS:
            raise ValueError(
                f"command must have at most {_MAX_COMMAND_CHARACTERS} characters, got {len(program)}; send it as a file"
            )
        return program
    words = tuple(program) if isinstance(program, Sequence) else ()
    if not words or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise ValueError(f"command must be text or a list of words without NUL, got {program!r:.200}")
    if not words[0] or words[0].startswith("-"):
        raise ValueError(f"command must begin with the name of a program, got {words[0]!r:.200}")
    return words


def check_stdin(data: str | bytes | None) -> bytes | None:
    """Return the standard input of a command as bytes; text is UTF-8.

    Raises:
        ValueError: If it is neither text, bytes nor None.
    """
    if isinstance(data, str):
        return data.encode("utf-8", "surrogateescape")
    if data is not None and not isinstance(data, (bytes, bytearray, memoryview)):
        raise ValueError(f"stdin must be text, bytes or a binary file, got {type(data).__name__}")
    return None if data is None else bytes(data)


def split_stdin(stdin: str | bytes | BinaryIO) -> tuple[bytes | None, BinaryIO | None]:
    """Return the standard input of a command as bytes, or as a file to read it from; the other is None.

    Raises:
        ValueError: If it is neither text, bytes nor a binary file.
    """
    if isinstance(stdin, (str, bytes, bytearray, memoryview)):
        return check_stdin(stdin), None
    found: object = stdin
    is_file = callable(getattr(found, "read", None)) and not isinstance(found, io.TextIOBase)
    if not is_file:
        raise ValueError(f"stdin must be text, bytes or a binary file, got {type(found).__name__}")
    return None, stdin


def check_timeout(seconds: float | None) -> float | None:
    """Return a timeout.

    Raises:
        ValueError: If it is neither None nor a positive number of seconds.
    """
    if seconds is not None and not _is_duration(seconds):
        raise ValueError(f"timeout must be a positive number of seconds or None, got {seconds!r}")
    return seconds


def check_connect_timeout(seconds: float) -> float:
    """Return a time-out of log-ins.

    Raises:
        ValueError: If it is not a positive number of seconds, or more than ssh takes.
    """
    if not _is_duration(seconds) or seconds >= _MAX_CONNECT_TIMEOUT_SECONDS:
        constraint = f"a positive number of seconds, less than {_MAX_CONNECT_TIMEOUT_SECONDS:,.0f}"
        raise ValueError(f"connect_timeout must be {constraint}, got {seconds!r}")
    return seconds


def check_max_sessions(max_sessions: int) -> int:
    """Return a number of sessions.

    Raises:
        ValueError: If the number is not a whole number from 1 on.
    """
    if not is_whole_number(max_sessions, 1):
        raise ValueError(f"max_sessions must be a whole number from 1 on, got {max_sessions!r}")
    return max_sessions


def check_text(name: str, value: str | None) -> str | None:
    """Return a parameter that is text or None.

    Raises:
        ValueError: If the value is empty, holds NUL, or is not text.
    """
    return None if value is None else check_path(name, value)


def check_path(name: str, path: str) -> str:
    """Return a path on a host.

    Raises:
        ValueError: If it is empty, holds NUL, or is not text.
    """
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{name} must be text, not empty and without NUL, got {path!r:.200}")
    return path


def join_cwd(working_dir: str, cwd: str | None) -> str:
    """Return a directory on the host that starts in the working directory; `~` stays the host's.

    Raises:
        ValueError: If it is empty, holds NUL, or is not text.
    """
    if check_text("cwd", cwd) is None:
        return working_dir
    assert cwd is not None
    return cwd if cwd.startswith(("/", "~")) else f"{working_dir}/{cwd}"


def check_grace(seconds: float) -> float:
    """Return the time between SIGTERM and SIGKILL.

    Raises:
        ValueError: If it is not a number of seconds from 0 on, or longer than any host waits.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < _MAX_GRACE_SECONDS:
        raise ValueError(f"grace must be a number of seconds from 0 to {_MAX_GRACE_SECONDS:,.0f}, got {seconds!r}")
    return seconds


def _is_duration(seconds: object) -> bool:
    return not isinstance(seconds, bool) and isinstance(seconds, (int, float)) and seconds > 0


def check_environment(variables: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of environment variables that a POSIX shell can export.

    Raises:
        ValueError: If a name is not an identifier (POSIX.1-2017, XBD 3.235), or a value is not text or holds NUL.
    """
    checked = dict(variables or {})
    for name, value in checked.items():
        if not isinstance(name, str) or not _VARIABLE_NAME.fullmatch(name):
            constraint = "letters, digits and _, without a digit first"
            raise ValueError(f"the name of an environment variable must be {constraint}, got {name!r}")
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"the value of the environment variable {name} must be text without NUL")
    return checked
