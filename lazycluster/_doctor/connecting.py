"""Does a log-in come as far as the host's sshd? Configuration, jump host, name, port, host key.

ssh logs in once, with its debugging log, and each judge looks at how far it came. So the judges see the way that ssh
really takes, with everything that the user has configured.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs

from lazycluster._doctor.findings import Finding, failed, failed_from_error, ok, skipped
from lazycluster._doctor.login_trace import LoginAttempt, parse_trace
from lazycluster._processes.run import run_and_capture, run_daemonizing
from lazycluster._ssh.argv import effective_config_argv, login_attempt_argv, user_ssh_arguments
from lazycluster._ssh.config import EffectiveConfig, parse_effective_config
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.diagnosis import diagnose, start_failure
from lazycluster.exceptions import (
    ChangedHostKeyError,
    ConnectError,
    SshConfigurationError,
    UnknownHostError,
    UnknownHostKeyError,
)

CONFIGURATION_CHECK, JUMP_HOST_CHECK, NAME_CHECK, PORT_CHECK, HOST_KEY_CHECK = (
    "configuration",
    "jump host",
    "name",
    "port",
    "host key",
)
_SSH_G_TIMEOUT_SECONDS = 5.0
_JUMP_HOST_REASON_PREFIX = "seen from the jump host"


def read_effective_config(destination: Destination) -> EffectiveConfig:
    """Return the configuration that ssh would use for a host, as `ssh -G` prints it.

    Raises:
        ConnectError: If ssh is missing, or rejects the configuration.
    """
    try:
        ended = run_and_capture(effective_config_argv(destination), timeout=_SSH_G_TIMEOUT_SECONDS)
    except OSError as error:
        raise start_failure(destination.host, error) from error
    if ended.exit_code is None:
        reason = f"`ssh -G {destination.host}` did not end within {_SSH_G_TIMEOUT_SECONDS:g} s; does a Match exec hang?"
        raise SshConfigurationError(destination.host, reason)
    if ended.exit_code != 0:
        raise attempt_log_in(destination).error or SshConfigurationError(
            destination.host, f"ssh -G ended with exit status {ended.exit_code}"
        )
    return parse_effective_config(ended.stdout)


def attempt_log_in(destination: Destination) -> LoginAttempt:
    """Log in and out again within `connect_timeout`.

    Raises:
        ConnectError: If ssh cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="lazycluster-d-") as directory:
        argv = login_attempt_argv(destination, log_level="DEBUG1")
        try:
            ended = run_daemonizing(argv, Path(directory) / "said", timeout=destination.connect_timeout)
        except OSError as error:
            raise start_failure(destination.host, error) from error
    trace = parse_trace(ended.stderr)
    if ended.exit_code == 0 or trace.authenticated:
        return LoginAttempt(trace, is_hanging=ended.exit_code is None)
    diagnosis = diagnose(destination.host, ended.stderr, exit_code=ended.exit_code, timed_out=ended.exit_code is None)
    return LoginAttempt(trace, attrs.evolve(diagnosis, options=user_ssh_arguments(destination)))


def describe_proxy(config: EffectiveConfig) -> str:
    """Return the name of the proxy that leads to the host, '' if ssh connects directly."""
    if config.proxy_jump is not None:
        return f"the jump host {config.proxy_jump}"
    command = config.value("proxycommand")
    return "" if command is None else f"the ProxyCommand `{command}`"


def judge_configuration(config: EffectiveConfig) -> Finding:
    """Return the finding with the user, the address and the proxy that ssh uses."""
    through = f", through {describe_proxy(config)}" if describe_proxy(config) else ""
    return ok(CONFIGURATION_CHECK, f"ssh -G: {config.user}@{config.hostname}, port {config.port}{through}")


def judge_jump_host(config: EffectiveConfig, attempt: LoginAttempt) -> Finding:
    """Judge the way to a host that is reached through a proxy."""
    error = attempt.error
    if error is None or attempt.trace.server or _is_beyond_jump_host(error):
        return ok(JUMP_HOST_CHECK, f"{describe_proxy(config)} lets us through".removeprefix("the "))
    finding = failed_from_error(JUMP_HOST_CHECK, error)
    if config.proxy_jump is None:
        return failed(
            JUMP_HOST_CHECK, finding.found, f"Try the ProxyCommand by itself: `{config.value('proxycommand')}`."
        )
    first = config.proxy_jump.split(",")[0]
    return failed(JUMP_HOST_CHECK, finding.found, f"Examine it by itself first: `lazycluster doctor {first}`.")


def _is_beyond_jump_host(error: ConnectError) -> bool:
    return not error.hop and error.reason.startswith(_JUMP_HOST_REASON_PREFIX)


def judge_name(config: EffectiveConfig, attempt: LoginAttempt) -> Finding:
    """Judge whether the name of the host resolves."""
    if attempt.error is not None and isinstance(attempt.error, UnknownHostError):
        return failed_from_error(NAME_CHECK, attempt.error)
    if describe_proxy(config):
        return skipped(NAME_CHECK, f"{config.hostname} is looked up by {describe_proxy(config)}, not here")
    if not attempt.trace.tried_addresses and attempt.error is not None:
        return failed_from_error(NAME_CHECK, attempt.error)
    return ok(NAME_CHECK, ", ".join(dict.fromkeys(attempt.trace.tried_addresses)) or str(config.hostname))


def judge_port(config: EffectiveConfig, attempt: LoginAttempt) -> Finding:
    """Judge whether an sshd answers on the port."""
    server = "".join(attempt.trace.server[:1])
    if server or attempt.error is None:
        return ok(PORT_CHECK, f"{server or 'sshd'} answers on port {config.port}")
    finding = failed_from_error(PORT_CHECK, attempt.error)
    if attempt.trace.connected and type(attempt.error) is ConnectError:
        advice = "Is it the port of something else? Compare `ssh -G`, and look at sshd's log on the host."
        return failed(PORT_CHECK, f"port {config.port} is open, and no sshd answers on it: {finding.found}", advice)
    return finding


def judge_host_key(config: EffectiveConfig, attempt: LoginAttempt) -> Finding:
    """Judge whether the host shows a key that is known."""
    key = "".join(attempt.trace.host_key[:1])
    if attempt.trace.trusts_host or attempt.error is None:
        return ok(HOST_KEY_CHECK, f"{key} is the known one" if key else "accepted")
    finding = failed_from_error(HOST_KEY_CHECK, attempt.error)
    shown = f"{finding.found}; it shows {key}" if key else finding.found
    if isinstance(attempt.error, ChangedHostKeyError) and "revoked" in attempt.error.reason:
        return failed(
            HOST_KEY_CHECK, shown, "The key is marked as revoked: ask the administrator of the host for its new one."
        )
    if isinstance(attempt.error, ChangedHostKeyError):
        remove = f"ssh-keygen -R '{_known_hosts_name(config)}'"
        return failed(
            HOST_KEY_CHECK,
            shown,
            "A new machine under an old name, or an attack: make sure which. If it is expected, remove the old key "
            f"with `{remove}` (and -f FILE if it is not in ~/.ssh/known_hosts), then log in once and answer yes.",
        )
    if isinstance(attempt.error, UnknownHostKeyError):
        return failed(HOST_KEY_CHECK, shown, f"{finding.advice} Or set StrictHostKeyChecking accept-new for it.")
    if "no matching" in attempt.error.reason:
        return failed(
            HOST_KEY_CHECK,
            shown,
            "The sshd is so old that this ssh no longer takes its algorithms. Renew sshd there, or allow one of those "
            "that it offers for this host alone (HostKeyAlgorithms +..., KexAlgorithms +...).",
        )
    return finding


def _known_hosts_name(config: EffectiveConfig) -> str:
    """Return the name under which known_hosts has the host (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
    if config.host_key_alias is not None:
        return config.host_key_alias
    return str(config.hostname) if config.port in {22, None} else f"[{config.hostname}]:{config.port}"
