"""One Python function on the host in one session: program, function and answer go over its streams."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING

from lazycluster._functions.bootstrap import Greeting, check_python, parse_greeting, program
from lazycluster._functions.python_finder import candidates, start_python
from lazycluster._model.watch import Watch
from lazycluster._ssh.client import Sessions
from lazycluster._ssh.session import Session, SessionEndedError
from lazycluster.exceptions import PythonNotFoundError, RemoteFunctionError
from lazycluster.results import Collector, Stream

if TYPE_CHECKING:
    from lazycluster._functions.serialize import Payload

_CHUNK = 1 << 18
_NOT_FOUND = 127


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
