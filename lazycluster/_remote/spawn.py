"""How a supervisor starts processes; sent to the host.

Standard library only, and the syntax of Python 3.6.
"""

import _signal as signal  # `signal` itself makes enumerations of it, which takes 2 ms
import contextlib
import os
import stat
import struct
import sys
from collections.abc import Iterable

_LARGE_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031  # fcntl(2), F_SETPIPE_SZ
POSIX_SHELLS = frozenset(("sh", "bash", "dash", "ash", "ksh", "ksh93", "mksh", "yash"))
"""The shells that read what a POSIX shell reads."""
_SIGNALS_TO_RESET = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGQUIT)
"""Signals that Python ignores, or what a shell starts in the background; handlers go with the exec."""
_LITERAL_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./+-@%:,= \t")
"""Characters without a meaning for a shell: see `_split_literal()`. A set, because importing `re` takes 2 ms."""
# Reserved words, and what a shell does by itself and otherwise than a program of the same name, if there is one; `true`
# and `false` are not among them.
_SHELL_KEYWORDS_AND_BUILTINS = frozenset(
    (  # noqa: SIM905 - to be read as words
        ". : [ [[ alias autoload bg bind break builtin caller case cd chdir command compgen complete compopt continue "
        "coproc declare dirs disown do done echo elif else enable esac eval exec exit export fc fg fi float for "
        "function getopts hash hist history if in integer jobs kill let local login logout mapfile nameref newgrp "
        "popd print printf pushd pwd read readarray readonly return select set shift shopt source suspend test "
        "then time times trap type typeset ulimit umask unalias unset until wait whence while"
    ).split()
)


def base_environment() -> "dict[bytes, bytes]":
    """Return the environment that commands begin with."""
    environment = {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
    level = environment.get(b"SHLVL", b"")
    # bash reads ~/.bashrc again below ssh unless it sees that it is not the first shell there.
    environment[b"SHLVL"] = level if level.isdigit() and int(level) > 0 else b"1"
    return environment


def login_shell() -> str:
    """Return the account's own shell where it reads what a POSIX shell reads, else /bin/sh."""
    shell = os.environ.get("SHELL", "")
    return shell if shell.rpartition("/")[2] in POSIX_SHELLS and os.access(shell, os.X_OK) else "/bin/sh"


def split_simple_command(command: str, environment: "dict[bytes, bytes]") -> "list[str] | None":
    """Return program and arguments of a command for which a shell would do nothing but to start it; else None.

    As make(1) does: starting a shell takes longer than what most such commands do. The first word becomes a path.
    """
    words = _split_literal(command)
    if not words or words[0] in _SHELL_KEYWORDS_AND_BUILTINS or b"BASH_ENV" in environment or b"ENV" in environment:
        return None
    if b"BASH_FUNC_" in b"\n".join(environment):
        return None
    path = "" if "/" in words[0] else os.fsdecode(environment.get(b"PATH", b""))
    if not path and "/" not in words[0]:
        return None  # a shell has a default path then
    program = _find_program(words[0], path)
    return None if program is None else [program, *words]


def _split_literal(command: str) -> "list[str]":
    """Return the words of a command without anything that a shell would look at twice; else none."""
    words = command.split()
    plain = _LITERAL_CHARACTERS.issuperset(command) and command.strip() == command
    return words if plain and words and words[0][0] not in "@%:," and "=" not in words[0] else []


def _find_program(word: str, path: str) -> "str | None":
    """Return the program that a word stands for."""
    for directory in path.split(":"):
        candidate = word if "/" in word else f"{directory or '.'}/{word}"
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(candidate).st_mode) and os.access(candidate, os.X_OK):
                return candidate
    return None


class DescriptorLimit:
    """The number of descriptors (RLIMIT_NOFILE): as many as may be for the supervisor, as it was for what it starts."""

    def __init__(self) -> None:
        """Raise it, where that can be done."""
        self._original = (0, 0)
        with contextlib.suppress(ImportError, ValueError, OSError):
            import resource  # noqa: PLC0415 - not everywhere

            self._original = resource.getrlimit(resource.RLIMIT_NOFILE)
            self.raise_to_hard_limit()

    def raise_to_hard_limit(self) -> None:
        """Raise it."""
        self._set_soft_limit(self._original[1])

    def restore(self) -> None:
        """Set it as it was, for what is started next."""
        self._set_soft_limit(self._original[0])

    def _set_soft_limit(self, soft: int) -> None:
        if self._original[0] != self._original[1]:
            import resource  # noqa: PLC0415 - as above

            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, self._original[1]))


class Spawner:
    """Starts programs in sessions of their own."""

    def __init__(self, descriptor_limit: DescriptorLimit) -> None:
        """Keep three descriptors with low numbers: those above the limit cannot be handed on once it is restored."""
        self._descriptor_limit = descriptor_limit
        self._low_descriptors = [os.dup(0) for _ in range(3)]

    def spawn(
        self, program: str, argv: "list[str]", environment: "dict[bytes, bytes]", descriptors: "list[int]"
    ) -> int:
        """Start a program with three standard streams, and return its process id.

        Raises:
            OSError: It cannot be started.
        """
        for descriptor, low in zip(descriptors, self._low_descriptors):
            os.dup2(descriptor, low, inheritable=False)
        try:
            try:
                actions = [(os.POSIX_SPAWN_DUP2, low, stream) for stream, low in enumerate(self._low_descriptors)]
                self._descriptor_limit.restore()
                return os.posix_spawn(
                    program, argv, environment, file_actions=actions, setsid=True, setsigdef=_SIGNALS_TO_RESET
                )
            except (AttributeError, NotImplementedError, TypeError):  # before Python 3.8, or a system without
                self._descriptor_limit.raise_to_hard_limit()
                return self._fork(program, argv, environment)
        finally:
            self._descriptor_limit.raise_to_hard_limit()
            for low in self._low_descriptors:  # else they would keep the pipes open
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
                for stream, low in enumerate(self._low_descriptors):
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


def enlarge_pipe(descriptor: int) -> int:
    """Let a pipe with much to carry hold more (Linux), and return how many bytes it may hold."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # noqa: PLC0415 - not everywhere

        return fcntl.fcntl(descriptor, _F_SETPIPE_SZ, _LARGE_PIPE_BYTES)
    return _LARGE_PIPE_BYTES


def readable_bytes(descriptor: int, default: int) -> int:
    """Return how many bytes wait in a pipe."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # noqa: PLC0415 - not everywhere
        import termios  # noqa: PLC0415 - as above

        return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0])
    return default


def close_all(descriptors: "Iterable[int]") -> None:
    """Close descriptors, except those below 0, which stand for none."""
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


def set_nonblocking(descriptors: "Iterable[int]") -> None:
    """Have reads and writes not wait, with the same exception."""
    for descriptor in descriptors:
        if descriptor >= 0:
            os.set_blocking(descriptor, False)


def close_all_but(*keep: int) -> None:
    """Close every descriptor above the standard streams but those."""
    try:
        names = os.listdir("/proc/self/fd" if sys.platform.startswith("linux") else "/dev/fd")
    except OSError:
        names = [str(descriptor) for descriptor in range(1024)]
    for descriptor in map(int, names):
        if descriptor > 2 and descriptor not in keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)
