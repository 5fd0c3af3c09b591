"""The examination of a host: which checks there are, in which order, and which of them needs which."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from lazycluster._doctor.authentication import AUTHENTICATION, judge_authentication, key_files
from lazycluster._doctor.capacity import SESSIONS, count_sessions, judge_sessions
from lazycluster._doctor.files import FILES, judge_files, look_at_files
from lazycluster._doctor.findings import Course, Finding, skipped
from lazycluster._doctor.forwards import FROM_HOST, TO_HOST, judge_traffic, look_from_host, look_to_host
from lazycluster._doctor.link import (
    ROUND_TRIP,
    SUPERVISOR,
    Link,
    judge_round_trips,
    judge_supervisor,
    look_at_link,
    look_at_round_trips,
)
from lazycluster._doctor.login_shell import (
    LOGIN_SHELL,
    Shell,
    judge_hanging,
    judge_login_shell,
    judge_no_login_shell,
    look_at_shell,
)
from lazycluster._doctor.machine import CLOCK, TEMPORARY, judge_clock, judge_room, look_at_clock, look_at_room
from lazycluster._doctor.pythons import PYTHON, Here, judge_pythons, look_for_pythons
from lazycluster._doctor.reaching import (
    CONFIGURATION,
    HOST_KEY,
    JUMP_HOST,
    NAME,
    PORT,
    effective_config,
    judge_configuration,
    judge_host_key,
    judge_jump_host,
    judge_name,
    judge_port,
    log_in,
    way,
)
from lazycluster._doctor.trace import LogIn, Trace
from lazycluster._model.checks import absolute
from lazycluster._ssh.client import Sessions
from lazycluster._ssh.config import EffectiveConfig
from lazycluster._ssh.destination import Destination
from lazycluster._transports.per_command import PerStep
from lazycluster.connection import Connection
from lazycluster.exceptions import CommandTimeoutError, LoginShellError


def examine(
    host: str, *, config_file: Path | None = None, connect_timeout: float = 10.0, python: str | None = None
) -> Generator[Finding, None, None]:
    """Look step by step at why a host does not work, or works badly; yield each finding as it comes.

    Everything that is started is ended, and everything that is made is removed, at the end and when the iterator is
    closed before.

    Args:
        host: A name that `ssh` understands.
        config_file: The configuration to read instead of the user's and the system's (`ssh -F`).
        connect_timeout: Seconds within which a log-in succeeds or fails.
        python: The Python for functions on the host, as for `Runtime`.

    Raises:
        ValueError: A host or timeout that cannot be right.
    """
    path = None if config_file is None else absolute(config_file)
    to = Destination(host, config_file=path, connect_timeout=connect_timeout)
    return _Examination(to, python).findings()


class _Examination:
    """What is known so far, and the checks that add to it."""

    def __init__(self, to: Destination, python: str | None) -> None:
        self._to = to
        self._python = python
        self._course = Course()
        self._config = EffectiveConfig()
        self._login = LogIn(Trace())
        self._shell = Shell("")
        self._link: Link | None = None
        self._host = PerStep(
            Connection(to.host, config_file=to.config_file, connect_timeout=to.connect_timeout), python
        )

    def findings(self) -> Generator[Finding, None, None]:
        """Yield a finding for each check."""
        take = self._course.take
        try:
            yield take(CONFIGURATION, self._look_at_configuration)
            yield from self._log_in()
            reached = (AUTHENTICATION,)
            yield take(SESSIONS, self._count_sessions, needs=reached)
            yield take(LOGIN_SHELL, self._look_at_login_shell, needs=(SESSIONS,))
            working = (LOGIN_SHELL,)
            yield take(TEMPORARY, lambda: judge_room(look_at_room(self._sessions)), needs=working)
            yield take(PYTHON, self._look_for_python, needs=working)
            yield take(SUPERVISOR, self._look_at_supervisor, needs=(PYTHON,))
            yield take(ROUND_TRIP, self._look_at_round_trips, needs=reached)
            yield take(FILES, self._look_at_files, needs=(LOGIN_SHELL, TEMPORARY))
            # Without a shell there may be tunnels; but each would leave one more shell behind that hangs.
            tunnelling = (LOGIN_SHELL,) if self._login.hangs else reached
            yield take(FROM_HOST, self._look_from_host, needs=tunnelling)
            yield take(TO_HOST, self._look_to_host, needs=tunnelling)
            yield take(CLOCK, lambda: judge_clock(look_at_clock(self._sessions)), needs=working)
        finally:
            self._host.close()

    @property
    def _connection(self) -> Connection:
        return self._host.connection

    @property
    def _sessions(self) -> Sessions:
        return self._connection.sessions

    # On the way --------------------------------------------------------------------------------------------------

    def _look_at_configuration(self) -> Finding:
        self._config = effective_config(self._to)
        return judge_configuration(self._config)

    def _log_in(self) -> Iterator[Finding]:
        """Yield what one log-in tells; where it came no further, the rest is skipped."""
        config = self._config
        judges: dict[str, Callable[[LogIn], Finding]] = {
            **({JUMP_HOST: lambda login: judge_jump_host(config, login)} if way(config) else {}),
            NAME: lambda login: judge_name(config, login),
            PORT: lambda login: judge_port(config, login),
            HOST_KEY: lambda login: judge_host_key(config, login),
            AUTHENTICATION: lambda login: judge_authentication(config, login, key_files(login.trace.identity_files)),
        }
        needed = CONFIGURATION
        for number, (check, judge) in enumerate(judges.items()):

            def look(judge: Callable[[LogIn], Finding] = judge, first: bool = number == 0) -> Finding:
                if first:
                    self._login = log_in(self._to)
                return judge(self._login)

            yield self._course.take(check, look, needs=(needed,))
            needed = check

    # On the host -------------------------------------------------------------------------------------------------

    def _count_sessions(self) -> Finding:
        if self._login.hangs:
            return skipped(SESSIONS, "not counted, because the login shell hangs")
        return judge_sessions(count_sessions(self._sessions))

    def _look_at_login_shell(self) -> Finding:
        if self._login.hangs:
            return judge_hanging(self._to.host, f"`true` did not end within {self._to.connect_timeout:g} s")
        try:
            self._shell = look_at_shell(self._sessions)
        except (LoginShellError, CommandTimeoutError) as error:
            return judge_no_login_shell(error)
        return judge_login_shell(self._shell)

    def _look_for_python(self) -> Finding:
        return judge_pythons(look_for_pythons(self._sessions, self._python), self._python, Here())

    def _look_at_supervisor(self) -> Finding:
        self._link = look_at_link(self._connection, self._python)
        return judge_supervisor(self._link)

    def _look_at_round_trips(self) -> Finding:
        return judge_round_trips(self._link.round_trips if self._link else look_at_round_trips(self._sessions))

    def _look_at_files(self) -> Finding:
        return judge_files(look_at_files(self._connection), self._shell.stdout.strip())

    def _look_from_host(self) -> Finding:
        return judge_traffic(FROM_HOST, look_from_host(self._host, self._shell.server, self._config.port))

    def _look_to_host(self) -> Finding:
        lost = self._course.is_lost
        traffic = look_to_host(
            self._host, through_host=not lost(FROM_HOST), python=self._python, has_python=not lost(PYTHON)
        )
        return judge_traffic(TO_HOST, traffic)
