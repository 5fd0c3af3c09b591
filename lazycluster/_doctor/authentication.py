"""Does the host let us in, and if it does not, which key is missing where?"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from lazycluster._doctor.findings import Finding, failed, from_error, ok
from lazycluster._doctor.trace import LogIn, Trace
from lazycluster._ssh.config import EffectiveConfig
from lazycluster.exceptions import AuthenticationError

AUTHENTICATION = "authentication"
_MAGIC = b"openssh-key-v1\0"
_KEY_SIZE = 1 << 16
_OTHERS = 0o077


@attrs.frozen
class KeyFile:
    """A private key on this machine."""

    path: str
    mode: int
    encrypted: bool

    @property
    def is_open(self) -> bool:
        """Tell whether others may read it, so that ssh does not use it."""
        return bool(self.mode & _OTHERS)


def is_encrypted(text: str) -> bool:
    """Tell whether a private key has a passphrase: OpenSSH's own format (PROTOCOL.key), PKCS#8, or PEM."""
    if "ENCRYPTED" in text:
        return True
    lines = [line for line in text.splitlines() if not line.startswith("-----")]
    try:
        data = base64.b64decode("".join(lines), validate=True)
    except (binascii.Error, ValueError):
        return False
    if not data.startswith(_MAGIC):
        return False
    size = int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 4], "big")
    return data[len(_MAGIC) + 4 : len(_MAGIC) + 4 + size] != b"none"


def key_files(paths: Sequence[str]) -> tuple[KeyFile, ...]:
    """Return those of the private keys that are there."""
    found = []
    for path in dict.fromkeys(paths):
        try:
            mode = stat.S_IMODE(Path(path).stat().st_mode)
            with Path(path).open(encoding="ascii", errors="replace") as file:
                text = file.read(_KEY_SIZE)
        except OSError:
            continue
        if "PRIVATE KEY" in text:
            found.append(KeyFile(path, mode, is_encrypted(text)))
    return tuple(found)


def judge_authentication(
    config: EffectiveConfig, login: LogIn, keys: Sequence[KeyFile], environment: Mapping[str, str] = os.environ
) -> Finding:
    """Judge how the host took what we have, and say what is missing."""
    trace, error = login.trace, login.error
    if error is None:
        method = "".join(trace.authenticated[-1:])
        key = f", {trace.accepted[-1].removesuffix(' explicit')}" if trace.accepted and "publickey" in method else ""
        return ok(AUTHENTICATION, f"{method or 'logged in'}{key}")
    if not isinstance(error, AuthenticationError):
        return from_error(AUTHENTICATION, error)
    methods = trace.methods[-1] if trace.methods else "not known"
    offered = ", ".join(trace.offered) if trace.offered else "none"
    there = ", ".join(key.path for key in keys) or "none"
    found = (
        f"{config.user} is refused; the host takes {methods}; keys offered: {offered}; private keys here: {there}; "
        f"{agent_state(trace, environment)}"
    )
    return failed(AUTHENTICATION, found, " ".join(_advice(error, trace, keys, methods.split(","), environment)))


def agent_state(trace: Trace, environment: Mapping[str, str]) -> str:
    """Say whether an agent is there and has keys."""
    said = [line for line in trace.agent if "bound agent" not in line]
    if any(line.startswith("agent returned") for line in said):
        return f"{said[-1]}"
    if any("no identities" in line for line in said):
        return "an agent without keys"
    if said:
        return f"an agent that does not answer ({said[-1]})"
    return "no agent" if not environment.get("SSH_AUTH_SOCK") else "an agent"


def _advice(
    error: AuthenticationError,
    trace: Trace,
    keys: Sequence[KeyFile],
    methods: Sequence[str],
    environment: Mapping[str, str],
) -> list[str]:
    """Return what to do, the likeliest first."""
    advice = [
        f"Others may read {key.path}, so ssh does not use it: `chmod 600 {key.path}`." for key in keys if key.is_open
    ]
    locked = [key.path for key in keys if key.encrypted and not _is_in_agent(key, trace)]
    if locked:
        state = agent_state(trace, environment)
        start = "" if state.startswith(("agent returned", "an agent without")) else 'eval "$(ssh-agent)"; '
        advice.append(f"{locked[0]} has a passphrase and is not in an agent: `{start}ssh-add {locked[0]}`.")
    if "too many authentication failures" in error.reason.lower():
        advice.append(
            "Too many keys were offered before the right one: name it with IdentityFile and IdentitiesOnly yes."
        )
    if "publickey" in methods and not advice:
        if not keys and not trace.offered:
            advice.append(f"Make a key, `ssh-keygen -t ed25519`, and install it: `ssh-copy-id {error.by_hand}`.")
        else:
            advice.append(
                f"Install a key there, `ssh-copy-id {error.by_hand}`, or name the right one with IdentityFile; "
                "and check the User."
            )
    if {"password", "keyboard-interactive"} & set(methods):
        advice.append(f"With a password: Runtime({error.host!r}, password=...).")
    if any(method.startswith("gssapi") for method in methods):
        advice.append("With Kerberos: `kinit`.")
    return advice or [error.remedy]


def _is_in_agent(key: KeyFile, trace: Trace) -> bool:
    return any(line.startswith(f"{key.path} ") and line.endswith(" agent") for line in trace.offered)
