"""One Python function on the host in one session: program, function and answer go over its streams."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING

from lazycluster._functions.bootstrap import PythonInfo, build_call_program, check_python_version, parse_python_info
from lazycluster._functions.python_finder import exec_python_script, python_candidates
from lazycluster._model.watch import Watch
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.session import Session, SessionEndedError
from lazycluster.exceptions import PythonNotFoundError, RemoteFunctionError
from lazycluster.results import Collector, Stream

if TYPE_CHECKING:
    from lazycluster._functions.serialize import Payload

_ANSWER_READ_BYTES = 1 << 18
_EXIT_COMMAND_NOT_FOUND = 127


def run_function_in_session(
    ssh_client: SshClient,
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
    host_program = build_call_program(token)
    script = ssh_client.script(
        exec_python_script(python, host_program.bootstrap),
        title=f"python: {payload.function}",
        cwd=cwd,
        env=env,
        raw_stdin=True,
        login_shell=False,
    )
    collector = watch.collector or Collector()
    python_infos: list[PythonInfo] = []

    def work(session: Session) -> None:
        outcome.seek(0)
        outcome.truncate()
        session.write(host_program.stdin_prefix)
        python_info = _read_python_info(session, token)
        check_python_version(python_info, ssh_client.host)
        python_infos.append(python_info)
        with contextlib.suppress(SessionEndedError):  # the answer says why nobody reads any more
            session.write(payload.full_request)
        while data := session.read(_ANSWER_READ_BYTES):
            outcome.write(data)
        session.wait()

    exit_code = ssh_client.run_script(script, work, collector=collector, timeout=timeout, watch=watch)
    if python_infos:
        return
    if exit_code == _EXIT_COMMAND_NOT_FOUND:
        raise PythonNotFoundError(ssh_client.host, " and ".join(python_candidates(python)))
    stderr_text = collector.getvalue(Stream.STDERR).decode(errors="replace").strip()
    raise RemoteFunctionError(
        ssh_client.host, payload.function, f"Python ended with exit status {exit_code}", stderr_text
    )


def _read_python_info(session: Session, token: str) -> PythonInfo:
    while (line := session.read_until(b"\n")) is not None:
        python_info = parse_python_info(line, token)
        if python_info is not None:
            return python_info
    raise SessionEndedError
