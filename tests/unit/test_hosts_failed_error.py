"""`HostsFailedError` as a group: its parts, its notes, its traceback, and `except*`."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import traceback

import pytest

from lazycluster import CommandStoppedError, HostsFailedError, LazyclusterError
from lazycluster._typing import BaseExceptionGroup, ExceptionGroup

VALUES = {"d": 1}


@pytest.fixture
def error() -> HostsFailedError:
    """Return an error of three out of four hosts."""
    errors = (("a", KeyError("x")), ("b", CommandStoppedError("b", "make")), ("c", KeyError("y")))
    return HostsFailedError("`make`", errors, 4, VALUES)


def notes(error: BaseException) -> list[str]:
    found: list[str] = getattr(error, "__notes__", [])
    return found


def test_hosts_failed_error_is_a_group_of_its_errors(error: HostsFailedError) -> None:
    assert isinstance(error, ExceptionGroup)
    assert isinstance(error, LazyclusterError)
    assert error.message == str(error)
    assert error.exceptions == tuple(member for _, member in error.errors)


def test_hosts_failed_error_without_errors_raises() -> None:
    with pytest.raises(ValueError, match="non-empty"):
        HostsFailedError("`make`", (), 4)


# Parts ---------------------------------------------------------------------------------------------------------------


def test_hosts_failed_error_split_keeps_hosts_and_values(error: HostsFailedError) -> None:
    chosen, rest = error.split(KeyError)

    assert isinstance(chosen, HostsFailedError)
    assert chosen.errors == (error.errors[0], error.errors[2])
    assert isinstance(rest, HostsFailedError)
    assert rest.errors == (error.errors[1],)
    for part in (chosen, rest):
        assert (part.action, part.total, part.values) == ("`make`", 4, VALUES)
    assert str(rest) == "`make` failed on 1 of 4 hosts:\n  b: `make` was stopped before it ended."


def test_hosts_failed_error_subgroup_keeps_hosts(error: HostsFailedError) -> None:
    part = error.subgroup(lambda member: member is error.exceptions[2])

    assert isinstance(part, HostsFailedError)
    assert part.errors == (error.errors[2],)
    assert error.subgroup(LookupError) is not None
    assert error.subgroup(OSError) is None


def test_hosts_failed_error_split_shared_error_keeps_hosts() -> None:
    shared = KeyError("x")
    error = HostsFailedError("f", (("a", shared), ("b", ValueError()), ("c", shared)), 3)

    chosen, rest = error.split(KeyError)

    assert isinstance(chosen, HostsFailedError)
    assert chosen.errors == (("a", shared), ("c", shared))
    assert isinstance(rest, HostsFailedError)
    assert [host for host, _ in rest.errors] == ["b"]


def test_hosts_failed_error_split_nested_group_keeps_host() -> None:
    key_error, value_error = KeyError("x"), ValueError("y")
    inner = ExceptionGroup("inner", [key_error, value_error])
    error = HostsFailedError("f", (("a", OSError()), ("b", inner)), 2)

    chosen, rest = error.split(KeyError)

    assert isinstance(chosen, HostsFailedError)
    [(host, part)] = chosen.errors
    assert host == "b"
    assert isinstance(part, ExceptionGroup)
    assert part.exceptions == (key_error,)
    assert isinstance(rest, HostsFailedError)
    assert [host for host, _ in rest.errors] == ["a", "b"]


def test_hosts_failed_error_derive_others_is_plain_group(error: HostsFailedError) -> None:
    for others in ([OSError()], [error.exceptions[0], OSError()], [KeyboardInterrupt()]):
        derived = error.derive(others)

        assert not isinstance(derived, HostsFailedError)
        assert isinstance(derived, BaseExceptionGroup)
        assert list(derived.exceptions) == others
        assert derived.message == "`make` failed"


# Notes ---------------------------------------------------------------------------------------------------------------


def test_hosts_failed_error_members_have_one_host_note(error: HostsFailedError) -> None:
    error.split(KeyError)
    again = pickle.loads(pickle.dumps(error))
    HostsFailedError("map(f)", error.errors)

    for group in (error, again, copy.copy(error)):
        assert [notes(member) for member in group.exceptions] == [["on host a"], ["on host b"], ["on host c"]]


def test_hosts_failed_error_shared_member_has_all_hosts() -> None:
    shared = KeyError("x")

    HostsFailedError("f", (("a", shared), ("b", shared), ("a", shared)))

    assert notes(shared) == ["on host a", "on host b"]


def test_hosts_failed_error_keeps_other_notes() -> None:
    error = KeyError("x")
    vars(error)["__notes__"] = ["theirs"]

    HostsFailedError("f", (("a", error),))

    assert notes(error) == ["theirs", "on host a"]


def test_hosts_failed_error_traceback_names_each_host(error: HostsFailedError) -> None:
    def fail() -> None:
        raise error.exceptions[0]

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(HostsFailedError) as caught:
        raise error
    text = "".join(traceback.format_exception(caught.value))

    assert text.startswith("  + Exception Group Traceback")
    assert "HostsFailedError: `make` failed on 3 of 4 hosts:\n" in text
    for host in "abc":
        assert text.count(f"on host {host}\n") == 1
    assert text.count("in fail\n") == 1


# Copies --------------------------------------------------------------------------------------------------------------


def test_hosts_failed_error_pickled_part_keeps_hosts(error: HostsFailedError) -> None:
    part = HostsFailedError("f", error.errors, 4, {"d": threading.Lock(), "e": 2}).subgroup(KeyError)

    again = pickle.loads(pickle.dumps(part))

    assert type(again) is HostsFailedError
    assert [host for host, _ in again.errors] == ["a", "c"]
    assert [type(member) for member in again.exceptions] == [KeyError, KeyError]
    assert again.values == {"e": 2}


# except* -------------------------------------------------------------------------------------------------------------

EXCEPT_STAR = """
def handle(error):
    handled = []
    try:
        try:
            raise error
        except* KeyError as group:
            handled.append(group)
    except HostsFailedError as rest:
        handled.append(rest)
    return handled

def handle_root(error):
    try:
        raise error
    except* LazyclusterError as group:
        whole = group
    return whole

def handle_groups(error):
    try:
        raise error
    except* HostsFailedError:
        pass
"""
"""Code with `except*`, which Python 3.10 does not parse."""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="except* needs Python 3.11")
def test_hosts_failed_error_except_star_selects_members(error: HostsFailedError) -> None:
    names: dict[str, object] = {"HostsFailedError": HostsFailedError, "LazyclusterError": LazyclusterError}
    exec(EXCEPT_STAR, names)
    handle, handle_root, handle_groups = names["handle"], names["handle_root"], names["handle_groups"]
    assert callable(handle)
    assert callable(handle_root)
    assert callable(handle_groups)

    chosen, rest = handle(error)

    assert chosen.errors == (error.errors[0], error.errors[2])
    assert rest.errors == (error.errors[1],)
    assert handle_root(error).errors == error.errors, "the group is itself a LazyclusterError"
    with pytest.raises(TypeError):
        handle_groups(error)
