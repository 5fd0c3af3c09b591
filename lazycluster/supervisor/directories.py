"""The directories that a supervisor makes, and removes at its end; sent to the host as text.

Standard library only, and the syntax of Python 3.6.
"""

import os


class Directories:
    """Paths on the host, and the temporary ones among them."""

    def __init__(self, prefix: str) -> None:
        """Take the current directory for home; temporary directories get a prefix and a number for their names."""
        self.home = os.getcwd()
        self._prefix = prefix
        self._count = 0
        self._temporary: list[str] = []

    def full(self, path: str) -> str:
        """Return a path that does not depend on the current directory; `~` and `~user` are this machine's."""
        return os.path.normpath(os.path.join(self.home, os.path.expanduser(path)))

    def make(self, path: str) -> str:
        """Make a directory where it is missing, and return its full path."""
        full = self.full(path)
        os.makedirs(full, exist_ok=True)
        os.chdir(full)  # it can be entered
        os.chdir(self.home)
        return full

    def make_temporary(self) -> str:
        """Make a temporary directory, and return its path."""
        self._count += 1
        path = f"{self._prefix}{self._count}"
        os.mkdir(path, 0o700)
        self._temporary.append(path)
        return path

    def forget(self, paths: "list[str]") -> None:
        """Leave directories alone that somebody else has removed."""
        self._temporary = [path for path in self._temporary if path not in paths]

    def remove(self) -> "list[str]":
        """Remove the temporary directories, and return what could not be removed, with the reason."""
        os.chdir("/")
        left = []
        for path in self._temporary:
            try:
                remove_tree(path)
            except OSError as error:
                left.append(f"{error.filename or path}: {error.strerror}")
        self._temporary = []
        return left


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it, read-only directories too; links are not followed."""
    todo = [path]
    made_empty = []
    while todo:
        directory = todo.pop()
        made_empty.append(directory)
        try:
            os.chmod(directory, 0o700)
            with os.scandir(directory) as entries:
                found = list(entries)
        except FileNotFoundError:
            made_empty.pop()
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                todo.append(entry.path)
            else:
                os.unlink(entry.path)
    for directory in reversed(made_empty):
        os.rmdir(directory)
