"""Errors of many hosts: some of them failed, or a group or manager has no host that can do the work."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import TypeVar, overload

import attrs

from lazycluster._typing import BaseExceptionGroup, ExceptionGroup, Self
from lazycluster.exceptions._text import add_host_note, error_lines, shorten
from lazycluster.exceptions.root import LazyclusterError

X = TypeVar("X", bound=Exception)
B = TypeVar("B", bound=BaseException)


# Not `attrs.frozen`: the backport of ExceptionGroup sets attributes of its own. Fields still cannot be set.
@attrs.define(slots=False, on_setattr=attrs.setters.frozen)
class HostsFailedError(LazyclusterError, ExceptionGroup[Exception]):
    """The same work failed on some of several hosts: an `ExceptionGroup` of their errors, each with a note of its host.

    `errors` pairs each host with its error, in the order of the hosts. `total` is the number of hosts in the work.
    `values` holds the results of the other hosts, and `not_started` names those on which the work did not begin,
    because it failed on others before (`at_once=`). A pickle leaves out values that cannot be pickled, such as tasks.
    `split()` and `subgroup()` keep the hosts of the errors they choose, and the values.

    `except HostsFailedError` catches it as a whole, `except* SomeError` its members of that class. Python allows no
    class of groups after `except*` (PEP 654). `except* LazyclusterError` catches it as a whole, since it is one itself.
    """

    action: str
    errors: tuple[tuple[str, Exception], ...]
    total: int = 0
    values: Mapping[str, object] = attrs.field(factory=dict, repr=False, eq=False)
    not_started: tuple[str, ...] = ()

    def __new__(cls, action: str, errors: Sequence[tuple[str, Exception]], *_: object, **__: object) -> Self:
        """Make the group of the errors; `__init__` sets the fields."""
        return super().__new__(cls, action, [error for _, error in errors])

    def __attrs_post_init__(self) -> None:
        for host, error in self.errors:
            add_host_note(error, host)

    @property
    def message(self) -> str:
        """The work, the number of hosts on which it failed, and the error of each: the same as `str()` of it."""
        hosts = len({host for host, _ in self.errors})
        of = f" of {self.total}" if self.total else ""
        head = f"{shorten(self.action)} failed on {hosts}{of} host{'s' if max(hosts, self.total) > 1 else ''}:"
        lines = [f"  {line}" for host, error in self.errors for line in error_lines(host, error)]
        if self.not_started:
            lines.append(f"  not started on {', '.join(self.not_started)}")
        return "\n".join([head, *lines])

    @overload
    def derive(self, excs: Sequence[X], /) -> ExceptionGroup[X]: ...
    @overload
    def derive(self, excs: Sequence[B], /) -> BaseExceptionGroup[B]: ...
    def derive(self, excs: Sequence[B], /) -> BaseExceptionGroup[B] | HostsFailedError:
        """Return a group of some of its errors in their order, with their hosts; for other errors, a plain group.

        `split()` and `subgroup()` call it, also with parts of members that are groups themselves.
        """
        pairs = iter(self.errors)
        errors = []
        for error in excs:
            host = next((host for host, member in pairs if _is_part(error, member)), None)
            if host is None or not isinstance(error, Exception):
                return BaseExceptionGroup(f"{shorten(self.action)} failed", excs)
            errors.append((host, error))
        return HostsFailedError(self.action, tuple(errors), self.total, self.values, self.not_started)

    def __reduce__(self) -> tuple[type[LazyclusterError], tuple[object, ...]]:
        """Return the class and arguments that rebuild it."""
        values = {host: value for host, value in self.values.items() if _can_pickle(value)}
        return type(self), (self.action, self.errors, self.total, values, self.not_started)

    def __str__(self) -> str:
        return self.message


def _is_part(error: BaseException, member: BaseException) -> bool:
    """Return whether an error is a member of a group or, if the member is a group, was split from it."""
    return error is member or not _leaves(error).isdisjoint(_leaves(member))


def _leaves(error: BaseException) -> set[int]:
    """Return the identities of the errors in a group, or of one error."""
    if isinstance(error, BaseExceptionGroup):
        return set().union(*map(_leaves, error.exceptions))
    return {id(error)}


def _can_pickle(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - it calls methods that users write
        return False
    return True


@attrs.frozen(slots=False)
class NoRuntimesError(LazyclusterError, ValueError):
    """A group has no host that can do the work."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@attrs.frozen(slots=False)
class NoRuntimesDetectedError(LazyclusterError):
    """No host can be used: the list of hosts is empty, or each host fails to answer or lacks a requirement.

    `tried` pairs each host with the reason that it cannot be used; `source` is the place that lists their names.
    """

    source: str
    tried: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if not self.tried:
            advice = "Add a `Host` entry (`lazycluster add-runtime`), or name them yourself."
            return f"no hosts: {self.source} names none. {advice}"
        lines = [f"  {line}" for host, reason in self.tried for line in f"{host}: {reason}".splitlines()]
        return "\n".join([f"no host can be used, of {len(self.tried)} that {self.source} names:", *lines])
