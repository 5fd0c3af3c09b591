"""A private sshd on loopback: the current user's, with throw-away keys, gone without a trace when it stops."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypedDict

import attrs

from lazycluster._remote.ports import find_free_port
from lazycluster._typing import Self
from lazycluster.exceptions import LazyclusterError
from lazycluster.testing._accounts import is_account_locked
from lazycluster.testing._process_guard import GuardedProcess, child_pids, kill_all, run_checked, wait_until

_LOOPBACK_ADDRESS = "127.0.0.1"
_MAX_START_ATTEMPTS = 5  # between the choice of a free port and sshd's bind, another process may take it
_SSHD_SEARCH_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/sbin")
_SFTP_SERVER_PATHS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/opt/homebrew/libexec/sftp-server",
)


@attrs.frozen(slots=False)
class LocalSshdError(LazyclusterError):
    """A private sshd could not be started; `log` is its log."""

    reason: str
    log: str = ""

    def __str__(self) -> str:
        return f"cannot start a private sshd: {self.reason}" + (f"\n{self.log}" if self.log else "")


class SshdNotFoundError(LocalSshdError):
    """There is no sshd on this machine."""

    def __str__(self) -> str:
        return self.reason


class ConnectionKeywords(TypedDict):
    """The keywords that lead a `Connection` or `Runtime` to a private sshd."""

    config_file: str


class LocalSshd:
    """A real sshd on 127.0.0.1 for the current user, with keys, a client configuration and a home of its own.

    It works for root and for any other user. It is a context manager; its files are in one private temporary directory.
    It stops at the end of the block, and when the process that started it dies in whatever way. Then everything that
    its sessions started ends, too, and the directory is removed.

    Args:
        name: The `Host` alias in its client configuration.
        home: The home directory of its sessions. True: a new, empty one, so that the user's own start-up files do not
            interfere; a path: that directory; False: the user's own.
        shell: The login shell of its sessions, a name or path. A pair such as `("busybox", "sh")` is a program and the
            name to call it by. The user's own unless given.
        options: Keywords of sshd_config(5) that replace the defaults used here.
        environment: Variables that its sessions have.
    """

    def __init__(
        self,
        *,
        name: str = "local",
        home: bool | Path = True,
        shell: str | Sequence[str] | None = None,
        options: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.host = name
        self.user: str = pwd.getpwuid(os.geteuid()).pw_name
        self.port: int = 0
        self._home = home
        self._shell = shell
        self._options = dict(options or {})
        self._environment = dict(environment or {})
        self._directory: Path | None = None
        self._sshd: GuardedProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # Its files and addresses ------------------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """The private directory that holds everything of this sshd while it runs."""
        if self._directory is None:
            raise LocalSshdError("it is not running; call start() first")
        return self._directory

    @property
    def home(self) -> Path:
        """The home directory of the sessions."""
        if isinstance(self._home, Path):
            return self._home
        return self.directory / "home" if self._home else Path(pwd.getpwuid(os.geteuid()).pw_dir)

    @property
    def identity_file(self) -> Path:
        """The private key that logs in; it has no passphrase."""
        return self.directory / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """A known_hosts file with the host key."""
        return self.directory / "known_hosts"

    @property
    def config_file(self) -> Path:
        """A configuration for `ssh -F` that leads to this sshd under its name."""
        return self.directory / "ssh_config"

    @property
    def connection_kwargs(self) -> ConnectionKeywords:
        """Keywords for `Connection(sshd.host, **sshd.connection_kwargs)`, and for `Runtime`."""
        return {"config_file": str(self.config_file)}

    @property
    def log(self) -> str:
        """The log of sshd so far."""
        return (self.directory / "log").read_text(errors="replace")

    def config(self, *, name: str | None = None, port: int | None = None) -> str:
        """Return the section of a client configuration; another port is that of a relay in front of this sshd."""
        return _format_section(
            "Host",
            name or self.host,
            {
                "HostName": _LOOPBACK_ADDRESS,
                "Port": str(port or self.port),
                "User": self.user,
                "IdentityFile": _quote_config_path(self.identity_file),
                "IdentitiesOnly": "yes",
                "UserKnownHostsFile": _quote_config_path(self.known_hosts),
                "GlobalKnownHostsFile": "/dev/null",
                "StrictHostKeyChecking": "yes",
                **({"HostKeyAlias": self._known_hosts_name} if port not in {None, self.port} else {}),
            },
        )

    @property
    def _known_hosts_name(self) -> str:
        return f"[{_LOOPBACK_ADDRESS}]:{self.port}"

    # Its processes ----------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The pid of the process that listens."""
        return self._running_sshd.pid

    def processes(self) -> tuple[int, ...]:
        """Return the process that listens and everything that came from it, also in sessions of their own.

        On Linux that includes processes whose parents have ended. Empty when stopped.
        """
        return tuple(sorted(self._sshd.living_pids())) if self._sshd else ()

    def connections(self) -> int:
        """Return how many connections are open."""
        return len(child_pids(self.pid))

    def kill_connections(self) -> None:
        """End every connection at once, with all that its sessions started, as the end of the machine would."""
        sshd = self._running_sshd
        kill_all(lambda: sshd.living_pids() - {sshd.pid})

    @property
    def _running_sshd(self) -> GuardedProcess:
        if self._sshd is None:
            raise LocalSshdError("it is not running; call start() first")
        return self._sshd

    # Start and stop ---------------------------------------------------------------------------------------------------

    def start(self, timeout: float = 10.0) -> None:
        """Start the sshd, and return when it answers.

        Args:
            timeout: How many seconds it may take to answer.

        Raises:
            SshdNotFoundError: If there is no sshd on this machine.
            LocalSshdError: If it did not start, or is running already.
        """
        if self._sshd is not None:
            raise LocalSshdError("it is running already")
        program = find_sshd()
        self._start(program, timeout, _MAX_START_ATTEMPTS)

    def stop(self) -> None:
        """End the sshd and everything that its sessions started, wait until they are gone, and remove its directory."""
        sshd, self._sshd = self._sshd, None
        directory, self._directory = self._directory, None
        try:
            if sshd is not None:
                sshd.stop()
        finally:
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)

    def _start(self, program: str, timeout: float, attempts: int) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="lazycluster-sshd-"))
        try:
            self._write_files()
            log = self.directory / "log"
            argv = (program, "-D", "-f", str(self.directory / "sshd_config"), "-E", str(log))
            self._sshd = GuardedProcess(argv, self.directory, log)
            self._wait_for_banner(timeout)
        except BaseException as error:
            self.stop()
            if attempts > 1 and isinstance(error, LocalSshdError) and "already in use" in error.log:
                self._start(program, timeout, attempts - 1)
            else:
                raise

    def _write_files(self) -> None:
        if self._home is True:
            self.home.mkdir(mode=0o700)
        self._make_keys()
        self.port = find_free_port()
        (self.directory / "sshd_config").write_text(_format_lines(self._server_config()))
        self.known_hosts.write_text(f"{self._known_hosts_name} {(self.directory / 'host_key.pub').read_text()}")
        write_config(self.config_file, self)

    def _make_keys(self) -> None:
        """Make the host key and the user's key; without a passphrase, they live as long as the sshd."""
        make = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lazycluster-test", "-f")
        try:
            run_checked((*make, str(self.directory / "host_key")))
            run_checked((*make, str(self.identity_file)))
        except OSError as error:
            raise LocalSshdError(f"no keys: {error}. It takes ssh-keygen: install openssh-client") from error
        shutil.copyfile(f"{self.identity_file}.pub", self.directory / "authorized_keys")

    def _wait_for_banner(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._is_answering(timeout):
            if self._running_sshd.has_ended():
                raise LocalSshdError("it ended at once", self.log)
            if time.monotonic() > deadline:
                raise LocalSshdError(f"it did not answer within {timeout:g} s", self.log)
            time.sleep(0.005)
        wait_until(lambda: self.connections() == 0, timeout)  # that of the check itself is closing

    def _is_answering(self, timeout: float) -> bool:
        """Return whether this sshd identifies itself (RFC 4253, 4.2), and not another one that has taken the port."""
        try:
            with socket.create_connection((_LOOPBACK_ADDRESS, self.port), timeout=1) as connection:
                if connection.recv(4) != b"SSH-":
                    return False
                wait_until(lambda: self.connections() > 0 or self._running_sshd.has_ended(), timeout)
                return self.connections() > 0
        except OSError:
            return False

    # Its configuration ------------------------------------------------------------------------------------------------

    def _server_config(self) -> dict[str, str]:
        """Return sshd_config(5), as the keywords and values of its lines."""
        config = {
            "Port": str(self.port),
            "ListenAddress": _LOOPBACK_ADDRESS,
            "HostKey": _quote_config_path(self.directory / "host_key"),
            "AuthorizedKeysFile": _quote_config_path(self.directory / "authorized_keys"),
            "PidFile": "none",
            "StrictModes": "no",  # the keys are ours alone; the directories above them may belong to another user
            "UsePAM": "yes" if is_account_locked(self.user) else "no",
            "PermitRootLogin": "yes",
            "PrintMotd": "no",
            "PrintLastLog": "no",
            "MaxStartups": "100:30:200",
            # OpenSSH's default is safe against quantum computers, and takes half the time of a log-in (125 ms of
            # processor time, 9.2).
            "KexAlgorithms": "curve25519-sha256",
            "LogLevel": "VERBOSE",
            "Subsystem": f"sftp {_find_sftp_server()}",
        }
        variables = dict(self._environment)
        if self._home is not False or self._shell is not None:
            config["ForceCommand"] = f"exec {shlex.quote(str(self._write_launcher()))}"
            # Until the launcher sets the real one: the user's login shell, which runs it, must read no start-up file.
            variables["HOME"] = str(self.directory / "none")
        if variables:
            config["SetEnv"] = " ".join(_quote_config_value(f"{key}={value}") for key, value in variables.items())
        replaced = {keyword.lower() for keyword in self._options}
        return {key: value for key, value in config.items() if key.lower() not in replaced} | self._options

    def _write_launcher(self) -> Path:
        """Write the script that runs each command as sshd does for a user with that home and that login shell."""
        launcher = self.directory / "launch"
        shell = f"SHELL={shlex.quote(str(self._find_shell(self._shell)))}" if self._shell is not None else ""
        home = self._environment.get("HOME") or str(self.home)
        launcher.write_text(
            "#!/bin/sh\n"
            f"HOME={shlex.quote(home)} {shell}\n"
            # After the host's own programs, the Python that runs this, so that functions find their version there.
            f'PATH="$PATH":{shlex.quote(str(Path(sys.base_prefix, "bin")))}\n'
            "export HOME SHELL PATH\n"
            'cd "$HOME" || exit\n'
            'if [ -z "${SSH_ORIGINAL_COMMAND+given}" ]; then unset OLDPWD SHLVL; exec "$SHELL" -l; fi\n'
            "command=$SSH_ORIGINAL_COMMAND\n"
            "unset SSH_ORIGINAL_COMMAND OLDPWD SHLVL\n"
            'exec "$SHELL" -c "$command"\n'
        )
        launcher.chmod(0o700)
        return launcher

    def _find_shell(self, shell: str | Sequence[str]) -> Path:
        program, name = (shell, "") if isinstance(shell, str) else shell
        found = shutil.which(program)
        if found is None:
            raise LocalSshdError(f"there is no shell {program} on this machine")
        if not name:
            return Path(found)
        link = self.directory / name
        link.symlink_to(found)
        return link


def write_config(path: str | os.PathLike[str], *servers: LocalSshd | str, extra: str = "") -> Path:
    """Write one client configuration for several servers, and return its path.

    A server may be given as its own section too, the text that `LocalSshd.config` returns; `extra` comes last.
    """
    sections = [server if isinstance(server, str) else server.config() for server in servers]
    written = Path(path)
    written.write_text("\n".join([*sections, extra]))
    return written


def find_sshd() -> str:
    """Return the absolute path of sshd, without which it refuses to start.

    Raises:
        SshdNotFoundError: If there is no sshd on this machine.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SSHD_SEARCH_DIRECTORIES])
    found = shutil.which("sshd", path=path)
    if found is None:
        raise SshdNotFoundError("sshd not found: install openssh-server")
    if os.geteuid() == 0:
        # Debian's sshd needs this directory when root runs it. Its service makes it at boot, but not in a container.
        with contextlib.suppress(OSError):
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return str(Path(found).absolute())


def _find_sftp_server() -> str:
    return next((path for path in _SFTP_SERVER_PATHS if Path(path).exists()), "internal-sftp")


def _format_section(keyword: str, name: str, options: Mapping[str, str]) -> str:
    return f"{keyword} {name}\n" + "".join(f"    {key} {value}\n" for key, value in options.items())


def _format_lines(options: Mapping[str, str]) -> str:
    return "".join(f"{key} {value}\n" for key, value in options.items())


def _quote_config_value(text: str) -> str:
    """Quote an argument as both configuration files take it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _quote_config_path(path: Path) -> str:
    """Quote a path, in which ssh and sshd would expand a percent sign."""
    return _quote_config_value(str(path).replace("%", "%%"))
