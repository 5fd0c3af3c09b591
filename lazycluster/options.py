"""The keywords of `Connection`, `Runtime` and `RuntimeManager`, for type checkers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, TypeAlias, TypedDict

CallOutput: TypeAlias = Literal["print", "log", "discard"]
"""The treatment of a function's output: print it as it comes, log it line by line, or discard it."""

DEFAULT_MAX_SESSIONS = 10
"""sshd's own default of MaxSessions (sshd_config(5))."""

DEFAULT_GRACE_SECONDS = 5.0
"""Seconds between SIGTERM and SIGKILL for processes that are ended, unless a user sets `grace=`."""


class _LoginOptions(TypedDict, total=False):
    user: str | None
    port: int | None
    identity_file: str | os.PathLike[str] | None
    password: str | None
    connect_timeout: float
    options: Mapping[str, str] | None
    env: Mapping[str, str] | None
    max_sessions: int


class ConnectionOptions(_LoginOptions, total=False):
    """The keywords of `Connection`."""

    config_file: str | os.PathLike[str] | None


class _TransportOptions(TypedDict, total=False):
    python: str | None
    resident: bool
    grace: float


class RuntimeOptions(ConnectionOptions, _TransportOptions, total=False):
    """The keywords of `Runtime`: those of `Connection`, and its own."""


class ManagerOptions(_LoginOptions, _TransportOptions, total=False):
    """The keywords of `Runtime` that a `RuntimeManager` passes to it: all but `config_file`, which is its own."""
