"""The per-command transport: its temporary directories and its clean-up."""

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
from lazycluster.results import CommandResult, Stream


@attrs.define
class FakeScripts:
    """Records the scripts that are run on the host, and answers them in turn."""

    answers: list[CommandResult | Exception] = attrs.field(factory=list)
    calls: list[Script] = attrs.field(factory=list)

    def __call__(self, script: Script, _work: object, watch: Watch) -> int:
        self.calls.append(script)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert watch.collector is not None
        watch.collector.write(Stream.STDOUT, answer.stdout_bytes)
        watch.collector.write(Stream.STDERR, answer.stderr_bytes)
        return answer.exit_code


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> FakeScripts:
    scripts = FakeScripts()
    monkeypatch.setattr(SshClient, "run_script", scripts)  # an object, no function: it gets no `self`
    return scripts


@pytest.fixture
def transport() -> Iterator[PerCommandTransport]:
    transport = PerCommandTransport(SshClient(Destination("web1")))
    yield transport
    transport.close()


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
def test_clean_up_failed_logs_warning(
    transport: PerCommandTransport,
    scripts: FakeScripts,
    outcome: CommandResult | Exception,
    warnings: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    scripts.answers = [CommandResult("create_tempdir", 0, b"/tmp/a b\0", b""), outcome]
    assert transport.create_tempdir() == "/tmp/a b"
    transport.clean_up()
    script, token = scripts.calls[-1], transport.ssh_client.token
    assert script.command.shell_text.startswith(f"set -- {PROCESS_MARK_VARIABLE}={token}. 50 '/tmp/a b'\n")
    assert token not in script.process_mark  # a clean-up with the mark would end itself
    assert caplog.messages == warnings


def test_can_reach_host_unused_does_not_connect(transport: PerCommandTransport) -> None:
    assert not transport.can_reach_host(1.0)
    assert not transport.ssh_client.is_connected


def test_temp_dirs_follow_create_and_delete(transport: PerCommandTransport, scripts: FakeScripts) -> None:
    scripts.answers = [CommandResult("create_tempdir", 0, b"/tmp/\xff%d\0" % number, b"") for number in range(2)]
    paths = [transport.create_tempdir(), transport.create_tempdir()]
    assert paths == transport.temp_dirs == ["/tmp/\udcff0", "/tmp/\udcff1"]
    scripts.answers = [CommandResult("delete_dir", status, b"", b"") for status in (1, 0, 0)]
    assert [transport.delete_dir(path, cwd="/w") for path in (paths[0], paths[1], "/else")] == [False, True, True]
    assert transport.temp_dirs == paths[:1]
    scripts.answers = [CommandResult("create_tempdir", 1, b"", b"mktemp: no space")]
    with pytest.raises(CommandFailedError) as caught:
        transport.create_tempdir()
    assert (caught.value.exit_code, caught.value.output) == (1, "mktemp: no space")
    assert transport.temp_dirs == paths[:1]
