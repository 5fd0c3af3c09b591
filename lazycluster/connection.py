"""A connection to one host, as users hold it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from lazycluster._files import transfer
from lazycluster._functions import session_call
from lazycluster._model.checks import absolute_path, check_command, check_timeout
from lazycluster._model.options import DEFAULT_MAX_SESSIONS
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.destination import Destination
from lazycluster._typing import Self
from lazycluster.exceptions import LazyclusterError
from lazycluster.results import CommandResult

if TYPE_CHECKING:
    from lazycluster._functions.serialize import Payload


class Connection:
    """A host, reached by the system's own `ssh`.

    Constructing it checks the arguments and does nothing else; the first use logs in. All sessions share one
    connection (a ControlMaster of its own, private to this object). Any thread may use it. It is a context manager.

    Args:
        host: A name that `ssh` understands: an alias of the ssh configuration, a host name or address, `user@host`.
        user: The account there (ssh_config(5): User).
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
        ValueError: A host, user, port, option, variable name or number of sessions that cannot be right.
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
        destination = Destination(
            host,
            user=user,
            port=port,
            identity_file=None if identity_file is None else absolute_path(identity_file),
            config_file=None if config_file is None else absolute_path(config_file),
            connect_timeout=connect_timeout,
            options=tuple((options or {}).items()),
        )
        self.ssh_client = SshClient(destination, password=password, env=env, max_sessions=max_sessions)
        """The machinery below, which transfers, calls and tunnels share."""

    def __repr__(self) -> str:
        """Return the host; never the password."""
        return f"<Connection {self.host}>"

    def __enter__(self) -> Self:
        """Return the connection itself; it dials when it is used."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    @property
    def host(self) -> str:
        """Return the host as it was given."""
        return self.ssh_client.host

    def run(
        self,
        command: str,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
    ) -> CommandResult:
        """Run a command in a POSIX shell on the host and return how it ended; a failure is no exception.

        The account's own shell reads it where that is a Bourne shell (bash, dash, ksh, ...), /bin/sh otherwise. It
        begins in `cwd` (default: the home directory; `~` is the host's), with `env` added to its environment, and
        reads `stdin`. Background processes that it leaves behind do not keep this call waiting.

        Args:
            command: Any text that a POSIX shell takes, up to about 100 kB.
            cwd: The directory to run in.
            env: Environment variables, besides those of the connection.
            stdin: What the command reads; it gets it once all of it is on the host.
            timeout: Seconds after which the command and its children are ended (SIGTERM, 5 s later SIGKILL).
            watch: Follows the output while it is produced.

        Raises:
            ConnectError: The host could not be reached; its kinds say why.
            CommandTimeoutError: It took longer than `timeout`; what it had printed is in the error.
            ConnectionLostError: The link broke.
            WorkingDirectoryError: `cwd` cannot be entered.
            ValueError: The command is empty, or an environment name is none.
        """
        check_command(command)
        check_timeout(timeout)
        return self.ssh_client.run(command, cwd=cwd, env=env, stdin=stdin, timeout=timeout, watch=watch)

    def put(
        self,
        local: str | os.PathLike[str],
        remote: str | None = None,
        *,
        cwd: str | None = None,
        watch: Watch = UNWATCHED,
    ) -> None:
        """Send a file or a directory, with modes and times; symbolic links inside a directory stay links.

        Args:
            local: The file or directory here.
            remote: Where it goes: a new name, an existing file, or an existing directory to put it into. Relative
                paths start in `cwd`, or in the home directory; `~` is the host's. Default: its own name there.
            cwd: The directory on the host where relative paths start.
            watch: Follows the progress.

        Raises:
            TransferError: It could not be sent; what stood at the target stands there still.
            ConnectError: The host could not be reached.
        """
        transfer.put(
            transfer.TransferBackend(self.ssh_client, self.ssh_client), Path(local), remote, cwd=cwd, watch=watch
        )

    def get(
        self,
        remote: str,
        local: str | os.PathLike[str] | None = None,
        *,
        cwd: str | None = None,
        watch: Watch = UNWATCHED,
    ) -> None:
        """Fetch a file or a directory, with modes and times; symbolic links inside a directory stay links.

        Args:
            remote: The file or directory on the host; see `put()` for relative paths.
            local: Where it goes here: a new name, an existing file, or an existing directory to put it into. Default:
                its own name in the current directory.
            cwd: The directory on the host where relative paths start.
            watch: Follows the progress.

        Raises:
            TransferError: It could not be fetched; what stood at the target stands there still.
            ConnectError: The host could not be reached.
        """
        target = Path.cwd() if local is None else Path(local)
        transfer.get(transfer.TransferBackend(self.ssh_client, self.ssh_client), remote, target, cwd=cwd, watch=watch)

    def call(
        self,
        payload: Payload,
        outcome: IO[bytes],
        *,
        python: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
    ) -> None:
        """Run a function on the host, in a Python of its own, and write its outcome to a file.

        Tasks and runtimes use this; see `RuntimeTask.run_function()` and `Runtime.call()`.

        Raises:
            PythonNotFoundError: There is no Python on the host.
            PythonVersionMismatchError: Its minor version is another one than here.
            CommandTimeoutError: It took longer than `timeout`.
            ConnectionLostError: The link broke.
        """
        session_call.run_function_in_session(
            self.ssh_client, payload, outcome, python=python, cwd=cwd, env=env, timeout=timeout, watch=watch
        )

    def is_alive(self) -> bool:
        """Tell whether a command can be run on the host now; dials if need be, and never raises."""
        if self.ssh_client.closed:
            return False
        try:
            return self.run("true", timeout=self.ssh_client.destination.connect_timeout).ok
        except LazyclusterError:
            return False

    def close(self) -> None:
        """End the connection. Commands under way end on the host, too. Closing twice is fine."""
        self.ssh_client.close()
