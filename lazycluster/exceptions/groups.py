"""Errors of many hosts: some of them failed, or a group or manager has no host that can do the work."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import attrs

from lazycluster.exceptions._text import error_lines, shorten
from lazycluster.exceptions.root import LazyclusterError


@attrs.frozen(slots=False)
class HostsFailedError(LazyclusterError):
    """The same work failed on some of several hosts; it resembles an `ExceptionGroup`.

    `errors` pairs each host with its error, in the order of the hosts. `total` is the number of hosts in the work.
    `values` holds the results of the other hosts. A pickle leaves out values that cannot be pickled, such as tasks.
    """

    action: str
    errors: tuple[tuple[str, Exception], ...]
    total: int = 0
    values: Mapping[str, object] = attrs.field(factory=dict, repr=False, eq=False)

    @property
    def exceptions(self) -> tuple[Exception, ...]:
        """The errors, without the hosts."""
        return tuple(error for _, error in self.errors)

    def __reduce__(self) -> tuple[type[LazyclusterError], tuple[object, ...]]:
        """Return how to make it again from its facts."""
        values = {host: value for host, value in self.values.items() if _can_pickle(value)}
        return type(self), (self.action, self.errors, self.total, values)

    def __str__(self) -> str:
        hosts = len({host for host, _ in self.errors})
        of = f" of {self.total}" if self.total else ""
        head = f"{shorten(self.action)} failed on {hosts}{of} host{'s' if max(hosts, self.total) > 1 else ''}:"
        return "\n".join([head, *(f"  {line}" for host, error in self.errors for line in error_lines(host, error))])


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

    `tried` pairs each host with the reason that it cannot be used; `source` is the place of their names.
    """

    source: str
    tried: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if not self.tried:
            advice = "Add a `Host` entry (`lazycluster add-runtime`), or name them yourself."
            return f"no hosts: {self.source} names none. {advice}"
        lines = [f"  {line}" for host, reason in self.tried for line in f"{host}: {reason}".splitlines()]
        return "\n".join([f"no host can be used, of {len(self.tried)} that {self.source} names:", *lines])
