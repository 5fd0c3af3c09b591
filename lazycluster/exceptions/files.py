"""Errors of files and directories on their way to or from a host."""

from __future__ import annotations

import attrs

from lazycluster.exceptions.root import LazyclusterError

NO_SUCH_FILE = "no such file or directory"
"""The reason of a `TransferError` for a path that does not exist on the host, as the host's scripts print it."""


@attrs.frozen(slots=False)
class TransferError(LazyclusterError):
    """A file or directory could not be sent, fetched, read or written. An older one at the target is unchanged."""

    host: str
    action: str
    path: str
    reason: str
    target: str = ""

    def __str__(self) -> str:
        to = f" to {self.target!r}" if self.target else ""
        return f"{self.host}: cannot {self.action} {self.path!r}{to}: {self.reason}"


class HostFileNotFoundError(TransferError, FileNotFoundError):
    """There is no such file or directory on the host."""


def transfer_error(host: str, action: str, path: str, reason: str) -> TransferError:
    """Return the error of a path on a host, of the class that fits the reason."""
    error_class = HostFileNotFoundError if reason == NO_SUCH_FILE else TransferError
    return error_class(host, action, path, reason)


@attrs.frozen(slots=False)
class UnsafeArchiveError(LazyclusterError):
    """A member of a tar stream would land outside of the target, or is neither file, directory nor link."""

    member: str
    reason: str

    def __str__(self) -> str:
        return f"tar member {self.member!r} refused: {self.reason}. Nothing was written outside of the target."


@attrs.frozen(slots=False)
class BrokenArchiveError(LazyclusterError):
    """A tar stream ends early or is damaged. `member` is the last member that began; it is empty before the first."""

    member: str
    reason: str

    def __str__(self) -> str:
        where = f"at or after member {self.member!r}" if self.member else "at its beginning"
        return f"tar stream broken {where}: {self.reason}."
