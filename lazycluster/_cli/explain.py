"""`lazycluster explain`."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import click

from lazycluster._cli.options import complete_hosts, config_option, json_option, python_option
from lazycluster._display import pluralize
from lazycluster._explain import ShellBlock, explain_steps, setup_blocks, teardown_block
from lazycluster._model.checks import absolute_path
from lazycluster._ssh.destination import Destination
from lazycluster.exceptions import LazyclusterError
from lazycluster.steps import RunFunction
from lazycluster.tasks import RuntimeTask

EXPLAINED_MODULE_NAME = "lazycluster_explained"
"""The `__name__` of the file: not `__main__`, so that the lines under that condition do not run."""
_PACKAGE_PREFIX = str(Path(__file__).parents[1]) + os.sep
"""The beginning of the paths of the library's own files."""


@attrs.frozen(slots=False)
class ForbiddenProgramError(LazyclusterError):
    """A file that is only to be explained starts ssh or scp at its top level."""

    program: str

    def __str__(self) -> str:
        """Return the reason, and what to do about it."""
        return (
            f"`lazycluster explain` executes this file and connects to no host, so {self.program} is not started; "
            "put what makes a Runtime or a Connection under `if __name__ == '__main__':`"
        )


@attrs.frozen
class FoundTask:
    """A task of a file, and the variables that hold it."""

    variables: tuple[str, ...]
    task: RuntimeTask

    @property
    def variable(self) -> str:
        """The first variable."""
        return self.variables[0]

    @property
    def title(self) -> str:
        """The name to show: its own if it was given one."""
        return self.variable if self.task.name == f"task-{id(self.task)}" else self.task.name


@click.command(short_help="Print the ssh and scp lines that a task would run.")
@click.argument("file", metavar="TASK.py", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--host",
    default="HOST",
    metavar="HOST",
    shell_complete=complete_hosts,
    help="The host that it would run on.  [default: the word HOST, for you to replace]",
)
@click.option("--task", "name", metavar="NAME", help="Only this one: a variable of the file, or a task's own name.")
@click.option(
    "--working-dir",
    metavar="DIR",
    help="The directory on the host, as for Runtime(HOST, DIR).  [default: the home directory]",
)
@click.option(
    "--write-payloads",
    "payloads",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write the functions of the task to files here, and print the lines that run them.",
)
@python_option
@config_option
@json_option
def explain(
    file: Path,
    host: str,
    name: str | None,
    working_dir: str | None,
    payloads: Path | None,
    python: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Print the ssh and scp lines that a task would run, and run nothing.

    TASK.py is a Python file with one RuntimeTask or more at its top level. That top level is executed here, now,
    except for the lines under `if __name__ == "__main__"`. It cannot start ssh and scp, so a Runtime that it makes is
    an error.

    The lines are for bash, dash, ksh and zsh: to paste into a terminal, or to save and run as a script.

    \b
    Examples:
      lazycluster explain task.py --host gpu-1
      lazycluster explain task.py --host gpu-1 --working-dir '~/work' --task train
      lazycluster explain task.py --host gpu-1 --write-payloads payloads >task.sh && sh task.sh
    """  # noqa: D301 - \b keeps click from wrapping what follows
    try:
        destination = Destination(host, config_file=None if config is None else absolute_path(config))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--host") from error
    for option, value in (("--working-dir", working_dir), ("--python", python)):
        if value is not None and (not value or "\0" in value):
            raise click.BadParameter(f"it must not be empty or contain NUL, got {value!r}", param_hint=option)
    tasks = _select_tasks(_find_tasks(file), name, file)
    first, last = setup_blocks(destination, working_dir), teardown_block()
    explained = [(found, _explain_task(found, destination, working_dir, payloads, python)) for found in tasks]
    if as_json:
        _print_json(destination, first, explained, last)
        return
    blocks: list[ShellBlock] = [*first]
    for found, steps in explained:
        blocks += [ShellBlock(f"Task {found.title!a} for {host}, {pluralize(len(steps), 'step')}."), *steps]
    for block in [*blocks, last]:
        _print_block(block)


def _explain_task(
    found: FoundTask, destination: Destination, working_dir: str | None, payloads: Path | None, python: str | None
) -> tuple[ShellBlock, ...]:
    written = {} if payloads is None else _write_payloads(found, absolute_path(payloads))
    steps = found.task.steps
    return explain_steps(steps, destination, working_dir, is_directory=Path.is_dir, payloads=written, python=python)


# The file ------------------------------------------------------------------------------------------------------------


def _find_tasks(file: Path) -> list[FoundTask]:
    """Execute the top level of a file and return the tasks that it defines, in order."""
    found: dict[int, FoundTask] = {}
    for variable, value in _run_file(file).items():
        if isinstance(value, RuntimeTask):
            before = found[id(value)].variables if id(value) in found else ()
            found[id(value)] = FoundTask((*before, variable), value)
    if not found:
        raise click.ClickException(
            f"{file}: there is no RuntimeTask at its top level; write one there, such as: task = RuntimeTask('name')"
        )
    return list(found.values())


def _run_file(file: Path) -> dict[str, object]:
    """Run a file as `python FILE` would, but for its name, and return its variables."""
    sys.argv = [str(file)]
    sys.path.insert(0, str(absolute_path(file).parent))
    try:
        with _forbid_ssh():
            return runpy.run_path(str(file), run_name=EXPLAINED_MODULE_NAME)
    except SystemExit as error:
        raise click.ClickException(f"{file}: it ended by itself, with exit status {error.code!r}") from error
    except Exception as error:
        reason = f"{file} raised {type(error).__name__}, so there is nothing to explain"
        raise click.ClickException(f"{reason}:\n{_format_traceback(error, str(file)).rstrip()}") from error


def _format_traceback(error: BaseException, file: str) -> str:
    """Return the traceback of an error from the file on, without the frames that executed the file."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != file:
        frames = frames.tb_next
    trimmed = traceback.TracebackException(type(error), error, frames)
    refused = any(isinstance(cause, ForbiddenProgramError) for cause in _cause_chain(error))
    if refused:  # by the library, whose own frames are no help
        trimmed.stack = traceback.StackSummary.from_list(
            [frame for frame in trimmed.stack if _PACKAGE_PREFIX not in frame.filename]
        )
    return "".join(trimmed.format(chain=not refused))


def _cause_chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@contextlib.contextmanager
def _forbid_ssh() -> Iterator[None]:
    """Keep the code of a task file from starting ssh and scp: a file that makes a Runtime is a mistake of the user."""
    forbidden = _install_audit_hook()
    forbidden.add("ssh")
    forbidden.add("scp")
    try:
        yield
    finally:
        forbidden.clear()


@functools.cache
def _install_audit_hook() -> set[str]:
    """Return a set of programs that may not be started from now on; an audit hook cannot be removed (PEP 578)."""
    forbidden: set[str] = set()

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if forbidden and event in {"subprocess.Popen", "os.exec", "os.posix_spawn"}:
            name = Path(os.fsdecode(arguments[0])).name if isinstance(arguments[0], (str, bytes)) else ""
            if name in forbidden and event == "os.exec":  # in a forked child, whose code expects an OSError
                raise PermissionError(errno.EPERM, str(ForbiddenProgramError(name)))
            if name in forbidden:
                raise ForbiddenProgramError(name)

    sys.addaudithook(refuse)
    return forbidden


def _select_tasks(tasks: Sequence[FoundTask], name: str | None, file: Path) -> list[FoundTask]:
    if name is None:
        return list(tasks)
    chosen = [found for found in tasks if name in {*found.variables, found.task.name}]
    if not chosen:
        known = ", ".join(found.title for found in tasks)
        raise click.BadParameter(f"{file} has no task {name!r}; it has: {known}", param_hint="--task")
    return chosen


def _write_payloads(found: FoundTask, directory: Path) -> dict[int, Path]:
    """Write the functions of a task to files that only this user can read; return the file of each step by index."""
    written: dict[int, Path] = {}
    for index, step in enumerate(found.task.steps):
        if not isinstance(step, RunFunction):
            continue
        from lazycluster._functions.serialize import serialize_call  # noqa: PLC0415
        from lazycluster._functions.standalone import render_standalone_file  # noqa: PLC0415 - cloudpickle is for functions

        name = re.sub(r"[^A-Za-z0-9_]+", "-", f"{found.variable}-{index + 1}-{step.name}").strip("-")
        path = directory / f"{name}.py"
        text = render_standalone_file(serialize_call(step.function, *step.args, **step.kwargs))
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.touch(mode=0o600, exist_ok=False)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"cannot write {path}: {error.strerror}") from error
        written[index] = path
    return written


# Output --------------------------------------------------------------------------------------------------------------


def _print_block(block: ShellBlock) -> None:
    for line in block.comment.splitlines():
        click.echo(click.style(f"# {line}", fg="cyan"))
    for line in block.lines:
        click.echo(line)
    click.echo()


def _print_json(
    destination: Destination,
    first: Sequence[ShellBlock],
    explained: Sequence[tuple[FoundTask, Sequence[ShellBlock]]],
    last: ShellBlock,
) -> None:
    tasks = [
        {"task": found.title, "variable": found.variable, "steps": [_block_record(block) for block in steps]}
        for found, steps in explained
    ]
    opened = [_block_record(block) for block in first]
    click.echo(
        json.dumps({"host": destination.host, "open": opened, "tasks": tasks, "close": _block_record(last)}, indent=2)
    )


def _block_record(block: ShellBlock) -> dict[str, object]:
    return {"comment": block.comment, "lines": list(block.lines)}
