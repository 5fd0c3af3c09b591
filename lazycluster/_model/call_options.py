"""The options of function calls, which `with_options()` takes."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from lazycluster._model.checks import check_environment, check_text, check_timeout
from lazycluster.options import CallOutput


@attrs.frozen
class CallOptions:
    """How a function is called: see `Runtime.with_options()`."""

    timeout: float | None = None
    env: Mapping[str, str] = attrs.field(factory=dict)
    cwd: str | None = None
    output: CallOutput | None = None

    @classmethod
    def check(
        cls, timeout: float | None, env: Mapping[str, str] | None, cwd: str | None, output: CallOutput | None
    ) -> CallOptions:
        """Return options that were checked.

        Raises:
            ValueError: If one of them is out of range.
        """
        if output not in {"print", "log", "discard", None}:
            raise ValueError(f"output must be 'print', 'log', 'discard' or None, got {output!r}")
        return cls(check_timeout(timeout), check_environment(env), check_text("cwd", cwd), output)

    def __str__(self) -> str:
        """Return those that were given, without the values of variables, which may be secret."""
        given = {"timeout": self.timeout, "env": list(self.env) or None, "cwd": self.cwd, "output": self.output}
        return "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)


NO_CALL_OPTIONS = CallOptions()
