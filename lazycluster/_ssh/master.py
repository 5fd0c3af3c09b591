"""A ControlMaster: dialled, held, checked, and ended with its owner.

This is the one mechanism by which no ssh process in the background outlives its manager: see `mux.py`.
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

from lazycluster._processes import Finished, run_detaching, run_to_end
from lazycluster._ssh.argv import attempt_argv, by_hand, effective_argv, master_argv
from lazycluster._ssh.config import parse_effective
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.diagnosis import cannot_start, diagnose, relay_broke
from lazycluster._ssh.mux import ControlSocket, ControlSocketError, RequestRefusedError
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
# ssh appends a dot and 16 characters while it binds the socket, and sun_path ends at 108 bytes (Linux) or 104 (macOS).
LONGEST_SOCKET_PATH = 90 if sys.platform == "linux" else 86
_ANSWER_TIMEOUT = 5.0
_BACK_OFF = (0.1, 2.0)
_PREFIX = "lazycluster-m-"
_LOCK = "lock"
_PLAIN = re.compile(r"/[A-Za-z0-9_./+,=@-]*")


class PrivateDirectory:
    """A directory that only this user can enter, with a path short enough for a control socket in it.

    While its owner lives it holds a lock in it, so that what a killed owner left can be told, and is swept up.
    """

    def __init__(self) -> None:
        """Make it.

        Raises:
            OSError: No temporary directory will do.
        """
        self.path = _fresh_directory()
        unlocked = self.path / "unlocked"  # a file that nobody sweeps
        self._lock = os.open(unlocked, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unlocked.rename(self.path / _LOCK)

    def remove(self) -> None:
        """Remove it with all that is in it. Doing it twice is fine."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


@functools.cache
def sweep(parent: str) -> None:
    """Remove, once in the life of this process, what killed managers of this user have left in a directory."""
    for path in Path(parent).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _fresh_directory() -> Path:
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes a fresh 0700 directory in it
        # ssh expands %, ~ and ${} in ControlPath, and takes quotes and spaces for its own (ssh_config(5)).
        if len(f"{parent}/{_PREFIX}12345678/m".encode()) <= LONGEST_SOCKET_PATH and _PLAIN.fullmatch(parent):
            sweep(parent)
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    raise OSError("no temporary directory with a path short enough for a control socket; set TMPDIR")


class Master:
    """One logged-in ssh in the background, reachable over its control socket.

    Made by `dial()`; `close()` ends it and removes its files.
    """

    def __init__(self, directory: PrivateDirectory, control: ControlSocket | None, pid: int | None) -> None:
        """Take over a master whose socket is `m` in a private directory."""
        self._directory = directory
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self.control = control
        """The held connection; None where only a stand-in for ssh was run, as in a test."""
        self.pid = pid

    @classmethod
    def dial(cls, to: Destination, *, password: str | None = None, stopping: threading.Event | None = None) -> Master:
        """Log in to a host within its `connect_timeout`, or until `stopping` is set.

        Raises:
            ConnectError: One of its kinds, saying why.
        """
        try:
            return cls._dial(to, password, stopping)
        except ConnectError as error:
            raise attrs.evolve(error, options=by_hand(to)) from error.__cause__

    @classmethod
    def _dial(cls, to: Destination, password: str | None, stopping: threading.Event | None) -> Master:
        deadline = Deadline(to.connect_timeout)
        throttled: ConnectionThrottledError | None = None
        for attempt in range(1000):
            directory = _private_directory(to.host)
            try:
                return cls._dial_once(to, directory, password, deadline, stopping)
            except ConnectTimeoutError as error:
                directory.remove()
                raise throttled or error from None  # the time was up in the middle of another try
            except ConnectionThrottledError as error:
                directory.remove()
                throttled = error
                pause = random.uniform(0.5, 1.0) * min(_BACK_OFF[1], _BACK_OFF[0] * 2**attempt)  # noqa: S311
                if deadline.within(pause) < pause:
                    raise
                if (stopping or threading.Event()).wait(pause):
                    raise
            except BaseException:
                directory.remove()
                raise
        raise AssertionError("the deadline ends the attempts")

    @classmethod
    def _dial_once(
        cls,
        to: Destination,
        directory: PrivateDirectory,
        password: str | None,
        deadline: Deadline,
        stopping: threading.Event | None,
    ) -> Master:
        socket, log = directory.path / "m", directory.path / "log"
        argv = master_argv(to, socket, log, batch=password is None)
        ended = _run(to, argv, directory, password, deadline, stopping)
        if ended.status != 0:
            said = (log.read_text(errors="replace") if log.exists() else "") + ended.text
            if relay_broke(said):
                argv = attempt_argv(to, batch=password is None)
                again = _run(to, argv, directory, password, deadline, stopping)
                if again.status not in {0, None}:
                    said, ended = again.text, again
            raise diagnose(to.host, said, status=ended.status, timed_out=ended.status is None)
        try:
            control = ControlSocket(socket, timeout=_ANSWER_TIMEOUT)
            return cls(directory, control, control.check())
        except FileNotFoundError:
            # Either a stand-in for ssh ran, or the link broke just now; the first session tells.
            _log.debug("%s: ssh ended well and left no control socket", to.host)
            return cls(directory, None, None)
        except ControlSocketError as error:
            raise ConnectError(to.host, f"logged in, but {error}") from error

    @property
    def socket(self) -> Path:
        """Return the path of the control socket."""
        return self._directory.path / "m"

    @property
    def log(self) -> str:
        """Return what the master has said."""
        return self.log_since(0)

    @property
    def log_size(self) -> int:
        """Return how many bytes the master has said so far."""
        try:
            return (self._directory.path / "log").stat().st_size
        except OSError:
            return 0

    def log_since(self, size: int) -> str:
        """Return what the master has said after so many bytes."""
        try:
            with (self._directory.path / "log").open("rb") as file:
                file.seek(size)
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    @property
    def reason(self) -> str:
        """Return the last thing that the master has said, as the cause of its end."""
        lines = self.log.strip().splitlines()
        return lines[-1].strip() if lines else "the ssh process of the connection is gone"

    @property
    def gone(self) -> bool:
        """Tell whether the master is known to have ended."""
        return self._closed or (self.control is not None and self.control.closed)

    def check(self) -> bool:
        """Tell whether the master answers; one that has not within 5 s is stuck, or was stopped."""
        if self._closed:
            return False
        if self.control is None:
            return True
        try:
            self.control.check()
        except ControlSocketError as error:
            _log.debug("master %s: %s", self.pid, error)
            return False
        return True

    def reaches_host(self, seconds: float) -> bool:
        """Tell whether the host itself answers within so many seconds; that takes none of its sessions."""
        if self.control is None:
            return True
        try:
            self.control.probe("localhost", 0, timeout=seconds)  # nobody listens there: any answer will do
        except RequestRefusedError:
            return True
        except ControlSocketError:
            return False
        return True

    def close(self, *, stuck: bool = False) -> None:
        """End the master and remove its files; a master that does not go is killed. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        control = self.control
        if self._owner != os.getpid():  # a fork of its owner, whose it is not to end
            return
        if control is not None:
            if not stuck:
                control.terminate()
            if self.pid is not None and (stuck or not control.wait_closed(1.0)) and not control.closed:
                # While its end of the socket is open the process is there, so the number is nobody else's.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                control.wait_closed(1.0)
            control.close()
        self._directory.remove()

    def let_go(self) -> None:
        """Leave the master to end by itself within seconds, without waiting; its directory is removed."""
        self._closed = True
        if self._owner != os.getpid():
            return
        if self.control is not None:
            self.control.terminate()
            self.control.close()
        self._directory.remove()


def _private_directory(host: str) -> PrivateDirectory:
    try:
        return PrivateDirectory()
    except OSError as error:
        raise ConnectError(host, f"no directory for the control socket: {error}") from error


def _run(
    to: Destination,
    argv: tuple[str, ...],
    directory: PrivateDirectory,
    password: str | None,
    deadline: Deadline,
    stopping: threading.Event | None,
) -> Finished:
    """Run an ssh that logs in, until it ends or goes to the background.

    Raises:
        ConnectError: It cannot be started.
    """
    try:
        if password is None:
            seconds = deadline.within(to.connect_timeout)
            return run_detaching(argv, directory.path / "said", seconds=seconds, stopping=stopping)
        return _log_in(to, argv, password, deadline, stopping)
    except OSError as error:
        raise cannot_start(to.host, error) from error


def _log_in(
    to: Destination, argv: tuple[str, ...], password: str, deadline: Deadline, stopping: threading.Event | None
) -> Finished:
    """Log in with a password, typed only at prompts of the destination itself.

    Raises:
        ConnectError: A prompt was left unanswered.
    """
    from lazycluster._ssh import prompts  # noqa: PLC0415 - pexpect is needed by few

    effective = parse_effective(run_to_end(effective_argv(to), seconds=deadline.within(_ANSWER_TIMEOUT)).text)
    names = {to.host, to.host.rpartition("@")[2], effective.hostname, effective.host_key_alias} - {None, ""}
    outcome = prompts.log_in(
        argv, password, deadline=deadline.at or 0.0, names={str(name) for name in names}, stopping=stopping
    )
    match outcome.end:
        case prompts.LoginEnd.EXITED:
            return Finished(outcome.status, outcome.text)
        case prompts.LoginEnd.TIMED_OUT:
            return Finished(None, outcome.text)
        case prompts.LoginEnd.UNKNOWN_HOST_KEY:
            raise UnknownHostKeyError(to.host, outcome.prompt)
        case prompts.LoginEnd.REFUSED:
            raise AuthenticationError(to.host, "the password was refused")
        case prompts.LoginEnd.OTHER_HOST:
            raise AuthenticationError(to.host, f"another host asks for a password, at {outcome.prompt!r}")
        case _:
            assert_never(outcome.end)
