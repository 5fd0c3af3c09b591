"""The parts of a runtime, which groups use, too."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import attrs

from lazycluster import _invoke
from lazycluster._functions.function_call import Payload
from lazycluster._model.call_options import NO_CALL_OPTIONS, CallOptions
from lazycluster._model.checks import check_environment, check_text, join_cwd, split_stdin
from lazycluster._model.command import Command
from lazycluster._model.output_callbacks import CallbackThread
from lazycluster._model.run_options import RunOptions
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._prefixed_output import PrefixedOutput
from lazycluster._resources import ResourceRegistry
from lazycluster._task_history import TaskHistory
from lazycluster._transports.host_context import HostContext
from lazycluster._transports.interface import RuntimeTransport
from lazycluster._waiting import CancelToken
from lazycluster.executor import Executor
from lazycluster.hardware import HostInfo
from lazycluster.results import CommandResult
from lazycluster.tasks import RuntimeTask

_log = logging.getLogger("lazycluster.runtimes")  # the name that users know


@attrs.define(eq=False)
class RuntimeCore:
    """One host under a runtime: its transport, working directory, environment, resources and tasks."""

    host: str
    transport: RuntimeTransport
    resources: ResourceRegistry
    host_info: HostInfo
    env: dict[str, str]
    task_history: TaskHistory
    last_success: float = 0.0
    """The end of the last command or call that the host carried out, by `time.monotonic()`."""

    @classmethod
    def connect(
        cls, transport: RuntimeTransport, working_dir: str | None, env: Mapping[str, str] | None
    ) -> RuntimeCore:
        """Log in, make the working directory, a temporary one by default, and probe the machine.

        Raises:
            InvalidRuntimeError: If the host cannot be used; its `__cause__` is the reason.
        """
        variables = check_environment(env)
        check_text("working_dir", working_dir)
        resources = ResourceRegistry(transport)
        _, host_info = resources.set_up(working_dir)
        for warning in host_info.warnings:
            _log.warning("%s: %s", transport.host, warning)
        return cls(transport.host, transport, resources, host_info, variables, TaskHistory(resources))

    @property
    def working_dir(self) -> str:
        """The working directory. It changes when a temporary one is gone; an error says so."""
        return self.transport.working_dir

    @property
    def env_variables(self) -> dict[str, str]:
        """The environment variables of commands and functions."""
        return self._env_variables_in(self.working_dir)

    def _env_variables_in(self, working_dir: str) -> dict[str, str]:
        return {**self.env, "WORKING_DIR": working_dir}

    def context(self, cancel_token: CancelToken | None = None) -> HostContext:
        """Return the surroundings of work on the host.

        Raises:
            RuntimeClosedError: If the runtime was cleaned up.
        """
        self.resources.check_open()
        working_dir = self.working_dir  # once: another thread may see that it is gone
        return HostContext(self.transport, working_dir, self._env_variables_in(working_dir), cancel_token)

    def command(
        self,
        program: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes | BinaryIO = b"",
        timeout: float | None = None,
    ) -> Command:
        """Return a command in the working directory, or in `cwd`, with the variables of the runtime.

        Raises:
            RuntimeClosedError: If the runtime was cleaned up.
            ValueError: If an argument is out of range.
        """
        context = self.context()
        variables = {**context.env, **(env or {})}  # a Command checks them
        directory = join_cwd(context.cwd or "", cwd)
        data, source = split_stdin(stdin)
        return Command(program, cwd=directory, env=variables, stdin=data, source=source, timeout=timeout)

    def run_command(self, command: Command, watch: Watch = UNWATCHED) -> CommandResult:
        """Run a command of this runtime."""
        result = self.transport.run(command, watch)
        self.last_success = time.monotonic()
        return result

    def run(
        self,
        command: Command,
        options: RunOptions,
        cancel_token: CancelToken | None = None,
        thread: CallbackThread | None = None,
    ) -> CommandResult:
        """Run a command of this runtime as its caller wants it followed; see `Runtime.run()`."""
        return options.run(
            lambda watch: self.run_command(command, watch),
            host=self.host,
            title=command.title,
            timeout=command.timeout,
            cancel_token=cancel_token,
            thread=thread,
        )

    def call(
        self,
        payload: Payload,
        cancel_token: CancelToken | None = None,
        *,
        options: CallOptions = NO_CALL_OPTIONS,
        prefixed_output: PrefixedOutput | None = None,
    ) -> object:
        """Call a function in the working directory, or as the options say; see `Runtime.with_options()`.

        `prefixed_output` gets output that is to be printed.
        """
        context = self.context(cancel_token)
        cwd, env = join_cwd(context.cwd or "", options.cwd), {**context.env, **options.env}
        value = _invoke.call_function(attrs.evolve(context, cwd=cwd, env=env), payload, options, prefixed_output)
        self.last_success = time.monotonic()
        return value

    def start_task(
        self,
        task: RuntimeTask,
        owner: object,
        *,
        execute_async: bool,
        debug: bool = False,
        prefixed_output: PrefixedOutput | None = None,
    ) -> None:
        """Carry out a task; see `Runtime.execute_task()`. The owner lives as long as a task in the background.

        `prefixed_output` gets the output line by line, in place of standard output and the logger.
        """
        executor = Executor(self.context(), debug=debug, prefixed_output=prefixed_output)
        if execute_async:
            self.task_history.start(task, executor, owner)
        else:
            self.task_history.run(task, executor)

    @property
    def last_lost(self) -> float | None:
        """The time when a task failed because of the host, by `time.monotonic()`; None after a later success."""
        return self.task_history.last_lost(self.last_success)


def register_core(runtime: object, core: RuntimeCore) -> None:
    """Give a runtime its core, which is private to it, and release the core with the runtime."""
    vars(runtime)["_core"] = core
    weakref.finalize(runtime, core.resources.release_in_background).atexit = False


def core_of(runtime: object) -> RuntimeCore:
    """Return the core of a runtime, for groups."""
    core: RuntimeCore = vars(runtime)["_core"]
    return core
