"""A fake host as a test sees it: its answers, its hardware, and the calls that it got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from lazycluster.exceptions import LazyclusterError
from lazycluster.gpus import Gpu
from lazycluster.hardware import HostInfo
from lazycluster.testing._host_state import HostState
from lazycluster.testing.answers import CommandMatcher, ScriptedAnswer
from lazycluster.testing.calls import Asked, Ran

_GPU_MEMORY_BYTES = 16 * 2**30


class ScriptedHost:
    """One fake host; `FakeHost` makes it."""

    _state: HostState

    @property
    def info(self) -> HostInfo:
        """The `HostInfo` that a runtime finds; see also `has()`."""
        return self._state.info

    @info.setter
    def info(self, info: HostInfo) -> None:
        self._state.info = info

    @property
    def ports_in_use(self) -> set[int]:
        """Ports of the host that are not free."""
        return self._state.ports_in_use

    @ports_in_use.setter
    def ports_in_use(self, ports: set[int]) -> None:
        self._state.ports_in_use = ports

    @property
    def executables(self) -> set[str]:
        """Programs that `check_filter(installed_executables=...)` finds; none unless a test names some."""
        return self._state.executables

    @executables.setter
    def executables(self, names: set[str]) -> None:
        self._state.executables = names

    @property
    def strict(self) -> bool:
        """Whether a command without a scripted answer raises `UnexpectedCommandError`, which is the default.

        Otherwise it prints nothing and ends with exit status 0.
        """
        return self._state.strict

    @strict.setter
    def strict(self, strict: bool) -> None:
        self._state.strict = strict

    def __repr__(self) -> str:
        """Return the number of calls."""
        return f"<{type(self).__name__}, {len(self.calls)} calls>"

    def on(
        self,
        command: CommandMatcher,
        *,
        stdout: str | bytes = "",
        stderr: str | bytes = "",
        exit_code: int = 0,
        delay: float = 0.0,
        reads_stdin: bool = False,
        error: Exception | None = None,
        writes: Mapping[str, str | bytes] | None = None,
        times: int | None = None,
    ) -> None:
        """Set the answer to a command. The last answer that fits wins.

        Args:
            command: The exact text or list of words, or a compiled pattern that has to match the whole text. Or a
                function that gets the `Ran` record and returns whether the answer is for it.
            stdout: Its standard output, printed at once.
            stderr: Its standard error, printed after that.
            exit_code: Its exit status, 0 to 255; 128 and more stand for a signal.
            delay: Seconds until it ends. A timeout and a stop cut them short, as on a real host. With `math.inf` it
                never ends by itself.
            reads_stdin: Whether a process of `Runtime.start()` goes on until its standard input is closed.
            error: The error that is raised in place of a result, such as
                `ConnectionLostError("host-1", "nproc", "gone")`.
            writes: The contents of files that it writes, by path; a relative path starts where the command runs.
            times: How often this answer is given; after that, earlier ones count again. Default: always.
        """
        answer = ScriptedAnswer(
            stdout,
            stderr,
            exit_code=exit_code,
            delay=delay,
            reads_stdin=reads_stdin,
            error=error,
            writes=writes or {},
        )
        self._state.answer_table.add(command, answer, times)

    def has(
        self,
        *,
        cpu_cores: float | None = None,
        memory: int | None = None,
        gpus: int | Sequence[Gpu] | None = None,
        python_version: str | None = None,
    ) -> None:
        """Change some of the hardware that runtimes find on the host from now on.

        Args:
            cpu_cores: The number of processors.
            memory: The memory in bytes.
            gpus: A record for each GPU, or their number.
            python_version: The version of its Python, such as "3.12.1"; `""` for a host without Python.
        """
        info = self.info
        if python_version is not None:
            executable = "/usr/bin/python3" if python_version else None
            info = attrs.evolve(info, python_version=python_version or None, python_executable=executable)
        if gpus is not None:
            records = map(_fake_gpu, range(gpus)) if isinstance(gpus, int) else gpus
            info = attrs.evolve(info, gpus=tuple(records))
        self.info = attrs.evolve(
            info,
            cpu_cores=info.cpu_cores if cpu_cores is None else float(cpu_cores),
            memory=info.memory if memory is None else memory,
        )

    def path(self, remote: str) -> Path:
        """Return the path on this machine of a path of the host, to write, read and compare files.

        `~` is the host's home. A relative path starts in the working directory of the runtime that was made last, or in
        the home directory before the first.
        """
        return self._state.files.local_path(remote, self._state.working_dir)

    def go_down(self, error: LazyclusterError | None = None) -> None:
        """Be unreachable from now on; commands and functions under way raise `ConnectionLostError`.

        Args:
            error: The error that every use raises. Default: `HostUnreachableError`.
        """
        self._state.go_down(error)

    def come_up(self) -> None:
        """Be reachable again."""
        self._state.come_up()

    # Calls ------------------------------------------------------------------------------------------------------------

    @property
    def calls(self) -> list[Asked]:
        """The calls so far, in order: commands, functions, files, directories, ports, tunnels."""
        return self._state.calls

    @property
    def commands(self) -> list[str]:
        """The commands that were run, in order."""
        return [asked.command for asked in self.calls if isinstance(asked, Ran)]

    @property
    def closed(self) -> bool:
        """Whether every runtime and connection that reached it was closed; False before the first."""
        return bool(self._state.transports) and all(transport.closed for transport in self._state.transports)

    @property
    def cleaned_up(self) -> bool:
        """Whether no temporary directory of a runtime or of `create_tempdir()` is left."""
        return not any(transport.temp_dirs for transport in self._state.transports)


def _fake_gpu(index: int) -> Gpu:
    return Gpu(index, "Fake GPU", memory=_GPU_MEMORY_BYTES, driver_version="1.0", uuid=f"GPU-{index}", utilization=0)
