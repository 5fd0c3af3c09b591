"""The root of the error tree."""

from __future__ import annotations


class LazyclusterError(Exception):
    """Anything that this library raises on purpose."""

    def __reduce__(self) -> tuple[type[LazyclusterError], tuple[object, ...]]:
        """Return the class and arguments that rebuild it; the default sets attributes, which frozen records refuse."""
        return type(self), self.args
