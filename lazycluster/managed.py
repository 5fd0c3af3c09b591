"""What runs on behalf of a runtime and can be looked at, waited for and stopped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Protocol

from lazycluster._typing import Self


class CleanupOnExit(ABC):
    """A context manager that is closed at the end of its block."""

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    @abstractmethod
    def cleanup(self) -> None:
        """End and remove everything that it holds. A second call does nothing."""

    def close(self) -> None:
        """Do what `cleanup()` does."""
        self.cleanup()


class ManagedProcess(Protocol):
    """A task in the background or a tunnel, with the names and meanings of `multiprocessing.Process`."""

    @property
    def name(self) -> str:
        """Return what it is, for people."""

    @property
    def pid(self) -> int | None:
        """Return the process id of the ssh process behind it; None where there is none just now."""

    @property
    def exitcode(self) -> int | None:
        """Return 0 after a good end, another number after a bad one, negative where it was stopped; None before."""

    def is_alive(self) -> bool:
        """Tell whether it still runs."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most so many seconds."""

    def terminate(self) -> None:
        """Stop it, and wait until it is gone."""

    def kill(self) -> None:
        """Stop it without giving it time, and wait until it is gone."""
