"""The messages of OpenSSH's client: cleaned lines, and the rules that decide why a connection failed.

They are English in every locale, since ssh loads no translations. They differ between versions (5.x to 10.x), and with
the system's own messages (strerror, getaddrinfo). The tests name where each was seen.
"""

from __future__ import annotations

import re

import attrs

from lazycluster.exceptions import (
    AuthenticationError,
    ChangedHostKeyError,
    ConnectError,
    ConnectTimeoutError,
    HostUnreachableError,
    PortRefusedError,
    SshConfigurationError,
    UnknownHostError,
    UnknownHostKeyError,
)

# Escape sequences (ECMA-48) and control characters, which a host may send to a terminal in a banner.
_ESCAPES_AND_CONTROL_CHARACTERS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x09\x0b-\x1f\x7f-\x9f]"
)
_MAX_LINE_CHARACTERS = 2000
_IRRELEVANT_LINE = re.compile(
    r"debug\d: |Authenticated to |Transferred: |Bytes per second: |Warning: Permanently added |\*\* |@{5}"
    r"|Pseudo-terminal will not |Killed by signal|Could not create directory '|Failed to add the host to the list"
    r"|Connection to \S+ closed"
)

# Why a connection to a port failed, in the words of Linux, macOS and the BSDs.
_SYSTEM_ERRORS: tuple[tuple[re.Pattern[str], type[ConnectError]], ...] = (
    (re.compile(r"Connection refused"), PortRefusedError),
    (re.compile(r"(?:Connection|Operation) timed out"), ConnectTimeoutError),
    (re.compile(r"No route to host|(?:Network|Host) is (?:unreachable|down)|Can.?not assign"), HostUnreachableError),
    (re.compile(r"Can't assign requested address"), HostUnreachableError),
    (re.compile(r"Name or service|nodename nor|name resolution|No address assoc|Name does not"), UnknownHostError),
)


@attrs.frozen
class DiagnosisRule:
    """A line that decides the diagnosis. Its group `hop` is the host concerned, `why` the message of the system.

    `detail` matches the lines that explain this one.
    """

    pattern: re.Pattern[str]
    error_type: type[ConnectError]
    detail: re.Pattern[str] | None = None

    @classmethod
    def for_patterns(
        cls, error_type: type[ConnectError], *patterns: str, detail: str | None = None
    ) -> tuple[DiagnosisRule, ...]:
        """Return rules for several lines of the same meaning."""
        explained = None if detail is None else re.compile(detail)
        return tuple(cls(re.compile(pattern), error_type, explained) for pattern in patterns)


# In the order of their weight: of two lines that match, the one of the earlier rule is the cause, the other its effect.
DIAGNOSIS_RULES: tuple[DiagnosisRule, ...] = (
    *DiagnosisRule.for_patterns(
        SshConfigurationError,
        # Not "bash: line 1: ...", the shell of a ProxyCommand, nor "Unsupported option", which is only a warning.
        r"(?:command-line|\S.*?):? line \d+: (?:Bad |bad |Missing |missing |Invalid |invalid |unsupported |no argument "
        r"|garbage |extra |keyword |integer value|Unknown |unknown |Too many|too many|Directive )",
        r"\S.*: terminating, \d+ bad configuration option",
        r"(?:Bad owner or permissions on|Can't open user config file|Couldn't open logfile|Too many recursive config)",
        r"(?:Bad (?:configuration|port|local|remote|dynamic|stdio|escape|-\S)|Invalid -\w argument|Unknown cipher)",
        r"(?:ssh: )?(?:unknown|illegal) option -- |(?:ssh: )?option requires an argument -- ",
        r"(?:ControlPath|unix_listener: path) .*too long",
    ),
    *DiagnosisRule.for_patterns(
        ChangedHostKeyError,
        r"(?:\S+ host|Host) key for (?P<hop>\S+) has changed and you have requested",
        r"\S+ host key for (?P<hop>\S+) was revoked and you have requested",
        r"\S+ authentication is disabled to avoid man-in-the-middle attacks",
        detail=r"Offending .* in ",
    ),
    *DiagnosisRule.for_patterns(
        UnknownHostKeyError,
        r"No .*host key is known for (?P<hop>\S+) and you have requested",
        r"The authenticity of host '(?P<hop>\S+)(?: \(.*\))?' can't be established",
        r"Host key verification failed|Are you sure you want to continue connecting",
        detail=r"\S+ key fingerprint is ",
    ),
    *DiagnosisRule.for_patterns(
        UnknownHostError,
        r"ssh: Could not resolve hostname (?P<hop>.+): [^:]+$",
        r"hostname contains invalid characters",
    ),
    *DiagnosisRule.for_patterns(
        AuthenticationError,
        r"(?:\S+@(?P<hop>\S+): )?Permission denied \(.*\)",
        r"Received disconnect from (?P<hop>\S+) port \d+:\s?2: ?Too many authentication failures",
        r".*(?:Too many authentication failures|No more authentication methods)",
        r"(?:Your |User |The )?account (?:\S+ )?(?:has|is) (?:expired|been locked|been disabled|locked|disabled)",
        r".*(?:required to change your password|password has expired|Password change required)",
        r"Permission denied, please try again",
        detail=r"Load key \"|no such identity: |sign_and_send_pubkey: |Warning: Identity file .* not accessible"
        r"|.*no mutual signature",
    ),
    *DiagnosisRule.for_patterns(
        ConnectTimeoutError,
        r"Connection to (?P<hop>(?!UNKNOWN )\S+) port \d+ timed out",
        r"ssh_dispatch_run_fatal: Connection to (?P<hop>(?!UNKNOWN )\S+) .*timed out",
        r"Timeout, server (?P<hop>(?!UNKNOWN )\S+) not responding",
    ),
    *DiagnosisRule.for_patterns(
        ConnectError,
        r"ssh: connect to (?:host|address) (?P<hop>\S+) port \d+: (?P<why>.+)",
        r"Unable to negotiate with (?P<hop>\S+)(?: port \d+)?: .+",
        detail=r"bind \S+: ",
    ),
)


def clean_line(text: str) -> str:
    """Return a line, or the beginning of a huge one, without escape sequences, control characters and space around."""
    return _ESCAPES_AND_CONTROL_CHARACTERS.sub("", text[:_MAX_LINE_CHARACTERS].replace("\t", " ")).strip()


def clean_lines(text: str) -> list[str]:
    """Return the lines, cleaned, without those that are empty or never a reason."""
    lines = (clean_line(line) for line in text.replace("\r", "\n").split("\n"))
    return [line for line in lines if line and not _IRRELEVANT_LINE.match(line)]


def system_error_type(why: str) -> type[ConnectError]:
    """Return the error for the system's reason why a connection to a port failed."""
    return next((kind for pattern, kind in _SYSTEM_ERRORS if pattern.search(why)), ConnectError)
