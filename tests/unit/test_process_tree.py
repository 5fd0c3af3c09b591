"""The processes of a host as a tree, and how a part of it is ended."""

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

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")


def row(pid: int, parent: int = 1, group: int = 0, session: int = 0, born: int = 0) -> ProcessEntry:
    """Return a row of a process in a group of its own unless told otherwise."""
    return ProcessEntry(pid, parent, group or pid, session or group or pid, born)


# The table ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "group", "expected"),
    [
        ([], 11, set()),
        ([(1, 0, 1), (2, 1, 2), (3, 1, 3)], 11, set()),
        ([(10, 1, 10), (11, 10, 11), (12, 11, 11), (13, 12, 13), (20, 1, 20)], 11, {11, 12, 13}),
        ([(13, 12, 13), (12, 11, 11), (11, 10, 11)], 11, {11, 12, 13}),
        ([(11, 10, 11), (12, 1, 11), (13, 12, 13)], 11, {11, 12, 13}),  # 12 lost its parent, and is of the group
        ([(11, 10, 11), (12, 1, 12, 11), (13, 12, 13)], 11, {11, 12, 13}),  # the same with a group of its own
        ([(11, 10, 11), (12, 1, 11), (13, 12, 13)], 0, {11}),  # no group is given
        ([(0, 0, 0), (1, 0, 0), (2, 0, 0)], 0, set()),  # the kernel's own are of no group that anybody asks for
    ],
)
def test_descendants(table: list[tuple[int, ...]], group: int, expected: set[int]) -> None:
    assert process_tree.descendants([row(*fields) for fields in table], root=10, group=group) == expected


@pytest.mark.parametrize("proc", [pytest.param(True, marks=on_linux), False])
def test_process_table(proc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_process_table_with_names_that_look_like_something_else(name: str, tmp_path: Path) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as child:
        assert wait_until(lambda: name.encode("utf-8", "surrogateescape")[:15] == comm(child.pid), 10)
        (found,) = [each for each in process_tree.process_table() if each.pid == child.pid]
        assert (found.parent, found.group) == (os.getpid(), os.getpgid(0))
        child.kill()


def comm(pid: int) -> bytes:
    return Path(f"/proc/{pid}/comm").read_bytes()[:-1]


@on_linux
def test_a_process_is_known_by_its_birth() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        born = [{each.pid: each.start_time for each in process_tree.process_table()} for _ in range(2)]
        child.kill()
    assert born[0][child.pid] == born[1][child.pid]
    assert born[0][child.pid] >= born[0][os.getpid()] > 0


@on_linux
def test_processes_that_end_while_the_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = [types.SimpleNamespace(name=name, path=f"/proc/{name}") for name in ("999999999", "self", "1")]
    monkeypatch.setattr(os, "scandir", lambda _: iter(gone))
    assert [each.pid for each in process_tree.process_table()] == [1]


@on_linux
def test_marked() -> None:
    env = {"MARK": "a=b.", "PATH": os.environ["PATH"]}
    with (
        subprocess.Popen(["sleep", "60"], env=env) as with_it,
        subprocess.Popen(["sleep", "60"], env={"MARK": "a=c."}) as without,
    ):
        table = [row(pid) for pid in (with_it.pid, without.pid, 999999999)]
        assert wait_until(lambda: process_tree.find_marked(table, b"MARK=a=b.") == {with_it.pid}, 10)
        assert wait_until(lambda: process_tree.find_marked(table, b"MARK=a=c") == {without.pid}, 10)
        assert process_tree.find_marked(table[:1], b"MARK=a=c") == set()
        for child in (with_it, without):
            child.kill()


# Words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (15, "SIGTERM"), (99, "unknown"), (0, "unknown")])
def test_signal_names(number: int, name: str) -> None:
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
def test_how_ended(status: int, words: str) -> None:
    assert process_tree.describe_wait_status(status) == words


# What the kernel is asked for ---------------------------------------------------------------------------------------


@on_linux
def test_orphans_are_adopted() -> None:
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
def test_a_process_that_dies_with_its_parent() -> None:
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


def test_where_the_kernel_cannot_do_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    process_tree.become_subreaper()
    process_tree.die_with_parent()


# Ending, with processes that are not there --------------------------------------------------------------------------


@attrs.define
class Kernel:
    """A clock, and which signals were sent; some processes are gone when they get one, or somebody else's."""

    now: float = 100.0
    sent: list[tuple[int, signal.Signals]] = attrs.field(factory=list)
    errors: dict[int, Exception] = attrs.field(factory=dict)

    def kill(self, pid: int, number: int) -> None:
        """Note it."""
        self.sent.append((pid, signal.Signals(number)))
        if pid in self.errors:
            raise self.errors[pid]

    def take(self) -> list[tuple[int, signal.Signals]]:
        """Return what was sent since the last time; in which order the processes come is open."""
        sent, self.sent = self.sent, []
        return sorted(sent, key=lambda each: each[0])


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(process_tree, "time", types.SimpleNamespace(monotonic=lambda: made.now))
    monkeypatch.setattr(os, "kill", made.kill)
    return made


def all_of(table: list[ProcessEntry]) -> set[int]:
    return {each.pid for each in table}


def softly(*pids: int) -> list[tuple[int, signal.Signals]]:
    return [(pid, number) for pid in pids for number in (signal.SIGTERM, signal.SIGCONT)]


def hard(*pids: int) -> list[tuple[int, signal.Signals]]:
    return [(pid, signal.SIGKILL) for pid in pids]


def test_nothing_to_end_is_seen_twice(kernel: Kernel) -> None:
    """In the moment of its exec a process shows no environment, and so no mark."""
    ending = TreeTerminator(all_of, 5)
    assert [ending.step([]), ending.step([row(9)]), ending.step([]), ending.step([])] == [False, False, False, True]
    assert kernel.take() == softly(9)


def test_each_process_is_asked_once_and_killed_when_the_grace_is_over(kernel: Kernel) -> None:
    ending = TreeTerminator(all_of, 5)
    seen = []
    for kernel.now, pids in [(100.0, (7, 8)), (101.0, (7, 8)), (104.9, (8, 9)), (105.0, (8, 9)), (105.1, (9, 6))]:
        assert not ending.step([row(pid) for pid in pids])
        seen.append(kernel.take())
    assert seen == [softly(7, 8), [], softly(9), hard(8, 9), hard(6, 9)]
    assert [ending.step([]), ending.step([])] == [False, True]


def test_what_one_starts_that_is_ending_is_left_to_it_for_the_grace(kernel: Kernel) -> None:
    """Such as the `rm` of its trap."""
    ending = TreeTerminator(all_of, 5)
    seen = []
    for kernel.now, table in [
        (100.0, [row(7)]),
        (101.0, [row(7), row(8, 7)]),
        (101.1, [row(7), row(8, 7), row(9, 8)]),
        (102.0, [row(8, 1), row(9, 8)]),
        (105.0, [row(8, 1), row(9, 8)]),
    ]:
        assert not ending.step(table)
        seen.append(kernel.take())
    assert seen == [softly(7), [], [], softly(8, 9), hard(8, 9)]


def test_the_first_comes_first(kernel: Kernel) -> None:
    ending = TreeTerminator(all_of, 1, root_pid=8)
    table = [row(9), row(8), row(7)]
    ending.step(table)
    assert kernel.sent[:2] == softly(8)
    assert kernel.take() == softly(7, 8, 9)
    kernel.now += 1
    ending.step(table)
    assert kernel.sent[:1] == hard(8)
    assert kernel.take() == hard(7, 8, 9)


def test_the_grace_can_be_ended(kernel: Kernel) -> None:
    ending = TreeTerminator(all_of, 1000)
    ending.step([row(9)])
    ending.escalate()
    ending.step([row(9)])
    assert kernel.take() == [*softly(9), *hard(9)]
    kernel.now += 1
    ending.escalate()  # it does not begin anew
    kernel.now += process_tree._KILL_TIMEOUT_SECONDS - 0.9
    assert ending.step([row(9)])


def test_without_grace_there_is_no_asking(kernel: Kernel) -> None:
    TreeTerminator(all_of, 0).step([row(9)])
    assert kernel.take() == hard(9)


def test_what_was_found_once_is_ended_though_it_is_not_found_again(kernel: Kernel) -> None:
    """Such as a process that lost its parent; but not another one that has got its number."""
    found: list[set[int]] = [{7, 8}, set(), set()]
    ending = TreeTerminator(lambda _: found.pop(0), 1)
    ending.step([row(7, born=50), row(8, born=60)])
    kernel.take()
    kernel.now += 2
    assert not ending.step([row(7, born=51), row(8, born=60)])
    assert kernel.take() == hard(8)
    ending.step([row(7, born=51)])
    assert kernel.take() == []


def test_what_is_not_in_the_table_and_what_ends_them_are_not_signalled(kernel: Kernel) -> None:
    ending = TreeTerminator(lambda _: {5, os.getpid(), 6}, 0)
    ending.step([row(6), row(os.getpid())])
    assert kernel.take() == hard(6)


@pytest.mark.parametrize("error", [ProcessLookupError(), PermissionError()])
def test_what_cannot_be_killed_is_left(kernel: Kernel, error: Exception) -> None:
    kernel.errors = {7: error}
    ending = TreeTerminator(all_of, 1)
    steps, sent = [], []
    for kernel.now in (100.0, 101.0, 102.9, 103.0):
        steps.append(ending.step([row(7), row(8)] if kernel.now < 102 else [row(7)]))
        sent.append(kernel.take())
    assert sent == [softly(7, 8), hard(7, 8), hard(7), hard(7)]
    assert steps == [False, False, False, True]


# Ending, with real processes ----------------------------------------------------------------------------------------


Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start shells that say when they are ready."""
    started: list[subprocess.Popen[str]] = []

    def start(text: str) -> subprocess.Popen[str]:
        shell = ["/bin/sh", "-c", text]
        started.append(subprocess.Popen(shell, stdout=subprocess.PIPE, text=True, start_new_session=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield start
    for process in started:
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
def test_a_tree_is_ended(start: Start, text: str, grace: float, status: int) -> None:
    process = start(text)

    def below(table: list[ProcessEntry]) -> set[int]:
        return {process.pid} | process_tree.descendants(table, process.pid, process.pid)

    ending = TreeTerminator(below, grace, process.pid)

    def ended() -> bool:
        process.poll()  # collects it
        return ending.step(process_tree.process_table())

    assert wait_until(ended, 20)
    assert process.returncode == status
    assert process.pid not in {each.session for each in process_tree.process_table()}
