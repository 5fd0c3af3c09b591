"""The judgements of `lazycluster doctor`; the logs are of OpenSSH 9.2, except those that name another version."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import attrs
import pytest

from lazycluster._cli.doctor import format_finding
from lazycluster._doctor.authentication import KeyFile, describe_agent, is_encrypted, judge_authentication
from lazycluster._doctor.clock import ClockProbe, judge_clock
from lazycluster._doctor.connecting import describe_proxy, judge_host_key, judge_jump_host, judge_name, judge_port
from lazycluster._doctor.examination import examine
from lazycluster._doctor.findings import CheckRunner, Finding, Verdict, failed, ok, skipped
from lazycluster._doctor.latency import judge_round_trips
from lazycluster._doctor.login_shell import (
    LoginShellProbe,
    judge_failed_login_shell,
    judge_login_shell,
    parse_server_address,
)
from lazycluster._doctor.login_trace import LoginAttempt, LoginTrace, parse_trace
from lazycluster._doctor.port_forwarding import (
    PORTS_FROM_HOST_CHECK,
    PORTS_TO_HOST_CHECK,
    ForwardingProbe,
    judge_forwarding,
)
from lazycluster._doctor.pythons import HostPython, LocalPython, judge_pythons, parse_pythons
from lazycluster._doctor.sessions import judge_sessions
from lazycluster._doctor.temp_dir import TempDirProbe, judge_temp_dir, parse_temp_dir
from lazycluster._doctor.transfers import SCP_LEGACY_ROUTE, SCP_ROUTE, TAR_ROUTE, TransferProbe, judge_files
from lazycluster._ssh.config import EffectiveConfig
from lazycluster.exceptions import (
    AuthenticationError,
    ChangedHostKeyError,
    ConnectError,
    ConnectTimeoutError,
    LoginShellError,
    PortRefusedError,
    SessionRefusedError,
    UnknownHostError,
)
from tests.client_programs import assert_becomes_idle

if TYPE_CHECKING:
    from lazycluster.testing import LocalSshd

OK, WARNING, FAILED, SKIPPED = Verdict.OK, Verdict.WARNING, Verdict.FAILED, Verdict.SKIPPED
LOGGED_IN = textwrap.dedent(
    """\
    debug1: Reading configuration data /home/me/.ssh/config
    debug1: Connecting to node1.example [192.0.2.7] port 2222.
    debug1: connect to address 192.0.2.7 port 2222: Connection timed out
    debug1: Connecting to node1.example [192.0.2.8] port 2222.
    debug1: Connection established.
    debug1: identity file /home/me/.ssh/id ed25519 type 3
    debug1: identity file /home/me/.ssh/id_rsa type -1
    debug1: Remote protocol version 2.0, remote software version OpenSSH_9.2p1 Debian-2+deb12u10
    debug1: Server host key: ssh-ed25519 SHA256:PKOz
    debug1: SSH2_MSG_NEWKEYS received
    debug1: get_agent_identities: bound agent to hostkey
    debug1: get_agent_identities: agent returned 2 keys
    debug1: Authentications that can continue: publickey,password
    debug1: Offering public key: me@laptop ED25519 SHA256:aaaa agent
    debug1: Authentications that can continue: publickey
    debug1: Offering public key: /home/me/.ssh/id ed25519 ED25519 SHA256:Mc3u explicit
    debug1: Server accepts key: /home/me/.ssh/id ed25519 ED25519 SHA256:Mc3u explicit
    Authenticated to node1.example ([192.0.2.8]:2222) using "publickey".
    debug1: Sending command: true
    """
)
DIRECT = EffectiveConfig({"hostname": ("node1.example",), "port": ("2222",), "user": ("me",)})
JUMPING = attrs.evolve(DIRECT, settings={**DIRECT.settings, "proxyjump": ("bastion,inner",)})
COMMANDED = attrs.evolve(DIRECT, settings={**DIRECT.settings, "proxycommand": ("nc %h %p",)})
ANSWERED = LoginTrace(tried_addresses=("a [192.0.2.8] port 22",), connected=("it is",), server=("OpenSSH_9.2",))


# Findings ------------------------------------------------------------------------------------------------------------


def test_check_runner_skips_check_and_names_first_failure() -> None:
    runner = CheckRunner()

    assert runner.run("a", lambda: failed("a", "it broke", "repair it")).verdict is FAILED
    second = runner.run("b", lambda: ok("b", "well"), needs=("a",))
    third = runner.run("c", lambda: ok("c", "well"), needs=("b",))

    assert (second.verdict, third.verdict) == (SKIPPED, SKIPPED)
    assert third.found.endswith(": a")
    assert runner.has_failed("b")
    assert runner.run("d", lambda: ok("d", "well")) == ok("d", "well")


def test_check_runner_skipped_check_lets_next_run() -> None:
    runner = CheckRunner()
    runner.run("a", lambda: skipped("a", "left to another host"))

    assert runner.run("b", lambda: ok("b", "well"), needs=("a",)).verdict is OK


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (PortRefusedError("h", "why"), "why"),
        (PortRefusedError("h", "why", "bastion"), "bastion"),
        (SessionRefusedError("h", "true", "why"), "why"),
        (OSError("no space"), "on this machine: no space"),
    ],
)
def test_check_runner_error_becomes_failed_finding(error: Exception, found: str) -> None:
    def check() -> Finding:
        raise error

    finding = CheckRunner().run("a", check)

    assert (finding.check, finding.verdict) == ("a", FAILED)
    assert found in finding.found
    assert not finding.found.startswith("h: ")
    assert finding.advice


def test_examine_closed_early_leaves_nothing(sshd: LocalSshd) -> None:
    findings = examine(sshd.host, config_file=sshd.config_file)
    assert next(findings).check == "configuration"
    while next(findings).check != "supervisor":
        pass
    assert sshd.connections() == 1

    findings.close()

    assert_becomes_idle(sshd)


def test_finding_strips_escape_sequences() -> None:
    finding = failed("a", "red \x1b[31mwords\x07\nand more", "do \x1b]0;title\x07it")

    assert (finding.found, finding.advice) == ("red words\nand more", "do it")
    assert format_finding(finding) == f"failed   {'a':<19} red words and more\n         do it"
    assert format_finding(ok("a", "well")) == f"ok       {'a':<19} well"


# Connecting ----------------------------------------------------------------------------------------------------------


def test_parse_trace_reads_log_of_ssh() -> None:
    trace = parse_trace(LOGGED_IN)

    assert trace.tried_addresses == ("node1.example [192.0.2.7] port 2222", "node1.example [192.0.2.8] port 2222")
    assert trace.server == ("OpenSSH_9.2p1 Debian-2+deb12u10",)
    assert trace.identity_files == ("/home/me/.ssh/id ed25519", "/home/me/.ssh/id_rsa")
    assert trace.methods == ("publickey,password", "publickey")
    assert trace.accepted_keys == ("/home/me/.ssh/id ed25519 ED25519 SHA256:Mc3u explicit",)
    assert trace.authenticated == ("publickey",)
    assert trace.trusts_host


def test_parse_trace_openssh_7_4_reads_authentication() -> None:
    log = "debug1: Authentication succeeded (publickey).\r\nAuthenticated to node1 ([192.0.2.8]:22).\r\n"

    assert parse_trace(log).authenticated == ("publickey",)


def test_parse_trace_empty_log_is_empty() -> None:
    assert parse_trace("") == LoginTrace()


@pytest.mark.parametrize(
    ("config", "expected"),
    [(DIRECT, ""), (JUMPING, "the jump host bastion,inner"), (COMMANDED, "the ProxyCommand `nc %h %p`")],
)
def test_describe_proxy_names_jump_host_or_command(config: EffectiveConfig, expected: str) -> None:
    assert describe_proxy(config) == expected


@pytest.mark.parametrize(
    ("config", "login", "verdict", "found"),
    [
        (
            DIRECT,
            LoginAttempt(parse_trace(LOGGED_IN)),
            OK,
            "node1.example [192.0.2.7] port 2222, node1.example [192.0.2.8]",
        ),
        (
            DIRECT,
            LoginAttempt(LoginTrace(), UnknownHostError("h", "no such name")),
            FAILED,
            "no such name",
        ),
        (DIRECT, LoginAttempt(LoginTrace(), ConnectTimeoutError("h", "why")), FAILED, "why"),
        (
            JUMPING,
            LoginAttempt(ANSWERED),
            SKIPPED,
            "node1.example is looked up by the jump host bastion,inner, not here",
        ),
        (COMMANDED, LoginAttempt(ANSWERED), SKIPPED, "node1.example is looked up by the ProxyCommand"),
        (
            JUMPING,
            LoginAttempt(LoginTrace(), UnknownHostError("h", "seen from the jump host: x")),
            FAILED,
            "seen from the jump host: x",
        ),
    ],
)
def test_judge_name(config: EffectiveConfig, login: LoginAttempt, verdict: Verdict, found: str) -> None:
    finding = judge_name(config, login)

    assert finding.verdict is verdict
    assert found in finding.found


@pytest.mark.parametrize(
    ("login", "verdict", "advice"),
    [
        (LoginAttempt(ANSWERED), OK, ""),
        (LoginAttempt(LoginTrace(), ConnectTimeoutError("h", "", "bastion")), FAILED, "`lazycluster doctor bastion`"),
        (LoginAttempt(LoginTrace(), ConnectTimeoutError("h", "seen from the jump host: x")), OK, ""),
        (LoginAttempt(ANSWERED, AuthenticationError("h", "x")), OK, ""),
    ],
)
def test_judge_jump_host(login: LoginAttempt, verdict: Verdict, advice: str) -> None:
    finding = judge_jump_host(JUMPING, login)

    assert finding.verdict is verdict
    assert advice in finding.advice


def test_judge_jump_host_failed_proxy_command_names_it() -> None:
    finding = judge_jump_host(COMMANDED, LoginAttempt(LoginTrace(), ConnectError("h", "nc: not found")))

    assert finding.advice == "Try the ProxyCommand by itself: `nc %h %p`."


@pytest.mark.parametrize(
    ("login", "verdict", "found"),
    [
        (LoginAttempt(ANSWERED), OK, "OpenSSH_9.2 answers on port 2222"),
        (LoginAttempt(ANSWERED, AuthenticationError("h", "x")), OK, "OpenSSH_9.2 answers on port 2222"),
        (LoginAttempt(LoginTrace(), PortRefusedError("h", "why")), FAILED, "why"),
        (
            LoginAttempt(LoginTrace(connected=("it is",)), ConnectError("h", "x")),
            FAILED,
            "port 2222 is open, and no sshd answers",
        ),
    ],
)
def test_judge_port(login: LoginAttempt, verdict: Verdict, found: str) -> None:
    finding = judge_port(DIRECT, login)

    assert finding.verdict is verdict
    assert found in finding.found


KEY_SHOWN = attrs.evolve(ANSWERED, host_key=("ssh-ed25519 SHA256:x",))


@pytest.mark.parametrize(
    ("login", "verdict", "advice"),
    [
        (LoginAttempt(parse_trace(LOGGED_IN)), OK, ""),
        (LoginAttempt(attrs.evolve(KEY_SHOWN, methods=("password",)), AuthenticationError("h", "x")), OK, ""),
        (
            LoginAttempt(KEY_SHOWN, ChangedHostKeyError("h", "has changed")),
            FAILED,
            "ssh-keygen -R '[node1.example]:2222'",
        ),
        (LoginAttempt(KEY_SHOWN, ChangedHostKeyError("h", "was revoked")), FAILED, "marked as revoked"),
        (
            LoginAttempt(KEY_SHOWN, ConnectError("h", "no matching host key type found")),
            FAILED,
            "HostKeyAlgorithms +...",
        ),
        (LoginAttempt(KEY_SHOWN, ConnectTimeoutError("h", "")), FAILED, "no firewall"),
    ],
)
def test_judge_host_key(login: LoginAttempt, verdict: Verdict, advice: str) -> None:
    finding = judge_host_key(DIRECT, login)

    assert finding.verdict is verdict
    assert advice in finding.advice


# Authentication ------------------------------------------------------------------------------------------------------

# ssh-keygen -t ed25519, the first lines of what it writes: without a passphrase, and with one.
OPEN_KEY = """\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW
QyNTUxOQ==
-----END OPENSSH PRIVATE KEY-----
"""
LOCKED_KEY = """\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABAAAAAA
-----END OPENSSH PRIVATE KEY-----
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OPEN_KEY, False),
        (LOCKED_KEY, True),
        ("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n", True),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIF\n", True),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIB\n-----END RSA PRIVATE KEY-----\n", False),
        ("no key", False),
        ("", False),
    ],
)
def test_is_encrypted_reads_private_key_formats(text: str, expected: bool) -> None:
    assert is_encrypted(text) is expected


REFUSED = AuthenticationError("h", "Permission denied (publickey).")
PLAIN = KeyFile("/k", 0o600, encrypted=False)


@pytest.mark.parametrize(
    ("trace", "keys", "advice", "unwanted"),
    [
        (
            LoginTrace(methods=("publickey",)),
            [],
            "`ssh-keygen -t ed25519`, and install it: `ssh-copy-id h`",
            "password",
        ),
        (
            LoginTrace(methods=("publickey",), offered_keys=("/k ED25519",)),
            [PLAIN],
            "Install a key there, `ssh-copy-id h`",
            "chmod",
        ),
        (LoginTrace(methods=("publickey",)), [KeyFile("/k", 0o640, encrypted=False)], "`chmod 600 /k`", "ssh-copy-id"),
        (
            LoginTrace(methods=("publickey",)),
            [KeyFile("/k", 0o600, encrypted=True)],
            'eval "$(ssh-agent)"; ssh-add /k',
            "chmod",
        ),
        (
            LoginTrace(methods=("publickey",), agent_messages=("agent returned 1 keys",)),
            [KeyFile("/k", 0o600, encrypted=True)],
            "not in an agent: `ssh-add /k`",
            "eval",
        ),
        (
            LoginTrace(methods=("publickey",), offered_keys=("/k ED25519 SHA256:x explicit agent",)),
            [KeyFile("/k", 0o600, encrypted=True)],
            "ssh-copy-id h",
            "ssh-add",
        ),
        (LoginTrace(methods=("password",)), [PLAIN], "Runtime('h', password=...)", "ssh-copy-id"),
        (LoginTrace(methods=("gssapi-with-mic",)), [], "`kinit`", "password"),
    ],
)
def test_judge_authentication_refusal_gives_advice(
    trace: LoginTrace, keys: list[KeyFile], advice: str, unwanted: str
) -> None:
    finding = judge_authentication(DIRECT, LoginAttempt(trace, REFUSED), keys, {})

    assert finding.verdict is FAILED
    assert advice in finding.advice
    assert unwanted not in finding.advice


def test_judge_authentication_too_many_keys_gives_advice() -> None:
    error = AuthenticationError("h", "Too many authentication failures")

    assert "IdentitiesOnly yes" in judge_authentication(DIRECT, LoginAttempt(LoginTrace(), error), [PLAIN], {}).advice


def test_judge_authentication_success_names_key() -> None:
    finding = judge_authentication(DIRECT, LoginAttempt(parse_trace(LOGGED_IN)), [], {})

    assert finding == ok("authentication", "publickey, /home/me/.ssh/id ed25519 ED25519 SHA256:Mc3u")


@pytest.mark.parametrize(
    ("agent", "environment", "expected"),
    [
        ((), {}, "no agent"),
        ((), {"SSH_AUTH_SOCK": "/s"}, "an agent"),
        (("bound agent to hostkey", "agent returned 2 keys"), {"SSH_AUTH_SOCK": "/s"}, "agent returned 2 keys"),
        (("ssh_fetch_identitylist: agent contains no identities",), {}, "an agent without keys"),
        (
            ("ssh_get_authentication_socket: No such file or directory",),
            {},
            "an agent that does not answer (ssh_get_authentication_socket: No such file or directory)",
        ),
    ],
)
def test_describe_agent(agent: tuple[str, ...], environment: dict[str, str], expected: str) -> None:
    assert describe_agent(LoginTrace(agent_messages=agent), environment) == expected


# On the host ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "verdict", "found"),
    [(0, FAILED, "no session"), (1, WARNING, "one at a time"), (2, OK, "2 at once"), (12, OK, "12 or more at once")],
)
def test_judge_sessions(allowed: int, verdict: Verdict, found: str) -> None:
    finding = judge_sessions(allowed)

    assert finding.verdict is verdict
    assert found in finding.found


@pytest.mark.parametrize(
    ("shell", "verdict", "words"),
    [
        (LoginShellProbe("/bin/bash"), OK, "/bin/bash"),
        (
            LoginShellProbe("/bin/bash", seconds_with_files=(0.13, 0.11), seconds_without_files=(0.01, 0.02)),
            OK,
            "take 100 ms",
        ),
        (
            LoginShellProbe("/bin/bash", seconds_with_files=(0.5,), seconds_without_files=(0.01,)),
            WARNING,
            "~/.bashrc begin with `case $- in *i*)",
        ),
        (LoginShellProbe("/bin/bash", stdout="hello\n"), WARNING, "start-up files print 'hello'"),
        (LoginShellProbe("/bin/bash", stderr="hm\n"), OK, "'hm', which is harmless"),
        (LoginShellProbe("/usr/bin/fish"), OK, "no Bourne shell, so commands run in /bin/sh"),
        (LoginShellProbe("/usr/bin/zsh", stdout="x"), WARNING, "[[ -o interactive ]] || return"),
        (LoginShellProbe("/bin/rc", stdout="x"), WARNING, "see that its start-up files do so in a terminal only"),
        (LoginShellProbe("", stdout="y" * 500), WARNING, "yyy...'"),
    ],
)
def test_judge_login_shell(shell: LoginShellProbe, verdict: Verdict, words: str) -> None:
    finding = judge_login_shell(shell)

    assert finding.verdict is verdict
    assert words in f"{finding.found}\n{finding.advice}"


def test_judge_login_shell_noisy_and_slow_gives_one_advice() -> None:
    finding = judge_login_shell(
        LoginShellProbe("/bin/bash", stdout="x", seconds_with_files=(1.0,), seconds_without_files=(0.0,))
    )

    assert finding.advice.count("case $-") == 1


def test_judge_failed_login_shell_names_exit_status() -> None:
    finding = judge_failed_login_shell(LoginShellError("h", "true", 1, "closed\n"))

    assert finding.found == "it ended with exit status 1 before our command began: 'closed'"
    assert "nologin" in finding.advice


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        ("192.0.2.1 50000 192.0.2.2 22", ("192.0.2.2", 22)),
        ("fe80::1%eth0 50000 fe80::2%eth0 22", ("fe80::2", 22)),
        ("UNKNOWN 65535 UNKNOWN 65535", None),
        ("", None),
        ("a b c d", None),
    ],
)
def test_parse_server_address(connection: str, expected: tuple[str, int] | None) -> None:
    assert parse_server_address(connection) == expected


DF = "/dev/vda1 81106868 4 {} 1% /\0"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (f"/tmp\0\0{DF.format(2048)}{DF.format(16000)}", TempDirProbe("/tmp", "", 2048 * 1024, 16000)),
        # macOS 14: df -Pi prints the inodes after the blocks, and the first column may hold spaces.
        (
            "/tmp\0\0map auto_home 10 4 6 40% /System/Volumes/Data\0/dev/disk3s5 9713 1 2 28% 3 77 0% /Volumes/x\0",
            TempDirProbe("/tmp", "", 6 * 1024, 77),
        ),
        # btrfs has no inodes to run out of.
        ("/tmp\0\0/dev/sda 10 4 6 40% /\0/dev/sda 0 0 0 - /\0", TempDirProbe("/tmp", "", 6 * 1024, None)),
        ("/x\0mktemp: Read-only file system\n\0\0\0", TempDirProbe("/x", "mktemp: Read-only file system")),
        ("", TempDirProbe("")),
    ],
)
def test_parse_temp_dir(output: str, expected: TempDirProbe) -> None:
    assert parse_temp_dir(output) == expected


@pytest.mark.parametrize(
    ("probe", "verdict", "found"),
    [
        (TempDirProbe("/tmp", "", 80 << 30, 1234567), OK, "/tmp: 80.0 GiB free, 1,234,567 inodes free"),
        (TempDirProbe("/tmp"), OK, "/tmp: unknown room"),
        (TempDirProbe("/tmp", "", 1 << 20), WARNING, "/tmp: 0.0 GiB free"),
        (TempDirProbe("/tmp", "", 80 << 30, 3), WARNING, "/tmp: 80.0 GiB free, 3 inodes free"),
        (TempDirProbe("/tmp", "mktemp: no\nsuch thing"), FAILED, "/tmp: such thing"),
    ],
)
def test_judge_temp_dir(probe: TempDirProbe, verdict: Verdict, found: str) -> None:
    finding = judge_temp_dir(probe)

    assert (finding.verdict, finding.found) == (verdict, found)


@pytest.mark.parametrize(
    ("clocks", "verdict", "found"),
    [
        (None, OK, "not known"),
        (ClockProbe(100.0, 100.2, 100.3), OK, "ours"),
        (ClockProbe(103.0, 100.2, 100.3), OK, "ours"),
        (ClockProbe(160.0, 99.0, 100.0), WARNING, "60 s ahead of ours"),
        (ClockProbe(40.0, 101.0, 102.0), WARNING, "60 s behind ours"),
        # The answer took too long to compare the clocks.
        (ClockProbe(100.0, 90.0, 110.0), OK, "ours"),
    ],
)
def test_judge_clock(clocks: ClockProbe | None, verdict: Verdict, found: str) -> None:
    finding = judge_clock(clocks)

    assert finding.verdict is verdict
    assert found in finding.found


# Python --------------------------------------------------------------------------------------------------------------

LOCAL_PYTHON = LocalPython("3.11.2", "cpython")


def python(version: str, path: str = "/usr/bin/python3", *, on_path: bool = True) -> HostPython:
    return HostPython(path, version, on_path=on_path)


CONDA = python("3.11.9", "/home/me/miniconda3/bin/python3", on_path=False)


@pytest.mark.parametrize(
    ("pythons", "verdict", "words"),
    [
        ([python("3.11.9")], OK, "3.11.9 (/usr/bin/python3)"),
        ([python("3.9.2")], WARNING, "Install Python 3.11 there"),
        ([python("3.9.2"), CONDA], WARNING, "python='/home/me/miniconda3/bin/python3'"),
        ([python("3.5.3")], FAILED, "the supervisor needs 3.6"),
        ([python("3.5.3"), CONDA], FAILED, "Name a newer one: Runtime(..., python='/home/me/miniconda3/bin/python3')"),
        ([], FAILED, "no python3 on the PATH of a session"),
        ([], FAILED, "Install python3 there. Commands and files go without"),
        ([CONDA], FAILED, "found 3.11.9 (/home/me/miniconda3/bin/python3)"),
        ([CONDA], FAILED, "Name it: Runtime(..., python='/home/me/miniconda3/bin/python3')"),
        (
            [attrs.evolve(CONDA, version="3.8.1")],
            FAILED,
            "Name it: Runtime(..., python='/home/me/miniconda3/bin/python3')",
        ),
        ([python("", "/home/me/.pyenv/shims/python3")], FAILED, "/home/me/.pyenv/shims/python3 does not start"),
        ([HostPython("/usr/bin/pypy3", "3.11.9", "pypy")], WARNING, "pypy 3.11.9 (/usr/bin/pypy3) there, 3.11.2 here"),
    ],
)
def test_judge_pythons(pythons: list[HostPython], verdict: Verdict, words: str) -> None:
    finding = judge_pythons(pythons, None, LOCAL_PYTHON)

    assert finding.verdict is verdict
    assert words in f"{finding.found}\n{finding.advice}"


def test_parse_pythons_lists_each_once() -> None:
    output = "path\0/usr/bin/python3\0cpython 3.11.2\n\0elsewhere\0/usr/bin/python3\0cpython 3.11.2\0path\0/shim\0\0"

    assert parse_pythons(output) == (
        HostPython("/usr/bin/python3", "3.11.2"),
        HostPython("/shim", ""),
    )
    assert parse_pythons("") == ()


# Files, ports, latency -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "noise", "verdict", "advice"),
    [
        ({}, "", OK, ""),
        ({SCP_ROUTE: "Connection closed"}, "", WARNING, "Subsystem sftp internal-sftp"),
        ({SCP_LEGACY_ROUTE: "scp: command not found"}, "", WARNING, "Install scp there"),
        ({TAR_ROUTE: "tar: command not found"}, "", FAILED, "Install tar there"),
        ({SCP_ROUTE: "Connection closed", SCP_LEGACY_ROUTE: "scp: command not found"}, "", FAILED, "Install scp there"),
        (
            {SCP_ROUTE: "Received message too long 17", SCP_LEGACY_ROUTE: "hello"},
            "hello",
            FAILED,
            "Keep start-up files from printing",
        ),
    ],
)
def test_judge_files(failures: dict[str, str], noise: str, verdict: Verdict, advice: str) -> None:
    finding = judge_files(TransferProbe({SCP_ROUTE: "", SCP_LEGACY_ROUTE: "", TAR_ROUTE: "", **failures}, 0.1), noise)

    assert finding.verdict is verdict
    assert advice in finding.advice
    assert all(reason in finding.found for reason in failures.values())


@pytest.mark.parametrize("check", [PORTS_FROM_HOST_CHECK, PORTS_TO_HOST_CHECK])
@pytest.mark.parametrize(
    ("traffic", "verdict"),
    [
        (ForwardingProbe("32 KiB"), OK),
        (ForwardingProbe("32 KiB", is_tested=False), OK),
        (ForwardingProbe("32 KiB", refusal="prohibited"), FAILED),
        (ForwardingProbe("32 KiB", failure="nothing came"), FAILED),
    ],
)
def test_judge_forwarding(check: str, traffic: ForwardingProbe, verdict: Verdict) -> None:
    finding = judge_forwarding(check, traffic)

    assert finding.verdict is verdict
    assert finding.check == check
    assert bool(finding.advice) is (verdict is FAILED)


@pytest.mark.parametrize(
    ("seconds", "verdict", "found"),
    [
        ((0.0004, 0.0003, 0.9), OK, "0.4 ms (0.3 ms to 900 ms)"),
        ((0.25, 0.2, 0.3), WARNING, "250 ms (200 ms to 300 ms)"),
        ((), WARNING, "no answer"),
    ],
)
def test_judge_round_trips(seconds: tuple[float, ...], verdict: Verdict, found: str) -> None:
    finding = judge_round_trips(seconds)

    assert (finding.verdict, finding.found) == (verdict, found)
