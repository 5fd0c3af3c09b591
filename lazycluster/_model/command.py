"""The record of a command on a host, which every transport takes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import BinaryIO

import attrs

from lazycluster._model.checks import check_environment, check_program, check_stdin, check_text, check_timeout


def _check_cwd(cwd: str | None) -> str | None:
    return check_text("cwd", cwd)


@attrs.frozen
class Command:
    """A command and its surroundings.

    Raises:
        ValueError: If a field is out of range.
    """

    program: str | tuple[str, ...] = attrs.field(converter=check_program, repr=False)
    """Text for a POSIX shell, or the words of a program, which starts without a shell."""
    cwd: str | None = attrs.field(default=None, converter=_check_cwd)
    """The directory on the host where the command starts; by default the home directory."""
    env: Mapping[str, str] = attrs.field(factory=dict, converter=check_environment, repr=False)
    """Environment variables in addition to those of the host."""
    stdin: bytes | None = attrs.field(default=b"", converter=check_stdin, repr=False)
    """The standard input of the command. None means that the caller writes it while the command runs."""
    source: BinaryIO | None = attrs.field(default=None, repr=False)
    """A file that the standard input is read from; `stdin` is None then."""
    stdin_size: int | None = None
    """The number of bytes that the caller writes, if it is known."""
    has_lifeline: bool = False
    """Whether a command that gets its input later is ended with the local process in any case. Without a lifeline it
    must end by itself when its input does, as the programs of the library do.
    """
    timeout: float | None = attrs.field(default=None, converter=check_timeout)
    """The time limit in seconds."""
    title: str = attrs.field()
    """The name of the command in errors, and in the process list of the host."""
    login_shell: bool = True
    """Text goes to the shell of the account if that is a POSIX shell; otherwise, or if False, to /bin/sh."""

    @title.default
    def _default_title(self) -> str:
        return self.program if isinstance(self.program, str) else shlex.join(self.program)

    @property
    def shell_text(self) -> str:
        """The program as text for a POSIX shell: `exec` keeps the shell from running a builtin in its place."""
        return self.program if isinstance(self.program, str) else f"exec {shlex.join(self.program)}"
