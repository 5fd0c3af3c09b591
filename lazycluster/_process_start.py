"""The start of a process on a runtime: checks, a directory of its own, registration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from lazycluster._model.checks import check_text, join_cwd
from lazycluster._model.command import Command
from lazycluster._process_execution import ProcessExecution
from lazycluster._resources import ResourceRegistry
from lazycluster._runtime_core import RuntimeCore
from lazycluster.remote_process import RemoteProcess
from lazycluster.results import Stream

_MAX_NAME_CHARACTERS = 60


class _StartedProcess(RemoteProcess):
    def __init__(
        self, resources: ResourceRegistry, execution: ProcessExecution, name: str, key: str, working_dir: str
    ) -> None:
        self._resources = resources
        self._execution = execution
        self.host = execution.transport.host
        self.name, self.key, self.working_dir = name, key, working_dir
        self.stdin = execution.streams.open_writer()
        self.stdout, self.stderr = map(execution.streams.open_reader, Stream)

    def cleanup(self) -> None:
        super().cleanup()
        self._resources.discard([self.key])


def start_process(
    core: RuntimeCore,
    owner: object,
    program: str | Sequence[str],
    *,
    cwd: str | None,
    env: Mapping[str, str] | None,
    stdin: bytes | None,
    name: str | None,
    own_directory: bool,
    on_exit: Callable[[RemoteProcess], object] | None,
) -> RemoteProcess:
    """Start a process, which keeps its owner alive; see `Runtime.start()`."""
    check_text("name", name)
    if on_exit is not None and not callable(on_exit):
        raise ValueError(f"on_exit must be callable or None, got {on_exit!r}")
    if stdin is not None and not isinstance(stdin, bytes):
        raise ValueError(f"stdin must be bytes or None, got {type(stdin).__name__}")
    if own_directory and cwd is not None:
        raise ValueError(f"cwd must be None with own_directory, got {cwd!r}")
    variables = {**core.env_variables, **(env or {})}  # a Command checks them
    command = Command(program, cwd=cwd, env=variables, stdin=stdin, has_lifeline=True)
    core.resources.check_open()
    directory = core.transport.create_tempdir() if own_directory else None
    working_dir = directory or join_cwd(core.working_dir, cwd)
    execution = ProcessExecution(core.transport, attrs.evolve(command, cwd=working_dir), directory)
    try:
        label = name or command.title[:_MAX_NAME_CHARACTERS]
        key = core.resources.new_key(name or "process")
        process = _StartedProcess(core.resources, execution, label, key, working_dir)
        execution.start(owner, lambda: None if on_exit is None else on_exit(process))
        core.resources.register(key, process)
    except BaseException:  # also Ctrl-C: the process may have begun, and no other object knows it
        execution.request_stop()
        raise
    return process
