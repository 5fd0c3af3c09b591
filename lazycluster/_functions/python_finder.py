"""The Python on a host that runs functions, and the shell text that starts it."""

from __future__ import annotations

import shlex
import sys

from lazycluster._ssh.host_scripts import grace_tenths, text
from lazycluster._ssh.shell import quote_path


def python_candidates(python: str | None) -> tuple[str, ...]:
    """Return the names of the Pythons to look for on the host, in order."""
    if python is not None:
        return (python,)
    return (f"python{sys.version_info[0]}.{sys.version_info[1]}", "python3")


def exec_python_script(python: str | None, bootstrap: str) -> str:
    """Return the shell text that becomes the first Python found, or ends with 127."""
    return _set_variables(python, lc_bootstrap=bootstrap) + text("find_python", "start_python")


def run_python_script(python: str | None, bootstrap: str, *, mark: str, temp_dir_prefix: str, grace: float) -> str:
    """Return the shell text that runs the first Python found, or ends with 127, and cleans up after one that fails.

    If Python is killed, the shell ends the processes that have the variable `mark` in their environment. They have
    `grace` seconds between SIGTERM and SIGKILL. Then the shell removes the temporary directories whose names begin with
    `temp_dir_prefix`.
    """
    values = _set_variables(
        python,
        lc_bootstrap=bootstrap,
        lc_mark=mark,
        lc_temp_dir_prefix=temp_dir_prefix,
        lc_grace_tenths=grace_tenths(grace),
    )
    return values + text("find_python", "terminate_marked", "stop_marked", "start_supervisor")


def _set_variables(python: str | None, **values: str) -> str:
    """Return the lines that set variables, and the Pythons to try as parameters."""
    words = " ".join(quote_path(name) for name in python_candidates(python))
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()) + f"set -- {words}\n"
