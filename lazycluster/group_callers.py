"""Calls of functions on all hosts of a group, also with options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, Literal, NoReturn, ParamSpec, TypeVar, cast, overload

import attrs

from lazycluster import _group_calls
from lazycluster._gather import check_on_error
from lazycluster._membership import Members
from lazycluster._model.call_options import NO_CALL_OPTIONS, CallOptions
from lazycluster._waiting import interrupt_boundary
from lazycluster.options import CallOutput
from lazycluster.results import Error, OnError

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E")
"""The class of errors among the values: `Error`, or no class if errors are raised."""


@attrs.frozen(eq=False, repr=False)
class GroupCaller(Generic[E]):
    """Calls functions on the hosts of a group with options, see `RuntimeGroup.with_options()`.

    It is a view of the group: it owns nothing, there is nothing to close, and any number of calls may share it. A call
    goes to the hosts that the group has then.
    """

    _members: Members
    _options: CallOptions
    _on_error: OnError

    def __repr__(self) -> str:
        """Return the hosts and the options."""
        return f"<GroupCaller {', '.join(self._members.all())}{self._options}, on_error={self._on_error!r}>"

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> dict[str, T | E]:
        """Call a function on every host at once with the options, and return its values by host.

        Every argument goes to the function, whatever its name. With `on_error="collect"` an `Error` stands in place of
        the value of a host that failed.

        Raises:
            HostsFailedError: If it raised or took too long on some hosts, with `on_error="raise"`; the error's `values`
                are those of the others.
            FunctionNotSerializableError: If it cannot be sent.
        """
        with interrupt_boundary:
            values = _group_calls.call_function(self._members, function, self._on_error, args, kwargs, self._options)
        return cast("dict[str, T | E]", values)


class GroupCallMethods:
    """The methods of a group that call a function on each host."""

    _members: Members

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> dict[str, T]:
        """Call a function on every host at once and return its values by host.

        Every argument goes to the function. Its output is printed or logged as that of `Runtime.call()`, line by line
        after the name of the host. See `with_options()` for time limits, and for the collection of errors.

        Args:
            function: Anything that `Runtime.call()` takes.
            args: Its arguments.
            kwargs: Its arguments by name.

        Raises:
            HostsFailedError: If it raised on some hosts; the error's `values` are those of the others.
            FunctionNotSerializableError: If it cannot be sent.
        """
        with interrupt_boundary:
            values = _group_calls.call_function(self._members, function, "raise", args, kwargs, NO_CALL_OPTIONS)
        return cast("dict[str, T]", values)

    @overload
    def with_options(
        self,
        *,
        timeout: float | None = ...,
        env: Mapping[str, str] | None = ...,
        cwd: str | None = ...,
        output: CallOutput | None = ...,
        on_error: Literal["raise"] = ...,
    ) -> GroupCaller[NoReturn]: ...
    @overload
    def with_options(
        self,
        *,
        timeout: float | None = ...,
        env: Mapping[str, str] | None = ...,
        cwd: str | None = ...,
        output: CallOutput | None = ...,
        on_error: Literal["collect"],
    ) -> GroupCaller[Error]: ...
    def with_options(
        self,
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        output: CallOutput | None = None,
        on_error: OnError = "raise",
    ) -> GroupCaller[NoReturn] | GroupCaller[Error]:
        """Return a view of the group whose `call()` uses these options.

        Args:
            timeout: See `Runtime.with_options()`, as for the next three.
            env: Environment variables in addition to those of each runtime.
            cwd: The directory on each host where the function runs.
            output: The treatment of its output; each line that is printed or logged has its host.
            on_error: `raise` the errors when all have ended, or `collect` them: an `Error` in place of a value.

        Raises:
            ValueError: If an option is out of range.
        """
        check_on_error(on_error)
        options = CallOptions.check(timeout, env, cwd, output)
        if on_error == "collect":
            return GroupCaller[Error](self._members, options, on_error)
        return GroupCaller[NoReturn](self._members, options, on_error)
