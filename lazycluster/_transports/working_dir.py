"""The working directory of a runtime, and the new one that takes the place of a temporary one that is gone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import attrs

from lazycluster._processes.forks import reset_in_forks
from lazycluster.exceptions import WorkingDirectoryError


class WorkingDir:
    """The working directory of a runtime. Any thread may use it."""

    def __init__(self) -> None:
        """Begin without a directory."""
        self.path = ""
        self._is_temporary = False
        self._former: list[str] = []
        """The temporary directories that are gone. Work that began in one must not go on in another."""
        self.reset_after_fork()
        reset_in_forks(self)

    def reset_after_fork(self) -> None:
        """Make a lock that no thread holds."""
        self._lock = threading.Lock()

    def set(self, path: str, *, is_temporary: bool) -> None:
        """Use a directory."""
        self.path, self._is_temporary = path, is_temporary

    @contextlib.contextmanager
    def replaced_if_gone(self, is_gone: Callable[[str], bool], make: Callable[[], str]) -> Iterator[None]:
        """Make a new directory if the block cannot enter a temporary one that is gone; the error then says so.

        Raises:
            WorkingDirectoryError: If the block raises it.
        """
        try:
            yield
        except WorkingDirectoryError as error:
            raise self._replace(error, is_gone, make) from error.__cause__

    def _replace(
        self, error: WorkingDirectoryError, is_gone: Callable[[str], bool], make: Callable[[], str]
    ) -> WorkingDirectoryError:
        with self._lock:
            if not any(is_within(error.path, path) for path in self._former):
                if not (self._is_temporary and is_within(error.path, self.path) and is_gone(self.path)):
                    return error
                former, self.path = self.path, make()
                self._former.append(former)
            return attrs.evolve(error, advice=f"A new, empty one has taken its place: {self.path}.")


def is_within(path: str, directory: str) -> bool:
    """Return whether a path is a directory, or lies in it."""
    return f"{path}/".startswith(f"{directory}/")
