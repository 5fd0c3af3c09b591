"""The errors: their texts, classes and fields, and their pickles."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import threading
import traceback

import attrs
import attrs.exceptions
import pytest

import lazycluster
from lazycluster import exceptions as e
from lazycluster.exceptions._text import error_text

LONG = "x" * 300
MANY = "".join(f"line {number}\n" for number in range(30))
LAST = "\n".join(f"    line {number}" for number in range(10, 30))

CASES: list[tuple[e.LazyclusterError, str]] = [
    (e.ConnectError("web1", "why"), "web1: no connection (why). Try `ssh -v web1 true` in a terminal."),
    (
        e.ConnectError("web1", "why.", options=("-F", "/a b", "-o", "Port=2222")),
        "web1: no connection (why). Try `ssh -v -F '/a b' -o Port=2222 web1 true` in a terminal.",
    ),
    (e.ConnectError("web1", ""), "web1: no connection. Try `ssh -v web1 true` in a terminal."),
    (e.ConnectError("web1", "why", "web1"), "web1: no connection (why). Try `ssh -v web1 true` in a terminal."),
    (
        e.ConnectError("web1", "why", "bastion"),
        "web1: no connection at bastion (why). Try `ssh -v web1 true` in a terminal.",
    ),
    (
        e.UnknownHostError("web1", "Name or service not known"),
        (
            "web1: unknown host name (Name or service not known). Check the spelling, DNS, and the HostName in your "
            "ssh configuration: `ssh -G web1 | grep ^hostname`."
        ),
    ),
    (
        e.PortRefusedError("web1", "why"),
        (
            "web1: connection refused (why). Check that sshd runs there, and the Port in your ssh configuration: "
            "`ssh -G web1 | grep ^port`."
        ),
    ),
    (
        e.ConnectTimeoutError("web1", "why"),
        (
            "web1: no answer in time (why). Check that the machine is up and that no firewall drops its port, or allow "
            "it more time (connect_timeout)."
        ),
    ),
    (
        e.UnknownHostError("me@web1:2222", "why"),
        (
            "me@web1:2222: unknown host name (why). ssh takes no port after a name: give it as port=2222, or as Port "
            "in your ssh configuration."
        ),
    ),
    (
        e.HostUnreachableError("web1", "why"),
        "web1: host unreachable (why). Check your network, VPN and routes to web1.",
    ),
    (
        e.HostUnreachableError("web1", "why", "bastion"),
        "web1: host unreachable at bastion (why). Check your network, VPN and routes to bastion.",
    ),
    (
        e.ConnectionThrottledError("web1", "why"),
        (
            "web1: sshd closed the connection before log-in (why). Too many log-ins at once (MaxStartups), or this "
            "address is blocked there: try again later."
        ),
    ),
    (
        e.UnknownHostKeyError("web1", "why"),
        (
            "web1: the host key is not known (why). Run `ssh web1 true` once in a terminal, compare the fingerprint, "
            "and answer yes."
        ),
    ),
    (
        e.ChangedHostKeyError("web1", "why"),
        (
            "web1: the host key has changed (why). Make sure that this is expected; then remove the old key with "
            "`ssh-keygen -R`, as `ssh web1` explains."
        ),
    ),
    (
        e.AuthenticationError("web1", "why"),
        (
            "web1: authentication refused (why). Check the password if you gave one; or install your key with "
            "`ssh-copy-id web1`, load it into the agent, or name its file (identity_file=, or IdentityFile in "
            "your ssh configuration)."
        ),
    ),
    (
        e.SshConfigurationError("web1", "why"),
        (
            "web1: ssh does not accept the configuration (why). Check the configuration and the options, "
            "with `ssh -G web1`."
        ),
    ),
    (
        e.SshNotFoundError("web1", "why"),
        (
            "web1: the OpenSSH client cannot be started (why). Install it (Debian and Ubuntu: openssh-client) and make "
            "sure that `ssh -V` works."
        ),
    ),
    (
        e.ConnectionLostError("web1", "make\n  all", "why", True),
        (
            "web1: connection lost during `make all` (why). It had started on the host, which ends it when it sees the "
            "connection gone."
        ),
    ),
    (
        e.ConnectionLostError("web1", LONG, "why", False),
        f"web1: connection lost during `{'x' * 199}…` (why). It had not started on the host.",
    ),
    (
        e.ConnectionLostError("web1", "x" * 200, "why"),
        f"web1: connection lost during `{'x' * 200}` (why). It may or may not have started on the host.",
    ),
    (
        e.SessionRefusedError("web1", "make", "why"),
        (
            "web1: refused a session for `make` (why). "
            "Set `max_sessions=` to the MaxSessions of its sshd_config; 0 forbids sessions."
        ),
    ),
    (
        e.LoginShellError("web1", "make", 1, "This account is currently not available.\n"),
        (
            "web1: the login shell ended with exit status 1 before `make` began. Check the account's shell and its "
            "start-up files: `ssh web1 true`.\n    This account is currently not available."
        ),
    ),
    (
        e.CommandTimeoutError("web1", "make", 1.5),
        "web1: `make` took longer than its timeout of 1.5 s and was ended.",
    ),
    (
        e.CommandTimeoutError("web1", "make", 10.0, b"out\xff\n", b"err\n"),
        "web1: `make` took longer than its timeout of 10 s and was ended.\n    out\ufffd\n    err",
    ),
    (
        e.OutputLimitError("web1", "yes", 10, "stdout", b"y\ny\n", b"err\n"),
        (
            "web1: `yes` printed more than 10 bytes to stdout and was ended. Allow more with max_output=, or send its "
            "output to a file on the host.\n    y\n    y"
        ),
    ),
    (
        e.OutputLimitError("web1", "yes", 10, "stderr", b"out\n", b"\xff"),
        (
            "web1: `yes` printed more than 10 bytes to stderr and was ended. Allow more with max_output=, or send its "
            "output to a file on the host.\n    \ufffd"
        ),
    ),
    (e.CommandStoppedError("web1", "make"), "web1: `make` was stopped before it ended."),
    (e.CommandFailedError("web1", "make", 2), "web1: `make` ended with exit status 2."),
    (e.CommandFailedError("web1", "make", 2, " \n"), "web1: `make` ended with exit status 2."),
    (e.CommandFailedError("web1", "make", 2, MANY), f"web1: `make` ended with exit status 2.\n{LAST}"),
    (
        e.WorkingDirectoryError("web1", "/a b", "why"),
        "web1: cannot enter the working directory '/a b' (why). Create it first.",
    ),
    (
        e.TaskExecutionError("web1", "t", 2, "run_command(x)", "why"),
        "web1: task 't' failed at step 2, run_command(x): why",
    ),
    (e.RemoteFunctionError("web1", "f", "why"), "web1: function 'f' failed: why"),
    (e.RemoteFunctionError("web1", "f", "why", "a\nb\n"), "web1: function 'f' failed: why\n    a\n    b"),
    (
        e.FunctionTimeoutError("web1", "f", 1.5, "a\n"),
        "web1: function 'f' took longer than its timeout of 1.5 s and was ended.\n    a",
    ),
    (e.RemoteTraceback("web1", "a\nb\n\n"), "raised on web1:\na\nb"),
    (
        e.FunctionNotSerializableError("f", "why"),
        "function 'f' cannot be sent to a host: why. Create locks, sockets, files and the like inside the function.",
    ),
    (
        e.PythonNotFoundError("web1", "python3"),
        (
            "web1: no Python found (looked for python3). Install python3 there, or name it with python=; commands and "
            "files need none: Runtime(..., resident=False), or --no-resident."
        ),
    ),
    (
        e.SupervisorError("web1", "why"),
        (
            "web1: the supervisor on the host: why. Check that `ssh web1 python3 -V` works; "
            "Runtime(..., resident=False), or --no-resident, does without it."
        ),
    ),
    (
        e.SupervisorError("web1", "why", "a\nb\n"),
        (
            "web1: the supervisor on the host: why. Check that `ssh web1 python3 -V` works; "
            "Runtime(..., resident=False), or --no-resident, does without it.\n    a\n    b"
        ),
    ),
    (
        e.PythonVersionMismatchError("web1", "3.11", "3.9"),
        (
            "web1: Python 3.9 there, 3.11 here; functions travel as bytecode, so both need the same minor version. "
            "Name one there with Runtime(..., python='python3.11'), or by its path; "
            "`lazycluster doctor web1` looks for them."
        ),
    ),
    (
        e.PythonVersionMismatchError("web1", "3.11", "3.9", "/usr/bin/python3"),
        (
            "web1: Python 3.9 (/usr/bin/python3) there, 3.11 here; functions travel as bytecode, so both need the same "
            "minor version. Name one there with Runtime(..., python='python3.11'), or by its path; "
            "`lazycluster doctor web1` looks for them."
        ),
    ),
    (e.TransferError("web1", "send", "/a b", "why"), "web1: cannot send '/a b': why"),
    (e.HostFileNotFoundError("web1", "read", "/a b", "why"), "web1: cannot read '/a b': why"),
    (
        e.UnsafeArchiveError("../x", "why"),
        "tar member '../x' refused: why. Nothing was written outside of the target.",
    ),
    (e.BrokenArchiveError("x", "why"), "tar stream broken at or after member 'x': why."),
    (e.BrokenArchiveError("", "why"), "tar stream broken at its beginning: why."),
    (e.TunnelError("web1", "-L x", "why"), "web1: tunnel -L x: why"),
    (
        e.ForwardingRefusedError("web1", "-L x", "why"),
        (
            "web1: tunnel -L x: forwarding refused by the host (why). See AllowTcpForwarding, PermitOpen and "
            "PermitListen in its sshd_config."
        ),
    ),
    (
        e.PortInUseError("web1", 1023),
        ("web1: port 1023 is in use (or reserved for root, as all below 1024 are). Choose another one there."),
    ),
    (
        e.PortInUseError("localhost", 8080),
        "localhost: port 8080 is in use. Choose another one on this machine.",
    ),
    (
        e.PortInUseError("web1", 1024),
        "web1: port 1024 is in use. Choose another one there.",
    ),
    (e.NoPortsLeftError("web1", ()), "web1: no port to choose from, the list is empty."),
    (e.NoPortsLeftError("web1", (9, 7, 8)), "web1: none of the 3 ports from 7 to 9 is free."),
    (e.InvalidRuntimeError("web1", "why"), "web1 cannot be used as a runtime: why"),
    (
        e.HostsFailedError(
            "`make`",
            (
                ("web1", e.CommandTimeoutError("web1", "make", 1.5, b"one\ntwo\n")),
                ("web2", e.InvalidRuntimeError("web2", "why")),
                ("web4", OSError("no such thing")),
            ),
            4,
            {"web3": 1},
        ),
        (
            "`make` failed on 3 of 4 hosts:\n"
            "  web1: `make` took longer than its timeout of 1.5 s and was ended.\n"
            "      one\n"
            "      two\n"
            "  web2 cannot be used as a runtime: why\n"
            "  web4: OSError: no such thing"
        ),
    ),
    (
        e.HostsFailedError("f", (("web1", KeyError("x")),), 3, {}, ("web2", "web3")),
        "f failed on 1 of 3 hosts:\n  web1: KeyError: 'x'\n  not started on web2, web3",
    ),
    (e.HostsFailedError("f", (("web1", KeyError("x")),), 1), "f failed on 1 of 1 host:\n  web1: KeyError: 'x'"),
    (
        e.HostsFailedError("a task", (("h", KeyError("x")), ("h", KeyError("y")))),
        "a task failed on 1 host:\n  h: KeyError: 'x'\n  h: KeyError: 'y'",
    ),
    (
        e.HostsFailedError(f"`{LONG}`", (("web1", e.RuntimeClosedError("web1")),), 2),
        f"`{'x' * 198}… failed on 1 of 2 hosts:\n  web1: closed already. Make a new one.",
    ),
    (e.NoRuntimesError("the group has no hosts"), "the group has no hosts"),
    (
        e.NoRuntimesDetectedError("~/.ssh/config"),
        "no hosts: ~/.ssh/config names none. Add a `Host` entry (`lazycluster add-runtime`), or name them yourself.",
    ),
    (
        e.NoRuntimesDetectedError("~/.ssh/config", (("it", "it has no GPU"), ("web2", "why\n    said"))),
        "no host can be used, of 2 that ~/.ssh/config names:\n  it: it has no GPU\n  web2: why\n      said",
    ),
    (e.RuntimeClosedError("web1"), "web1: closed already. Make a new one."),
]
ERRORS = [error for error, _ in CASES]
CLASSES = {value for _, value in inspect.getmembers(e, inspect.isclass) if issubclass(value, e.LazyclusterError)}
BASES = {e.LazyclusterError, e.HostError, e.CommandError, e.FunctionError}
"""Base classes without fields, which are never raised themselves."""


def class_name(error: object) -> str:
    return type(error).__name__ if isinstance(error, Exception) else ""


@pytest.mark.parametrize(("error", "text"), CASES, ids=class_name)
def test_error_text(error: e.LazyclusterError, text: str) -> None:
    assert str(error) == text


def test_error_classes_are_all_in_the_table() -> None:
    assert CLASSES - {type(error) for error in ERRORS} == BASES


def test_error_classes_are_in_lazycluster_all() -> None:
    assert {cls.__name__ for cls in CLASSES} <= set(lazycluster.__all__)
    assert all(getattr(lazycluster, cls.__name__) is cls for cls in CLASSES)


@pytest.mark.parametrize("error", ERRORS, ids=class_name)
def test_error_pickle_keeps_every_field(error: e.LazyclusterError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert comparable_fields(again) == comparable_fields(error)


def comparable_fields(error: BaseException) -> dict[str, object]:
    """Return the fields in a form that can be compared, because an exception is equal to itself only."""
    return {name: value if name != "errors" else repr(value) for name, value in fields(error).items()}


def fields(error: BaseException) -> dict[str, object]:
    """Return the attributes without those of the standard library, which begin with an underscore."""
    return {name: value for name, value in vars(error).items() if not name.startswith("_")}


def test_hosts_failed_error_pickle_drops_unpicklable_value() -> None:
    error = e.HostsFailedError("f", (("web1", KeyError("x")),), 3, {"web2": threading.Lock(), "web3": 3})
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.values == {"web3": 3}
    assert [type(found) for found in again.exceptions] == [KeyError]


@pytest.mark.parametrize("error", ERRORS, ids=class_name)
def test_error_pickle_after_raise_keeps_every_field(error: e.LazyclusterError) -> None:
    with pytest.raises(e.LazyclusterError) as caught:
        raise copy.copy(error) from KeyError("the cause")
    assert isinstance(caught.value.__cause__, KeyError)
    assert comparable_fields(pickle.loads(pickle.dumps(caught.value))) == comparable_fields(error)


@pytest.mark.parametrize("error", ERRORS, ids=class_name)
def test_error_fields_are_frozen(error: e.LazyclusterError) -> None:
    assert fields(error)
    for name in fields(error):
        with pytest.raises(attrs.exceptions.FrozenError):
            setattr(error, name, None)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("why"), "ValueError: why"),
        (AssertionError(), "AssertionError"),
        (e.UnknownHostKeyError("web1", "?"), str(e.UnknownHostKeyError("web1", "?"))),
    ],
    ids=["message", "no message", "own error"],
)
def test_error_text_of_any_error(error: Exception, text: str) -> None:
    assert error_text(error) == text


@pytest.mark.parametrize("error", ERRORS, ids=class_name)
def test_error_text_names_host_and_is_in_traceback(error: e.LazyclusterError) -> None:
    host = getattr(error, "host", None)
    if host is not None:
        assert host in str(error)
    assert str(error).splitlines()[0] in "".join(traceback.format_exception(error))


CONNECT = {cls for cls in CLASSES if issubclass(cls, e.ConnectError)}


@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        (ValueError, {*CONNECT, e.PortInUseError, e.InvalidRuntimeError, e.NoRuntimesError}),
        (ConnectionError, {e.ConnectionLostError}),
        (TimeoutError, {e.CommandTimeoutError, e.FunctionTimeoutError}),
        (FileNotFoundError, {e.HostFileNotFoundError}),
        (
            OSError,
            {e.ConnectionLostError, e.CommandTimeoutError, e.FunctionTimeoutError, e.HostFileNotFoundError},
        ),
        (e.TunnelError, {e.TunnelError, e.ForwardingRefusedError}),
    ],
)
def test_error_further_bases(kind: type[Exception], classes: set[type[Exception]]) -> None:
    assert {cls for cls in CLASSES if issubclass(cls, kind)} == classes


def drawn_tree() -> dict[str, tuple[str, str, str]]:
    """Return each class of the tree in the docstring with its mark, its base and its further base."""
    drawn: dict[str, tuple[str, str, str]] = {}
    parents = {-1: ""}
    for line in (e.__doc__ or "").splitlines():
        match = re.fullmatch(r"((?:  )*)([*x+]) (\w+)(?: \((\w+)\))?", line)
        if match is not None:
            indent, mark, cls, further = match.groups(default="")
            depth = len(indent) // 2
            parents[depth] = cls
            assert cls not in drawn
            drawn[cls] = (mark, parents[depth - 1], further)
    return drawn


def test_error_tree_of_docstring_has_every_class() -> None:
    def bases(cls: type[e.LazyclusterError]) -> tuple[str, str]:
        ours = [base.__name__ for base in cls.__bases__ if base in CLASSES]
        further = [base.__name__ for base in cls.__bases__ if base not in CLASSES | {Exception}]
        assert len(ours) == (cls is not e.LazyclusterError)
        return "".join(ours), "".join(further)

    marks = dict.fromkeys(CLASSES, "+") | dict.fromkeys(BASES, "x") | {e.LazyclusterError: "*"}

    assert drawn_tree() == {cls.__name__: (marks[cls], *bases(cls)) for cls in CLASSES}


def test_error_base_classes_have_no_fields() -> None:
    assert {cls for cls in CLASSES if not attrs.has(cls)} == BASES
    assert not any("__annotations__" in vars(cls) for cls in BASES)


def test_host_lost_errors_are_host_and_directory_errors() -> None:
    lost = {cls for cls in CLASSES if issubclass(cls, e.HOST_LOST_ERRORS)}

    assert lost == {cls for cls in CLASSES if issubclass(cls, e.HostError)} | {e.WorkingDirectoryError}


def test_connect_error_has_eleven_classes() -> None:
    assert len(CONNECT) == 11


def test_error_repr_hides_output() -> None:
    """Output may hold secrets: it is in the message of its error only."""
    assert "hunter2" not in repr(e.CommandTimeoutError("web1", "make", 1.0, b"hunter2", b"hunter2"))
    assert "hunter2" not in repr(e.OutputLimitError("web1", "make", 1, "stdout", b"hunter2", b"hunter2"))
    assert "hunter2" not in repr(e.CommandFailedError("web1", "make", 1, "hunter2"))
    assert "hunter2" not in repr(e.SupervisorError("web1", "why", "hunter2"))
