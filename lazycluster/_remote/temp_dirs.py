"""The directories that a supervisor makes, and removes at its end; sent to the host.

Standard library only, and the syntax of Python 3.6.
"""

import errno
import os
import stat

_BROUGHT_UP = ".lazycluster-deep-"
_TOLD = 20  # paths of which the reason is told


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
        left: list[str] = []
        for path in self._temporary:
            left += remove_tree(path)
        self._temporary = []
        return left


def _brought_up(path: str, to: str) -> str:
    """Move a directory whose path is too long to be named, while that of its parent is not, and return its new path."""
    parent, name = os.path.split(path)
    os.chdir(parent)
    os.rename(name, to)
    os.chdir("/")
    return to


def remove_tree(path: str) -> "list[str]":
    """Remove a directory with all that is in it, read-only directories too; return what could not be removed, and why.

    Links are not followed, nor is what has taken the place of the directory itself.
    """
    left: list[str] = []
    todo = [path]
    directories: list[str] = []
    while todo:
        at = todo.pop()
        try:
            if not stat.S_ISDIR(os.lstat(at).st_mode):
                os.unlink(at)
                continue
            directories.append(at)
            os.chmod(at, 0o700)
            todo += [f"{at}/{name}" for name in os.listdir(at)]
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG and at != path:
                todo.append(_brought_up(at, f"{path}/{_BROUGHT_UP}{len(directories)}"))
            else:
                left.append(f"{at}: {error.strerror}")
    for directory in reversed(directories):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            left.append(f"{directory}: {error.strerror}")
    return left[:_TOLD]
