"""One suite over every transport: per command, resident, and the fake one of `lazycluster.testing`.

A test gets a `case` and does not know which it is. It scripts the output of commands for the fake host; a real host
runs them. If the transports differ for a good reason, the test that shows it says so.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs
import pytest

from lazycluster import Connection, Runtime, RuntimeTask
from lazycluster.testing import FakeHost, LocalSshd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Unpack

    from lazycluster.options import RuntimeOptions

TRANSPORT_KINDS = [
    pytest.param("per-command", marks=pytest.mark.real),
    pytest.param("resident", marks=pytest.mark.real),
    "fake",
]
CONNECTION_KINDS = [TRANSPORT_KINDS[0], "fake"]
"""The kinds for tests of `Connection`, which has no supervisor: `parametrize("case", ..., indirect=True)`."""
HOST_ALIAS = "contract"
"""Not the name of the host in `tests/real`: the threads of shared runtimes have it in their names."""

Program = TypeVar("Program", str, list[str])


@attrs.define
class TransportCase:
    """One host and transport, for one test. It closes the runtimes and connections that it made when the test ends."""

    kind: str
    home: Path
    options: RuntimeOptions
    fake: FakeHost | None = None
    stack: ExitStack = attrs.field(factory=ExitStack)

    def runtime(self, working_dir: str | None = None, **options: Unpack[RuntimeOptions]) -> Runtime:
        keywords = self.options.copy()
        keywords.update(options)
        return self.stack.enter_context(Runtime(HOST_ALIAS, working_dir, **keywords))

    def connection(self) -> Connection:
        return self.stack.enter_context(Connection(HOST_ALIAS, config_file=self.options.get("config_file")))

    def script(
        self,
        command: Program,
        *,
        stdout: str | bytes = "",
        stderr: str = "",
        exit_code: int = 0,
        delay: float = 0.0,
        reads_stdin: bool = False,
        writes: Mapping[str, str] | None = None,
    ) -> Program:
        """Say what a command prints, and how it ends, to a host that does not run it; return the command."""
        if self.fake is not None:
            self.fake.on(
                command,
                stdout=stdout,
                stderr=stderr,
                exit_code=exit_code,
                delay=delay,
                reads_stdin=reads_stdin,
                writes=writes,
            )
        return command

    def local_path(self, path: str) -> Path:
        """Return the path on this machine of an absolute path of the host; all of these hosts are on this machine."""
        return Path(path) if self.fake is None else self.fake.path(path)


@pytest.fixture(scope="session")
def sshd(require_sshd: None, run_directory: Path) -> Iterator[LocalSshd]:
    """Return an sshd for these tests alone: their shared runtimes stay connected, and use its home."""
    with LocalSshd(name=HOST_ALIAS, environment={"TMPDIR": str(run_directory)}) as server:
        yield server


@pytest.fixture(params=TRANSPORT_KINDS)
def case(request: pytest.FixtureRequest) -> Iterator[TransportCase]:
    with ExitStack() as stack:
        if request.param == "fake":
            fake = stack.enter_context(FakeHost())
            case = TransportCase("fake", fake.path("~"), {}, fake)
        else:
            server: LocalSshd = request.getfixturevalue("sshd")
            options: RuntimeOptions = {"config_file": str(server.config_file), "resident": request.param == "resident"}
            case = TransportCase(request.param, server.home, options)
        with case.stack:
            yield case


@pytest.fixture(scope="session")
def shared_runtimes() -> Iterator[dict[str, Runtime]]:
    """Keep a runtime for each real transport, because making one takes time."""
    runtimes: dict[str, Runtime] = {}
    yield runtimes
    for runtime in runtimes.values():
        runtime.close()


@pytest.fixture
def runtime(case: TransportCase, request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """Return a runtime with a temporary working directory, which is empty; tests leave it open and in its place."""
    if case.fake is not None:
        yield case.runtime()
        return
    # Asked for after the sshd, so that it ends before the sshd does.
    shared: dict[str, Runtime] = request.getfixturevalue("shared_runtimes")
    if case.kind not in shared:
        shared[case.kind] = Runtime(HOST_ALIAS, **case.options)
    runtime = shared[case.kind]
    yield runtime
    assert runtime.get_processes(only_alive=True) == {}, "a test stops or joins its tasks"
    runtime.clear_tasks()
    runtime.set_env_variables({})
    for path in case.local_path(runtime.working_dir).iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.fixture
def host_dir(case: TransportCase, runtime: Runtime) -> Path:
    """Return the path on this machine of the working directory on the host."""
    return case.local_path(runtime.working_dir)


def execute_and_wait(runtime: Runtime, task: RuntimeTask) -> RuntimeTask:
    """Carry a task out, and wait for it."""
    return runtime.execute_task(task, execute_async=False)
