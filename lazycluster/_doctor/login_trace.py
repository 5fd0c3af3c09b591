"""How far a log-in came, in the words of ssh's debugging log. Pure.

ssh writes these sentences for people, and changes them between versions. An unknown one is left out. A judgement that
needs it falls back on the reason for which ssh ended (`_ssh.diagnosis`).
"""

from __future__ import annotations

import re

import attrs

from lazycluster.exceptions import ConnectError

_DEBUG_LOG_PATTERNS = {
    "tried_addresses": r"debug1: Connecting to (?P<it>\S+ \[\S+\] port \d+)\.",
    "connected": r"debug1: (?P<it>Connection established)\.",
    "server": r"debug1: Remote protocol version \S+ remote software version (?P<it>.+)",
    "host_key": r"debug1: Server host key: (?P<it>.+)",
    "key_exchange": r"debug1: (?P<it>SSH2_MSG_NEWKEYS received)",
    "identity_files": r"debug1: identity file (?P<it>.+) type -?\d+",
    "agent_messages": r"debug1: get_agent_identities: (?P<it>agent returned \d+ keys|\S+: .+)",
    "methods": r"debug1: Authentications that can continue: (?P<it>\S+)",
    "offered_keys": r"debug1: Offering public key: (?P<it>.+)",
    "accepted_keys": r"debug1: Server accepts key: (?P<it>.+)",
    "authenticated": r"(?:debug1: Authentication succeeded \((?P<it>[^)]+)\)"
    r"|Authenticated to .+ using \"(?P<this>[^\"]+)\")",
}
_DEBUG_LOG_REGEXES = {name: re.compile(pattern) for name, pattern in _DEBUG_LOG_PATTERNS.items()}


@attrs.frozen
class LoginTrace:
    """The steps that a log-in took, in ssh's words; an empty tuple for a step that it did not reach.

    `tried_addresses` are the addresses to which the local ssh tried to connect (an empty tuple with a jump host).
    `identity_files` are the private keys that ssh looked for. `offered_keys` and `accepted_keys` are the public keys
    that it showed the host and that the host knows.
    """

    tried_addresses: tuple[str, ...] = ()
    connected: tuple[str, ...] = ()
    server: tuple[str, ...] = ()
    host_key: tuple[str, ...] = ()
    key_exchange: tuple[str, ...] = ()
    identity_files: tuple[str, ...] = ()
    agent_messages: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    offered_keys: tuple[str, ...] = ()
    accepted_keys: tuple[str, ...] = ()
    authenticated: tuple[str, ...] = ()

    @property
    def trusts_host(self) -> bool:
        """Whether ssh accepted the host key: keys are exchanged only then."""
        return bool(self.key_exchange or self.methods or self.authenticated)


def parse_trace(text: str) -> LoginTrace:
    """Read the log of `ssh -o LogLevel=DEBUG1`."""
    steps: dict[str, tuple[str, ...]] = {}
    for line in text.replace("\r", "\n").split("\n"):
        for name, pattern in _DEBUG_LOG_REGEXES.items():
            match = pattern.match(line.strip())
            if match is not None:
                step = next(group for group in match.groups() if group is not None)
                steps[name] = (*steps.get(name, ()), step)
    return LoginTrace(**steps)


@attrs.frozen
class LoginAttempt:
    """One attempt to log in: how far it came, and the error that ended it, None if it succeeded.

    It hangs if it succeeded and the command `true` did not end in time.
    """

    trace: LoginTrace
    error: ConnectError | None = None
    is_hanging: bool = False
