"""Tasks on a group: one task on one host or a copy on each, and the end of all tasks."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence

from lazycluster._display import count_bar
from lazycluster._gather import capture, check_on_error, gather, unwrap_all, values_or_errors
from lazycluster._membership import Members
from lazycluster._prefixed_output import PrefixedOutput
from lazycluster._runtime_core import core_of
from lazycluster.exceptions import HostsFailedError, LazyclusterError
from lazycluster.results import Error, OnError, Value
from lazycluster.runtimes import Runtime
from lazycluster.steps import GetFile, Step
from lazycluster.tasks import RuntimeTask


def execute_task(
    members: Members,
    task: RuntimeTask,
    on_error: OnError,
    *,
    host: str | None,
    broadcast: bool,
    execute_async: bool,
    debug: bool,
) -> RuntimeTask | Error | Mapping[str, RuntimeTask | Error]:
    """Carry out a task on one host, or a copy of it on every host; see `RuntimeGroup.execute_task()`."""
    check_on_error(on_error)
    if broadcast:
        if host is not None:
            raise ValueError(f"host must be None with broadcast, got {host!r}")
        return _broadcast(members, task, on_error, execute_async=execute_async, debug=debug)
    runtime = members.get(host)
    try:
        return runtime.execute_task(task, execute_async, debug)
    except LazyclusterError as error:
        if on_error == "raise":
            raise
        return Error(error, runtime.host)


def send_file(
    members: Members,
    local_path: str | os.PathLike[str],
    remote_path: str | None,
    on_error: OnError,
    *,
    execute_async: bool,
) -> Mapping[str, RuntimeTask | Error]:
    """Send a file or directory to every host; see `RuntimeGroup.send_file()`."""
    check_on_error(on_error)
    task = RuntimeTask(f"send {os.fspath(local_path)}").send_file(local_path, remote_path)
    return _broadcast(members, task, on_error, execute_async=execute_async, debug=False)


def _broadcast(
    members: Members, task: RuntimeTask, on_error: OnError, *, execute_async: bool, debug: bool
) -> Mapping[str, RuntimeTask | Error]:
    outcomes: dict[str, Value[RuntimeTask] | Error] = {}
    runtimes = members.require()
    if len(runtimes) > 1:
        _check_distinct_local_paths(task.steps)
    copies = {host: task.copy() for host in runtimes}
    title = f"task {task.name}"
    output = PrefixedOutput(list(runtimes)) if debug else None
    try:
        for host, runtime in runtimes.items():
            outcomes[host] = capture(functools.partial(_start, copies[host], runtime, output), Exception)
        if not execute_async:
            with count_bar(title, len(outcomes), "hosts", shown=members.progress and not debug) as advance:
                for host, outcome in outcomes.items():
                    if isinstance(outcome, Value):
                        outcomes[host] = capture(functools.partial(_join, outcome.value), LazyclusterError)
                    advance(isinstance(outcomes[host], Value))
    except BaseException:
        _terminate(list(copies.values()))
        raise
    return unwrap_all(outcomes, f"task {task.name!r}") if on_error == "raise" else values_or_errors(outcomes)


def _start(task: RuntimeTask, runtime: Runtime, output: PrefixedOutput | None) -> RuntimeTask:
    core_of(runtime).start_task(task, runtime, execute_async=True, prefixed_output=output)
    return task


def _join(task: RuntimeTask) -> RuntimeTask:
    task.join()
    return task


def _terminate(tasks: Sequence[RuntimeTask]) -> None:
    """End tasks in the background, all at the same time."""
    processes = [task.process for task in tasks if task.process is not None]
    gather({str(number): process.terminate for number, process in enumerate(processes)})


def _check_distinct_local_paths(steps: Iterable[Step]) -> None:
    for step in steps:
        if isinstance(step, GetFile) and not step.has_host_placeholder:
            raise ValueError(
                f"each host would write to the same place, {step.local}: put {{host}} into the local path of get_file()"
            )


def join(members: Members) -> None:
    """Wait until every task in the background has ended.

    Raises:
        HostsFailedError: If some tasks failed; the error lists each with its host.
    """
    runtimes = members.all().values()
    errors = []
    with count_bar("waiting for tasks", len(runtimes), "hosts", shown=members.progress) as advance:
        for runtime in runtimes:
            failed = core_of(runtime).task_history.join()
            errors += [(runtime.host, error) for error in failed]
            advance(not failed)
    if errors:
        raise HostsFailedError("a task", tuple(errors), len(runtimes))
