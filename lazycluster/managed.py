"""Processes of a runtime, to watch, wait for and stop; and objects that are closed at the end of a block."""

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
    """A started process, a task in the background or a tunnel.

    Names and meanings are those of `multiprocessing.Process`.
    """

    @property
    def name(self) -> str:
        """A description for people."""

    @property
    def pid(self) -> int | None:
        """The process id of its ssh process; None if it has no such process now."""

    @property
    def exitcode(self) -> int | None:
        """0 after a success, another number after a failure, a negative one if it was stopped; None while it runs."""

    def is_alive(self) -> bool:
        """Return whether it still runs."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most `timeout` seconds."""

    def terminate(self) -> None:
        """Stop it, and wait until it is gone."""

    def kill(self) -> None:
        """Stop it without giving it time, and wait until it is gone."""
