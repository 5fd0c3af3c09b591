"""The host that failed, and the reason, as the output and exit status of ssh and scp show them.

ssh has one exit status for all its failures, so its messages must be read. A host can print any text before the
log-in. So a diagnosis decides only about error messages and further tries, never about trust.
"""

from __future__ import annotations

import enum
import re
import signal
from collections.abc import Sequence

from lazycluster._ssh.messages import DIAGNOSIS_RULES, DiagnosisRule, clean_line, clean_lines, system_error_type
from lazycluster.exceptions import (
    AuthenticationError,
    ConnectError,
    ConnectionThrottledError,
    ConnectTimeoutError,
    SshNotFoundError,
)

UNNAMED_HOP = "a jump host"
"""The name of the failed hop if ssh does not say which of the jump hosts it was."""

# The jump host or ProxyCommand before the destination has ended: ssh has no peer to name then.
_RELAY_FAILED = re.compile(r"(?:Connection (?:closed|reset) by|(?:banner exchange: )?Connection to) UNKNOWN port")
_KEY_EXCHANGE_FAILED = re.compile(
    r"(?:kex|ssh)_exchange_identification: (?:read: |write: )?(?:Connection (?:closed|reset)|Broken pipe)"
    r"|.*(?:Exceeded MaxStartups|Not allowed at this time)"
)
_CLOSED_BY = re.compile(r"Connection (?:closed|reset) by (?P<hop>(?!UNKNOWN )\S+)")
_STDIO_FORWARDING_FAILED = re.compile(
    r"stdio forwarding failed|.*(?:mux_client_request_stdio_fwd|Stdio forwarding request fail)"
)
_CHANNEL_OPEN_FAILED = re.compile(r"channel \d+: open failed: (?P<code>[^:]+)(?:: (?P<why>.+))?")
# A ProxyCommand is any program: only a line with one of these words counts as its reason, or each banner would.
_ERROR_WORDS = re.compile(
    r"\b(?:errors?|err|fatal|fail(?:ed|ure)?|refused|denied|not found|no such|timed? ?out|unreachable|could not"
    r"|can ?not|can't|unable|unknown|invalid|bad)\b",
    re.IGNORECASE,
)
_UNANSWERED_PROMPT = re.compile(
    r"(?:\S+@(?P<hop>\S+)'s password|\(\S+?@(?P<asker>\S+)\) .*|password\b.*|enter passphrase .*):$", re.IGNORECASE
)


def diagnose(host: str, stderr: str, *, exit_code: int | None, timed_out: bool = False) -> ConnectError:
    """Return why ssh made no connection.

    Args:
        host: The destination as the user named it.
        stderr: The log of ssh (-E) and then its standard error, where the ssh of each jump host writes, too; or its
            output on a terminal.
        exit_code: Its exit status, negative for a signal; None if it had not ended.
        timed_out: Whether it was ended because its time was up.
    """
    lines = clean_lines(stderr)
    error = _apply_rules(host, lines) or _diagnose_jump_host(host, lines)
    if error is None and timed_out:
        error = _diagnose_timeout(host, lines, clean_line(stderr.rpartition("\n")[2]))
    return error or _diagnose_closed_connection(host, lines) or ConnectError(host, _last_lines(lines, exit_code))


def _apply_rules(host: str, lines: Sequence[str]) -> ConnectError | None:
    # If the relay broke, all other lines are those of the relay.
    relayed = any(_RELAY_FAILED.match(line) or _KEY_EXCHANGE_FAILED.match(line) for line in lines)
    for rule in DIAGNOSIS_RULES:
        for line in lines:
            match = rule.pattern.match(line)
            if match is not None:
                groups = match.groupdict()
                error_type = system_error_type(groups["why"]) if groups.get("why") else rule.error_type
                hop = (_strip_port(groups.get("hop")) or UNNAMED_HOP) if relayed else ""
                return error_type(host, _reason_with_details(rule, line, lines), hop)
    return None


def has_relay_failed(stderr: str) -> bool:
    """Return whether a jump host or ProxyCommand gave up, whose own words then say why."""
    return any(_RELAY_FAILED.match(line) for line in clean_lines(stderr))


def _strip_port(host: str | None) -> str:
    """Return a host without the brackets and port of `[host]:port`, as known_hosts has it (sshd(8))."""
    bracketed = re.fullmatch(r"\[(.+)\]:\d+", host or "")
    return bracketed[1] if bracketed else host or ""


def _reason_with_details(rule: DiagnosisRule, line: str, lines: Sequence[str]) -> str:
    """Return the decisive line with those that explain it."""
    details = [other for other in lines if rule.detail is not None and other != line and rule.detail.match(other)]
    return "; ".join([line.removeprefix("ssh: "), *dict.fromkeys(details)])


def _diagnose_jump_host(host: str, lines: Sequence[str]) -> ConnectError | None:
    """Diagnose a jump host that could not connect to the next hop."""
    if not any(_STDIO_FORWARDING_FAILED.match(line) for line in lines):
        return None
    opening = next(((line, match) for line in lines if (match := _CHANNEL_OPEN_FAILED.match(line))), None)
    if opening is None:
        return ConnectError(host, _last_lines(lines, None), UNNAMED_HOP)
    line, match = opening
    if match["code"] != "connect failed":
        return ConnectError(host, f"the jump host refuses to forward: {line}", UNNAMED_HOP)
    # Each relay after the failed hop reports a broken one. So with more than one it was not the destination.
    hop = UNNAMED_HOP if sum(1 for other in lines if _RELAY_FAILED.match(other)) > 1 else ""
    return system_error_type(match["why"] or "")(host, f"seen from the jump host: {line}", hop)


def _diagnose_timeout(host: str, lines: Sequence[str], prompt: str) -> ConnectError:
    """Diagnose an ssh that was still waiting; its prompt is the line that it had not ended."""
    match = _UNANSWERED_PROMPT.match(prompt)
    if match is not None and lines.count(prompt) > 1:
        return AuthenticationError(host, f"refused at {prompt!r}")
    if match is not None:
        return AuthenticationError(host, f"no answer to {prompt!r}", _strip_port(match["hop"] or match["asker"]))
    if prompt:
        return ConnectTimeoutError(host, f"ssh waited at {prompt!r}")
    touch = [line for line in lines if line.startswith("Confirm user presence")]
    return _diagnose_closed_connection(host, lines) or ConnectTimeoutError(host, "".join(touch[-1:]))


def _diagnose_closed_connection(host: str, lines: Sequence[str]) -> ConnectError | None:
    """Diagnose a connection that was closed, or given up, before the log-in began."""
    banner_timeout = next(
        (line for line in lines if line.startswith("Connection timed out during banner exchange")), None
    )
    if banner_timeout is not None:
        return ConnectTimeoutError(host, banner_timeout)
    broken = next((line for line in lines if _KEY_EXCHANGE_FAILED.match(line)), None)
    if broken is None:
        return None
    relayed = any(_RELAY_FAILED.match(line) for line in lines)
    named = next((match["hop"] for match in map(_CLOSED_BY.match, lines) if match), None)
    if not relayed or named is not None:
        return ConnectionThrottledError(host, broken, named or "" if relayed else "")
    # It was a ProxyCommand, which may have printed the reason, or the destination after it.
    words = [line for line in lines if not _is_broken_connection_line(line) and _ERROR_WORDS.search(line)]
    if words:
        return ConnectError(host, "; ".join(words[-3:]))
    return ConnectionThrottledError(host, f"{broken}, and the jump host or ProxyCommand did not say why")


def _is_broken_connection_line(line: str) -> bool:
    return bool(_RELAY_FAILED.match(line) or _KEY_EXCHANGE_FAILED.match(line))


def _last_lines(lines: Sequence[str], exit_code: int | None) -> str:
    if lines:
        return "; ".join(lines[-3:])
    if exit_code is None:
        return "ssh said nothing"
    return describe_exit("ssh", exit_code) + (" and said nothing" if exit_code >= 0 else "")


def describe_exit(program: str, exit_code: int | None) -> str:
    """Return how a local program ended, in words; `exit_code` is negative for a signal."""
    if exit_code is not None and exit_code < 0:
        return f"{program} was ended by signal {-exit_code}, {signal.strsignal(-exit_code)}"
    return f"{program} ended with exit status {exit_code}"


def start_failure(host: str, error: OSError) -> ConnectError:
    """Return why no ssh could be started here: it is missing, or this process has run out of a resource."""
    if isinstance(error, (FileNotFoundError, PermissionError)) and error.filename in {None, "ssh", "scp"}:
        return SshNotFoundError(host, str(error))
    return ConnectError(host, f"ssh cannot be started: {error}")


# Sessions through a master -------------------------------------------------------------------------------------------

_SESSION_REFUSED = re.compile(
    r"(?:mux_client_request_session: session request failed: |Master refused session request: )(?P<why>.+)"
    r"|(?P<open>.*\bSession open refused by peer.*)"
    r"|channel \d+: open failed: (?P<channel>(?:administratively prohibited|resource shortage|connect failed)"
    r": open failed.*)"
)
_COMMAND_NOT_STARTED = re.compile(
    r"Control socket connect\(.*\): |mux_client_hello_exchange: |muxclient: master hello exchange failed"
    r"|mux_client_request_session: (?:master alive|write packet|.*send fds)|mux_client_request_alive: "
    r"|(?:kex|ssh)_exchange_identification: |(?:banner exchange: )?Connection (?:closed by|reset by|to) UNKNOWN port"
)
_COMMAND_MAYBE_STARTED = re.compile(
    r"mux_client_request_session: (?:read from master|unexpected response)|mux_client_read_packet"
    r"|Control master terminated unexpectedly|Shared connection to .* closed|client_loop: |packet_write_wait: "
)


class LostCommandState(enum.Enum):
    """The state of a session's command after the loss of its master."""

    NOT_STARTED = "not started"
    MAYBE_STARTED = "may have started"


def session_refusal_reason(stderr: str) -> str | None:
    """Return why the host refused one more session on a connection (MaxSessions), or None if it did not."""
    for match in map(_SESSION_REFUSED.match, clean_lines(stderr)):
        if match is not None:
            return match["why"] or match["open"] or match["channel"]
    return None


def diagnose_lost_master(stderr: str) -> LostCommandState | None:
    """Return the state of the command if a session reports that its master is missing or lost, otherwise None.

    A session that has reached its master and then loses it ends with 255 and prints nothing at all (measured with
    OpenSSH 9.2): None together with that status means that the command may have started.

    Args:
        stderr: The messages of the client before the command began, without the command's own output. The client must
            have been kept from a connection of its own (ProxyCommand=false).
    """
    lines = clean_lines(stderr)
    if session_refusal_reason(stderr) is not None:
        return None
    if any(_COMMAND_MAYBE_STARTED.match(line) for line in lines):
        return LostCommandState.MAYBE_STARTED
    return LostCommandState.NOT_STARTED if any(_COMMAND_NOT_STARTED.match(line) for line in lines) else None


def find_unsupported_options(stderr: str) -> frozenset[str]:
    """Return the keywords, in lower case, given with -o that this ssh does not know.

    ssh stops at the first, so the next attempt may name another. Keywords in the user's own files are not returned: the
    library never leaves those out.
    """
    pattern = re.compile(r"command-line:? line 0: Bad configuration option: (\S+)")
    return frozenset(match[1].lower() for match in map(pattern.match, clean_lines(stderr)) if match)


# Forwardings and files -----------------------------------------------------------------------------------------------

_LOCAL_LISTEN_FAILED = re.compile(
    r"bind \S+: |channel_setup_fwd_listener\w*: cannot listen|Could not request local forwarding"
)
_REMOTE_LISTEN_FAILED = re.compile(
    r".*(?:remote port forwarding failed for listen p|Could not request remote forwarding)"
)


class ForwardingFailure(enum.Enum):
    """Why a forwarding does not carry traffic."""

    LOCAL_LISTEN = "the port to listen on is taken on this machine"
    REMOTE_LISTEN = "the host does not listen on the port: it is taken there, or not allowed"
    PROHIBITED = "the host does not allow the forwarding"
    NO_ANSWER = "the host forwards, and nothing answers at the far end"


def diagnose_forwarding(log: str) -> ForwardingFailure | None:
    """Return why a forwarding failed, from the log of the ssh that made it; of several reasons the gravest.

    A remote forwarding that is not allowed and one whose port is taken read the same (RFC 4254, section 7.1).
    """
    lines = clean_lines(log)
    if any(_LOCAL_LISTEN_FAILED.match(line) for line in lines):
        return ForwardingFailure.LOCAL_LISTEN
    if any(_REMOTE_LISTEN_FAILED.match(line) for line in lines):
        return ForwardingFailure.REMOTE_LISTEN
    opened = [(match["code"], match["why"]) for match in map(_CHANNEL_OPEN_FAILED.match, lines) if match]
    if any(code in {"administratively prohibited", "unknown channel type"} for code, _ in opened):
        return ForwardingFailure.PROHIBITED
    # The reason "open failed" is not about a forwarding: sshd refuses a session above MaxSessions in these words.
    return ForwardingFailure.NO_ANSWER if any(why != "open failed" for _, why in opened) else None


_DISK_FULL_HINT = "disk full, or over quota?"


def scp_failure_reason(stderr: str) -> str:
    """Return why a file could not be copied, as one line of scp; '' if scp gave no reason."""
    lines = clean_lines(stderr)
    scp_lines = [line.removeprefix("scp: ") for line in lines if line.startswith("scp: ")]
    scp_lines = [line for line in scp_lines if not line.startswith(("failed to upload", "Connection closed"))]
    others = [
        line
        for line in lines
        if not line.startswith("scp: ") and not _is_broken_connection_line(line) and line != "lost connection"
    ]
    reason = next(iter(scp_lines or others[-1:] or lines), "").removeprefix("scp: ").removeprefix("ssh: ")
    if reason.startswith("Received message too long"):  # scp took the output of a start-up file for a length
        return ": ".join([reason, *scp_lines[1:2]])
    # SFTP version 3 has no status for a full disk: "Failure" (draft-ietf-secsh-filexfer-02, section 7).
    return f"{reason} ({_DISK_FULL_HINT})" if re.match(r"write remote .*: Failure$", reason) else reason


def tar_failure_reason(stderr: str) -> str:
    """Return why a tree could not be copied, as lines of the host's tar; '' if tar gave no reason."""
    lines = [
        line for line in clean_lines(stderr) if not line.endswith("Exiting with failure status due to previous errors")
    ]
    disk_full = any(re.search(r": Wrote only \d+ of \d+ bytes$", line) for line in lines)  # GNU tar's words for it
    return "; ".join(lines[-5:]) + (f" ({_DISK_FULL_HINT})" if disk_full else "")
