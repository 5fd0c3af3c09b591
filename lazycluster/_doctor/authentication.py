"""Does the host let us in, and if it does not, which key is missing where?"""

from __future__ import annotations

import base64
import binascii
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from lazycluster._doctor.findings import Finding, failed, failed_from_error, ok
from lazycluster._doctor.login_trace import LoginAttempt, LoginTrace
from lazycluster._ssh.config import EffectiveConfig
from lazycluster.exceptions import AuthenticationError

AUTHENTICATION_CHECK = "authentication"
_OPENSSH_KEY_MAGIC = b"openssh-key-v1\0"
_MAX_KEY_FILE_BYTES = 1 << 16
_GROUP_AND_OTHERS_MODE_BITS = 0o077


@attrs.frozen
class KeyFile:
    """A private key on this machine."""

    path: str
    mode: int
    encrypted: bool

    @property
    def is_readable_by_others(self) -> bool:
        """Whether others may read the key, so that ssh does not use it."""
        return bool(self.mode & _GROUP_AND_OTHERS_MODE_BITS)


def is_encrypted(text: str) -> bool:
    """Return whether a private key has a passphrase: OpenSSH's own format (PROTOCOL.key), PKCS#8, or PEM."""
    if "ENCRYPTED" in text:
        return True
    lines = [line for line in text.splitlines() if not line.startswith("-----")]
    try:
        data = base64.b64decode("".join(lines), validate=True)
    except (binascii.Error, ValueError):
        return False
    if not data.startswith(_OPENSSH_KEY_MAGIC):
        return False
    size = int.from_bytes(data[len(_OPENSSH_KEY_MAGIC) : len(_OPENSSH_KEY_MAGIC) + 4], "big")
    return data[len(_OPENSSH_KEY_MAGIC) + 4 : len(_OPENSSH_KEY_MAGIC) + 4 + size] != b"none"


def find_key_files(paths: Sequence[str]) -> tuple[KeyFile, ...]:
    """Return the private keys that exist."""
    found = []
    for path in dict.fromkeys(paths):
        try:
            mode = stat.S_IMODE(Path(path).stat().st_mode)
            with Path(path).open(encoding="ascii", errors="replace") as file:
                text = file.read(_MAX_KEY_FILE_BYTES)
        except OSError:
            continue
        if "PRIVATE KEY" in text:
            found.append(KeyFile(path, mode, is_encrypted(text)))
    return tuple(found)


def judge_authentication(
    config: EffectiveConfig, attempt: LoginAttempt, keys: Sequence[KeyFile], environment: Mapping[str, str]
) -> Finding:
    """Judge how the host took our keys, and name what is missing."""
    trace, error = attempt.trace, attempt.error
    if error is None:
        method = "".join(trace.authenticated[-1:])
        key = (
            f", {trace.accepted_keys[-1].removesuffix(' explicit')}"
            if trace.accepted_keys and "publickey" in method
            else ""
        )
        return ok(AUTHENTICATION_CHECK, f"{method or 'logged in'}{key}")
    if not isinstance(error, AuthenticationError):
        return failed_from_error(AUTHENTICATION_CHECK, error)
    methods = trace.methods[-1] if trace.methods else "not known"
    offered = ", ".join(trace.offered_keys) if trace.offered_keys else "none"
    key_paths = ", ".join(key.path for key in keys) or "none"
    found = (
        f"{config.user} is refused; the host takes {methods}; keys offered: {offered}; private keys here: {key_paths}; "
        f"{describe_agent(trace, environment)}"
    )
    return failed(
        AUTHENTICATION_CHECK,
        found,
        " ".join(_authentication_advice(error, trace, keys, methods.split(","), environment)),
    )


def describe_agent(trace: LoginTrace, environment: Mapping[str, str]) -> str:
    """Return in words whether there is an agent that has keys."""
    messages = [line for line in trace.agent_messages if "bound agent" not in line]
    if any(line.startswith("agent returned") for line in messages):
        return f"{messages[-1]}"
    if any("no identities" in line for line in messages):
        return "an agent without keys"
    if messages:
        return f"an agent that does not answer ({messages[-1]})"
    return "no agent" if not environment.get("SSH_AUTH_SOCK") else "an agent"


def _authentication_advice(
    error: AuthenticationError,
    trace: LoginTrace,
    keys: Sequence[KeyFile],
    methods: Sequence[str],
    environment: Mapping[str, str],
) -> list[str]:
    """Return the advice, the likeliest first."""
    advice = [
        f"Others may read {key.path}, so ssh does not use it: `chmod 600 {key.path}`."
        for key in keys
        if key.is_readable_by_others
    ]
    locked = [key.path for key in keys if key.encrypted and not _is_in_agent(key, trace)]
    if locked:
        state = describe_agent(trace, environment)
        start = "" if state.startswith(("agent returned", "an agent without")) else 'eval "$(ssh-agent)"; '
        advice.append(f"{locked[0]} has a passphrase and is not in an agent: `{start}ssh-add {locked[0]}`.")
    if "too many authentication failures" in error.reason.lower():
        advice.append(
            "Too many keys were offered before the right one: name it with IdentityFile and IdentitiesOnly yes."
        )
    if "publickey" in methods and not advice:
        if not keys and not trace.offered_keys:
            advice.append(f"Make a key, `ssh-keygen -t ed25519`, and install it: `ssh-copy-id {error.ssh_arguments}`.")
        else:
            advice.append(
                f"Install a key there, `ssh-copy-id {error.ssh_arguments}`, or name the right one with IdentityFile; "
                "and check the User."
            )
    if {"password", "keyboard-interactive"} & set(methods):
        advice.append(f"With a password: Runtime({error.host!r}, password=...).")
    if any(method.startswith("gssapi") for method in methods):
        advice.append("With Kerberos: `kinit`.")
    return advice or [error.remedy]


def _is_in_agent(key: KeyFile, trace: LoginTrace) -> bool:
    return any(line.startswith(f"{key.path} ") and line.endswith(" agent") for line in trace.offered_keys)
