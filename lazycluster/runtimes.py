"""A runtime: one host with a working directory, tasks in the background, tunnels, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import BinaryIO, ParamSpec, TypeVar, cast

from lazycluster import _invoke
from lazycluster._facts import Facts
from lazycluster._model.call_options import CallOptions
from lazycluster._model.checks import check_environment, check_port
from lazycluster._model.run_options import DEFAULT_MAX_OUTPUT, RunOptions
from lazycluster._process_start import start_process
from lazycluster._requirements import Requirements
from lazycluster._runtime_core import RuntimeCore, register_core
from lazycluster._runtime_files import RuntimeFiles
from lazycluster._runtime_ports import first_free_port, forwarding_from_host, forwarding_to_host
from lazycluster._transports import factory
from lazycluster._typing import Unpack
from lazycluster._waiting import interrupt_boundary
from lazycluster.callers import Caller
from lazycluster.hardware import HostInfo
from lazycluster.managed import CleanupOnExit, ManagedProcess
from lazycluster.options import CallOutput, RuntimeOptions
from lazycluster.remote_process import RemoteProcess
from lazycluster.results import CommandResult, Stream
from lazycluster.tasks import RuntimeTask

P = ParamSpec("P")
T = TypeVar("T")


class Runtime(Facts, RuntimeFiles, CleanupOnExit):
    """One host to run tasks and functions on, and to tunnel to and from.

    Constructing it logs in, makes the working directory, and probes the machine. It is a context manager: at the end of
    the block everything that it started and made is ended and removed, locally and on the host. The same happens at
    `cleanup()`, when it is garbage-collected, and when the program ends.

    Args:
        host: A name that `ssh` understands.
        working_dir: The directory on the host where commands run and relative paths start; it is made if it does not
            exist, and never removed. Default: a temporary one, which is removed.
        connection_kwargs: The keywords of `Connection`, and three more. `python` is the Python for functions on the
            host; default: the one with this Python's minor version, else python3. With `resident=False` each command
            runs in an ssh process of its own, without a supervisor. `grace` is the number of seconds between SIGTERM
            and SIGKILL for processes that are ended.

    Raises:
        ValueError: If an argument is invalid.
        TypeError: If a keyword is unknown.
        InvalidRuntimeError: If the host cannot be used; its `__cause__` says why.
    """

    _core: RuntimeCore

    def __init__(self, host: str, working_dir: str | None = None, **connection_kwargs: Unpack[RuntimeOptions]) -> None:
        with interrupt_boundary:
            transport = factory.make_transport(host, connection_kwargs)
            register_core(self, RuntimeCore.connect(transport, working_dir, connection_kwargs.get("env")))

    @property
    def host(self) -> str:
        """The host as it was given."""
        return self._core.host

    def __repr__(self) -> str:
        """Return the host and the working directory."""
        return f"<{self.class_name} {self.host}:{self.working_dir}>"

    # Facts -------------------------------------------------------------------------------------------------------

    @property
    def working_dir(self) -> str:
        """The path of the working directory on the host.

        It changes if it is temporary and is gone, as after a broken connection: the first use then raises
        `WorkingDirectoryError`, and the next ones have a new, empty directory.
        """
        return self._core.working_dir

    @property
    def host_info(self) -> HostInfo:
        """The hardware of the host, as it was found when the runtime was made."""
        return self._core.host_info

    @property
    def env_variables(self) -> dict[str, str]:
        """The environment variables of commands and functions; `WORKING_DIR` is always among them."""
        return self._core.env_variables

    def set_env_variables(self, env_variables: Mapping[str, str]) -> None:
        """Replace the environment variables of commands and functions, also those of `Runtime(env=...)`.

        Raises:
            ValueError: If a name is not an identifier.
        """
        self._core.env = check_environment(env_variables)

    def add_env_variables(self, env_variables: Mapping[str, str]) -> None:
        """Add environment variables for commands and functions.

        Raises:
            ValueError: If a name is not an identifier.
        """
        self._core.env = {**self._core.env, **check_environment(env_variables)}

    @property
    def closed(self) -> bool:
        """Whether it was cleaned up."""
        return self._core.resources.closed

    def is_valid_runtime(self) -> bool:
        """Return whether the host answers now and has a Python to run functions in."""
        return self._core.transport.is_alive() and self._core.host_info.python_version is not None

    def check_filter(
        self,
        gpu_required: bool = False,
        min_memory: int | None = None,
        min_cpu_cores: float | None = None,
        installed_executables: str | list[str] | None = None,
        filter_commands: str | list[str] | None = None,
    ) -> bool:
        """Return whether the host meets all requirements.

        Args:
            gpu_required: Whether it must have a GPU.
            min_memory: The least memory, in units of 1024 * 1024 bytes.
            min_cpu_cores: The least number of processors.
            installed_executables: Programs that must be on the host's PATH.
            filter_commands: Shell commands that must print `true`, such as
                `[ -n "$WORKSPACE" ] && echo true || echo false`.

        Raises:
            ValueError: If a minimum is not a number.
        """
        requirements = Requirements(gpu_required, min_memory, min_cpu_cores, installed_executables, filter_commands)
        return not requirements.find_missing(self.host_info, self.run)

    # Work --------------------------------------------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes | BinaryIO = b"",
        timeout: float | None = None,
        check: bool = False,
        on_output: Callable[[Stream, bytes], object] | None = None,
        on_line: Callable[[Stream, str], object] | None = None,
        max_output: int | None = DEFAULT_MAX_OUTPUT,
    ) -> CommandResult:
        """Run a command in the working directory and return its result; see `Connection.run()`.

        Args:
            command: Text for a POSIX shell, or the words of a program, which starts without a shell. If there is no
                such program, the exit status is 127.
            cwd: The directory to run in. A relative path starts in the working directory; `~` is the host's.
            env: Environment variables in addition to `env_variables`.
            stdin: The standard input of the command; text is UTF-8. A file is read in pieces while the command runs;
                if the command ends first, the rest is not read. With `resident=False` the command gets it once all of
                it is on the host.
            timeout: Seconds after which the command and its children are ended.
            check: Whether an exit status other than 0 raises an error.
            on_output: Called with each piece of output while the command runs, in a thread of the library.
            on_line: Called with each line of output without its newline, in the same thread.
            max_output: The bytes that each stream may have, or None for any number. With None and a callback the result
                has only the last 64 KiB of each stream.

        Raises:
            CommandFailedError: If the exit status is not 0, with `check`.
            CommandTimeoutError: If it took longer than `timeout`.
            OutputLimitError: If a stream has more than `max_output` bytes; the command is ended.
            ConnectionLostError: If the connection broke.
            WorkingDirectoryError: If the working directory cannot be entered; see `working_dir`.
            ValueError: If an argument is out of range.
        """
        options = RunOptions(check, on_output, on_line, max_output)
        prepared = self._core.command(command, cwd=cwd, env=env, stdin=stdin, timeout=timeout)
        with interrupt_boundary:
            return self._core.run(prepared, options)

    def start(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        name: str | None = None,
        own_directory: bool = False,
        on_exit: Callable[[RemoteProcess], object] | None = None,
    ) -> RemoteProcess:
        """Start a command and return at once; it is ended with the runtime at the latest.

        Args:
            command: Text for a POSIX shell, or the words of a program.
            cwd: The directory to run in; a relative one starts in the working directory.
            env: Environment variables in addition to `env_variables`.
            stdin: All of its standard input. Default: it stays open, for the `stdin` of the process.
            name: The name in `get_processes()`.
            own_directory: Make a temporary directory for it to run in, which is removed at its end.
            on_exit: Called with the process at its end, once, in a thread of the library.

        Raises:
            ValueError: If an argument is invalid.
            RuntimeClosedError: If the runtime was cleaned up. All other errors are raised by `wait()`.
        """
        return start_process(
            self._core,
            self,
            command,
            cwd=cwd,
            env=env,
            stdin=stdin,
            name=name,
            own_directory=own_directory,
            on_exit=on_exit,
        )

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function on the host, in the working directory, and return its value.

        An exception that it raises is raised here, with the traceback of the host. Its output is printed as it comes if
        standard output is a terminal, or in a notebook; otherwise it goes to the logger, at DEBUG. See `with_options()`
        for other ways, and for a time limit.

        Raises:
            RemoteFunctionError: If its process died, or its exception cannot be raised here.
            PythonVersionMismatchError: If the host's Python has another minor version.
            FunctionNotSerializableError: If it cannot be sent.
        """
        self._core.resources.check_open()
        with interrupt_boundary:
            return cast("T", self._core.call(_invoke.serialize(function, args, kwargs)))

    def with_options(
        self,
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        output: CallOutput | None = None,
    ) -> Caller:
        """Return a view of the runtime whose `call()` uses these options.

        Args:
            timeout: Seconds after which the function and the processes that it started are ended.
            env: Environment variables in addition to `env_variables`.
            cwd: The directory on the host where the function runs; a relative path starts in the working directory.
            output: `print` the output as it comes, `log` it line by line at DEBUG, or `discard` it. Default: print it
                if standard output is a terminal, or in a notebook; otherwise log it.

        Raises:
            ValueError: If an option is out of range.
        """
        return Caller(self._core, self, CallOptions.check(timeout, env, cwd, output))

    def execute_task(self, task: RuntimeTask, execute_async: bool | None = True, debug: bool = False) -> RuntimeTask:
        """Carry out a task in the working directory and return it.

        Args:
            task: The task; `task.join()` waits for it and raises its error.
            execute_async: Do it in the background.
            debug: Print the output as it comes; otherwise it goes to the logger, at DEBUG.

        Raises:
            TaskExecutionError: If a step failed; in the background only `join()` raises it.
        """
        with interrupt_boundary:
            self._core.start_task(task, self, execute_async=bool(execute_async), debug=debug)
        return task

    def print_log(self) -> None:
        """Print the logs of the tasks that were carried out on the host."""
        self._core.task_history.print_logs(self.host)

    @property
    def function_returns(self) -> Generator[object, None, None]:
        """The values that the functions of its tasks returned, in the order in which the tasks began.

        Iterating waits for the tasks.
        """
        with interrupt_boundary:
            yield from self._core.task_history.iter_function_returns()

    def clear_tasks(self) -> None:
        """Discard the tasks that have ended: their logs, returns and processes. Those that still run are kept."""
        self._core.task_history.clear()

    # Ports -------------------------------------------------------------------------------------------------------

    def has_free_port(self, port: int) -> bool:
        """Return whether a server could listen on a port of the host, IPv4 and IPv6.

        Raises:
            PythonNotFoundError: If there is no Python on the host to try it with.
        """
        return bool(self.free_ports([port]))

    def get_free_port(self, ports: Iterable[int]) -> int:
        """Return the first port of a list that is free on the host; all are tried in one round trip.

        Raises:
            NoPortsLeftError: If no port is free, or the list is empty.
        """
        return first_free_port(self.host, self.free_ports, ports)

    def free_ports(self, ports: Iterable[int]) -> list[int]:
        """Return the given ports that are free on the host, in the order given, with one round trip for all of them.

        Raises:
            PythonNotFoundError: If there is no Python on the host to try it with.
        """
        wanted = [check_port(port) for port in ports]
        self._core.resources.check_open()
        return self._core.transport.free_ports(wanted) if wanted else []

    # Tunnels and processes ---------------------------------------------------------------------------------------

    def expose_port_to_runtime(self, local_port: int, runtime_port: int | None = None) -> str:
        """Make a service on `local_port` of the local machine reachable on the host at `localhost:runtime_port`.

        Returns:
            The key under which `stop_process()` ends the tunnel. Traffic can flow as soon as it is returned.

        Raises:
            PortInUseError: If `runtime_port` is in use on the host.
            ForwardingRefusedError: If the host does not allow it.
        """
        forwarding = forwarding_to_host(self.host, self.has_free_port, local_port, runtime_port)
        return self._core.resources.open_tunnel(f"to-runtime-{forwarding.listen_port}", forwarding, owner=self)

    def expose_port_from_runtime(self, runtime_port: int, local_port: int | None = None) -> str:
        """Make a service on `runtime_port` of the host reachable locally at `localhost:local_port`.

        Returns:
            The key under which `stop_process()` ends the tunnel. Traffic can flow as soon as it is returned.

        Raises:
            PortInUseError: If `local_port` is in use on the local machine.
            ForwardingRefusedError: If the host does not allow it.
        """
        forwarding = forwarding_from_host(runtime_port, local_port)
        return self._core.resources.open_tunnel(f"from-runtime-{forwarding.listen_port}", forwarding, owner=self)

    def get_process(self, key: str) -> ManagedProcess:
        """Return the process with a key.

        Raises:
            ValueError: If no process has that key.
        """
        return self._core.resources.get_process(key)

    def get_processes(self, only_alive: bool = False) -> dict[str, ManagedProcess]:
        """Return the processes by key: those of `start()`, tasks in the background, and tunnels."""
        return self._core.resources.get_processes(only_alive=only_alive)

    def stop_process(self, key: str) -> None:
        """End a process, and wait until it is gone: a tunnel with its ports, a task with its remote command.

        Raises:
            ValueError: If no process has that key.
        """
        self.get_process(key).terminate()

    @property
    def task_processes(self) -> list[ManagedProcess]:
        """The processes of the tasks that were started in the background."""
        return list(self._core.task_history.processes.values())

    @property
    def alive_process_count(self) -> int:
        """The number of processes that run."""
        return len(self.get_processes(only_alive=True))

    @property
    def alive_task_process_count(self) -> int:
        """The number of tasks that run in the background."""
        return sum(process.is_alive() for process in self.task_processes)

    # The end -----------------------------------------------------------------------------------------------------

    def cleanup(self) -> None:
        """End every process and remove everything temporary, locally and on the host. Doing it twice is fine.

        Logs, results and returns of the tasks stay readable.
        """
        self._core.resources.release()


__all__ = ["Runtime", "RuntimeTask"]  # as in the reference, RuntimeTask can be imported from here, too
