"""One Python function on the host in one session: program, function and outcome go over its streams."""

from __future__ import annotations

import contextlib
import secrets
from typing import IO

import attrs

from lazycluster._functions.bootstrap import PythonInfo, build_call_program, check_python_version, parse_python_info
from lazycluster._functions.function_call import FunctionCall
from lazycluster._functions.python_finder import exec_python_script, python_candidates
from lazycluster._model.command import Command
from lazycluster._model.running_command import CommandEndedError, CommandRunner, RunningCommand
from lazycluster._model.watch import Watch
from lazycluster.exceptions import PythonNotFoundError, RemoteFunctionError
from lazycluster.results import Collector, Stream

_OUTCOME_READ_BYTES = 1 << 18
_EXIT_COMMAND_NOT_FOUND = 127


def run_function_in_session(
    runner: CommandRunner, call: FunctionCall, outcome: IO[bytes], *, python: str | None, grace: float, watch: Watch
) -> None:
    """Call a function in a Python of its own, and write its outcome to a file, for `read_outcome()`.

    Raises:
        PythonNotFoundError: If there is no Python on the host.
        PythonVersionMismatchError: If the minor version there differs from that of the local Python.
        CommandTimeoutError: If the time limit passes.
        ConnectionLostError: If the connection breaks.
    """
    from lazycluster._functions.serialize import full_request  # noqa: PLC0415 - only calls need cloudpickle

    token = secrets.token_hex(8)
    host_program = build_call_program(token, grace)
    command = Command(
        exec_python_script(python, host_program.bootstrap),
        cwd=call.cwd,
        env=call.env,
        stdin=None,
        timeout=call.timeout,
        title=call.title,
        login_shell=False,
    )
    collector = watch.collector or Collector()
    python_infos: list[PythonInfo] = []

    def send_call(running: RunningCommand) -> None:
        outcome.seek(0)
        outcome.truncate()
        running.write(host_program.stdin_prefix)
        python_info = _read_python_info(running, token)
        check_python_version(python_info, runner.host)
        python_infos.append(python_info)
        with contextlib.suppress(CommandEndedError):  # the outcome says why
            running.write(full_request(call.payload))
        while data := running.read(_OUTCOME_READ_BYTES):
            outcome.write(data)
        running.wait()

    exit_code = runner.communicate(command, send_call, attrs.evolve(watch, collector=collector))
    if python_infos:
        return
    if exit_code == _EXIT_COMMAND_NOT_FOUND:
        raise PythonNotFoundError(runner.host, " and ".join(python_candidates(python)))
    stderr_text = collector.getvalue(Stream.STDERR).decode(errors="replace").strip()
    raise RemoteFunctionError(
        runner.host, call.payload.function, f"Python ended with exit status {exit_code}", stderr_text
    )


def _read_python_info(running: RunningCommand, token: str) -> PythonInfo:
    while (line := running.read_until(b"\n")) is not None:
        python_info = parse_python_info(line, token)
        if python_info is not None:
            return python_info
    raise CommandEndedError
