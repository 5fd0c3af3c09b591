"""One Python function on the host in one session: program, function and answer go over its streams."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import sys
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING

from lazycluster._functions.bootstrap import Greeting, check_python, parse_greeting, program
from lazycluster._model.watch import Watch
from lazycluster._ssh.client import Sessions
from lazycluster._ssh.host_scripts import END_MARKED
from lazycluster._ssh.session import Session, SessionEndedError
from lazycluster._ssh.shell import quote_path
from lazycluster.exceptions import PythonNotFoundError, RemoteFunctionError
from lazycluster.results import Collector, Stream

if TYPE_CHECKING:
    from lazycluster._functions.serialize import Payload

_CHUNK = 1 << 18
_NOT_FOUND = 127
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


def call(
    sessions: Sessions,
    payload: Payload,
    outcome: IO[bytes],
    *,
    python: str | None,
    cwd: str | None,
    env: Mapping[str, str] | None,
    timeout: float | None,
    watch: Watch,
) -> None:
    """Run a function; see `Connection.call()`."""
    token = secrets.token_hex(8)
    sent = program(token)
    script = sessions.script(
        start_python(python, sent.bootstrap),
        title=f"python: {payload.function}",
        cwd=cwd,
        env=env,
        raw_stdin=True,
        login_shell=False,
    )
    collector = watch.collector or Collector()
    greetings: list[Greeting] = []

    def work(session: Session) -> None:
        outcome.seek(0)
        outcome.truncate()
        session.feed(sent.text)
        greeting = _greeting(session, token)
        check_python(greeting, sessions.host)
        greetings.append(greeting)
        with contextlib.suppress(SessionEndedError):  # the answer says why nobody reads any more
            session.feed(payload.data)
        while data := session.read(_CHUNK):
            outcome.write(data)
        session.finish()

    exit_code = sessions.perform(script, work, collector=collector, timeout=timeout, watch=watch)
    if greetings:
        return
    if exit_code == _NOT_FOUND:
        raise PythonNotFoundError(sessions.host, " and ".join(candidates(python)))
    said = collector.joined(Stream.STDERR).decode(errors="replace").strip()
    raise RemoteFunctionError(sessions.host, payload.function, f"Python ended with exit status {exit_code}", said)


def _greeting(session: Session, token: str) -> Greeting:
    while (line := session.read_until(b"\n")) is not None:
        greeting = parse_greeting(line, token)
        if greeting is not None:
            return greeting
    raise SessionEndedError
