"""Files and directories on a real host: broken transfers, hostile hosts, login shells, and the programs started.

That transfers do what they should on every transport is tested in `tests/contract`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pty
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import (
    CommandStoppedError,
    Connection,
    LazyclusterError,
    Runtime,
    RuntimeTask,
    TaskExecutionError,
    TransferError,
)
from lazycluster.exceptions import BrokenArchiveError, UnsafeArchiveError
from lazycluster.testing import LocalSshd
from tests.client_programs import ClientProgram, call_in_parallel
from tests.file_trees import describe_tree, make_full_tree, write_file
from tests.observation import (
    assert_no_leaks,
    count_sessions,
    mounted_small_disk,
    read_only_directory,
    record_program_starts,
    running_relay,
    skip_or_fail,
    write_script,
)
from tests.processes import child_pids, command_line
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd


@pytest.fixture(scope="module")
def connection(sshd: LocalSshd) -> Iterator[Connection]:
    with Connection(sshd.host, **sshd.connection_kwargs) as connection:
        yield connection


@pytest.fixture
def local_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "local"
    directory.mkdir()
    return directory


@pytest.fixture
def host_dir(tmp_path: Path) -> Path:
    """Return a directory for the files of the host, which is on this machine, too."""
    directory = tmp_path / "host"
    directory.mkdir()
    return directory


def entry_names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


# Errors --------------------------------------------------------------------------------------------------------------


def test_get_tree_with_fifo_is_refused(connection: Connection, local_dir: Path, host_dir: Path) -> None:
    (host_dir / "tree").mkdir()
    os.mkfifo(host_dir / "tree" / "fifo")

    with pytest.raises(TransferError) as caught:
        connection.get(str(host_dir / "tree"), local_dir)

    assert isinstance(caught.value.__cause__, UnsafeArchiveError)
    assert Path(caught.value.__cause__.member).name == "fifo"
    assert entry_names(local_dir) == []


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_transfer_read_only_directory_keeps_old_file(
    connection: Connection, local_dir: Path, host_dir: Path, kind: str
) -> None:
    source = write_file(local_dir / "name", "new") if kind == "file" else make_full_tree(local_dir / "name")
    target = host_dir / "target"
    target.mkdir()
    if kind == "file":
        write_file(target / "name", "old")

    with read_only_directory(target):
        with pytest.raises(TransferError) as sending:
            connection.put(source, str(target))
        with pytest.raises(TransferError) as fetching:
            connection.get(str(source), target)

    assert str(target) in sending.value.reason
    assert str(target) in fetching.value.reason
    assert {entry.name: entry.read_text() for entry in target.iterdir()} == ({"name": "old"} if kind == "file" else {})


@pytest.mark.parametrize("kind", ["file", "tree"])
@pytest.mark.parametrize("action", ["send", "fetch"])
def test_transfer_full_disk_keeps_old_file(
    connection: Connection, local_dir: Path, host_dir: Path, kind: str, action: str
) -> None:
    with mounted_small_disk(host_dir / "disk") as disk:
        source = local_dir / "large"
        if kind == "tree":
            source.mkdir()
            (disk / "large").mkdir()
        inside = "" if kind == "file" else "file"
        (source / inside).write_bytes(os.urandom(6_000_000))
        write_file(disk / "large" / inside, "old")

        transfer = connection.put if action == "send" else connection.get
        with pytest.raises(TransferError) as caught:
            transfer(str(source), str(disk))

        assert caught.value.action == action
        assert str(source) in caught.value.path
        assert (disk / "large" / inside).read_text() == "old"
        assert entry_names(disk) == ["large"]
        (source / inside).write_bytes(b"small")
        connection.put(source, str(disk))
        assert (disk / "large" / inside).read_text() == "small"


# Interrupted ---------------------------------------------------------------------------------------------------------

LARGE_BYTES = 60_000_000
SMALL_BYTES = 12_000_000
"""A resident runtime sends a file of this size through its one channel, and does not leave it to scp."""
KINDS = [("file", False), ("tree", False), ("file", True), ("tree", True), ("small file", True)]
"""The kind of the source, and whether a resident runtime moves it, or a connection."""


@contextlib.contextmanager
def open_owner(
    server: LocalSshd, resident: bool, config_file: str, connect_timeout: float = 10.0
) -> Iterator[Connection | Runtime]:
    """Give a resident runtime, or a connection."""
    if resident:
        with Runtime(
            server.host, str(server.home), config_file=config_file, connect_timeout=connect_timeout
        ) as runtime:
            yield runtime
    else:
        with Connection(server.host, config_file=config_file, connect_timeout=connect_timeout) as connection:
            yield connection


class InterruptedTransfer:
    """A large transfer over a slow connection, which is interrupted in its middle. An old file is at its target."""

    def __init__(self, kind: str, action: str, local_dir: Path, host_dir: Path) -> None:
        self.action = action
        source_dir, target_dir = (local_dir, host_dir) if action == "send" else (host_dir, local_dir)
        self.source, self.target = source_dir / "large", target_dir / "large"
        if kind == "tree":
            self.source.mkdir()
            self.target.mkdir()
        inside = "file" if kind == "tree" else ""
        self.size = SMALL_BYTES if kind == "small file" else LARGE_BYTES
        self.target_file = self.target / inside
        with (self.source / inside).open("wb") as large:
            large.truncate(self.size)
        self.target_file.write_text("old")

    def task(self) -> RuntimeTask:
        if self.action == "send":
            return RuntimeTask("transfer").send_file(self.source, str(self.target.parent))
        return RuntimeTask("transfer").get_file(str(self.source), self.target.parent)

    def transfer(
        self, owner: Connection | Runtime, on_progress: Callable[[int, int | None], object] | None = None
    ) -> None:
        if isinstance(owner, Runtime):
            owner.execute_task(self.task(), execute_async=False)
        elif self.action == "send":
            owner.put(self.source, str(self.target.parent), on_progress=on_progress)
        else:
            owner.get(str(self.source), self.target.parent, on_progress=on_progress)

    def interrupt(self, owner: Connection | Runtime, interruption: Callable[[], object]) -> LazyclusterError:
        """Transfer, interrupt it after some of it has arrived, and return the error."""
        if isinstance(owner, Runtime):
            task = owner.execute_task(self.task())
            self.wait_for_temporary_file()
            interruption()
            with pytest.raises(TaskExecutionError) as failed:
                task.join()
            assert isinstance(failed.value.__cause__, LazyclusterError)
            return failed.value.__cause__
        moved = 0

        def on_progress(done: int, _total: int | None) -> None:
            nonlocal moved
            if done > 1_000_000 and not moved:
                moved = done
                interruption()

        with pytest.raises(LazyclusterError) as caught:
            self.transfer(owner, on_progress)
        assert 0 < moved < self.size
        return caught.value

    def wait_for_temporary_file(self) -> None:
        assert_eventually(lambda: self.arrived_bytes >= min(self.size // 2, 1_000_000), "some of it has arrived", 30)

    @property
    def arrived_bytes(self) -> int:
        """The size of the temporary files; -1 before there is one."""
        sizes = [-1]
        for path in self.temporary_paths:
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return max(sizes)

    def assert_target_unchanged(self) -> None:
        assert_eventually(
            lambda: self.target_file.read_text() == "old" and not self.temporary_paths,
            "there is the old file and nothing else",
            timeout=30,
        )

    @property
    def temporary_paths(self) -> set[Path]:
        """The paths beside the old file. The host may be removing one of them at the same time."""
        found = set()
        for path in self.target.parent.iterdir():
            found.add(path)
            with contextlib.suppress(FileNotFoundError):
                found.update(path.rglob("*"))
        return found - {self.target, self.target_file}


@pytest.mark.parametrize(("kind", "resident"), KINDS)
@pytest.mark.parametrize("action", ["send", "fetch"])
def test_transfer_broken_connection_keeps_old_file(
    sshd: LocalSshd, local_dir: Path, host_dir: Path, tmp_path: Path, kind: str, action: str, resident: bool
) -> None:
    transfer = InterruptedTransfer(kind, action, local_dir, host_dir)
    with assert_no_leaks(sshd), running_relay(sshd, tmp_path) as (relay, keywords):
        relay.delay = 0.02
        with open_owner(sshd, resident, keywords["config_file"]) as owner:
            error = transfer.interrupt(owner, relay.drop)

            assert isinstance(error, TransferError)
            assert (error.action, error.host) == (action, "local")
            assert str(transfer.source) in error.path
            transfer.assert_target_unchanged()

            relay.delay = 0
            transfer.transfer(owner)
            assert transfer.target_file.stat().st_size == transfer.size


@pytest.mark.parametrize(("kind", "resident"), KINDS)
@pytest.mark.parametrize("action", ["send", "fetch"])
def test_transfer_dead_host_keeps_old_file(
    make_sshd: MakeSshd, local_dir: Path, host_dir: Path, tmp_path: Path, kind: str, action: str, resident: bool
) -> None:
    server = make_sshd()
    transfer = InterruptedTransfer(kind, action, local_dir, host_dir)
    with (
        running_relay(server, tmp_path) as (relay, keywords),
        open_owner(server, resident, keywords["config_file"], connect_timeout=5) as owner,
    ):
        relay.delay = 0.02
        error = transfer.interrupt(owner, server.stop)

    assert str(transfer.source) in str(error)
    assert transfer.target_file.read_text() == "old"
    if action == "fetch":
        transfer.assert_target_unchanged()


@pytest.mark.parametrize("action", ["send", "fetch"])
def test_transfer_killed_scp_keeps_old_file(
    sshd: LocalSshd, local_dir: Path, host_dir: Path, tmp_path: Path, action: str
) -> None:
    transfer = InterruptedTransfer("file", action, local_dir, host_dir)

    def kill_scp() -> None:
        [scp] = [pid for pid in child_pids(os.getpid()) if command_line(pid).startswith("scp ")]
        os.kill(scp, signal.SIGKILL)

    with assert_no_leaks(sshd), running_relay(sshd, tmp_path) as (relay, keywords):
        relay.delay = 0.02
        with Connection(sshd.host, **keywords) as connection:
            error = transfer.interrupt(connection, kill_scp)

            assert isinstance(error, TransferError)
            assert (error.action, error.host) == (action, "local")
            transfer.assert_target_unchanged()


@pytest.mark.parametrize(("kind", "resident"), KINDS)
@pytest.mark.parametrize("action", ["send", "fetch"])
def test_stop_task_during_transfer_keeps_old_file(
    sshd: LocalSshd, local_dir: Path, host_dir: Path, tmp_path: Path, kind: str, action: str, resident: bool
) -> None:
    transfer = InterruptedTransfer(kind, action, local_dir, host_dir)
    with (
        assert_no_leaks(sshd),
        running_relay(sshd, tmp_path) as (relay, keywords),
        Runtime(sshd.host, resident=resident, **keywords) as runtime,
    ):
        relay.delay = 0.1
        task = runtime.execute_task(transfer.task().run_command("touch never"))
        transfer.wait_for_temporary_file()
        [key] = runtime.get_processes()
        runtime.stop_process(key)

        assert runtime.get_process(key).exitcode == -signal.SIGTERM
        relay.delay = 0
        transfer.assert_target_unchanged()
        with pytest.raises(TaskExecutionError) as caught:
            task.join()
        assert isinstance(caught.value.__cause__, CommandStoppedError)
        assert len(task.results) == 1


# Hostile hosts -------------------------------------------------------------------------------------------------------


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "members",
    [
        [tar_member("../out")],
        [tar_member("a/../../out")],
        [tar_member("{outside}/out")],
        [tar_member("link", tarfile.SYMTYPE, ".."), tar_member("link/out")],
        [tar_member("link", tarfile.SYMTYPE, "{outside}"), tar_member("link/out")],
        [tar_member("hard", tarfile.LNKTYPE, "{outside}/secret"), tar_member("hard")],
        [tar_member("device", tarfile.CHRTYPE)],
    ],
    ids=["parent", "parent after a name", "absolute", "link to parent", "absolute link", "hard link", "device"],
)
def test_get_tree_unsafe_archive_is_refused(
    make_sshd: MakeSshd, local_dir: Path, host_dir: Path, tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    write_file(outside / "secret", "secret")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for info in members:
            info.name = info.name.format(outside=outside)
            info.linkname = info.linkname.format(outside=outside)
            info.size = 4 if info.isreg() else 0
            archive.addfile(info, io.BytesIO(b"evil"))
    programs = tmp_path / "programs"
    programs.mkdir()
    write_script(programs / "tar", f"exec cat {tmp_path}/evil.tar\n")
    server = make_sshd(environment={"PATH": f"{programs}:{os.environ['PATH']}"})

    with (
        Connection(server.host, **server.connection_kwargs) as connection,
        pytest.raises(TransferError) as caught,
    ):
        connection.get(str(host_dir), local_dir / "fetched")

    assert str(host_dir) in caught.value.path
    assert isinstance(caught.value.__cause__, UnsafeArchiveError)
    assert entry_names(local_dir) == []
    assert entry_names(outside) == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [0, 100, 700, 1100])
def test_get_tree_truncated_stream_is_refused(
    make_sshd: MakeSshd, local_dir: Path, host_dir: Path, tmp_path: Path, cut: int
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    write_script(programs / "tar", f"/bin/tar -cf - . | head -c {cut}\n")
    server = make_sshd(environment={"PATH": f"{programs}:{os.environ['PATH']}"})
    write_file(host_dir / "file")

    with (
        Connection(server.host, **server.connection_kwargs) as connection,
        pytest.raises(TransferError) as caught,
    ):
        connection.get(str(host_dir), local_dir / "fetched")

    assert isinstance(caught.value.__cause__, BrokenArchiveError)
    assert entry_names(local_dir) == []


# Hosts of all kinds --------------------------------------------------------------------------------------------------


def assert_round_trip(connection: Connection, local_dir: Path, host_dir: Path) -> None:
    source = make_full_tree(local_dir / "it's a tree")
    connection.put(source, f"{host_dir}/sent to 'it'")
    connection.get(f"{host_dir}/sent to 'it'", local_dir / "back")
    assert describe_tree(local_dir / "back") == describe_tree(source)
    single = write_file(local_dir / "a: 'file'", "x" * 100_000)
    connection.put(single, f"{host_dir}/file $1")
    connection.get(f"{host_dir}/file $1", local_dir / "file-back")
    assert (local_dir / "file-back").read_text() == single.read_text()
    for directory in (local_dir, host_dir):
        assert not [name for name in entry_names(directory) if "lazycluster" in name]


@pytest.mark.parametrize("subsystem", ["other /bin/true", "sftp /no/such/sftp-server"])
def test_transfer_host_without_sftp(make_sshd: MakeSshd, local_dir: Path, host_dir: Path, subsystem: str) -> None:
    server = make_sshd(options={"Subsystem": subsystem})
    with assert_no_leaks(server), Connection(server.host, **server.connection_kwargs) as connection:
        assert_round_trip(connection, local_dir, host_dir)
        with pytest.raises(TransferError) as caught:
            connection.put(local_dir / "a: 'file'", f"{host_dir}/no/such")
        assert str(host_dir / "no") in caught.value.reason


@pytest.mark.parametrize(
    "shell", ["dash", "zsh", "fish", "tcsh", ("busybox", "sh")], ids=["dash", "zsh", "fish", "tcsh", "busybox"]
)
def test_transfer_login_shell_of_any_kind(
    make_sshd: MakeSshd, local_dir: Path, host_dir: Path, shell: str | tuple[str, str]
) -> None:
    program = shell if isinstance(shell, str) else shell[0]
    if shutil.which(program) is None:
        skip_or_fail(f"there is no {program} on this machine")
    server = make_sshd(shell=shell)
    with Connection(server.host, **server.connection_kwargs) as connection:
        connection.run("true")  # fish makes files in the home at its first start
    with assert_no_leaks(server), Connection(server.host, **server.connection_kwargs) as connection:
        assert_round_trip(connection, local_dir, host_dir)


def test_transfer_host_with_one_session(make_sshd: MakeSshd, local_dir: Path, host_dir: Path) -> None:
    server = make_sshd(options={"MaxSessions": "1"})
    with Connection(server.host, max_sessions=1, **server.connection_kwargs) as connection:
        assert_round_trip(connection, local_dir, host_dir)
        call_in_parallel(
            [functools.partial(connection.put, local_dir / "back", f"{host_dir}/{number}") for number in range(3)]
        )
        assert all(describe_tree(host_dir / str(number)) == describe_tree(local_dir / "back") for number in range(3))


def test_put_in_parallel_respects_max_sessions(make_sshd: MakeSshd, local_dir: Path, host_dir: Path) -> None:
    """The lifeline of an scp takes a session of its own, if one is free."""
    server = make_sshd(options={"MaxSessions": "2"})
    large = write_file(local_dir / "large", "x" * (16 << 20))
    with Connection(server.host, max_sessions=2, **server.connection_kwargs) as connection:
        call_in_parallel([functools.partial(connection.put, large, f"{host_dir}/{number}") for number in range(4)])
    assert all((host_dir / str(number)).read_bytes() == large.read_bytes() for number in range(4))
    # sshd may still count a session that has ended here; without the limit it would refuse most of the lifelines.
    assert server.log.count("no more sessions") <= 1


def test_transfer_start_up_file_that_prints(make_sshd: MakeSshd, local_dir: Path, host_dir: Path) -> None:
    """It spoils both protocols of scp: a tree gets through, and the error of a file names the reason."""
    server = make_sshd(shell="bash")
    write_file(server.home / ".bashrc", "echo Welcome to the machine\necho and to its errors >&2\n")
    with Connection(server.host, **server.connection_kwargs) as connection:
        connection.put(make_full_tree(local_dir / "tree"), str(host_dir))
        connection.get(str(host_dir / "tree"), local_dir / "back")
        assert describe_tree(local_dir / "back") == describe_tree(local_dir / "tree")

        with pytest.raises(TransferError) as caught:
            connection.put(write_file(local_dir / "file"), str(host_dir))
        assert str(local_dir / "file") in caught.value.path
        assert "Ensure the remote shell produces no output" in caught.value.reason  # OpenSSH's own words
        assert entry_names(host_dir) == ["tree"]


# Programs started ----------------------------------------------------------------------------------------------------


def test_transfer_file_is_one_scp_and_tree_one_session(make_sshd: MakeSshd, local_dir: Path, host_dir: Path) -> None:
    server = make_sshd()
    many = local_dir / "many"
    many.mkdir()
    for number in range(50):
        write_file(many / f"file {number}")
    with Connection(server.host, **server.connection_kwargs) as connection:
        connection.run("true")
        for transfer, source, target in (
            (connection.put, many, host_dir),
            (connection.get, host_dir / "many", local_dir / "back"),
        ):
            before = count_sessions(server)
            with record_program_starts() as programs:
                transfer(str(source), str(target))
            assert [argv[0] for argv in programs] == ["ssh"]
            assert count_sessions(server) == before + 1
        for transfer, source, target in (
            (connection.put, many / "file 1", host_dir),
            (connection.get, host_dir / "file 1", local_dir),
        ):
            with record_program_starts() as programs:
                transfer(str(source), str(target))
            assert [argv[0] for argv in programs].count("scp") == 1
            assert {argv[0] for argv in programs} == {"ssh", "scp"}
    assert entry_names(local_dir / "back") == entry_names(many)


_TRANSFERS = """
    from pathlib import Path
    local_dir, host_dir = map(Path, sys.argv[1:])
    (local_dir / "tree").mkdir()
    (local_dir / "tree" / "in it").write_text("content")
    with connection:
        assert connection.run("echo $((1 + 1))").stdout == "2\\n"
        connection.put(local_dir / "tree", str(host_dir))
        connection.put(local_dir / "tree" / "in it", str(host_dir))
        connection.get(f"{host_dir}/tree", local_dir / "back")
        connection.get(f"{host_dir}/in it", local_dir / "back")
    assert (local_dir / "back" / "in it").read_text() == "content"
    say("done")
"""


def transfer_program(local_dir: Path, host_dir: Path) -> str:
    return f"    sys.argv[1:] = [{str(local_dir)!r}, {str(host_dir)!r}]\n{_TRANSFERS}"


def test_transfer_executes_only_openssh(sshd: LocalSshd, local_dir: Path, host_dir: Path, tmp_path: Path) -> None:
    """The kernel traces the local process, the ssh and scp that it starts, and their own children."""
    strace = shutil.which("strace")
    if strace is None:
        skip_or_fail("there is no strace on this machine")
    trace = tmp_path / "trace"
    prefix = (strace, "-f", "-qq", "-e", "trace=execve", "-o", str(trace))
    with ClientProgram(transfer_program(local_dir, host_dir), server=sshd, prefix=prefix) as program:
        assert program.wait(60) == (0, "done\n", "")

    calls = [line.split("execve(", 1)[1] for line in trace.read_text().splitlines() if "execve(" in line]
    programs = [call.split('"')[1] for call in calls if call.endswith("= 0")]
    assert programs[0] == sys.executable
    assert {Path(program).name for program in programs[1:]} == {"ssh", "scp"}


def test_transfer_needs_no_local_shell(sshd: LocalSshd, local_dir: Path, host_dir: Path, tmp_path: Path) -> None:
    programs = tmp_path / "only"
    programs.mkdir()
    for name in ("ssh", "scp"):
        (programs / name).symlink_to(str(shutil.which(name)))
    environment = {"PATH": str(programs), "SHELL": "/nonexistent"}
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0 and sys.platform == "linux" and shutil.which("unshare"):
        # In a mount namespace of its own the program sees no shell; the host is outside and has one.
        hide = 'for s in sh bash dash; do mount --bind /dev/null "$(readlink -f /bin/$s)" || exit; done; exec "$@"'
        prefix = (str(shutil.which("unshare")), "-m", str(shutil.which("busybox") or "/bin/sh"), "sh", "-c", hide, "sh")
        environment["PATH"] += ":/usr/bin:/bin:/usr/sbin"

    with ClientProgram(
        transfer_program(local_dir, host_dir), server=sshd, environment=environment, prefix=prefix
    ) as program:
        assert program.wait(60) == (0, "done\n", "")


def test_runtime_starts_only_ssh_and_scp(sshd: LocalSshd, local_dir: Path, host_dir: Path, resident: bool) -> None:
    with (
        record_program_starts() as programs,
        Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime,
    ):
        task = (
            RuntimeTask()
            .send_file(write_file(local_dir / "file"))
            .send_file(make_full_tree(local_dir / "tree"))
            .run_command("ls")
        )
        task.get_file("file", host_dir).get_file("tree", host_dir).run_function(os.getcwd)
        runtime.execute_task(task, execute_async=False)

    assert {argv[0] for argv in programs} == ({"ssh"} if resident else {"ssh", "scp"})


@pytest.mark.soak
def test_transfer_five_thousand_files(connection: Connection, local_dir: Path, host_dir: Path) -> None:
    many = local_dir / "many"
    for directory in range(50):
        (many / str(directory)).mkdir(parents=True)
        for number in range(100):
            (many / str(directory) / str(number)).write_bytes(b"%d" % number * 1024)

    connection.put(many, str(host_dir))
    connection.get(str(host_dir / "many"), local_dir / "back")

    assert len(list((local_dir / "back").rglob("*"))) == 5050
    assert (local_dir / "back" / "49" / "99").read_bytes() == b"99" * 1024


# Progress ------------------------------------------------------------------------------------------------------------


def test_execute_debug_shows_progress_bar(sshd: LocalSshd, local_dir: Path, host_dir: Path) -> None:
    (local_dir / "large").write_bytes(bytes(3_000_000))
    text = f"""
    from lazycluster import RuntimeTask
    task = RuntimeTask().send_file({str(local_dir / "large")!r}, {str(host_dir)!r}).run_command("echo printed")
    terminal = os.open({{terminal!r}}, os.O_WRONLY | os.O_NOCTTY)
    os.dup2(terminal, 1)
    with connection:
        task.execute(connection, debug=True)
    """
    controller, terminal = pty.openpty()
    try:
        with ClientProgram(text.format(terminal=os.ttyname(terminal)), server=sshd) as program:
            assert program.wait(60)[0] == 0
        os.set_blocking(controller, False)
        shown = os.read(controller, 1 << 20).decode()
    finally:
        os.close(controller)
        os.close(terminal)
    assert "send_file" in shown
    assert "3.0/3.0 MB" in shown
    assert "printed" in shown
