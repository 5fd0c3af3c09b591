"""The processes of a host as a tree, and the end of a part of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from lazycluster._remote import process_tree
from lazycluster._remote.process_tree import ProcessEntry, TreeTerminator
from tests.waiting import wait_until

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def row(pid: int, parent: int = 1, group: int = 0, session: int = 0, born: int = 0) -> ProcessEntry:
    """Return an entry; by default the process has a group and a session of its own."""
    return ProcessEntry(pid, parent, group or pid, session or group or pid, born)


# The table ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "group", "expected"),
    [
        ([], 11, set()),
        ([(1, 0, 1), (2, 1, 2), (3, 1, 3)], 11, set()),
        ([(10, 1, 10), (11, 10, 11), (12, 11, 11), (13, 12, 13), (20, 1, 20)], 11, {11, 12, 13}),
        ([(13, 12, 13), (12, 11, 11), (11, 10, 11)], 11, {11, 12, 13}),
        ([(11, 10, 11), (12, 1, 11), (13, 12, 13)], 11, {11, 12, 13}),  # 12 lost its parent, but is in the group
        (
            [(11, 10, 11), (12, 1, 12, 11), (13, 12, 13)],
            11,
            {11, 12, 13},
        ),  # the same, with a group of its own in the session
        ([(11, 10, 11), (12, 1, 11), (13, 12, 13)], 0, {11}),  # no group is given
        ([(0, 0, 0), (1, 0, 0), (2, 0, 0)], 0, set()),  # processes of the kernel have the group 0
    ],
)
def test_descendants_finds_children_and_group(table: list[tuple[int, ...]], group: int, expected: set[int]) -> None:
    assert process_tree.descendants([row(*fields) for fields in table], root=10, group=group) == expected


@pytest.mark.parametrize("proc", [pytest.param(True, marks=on_linux), False])
def test_process_table_has_living_processes_only(proc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not proc:
        monkeypatch.setattr(os, "access", lambda *_: False)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
        (found,) = [each for each in process_tree.process_table() if each.pid == child.pid]
        assert (found.parent, found.group, found.session) == (os.getpid(), child.pid, child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert child.pid not in {each.pid for each in process_tree.process_table()}  # a zombie
    assert {each.parent for each in process_tree.process_table()} >= {0}


@on_linux
@pytest.mark.parametrize("name", ["plain", "two words", "a) Z (b", ") 1 2 3", "\\n(", "é(\udcff"])
def test_process_table_reads_any_command_name(name: str, tmp_path: Path) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as child:
        assert wait_until(lambda: name.encode("utf-8", "surrogateescape")[:15] == command_name(child.pid), 10)
        (found,) = [each for each in process_tree.process_table() if each.pid == child.pid]
        assert (found.parent, found.group) == (os.getpid(), os.getpgid(0))
        child.kill()


def command_name(pid: int) -> bytes:
    return Path(f"/proc/{pid}/comm").read_bytes()[:-1]


@on_linux
def test_process_table_start_time_is_stable() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        born = [{each.pid: each.start_time for each in process_tree.process_table()} for _ in range(2)]
        child.kill()
    assert born[0][child.pid] == born[1][child.pid]
    assert born[0][child.pid] >= born[0][os.getpid()] > 0


@on_linux
def test_process_table_skips_processes_that_end(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [types.SimpleNamespace(name=name, path=f"/proc/{name}") for name in ("999999999", "self", "1")]
    monkeypatch.setattr(os, "scandir", lambda _: iter(entries))
    assert [each.pid for each in process_tree.process_table()] == [1]


@on_linux
def test_find_marked_reads_environment() -> None:
    env = {"MARK": "a=b.", "PATH": os.environ["PATH"]}
    with (
        subprocess.Popen(["sleep", "60"], env=env) as marked,
        subprocess.Popen(["sleep", "60"], env={"MARK": "a=c."}) as other,
    ):
        table = [row(pid) for pid in (marked.pid, other.pid, 999999999)]
        assert wait_until(lambda: process_tree.find_marked(table, b"MARK=a=b.") == {marked.pid}, 10)
        assert wait_until(lambda: process_tree.find_marked(table, b"MARK=a=c") == {other.pid}, 10)
        assert process_tree.find_marked(table[:1], b"MARK=a=c") == set()
        for child in (marked, other):
            child.kill()


# Descriptions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (15, "SIGTERM"), (99, "unknown"), (0, "unknown")])
def test_signal_name_of_known_and_unknown_numbers(number: int, name: str) -> None:
    assert process_tree.signal_name(number) == name


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with exit status 0 before the function returned (os._exit?)"),
        (3 << 8, "ended with exit status 3 before the function returned (os._exit?)"),
        (9, "was killed by signal 9 (SIGKILL)"),
        (6 | 0x80, "was killed by signal 6 (SIGABRT)"),  # with a core
    ],
)
def test_describe_wait_status_names_exit_or_signal(status: int, words: str) -> None:
    assert process_tree.describe_wait_status(status) == words


# prctl(2) -------------------------------------------------------------------------------------------------------------


@on_linux
def test_become_subreaper_adopts_orphans() -> None:
    program = """if True:
        import os, time
        from lazycluster._remote import process_tree
        process_tree.become_subreaper()
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
        os.waitpid(child, 0)
        (orphan,) = [row.pid for row in process_tree.process_table() if row.parent == os.getpid()]
        os.kill(orphan, 9)
        print(os.WTERMSIG(os.waitpid(orphan, 0)[1]))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("9\n", "")


@on_linux
def test_die_with_parent_kills_child() -> None:
    program = """if True:
        import os, sys, time
        from lazycluster._remote import process_tree
        if os.fork() == 0:
            process_tree.die_with_parent()
            print(os.getpid(), flush=True)
            time.sleep(60)
        sys.stdin.read()
        os.kill(os.getpid(), 9)
    """
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        child = int(parent.stdout.readline())
        parent.stdin.close()
    assert wait_until(lambda: child not in {each.pid for each in process_tree.process_table()}, 10)


def test_prctl_without_ctypes_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    process_tree.become_subreaper()
    process_tree.die_with_parent()


# The end of a tree, with a fake kernel --------------------------------------------------------------------------------


@attrs.define
class Kernel:
    """A clock, and the signals that were sent. `errors` are those of kill(2), by process."""

    now: float = 100.0
    sent: list[tuple[int, signal.Signals]] = attrs.field(factory=list)
    errors: dict[int, Exception] = attrs.field(factory=dict)

    def kill(self, pid: int, number: int) -> None:
        """Record the signal."""
        self.sent.append((pid, signal.Signals(number)))
        if pid in self.errors:
            raise self.errors[pid]

    def take_sent(self) -> list[tuple[int, signal.Signals]]:
        """Return the signals sent since the last call, by process."""
        sent, self.sent = self.sent, []
        return sorted(sent, key=lambda each: each[0])


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(os, "kill", kernel.kill)
    return kernel


def terminator(
    kernel: Kernel, grace: float, find: Callable[[list[ProcessEntry]], set[int]] | None = None, root_pid: int = 0
) -> TreeTerminator:
    """Return a terminator of some processes, by default of all, that follows the fake clock."""
    return TreeTerminator(find or all_pids, grace, root_pid, clock=lambda: kernel.now)


def all_pids(table: list[ProcessEntry]) -> set[int]:
    return {each.pid for each in table}


def sigterm(*pids: int) -> list[tuple[int, signal.Signals]]:
    return [(pid, number) for pid in pids for number in (signal.SIGTERM, signal.SIGCONT)]


def sigkill(*pids: int) -> list[tuple[int, signal.Signals]]:
    return [(pid, signal.SIGKILL) for pid in pids]


def test_terminator_needs_two_empty_scans(kernel: Kernel) -> None:
    """A process shows no environment, and so no mark, in the moment of its exec."""
    ending = terminator(kernel, 5)
    assert [ending.step([]), ending.step([row(9)]), ending.step([]), ending.step([])] == [False, False, False, True]
    assert kernel.take_sent() == sigterm(9)


def test_terminator_sends_sigterm_once_then_sigkill(kernel: Kernel) -> None:
    ending = terminator(kernel, 5)
    seen = []
    for kernel.now, pids in [(100.0, (7, 8)), (101.0, (7, 8)), (104.9, (8, 9)), (105.0, (8, 9)), (105.1, (9, 6))]:
        assert not ending.step([row(pid) for pid in pids])
        seen.append(kernel.take_sent())
    assert seen == [sigterm(7, 8), [], sigterm(9), sigkill(8, 9), sigkill(6, 9)]
    assert [ending.step([]), ending.step([])] == [False, True]


def test_terminator_spares_new_children_during_grace(kernel: Kernel) -> None:
    """A new child may be the `rm` of a trap, for example."""
    ending = terminator(kernel, 5)
    seen = []
    for kernel.now, table in [
        (100.0, [row(7)]),
        (101.0, [row(7), row(8, 7)]),
        (101.1, [row(7), row(8, 7), row(9, 8)]),
        (102.0, [row(8, 1), row(9, 8)]),
        (105.0, [row(8, 1), row(9, 8)]),
    ]:
        assert not ending.step(table)
        seen.append(kernel.take_sent())
    assert seen == [sigterm(7), [], [], sigterm(8, 9), sigkill(8, 9)]


def test_terminator_signals_root_first(kernel: Kernel) -> None:
    ending = terminator(kernel, 1, root_pid=8)
    table = [row(9), row(8), row(7)]
    ending.step(table)
    assert kernel.sent[:2] == sigterm(8)
    assert kernel.take_sent() == sigterm(7, 8, 9)
    kernel.now += 1
    ending.step(table)
    assert kernel.sent[:1] == sigkill(8)
    assert kernel.take_sent() == sigkill(7, 8, 9)


def test_terminator_escalate_ends_grace(kernel: Kernel) -> None:
    ending = terminator(kernel, 1000)
    ending.step([row(9)])
    ending.escalate()
    ending.step([row(9)])
    assert kernel.take_sent() == [*sigterm(9), *sigkill(9)]
    kernel.now += 1
    ending.escalate()  # it does not begin again
    kernel.now += process_tree.KILL_TIMEOUT_SECONDS - 0.9
    assert ending.step([row(9)])


def test_terminator_without_grace_sends_sigkill_only(kernel: Kernel) -> None:
    terminator(kernel, 0).step([row(9)])
    assert kernel.take_sent() == sigkill(9)


def test_terminator_remembers_processes_it_has_seen(kernel: Kernel) -> None:
    """A process that lost its parent is remembered, but not another one that has got its pid."""
    found: list[set[int]] = [{7, 8}, set(), set()]
    ending = terminator(kernel, 1, lambda _: found.pop(0))
    ending.step([row(7, born=50), row(8, born=60)])
    kernel.take_sent()
    kernel.now += 2
    assert not ending.step([row(7, born=51), row(8, born=60)])
    assert kernel.take_sent() == sigkill(8)
    ending.step([row(7, born=51)])
    assert kernel.take_sent() == []


def test_terminator_signals_listed_processes_only(kernel: Kernel) -> None:
    ending = terminator(kernel, 0, lambda _: {5, os.getpid(), 6})
    ending.step([row(6), row(os.getpid())])
    assert kernel.take_sent() == sigkill(6)


@pytest.mark.parametrize("error", [ProcessLookupError(), PermissionError()])
def test_terminator_gives_up_on_unkillable_process(kernel: Kernel, error: Exception) -> None:
    kernel.errors = {7: error}
    ending = terminator(kernel, 1)
    steps, sent = [], []
    for kernel.now in (100.0, 101.0, 102.9, 103.0):
        steps.append(ending.step([row(7), row(8)] if kernel.now < 102 else [row(7)]))
        sent.append(kernel.take_sent())
    assert sent == [sigterm(7, 8), sigkill(7, 8), sigkill(7), sigkill(7)]
    assert steps == [False, False, False, True]


# The end of a tree, with real processes -------------------------------------------------------------------------------


Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start_shell() -> Iterator[Start]:
    """Start shells, and wait until each has printed `ready`."""
    shells: list[subprocess.Popen[str]] = []

    def start(text: str) -> subprocess.Popen[str]:
        shell = ["/bin/sh", "-c", text]
        shells.append(subprocess.Popen(shell, stdout=subprocess.PIPE, text=True, start_new_session=True))
        assert shells[-1].stdout is not None
        assert shells[-1].stdout.readline() == "ready\n"
        return shells[-1]

    yield start
    for process in shells:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize(
    ("text", "grace", "status"),
    [
        ("echo ready; exec sleep 60", 30.0, -signal.SIGTERM),
        ("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done", 30.0, 7),
        ("trap 'sleep 0.5 && exit 7' TERM; echo ready; while :; do sleep 0.01; done", 30.0, 7),
        ("trap '' TERM; echo ready; while :; do sleep 0.01; done", 0.1, -signal.SIGKILL),
        ("echo ready; kill -STOP $$; sleep 60", 30.0, -signal.SIGTERM),
        ("setsid sleep 60 & sleep 60 & echo ready; wait", 30.0, -signal.SIGTERM),
    ],
)
def test_terminator_ends_real_process_tree(start_shell: Start, text: str, grace: float, status: int) -> None:
    process = start_shell(text)

    def find(table: list[ProcessEntry]) -> set[int]:
        return {process.pid} | process_tree.descendants(table, process.pid, process.pid)

    ending = TreeTerminator(find, grace, process.pid)

    def step() -> bool:
        process.poll()  # collects it
        return ending.step(process_tree.process_table())

    assert wait_until(step, 60)
    assert process.returncode == status
    assert process.pid not in {each.session for each in process_tree.process_table()}
