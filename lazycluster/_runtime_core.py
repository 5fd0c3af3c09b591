"""The parts of a runtime, which groups use, too."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Mapping, Sequence

import attrs

from lazycluster import _invoke
from lazycluster._functions.function_call import Payload
from lazycluster._model.call_options import NO_CALL_OPTIONS, CallOptions
from lazycluster._model.checks import check_environment, check_text, join_cwd
from lazycluster._model.command import Command
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
    working_dir: str
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
        made, host_info = resources.set_up(working_dir)
        for warning in host_info.warnings:
            _log.warning("%s: %s", transport.host, warning)
        return cls(transport.host, transport, resources, made, host_info, variables, TaskHistory(resources))

    @property
    def env_variables(self) -> dict[str, str]:
        """The environment variables of commands and functions."""
        return {**self.env, "WORKING_DIR": self.working_dir}

    def context(self, cancel_token: CancelToken | None = None) -> HostContext:
        """Return the surroundings of work on the host.

        Raises:
            RuntimeClosedError: If the runtime was cleaned up.
        """
        self.resources.check_open()
        return HostContext(self.transport, self.working_dir, self.env_variables, cancel_token)

    def run(
        self,
        program: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
    ) -> CommandResult:
        """Run a command in the working directory; see `Runtime.run()`."""
        self.resources.check_open()
        variables = {**self.env_variables, **(env or {})}  # a Command checks them
        command = Command(program, cwd=self.working_dir, env=variables, stdin=stdin, timeout=timeout)
        result = self.transport.run(command, watch)
        self.last_success = time.monotonic()
        return result

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
        cwd, env = join_cwd(self.working_dir, options.cwd), {**context.env, **options.env}
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
