"""How a supervisor starts processes; sent to the host.

Standard library only, and the syntax of Python 3.6.
"""

import _signal as signal  # `signal` itself makes enumerations of it, which takes 2 ms
import contextlib
import errno
import os

from lazycluster._remote.descriptors import close_all

POSIX_SHELLS = frozenset(("sh", "bash", "dash", "ash", "ksh", "ksh93", "mksh", "yash"))
"""The names of shells that understand the language of a POSIX shell."""
_SIGNALS_TO_RESET = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGQUIT)
"""Signals that Python ignores, or that a shell ignores in its background processes; exec resets handlers itself."""


def base_environment() -> "dict[bytes, bytes]":
    """Return the environment that commands begin with."""
    environment = {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
    level = environment.get(b"SHLVL", b"")
    # Under ssh bash reads ~/.bashrc again unless SHLVL shows that another shell started it.
    environment[b"SHLVL"] = level if level.isdigit() and int(level) > 0 else b"1"
    return environment


def login_shell() -> str:
    """Return the account's own shell if it understands the language of a POSIX shell, else /bin/sh."""
    shell = os.environ.get("SHELL", "")
    return shell if shell.rpartition("/")[2] in POSIX_SHELLS and os.access(shell, os.X_OK) else "/bin/sh"


def find_program(word: str, environment: "dict[bytes, bytes]") -> str:
    """Return the file that execvp(3) starts for a word, with the PATH of an environment.

    A file that is not executable is returned if PATH has no other of that name.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if "/" in word:
        return word
    found = ""
    path = os.fsdecode(environment.get(b"PATH", os.fsencode(os.defpath))) if word else ""
    for directory in path.split(":"):
        candidate = os.path.join(directory, word)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
        if not found and os.path.exists(candidate):
            found = candidate
    if not found:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return found


class DescriptorLimit:
    """The limit of descriptors (RLIMIT_NOFILE): raised for the supervisor, and not for the processes it starts."""

    def __init__(self) -> None:
        """Raise the limit if the system allows that."""
        self._original = (0, 0)
        with contextlib.suppress(ImportError, ValueError, OSError):
            import resource  # noqa: PLC0415 - not on every system

            self._original = resource.getrlimit(resource.RLIMIT_NOFILE)
            self.raise_to_hard_limit()

    def raise_to_hard_limit(self) -> None:
        """Raise the limit as far as the system allows."""
        self._set_soft_limit(self._original[1])

    def restore(self) -> None:
        """Restore the limit, for a process that is started next."""
        self._set_soft_limit(self._original[0])

    def _set_soft_limit(self, soft: int) -> None:
        if self._original[0] != self._original[1]:
            import resource  # noqa: PLC0415 - as above

            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, self._original[1]))


class Spawner:
    """Starts programs in sessions of their own."""

    def __init__(self, descriptor_limit: DescriptorLimit) -> None:
        """Keep three descriptors with low numbers: a child cannot inherit those above the limit once it is restored."""
        self._descriptor_limit = descriptor_limit
        self.low_descriptors = [os.dup(0) for _ in range(3)]

    def spawn(
        self, program: str, argv: "list[str]", environment: "dict[bytes, bytes]", descriptors: "list[int]"
    ) -> int:
        """Start a program with three standard streams, and return its process id.

        Raises:
            OSError: If the program cannot be started.
        """
        for descriptor, low in zip(descriptors, self.low_descriptors):
            os.dup2(descriptor, low, inheritable=False)
        try:
            try:
                actions = [(os.POSIX_SPAWN_DUP2, low, stream) for stream, low in enumerate(self.low_descriptors)]
                self._descriptor_limit.restore()
                return os.posix_spawn(
                    program, argv, environment, file_actions=actions, setsid=True, setsigdef=_SIGNALS_TO_RESET
                )
            except (AttributeError, NotImplementedError, TypeError):
                # This is a Python before 3.8, or its C library has no POSIX_SPAWN_SETSID.
                self._descriptor_limit.raise_to_hard_limit()
                return self._fork(program, argv, environment)
        finally:
            self._descriptor_limit.raise_to_hard_limit()
            for low in self.low_descriptors:  # otherwise they would keep the pipes open
                os.dup2(2, low, inheritable=False)

    def _fork(self, program: str, argv: "list[str]", environment: "dict[bytes, bytes]") -> int:
        error_reader, error_writer = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            close_all((error_reader, error_writer))
            raise
        if pid == 0:
            code = 0
            try:
                os.setsid()
                signal.set_wakeup_fd(-1)
                for signal_number in _SIGNALS_TO_RESET:
                    signal.signal(signal_number, signal.SIG_DFL)
                for stream, low in enumerate(self.low_descriptors):
                    os.dup2(low, stream)
                self._descriptor_limit.restore()
                os.execve(program, argv, environment)
            except OSError as error:
                code = error.errno or 0
            finally:
                os.write(error_writer, b"%d" % code)
                os._exit(126)
        os.close(error_writer)
        with os.fdopen(error_reader, "rb") as file:
            failed = file.read()
        if failed:
            os.waitpid(pid, 0)
            raise OSError(int(failed), os.strerror(int(failed)))
        return pid
