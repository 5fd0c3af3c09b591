"""Calls of functions on a host with options."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import attrs

from lazycluster import _invoke
from lazycluster._model.call_options import CallOptions
from lazycluster._runtime_core import RuntimeCore
from lazycluster._waiting import interrupt_boundary

P = ParamSpec("P")
T = TypeVar("T")


@attrs.frozen(eq=False, repr=False)
class Caller:
    """Calls functions on the host of a runtime with options, see `Runtime.with_options()`.

    It is a view of the runtime: it owns nothing, there is nothing to close, and any number of calls may share it.
    """

    _core: RuntimeCore
    _owner: object
    """The runtime, which is not to be garbage-collected while the caller is used."""
    _options: CallOptions

    @property
    def host(self) -> str:
        """The host as it was given."""
        return self._core.host

    def __repr__(self) -> str:
        """Return the host and the options."""
        return f"<Caller {self.host}{self._options}>"

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function on the host and return its value, as `Runtime.call()` does, with the options.

        Every argument goes to the function, whatever its name.

        Raises:
            FunctionTimeoutError: If it took longer than the time limit.
            RemoteFunctionError: If its process died, or its exception cannot be raised here.
            PythonVersionMismatchError: If the host's Python has another minor version.
            FunctionNotSerializableError: If it cannot be sent.
        """
        self._core.resources.check_open()
        with interrupt_boundary:
            return cast("T", self._core.call(_invoke.serialize(function, args, kwargs), options=self._options))
