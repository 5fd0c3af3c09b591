"""How a caller of `run()` follows a command, bounds its output, and judges its exit status."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import attrs

from lazycluster._model.checks import is_whole_number
from lazycluster._model.output_callbacks import CallbackThread, OutputFollower
from lazycluster._model.output_limits import LimitedCollector, TailCollector
from lazycluster._model.watch import Watch
from lazycluster._waiting import CancelToken
from lazycluster.exceptions import CommandStoppedError
from lazycluster.results import Collector, CommandResult, Stream

DEFAULT_MAX_OUTPUT = 256 * 2**20
"""The bytes that a command may print to each of its streams by default."""


def check_callback(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:  # noqa: ANN401 - of attrs
    """Check a field with a callback.

    Raises:
        ValueError: If it is neither None nor a function.
    """
    if value is not None and not callable(value):
        raise ValueError(f"{attribute.name} must be a function or None, got {value!r:.200}")


def _check_max_output(_: object, _attribute: attrs.Attribute[Any], value: Any) -> None:  # noqa: ANN401 - of attrs
    if value is not None and not is_whole_number(value, 0):
        raise ValueError(f"max_output must be a whole number of bytes from 0 on, or None, got {value!r:.200}")


@attrs.frozen
class RunOptions:
    """The options of `run()` that do not concern the host.

    Raises:
        ValueError: If an option is out of range.
    """

    check: bool = False
    """Whether a command that fails raises an error."""
    on_output: Callable[[Stream, bytes], object] | None = attrs.field(default=None, validator=check_callback)
    on_line: Callable[[Stream, str], object] | None = attrs.field(default=None, validator=check_callback)
    max_output: int | None = attrs.field(default=DEFAULT_MAX_OUTPUT, validator=_check_max_output)
    """The bytes that may come of each stream."""

    @property
    def has_callbacks(self) -> bool:
        """Whether a callback gets the output."""
        return self.on_output is not None or self.on_line is not None

    def run(
        self,
        run: Callable[[Watch], CommandResult],
        *,
        host: str,
        title: str,
        timeout: float | None,
        cancel_token: CancelToken | None = None,
        thread: CallbackThread | None = None,
    ) -> CommandResult:
        """Call a function that runs a command with a watch, and return its result.

        Args:
            run: The function.
            host: The host, for errors.
            title: The command, for errors.
            timeout: The time limit of the command in seconds.
            cancel_token: Stops the command.
            thread: The thread that calls the callbacks; by default one for this command alone.

        Raises:
            OutputLimitError: If a stream has more than `max_output` bytes.
            CommandFailedError: If the command fails, with `check`.
        """
        collector = self._new_collector(host, title)
        if self.has_callbacks:
            result = self._run_with_callbacks(run, collector, timeout, cancel_token, thread)
        else:
            result = run(Watch(cancel_token=cancel_token, collector=collector))
        return result.check() if self.check else result

    def _new_collector(self, host: str, title: str) -> Collector:
        if self.max_output is not None:
            return LimitedCollector(host, title, self.max_output)
        return TailCollector() if self.has_callbacks else Collector()

    def _run_with_callbacks(
        self,
        run: Callable[[Watch], CommandResult],
        collector: Collector,
        timeout: float | None,
        cancel_token: CancelToken | None,
        thread: CallbackThread | None,
    ) -> CommandResult:
        with contextlib.ExitStack() as stack:
            if cancel_token is None:
                cancel_token = CancelToken()
                stack.callback(cancel_token.close)
            if thread is None:
                thread = stack.enter_context(CallbackThread())
            follower = OutputFollower(thread, self.on_output, self.on_line, cancel_token, timeout)
            try:
                result = run(Watch(follower.on_output, cancel_token=cancel_token, collector=collector))
                follower.wait_for_callbacks()
            except BaseException as error:
                follower.stop_callbacks(error)
                if follower.error is not None and isinstance(error, CommandStoppedError):
                    raise follower.error from None
                raise
            if follower.error is not None:
                raise follower.error
            return result
