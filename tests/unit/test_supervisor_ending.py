"""How a supervisor ends its processes: one child of many, and all of them at its own end."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from lazycluster._remote import protocol
from lazycluster._remote.process_tree import MAX_NAMED_PROCESSES
from lazycluster._remote.protocol import WINDOW_BYTES
from tests.processes import command_line
from tests.unit.local_supervisor import LocalSupervisor, ObservedChild, is_reaped, local_supervisor
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look for leftovers")

# Each shell prints `ready` and the pids of its processes.
PLAIN = "echo $$; echo ready; exec sleep 60"
IGNORE_SIGTERM = "trap '' TERM INT HUP; echo $$; echo ready; while :; do sleep 0.01; done"
SESSION = "setsid sleep 60 & echo $! $$; echo ready; wait"
ORPHAN = "(setsid sh -c 'echo $$; sleep 60 & echo $!; wait' &) ; echo $$; echo ready; sleep 60"
IGNORE_SIGTERM_SESSION = (
    "setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.01; done' & echo $$; echo ready; wait"
)
STOPPED = "sleep 60 & echo $! $$; kill -STOP $!; echo ready; wait"
TREES = {"program": PLAIN, "session": SESSION, "orphan": ORPHAN, "stopped": STOPPED}
UNMARKED = "(env -i setsid sleep 60 & echo $!) ; echo $$; echo ready; sleep 60"
"""An orphan without a mark, which cannot be attributed to its child. It ends with the supervisor."""

PROCESS_COUNTS = {SESSION: 2, ORPHAN: 3, STOPPED: 2, UNMARKED: 2, IGNORE_SIGTERM_SESSION: 2}


def start_tree(host: LocalSupervisor, command: str, *, grace: float = 1e9) -> tuple[ObservedChild, list[int]]:
    """Start a tree of processes, and return it with their pids when all of them run."""
    child = host.run(command, grace=grace)
    count = PROCESS_COUNTS.get(command, 1)

    def has_printed_all() -> bool:
        output = child.output()
        return output.endswith(b"\n") and len(output.split()) > count

    host.receive_until(has_printed_all, f"{count} pids")
    pids = [int(word) for word in child.output().split() if word != b"ready"]
    assert not any(is_reaped(pid) for pid in pids)
    return child, pids


# One child ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", TREES.values(), ids=TREES)
def test_stop_ends_child_and_its_descendants(command: str) -> None:
    with local_supervisor() as host:
        other, others = start_tree(host, SESSION)
        child, pids = start_tree(host, command)
        child.stop()
        assert child.wait_exit_code() == -signal.SIGTERM
        assert is_reaped(*pids), "all of them are collected before the end is reported"
        assert not any(is_reaped(pid) for pid in others)
        assert other.end is None
        assert set(host.living_pids()) <= {*others, *host.child_pids()}


@pytest.mark.parametrize("command", [IGNORE_SIGTERM, IGNORE_SIGTERM_SESSION], ids=["program", "session"])
def test_stop_kills_stubborn_process_after_grace(command: str) -> None:
    with local_supervisor() as host:
        child, pids = start_tree(host, command, grace=0.4)
        child.stop()
        assert child.wait_exit_code() in {-signal.SIGTERM, -signal.SIGKILL}
        assert is_reaped(*pids)


def test_stop_without_grace_kills_at_once() -> None:
    with local_supervisor() as host:
        child, _ = start_tree(host, "trap 'exit 7' TERM; echo $$; echo ready; while :; do sleep 0.01; done", grace=0.0)
        child.stop()
        assert child.wait_exit_code() == -signal.SIGKILL


def test_stop_twice_ends_grace() -> None:
    with local_supervisor() as host:
        child, pids = start_tree(host, IGNORE_SIGTERM, grace=1e9)
        child.stop()
        host.sync()
        assert child.end is None
        child.stop()
        assert child.wait_exit_code() == -signal.SIGKILL
        assert is_reaped(*pids)


def test_stop_child_with_own_exit_status_keeps_it() -> None:
    with local_supervisor() as host:
        child, _ = start_tree(host, "trap 'echo bye; exit 7' TERM; echo $$; echo ready; while :; do sleep 0.01; done")
        child.stop()
        status, out, _ = child.result()
        assert status == 7
        assert out.endswith(b"ready\nbye\n")


def test_stop_ends_processes_started_during_it() -> None:
    """The shell starts one more process on each signal."""
    with local_supervisor() as host:
        command = "trap 'setsid sleep 60 & echo $!' TERM; echo $$; echo ready; while :; do sleep 0.01; done"
        child, pids = start_tree(host, command, grace=0.4)
        child.stop()
        assert child.wait_exit_code() == -signal.SIGKILL
        pids += [int(word) for word in child.output().split() if word != b"ready"]
        assert len(set(pids)) > 1
        assert is_reaped(*pids)


def test_stop_child_with_unsent_output_reports_end_after_it() -> None:
    with local_supervisor() as host:
        child = host.run("cat /dev/zero", updates_window=False)
        host.receive_until(lambda: child.received_bytes >= WINDOW_BYTES, "a whole window")
        child.stop()
        host.receive_until(lambda: not host.child_pids(), "the exit of its process")
        host.sync()
        assert child.end is None
        child.send_window_update(1 << 30)
        assert child.wait_exit_code() == -signal.SIGTERM


@pytest.mark.parametrize("command", ["cat /dev/zero", "trap '' TERM; cat /dev/zero; while :; do sleep 0.01; done"])
def test_detach_stopped_child_sends_nothing_more(command: str) -> None:
    with local_supervisor() as host:
        child = host.run(command, updates_window=False, grace=0.3)
        host.receive_until(lambda: child.received_bytes >= WINDOW_BYTES, "a whole window")
        child.stop()
        child.detach()
        host.receive_until(lambda: not host.child_pids(), "the exit of its process")
        host.sync()
        assert child.end is None


def test_detach_exited_child_drops_its_output() -> None:
    with local_supervisor() as host:
        child = host.run(f"head -c {WINDOW_BYTES + 50_000} /dev/zero", updates_window=False)
        host.receive_until(
            lambda: child.received_bytes >= WINDOW_BYTES and not host.child_pids(), "the exit of its process"
        )
        descriptors = len(list(Path(f"/proc/{host.process.pid}/fd").iterdir()))
        child.detach()
        child.stop()
        host.sync()
        is_closed = wait_until(lambda: len(list(Path(f"/proc/{host.process.pid}/fd").iterdir())) < descriptors, 10)
        assert is_closed, "its pipes are open"
        assert child.end is None


def test_stop_twenty_children_at_once() -> None:
    with local_supervisor() as host:
        children = [start_tree(host, SESSION) for _ in range(20)]
        for child, _ in children:
            child.stop()
        assert {child.wait_exit_code() for child, _ in children} == {-signal.SIGTERM}
        assert is_reaped(*[pid for _, pids in children for pid in pids])


def test_stop_exited_child_leaves_its_background_process() -> None:
    with local_supervisor(grace=0.2) as host:
        child = host.run("setsid sleep 60 >/dev/null 2>&1 & echo $!")
        daemon = int(child.result()[1])
        child.stop()
        host.sync()
        assert not is_reaped(daemon)
    assert is_reaped(daemon)


def test_stop_unkillable_process_reports_failure() -> None:
    """A process may hang in the kernel. In the test the signals are dropped instead."""
    setup_code = "process_tree.os.kill = lambda pid, number: None"
    with local_supervisor(setup_code=setup_code, grace=0.1) as host:
        child, pids = start_tree(host, PLAIN, grace=0.1)
        child.stop()
        assert child.wait() == ("failed", "it could not be killed")
        assert not is_reaped(*pids)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def test_supervisor_reaps_adopted_orphans() -> None:
    with local_supervisor() as host:
        for _ in range(5):
            host.run("(true &) ; (setsid sh -c 'exit 3' &) ; sh -c true & exit 0").wait_exit_code()
        host.receive_until(lambda: not host.child_pids(), "no child is left")


# The end of the supervisor --------------------------------------------------------------------------------------------


def end_supervisor(host: LocalSupervisor, event: str) -> None:
    """Let an event happen at which a supervisor ends."""
    if event == "end of input":
        host.close_stdin()
    elif event == "invalid frame":
        host.write(b"this is not a frame, is it?\n")
    elif event == "closed output":
        assert host.process.stdout is not None
        host.process.stdout.close()
        host.send(protocol.REQUEST, 5, protocol.pack(b"ping"))
    else:
        host.process.send_signal(signal.Signals[event])


@pytest.mark.parametrize("event", ["end of input", "SIGTERM", "SIGINT", "SIGHUP", "invalid frame"])
def test_supervisor_end_leaves_no_process_and_no_directory(tmp_path: Path, event: str) -> None:
    stderr = b"lazycluster: " if event == "invalid frame" else b""
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with local_supervisor(working_dir="", env=env, expected_stderr=stderr, grace=60.0) as host:
        directory = Path(host.wait_hello().working_dir)
        assert host.request("tempdir")[0] == b"ok"
        pids = [
            pid
            for tree in (*TREES.values(), UNMARKED, IGNORE_SIGTERM, IGNORE_SIGTERM_SESSION)
            for pid in start_tree(host, tree, grace=0.5)[1]
        ]
        host.run(
            "mkdir -p a/b 'new\nline'; touch a/b/c; ln -s / a/root; mkfifo a/p; chmod 0 a/b a", cwd=directory
        ).wait_exit_code()
        daemon = int(host.run("setsid sleep 60 >/dev/null 2>&1 & echo $!").result()[1])
        waiting = host.run("cat", stdin=None, grace=0.5)
        busy = host.run("cat /dev/zero", updates_window=False, grace=0.5)
        host.receive_until(lambda: busy.received_bytes >= WINDOW_BYTES, "much output")

        end_supervisor(host, event)
        assert host.wait_goodbye() == []
        assert is_reaped(*pids, daemon)
        assert [child.end for child in (waiting, busy)] == [None, None]
    assert list(tmp_path.iterdir()) == []
    assert Path("/usr").exists(), "a link was followed"


def test_supervisor_closed_output_ends_it(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with local_supervisor(working_dir="", env=env) as host:
        _, pids = start_tree(host, SESSION)
        end_supervisor(host, "closed output")
        assert host.process.wait(20) == 0
        host.at_eof = True
        assert is_reaped(*pids)
    assert list(tmp_path.iterdir()) == []


def close_and_list_left_running(host: LocalSupervisor) -> tuple[str, ...]:
    """End a supervisor, and return the command lines that its last message names."""
    host.close_stdin()
    host.wait_goodbye()
    assert host.goodbye is not None
    return host.goodbye.left_running


def test_goodbye_names_processes_that_outlived_commands() -> None:
    with local_supervisor() as host:
        host.run("nohup sh -c 'sleep 1000 & sleep 1000; true' >/dev/null 2>&1 & setsid sleep 2000 >&2 & true").result()
        shell = "sh -c sleep 1000 & sleep 1000; true"
        expected = [shell, "sleep 1000", "sleep 1000", "sleep 2000"]
        assert wait_until(lambda: sorted(map(command_line, host.living_pids()))[-4:] == expected, 20)
        names = close_and_list_left_running(host)
    assert sorted(names) == [shell, "sleep 2000"]


def test_goodbye_names_no_process_under_way() -> None:
    with local_supervisor() as host:
        host.prepare_calls()
        start_tree(host, SESSION)
        start_tree(host, ORPHAN)
        host.call(time.sleep, 1000)
        host.run("true").result()
        host.call(abs, -1).value()
        left = close_and_list_left_running(host)
    # The orphan of the running tree made a session of its own, and lost its parent.
    assert all(name.startswith("sh -c echo $$") for name in left)


def test_goodbye_names_bounded_number_of_processes() -> None:
    argument = "x" * 1000
    with local_supervisor() as host:
        host.run(f"for n in $(seq 30); do sh -c 'sleep 1000; : {argument}' >/dev/null 2>&1 & done").result()
        names = close_and_list_left_running(host)
    assert len(names) == MAX_NAMED_PROCESSES + 1
    assert {len(name) for name in names} == {200}


def test_supervisor_unread_goodbye_does_not_block_end() -> None:
    with local_supervisor(limits={"goodbye_timeout": 0.1}) as host:
        child = host.run("cat /dev/zero", updates_window=False)
        child.send_window_update(1 << 30)
        assert wait_until(host.is_stdout_full, 20)
        host.close_stdin()
        assert host.process.wait(20) == 0
        host.at_eof = True


def test_supervisor_without_children_ends_before_grace() -> None:
    with local_supervisor(grace=1e9) as host:
        assert host.run("true").wait_exit_code() == 0
        host.close_stdin()
        assert host.wait_goodbye() == []


def test_supervisor_signals_during_end_are_ignored() -> None:
    with local_supervisor(grace=60.0) as host:
        start_tree(host, IGNORE_SIGTERM, grace=0.5)
        host.close_stdin()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            host.process.send_signal(number)
        assert host.wait_goodbye() == []


def test_supervisor_end_before_hello_ends_probe(tmp_path: Path) -> None:
    """The probe may hang until the local process gives up."""
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


def test_supervisor_removes_replaced_temp_dirs(tmp_path: Path) -> None:
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


def test_supervisor_reports_undeletable_files(tmp_path: Path) -> None:
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


def test_supervisor_removes_very_deep_directory(tmp_path: Path) -> None:
    with local_supervisor(working_dir="", env={**os.environ, "TMPDIR": str(tmp_path)}) as host:
        program = "import os\nfor n in range(60): os.mkdir('d' * 200); os.chdir('d' * 200)\n"
        command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"
        assert host.run(command, cwd=host.wait_hello().working_dir).result() == (0, b"", b"")
        host.close_stdin()
        assert host.wait_goodbye() == []
    assert list(tmp_path.iterdir()) == []


def test_supervisor_killed_leaves_no_worker() -> None:
    with local_supervisor() as host:
        host.prepare_calls()
        used = host.call(os.getpid).value()
        host.receive_until(lambda: used not in host.child_pids() and host.child_pids(), "a worker for the next call")
        [spare] = host.child_pids()
        host.process.kill()
        host.process.wait()
        host.at_eof = True
        assert wait_until(lambda: is_reaped(spare), 10)
