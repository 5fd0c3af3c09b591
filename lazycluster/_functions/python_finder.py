"""Which Python on a host runs functions, and the shell text that starts it."""

from __future__ import annotations

import shlex
import sys

from lazycluster._ssh.host_scripts import END_MARKED
from lazycluster._ssh.shell import quote_path

# A pyenv or asdf shim is there for every version, and fails where that version is not switched on.
_FIND = """\
for p in "$@"; do
    case $PATH in
        */shims*) f=$(command -v "$p" 2>/dev/null) || continue;;
        *) command -v "$p" >/dev/null 2>&1 || continue; f=$p;;
    esac
    case $f in */shims/*)
        f=$("$p" -c "import sys; print(sys.executable)" </dev/null 2>/dev/null) || continue
        [ -x "$f" ] || f=$p;;
    *) f=$p;;
    esac
"""
_START = """\
    exec "$f" -c {bootstrap}
done
exit 127
"""
_START_AND_MIND = """\
    {variable} PYTHONCOERCECLOCALE=0 "$f" -S -c {bootstrap}
    code=$?
    [ $code -ne 0 ] || exit 0
    set -- {mark}
    for d in "${{TMPDIR:-/tmp}}"/{directories}*; do [ ! -d "$d" ] || set -- "$@" "$d"; done
    (
{clean_up})
    exit $code
done
exit 127
"""


def candidates(python: str | None) -> tuple[str, ...]:
    """Return the names under which a Python is looked for on the host, in order."""
    if python is not None:
        return (python,)
    return (f"python{sys.version_info[0]}.{sys.version_info[1]}", "python3")


def start_python(python: str | None, bootstrap: str) -> str:
    """Return the shell text that becomes the first Python found, or ends with 127."""
    return f"{_find(python)}{_START.format(bootstrap=shlex.quote(bootstrap))}"


def start_and_mind_python(python: str | None, bootstrap: str, *, mark: str, directories: str) -> str:
    """Return the shell text that runs the first Python found, or ends with 127, and cleans up after one that fails.

    Should it be killed, the shell ends what has the variable `mark` in its environment, and removes the temporary
    directories whose names begin with `directories`.
    """
    start = _START_AND_MIND.format(
        variable=mark,
        bootstrap=shlex.quote(bootstrap),
        mark=shlex.quote(mark),
        directories=directories,
        clean_up=END_MARKED,
    )
    return f"{_find(python)}{start}"


def _find(python: str | None) -> str:
    words = " ".join(quote_path(name) for name in candidates(python))
    return f"set -- {words}\n{_FIND}"
