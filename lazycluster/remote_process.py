"""A process that was started on a host: its streams, its end, its exit status."""

from __future__ import annotations

import contextlib
import signal
from typing import BinaryIO

from lazycluster._process_execution import ProcessExecution
from lazycluster.managed import CleanupOnExit


class RemoteProcess(CleanupOnExit):
    """A command that runs on a host; `Runtime.start()` makes it. It is a `ManagedProcess`.

    The three streams are binary files. `stdin` is buffered: call `stdin.flush()`. A process whose output is not read is
    kept from printing more after about 5 MiB, as by a pipe, which delays no other command. So read both `stdout` and
    `stderr`, or close the one that you do not need: what comes is then dropped. At the end of its output a stream
    raises the error of `wait()` if there is one.

    It is a context manager. At the end of the block the process is ended if it still runs.
    """

    _execution: ProcessExecution

    host: str
    """The host as it was given."""
    name: str
    """The name that was given, else the beginning of the command."""
    key: str
    """The key for `Runtime.get_process()`."""
    working_dir: str
    """The directory in which it started."""
    stdin: BinaryIO
    """Its standard input; closed from the start if all of the input was given."""
    stdout: BinaryIO
    """Its standard output."""
    stderr: BinaryIO
    """Its standard error."""

    def __repr__(self) -> str:
        """Return the name, the host and the state."""
        state = "alive" if self.is_alive() else "lost" if self.exit_code is None else f"ended with {self.exit_code}"
        return f"<RemoteProcess {self.name} on {self.host}, {state}>"

    # How it ends -----------------------------------------------------------------------------------------------------

    @property
    def exit_code(self) -> int | None:
        """The exit status; None while it runs, and if the host was lost.

        As in a shell 128+N stands for signal N. A process that was stopped has 143 or 137 if its status is unknown.
        """
        return self._execution.exit_code

    @property
    def stopped(self) -> bool:
        """Whether it ended because it was asked to, by `terminate()`, `kill()`, `close()` or the end of its runtime."""
        return self._execution.stopped

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs.

        Raises:
            ConnectionLostError: If the connection broke.
            LazyclusterError: If it could not be started.
        """
        return None if self.is_alive() else self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process, and return its exit status.

        Args:
            timeout: Seconds to wait at most.

        Raises:
            TimeoutError: If it still runs after that; it goes on.
            ConnectionLostError: If the connection broke.
            WorkingDirectoryError: If its directory cannot be entered.
            LazyclusterError: If it could not be started for another reason.
        """
        if not self._execution.join(timeout):
            raise TimeoutError(f"{self.host}: `{self.name}` still runs after {timeout:g} s")
        self._execution.raise_error()
        if self.exit_code is None:
            raise RuntimeError("a forked child cannot wait for the processes of its parent")
        return self.exit_code

    def terminate(self) -> None:
        """End it with its children, SIGTERM and after the grace period SIGKILL, and wait until it is gone."""
        self.request_stop()
        self.join()

    def kill(self) -> None:
        """End it with its children at once, by SIGKILL after SIGTERM without a grace period, and wait."""
        self._execution.request_stop(at_once=True)
        self.join()

    def request_stop(self) -> None:
        """Begin what `terminate()` does, and do not wait."""
        self._execution.request_stop()

    def cleanup(self) -> None:
        """End it if it still runs, close its streams, and drop it from `Runtime.get_processes()`."""
        self.terminate()
        for stream in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    # As multiprocessing.Process --------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """None: it has no process on the local machine that stands for it."""
        return None

    @property
    def exitcode(self) -> int | None:
        """None while it runs; then the exit status, -15 if it was stopped, 1 if the host was lost."""
        if self.is_alive():
            return None
        if self.stopped:
            return -signal.SIGTERM
        return 1 if self.exit_code is None else self.exit_code

    def is_alive(self) -> bool:
        """Return whether it still runs."""
        return self._execution.is_alive

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most `timeout` seconds. Unlike `wait()` it raises nothing."""
        self._execution.join(timeout)
