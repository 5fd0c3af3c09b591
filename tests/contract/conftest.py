"""One suite over every way onto a host: per step, resident, and the fake one of `lazycluster.testing`.

A test gets a `case` and does not know which it is. What commands answer is scripted, which a real host does not need.
Where the ways differ for a good reason, the test that finds it says so.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs
import pytest

from lazycluster import Runtime, RuntimeTask
from lazycluster._files.install import discard
from lazycluster._typing import Unpack
from lazycluster.options import RuntimeOptions
from lazycluster.testing import FakeHost, LocalSshd, SshdNotFoundError, find_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TRANSPORT_KINDS = [
    pytest.param("per-step", marks=pytest.mark.real),
    pytest.param("resident", marks=pytest.mark.real),
    "fake",
]
HOST_ALIAS = "local"

Program = TypeVar("Program", str, list[str])


@attrs.define
class TransportCase:
    """One way onto a host, for one test. What it makes is closed at the end of the test."""

    kind: str
    home: Path
    options: RuntimeOptions
    fake: FakeHost | None = None
    stack: ExitStack = attrs.field(factory=ExitStack)

    def runtime(self, working_dir: str | None = None, **options: Unpack[RuntimeOptions]) -> Runtime:
        keywords = self.options.copy()
        keywords.update(options)
        return self.stack.enter_context(Runtime(HOST_ALIAS, working_dir, **keywords))

    def script(
        self,
        command: Program,
        *,
        stdout: str | bytes = "",
        stderr: str = "",
        exit_code: int = 0,
        delay: float = 0.0,
        writes: Mapping[str, str] | None = None,
    ) -> Program:
        """Say what a command prints, and how it ends, to a host that does not run it; return the command."""
        if self.fake is not None:
            self.fake.on(command, stdout=stdout, stderr=stderr, exit_code=exit_code, delay=delay, writes=writes)
        return command

    def local_path(self, path: str) -> Path:
        """Return where an absolute path of the host lies on this machine, which all of these hosts are on."""
        return Path(path) if self.fake is None else self.fake.path(path)


@pytest.fixture(scope="session")
def sshd(run_directory: Path) -> Iterator[LocalSshd]:
    """Return the sshd that the real ways share; without one their tests are skipped, and fail in CI."""
    try:
        find_sshd()
    except SshdNotFoundError as error:
        if os.environ.get("CI") == "true" or os.environ.get("LAZYCLUSTER_REQUIRE_SSHD") == "1":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    with LocalSshd(name=HOST_ALIAS, environment={"TMPDIR": str(run_directory)}) as server:
        yield server


@pytest.fixture(params=TRANSPORT_KINDS)
def case(request: pytest.FixtureRequest) -> Iterator[TransportCase]:
    with ExitStack() as stack:
        if request.param == "fake":
            fake = stack.enter_context(FakeHost())
            made = TransportCase("fake", fake.path("~"), {}, fake)
        else:
            server: LocalSshd = request.getfixturevalue("sshd")
            options: RuntimeOptions = {"config_file": str(server.config_file), "resident": request.param == "resident"}
            made = TransportCase(request.param, server.home, options)
        with made.stack:
            yield made


@pytest.fixture(scope="session")
def shared_runtimes() -> Iterator[dict[str, Runtime]]:
    """Keep a runtime for each real way, which takes its time to be made."""
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
    shared: dict[str, Runtime] = request.getfixturevalue(
        "shared_runtimes"
    )  # after the sshd, so that it ends before that
    if case.kind not in shared:
        shared[case.kind] = Runtime(HOST_ALIAS, **case.options)
    runtime = shared[case.kind]
    yield runtime
    assert runtime.get_processes(only_alive=True) == {}, "a test stops or joins what it begins"
    runtime.clear_tasks()
    runtime.set_env_variables({})
    for path in case.local_path(runtime.working_dir).iterdir():
        discard(path)


def execute_and_wait(runtime: Runtime, task: RuntimeTask) -> RuntimeTask:
    """Carry a task out, and wait for it."""
    return runtime.execute_task(task, execute_async=False)
