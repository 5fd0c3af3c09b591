"""A ControlMaster: started, held, checked, and ended with its owner.

This is the one mechanism by which no ssh process in the background outlives the local process: see `mux.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

import attrs

from lazycluster._model.timeouts import DEFAULT_TIMEOUTS, Timeouts
from lazycluster._processes.run import run_and_capture, run_daemonizing
from lazycluster._ssh.argv import effective_config_argv, login_attempt_argv, master_argv, user_ssh_arguments
from lazycluster._ssh.config import parse_effective_config
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.diagnosis import diagnose, has_relay_failed, start_failure
from lazycluster._ssh.mux import ControlSocket, ControlSocketError, RequestRefusedError
from lazycluster._ssh.prompt_text import other_asking_host
from lazycluster._ssh.stand_in import StandInControlSocket
from lazycluster._typing import assert_never
from lazycluster._waiting import Deadline
from lazycluster.exceptions import (
    AuthenticationError,
    ConnectError,
    ConnectionThrottledError,
    ConnectTimeoutError,
    UnknownHostKeyError,
)

_log = logging.getLogger(__name__)
# ssh appends a dot and 16 characters while it binds the socket, and sun_path (unix(7)) has 108 bytes, on macOS 104.
MAX_SOCKET_PATH_BYTES = 90 if sys.platform == "linux" else 86
_SSH_G_TIMEOUT_SECONDS = 5.0
_DIRECTORY_PREFIX = "lazycluster-m-"
_LOCK_FILE_NAME = "lock"
_SSH_CONFIG_SAFE_PATH = re.compile(r"/[A-Za-z0-9_./+,=@-]*")


class PrivateDirectory:
    """A directory that only this user can enter, with a path short enough for a control socket in it.

    While its owner lives it holds a lock in it, so that the directory of a killed owner is recognised and removed.
    """

    def __init__(self) -> None:
        """Make it.

        Raises:
            OSError: If no temporary directory is suitable.
        """
        self.path = _make_directory()
        unlocked = self.path / "unlocked"  # no process removes a directory with this file
        self._lock_fd = os.open(unlocked, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        unlocked.rename(self.path / _LOCK_FILE_NAME)

    def remove(self) -> None:
        """Remove it with all that is in it. Doing it twice is fine."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


@functools.cache
def remove_stale_directories(parent: str) -> None:
    """Remove, once in the life of this process, the directories that killed processes of this user left in `parent`."""
    for path in Path(parent).glob(f"{_DIRECTORY_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path / _LOCK_FILE_NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _make_directory() -> Path:
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes a fresh 0700 directory in it
        # ssh expands %, ~ and ${} in ControlPath, and takes quotes and spaces for its own (ssh_config(5)).
        if len(
            f"{parent}/{_DIRECTORY_PREFIX}12345678/m".encode()
        ) <= MAX_SOCKET_PATH_BYTES and _SSH_CONFIG_SAFE_PATH.fullmatch(parent):
            remove_stale_directories(parent)
            return Path(tempfile.mkdtemp(prefix=_DIRECTORY_PREFIX, dir=parent))
    raise OSError("no temporary directory with a path short enough for a control socket; set TMPDIR")


class Master:
    """One logged-in ssh in the background, reachable over its control socket.

    Made by `connect()`; `close()` ends it and removes its files.
    """

    def __init__(
        self,
        directory: PrivateDirectory,
        control_socket: ControlSocket,
        pid: int | None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """Take over a master whose socket is `m` in a private directory."""
        self._timeouts = timeouts
        self._directory = directory
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self.control_socket = control_socket
        """The held connection."""
        self.pid = pid

    @classmethod
    def connect(
        cls,
        destination: Destination,
        *,
        password: str | None = None,
        cancel_event: threading.Event | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> Master:
        """Log in to a host within its `connect_timeout`, or until `cancel_event` is set.

        Raises:
            ConnectError: If the log-in fails; its subclass shows why.
        """
        try:
            return cls._connect_with_retries(destination, password, cancel_event, timeouts)
        except ConnectError as error:
            raise attrs.evolve(error, options=user_ssh_arguments(destination)) from error.__cause__

    @classmethod
    def _connect_with_retries(
        cls,
        destination: Destination,
        password: str | None,
        cancel_event: threading.Event | None,
        timeouts: Timeouts,
    ) -> Master:
        deadline = Deadline(destination.connect_timeout)
        throttled: ConnectionThrottledError | None = None
        for attempt in range(1000):
            directory = _make_private_directory(destination.host)
            try:
                return cls._connect_once(destination, directory, password, deadline, cancel_event, timeouts)
            except ConnectTimeoutError as error:
                directory.remove()
                raise throttled or error from None  # the time was up in the middle of another try
            except ConnectionThrottledError as error:
                directory.remove()
                throttled = error
                shortest, longest = timeouts.login_throttled
                pause = random.uniform(0.5, 1.0) * min(longest, shortest * 2**attempt)  # noqa: S311
                if deadline.clamp(pause) < pause:
                    raise
                if (cancel_event or threading.Event()).wait(pause):
                    raise
            except BaseException:
                directory.remove()
                raise
        raise AssertionError("the deadline ends the attempts")

    @classmethod
    def _connect_once(
        cls,
        destination: Destination,
        directory: PrivateDirectory,
        password: str | None,
        deadline: Deadline,
        cancel_event: threading.Event | None,
        timeouts: Timeouts,
    ) -> Master:
        socket, log = directory.path / "m", directory.path / "log"
        argv = master_argv(destination, socket, log, batch=password is None)
        ended = _run_login(destination, argv, directory, password, deadline, cancel_event)
        if ended.exit_code != 0:
            output = (log.read_text(errors="replace") if log.exists() else "") + ended.diagnostic
            if has_relay_failed(output):
                argv = login_attempt_argv(destination, batch=password is None)
                probed = _run_login(destination, argv, directory, password, deadline, cancel_event)
                if probed.exit_code not in {0, None}:
                    output, ended = probed.diagnostic, probed
            raise diagnose(destination.host, output, exit_code=ended.exit_code, timed_out=ended.exit_code is None)
        try:
            control = ControlSocket(socket, timeout=timeouts.control_socket)
            return cls(directory, control, control.check(), timeouts)
        except FileNotFoundError:
            _log.debug("%s: ssh ended well and left no control socket", destination.host)
            return cls(directory, StandInControlSocket(), None, timeouts)
        except ControlSocketError as error:
            raise ConnectError(destination.host, f"logged in, but {error}") from error

    @property
    def is_stand_in(self) -> bool:
        """Whether ssh left no control socket, as a mocked one does."""
        return isinstance(self.control_socket, StandInControlSocket)

    @property
    def socket_path(self) -> Path:
        """The path of the control socket."""
        return self._directory.path / "m"

    @property
    def log(self) -> str:
        """All that the master has printed."""
        return self.log_since(0)

    @property
    def log_size(self) -> int:
        """The number of bytes that the master has printed so far."""
        try:
            return (self._directory.path / "log").stat().st_size
        except OSError:
            return 0

    def log_since(self, offset: int) -> str:
        """Return the text that the master has printed after its first `offset` bytes."""
        try:
            with (self._directory.path / "log").open("rb") as file:
                file.seek(offset)
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    @property
    def exit_reason(self) -> str:
        """The last line that the master has printed, as the cause of its end."""
        lines = self.log.strip().splitlines()
        return lines[-1].strip() if lines else "the ssh process of the connection is gone"

    @property
    def has_exited(self) -> bool:
        """Whether the master is known to have ended."""
        return self._closed or self.control_socket.poll_closed()

    def check(self) -> bool:
        """Return whether the master answers in time; otherwise it is stuck, or was stopped."""
        if self._closed:
            return False
        try:
            self.control_socket.check()
        except ControlSocketError as error:
            _log.debug("master %s: %s", self.pid, error)
            return False
        return True

    def can_reach_host(self, timeout: float) -> bool:
        """Return whether the host itself answers within `timeout` seconds; the question takes no session."""
        try:
            self.control_socket.probe("localhost", 0, timeout=timeout)  # no server listens there: any answer will do
        except RequestRefusedError:
            return True
        except ControlSocketError:
            return False
        return True

    def close(self, *, force: bool = False) -> None:
        """End the master and remove its files; a master that does not go is killed. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        control = self.control_socket
        if self._owner_pid != os.getpid():  # a fork of the owner must not end it
            return
        if not force:
            control.terminate()
        if (
            self.pid is not None
            and (force or not control.wait_closed(self._timeouts.master_end))
            and not control.poll_closed()
        ):
            # While its end of the socket is open the process is there, so no other process has its number.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            control.wait_closed(self._timeouts.master_end)
        control.close()
        self._directory.remove()

    def disconnect(self) -> None:
        """Leave the master to end by itself within seconds, without waiting; its directory is removed."""
        self._closed = True
        if self._owner_pid != os.getpid():
            return
        self.control_socket.terminate()
        self.control_socket.close()
        self._directory.remove()


def _make_private_directory(host: str) -> PrivateDirectory:
    try:
        return PrivateDirectory()
    except OSError as error:
        raise ConnectError(host, f"no directory for the control socket: {error}") from error


@attrs.frozen
class _LoginEnd:
    """How a log-in ended, as `Completed`, and the reason that ssh printed on standard error or on a terminal."""

    exit_code: int | None
    diagnostic: str


def _run_login(
    destination: Destination,
    argv: tuple[str, ...],
    directory: PrivateDirectory,
    password: str | None,
    deadline: Deadline,
    cancel_event: threading.Event | None,
) -> _LoginEnd:
    """Run an ssh that logs in, until it ends or goes to the background.

    Raises:
        ConnectError: If ssh cannot be started.
    """
    try:
        if password is None:
            seconds = deadline.clamp(destination.connect_timeout)
            ended = run_daemonizing(argv, directory.path / "said", timeout=seconds, cancel_event=cancel_event)
            return _LoginEnd(ended.exit_code, ended.stderr)
        return _log_in_with_password(destination, argv, password, deadline, cancel_event)
    except OSError as error:
        raise start_failure(destination.host, error) from error


def _log_in_with_password(
    destination: Destination,
    argv: tuple[str, ...],
    password: str,
    deadline: Deadline,
    cancel_event: threading.Event | None,
) -> _LoginEnd:
    """Log in with a password, typed only at prompts of the destination itself.

    Raises:
        ConnectError: If a prompt is left unanswered.
    """
    from lazycluster._ssh import prompts  # noqa: PLC0415 - pexpect is needed by few

    effective = parse_effective_config(
        run_and_capture(effective_config_argv(destination), timeout=deadline.clamp(_SSH_G_TIMEOUT_SECONDS)).stdout
    )
    known = (destination.host, destination.host.rpartition("@")[2], effective.hostname, effective.host_key_alias)
    names = {name for name in known if name}
    outcome = prompts.log_in(
        argv,
        password,
        deadline=deadline.when or 0.0,
        host_names=names,
        cancel_event=cancel_event,
    )
    match outcome.end_reason:
        case prompts.LoginEndReason.EXITED:
            return _LoginEnd(outcome.exit_code, outcome.text)
        case prompts.LoginEndReason.TIMED_OUT:
            return _LoginEnd(None, outcome.text)
        case prompts.LoginEndReason.UNKNOWN_HOST_KEY:
            raise UnknownHostKeyError(destination.host, outcome.prompt)
        case prompts.LoginEndReason.REFUSED:
            raise AuthenticationError(destination.host, "the password was refused")
        case prompts.LoginEndReason.OTHER_HOST:
            hop = other_asking_host(outcome.text, {name.casefold() for name in names})
            reason = f"another host asks for a password, at {outcome.prompt!r}"
            raise AuthenticationError(destination.host, reason, hop)
        case _:
            assert_never(outcome.end_reason)
