"""The diagnosis of the messages of ssh and scp. The texts are captured; each case names its source.

"9.2": OpenSSH 9.2p1 of Debian 12 against a private sshd on loopback, with -E at LogLevel INFO or VERBOSE, the log first
and then the standard error. "owner/repository#number": a public bug report of that project.
"""

from __future__ import annotations

import errno
import pickle
import signal
import time
from typing import NamedTuple

import pytest

from lazycluster._ssh.diagnosis import (
    UNNAMED_HOP,
    ForwardingFailure,
    LostCommandState,
    diagnose,
    diagnose_forwarding,
    diagnose_lost_master,
    find_unsupported_options,
    has_relay_failed,
    scp_failure_reason,
    session_refusal_reason,
    start_failure,
    tar_failure_reason,
)
from lazycluster.exceptions import (
    AuthenticationError,
    ChangedHostKeyError,
    ConnectError,
    ConnectionThrottledError,
    ConnectTimeoutError,
    HostUnreachableError,
    PortRefusedError,
    SshConfigurationError,
    SshNotFoundError,
    UnknownHostError,
    UnknownHostKeyError,
)

CHANGED_BOX = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\r
Someone could be eavesdropping on you right now (man-in-the-middle attack)!\r
It is also possible that a host key has just been changed.\r
The fingerprint for the ED25519 key sent by the remote host is
SHA256:GSWQUhdQiJCKGd+ue+q3EckDp38ZpXQILU/iKNHSeKY.\r
Please contact your system administrator.\r
Add correct host key in /tmp/known to get rid of this message.\r
Offending ED25519 key in /tmp/known:1\r
  remove with:\r
  ssh-keygen -f "/tmp/known" -R "[127.0.0.1]:2201"\r
"""
KEX_CLOSED = "kex_exchange_identification: Connection closed by remote host\r\n"
RELAY_CLOSED = f"{KEX_CLOSED}Connection closed by UNKNOWN port 65535\r\n"
RELAY_LATE = "Connection timed out during banner exchange\r\nConnection to UNKNOWN port 65535 timed out\r\n"
UNPROTECTED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
@         WARNING: UNPROTECTED PRIVATE KEY FILE!          @\r
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
Permissions 0644 for '/home/u/id' are too open.\r
It is required that your private key files are NOT accessible by others.\r
This private key will be ignored.\r
Load key "/home/u/id": bad permissions\r
root@127.0.0.1: Permission denied (publickey).\r
"""
BANNER = "Authorized use only.\r\nPermission denied to everyone else: keep out!\r\n"


class Case(NamedTuple):
    source: str
    message: str
    kind: type[ConnectError]
    reason: str
    hop: str = ""


DIRECT = [
    # Names
    Case(
        "9.2, glibc",
        "ssh: Could not resolve hostname nosuch.invalid: Name or service not known\r\n",
        UnknownHostError,
        "Could not resolve hostname nosuch.invalid: Name or service not known",
    ),
    Case(
        "macOS, hashicorp/vagrant#4841",
        "ssh: Could not resolve hostname unknown: nodename nor servname provided, or not known\n",
        UnknownHostError,
        "Could not resolve hostname unknown: nodename nor servname provided, or not known",
    ),
    Case(
        "no name server, mit-han-lab/spvnas#30",
        "ssh: Could not resolve hostname localhost:1: Temporary failure in name resolution\n",
        UnknownHostError,
        "Could not resolve hostname localhost:1: Temporary failure in name resolution",
    ),
    Case(
        "a stray colon, AmesCornish/buttersink#4",
        "ssh: Could not resolve hostname 192.168.1.2:: Name or service not known",
        UnknownHostError,
        "Could not resolve hostname 192.168.1.2:: Name or service not known",
    ),
    # Connecting
    Case(
        "9.2",
        "ssh: connect to host 127.0.0.1 port 2299: Connection refused\r\n",
        PortRefusedError,
        "connect to host 127.0.0.1 port 2299: Connection refused",
    ),
    Case(
        "9.2, a full backlog",
        "ssh: connect to host 127.0.0.1 port 2306: Connection timed out\r\n",
        ConnectTimeoutError,
        "connect to host 127.0.0.1 port 2306: Connection timed out",
    ),
    Case(
        "macOS, microsoft/vscode-remote-release#1127",
        "ssh: connect to host linksys port 22: Operation timed out\n",
        ConnectTimeoutError,
        "connect to host linksys port 22: Operation timed out",
    ),
    Case(
        "9.2, IPv6 without a route",
        "ssh: connect to host 2001:db8::1 port 22: No route to host\r\n",
        HostUnreachableError,
        "connect to host 2001:db8::1 port 22: No route to host",
    ),
    Case(
        "strerror(ENETUNREACH)",
        "ssh: connect to host 10.0.0.9 port 22: Network is unreachable\n",
        HostUnreachableError,
        "connect to host 10.0.0.9 port 22: Network is unreachable",
    ),
    Case(
        "9.2, a link-local address without its interface",
        "ssh: connect to host fe80::1 port 22: Invalid argument\r\n",
        ConnectError,
        "connect to host fe80::1 port 22: Invalid argument",
    ),
    Case(
        "9.2, BindAddress of another machine",
        "bind 8.8.8.8: Cannot assign requested address\r\nssh: connect to host 127.0.0.1 port 2201: failure\r\n",
        ConnectError,
        "connect to host 127.0.0.1 port 2201: failure; bind 8.8.8.8: Cannot assign requested address",
    ),
    Case(
        "9.2, a listener that never speaks",
        "Connection timed out during banner exchange\r\nConnection to 127.0.0.1 port 2301 timed out\r\n",
        ConnectTimeoutError,
        "Connection to 127.0.0.1 port 2301 timed out",
    ),
    Case(
        "without the second line, as at LogLevel ERROR",
        "Connection timed out during banner exchange\r\n",
        ConnectTimeoutError,
        "Connection timed out during banner exchange",
    ),
    # Closed before the log-in
    Case(
        "9.2, MaxStartups 1:100:1",
        "kex_exchange_identification: read: Connection reset by peer\r\nConnection reset by 127.0.0.1 port 2203\r\n",
        ConnectionThrottledError,
        "kex_exchange_identification: read: Connection reset by peer",
    ),
    Case(
        "9.2, a listener that closes",
        KEX_CLOSED + "Connection closed by 127.0.0.1 port 2302\r\n",
        ConnectionThrottledError,
        "kex_exchange_identification: Connection closed by remote host",
    ),
    Case(
        "before 8.0, cBio/cbio-cluster#279",
        "ssh_exchange_identification: Connection closed by remote host\n",
        ConnectionThrottledError,
        "ssh_exchange_identification: Connection closed by remote host",
    ),
    Case(
        "9.2, closed in the key exchange",
        "Connection closed by 127.0.0.1 port 2305\r\n",
        ConnectError,
        "Connection closed by 127.0.0.1 port 2305",
    ),
    Case(
        "9.2, no key exchange in common",
        "Unable to negotiate with 127.0.0.1 port 2205: no matching key exchange method found. "
        "Their offer: curve25519-sha256,kex-strict-s-v00@openssh.com\r\n",
        ConnectError,
        "Unable to negotiate with 127.0.0.1 port 2205: no matching key exchange method found. "
        "Their offer: curve25519-sha256,kex-strict-s-v00@openssh.com",
    ),
    Case(
        "9.2, no host key algorithm in common",
        "Unable to negotiate with 127.0.0.1 port 2205: no matching host key type found. Their offer: ssh-ed25519\r\n",
        ConnectError,
        "Unable to negotiate with 127.0.0.1 port 2205: no matching host key type found. Their offer: ssh-ed25519",
    ),
    # Host keys
    Case(
        "9.2, StrictHostKeyChecking=yes",
        "No ED25519 host key is known for [127.0.0.1]:2201 and you have requested strict checking.\r\n"
        "Host key verification failed.\r\n",
        UnknownHostKeyError,
        "No ED25519 host key is known for [127.0.0.1]:2201 and you have requested strict checking.",
    ),
    Case(
        "9.2, StrictHostKeyChecking=ask and BatchMode",
        "Host key verification failed.\r\n",
        UnknownHostKeyError,
        "Host key verification failed.",
    ),
    Case(
        "9.2, on a terminal",
        "\rThe authenticity of host '[127.0.0.1]:2201 ([127.0.0.1]:2201)' can't be established.\r\n"
        "ED25519 key fingerprint is SHA256:GSWQUhdQiJCKGd+ue+q3EckDp38ZpXQILU/iKNHSeKY.\r\n"
        "This key is not known by any other names.\r\n"
        "Are you sure you want to continue connecting (yes/no/[fingerprint])? ",
        UnknownHostKeyError,
        "The authenticity of host '[127.0.0.1]:2201 ([127.0.0.1]:2201)' can't be established.; "
        "ED25519 key fingerprint is SHA256:GSWQUhdQiJCKGd+ue+q3EckDp38ZpXQILU/iKNHSeKY.",
    ),
    Case(
        "9.2",
        CHANGED_BOX
        + "Host key for [127.0.0.1]:2201 has changed and you have requested strict checking.\r\n"
        + "Host key verification failed.\r\n",
        ChangedHostKeyError,
        "Host key for [127.0.0.1]:2201 has changed and you have requested strict checking.; "
        "Offending ED25519 key in /tmp/known:1",
    ),
    Case(
        "before 9, the older wording",
        "RSA host key for github.com has changed and you have requested strict checking.\r\n"
        "Host key verification failed.\r\n",
        ChangedHostKeyError,
        "RSA host key for github.com has changed and you have requested strict checking.",
    ),
    Case(
        "9.2, StrictHostKeyChecking=no, if only passwords would do",
        CHANGED_BOX
        + "Password authentication is disabled to avoid man-in-the-middle attacks.\r\n"
        + "u@127.0.0.1: Permission denied (password).\r\n",
        ChangedHostKeyError,
        "Password authentication is disabled to avoid man-in-the-middle attacks.; "
        "Offending ED25519 key in /tmp/known:1",
    ),
    Case(
        "9.2, @revoked",
        "@       WARNING: REVOKED HOST KEY DETECTED!               @\r\n"
        "ED25519 host key for [127.0.0.1]:2201 was revoked and you have requested strict checking.\r\n"
        "Host key verification failed.\r\n",
        ChangedHostKeyError,
        "ED25519 host key for [127.0.0.1]:2201 was revoked and you have requested strict checking.",
    ),
    # Authentication
    Case(
        "9.2",
        "root@127.0.0.1: Permission denied (publickey,password).\r\n",
        AuthenticationError,
        "root@127.0.0.1: Permission denied (publickey,password).",
    ),
    Case(
        "9.2, with a banner with nearly the same text",
        "root@127.0.0.1: Permission denied (publickey).\r\n" + BANNER,
        AuthenticationError,
        "root@127.0.0.1: Permission denied (publickey).",
    ),
    Case(
        "before 7.6, fmeum/smart-ssh and others",
        "Permission denied (publickey).\n",
        AuthenticationError,
        "Permission denied (publickey).",
    ),
    Case(
        "9.2, MaxAuthTries 1",
        "Received disconnect from 127.0.0.1 port 2204:2: Too many authentication failures\r\n"
        "Disconnected from 127.0.0.1 port 2204\r\n",
        AuthenticationError,
        "Received disconnect from 127.0.0.1 port 2204:2: Too many authentication failures",
    ),
    Case(
        "9.2, behind a jump host it is still the destination",
        "Received disconnect from UNKNOWN port 65535:2: Too many authentication failures\r\n"
        "Disconnected from UNKNOWN port 65535\r\n",
        AuthenticationError,
        "Received disconnect from UNKNOWN port 65535:2: Too many authentication failures",
    ),
    Case(
        "9.2",
        UNPROTECTED,
        AuthenticationError,
        'root@127.0.0.1: Permission denied (publickey).; Load key "/home/u/id": bad permissions',
    ),
    Case(
        "9.2, a damaged key",
        'Load key "/home/u/id": error in libcrypto\r\nroot@127.0.0.1: Permission denied (publickey).\r\n',
        AuthenticationError,
        'root@127.0.0.1: Permission denied (publickey).; Load key "/home/u/id": error in libcrypto',
    ),
    Case(
        "9.2",
        "no such identity: /tmp/no: No such file or directory\r\nroot@127.0.0.1: Permission denied (publickey).\r\n",
        AuthenticationError,
        "root@127.0.0.1: Permission denied (publickey).; no such identity: /tmp/no: No such file or directory",
    ),
    Case(
        "kryptco/kr#335",
        'sign_and_send_pubkey: signing failed for RSA "/Users/u/.ssh/id_krypton" from agent: agent refused operation\n'
        "root@ip: Permission denied (publickey).\n",
        AuthenticationError,
        "root@ip: Permission denied (publickey).; sign_and_send_pubkey: signing failed for RSA "
        '"/Users/u/.ssh/id_krypton" from agent: agent refused operation',
    ),
    Case(
        "9.2, UsePAM, an expired account",
        "Connection closed by 127.0.0.1 port 2206\r\n"
        + BANNER
        + "Your account has expired; please contact your system administrator.\r\n",
        AuthenticationError,
        "Your account has expired; please contact your system administrator.",
    ),
    Case(
        "9.2, ended at the second prompt",
        "Permission denied, please try again.\r\n\ru@127.0.0.1's password: \r\n\ru@127.0.0.1's password: ",
        AuthenticationError,
        "Permission denied, please try again.",
    ),
    # Configuration
    Case(
        "9.2",
        "command-line: line 0: Bad configuration option: foo\r\n",
        SshConfigurationError,
        "command-line: line 0: Bad configuration option: foo",
    ),
    Case(
        "9.2",
        'command-line line 0: unsupported option "maybe".\r\n',
        SshConfigurationError,
        'command-line line 0: unsupported option "maybe".',
    ),
    Case(
        "9.2",
        "cfg: line 2: Bad configuration option: foo\r\ncfg: terminating, 1 bad configuration options\r\n",
        SshConfigurationError,
        "cfg: line 2: Bad configuration option: foo",
    ),
    Case(
        "9.2",
        "Unsupported Match attribute foo\r\ncfg2 line 1: Bad Match condition\r\n"
        "cfg2: terminating, 1 bad configuration options\r\n",
        SshConfigurationError,
        "cfg2 line 1: Bad Match condition",
    ),
    Case("9.2", "cfg2 line 2: invalid quotes\r\n", SshConfigurationError, "cfg2 line 2: invalid quotes"),
    Case(
        "9.2",
        'cfg2 line 2: no argument after keyword "hostname"\r\n',
        SshConfigurationError,
        'cfg2 line 2: no argument after keyword "hostname"',
    ),
    Case(
        "9.2",
        "Can't open user config file nosuch: No such file or directory\r\n",
        SshConfigurationError,
        "Can't open user config file nosuch: No such file or directory",
    ),
    Case(
        "aws/eks-anywhere#7367",
        "Bad owner or permissions on /home/image-builder/.ssh/config",
        SshConfigurationError,
        "Bad owner or permissions on /home/image-builder/.ssh/config",
    ),
    Case("9.2", "Bad port '70000'\r\n", SshConfigurationError, "Bad port '70000'"),
    Case(
        "9.2", "command-line line 0: Bad port 'abc'.\r\n", SshConfigurationError, "command-line line 0: Bad port 'abc'."
    ),
    Case("9.2", "Invalid -J argument\r\n", SshConfigurationError, "Invalid -J argument"),
    Case("9.2", "unknown option -- Z\r\nusage: ssh [-46A]\n   [-B if]\n", SshConfigurationError, "unknown option -- Z"),
    Case(
        "9.2",
        'unix_listener: path "/tmp/xxx.uakRcPETMgO6XBD6" too long for Unix domain socket\r\n',
        SshConfigurationError,
        'unix_listener: path "/tmp/xxx.uakRcPETMgO6XBD6" too long for Unix domain socket',
    ),
    Case(
        "curl/curl#16784: only a warning",
        'config line 33: Unsupported option "rhostsrsaauthentication"\nPermission denied (publickey).\n',
        AuthenticationError,
        "Permission denied (publickey).",
    ),
]

# The same through jump hosts. In 9.2 only the destination's own ssh writes to its log; that of a jump host has stderr.
RELAYED = [
    Case(
        "9.2, the jump host's port",
        RELAY_CLOSED + "ssh: connect to host jump port 2299: Connection refused\r\n",
        PortRefusedError,
        "connect to host jump port 2299: Connection refused",
        "jump",
    ),
    Case(
        "9.2, the jump host's name",
        RELAY_CLOSED + "ssh: Could not resolve hostname nosuch.invalid: Name or service not known\r\n",
        UnknownHostError,
        "Could not resolve hostname nosuch.invalid: Name or service not known",
        "nosuch.invalid",
    ),
    Case(
        "9.2, the jump host refuses the key",
        RELAY_CLOSED + "lcpw@jump: Permission denied (publickey).\r\n",
        AuthenticationError,
        "lcpw@jump: Permission denied (publickey).",
        "jump",
    ),
    Case(
        "before 8.0, without UNKNOWN in the text",
        "lcpw@jump: Permission denied (publickey).\r\n"
        "ssh_exchange_identification: Connection closed by remote host\r\n",
        AuthenticationError,
        "lcpw@jump: Permission denied (publickey).",
        "jump",
    ),
    Case(
        "9.2, the jump host is unknown",
        RELAY_CLOSED
        + "No ED25519 host key is known for [jump]:2201 and you have requested strict checking.\r\n"
        + "Host key verification failed.\r\n",
        UnknownHostKeyError,
        "No ED25519 host key is known for [jump]:2201 and you have requested strict checking.",
        "jump",
    ),
    Case(
        "9.2, the same without a name",
        RELAY_CLOSED + "Host key verification failed.\r\n",
        UnknownHostKeyError,
        "Host key verification failed.",
        UNNAMED_HOP,
    ),
    Case(
        "9.2, the jump host closes",
        RELAY_CLOSED + KEX_CLOSED + "Connection closed by 127.0.0.1 port 2302\r\n",
        ConnectionThrottledError,
        "kex_exchange_identification: Connection closed by remote host",
        "127.0.0.1",
    ),
    Case(
        "9.2, the jump host never speaks",
        RELAY_LATE + "Connection timed out during banner exchange\r\nConnection to 127.0.0.1 port 2301 timed out\r\n",
        ConnectTimeoutError,
        "Connection to 127.0.0.1 port 2301 timed out",
        "127.0.0.1",
    ),
    Case(
        "9.2, the same if the jump host's message came too late",
        RELAY_LATE,
        ConnectTimeoutError,
        "Connection timed out during banner exchange",
    ),
    Case(
        "9.2, AllowTcpForwarding no on the jump host",
        RELAY_CLOSED
        + "channel 0: open failed: administratively prohibited: open failed\r\nstdio forwarding failed\r\n",
        ConnectError,
        "the jump host refuses to forward: channel 0: open failed: administratively prohibited: open failed",
        UNNAMED_HOP,
    ),
    Case(
        "9.2, the destination's port",
        RELAY_CLOSED + "channel 0: open failed: connect failed: Connection refused\r\nstdio forwarding failed\r\n",
        PortRefusedError,
        "seen from the jump host: channel 0: open failed: connect failed: Connection refused",
    ),
    Case(
        "9.2, the destination's name",
        RELAY_CLOSED
        + "channel 0: open failed: connect failed: Name or service not known\r\nstdio forwarding failed\r\n",
        UnknownHostError,
        "seen from the jump host: channel 0: open failed: connect failed: Name or service not known",
    ),
    Case(
        "9.2, two jump hosts, the second's port",
        RELAY_CLOSED
        + "channel 0: open failed: connect failed: Connection refused\r\nstdio forwarding failed\r\n"
        + RELAY_CLOSED,
        PortRefusedError,
        "seen from the jump host: channel 0: open failed: connect failed: Connection refused",
        UNNAMED_HOP,
    ),
    Case(
        "the reason lost",
        RELAY_CLOSED + "stdio forwarding failed\r\n",
        ConnectError,
        "kex_exchange_identification: Connection closed by remote host; "
        "Connection closed by UNKNOWN port 65535; stdio forwarding failed",
        UNNAMED_HOP,
    ),
    Case(
        "9.2, a ProxyCommand that is not there",
        RELAY_CLOSED + "/bin/bash: line 1: /nonexistent/x: No such file or directory\r\n",
        ConnectError,
        "/bin/bash: line 1: /nonexistent/x: No such file or directory",
    ),
    Case(
        "awslabs/amazon-guardduty-tester#19, with a banner",
        "Welcome to the bastion.\r\nbash: nc: command not found\r\n" + RELAY_CLOSED,
        ConnectError,
        "bash: nc: command not found",
    ),
    Case(
        "bryanpkc/corkscrew#19, a silent ProxyCommand, or MaxStartups of the destination",
        RELAY_CLOSED + "Welcome to the bastion.\r\n",
        ConnectionThrottledError,
        "kex_exchange_identification: Connection closed by remote host, "
        "and the jump host or ProxyCommand did not say why",
    ),
]


@pytest.mark.parametrize("case", [*DIRECT, *RELAYED], ids=lambda case: f"{case.kind.__name__}: {case.source}")
def test_diagnose_login_failure_kind_and_reason(case: Case) -> None:
    error = diagnose("dest", case.message, exit_code=255)

    assert (type(error), error.reason, error.hop) == (case.kind, case.reason, case.hop)
    assert error.host == "dest"
    assert str(error).startswith("dest: ")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("case", DIRECT, ids=lambda case: f"{case.kind.__name__}: {case.source}")
def test_diagnose_timed_out_prefers_named_cause(case: Case) -> None:
    if case.source != "9.2, closed in the key exchange":
        assert type(diagnose("dest", case.message, exit_code=None, timed_out=True)) is case.kind


@pytest.mark.parametrize(
    ("message", "status", "reason"),
    [
        ("", 255, "ssh ended with exit status 255 and said nothing"),
        ("", -9, f"ssh was ended by signal 9, {signal.strsignal(9)}"),
        ("", None, "ssh said nothing"),
        ("One.\nTwo.\nThree.\nFour.\n", 255, "Two.; Three.; Four."),
        ("Warning: Permanently added 'h' (ED25519) to the list of known hosts.\r\ndebug1: x\r\nOdd.\r\n", 255, "Odd."),
        ("\x1b[31mRed\x1b[0m \x1b]0;title\x07and\tblue\x9f\r\n", 255, "Red and blue"),
    ],
)
def test_diagnose_unknown_text_is_quoted(message: str, status: int | None, reason: str) -> None:
    error = diagnose("dest", message, exit_code=status)

    assert (type(error), error.reason, error.hop) == (ConnectError, reason, "")


@pytest.mark.parametrize(
    ("message", "kind", "reason", "hop"),
    [
        ("", ConnectTimeoutError, "", ""),
        (BANNER, ConnectTimeoutError, "", ""),
        (
            "Confirm user presence for key ED25519-SK SHA256:x\r\n",
            ConnectTimeoutError,
            "Confirm user presence for key ED25519-SK SHA256:x",
            "",
        ),
        ("Verification code: ", ConnectTimeoutError, "ssh waited at 'Verification code:'", ""),
        ("\ru@jump's password: ", AuthenticationError, 'no answer to "u@jump\'s password:"', "jump"),
        ("(u@jump) Password: ", AuthenticationError, "no answer to '(u@jump) Password:'", "jump"),
        ("Password: ", AuthenticationError, "no answer to 'Password:'", ""),
        ("\r(u@h) Password: \r\n\r(u@h) Password: ", AuthenticationError, "refused at '(u@h) Password:'", ""),
        ("Enter passphrase for key '/k': ", AuthenticationError, "no answer to \"Enter passphrase for key '/k':\"", ""),
        (RELAY_CLOSED + "odd", ConnectTimeoutError, "ssh waited at 'odd'", ""),
    ],
)
def test_diagnose_timed_out_quotes_prompt(message: str, kind: type[ConnectError], reason: str, hop: str) -> None:
    error = diagnose("dest", message, exit_code=None, timed_out=True)

    assert (type(error), error.reason, error.hop) == (kind, reason, hop)


@pytest.mark.parametrize(
    ("message", "expected"),
    [(RELAY_CLOSED, True), (RELAY_LATE, True), (KEX_CLOSED, False), ("Connection closed by 10.0.0.1 port 22", False)],
)
def test_has_relay_failed(message: str, expected: bool) -> None:
    assert has_relay_failed(message) is expected


@pytest.mark.parametrize("piece", ["a", "a@", "a@b ", ": ", "\x1b[", "'s password", "line 1: ", "a@b'"])
def test_diagnose_long_text_takes_linear_time(piece: str) -> None:
    """A banner is any text; no pattern may take more than linear time over it."""
    started = time.process_time()
    text = piece * 200_000
    for message in (text, f"stdio forwarding failed\n{text}", f"{text}\n" * 3):
        for timed_out in (False, True):
            diagnose("dest", message, exit_code=None, timed_out=timed_out)
        for judge in (
            session_refusal_reason,
            diagnose_lost_master,
            find_unsupported_options,
            diagnose_forwarding,
            scp_failure_reason,
        ):
            judge(message)

    assert time.process_time() - started < 5


# Sessions through a master -------------------------------------------------------------------------------------------

REFUSED = "mux_client_request_session: session request failed: Session open refused by peer\r\n"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (REFUSED + RELAY_CLOSED, "Session open refused by peer"),  # 9.2, MaxSessions, ProxyCommand=false
        (
            # coollabsio/coolify#3716
            f"{REFUSED}ControlSocket /root/cp/x already exists, disabling multiplexing\n",
            "Session open refused by peer",
        ),
        ("channel 4: open failed: connect failed: open failed\r\n", "connect failed: open failed"),  # 9.2, the master
        (
            "channel 1: open failed: administratively prohibited: open failed",
            "administratively prohibited: open failed",
        ),
        ("channel 1: open failed: resource shortage: open failed", "resource shortage: open failed"),
        ("odd: Session open refused by peer, again", "odd: Session open refused by peer, again"),
        ("channel 2: open failed: connect failed: Connection refused", None),
        ("bash: Session opened", None),
        ("", None),
    ],
)
def test_session_refusal_reason(message: str, reason: str | None) -> None:
    assert session_refusal_reason(message) == reason


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        # 9.2; LogLevel ERROR shows only the first of ssh's own lines
        (f"Control socket connect(/tmp/m): Connection refused\r\n{RELAY_CLOSED}", LostCommandState.NOT_STARTED),
        (f"Control socket connect(/tmp/m): Connection refused\r\n{KEX_CLOSED}", LostCommandState.NOT_STARTED),
        ("Control socket connect(/tmp/m): No such file or directory\r\n", LostCommandState.NOT_STARTED),
        (f"muxclient: master hello exchange failed\r\n{KEX_CLOSED}", LostCommandState.NOT_STARTED),
        (KEX_CLOSED, LostCommandState.NOT_STARTED),
        ("banner exchange: Connection to UNKNOWN port 65535: Broken pipe\r\n", LostCommandState.NOT_STARTED),
        ("mux_client_hello_exchange: write packet: Broken pipe\r\n", LostCommandState.NOT_STARTED),
        ("mux_client_request_session: send fds failed\n", LostCommandState.NOT_STARTED),  # ansible/ansible#6363
        ("mux_client_request_session: master alive request failed\n", LostCommandState.NOT_STARTED),
        # ansible/ansible#66046, geerlingguy/JJG-Ansible-Windows#6
        ("mux_client_request_session: read from master failed: Broken pipe\n", LostCommandState.MAYBE_STARTED),
        (
            "mux_client_request_session: read from master failed: Connection reset by peer\n",
            LostCommandState.MAYBE_STARTED,
        ),
        (
            f"mux_client_request_session: read from master failed: Broken pipe\n{KEX_CLOSED}",
            LostCommandState.MAYBE_STARTED,
        ),
        (REFUSED + RELAY_CLOSED, None),
        ("", None),  # 9.2: a master killed under a running session
        ("grep: x: No such file or directory\n", None),
    ],
)
def test_diagnose_lost_master_command_state(message: str, expected: LostCommandState | None) -> None:
    assert diagnose_lost_master(message) is expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("command-line: line 0: Bad configuration option: sessiontype\r\n", {"sessiontype"}),
        # yokawasa/kubectl-plugin-ssh-jump#18, OpenSSH 8.1
        ("command-line: line 0: Bad configuration option: pubkeyacceptedalgorithms\n", {"pubkeyacceptedalgorithms"}),
        ("command-line line 0: Bad configuration option: StdinNull\n", {"stdinnull"}),
        ("/home/u/.ssh/config: line 24: Bad configuration option: remotecommand\n", set()),  # NixOS/nixpkgs#34427
        ('command-line line 0: unsupported option "accept-new".\n', set()),  # xpipe-io/xpipe#171
        ("", set()),
    ],
)
def test_find_unsupported_options(message: str, expected: set[str]) -> None:
    assert find_unsupported_options(message) == expected


# Forwardings and files -----------------------------------------------------------------------------------------------

BIND = "bind [127.0.0.1]:2201: Address already in use\r\n"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        # 9.2, AllowTcpForwarding no, remote; PermitOpen of another port
        ("channel 2: open failed: administratively prohibited: open failed\r\n", ForwardingFailure.PROHIBITED),
        ("channel 2: open failed: unknown channel type: unsupported\r\n", ForwardingFailure.PROHIBITED),
        # 9.2, allowed, but nothing listens
        ("channel 2: open failed: connect failed: Connection refused\r\n", ForwardingFailure.NO_ANSWER),
        ("channel 2: open failed: connect failed: Name or service not known\r\n", ForwardingFailure.NO_ANSWER),
        # 9.2, AllowTcpForwarding no, local; PermitListen of another port; port taken
        ("Error: remote port forwarding failed for listen port 2401\r\n", ForwardingFailure.REMOTE_LISTEN),
        ("Warning: remote port forwarding failed for listen port 2401\r\n", ForwardingFailure.REMOTE_LISTEN),
        ("Warning: remote port forwarding failed for listen path /tmp/s\r\n", ForwardingFailure.REMOTE_LISTEN),
        # 9.2, -O forward, the master's log
        (
            "mux_confirm_remote_forward: remote port forwarding failed for listen port 2401\r\n",
            ForwardingFailure.REMOTE_LISTEN,
        ),
        # 9.2, local port taken; one of its two addresses
        (
            f"{BIND}channel_setup_fwd_listener_tcpip: cannot listen to port: 2201\r\n",
            ForwardingFailure.LOCAL_LISTEN,
        ),
        (
            f"{BIND}channel 2: open failed: connect failed: Connection refused\r\n",
            ForwardingFailure.LOCAL_LISTEN,
        ),
        # 9.2, MaxSessions: a session, no forwarding
        ("channel 2: open failed: connect failed: open failed\r\n", None),
        ("Allocated port 36329 for remote forward to 127.0.0.1:2299\r\n", None),
        ("", None),
    ],
)
def test_diagnose_forwarding(log: str, expected: ForwardingFailure | None) -> None:
    assert diagnose_forwarding(log) is expected


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        # 9.2, SFTP
        ('scp: stat local "nofile": No such file or directory\n', 'stat local "nofile": No such file or directory'),
        ("scp: /nofile: No such file or directory\r\n", "/nofile: No such file or directory"),
        (
            'scp: dest open "/root/x": Permission denied\r\nscp: failed to upload file a to /root/x\n',
            'dest open "/root/x": Permission denied',
        ),
        (
            'scp: write remote "/dev/full": Failure\r\nscp: failed to upload file a to /dev/full\n',
            'write remote "/dev/full": Failure (disk full, or over quota?)',
        ),
        (
            'scp: open local "/proc/x": No such file or directory\nscp: download failed\n',
            'open local "/proc/x": No such file or directory',
        ),
        # 9.2, -O
        ("scp: /dev/full: No space left on device\n", "/dev/full: No space left on device"),
        # the connection
        (
            "ssh: connect to host 127.0.0.1 port 2299: Connection refused\r\nscp: Connection closed\r\n",
            "connect to host 127.0.0.1 port 2299: Connection refused",
        ),
        (f"{RELAY_CLOSED}lost connection\n", "kex_exchange_identification: Connection closed by remote host"),
        ("scp: Connection closed\r\n", "Connection closed"),
        # a start-up file of the host that prints
        (
            "scp: Received message too long 1214606444\r\nscp: Ensure the remote shell produces no output.\r\n",
            "Received message too long 1214606444: Ensure the remote shell produces no output.",
        ),
        ("Welcome!\nscp: /x: Permission denied\n", "/x: Permission denied"),
        ("", ""),
    ],
)
def test_scp_failure_reason_is_one_line(message: str, reason: str) -> None:
    assert scp_failure_reason(message) == reason


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", ""),
        (
            "tar: a: Cannot open: Permission denied\ntar: Exiting with failure status due to previous errors\n",
            "tar: a: Cannot open: Permission denied",
        ),
        (
            "tar: a: Wrote only 4096 of 10240 bytes\ntar: Exiting with failure status due to previous errors\n",
            "tar: a: Wrote only 4096 of 10240 bytes (disk full, or over quota?)",
        ),
        (
            "".join(f"tar: {n}: Cannot stat\n" for n in range(9)),
            "; ".join(f"tar: {n}: Cannot stat" for n in range(4, 9)),
        ),
    ],
)
def test_tar_failure_reason(message: str, reason: str) -> None:
    assert tar_failure_reason(message) == reason


# Programs that cannot be started -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "ssh"), SshNotFoundError),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "scp"), SshNotFoundError),
        (PermissionError(errno.EACCES, "Permission denied", "ssh"), SshNotFoundError),
        (FileNotFoundError("ssh"), SshNotFoundError),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/tmp/lazycluster-m-x/said"), ConnectError),
        (OSError(errno.EMFILE, "Too many open files"), ConnectError),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), ConnectError),
    ],
)
def test_start_failure_kind(error: OSError, kind: type[ConnectError]) -> None:
    failure = start_failure("web1", error)
    assert type(failure) is kind
    if kind is ConnectError:
        assert str(error) in failure.reason
