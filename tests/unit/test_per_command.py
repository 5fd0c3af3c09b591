"""A host where each step is a process of its own: what is left there is told, and nobody is dialled for nothing."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from lazycluster import CommandFailedError, ConnectionLostError
from lazycluster._model.watch import Watch
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.shell import PROCESS_MARK_VARIABLE, Script
from lazycluster._transports.per_command import PerCommandTransport
from lazycluster._transports.ssh_transport import check_result
from lazycluster.results import CommandResult, Stream


@attrs.define
class Scripts:
    """What was run on the host, and what it answers."""

    answers: list[CommandResult | Exception] = attrs.field(factory=list)
    run: list[Script] = attrs.field(factory=list)

    def __call__(self, script: Script, _work: object, watch: Watch) -> int:
        """Answer with the next."""
        self.run.append(script)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert watch.collector is not None
        watch.collector.write(Stream.STDOUT, answer.stdout_bytes)
        watch.collector.write(Stream.STDERR, answer.stderr_bytes)
        return answer.exit_code


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Scripts:
    made = Scripts()
    monkeypatch.setattr(SshClient, "run_script", made)  # called without the client
    return made


@pytest.fixture
def host() -> Iterator[PerCommandTransport]:
    made = PerCommandTransport(SshClient(Destination("web1")))
    yield made
    made.close()


LOST = ConnectionLostError("web1", "clean up", "closed", started=True)


@pytest.mark.parametrize(
    ("outcome", "warnings"),
    [
        (CommandResult("clean up", 0, b"", b""), []),
        (
            CommandResult("clean up", 1, b"", b"rm: cannot remove '/w'\n"),
            ["web1: the clean-up left something: rm: cannot remove '/w'"],
        ),
        (LOST, [f"web1: the clean-up failed: {LOST}"]),
    ],
)
def test_what_the_host_could_not_clean_up_is_logged(
    host: PerCommandTransport,
    scripts: Scripts,
    outcome: CommandResult | Exception,
    warnings: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    scripts.answers = [CommandResult("create_tempdir", 0, b"/tmp/a b\0", b""), outcome]
    assert host.create_tempdir() == "/tmp/a b"
    host.clean_up()
    script, token = scripts.run[-1], host.ssh_client.token
    assert script.command.shell_text.startswith(f"set -- {PROCESS_MARK_VARIABLE}={token}. 50 '/tmp/a b'\n")
    assert token not in script.process_mark  # it would end itself
    assert caplog.messages == warnings


def test_a_host_that_was_never_reached_is_not_dialled(host: PerCommandTransport) -> None:
    assert not host.can_reach_host(1.0)
    assert not host.ssh_client.is_connected


def test_temporary_directories(host: PerCommandTransport, scripts: Scripts) -> None:
    scripts.answers = [CommandResult("create_tempdir", 0, b"/tmp/\xff%d\0" % number, b"") for number in range(2)]
    paths = [host.create_tempdir(), host.create_tempdir()]
    assert paths == host.temp_dirs == ["/tmp/\udcff0", "/tmp/\udcff1"]
    scripts.answers = [CommandResult("delete_dir", status, b"", b"") for status in (1, 0, 0)]
    assert [host.delete_dir(path, cwd="/w") for path in (paths[0], paths[1], "/else")] == [False, True, True]
    assert host.temp_dirs == paths[:1]
    scripts.answers = [CommandResult("create_tempdir", 1, b"", b"mktemp: no space")]
    with pytest.raises(CommandFailedError, match="mktemp: no space"):
        host.create_tempdir()
    assert host.temp_dirs == paths[:1]


def test_checked() -> None:
    good = CommandResult("x", 0, b"", b"")
    assert check_result("web1", good) is good
    with pytest.raises(CommandFailedError, match=r"web1: `x` ended with exit status 3\.\n    why"):
        check_result("web1", CommandResult("x", 3, b"", b"why\n"))
