"""The directories that a supervisor makes, and removes at its end; sent to the host.

Standard library only, and the syntax of Python 3.6.
"""

import errno
import os
import stat

_MOVED_UP_PREFIX = ".lazycluster-deep-"
_MAX_REPORTED_FAILURES = 20  # paths that are reported with the reason


class TempDirs:
    """Paths on the host, and the temporary ones among them."""

    def __init__(self, prefix: str) -> None:
        """Use the current directory as home; a temporary directory is named by the prefix and a number."""
        self.home = os.getcwd()
        self._prefix = prefix
        self._count = 0
        self._paths: list[str] = []

    def absolute_path(self, path: str) -> str:
        """Return a path that does not depend on the current directory; `~` and `~user` are this machine's."""
        return os.path.normpath(os.path.join(self.home, os.path.expanduser(path)))

    def make_working_dir(self, path: str) -> str:
        """Make a directory if it is missing, and return its full path."""
        absolute = self.absolute_path(path)
        os.makedirs(absolute, exist_ok=True)
        os.chdir(absolute)  # fails if the directory cannot be entered
        os.chdir(self.home)
        return absolute

    def make_temp_dir(self) -> str:
        """Make a temporary directory, and return its path."""
        self._count += 1
        path = f"{self._prefix}{self._count}"
        os.mkdir(path, 0o700)
        self._paths.append(path)
        return path

    def discard(self, paths: "list[str]") -> None:
        """Forget directories that another process has removed."""
        self._paths = [path for path in self._paths if path not in paths]

    def remove_all(self) -> "list[str]":
        """Remove the temporary directories, and return the paths that could not be removed, with reasons."""
        os.chdir("/")
        failures: list[str] = []
        for path in self._paths:
            failures += remove_tree(path)
        self._paths = []
        return failures


def _move_up(path: str, new_path: str) -> str:
    """Move a directory whose path is too long to be named, while that of its parent is not, and return its new path."""
    parent, name = os.path.split(path)
    os.chdir(parent)
    os.rename(name, new_path)
    os.chdir("/")
    return new_path


def remove_tree(path: str) -> "list[str]":
    """Remove a directory with all that is in it, read-only directories too; return the paths that remain, and why.

    Links are not followed, not even one that has taken the place of the directory itself.
    """
    failures: list[str] = []
    todo = [path]
    directories: list[str] = []
    while todo:
        current = todo.pop()
        try:
            if not stat.S_ISDIR(os.lstat(current).st_mode):
                os.unlink(current)
                continue
            directories.append(current)
            os.chmod(current, 0o700)
            todo += [f"{current}/{name}" for name in os.listdir(current)]
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG and current != path:
                todo.append(_move_up(current, f"{path}/{_MOVED_UP_PREFIX}{len(directories)}"))
            else:
                failures.append(f"{current}: {error.strerror}")
    for directory in reversed(directories):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            failures.append(f"{directory}: {error.strerror}")
    return failures[:_MAX_REPORTED_FAILURES]
