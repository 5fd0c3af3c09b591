"""How a supervisor ends what it has started: one child of many, and all of it at its own end."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from lazycluster._remote import protocol
from lazycluster._remote.protocol import WINDOW_BYTES
from tests.unit.local_supervisor import LocalSupervisor, ObservedChild, is_reaped, local_supervisor
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look for leftovers")

# Each prints the numbers of its processes, and `ready`.
PLAIN = "echo $$; echo ready; exec sleep 60"
DEAF = "trap '' TERM INT HUP; echo $$; echo ready; while :; do sleep 0.01; done"
SESSION = "setsid sleep 60 & echo $! $$; echo ready; wait"
ORPHAN = "(setsid sh -c 'echo $$; sleep 60 & echo $!; wait' &) ; echo $$; sleep 0.05; echo ready; sleep 60"
DEAF_SESSION = (
    "setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.01; done' & echo $$; sleep 0.05; echo ready; wait"
)
STOPPED = "sleep 60 & echo $! $$; kill -STOP $!; echo ready; wait"
TREES = [PLAIN, SESSION, ORPHAN, STOPPED]
UNMARKED = "(env -i setsid sleep 60 & echo $!) ; echo $$; echo ready; sleep 60"
"""An orphan of which nothing tells whose it is: it lives as long as the supervisor."""


def started(host: LocalSupervisor, command: str, **keywords: float) -> tuple[ObservedChild, list[int]]:
    """Start a tree of processes, and return it with their numbers once all of them are there."""
    child = host.run(command, grace=keywords.get("grace", 60.0)).wait_output(b"ready\n")
    pids = [int(word) for word in child.output().split() if word != b"ready"]
    assert pids
    assert not any(is_reaped(pid) for pid in pids)
    return child, pids


# One child ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", TREES)
def test_a_stop_ends_a_job_with_all_that_it_started(command: str) -> None:
    with local_supervisor() as host:
        other, others = started(host, SESSION)
        child, pids = started(host, command)
        began = time.monotonic()
        child.stop()
        assert child.wait_exit_code() == -signal.SIGTERM
        assert time.monotonic() - began < 10  # not its grace
        assert is_reaped(*pids), "before its end is told, and collected"
        assert not any(is_reaped(pid) for pid in others)
        assert other.end is None
        assert set(host.living_pids()) <= {*others, *host.child_pids()}


@pytest.mark.parametrize("command", [DEAF, DEAF_SESSION])
def test_what_ignores_it_is_killed_when_the_grace_is_over(command: str) -> None:
    with local_supervisor() as host:
        child, pids = started(host, command, grace=0.4)
        began = time.monotonic()
        child.stop()
        assert child.wait_exit_code() in {-signal.SIGTERM, -signal.SIGKILL}
        assert 0.35 < time.monotonic() - began < 10
        assert is_reaped(*pids)


def test_no_grace_is_no_question() -> None:
    with local_supervisor() as host:
        child, _ = started(host, "trap 'exit 7' TERM; echo $$; echo ready; while :; do sleep 0.01; done", grace=0.0)
        child.stop()
        assert child.wait_exit_code() == -signal.SIGKILL


def test_who_asks_twice_does_not_wait() -> None:
    with local_supervisor() as host:
        child, pids = started(host, DEAF, grace=60.0)
        child.stop()
        host.sync()
        assert child.end is None
        began = time.monotonic()
        child.stop()
        assert child.wait_exit_code() == -signal.SIGKILL
        assert time.monotonic() - began < 10
        assert is_reaped(*pids)


def test_a_job_that_ends_in_its_own_way_when_it_is_asked_to() -> None:
    with local_supervisor() as host:
        child, _ = started(host, "trap 'echo bye; exit 7' TERM; echo $$; echo ready; while :; do sleep 0.01; done")
        child.stop()
        status, out, _ = child.result()
        assert status == 7
        assert out.endswith(b"ready\nbye\n")


def test_what_it_starts_while_it_is_ended_is_ended_too() -> None:
    """A shell that answers each signal with one more process."""
    with local_supervisor() as host:
        command = "trap 'setsid sleep 60 & echo $!' TERM; echo $$; echo ready; while :; do sleep 0.01; done"
        child, pids = started(host, command, grace=0.4)
        child.stop()
        assert child.wait_exit_code() == -signal.SIGKILL
        pids += [int(word) for word in child.output().split() if word != b"ready"]
        assert len(set(pids)) > 1
        assert is_reaped(*pids)


def test_a_stop_of_a_job_with_output_that_waits_for_leave() -> None:
    with local_supervisor() as host:
        child = host.run("cat /dev/zero", updates_window=False)
        host.receive_until(lambda: child.received_bytes >= WINDOW_BYTES, "all that it has leave for")
        child.stop()
        host.receive_until(lambda: not host.child_pids(), "the end of its process")
        host.sync()
        assert child.end is None
        child.send_window_update(1 << 30)
        assert child.wait_exit_code() == -signal.SIGTERM


@pytest.mark.parametrize("command", ["cat /dev/zero", "trap '' TERM; cat /dev/zero; while :; do sleep 0.01; done"])
def test_a_job_that_is_forsaken_is_ended_without_a_word(command: str) -> None:
    """Whoever gave it up takes no more of its output."""
    with local_supervisor() as host:
        child = host.run(command, updates_window=False, grace=0.3)
        host.receive_until(lambda: child.received_bytes >= WINDOW_BYTES, "all that it has leave for")
        child.stop()
        child.detach()
        host.receive_until(lambda: not host.child_pids(), "the end of its process")
        host.sync()
        assert child.end is None


def test_a_job_may_be_forsaken_when_only_its_output_is_left() -> None:
    with local_supervisor() as host:
        child = host.run(f"head -c {WINDOW_BYTES + 50_000} /dev/zero", updates_window=False)
        host.receive_until(
            lambda: child.received_bytes >= WINDOW_BYTES and not host.child_pids(), "the end of its process"
        )
        descriptors = len(list(Path(f"/proc/{host.process.pid}/fd").iterdir()))
        child.detach()
        child.stop()
        host.sync()
        now = wait_until(lambda: len(list(Path(f"/proc/{host.process.pid}/fd").iterdir())) < descriptors, 10)
        assert now, "its pipes are closed"
        assert child.end is None


def test_many_stops_at_once() -> None:
    with local_supervisor() as host:
        children = [started(host, SESSION) for _ in range(20)]
        for child, _ in children:
            child.stop()
        assert {child.wait_exit_code() for child, _ in children} == {-signal.SIGTERM}
        assert is_reaped(*[pid for _, pids in children for pid in pids])


def test_a_command_that_has_ended_has_no_stop() -> None:
    with local_supervisor(grace=0.2) as host:
        child = host.run("setsid sleep 60 >/dev/null 2>&1 & echo $!")
        daemon = int(child.result()[1])
        child.stop()
        host.sync()
        assert not is_reaped(daemon)
    assert is_reaped(daemon)


def test_what_cannot_be_ended_is_told_after_a_while() -> None:
    """As a process that hangs in the kernel: here the signals go nowhere."""
    setup_code = (
        "process_tree._KILL_TIMEOUT_SECONDS = 0.1\n"
        "kill = process_tree.os.kill\n"
        "process_tree.os.kill = lambda pid, number: None"
    )
    with local_supervisor(setup_code=setup_code, grace=0.1) as host:
        child, pids = started(host, PLAIN, grace=0.1)
        child.stop()
        assert child.wait() == ("failed", "it could not be killed")
        assert not is_reaped(*pids)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def test_no_zombie_stays() -> None:
    with local_supervisor() as host:
        for _ in range(5):
            host.run("(true &) ; (setsid sh -c 'exit 3' &) ; sh -c true & exit 0").wait_exit_code()
        host.receive_until(lambda: not host.child_pids(), "no child any more")


# All of it ------------------------------------------------------------------------------------------------------------


def end(host: LocalSupervisor, way: str) -> None:
    """Have a supervisor end, in one of the ways."""
    if way == "input":
        host.close_stdin()
    elif way == "garbage":
        host.write(b"this is not a frame, is it?\n")
    elif way == "output":
        assert host.process.stdout is not None
        host.process.stdout.close()
        host.send(protocol.REQUEST, 5, protocol.pack(b"ping"))
    else:
        host.process.send_signal(signal.Signals[way])


@pytest.mark.parametrize("way", ["input", "SIGTERM", "SIGINT", "SIGHUP", "garbage"])
def test_nothing_outlives_it(tmp_path: Path, way: str) -> None:
    says = b"lazycluster: this is no frame of the supervisor's protocol: b'this is not" if way == "garbage" else b""
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with local_supervisor(working_dir="", env=env, expected_stderr=says, grace=60.0) as host:
        directory = Path(host.wait_hello().working_dir)
        assert host.request("tempdir")[0] == b"ok"
        pids = [pid for tree in (*TREES, UNMARKED, DEAF, DEAF_SESSION) for pid in started(host, tree, grace=0.5)[1]]
        host.run(
            "mkdir -p a/b 'new\nline'; touch a/b/c; ln -s / a/root; mkfifo a/p; chmod 0 a/b a", cwd=directory
        ).wait_exit_code()
        daemon = int(host.run("setsid sleep 60 >/dev/null 2>&1 & echo $!").result()[1])
        waiting = host.run("cat", stdin=None, grace=0.5)
        busy = host.run("cat /dev/zero", updates_window=False, grace=0.5)
        host.receive_until(lambda: busy.received_bytes >= WINDOW_BYTES, "much output")

        began = time.monotonic()
        end(host, way)
        assert host.wait_goodbye() == []
        assert 0.4 < time.monotonic() - began < 10, "the grace of the jobs"
        assert is_reaped(*pids, daemon)
        assert [child.end for child in (waiting, busy)] == [None, None]
    assert list(tmp_path.iterdir()) == []
    assert Path("/usr").exists(), "no link was followed"


def test_it_ends_when_nobody_reads_what_it_says(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with local_supervisor(working_dir="", env=env) as host:
        _, pids = started(host, SESSION)
        end(host, "output")
        assert host.process.wait(20) == 0
        host.at_eof = True
        assert is_reaped(*pids)
    assert list(tmp_path.iterdir()) == []


def test_it_ends_though_nobody_reads_its_farewell() -> None:
    with local_supervisor(setup_code="supervisor._GOODBYE_TIMEOUT_SECONDS = 0.1") as host:
        child = host.run("cat /dev/zero", updates_window=False)
        child.send_window_update(1 << 30)
        assert wait_until(host.is_stdout_full, 20)
        host.close_stdin()
        assert host.process.wait(20) == 0
        host.at_eof = True


def test_the_end_comes_at_once_where_nothing_runs() -> None:
    with local_supervisor(grace=60.0) as host:
        assert host.run("true").wait_exit_code() == 0
        began = time.monotonic()
        host.close_stdin()
        assert host.wait_goodbye() == []
        assert time.monotonic() - began < 5


def test_the_end_during_the_end() -> None:
    with local_supervisor(grace=60.0) as host:
        started(host, DEAF, grace=0.5)
        host.close_stdin()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            host.process.send_signal(number)
        assert host.wait_goodbye() == []


def test_the_end_before_the_greeting(tmp_path: Path) -> None:
    """As when the probe hangs, and the manager gives up."""
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    probe = (
        f"trap '' TERM; setsid sleep 60 & echo $! $$ >{tmp_path}/pids.; mv {tmp_path}/pids. {tmp_path}/pids; sleep 60"
    )
    with local_supervisor(working_dir="", probe=probe, grace=0.3, env=env, wait_for_hello=False) as host:
        assert wait_until((tmp_path / "pids").exists, 20)
        host.close_stdin()
        assert host.wait_goodbye() == []
        assert host.hello is None
        assert is_reaped(*map(int, (tmp_path / "pids").read_text().split()))
    assert [path.name for path in tmp_path.iterdir()] == ["pids"]


def test_what_has_taken_the_place_of_a_directory_goes_too(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    with local_supervisor(env={**os.environ, "TMPDIR": str(tmp_path)}) as host:
        paths = [Path(os.fsdecode(host.request("tempdir")[1])) for _ in range(4)]
        for path in paths[:3]:
            path.rmdir()
        paths[1].touch()
        paths[2].symlink_to(tmp_path / "kept")
        (paths[3] / "link").symlink_to(tmp_path / "kept")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "kept", tmp_path / "kept" / "file"]


def test_what_cannot_be_removed_is_told_and_the_rest_is_removed(tmp_path: Path) -> None:
    setup_code = """
import os
def refusing(path, unlink=os.unlink):
    if path.endswith("stays"):
        raise PermissionError(1, "Operation not permitted", path)
    unlink(path)
os.unlink = refusing
"""
    with local_supervisor(working_dir="", env={**os.environ, "TMPDIR": str(tmp_path)}, setup_code=setup_code) as host:
        directory = Path(host.wait_hello().working_dir)
        (directory / "sub").mkdir()
        for name in ("a", "stays", "z", "sub/a", "sub/stays", "sub/z"):
            (directory / name).touch()
        other = Path(os.fsdecode(host.request("tempdir")[1]))
        host.close_stdin()
        left = host.wait_goodbye()
    assert {line.split(": ")[0] for line in left} >= {str(directory / name) for name in ("stays", "sub/stays", "sub")}
    assert sorted(directory.rglob("*")) == [directory / name for name in ("stays", "sub", "sub/stays")]
    assert not other.exists()


def test_a_tree_of_directories_that_is_deeper_than_a_path_may_be_long(tmp_path: Path) -> None:
    with local_supervisor(working_dir="", env={**os.environ, "TMPDIR": str(tmp_path)}) as host:
        program = "import os\nfor n in range(60): os.mkdir('d' * 200); os.chdir('d' * 200)\n"
        command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"
        assert host.run(command, cwd=host.wait_hello().working_dir).result() == (0, b"", b"")
        host.close_stdin()
        assert host.wait_goodbye() == []
    assert list(tmp_path.iterdir()) == []


def test_a_supervisor_that_is_killed_keeps_no_worker() -> None:
    with local_supervisor() as host:
        host.prepare_calls()
        used = host.call(os.getpid).value()
        host.receive_until(lambda: used not in host.child_pids() and host.child_pids(), "a worker for the next call")
        [spare] = host.child_pids()
        host.process.kill()
        host.process.wait()
        host.at_eof = True
        assert wait_until(lambda: is_reaped(spare), 10)
