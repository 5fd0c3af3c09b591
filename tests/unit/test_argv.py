"""The argument vectors, pinned: every call to ssh and scp that the library makes looks like this."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from lazycluster._ssh.argv import (
    OPTIONS_SINCE_8_7,
    config_file_argv,
    copy_key_argv,
    effective_config_argv,
    exit_argv,
    login_attempt_argv,
    master_argv,
    remote_operand,
    scp_argv,
    session_argv,
)
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.shell import SHELL_BOOTSTRAP

SOCKET, LOG = Path("/tmp/lazycluster-x/m"), Path("/tmp/lazycluster-x/log")
PLAIN = Destination("web1")
FULL = Destination(
    "web1",
    user="me",
    port=2222,
    identity_file=Path("/home/me/100%/id"),
    config_file=Path("/home/me/my config"),
    connect_timeout=3.6,
    options=(("Compression", "yes"), ("ServerAliveInterval", "1")),
)


def options(argv: tuple[str, ...]) -> list[str]:
    """Return the values of -o in order."""
    return [value for flag, value in pairwise(argv) if flag == "-o"]


def effective_options(argv: tuple[str, ...]) -> dict[str, str]:
    """Return the options as ssh reads them: the first value counts, keywords ignore case (ssh_config(5))."""
    result: dict[str, str] = {}
    for option in options(argv):
        keyword, _, value = option.partition("=")
        result.setdefault(keyword.lower(), value)
    return result


def test_master_argv() -> None:
    assert master_argv(PLAIN, SOCKET, LOG) == (
        *("ssh", "-f", "-N", "-T", "-E", "/tmp/lazycluster-x/log"),
        *("-o", "BatchMode=yes"),
        *("-o", "ControlMaster=yes"),
        *("-o", "ControlPath=/tmp/lazycluster-x/m"),
        *("-o", "ControlPersist=4"),
        *("-o", "LogLevel=INFO"),
        *("-o", "NumberOfPasswordPrompts=1"),
        *("-o", "ClearAllForwardings=yes"),
        *("-o", "PermitLocalCommand=no"),
        *("-o", "RemoteCommand=none"),
        *("-o", "RequestTTY=no"),
        *("-o", "ForwardX11=no"),
        *("-o", "ServerAliveInterval=5"),
        *("-o", "ServerAliveCountMax=3"),
        *("-o", "ConnectTimeout=11"),
        *("--", "web1"),
    )


def test_master_argv_password_allows_one_prompt() -> None:
    argv = effective_options(master_argv(PLAIN, SOCKET, LOG, batch=False))
    assert (argv["batchmode"], argv["numberofpasswordprompts"]) == ("no", "1")


def test_master_argv_for_a_person_prompts_and_persists() -> None:
    argv = master_argv(PLAIN, SOCKET, None, batch=False, persist_seconds=600)
    assert argv[:6] == ("ssh", "-f", "-N", "-T", "-o", "BatchMode=no")
    assert effective_options(argv)["controlpersist"] == "600"


def test_exit_argv() -> None:
    argv = exit_argv(FULL, SOCKET)
    assert (argv[:3], argv[-2:]) == (("ssh", "-O", "exit"), ("--", "web1"))
    assert (effective_options(argv)["controlpath"], effective_options(argv)["controlmaster"]) == (str(SOCKET), "no")


@pytest.mark.parametrize("batch", [True, False])
def test_login_attempt_argv_uses_no_master(batch: bool) -> None:
    argv = login_attempt_argv(FULL, batch=batch)
    assert (argv[:2], argv[-3:]) == (("ssh", "-T"), ("--", "web1", "true"))
    known = effective_options(argv)
    assert (known["controlmaster"], known["controlpath"]) == ("no", "none")
    assert (known["batchmode"], known["numberofpasswordprompts"]) == ("yes" if batch else "no", "1")
    assert "proxycommand" not in known  # the attempt needs its messages


def test_session_argv() -> None:
    assert session_argv(PLAIN, SOCKET, (SHELL_BOOTSTRAP, "nproc")) == (
        *("ssh", "-T"),
        *("-o", "BatchMode=yes"),
        *("-o", "ControlMaster=no"),
        *("-o", "ControlPath=/tmp/lazycluster-x/m"),
        *("-o", "LogLevel=ERROR"),
        *("-o", "ProxyCommand=false"),
        *("-o", "ForkAfterAuthentication=no"),
        *("-o", "StdinNull=no"),
        *("-o", "SessionType=default"),
        *("-o", "ClearAllForwardings=yes"),
        *("-o", "PermitLocalCommand=no"),
        *("-o", "RemoteCommand=none"),
        *("-o", "RequestTTY=no"),
        *("-o", "ForwardX11=no"),
        *("-o", "ServerAliveInterval=5"),
        *("-o", "ServerAliveCountMax=3"),
        *("--", "web1"),
        SHELL_BOOTSTRAP,
        "nproc",
    )


@pytest.mark.parametrize(
    "unsupported",
    [frozenset(), frozenset({"sessiontype"}), frozenset({"sessiontype", "stdinnull", "forkafterauthentication"})],
)
def test_session_argv_leaves_out_unsupported_options(unsupported: frozenset[str]) -> None:
    named = {"sessiontype", "stdinnull", "forkafterauthentication"}
    assert named == OPTIONS_SINCE_8_7
    argv = session_argv(PLAIN, SOCKET, ("true",), unsupported_options=unsupported)
    assert named & effective_options(argv).keys() == named - unsupported


def test_scp_argv() -> None:
    assert scp_argv(PLAIN, SOCKET, "/a", "web1:/b") == (
        *("scp", "-p"),
        *("-o", "BatchMode=yes"),
        *("-o", "ControlMaster=no"),
        *("-o", "ControlPath=/tmp/lazycluster-x/m"),
        *("-o", "LogLevel=ERROR"),
        *("-o", "ProxyCommand=false"),
        *("-o", "ForkAfterAuthentication=no"),
        *("-o", "StdinNull=no"),
        *("-o", "ClearAllForwardings=yes"),
        *("-o", "PermitLocalCommand=no"),
        *("-o", "RemoteCommand=none"),
        *("-o", "RequestTTY=no"),
        *("-o", "ForwardX11=no"),
        *("-o", "ServerAliveInterval=5"),
        *("-o", "ServerAliveCountMax=3"),
        *("--", "/a", "web1:/b"),
    )


def test_scp_argv_legacy_adds_session_type() -> None:
    """The legacy protocol runs a command. The modern one asks for a subsystem; scp itself sets that session type."""
    legacy, modern = (scp_argv(FULL, SOCKET, "/a", "web1:/b", legacy=legacy) for legacy in (True, False))
    assert legacy[:3] == ("scp", "-p", "-O")
    assert set(options(legacy)) - set(options(modern)) == {"SessionType=default"}
    assert not set(options(modern)) - set(options(legacy))


def test_scp_argv_leaves_out_unsupported_options() -> None:
    unsupported = frozenset({"sessiontype", "stdinnull", "forkafterauthentication"})
    argv = scp_argv(PLAIN, SOCKET, "/a", "web1:/b", legacy=True, unsupported_options=unsupported)
    assert not unsupported & effective_options(argv).keys()


def test_effective_config_argv() -> None:
    assert effective_config_argv(PLAIN)[:4] == ("ssh", "-G", "-o", "BatchMode=yes")
    assert effective_config_argv(PLAIN)[-2:] == ("--", "web1")


ALL = {
    "attempt": login_attempt_argv(FULL),
    "master": master_argv(FULL, SOCKET, LOG),
    "session": session_argv(FULL, SOCKET, (SHELL_BOOTSTRAP, "true")),
    "scp": scp_argv(FULL, SOCKET, "/a", "web1:/b"),
    "effective": effective_config_argv(FULL),
    "exit": exit_argv(FULL, SOCKET),
}


def test_copy_key_argv_keeps_host_key_checks() -> None:
    argv = copy_key_argv(FULL)
    assert argv[:5] == (
        "ssh-copy-id",
        "-i",
        "/home/me/100%/id",
        "-F",
        "/home/me/my config",
    )  # which is no keyword of ssh
    assert argv[-1] == "web1"
    known = effective_options(argv)
    assert (known["controlpath"], known["remotecommand"], known["user"]) == ("none", "none", "me")
    assert not {"batchmode", "stricthostkeychecking", "numberofpasswordprompts"} & known.keys()
    assert copy_key_argv(PLAIN)[1] == "-o"


def test_config_file_argv_has_no_options() -> None:
    assert config_file_argv(Path("/c"), "web") == ("ssh", "-G", "-F", "/c", "--", "web")


@pytest.mark.parametrize("argv", ALL.values(), ids=ALL.keys())
def test_argv_has_options_of_the_caller(argv: tuple[str, ...]) -> None:
    flags = set(pairwise(argv))
    assert ("-F", "/home/me/my config") in flags
    assert ("-i", "/home/me/100%%/id") in flags  # ssh expands % there
    known = effective_options(argv)
    assert (known["user"], known["port"], known["compression"]) == ("me", "2222", "yes")


@pytest.mark.parametrize("argv", ALL.values(), ids=ALL.keys())
def test_argv_caller_options_win_over_defaults(argv: tuple[str, ...]) -> None:
    assert effective_options(argv)["serveraliveinterval"] == "1"
    assert effective_options(argv)["serveralivecountmax"] == "3"


@pytest.mark.parametrize("argv", [ALL["session"], ALL["scp"], ALL["exit"]], ids=["session", "scp", "exit"])
def test_argv_through_master_never_logs_in(argv: tuple[str, ...]) -> None:
    to = Destination("web1", options=(("ProxyCommand", "nc x y"), ("ProxyJump", "bastion")))
    for call in (argv, session_argv(to, SOCKET, ("true",)), scp_argv(to, SOCKET, "/a", "web1:/b")):
        assert effective_options(call)["proxycommand"] == "false"
        assert options(call).index("ProxyCommand=false") < min(
            (options(call).index(option) for option in options(call) if option.startswith("ProxyJump")), default=99
        )


@pytest.mark.parametrize(
    ("seconds", "whole"), [(0.2, "2"), (1.4, "3"), (1.6, "3"), (10.0, "11"), (3600, "3601")]
)  # ssh takes whole seconds; the deadline of lazycluster is the earlier one
def test_master_argv_connect_timeout_is_whole_seconds(seconds: float, whole: str) -> None:
    argv = master_argv(Destination("web1", connect_timeout=seconds), SOCKET, LOG)
    assert effective_options(argv)["connecttimeout"] == whole


def test_argv_never_turns_host_key_checks_off() -> None:
    for argv in ALL.values():
        assert (
            not {"stricthostkeychecking", "userknownhostsfile", "globalknownhostsfile"} & effective_options(argv).keys()
        )


@pytest.mark.parametrize(
    ("host", "operand"),
    [
        ("web1", "web1:/x y"),
        ("me@web1", "me@web1:/x y"),
        ("::1", "[::1]:/x y"),
        ("me@fe80::1%eth0", "me@[fe80::1%eth0]:/x y"),
        ("10.0.0.1", "10.0.0.1:/x y"),
    ],
)
def test_remote_operand_brackets_ipv6(host: str, operand: str) -> None:
    assert remote_operand(Destination(host), "/x y") == operand
