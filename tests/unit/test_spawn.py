"""How a supervisor starts processes: where a program is looked for, and what a process is given."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazycluster._remote.descriptors import close_all
from lazycluster._remote.spawn import DescriptorLimit, Spawner, base_environment, find_program, login_shell

# Where a program is looked for ----------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory, which is the current one, with programs in `bin` and other files."""
    for name, mode in (("bin/tool", 0o755), ("bin/data", 0o644), ("other/data", 0o755), ("here", 0o755)):
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
        ("here", b"/no/such:", "here"),  # an empty part is the current directory
        ("here", b"", "here"),
        ("here", b"{dir}/bin", None),
        ("sh", None, "/bin/sh"),
        ("./here", b"{dir}/bin", "./here"),
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
def test_the_level_of_the_shell(level: str | None, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"A": "\udcff", **({} if level is None else {"SHLVL": level})})
    assert base_environment() == {b"A": b"\xff", b"SHLVL": expected}


@pytest.mark.parametrize(
    ("name", "mode", "taken"),
    [("bash", 0o755, True), ("mksh", 0o755, True), ("fish", 0o755, False), ("bash5", 0o755, False), ("bash", 0, False)],
)
def test_the_login_shell(name: str, mode: int, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = tmp_path / name
    shell.touch(mode)
    monkeypatch.setenv("SHELL", str(shell))
    assert login_shell() == (str(shell) if taken else "/bin/sh")
    monkeypatch.delenv("SHELL")
    assert login_shell() == "/bin/sh"


# Starting -------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["posix_spawn", "fork"])
def starter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spawner]:
    """Start processes in each of the two ways; the limit and the descriptors are as before after the test."""
    if request.param == "fork":
        monkeypatch.setattr(os, "posix_spawn", None)  # as before Python 3.8
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    made = Spawner(DescriptorLimit())
    yield made
    close_all(made._low_descriptors)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def run(starter: Spawner, program: str, *argv: str, environment: dict[bytes, bytes] | None = None) -> tuple[int, bytes]:
    """Return the status of a program, and what it printed to its three descriptors."""
    nothing, (reading, writing) = os.open(os.devnull, os.O_RDONLY), os.pipe()
    try:
        pid = starter.spawn(program, ["name", *argv], environment or {}, [nothing, writing, writing])
    except OSError:
        os.close(reading)
        raise
    finally:
        close_all((nothing, writing))
    with os.fdopen(reading, "rb") as file:
        printed = file.read()  # its end comes: nothing here keeps the pipe open
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), printed


def test_a_program_is_started(starter: Spawner) -> None:
    shown = 'echo "$0 $1 $A"; echo err >&2; cat; readlink /proc/$$/fd/0; exit 3'
    status, printed = run(
        starter, "/bin/sh", "-c", shown, "one", environment={b"A": b"\xff", b"PATH": b"/usr/bin:/bin"}
    )
    assert (status, printed) == (3, b"one  \xff\nerr\n/dev/null\n")
    assert run(starter, "/bin/sh", "-c", "kill -PIPE $$") == (-signal.SIGPIPE, b"")


def inheritable(descriptor: int) -> bool:
    """Tell whether a descriptor is one that whoever started the tests hands on to everybody."""
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows it")
def test_what_it_is_given(starter: Spawner) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    environment = {b"PATH": b"/usr/bin:/bin"}
    _, listed = run(starter, "/bin/sh", "-c", "ls /proc/$$/fd", environment=environment)
    whose = {name for name in listed.split() if int(name) > 2 and not inheritable(int(name))}
    assert {b"0", b"1", b"2"} <= set(listed.split())
    assert whose == set()
    _, said = run(starter, "/bin/sh", "-c", "ulimit -Sn; cut -d' ' -f1,5,6 /proc/self/stat", environment=environment)
    limit, pid, group, session = said.split()
    assert int(limit) == starter._descriptor_limit._original[0]
    assert group == session != pid  # those of the shell
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits, "as before"


@pytest.mark.parametrize(
    ("program", "number"),
    [("/no/such", errno.ENOENT), ("/", errno.EACCES), ("/etc/passwd", errno.EACCES), ("{tmp}/text", errno.ENOEXEC)],
)
def test_what_cannot_be_started(starter: Spawner, program: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("echo of a shell\n")
    (tmp_path / "text").chmod(0o755)
    before = len(list(Path("/dev/fd").iterdir()))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(OSError) as caught:
        run(starter, program.format(tmp=tmp_path))
    assert caught.value.errno == number
    assert len(list(Path("/dev/fd").iterdir())) == before
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_too_long_a_word(starter: Spawner) -> None:
    with pytest.raises(OSError, match="Argument list too long"):
        run(starter, "/bin/true", "x" * 3_000_000)


def test_descriptors_above_the_limit_are_handed_on(starter: Spawner) -> None:
    """With many jobs those of a pipe are, and posix_spawn(3) refuses them (see the kernel's dup2(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    starter._descriptor_limit._original = (64, hard)
    reading, writing = os.pipe()
    high = os.dup2(writing, 100, inheritable=False)
    try:
        pid = starter.spawn("/bin/sh", ["sh", "-c", "echo high; ulimit -Sn"], {}, [0, high, 2])
    finally:
        close_all((writing, high))
        starter._descriptor_limit._original = (soft, hard)
        starter._descriptor_limit.restore()
    with os.fdopen(reading, "rb") as file:
        assert file.read() == b"high\n64\n"
    assert os.waitpid(pid, 0)[1] == 0


def test_where_the_limit_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    limit = DescriptorLimit()
    limit.raise_to_hard_limit()
    limit.restore()
