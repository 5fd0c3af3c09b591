"""Does a log-in come as far as the host's sshd? Configuration, jump host, name, port, host key.

ssh is asked to log in once, with its debugging log, and each judge looks at how far it came: so what is judged is the
way that ssh really takes, with everything that the user has configured.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs

from lazycluster._doctor.findings import Finding, failed, from_error, ok, skipped
from lazycluster._doctor.trace import LogIn, parse_trace
from lazycluster._processes import run_detaching, run_to_end
from lazycluster._ssh.argv import attempt_argv, by_hand, effective_argv
from lazycluster._ssh.config import EffectiveConfig, parse_effective
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.diagnosis import cannot_start, diagnose
from lazycluster.exceptions import (
    ChangedHostKeyError,
    ConnectError,
    SshConfigurationError,
    UnknownHostError,
    UnknownHostKeyError,
)

CONFIGURATION, JUMP_HOST, NAME, PORT, HOST_KEY = "configuration", "jump host", "name", "port", "host key"
_ANSWER_TIMEOUT = 5.0
_BEHIND = "seen from the jump host"


def effective_config(to: Destination) -> EffectiveConfig:
    """Ask ssh what its whole configuration says about a host.

    Raises:
        ConnectError: ssh is missing, or cannot make anything of it.
    """
    try:
        ended = run_to_end(effective_argv(to), seconds=_ANSWER_TIMEOUT)
    except OSError as error:
        raise cannot_start(to.host, error) from error
    if ended.status is None:
        reason = f"`ssh -G {to.host}` did not end within {_ANSWER_TIMEOUT:g} s; does a Match exec hang?"
        raise SshConfigurationError(to.host, reason)
    if ended.status != 0:
        raise log_in(to).error or SshConfigurationError(to.host, f"ssh -G ended with exit status {ended.status}")
    return parse_effective(ended.text)


def log_in(to: Destination) -> LogIn:
    """Log in and out again within `connect_timeout`.

    Raises:
        ConnectError: ssh cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="lazycluster-d-") as directory:
        argv = attempt_argv(to, log_level="DEBUG1")
        try:
            ended = run_detaching(argv, Path(directory) / "said", seconds=to.connect_timeout)
        except OSError as error:
            raise cannot_start(to.host, error) from error
    trace = parse_trace(ended.text)
    if ended.status == 0 or trace.authenticated:
        return LogIn(trace, hangs=ended.status is None)
    diagnosis = diagnose(to.host, ended.text, status=ended.status, timed_out=ended.status is None)
    return LogIn(trace, attrs.evolve(diagnosis, options=by_hand(to)))


def way(config: EffectiveConfig) -> str:
    """Return what leads to the host, '' where it is dialled from here."""
    if config.proxy_jump is not None:
        return f"the jump host {config.proxy_jump}"
    command = config.value("proxycommand")
    return "" if command is None else f"the ProxyCommand `{command}`"


def judge_configuration(config: EffectiveConfig) -> Finding:
    """Say who logs in where, and on which way."""
    through = f", through {way(config)}" if way(config) else ""
    return ok(CONFIGURATION, f"ssh -G: {config.user}@{config.hostname}, port {config.port}{through}")


def judge_jump_host(config: EffectiveConfig, login: LogIn) -> Finding:
    """Judge the way to a host that is not dialled from here."""
    error = login.error
    if error is None or login.trace.server or _is_behind(error):
        return ok(JUMP_HOST, f"{way(config)} lets us through".removeprefix("the "))
    finding = from_error(JUMP_HOST, error)
    if config.proxy_jump is None:
        return failed(JUMP_HOST, finding.found, f"Try the ProxyCommand by itself: `{config.value('proxycommand')}`.")
    first = config.proxy_jump.split(",")[0]
    return failed(JUMP_HOST, finding.found, f"Examine it by itself first: `lazycluster doctor {first}`.")


def _is_behind(error: ConnectError) -> bool:
    return not error.hop and error.reason.startswith(_BEHIND)


def judge_name(config: EffectiveConfig, login: LogIn) -> Finding:
    """Judge whether the name of the host resolves."""
    if login.error is not None and isinstance(login.error, UnknownHostError):
        return from_error(NAME, login.error)
    if way(config):
        return skipped(NAME, f"{config.hostname} is looked up by {way(config)}, not here")
    if not login.trace.dialled and login.error is not None:
        return from_error(NAME, login.error)
    return ok(NAME, ", ".join(dict.fromkeys(login.trace.dialled)) or str(config.hostname))


def judge_port(config: EffectiveConfig, login: LogIn) -> Finding:
    """Judge whether an sshd answers on the port."""
    server = "".join(login.trace.server[:1])
    if server or login.error is None:
        return ok(PORT, f"{server or 'sshd'} answers on port {config.port}")
    finding = from_error(PORT, login.error)
    if login.trace.connected and type(login.error) is ConnectError:
        asked = "Is it the port of something else? Compare `ssh -G`, and look at sshd's log on the host."
        return failed(PORT, f"port {config.port} is open, and no sshd answers on it: {finding.found}", asked)
    return finding


def judge_host_key(config: EffectiveConfig, login: LogIn) -> Finding:
    """Judge whether the host is the one that it was."""
    key = "".join(login.trace.host_key[:1])
    if login.trace.trusts_host or login.error is None:
        return ok(HOST_KEY, f"{key} is the known one" if key else "accepted")
    finding = from_error(HOST_KEY, login.error)
    shown = f"{finding.found}; it shows {key}" if key else finding.found
    if isinstance(login.error, ChangedHostKeyError) and "revoked" in login.error.reason:
        return failed(HOST_KEY, shown, "The key is marked as revoked: ask whoever runs the host for its new one.")
    if isinstance(login.error, ChangedHostKeyError):
        remove = f"ssh-keygen -R '{_known_name(config)}'"
        return failed(
            HOST_KEY,
            shown,
            "A new machine under an old name, or an attack: make sure which. If it is expected, remove the old key "
            f"with `{remove}` (and -f FILE where it is not in ~/.ssh/known_hosts), then log in once and answer yes.",
        )
    if isinstance(login.error, UnknownHostKeyError):
        return failed(HOST_KEY, shown, f"{finding.advice} Or set StrictHostKeyChecking accept-new for it.")
    if "no matching" in login.error.reason:
        return failed(
            HOST_KEY,
            shown,
            "An old sshd, and a ssh that has left its algorithms behind: renew sshd there, or allow one of those that "
            "it offers for this host alone (HostKeyAlgorithms +..., KexAlgorithms +...).",
        )
    return finding


def _known_name(config: EffectiveConfig) -> str:
    """Return the name under which known_hosts has the host (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
    if config.host_key_alias is not None:
        return config.host_key_alias
    return str(config.hostname) if config.port in {22, None} else f"[{config.hostname}]:{config.port}"
