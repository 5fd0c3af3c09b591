"""Started processes on real hosts: the end of the local program, a lost host."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazycluster import ConnectionLostError, Runtime
from lazycluster.testing import LocalSshd
from tests.client_programs import ClientProgram, assert_becomes_idle, find_host_pids
from tests.observation import assert_no_leaks, running_relay, unique_sleep_seconds
from tests.waiting import assert_eventually


def test_start_program_killed_ends_its_processes(
    sshd: LocalSshd, resident: bool, short_tmpdir: Path, tmp_path: Path
) -> None:
    """One process has unread output, one has unread input, one has all of its input, one ignores SIGTERM.

    The program leaves the directory of its socket behind.
    """
    number = unique_sleep_seconds()
    commands = [
        f"while :; do head -c 100000 /dev/zero; done & exec sleep {number}",
        f"exec sleep {number}",
        f"cat >/dev/null; exec sleep {number}",
        f"trap '' TERM; sleep {number}; sleep {number}",
    ]
    text = f"""
        from lazycluster import Runtime
        keywords = dict(resident={resident}, grace=1, config_file={str(sshd.config_file)!r})
        runtime = Runtime({sshd.host!r}, {str(tmp_path)!r}, **keywords)
        inputs = [None, None, b"x" * 100_000, None]
        processes = [runtime.start(text, stdin=data) for text, data in zip({commands!r}, inputs)]
        thread = threading.Thread(target=lambda: processes[1].stdin.write(bytes(1 << 24)), daemon=True)
        thread.start()
        say("started")
        time.sleep(1000)
    """
    with ClientProgram(text, environment={"TMPDIR": str(short_tmpdir)}) as program:
        assert program.read_line() == "started"
        assert_eventually(lambda: len(find_host_pids(sshd, f"sleep {number}")) == 4, "all of them run", 30)

        program.process.kill()
        program.wait()

        assert_eventually(lambda: not find_host_pids(sshd, f"sleep {number}"), "they are ended", 30)
        assert_becomes_idle(sshd, 30)


@pytest.mark.parametrize("last", ["sleep 1000", "cat /dev/zero"], ids=["quiet", "unread"])
def test_start_lost_host_is_told_apart(sshd: LocalSshd, tmp_path: Path, resident: bool, last: str) -> None:
    with (
        assert_no_leaks(sshd),
        running_relay(sshd, tmp_path) as (relay, keywords),
        Runtime(sshd.host, resident=resident, **keywords) as runtime,
    ):
        process = runtime.start(f"echo out; exec {last}")
        assert process.stdout.readline() == b"out\n"
        assert process.poll() is None

        relay.drop()

        for use in (process.wait, process.poll):
            with pytest.raises(ConnectionLostError):
                use()
        with pytest.raises(ConnectionLostError):
            process.stdout.read()
        assert (process.exit_code, process.exitcode, process.stopped, process.is_alive()) == (None, 1, False, False)
        process.close()


def test_start_restarted_on_exit_runs_until_close(sshd: LocalSshd, resident: bool) -> None:
    """A process may start its successor; the end of the runtime ends that."""
    number = unique_sleep_seconds()
    with assert_no_leaks(sshd):
        runtime = Runtime(sshd.host, resident=resident, **sshd.connection_kwargs)
        runtime.start("true", on_exit=lambda _ended: runtime.start(["sleep", number]))
        assert_eventually(lambda: len(find_host_pids(sshd, f"sleep {number}")) == 1, "the successor runs")
        runtime.close()
        assert find_host_pids(sshd, f"sleep {number}") == []
