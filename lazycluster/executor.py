"""The one interpreter of steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import attrs

from lazycluster import _invoke
from lazycluster._display import progress_bar
from lazycluster._invoke import OutcomeFile
from lazycluster._model.command import Command
from lazycluster._model.watch import Watch
from lazycluster._prefixed_output import PrefixedOutput
from lazycluster._step_output import output_handler
from lazycluster._transports.host_context import HostContext
from lazycluster._typing import assert_never
from lazycluster.exceptions import HOST_LOST_ERRORS, CommandFailedError, CommandStoppedError
from lazycluster.results import Collector, StepResult
from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile, Step, describe_step


@attrs.frozen
class Executor:
    """Carries out steps on a host, in a working directory and with an environment.

    With `debug`, output is printed as it comes. `prefixed_output` prints it line by line instead, after the name of the
    host. Without both it goes to the logger, line by line, at DEBUG.
    """

    context: HostContext
    debug: bool = False
    prefixed_output: PrefixedOutput | None = None

    @property
    def host(self) -> str:
        """The host as it was given."""
        return self.context.host

    def execute(self, step: Step, on_outcome: Callable[[OutcomeFile], None], collector: Collector) -> StepResult:
        """Carry out one step and return its record, which holds the error of a step that failed.

        `on_outcome` gets the outcome of a function, `collector` the output of the step, also while it runs.
        """
        started = time.monotonic()
        exit_code: int | None = None
        error: Exception | None = None
        host_lost = False
        cancel_token = self.context.cancel_token
        with self._output_handler() as on_output, self._progress_handler(step) as on_progress:
            watch = Watch(on_output, on_progress, cancel_token, collector)
            try:
                if cancel_token is not None and cancel_token.is_cancelled:
                    raise CommandStoppedError(self.host, describe_step(step))
                exit_code, error = self._execute_step(step, watch, collector, on_outcome)
            except Exception as raised:  # noqa: BLE001 - the boundary: every error belongs in the record
                error, host_lost = raised, isinstance(raised, HOST_LOST_ERRORS)
        duration = time.monotonic() - started
        output = collector.result(describe_step(step), exit_code or 0, duration)
        if exit_code and isinstance(step, RunCommand):
            error = CommandFailedError(self.host, step.title, exit_code, output.output)
        return StepResult(describe_step(step), output, exit_code, duration, error, host_lost)

    def _execute_step(
        self, step: Step, watch: Watch, collector: Collector, on_outcome: Callable[[OutcomeFile], None]
    ) -> tuple[int | None, Exception | None]:
        """Return the exit status of a command, and the exception of a function; errors of the host are raised."""
        context = self.context
        match step:
            case RunCommand():
                command = Command(step.command, cwd=context.cwd, env=context.env, timeout=step.timeout)
                return context.transport.run(command, watch).exit_code, None
            case SendFile():
                context.transport.put(step.local, step.remote, cwd=context.cwd, watch=watch)
            case GetFile():
                local = step.local_path_for(self.host)
                if step.has_host_placeholder:
                    local.parent.mkdir(parents=True, exist_ok=True)
                context.transport.get(step.remote, local, cwd=context.cwd, watch=watch)
            case RunFunction():
                payload = _invoke.serialize(step.function, step.args, step.kwargs)
                outcome = _invoke.invoke(context, payload, watch)
                on_outcome(outcome)
                return None, _invoke.find_error(outcome, self.host, step.name, collector)
            case _:
                assert_never(step)
        return None, None

    def _output_handler(self) -> contextlib.AbstractContextManager[Callable[..., None]]:
        return output_handler(self.host, debug=self.debug, prefixed=self.prefixed_output)

    @contextlib.contextmanager
    def _progress_handler(self, step: Step) -> Iterator[Callable[[int, int | None], None]]:
        if self.debug and self.prefixed_output is None and isinstance(step, (SendFile, GetFile)):
            with progress_bar(f"{self.host}: {describe_step(step)}") as advance:
                yield advance
        else:
            yield lambda _done, _total: None
