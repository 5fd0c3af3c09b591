"""Errors of files and directories on their way to or from a host."""

from __future__ import annotations

import attrs

from lazycluster.exceptions.root import LazyclusterError


@attrs.frozen(slots=False)
class TransferError(LazyclusterError):
    """A file or directory could not be sent or fetched. An older one at the target is unchanged."""

    host: str
    action: str
    path: str
    reason: str
    target: str = ""

    def __str__(self) -> str:
        to = f" to {self.target!r}" if self.target else ""
        return f"{self.host}: cannot {self.action} {self.path!r}{to}: {self.reason}"


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
