"""How a supervisor starts processes: the search for a program, and the surroundings of a process."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lazycluster._remote.descriptors import close_all
from lazycluster._remote.spawn import DescriptorLimit, Spawner, base_environment, find_program, login_shell

# The search for a program ---------------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current directory, with programs in `bin` and other files."""
    for name, mode in (("bin/tool", 0o755), ("bin/data", 0o644), ("other/data", 0o755), ("local", 0o755)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    (tmp_path / "bin/directory").mkdir()
    (tmp_path / "bin/broken").symlink_to("nothing")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("word", "path", "found"),
    [
        ("tool", b"/no/such:{dir}/bin", "{dir}/bin/tool"),
        ("tool", b"{dir}/bin/:/bin", "{dir}/bin/tool"),
        ("tool", b"{dir}/other", None),
        ("tool", b"bin", "bin/tool"),
        ("data", b"{dir}/bin:{dir}/other", "{dir}/other/data"),
        ("data", b"{dir}/bin", "{dir}/bin/data"),
        ("directory", b"{dir}/bin", "{dir}/bin/directory"),
        ("broken", b"{dir}/bin", None),
        ("local", b"/no/such:", "local"),  # an empty part is the current directory
        ("local", b"", "local"),
        ("local", b"{dir}/bin", None),
        ("sh", None, "/bin/sh"),
        ("./local", b"{dir}/bin", "./local"),
        ("bin/tool", b"{dir}/other", "bin/tool"),
        ("/no/such", b"{dir}/bin", "/no/such"),
        ("", b"{dir}/bin", None),
    ],
)
def test_find_program_looks_on_path_as_execvp(
    programs: Path, word: str, path: bytes | None, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "defpath", "/bin:/usr/bin")
    environment = {} if path is None else {b"PATH": path.replace(b"{dir}", os.fsencode(programs))}

    if found is None:
        with pytest.raises(FileNotFoundError):
            find_program(word, environment)
    else:
        assert find_program(word, environment) == found.format(dir=programs)


# The environment and the shell ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "expected"), [(None, b"1"), ("0", b"1"), ("7", b"7"), ("-2", b"1"), ("x", b"1")])
def test_base_environment_sets_shell_level(level: str | None, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"A": "\udcff", **({} if level is None else {"SHLVL": level})})
    assert base_environment() == {b"A": b"\xff", b"SHLVL": expected}


@pytest.mark.parametrize(
    ("name", "mode", "is_used"),
    [("bash", 0o755, True), ("mksh", 0o755, True), ("fish", 0o755, False), ("bash5", 0o755, False), ("bash", 0, False)],
)
def test_login_shell_is_own_shell_only_if_posix(
    name: str, mode: int, is_used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = tmp_path / name
    shell.touch(mode)
    monkeypatch.setenv("SHELL", str(shell))
    assert login_shell() == (str(shell) if is_used else "/bin/sh")
    monkeypatch.delenv("SHELL")
    assert login_shell() == "/bin/sh"


# Starting -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """Return the limits of descriptors, and restore them after the test."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield limits
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture(params=["posix_spawn", "fork"])
def spawner(
    request: pytest.FixtureRequest, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Spawner]:
    """Start processes by posix_spawn(3) or fork(2); the limit is 256 for them, and as high as possible for the test."""
    if request.param == "fork":
        monkeypatch.setattr(os, "posix_spawn", None)  # as before Python 3.8
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    spawner = Spawner(DescriptorLimit())
    yield spawner
    close_all(spawner.low_descriptors)


def run(spawner: Spawner, program: str, *argv: str, environment: dict[bytes, bytes] | None = None) -> tuple[int, bytes]:
    """Return the status of a program, and what it printed to its three descriptors."""
    nothing, (reading, writing) = os.open(os.devnull, os.O_RDONLY), os.pipe()
    try:
        pid = spawner.spawn(program, ["name", *argv], environment or {}, [nothing, writing, writing])
    except OSError:
        os.close(reading)
        raise
    finally:
        close_all((nothing, writing))
    with os.fdopen(reading, "rb") as file:
        printed = file.read()  # it ends because the spawner keeps no copy of the pipe
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), printed


def test_spawn_passes_arguments_and_streams(spawner: Spawner) -> None:
    script = 'echo "$0 $1 $A"; echo err >&2; cat; readlink /proc/$$/fd/0; exit 3'
    status, printed = run(
        spawner, "/bin/sh", "-c", script, "one", environment={b"A": b"\xff", b"PATH": b"/usr/bin:/bin"}
    )
    assert (status, printed) == (3, b"one  \xff\nerr\n/dev/null\n")
    assert run(spawner, "/bin/sh", "-c", "kill -PIPE $$") == (-signal.SIGPIPE, b"")


def is_inheritable(descriptor: int) -> bool:
    """Return whether this process passes a descriptor on to every program that it starts."""
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_spawn_gives_clean_descriptors_limit_and_session(spawner: Spawner) -> None:
    raised_limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    environment = {b"PATH": b"/usr/bin:/bin"}
    _, listed = run(spawner, "/bin/sh", "-c", "ls /proc/$$/fd", environment=environment)
    leaked = {name for name in listed.split() if int(name) > 2 and not is_inheritable(int(name))}
    assert {b"0", b"1", b"2"} <= set(listed.split())
    assert leaked == set()
    _, printed = run(spawner, "/bin/sh", "-c", "ulimit -Sn; cut -d' ' -f1,5,6 /proc/self/stat", environment=environment)
    limit, pid, group, session = printed.split()
    assert int(limit) == 256
    assert group == session != pid  # those of the shell
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == raised_limits


@pytest.mark.parametrize(
    ("program", "number"),
    [("/no/such", errno.ENOENT), ("/", errno.EACCES), ("/etc/passwd", errno.EACCES), ("{tmp}/text", errno.ENOEXEC)],
)
def test_spawn_unstartable_program_raises_and_leaks_nothing(
    spawner: Spawner, program: str, number: int, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("echo of a shell\n")
    (tmp_path / "text").chmod(0o755)
    before = len(list(Path("/dev/fd").iterdir()))
    children = psutil.Process().children()  # unreaped ones, too
    raised_limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(OSError) as caught:
        run(spawner, program.format(tmp=tmp_path))
    assert caught.value.errno == number
    assert len(list(Path("/dev/fd").iterdir())) == before
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == raised_limits
    assert psutil.Process().children() == children


def test_spawn_oversized_word_raises(spawner: Spawner) -> None:
    with pytest.raises(OSError) as caught:
        run(spawner, "/bin/true", "x" * 3_000_000)
    assert caught.value.errno == errno.E2BIG


def test_spawn_passes_descriptors_above_the_limit(spawner: Spawner) -> None:
    """With many children pipes have such descriptors, and posix_spawn(3) refuses them (dup2(2))."""
    reading, writing = os.pipe()
    high = os.dup2(writing, 300, inheritable=False)
    try:
        pid = spawner.spawn("/bin/sh", ["sh", "-c", "echo high; ulimit -Sn"], {}, [0, high, 2])
    finally:
        close_all((writing, high))
    with os.fdopen(reading, "rb") as file:
        assert file.read() == b"high\n256\n"
    assert os.waitpid(pid, 0)[1] == 0


def test_descriptor_limit_without_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    limit = DescriptorLimit()
    limit.raise_to_hard_limit()
    limit.restore()
