"""The examination of a host: the checks, their order, and the checks that each of them needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from lazycluster._doctor.authentication import AUTHENTICATION_CHECK, find_key_files, judge_authentication
from lazycluster._doctor.clock import CLOCK_CHECK, judge_clock, probe_clock
from lazycluster._doctor.connecting import (
    CONFIGURATION_CHECK,
    HOST_KEY_CHECK,
    JUMP_HOST_CHECK,
    NAME_CHECK,
    PORT_CHECK,
    attempt_log_in,
    describe_proxy,
    judge_configuration,
    judge_host_key,
    judge_jump_host,
    judge_name,
    judge_port,
    read_effective_config,
)
from lazycluster._doctor.findings import CheckRunner, Finding, skipped
from lazycluster._doctor.latency import (
    ROUND_TRIP_CHECK,
    SUPERVISOR_CHECK,
    SupervisorProbe,
    judge_round_trips,
    judge_supervisor,
    measure_round_trips,
    probe_supervisor,
)
from lazycluster._doctor.login_shell import (
    LOGIN_SHELL_CHECK,
    LoginShellProbe,
    judge_failed_login_shell,
    judge_hanging_login_shell,
    judge_login_shell,
    probe_login_shell,
)
from lazycluster._doctor.login_trace import LoginAttempt, LoginTrace
from lazycluster._doctor.port_forwarding import (
    PORTS_FROM_HOST_CHECK,
    PORTS_TO_HOST_CHECK,
    judge_forwarding,
    probe_port_from_host,
    probe_port_to_host,
)
from lazycluster._doctor.pythons import PYTHON_CHECK, LocalPython, find_pythons, judge_pythons
from lazycluster._doctor.sessions import SESSIONS_CHECK, count_sessions, judge_sessions
from lazycluster._doctor.temp_dir import TEMPORARY_DIRECTORY_CHECK, judge_temp_dir, probe_temp_dir
from lazycluster._doctor.transfers import FILES_CHECK, judge_files, probe_files
from lazycluster._model.checks import absolute_path
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.config import EffectiveConfig
from lazycluster._ssh.destination import Destination
from lazycluster._transports.per_command import PerCommandTransport
from lazycluster.exceptions import CommandTimeoutError, LoginShellError


def examine(
    host: str, *, config_file: Path | None, connect_timeout: float = 10.0, python: str | None = None
) -> Generator[Finding, None, None]:
    """Look step by step at why a host does not work, or works badly; yield each finding as it comes.

    Everything that is started is ended, and everything that is made is removed, at the end or when the iterator is
    closed earlier.

    Args:
        host: A name that `ssh` understands.
        config_file: The configuration to read instead of the user's and the system's (`ssh -F`).
        connect_timeout: Seconds within which a log-in succeeds or fails.
        python: The Python for functions on the host, as for `Runtime`.

    Raises:
        ValueError: If the host or the timeout is invalid.
    """
    path = None if config_file is None else absolute_path(config_file)
    destination = Destination(host, config_file=path, connect_timeout=connect_timeout)
    return _Examination(destination, python).findings()


_GRACE_SECONDS = 1.0
"""Seconds between SIGTERM and SIGKILL for processes that an examination has to end."""


class _Examination:
    """The findings so far, and the checks that add to them."""

    def __init__(self, destination: Destination, python: str | None) -> None:
        self._destination = destination
        self._python = python
        self._checks = CheckRunner()
        self._config = EffectiveConfig()
        self._attempt = LoginAttempt(LoginTrace())
        self._login_shell = LoginShellProbe("")
        self._supervisor: SupervisorProbe | None = None
        self._transport = PerCommandTransport(SshClient(destination, grace=_GRACE_SECONDS), python)

    def findings(self) -> Generator[Finding, None, None]:
        """Yield a finding for each check."""
        run = self._checks.run
        try:
            yield run(CONFIGURATION_CHECK, self._check_configuration)
            yield from self._check_log_in()
            needs_log_in = (AUTHENTICATION_CHECK,)
            yield run(SESSIONS_CHECK, self._check_sessions, needs=needs_log_in)
            yield run(LOGIN_SHELL_CHECK, self._check_login_shell, needs=(SESSIONS_CHECK,))
            needs_login_shell = (LOGIN_SHELL_CHECK,)
            yield run(
                TEMPORARY_DIRECTORY_CHECK,
                lambda: judge_temp_dir(probe_temp_dir(self._sessions)),
                needs=needs_login_shell,
            )
            yield run(PYTHON_CHECK, self._check_python, needs=needs_login_shell)
            yield run(SUPERVISOR_CHECK, self._check_supervisor, needs=(PYTHON_CHECK,))
            yield run(ROUND_TRIP_CHECK, self._check_round_trips, needs=needs_log_in)
            yield run(FILES_CHECK, self._check_files, needs=(LOGIN_SHELL_CHECK, TEMPORARY_DIRECTORY_CHECK))
            # Tunnels may work without a shell, but each would leave one more hanging shell behind.
            needs_for_tunnels = (LOGIN_SHELL_CHECK,) if self._attempt.is_hanging else needs_log_in
            yield run(PORTS_FROM_HOST_CHECK, self._check_ports_from_host, needs=needs_for_tunnels)
            yield run(PORTS_TO_HOST_CHECK, self._check_ports_to_host, needs=needs_for_tunnels)
            yield run(CLOCK_CHECK, lambda: judge_clock(probe_clock(self._sessions)), needs=needs_login_shell)
        finally:
            self._transport.close()

    @property
    def _sessions(self) -> SshClient:
        return self._transport.ssh_client

    # Log-in ------------------------------------------------------------------------------------------------------

    def _check_configuration(self) -> Finding:
        self._config = read_effective_config(self._destination)
        return judge_configuration(self._config)

    def _check_log_in(self) -> Iterator[Finding]:
        """Yield the findings of one log-in; after a failure the rest is skipped."""
        config = self._config
        judges: dict[str, Callable[[LoginAttempt], Finding]] = {
            **({JUMP_HOST_CHECK: lambda login: judge_jump_host(config, login)} if describe_proxy(config) else {}),
            NAME_CHECK: lambda login: judge_name(config, login),
            PORT_CHECK: lambda login: judge_port(config, login),
            HOST_KEY_CHECK: lambda login: judge_host_key(config, login),
            AUTHENTICATION_CHECK: lambda login: judge_authentication(
                config, login, find_key_files(login.trace.identity_files), os.environ
            ),
        }
        previous_check = CONFIGURATION_CHECK
        for number, (check, judge) in enumerate(judges.items()):

            def judge_attempt(judge: Callable[[LoginAttempt], Finding] = judge, first: bool = number == 0) -> Finding:
                if first:
                    self._attempt = attempt_log_in(self._destination)
                return judge(self._attempt)

            yield self._checks.run(check, judge_attempt, needs=(previous_check,))
            previous_check = check

    # On the host -------------------------------------------------------------------------------------------------

    def _check_sessions(self) -> Finding:
        if self._attempt.is_hanging:
            return skipped(SESSIONS_CHECK, "not counted, because the login shell hangs")
        return judge_sessions(count_sessions(self._sessions))

    def _check_login_shell(self) -> Finding:
        if self._attempt.is_hanging:
            return judge_hanging_login_shell(
                self._destination.host, f"`true` did not end within {self._destination.connect_timeout:g} s"
            )
        try:
            self._login_shell = probe_login_shell(self._sessions)
        except (LoginShellError, CommandTimeoutError) as error:
            return judge_failed_login_shell(error)
        return judge_login_shell(self._login_shell)

    def _check_python(self) -> Finding:
        return judge_pythons(find_pythons(self._sessions, self._python), self._python, LocalPython())

    def _check_supervisor(self) -> Finding:
        self._supervisor = probe_supervisor(self._sessions, self._python)
        return judge_supervisor(self._supervisor)

    def _check_round_trips(self) -> Finding:
        return judge_round_trips(
            self._supervisor.round_trip_seconds if self._supervisor else measure_round_trips(self._sessions)
        )

    def _check_files(self) -> Finding:
        return judge_files(probe_files(self._sessions), self._login_shell.stdout.strip())

    def _check_ports_from_host(self) -> Finding:
        return judge_forwarding(
            PORTS_FROM_HOST_CHECK,
            probe_port_from_host(self._transport, self._login_shell.server_address, self._config.port),
        )

    def _check_ports_to_host(self) -> Finding:
        has_failed = self._checks.has_failed
        traffic = probe_port_to_host(
            self._transport,
            use_second_tunnel=not has_failed(PORTS_FROM_HOST_CHECK),
            python=self._python,
            has_python=not has_failed(PYTHON_CHECK),
        )
        return judge_forwarding(PORTS_TO_HOST_CHECK, traffic)
