"""The transport that keeps a supervisor on the host: its start, and its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazycluster import Runtime, SupervisorError
from lazycluster._model.timeouts import Timeouts
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.destination import Destination
from lazycluster._transports.resident import ResidentTransport
from tests.client_programs import assert_becomes_idle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sshd_fixtures import MakeSshd


@pytest.mark.parametrize(
    ("options", "progress"),
    [({"ForceCommand": "exec cat >/dev/null"}, "the login shell has not begun"), ({}, "Python has not begun")],
    ids=["login shell", "Python"],
)
def test_supervisor_start_timeout_reports_progress(
    make_sshd: MakeSshd, tmp_path: Path, options: dict[str, str], progress: str
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 1000\n")
    python.chmod(0o755)
    server = make_sshd(options=options)
    destination = Destination(server.host, config_file=str(server.config_file), connect_timeout=8.0)
    client = SshClient(destination, timeouts=Timeouts(supervisor_start=-5.0))
    transport = ResidentTransport(client, str(python))
    try:
        with pytest.raises(SupervisorError) as caught:
            transport.set_up(None)
    finally:
        transport.close()

    assert caught.value.reason == f"no hello within 3 s: {progress}"
    assert_becomes_idle(server)


@pytest.mark.parametrize("grace", [-1, "5", True, float("nan")])
def test_runtime_invalid_grace_raises(grace: object) -> None:
    with pytest.raises(ValueError, match="grace must be a number of seconds"):
        Runtime("never-connected", grace=grace)  # type: ignore[arg-type]
