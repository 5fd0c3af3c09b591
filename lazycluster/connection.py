"""A connection to one host, as users hold it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from lazycluster._model.checks import check_environment, split_stdin
from lazycluster._model.command import Command
from lazycluster._model.run_options import DEFAULT_MAX_OUTPUT, RunOptions
from lazycluster._model.watch import make_watch
from lazycluster._transports import factory
from lazycluster._transports.host_context import HostContext
from lazycluster._typing import Self
from lazycluster._waiting import interrupt_boundary
from lazycluster.options import DEFAULT_MAX_SESSIONS, RuntimeOptions
from lazycluster.results import CommandResult, Stream


class Connection:
    """A host, reached by the system's own `ssh`.

    Constructing it checks the arguments and does nothing else; the first use logs in. All sessions share one
    connection (a ControlMaster of its own, private to this object). Any thread may use it. It is a context manager.

    Args:
        host: A name that `ssh` understands: an alias of the ssh configuration, a host name or address, `user@host`.
        user: The account on the host (ssh_config(5): User).
        port: The port of sshd, 1-65535.
        identity_file: A private key (`ssh -i`).
        password: Answers password prompts of the host and passphrase prompts for keys. Better: keys and an agent.
        config_file: The configuration to read instead of the user's and the system's (`ssh -F`).
        connect_timeout: Seconds within which the log-in succeeds or fails.
        options: ssh_config(5) keywords with their values (`ssh -o`); they win over the configuration.
        env: Environment variables for every command.
        max_sessions: How many sessions run at once at most; more wait. Set it to the MaxSessions of the host's sshd
            (sshd_config(5)) if that is less than 10.

    Raises:
        ValueError: If a host, user, port, option, variable name or number of sessions is invalid.
    """

    def __init__(
        self,
        host: str,
        *,
        user: str | None = None,
        port: int | None = None,
        identity_file: str | os.PathLike[str] | None = None,
        password: str | None = None,
        config_file: str | os.PathLike[str] | None = None,
        connect_timeout: float = 10.0,
        options: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        max_sessions: int = DEFAULT_MAX_SESSIONS,
    ) -> None:
        transport_options: RuntimeOptions = {
            "user": user,
            "port": port,
            "identity_file": identity_file,
            "password": password,
            "config_file": config_file,
            "connect_timeout": connect_timeout,
            "options": options,
            "max_sessions": max_sessions,
            "resident": False,
        }
        self.host: Final = host
        self._context = HostContext(factory.make_transport(host, transport_options), env=check_environment(env))

    def __repr__(self) -> str:
        """Return the host; never the password."""
        return f"<Connection {self.host}>"

    def __enter__(self) -> Self:
        """Return the connection itself; the first use logs in."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def run(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes | BinaryIO = b"",
        timeout: float | None = None,
        check: bool = False,
        on_output: Callable[[Stream, bytes], object] | None = None,
        on_line: Callable[[Stream, str], object] | None = None,
        max_output: int | None = DEFAULT_MAX_OUTPUT,
    ) -> CommandResult:
        """Run a command on the host and return its result; without `check` a command that fails raises nothing.

        Text goes to the account's own shell if that is a Bourne shell (bash, dash, ksh, ...), and to /bin/sh otherwise.
        A list of words starts a program without any expansion, as in `subprocess`. The command starts in `cwd`
        (default: the home directory; `~` is the host's), with `env` added to its environment, and reads `stdin`.
        Background processes that it leaves do not keep this call waiting. If a program does not exist, the exit status
        is 127.

        A thread of the library calls the callbacks, one call at a time. A slow one slows the command, and `run()`
        returns after the last call. If one raises, the command is ended with its children, and `run()` raises that.

        Args:
            command: Any text that a POSIX shell takes, up to about 100 kB, or the words of a program.
            cwd: The directory to run in.
            env: Environment variables in addition to those of the connection.
            stdin: The standard input of the command, which gets it once all of it is on the host. Text is UTF-8. A file
                is read in pieces, which a temporary file keeps.
            timeout: Seconds after which the command and its children are ended (SIGTERM, 5 s later SIGKILL).
            check: Whether an exit status other than 0 raises an error.
            on_output: Called with each piece of output while the command runs.
            on_line: Called with each line of output, and with the text after the last newline, if there is any. The
                text has no newline; undecodable bytes are replaced. A line of more than 1 MiB comes in parts.
            max_output: The bytes that each stream may have, or None for any number. With None and a callback the result
                has only the last 64 KiB of each stream.

        Raises:
            ConnectError: If the host could not be reached; its kinds say why.
            CommandFailedError: If the exit status is not 0, with `check`; the error has its output.
            CommandTimeoutError: If it took longer than `timeout`; the error has its output so far.
            OutputLimitError: If a stream has more than `max_output` bytes; the command is ended.
            ConnectionLostError: If the connection broke.
            WorkingDirectoryError: If `cwd` cannot be entered.
            ValueError: If the command is empty, the name of a variable is not an identifier, or another argument is
                out of range.
        """
        options = RunOptions(check, on_output, on_line, max_output)
        variables = {**self._context.env, **(env or {})}  # a Command checks them
        data, source = split_stdin(stdin)
        prepared = Command(command, cwd=cwd, env=variables, stdin=data, source=source, timeout=timeout)
        transport = self._context.transport
        with interrupt_boundary:
            return options.run(
                lambda watch: transport.run(prepared, watch), host=self.host, title=prepared.title, timeout=timeout
            )

    def put(
        self,
        local: str | os.PathLike[str],
        remote: str | None = None,
        *,
        cwd: str | None = None,
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> None:
        """Send a file or a directory, with modes and times; symbolic links inside a directory stay links.

        Args:
            local: The local file or directory.
            remote: The target on the host: a new name, an existing file, or an existing directory to put it into.
                Relative paths start in `cwd`, or in the home directory; `~` is the host's. Default: its own name there.
            cwd: The directory on the host where relative paths start.
            on_progress: Called with the bytes moved so far, and with all of them, or None if that is unknown.

        Raises:
            TransferError: If it could not be sent; the target is then as it was before.
            ConnectError: If the host could not be reached.
        """
        watch = make_watch(on_progress=on_progress)
        with interrupt_boundary:
            self._context.transport.put(Path(local), remote, cwd=cwd, watch=watch)

    def get(
        self,
        remote: str,
        local: str | os.PathLike[str] | None = None,
        *,
        cwd: str | None = None,
        on_progress: Callable[[int, int | None], object] | None = None,
    ) -> None:
        """Fetch a file or a directory, with modes and times; symbolic links inside a directory stay links.

        Args:
            remote: The file or directory on the host; see `put()` for relative paths.
            local: The local target: a new name, an existing file, or an existing directory to put it into. Default:
                its own name in the current directory.
            cwd: The directory on the host where relative paths start.
            on_progress: Called with the bytes moved so far, and with all of them, or None if that is unknown.

        Raises:
            TransferError: If it could not be fetched; the target is then as it was before.
            ConnectError: If the host could not be reached.
        """
        target = Path.cwd() if local is None else Path(local)
        watch = make_watch(on_progress=on_progress)
        with interrupt_boundary:
            self._context.transport.get(remote, target, cwd=cwd, watch=watch)

    def is_alive(self) -> bool:
        """Return whether the host can run a command now; logs in if need be, and never raises."""
        return self._context.transport.is_alive()

    def close(self) -> None:
        """End the connection. Commands under way end on the host, too. Closing twice is fine."""
        self._context.transport.close()
