"""The supervisor as a local process: its start, and the commands that it runs."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import resource
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest

from lazycluster._functions import bootstrap
from lazycluster._remote import protocol
from lazycluster._remote.protocol import STDERR, STDOUT, WINDOW_BYTES, WINDOW_UPDATE_THRESHOLD_BYTES
from lazycluster._ssh.shell import PROCESS_MARK_VARIABLE
from tests.unit.local_supervisor import ObservedChild, is_reaped, local_supervisor
from tests.unit.test_call_program import PYTHONS
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look for leftovers")


# The start ------------------------------------------------------------------------------------------------------------


def test_supervisor_hello_names_process_and_python() -> None:
    with local_supervisor() as host:
        hello = host.wait_hello()
        assert hello.pid == host.process.pid
        assert (hello.python.implementation, hello.python.executable) == (sys.implementation.name, sys.executable)
        assert hello.python.version == ".".join(map(str, sys.version_info[:3]))
        assert (hello.working_dir, hello.probe_output, hello.working_dir_error) == ("", "", "")


@pytest.mark.parametrize(
    ("working_dir", "expected"),
    [
        ("relative/to it", "{home}/relative/to it"),
        ("~/in home/../x", "{home}/x"),
        ("~", "{home}"),
        (".", "{home}"),
        ("{tmp}/absolute/ü\n'", "{tmp}/absolute/ü\n'"),
        ("{tmp}/not text \udcff", "{tmp}/not text \udcff"),
    ],
)
def test_supervisor_creates_and_keeps_working_dir(tmp_path: Path, working_dir: str, expected: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    env = {**os.environ, "HOME": str(home)}
    with local_supervisor(working_dir=working_dir.format(tmp=tmp_path), cwd=home, env=env) as host:
        directory = expected.format(home=home, tmp=tmp_path)
        assert host.wait_hello().working_dir == directory
        assert os.path.isdir(directory)  # noqa: PTH112 - a Path cannot hold undecodable names everywhere
        assert host.run("pwd", cwd=host.wait_hello().working_dir).result() == (0, os.fsencode(directory) + b"\n", b"")
    assert os.path.isdir(directory)  # noqa: PTH112


def test_supervisor_temp_working_dir_is_private_and_removed(tmp_path: Path) -> None:
    with local_supervisor(working_dir="", env={**os.environ, "TMPDIR": str(tmp_path)}) as host:
        directory = Path(host.wait_hello().working_dir)
        assert directory == tmp_path / f"lazycluster-{host.token}.1"
        assert directory.stat().st_mode & 0o777 == 0o700
        (directory / "file").touch()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("working_dir", ["{tmp}/file", "{tmp}/file/below", "{tmp}/missing"])
def test_supervisor_hello_reports_working_dir_error(tmp_path: Path, working_dir: str) -> None:
    (tmp_path / "file").touch()
    option = "" if "missing" in working_dir else working_dir.format(tmp=tmp_path)
    with local_supervisor(
        working_dir=option, probe="echo never >&2", env={**os.environ, "TMPDIR": str(tmp_path / "missing")}
    ) as host:
        hello = host.wait_hello()
        reasons = {"{tmp}/file": errno.EEXIST, "{tmp}/file/below": errno.ENOTDIR, "{tmp}/missing": errno.ENOENT}
        assert hello.working_dir_error.startswith(str(tmp_path))
        assert hello.working_dir_error.endswith(f": {os.strerror(reasons[working_dir])}")
        assert (hello.working_dir, hello.probe_output) == ("", "")
        assert host.run("echo it runs").result() == (0, b"it runs\n", b"")


@pytest.mark.parametrize(
    ("probe", "output"),
    [
        ("echo facts; exit 3", b"facts\n"),
        ("printf 'two'; printf ' streams' >&2", None),
        ("kill -9 $$", b""),
        ("head -c 3000000 /dev/zero | tr '\\0' x", b"x" * (protocol.MAX_BODY_BYTES // 2)),
        ("(sleep 60 &) ; echo $0 $#", b"sh 0\n"),  # a background process does not delay the hello
        ("printf '\\377'", b"\xef\xbf\xbd"),
        ("cat; echo read", b"read\n"),
    ],
)
def test_supervisor_hello_has_probe_output(probe: str, output: bytes | None) -> None:
    with local_supervisor(probe=probe, grace=0.5) as host:
        received = host.wait_hello().probe_output.encode()
        if output is None:
            assert sorted(received.split()) == [b"streams", b"two"]
        else:
            assert received == output


# Under every Python that a host may have ------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "python"), PYTHONS.items(), ids=PYTHONS)
def test_supervisor_runs_under_every_python(version: str, python: Path, tmp_path: Path) -> None:
    """Everything works, and no module is imported from the current directory."""
    trap = tmp_path / "selectors.py"
    trap.write_text("raise SystemExit('the current directory was imported from')")
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with local_supervisor(python, working_dir="", probe="echo facts", cwd=tmp_path, env=env, grace=0.3) as host:
        hello = host.wait_hello()
        assert version.startswith(hello.python.version)
        same = hello.python.version.split(".")[:2] == [str(part) for part in sys.version_info[:2]]
        assert host.asked_for_source is not same
        assert (hello.python.executable, hello.probe_output) == (str(python), "facts\n")

        command = 'pwd; echo "$A" >&2; cat; kill -TERM $$'
        child = host.run(command, stdin=None, cwd=hello.working_dir, env={"A": "é\n\udcff"})
        child.write(b"in" * 200_000)
        status, out, err = child.result()
        assert (status, err) == (-signal.SIGTERM, b"\xc3\xa9\n\xff\n")
        assert out == f"{hello.working_dir}\n".encode() + b"in" * 200_000
        assert host.run("ls /proc/self/fd").result() == (0, b"0\n1\n2\n3\n", b"")
        assert host.run(f"echo {'x' * 200_000}").result() == (126, b"", b"/bin/sh: Argument list too long\n")
        assert host.run("true", cwd="/no/such").wait() == ("cd", "No such file or directory")
        assert host.run(["printf", "%s|", "a b", "$A"]).result() == (0, b"a b|$A|", b"")
        assert host.run(["no-such"]).result() == (127, b"", b"no-such: No such file or directory\n")

        script = tmp_path / "script"
        script.write_text("echo of a shell\n")
        script.chmod(0o755)
        assert host.run(f"{script} x").result() == (0, b"of a shell\n", b"")  # ENOEXEC (execve(2))
        script.write_text("#!/no/such/interpreter\n")
        assert host.run(f"{script}").wait_exit_code() in {126, 127}

        stubborn = host.run("trap '' TERM; setsid sleep 60 & echo $!; while :; do sleep 0.01; done", grace=0.2)
        daemon = int(stubborn.wait_output(b"\n").output())
        stubborn.stop()
        assert stubborn.wait() == ("signal", "9")
        assert is_reaped(daemon)

        host.send(protocol.PREPARE, 0, protocol.pack(bootstrap.ports_extension(), b""))
        assert host.request("ports", b"1")[0] == b"ok"
        [ok, path] = host.request("tempdir")
        assert (ok, path) == (b"ok", f"{tmp_path}/lazycluster-{host.token}.2".encode())
        host.run("(setsid sleep 60 &) ; mkdir -p a/b; chmod 0 a/b a", cwd=hello.working_dir).wait_exit_code()
    assert sorted(tmp_path.iterdir()) == [script, trap]


def test_supervisor_with_other_bytecode_requests_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "MAGIC_NUMBER", b"\0'\r\n")
    with local_supervisor(sys.executable) as host:
        assert host.asked_for_source
        assert host.run("echo a").result() == (0, b"a\n", b"")


# How a command ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("true", ("exit", "0")),
        ("false", ("exit", "256")),
        ("exit 255", ("exit", str(255 << 8))),
        ("exit 143", ("exit", str(143 << 8))),
        ("kill -TERM $$", ("signal", "15")),
        ("kill -KILL $$", ("signal", "9")),
        ("kill -PIPE $$", ("signal", "13")),
        ("no-such-program", ("exit", str(127 << 8))),
        ("/no/such/program x", ("exit", str(127 << 8))),
        ("/", ("exit", str(126 << 8))),
        ("if", ("exit", str(2 << 8))),
        ("", ("exit", "0")),
    ],
)
def test_run_reports_exit_status(command: str, end: tuple[str, str]) -> None:
    with local_supervisor(env={**os.environ, "SHELL": "/bin/dash"}) as host:
        assert host.run(command).wait() == end


@pytest.mark.parametrize(
    ("words", "status", "out", "err"),
    [
        (["true"], 0, b"", b""),
        (["false"], 1, b"", b""),
        (["printf", "%s|", "a b", "$HOME", "*", "", "é\n"], 0, "a b|$HOME|*||é\n|".encode(), b""),
        (["./program"], 0, b"as ./program\n", b""),
        (["program"], 0, b"as bin/program\n", b""),
        (["no-such"], 127, b"", b"no-such: No such file or directory\n"),
        (["no such", "x"], 127, b"", b"no such: No such file or directory\n"),
        (["/no/such"], 127, b"", b"/no/such: No such file or directory\n"),
        (["data/x"], 127, b"", b"data/x: Not a directory\n"),
        (["exit", "3"], 127, b"", b"exit: No such file or directory\n"),  # only a shell has it
        ([""], 127, b"", b": No such file or directory\n"),
        (["./data"], 126, b"", b"./data: Permission denied\n"),
        (["not-executable"], 126, b"", b"not-executable: Permission denied\n"),
        (["/"], 126, b"", b"/: Permission denied\n"),
        (["./text"], 126, b"", b"./text: Exec format error\n"),
        (["echo", "x" * 140_000], 126, b"", b"echo: Argument list too long\n"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_run_words_reports_exit_status_of_shell(
    words: list[str], status: int, out: bytes, err: bytes, tmp_path: Path
) -> None:
    """The child is found with its own directory and PATH, not with those of the supervisor."""
    for name, mode, text in (
        ("program", 0o755, '#!/bin/sh\necho "as $0"\n'),
        ("bin/program", 0o755, '#!/bin/sh\necho "as $0"\n'),
        ("bin/not-executable", 0o644, ""),
        ("data", 0o644, ""),
        ("text", 0o755, "echo of a shell\n"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    with local_supervisor() as host:
        child = host.run(words, cwd=tmp_path, env={"PATH": f"bin:{os.environ['PATH']}"})
        assert child.result() == (status, out, err)


def test_run_words_starts_no_shell() -> None:
    with local_supervisor(env={**os.environ, "SHELL": "/bin/sh"}) as host:
        words = ["readlink", "/proc/self/exe"]
        program = host.run(words, login_shell=True)
        assert program.wait_exit_code() == 0
        assert Path(os.fsdecode(program.output().strip())).name != Path("/bin/sh").resolve().name
        waiting = host.run(["cat"], stdin=None)
        host.receive_until(lambda: waiting.pid is not None, "the report of its start")
        assert Path(f"/proc/{waiting.pid}/cmdline").read_bytes() == b"cat\0"
        waiting.write(b"in")
        assert waiting.result() == (0, b"in", b"")


def test_run_text_always_starts_shell(tmp_path: Path) -> None:
    shell = tmp_path / "bash"
    shell.write_text('#!/bin/sh\necho "arguments of the shell: $*"\n')
    shell.chmod(0o755)
    with local_supervisor(env={**os.environ, "SHELL": str(shell)}) as host:
        assert host.run("true", login_shell=True).result() == (0, b"arguments of the shell: -c true\n", b"")


def test_run_keeps_stdout_and_stderr_apart_and_in_order() -> None:
    lines = b"".join(b"%d\n" % number for number in range(1, 3001))
    with local_supervisor() as host:
        command = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; echo $i >&2; done; exit 3"
        assert host.run(command).result() == (3, lines, lines)
        child = host.run("echo out; echo err >&2")
        assert child.wait_exit_code() == 0
        assert sorted(child.received) == [(STDOUT, b"out\n"), (STDERR, b"err\n")]


def test_run_sends_output_while_command_runs() -> None:
    with local_supervisor() as host:
        child = host.run("echo first; cat; echo last", stdin=None)
        child.wait_output(b"first\n")
        host.sync()
        assert child.end is None
        child.write(b"sent\n", close=False)
        child.wait_output(b"sent\n")
        child.write(b"")
        assert child.result() == (0, b"first\nsent\nlast\n", b"")


def test_run_long_command_reports_start() -> None:
    with local_supervisor() as host:
        child = host.run("exec sleep 60")
        host.receive_until(lambda: child.pid is not None, "the report of its start")
        assert child.pid in host.child_pids()
        assert os.getsid(child.pid or 0) == os.getpgid(child.pid or 0) == child.pid  # a session of its own
        child.stop()
        assert child.wait_exit_code() == -signal.SIGTERM


def test_run_background_process_delays_no_end(tmp_path: Path) -> None:
    """It may go on and print, but its output is dropped; it ends with the supervisor."""
    go = tmp_path / "go"
    os.mkfifo(go)
    with local_supervisor(grace=0.3) as host:
        loud = f"(read x <{go}; head -c 300000 /dev/zero; echo >&2; echo printed >{go}; sleep 60) & echo $!"
        status, out, err = host.run(loud).result()
        assert (status, err) == (0, b"")
        assert not is_reaped(int(out))
        go.write_text("go\n")
        assert go.read_text() == "printed\n"
        daemon = host.run("nohup setsid sleep 60 </dev/null >/dev/null 2>&1 & echo $!").result()[1]
        assert not is_reaped(int(daemon))
    assert is_reaped(int(out), int(daemon))


def test_run_background_output_delays_no_end() -> None:
    with local_supervisor(grace=0.3) as host:
        assert host.run("yes & echo mine").wait_exit_code() == 0


# The surroundings of a command ----------------------------------------------------------------------------------------


def test_run_sets_environment_and_directory(tmp_path: Path) -> None:
    awkward = "two\nlines 'and' \"quotes\" \\ $HOME \udcff="
    env = {"PATH": os.environ["PATH"], "KEPT": "yes", "BOTH": "supervisor", "HOME": str(tmp_path), "PWD": "/wrong"}
    with local_supervisor(env=env, cwd="/usr") as host:
        child = host.run("env -0", cwd="~/a", env={})
        assert child.wait() == ("cd", "No such file or directory")
        (tmp_path / "a").mkdir()
        child = host.run("env -0", cwd="~/a", env={"AWKWARD": awkward, "BOTH": "child", "EMPTY": ""})
        assert child.wait_exit_code() == 0
        seen = dict(line.split(b"=", 1) for line in child.output().split(b"\0")[:-1])
        seen.pop(b"_", None)
        assert seen == {
            b"PATH": os.fsencode(os.environ["PATH"]),
            b"HOME": os.fsencode(tmp_path),
            b"KEPT": b"yes",
            b"BOTH": b"child",
            b"EMPTY": b"",
            b"AWKWARD": os.fsencode(awkward),
            b"PWD": os.fsencode(tmp_path / "a"),
            b"SHLVL": b"1",
            PROCESS_MARK_VARIABLE.encode(): f"{host.token}.{child.number}.".encode(),
            **({b"LC_CTYPE": seen[b"LC_CTYPE"]} if b"LC_CTYPE" in seen else {}),  # PEP 538
        }
        assert (
            host.run("pwd; /bin/pwd").result()[1] == b"/usr\n/usr\n"
        )  # the directory in which the supervisor was started
        assert host.run("pwd", cwd="share/../lib").result()[1] == b"/usr/lib\n"


@pytest.mark.parametrize(("level", "expected"), [("3", "3"), ("0", "1"), ("-1", "1"), ("x", "1"), ("", "1")])
def test_run_shell_level_is_never_below_one(level: str, expected: str) -> None:
    """With a level of 0 bash would read ~/.bashrc again under ssh."""
    with local_supervisor(env={**os.environ, "SHLVL": level}) as host:
        assert host.run("env").result()[1].count(f"\nSHLVL={expected}\n".encode()) == 1


@pytest.mark.parametrize(
    ("shell", "login_shell", "expected"),
    [
        ("bash", True, "bash"),
        ("bash", False, "sh"),
        ("fish", True, "sh"),
        ("/no/such/bash", True, "sh"),
        ("", True, "sh"),
    ],
)
def test_run_login_shell_only_if_posix(shell: str, login_shell: bool, expected: str) -> None:
    path = shutil.which(shell) or shell
    if shell == "bash" and path == shell:
        pytest.skip("there is no bash")
    with local_supervisor(env={**os.environ, "SHELL": path}) as host:
        name = host.run("echo $0", login_shell=login_shell).result()[1].decode().strip()
        assert Path(name).name == expected


SIGNALS = "grep -E '^Sig(Ign|Blk)' /proc/self/status"


def signals_of(child: ObservedChild) -> dict[str, set[int]]:
    """Return the signals that a child ignores and blocks, except 32 and 33, which only the C library uses."""
    rows = [line.split(":") for line in child.result()[1].decode().splitlines()]
    return {name: {bit + 1 for bit in range(64) if int(mask, 16) >> bit & 1} - {32, 33} for name, mask in rows}


def test_run_child_starts_with_clean_state() -> None:
    with local_supervisor() as host:
        assert host.run("cat").result() == (0, b"", b"")
        assert host.run("readlink /proc/self/fd/0").result()[1] == b"/dev/null\n"
        assert host.run("for f in /proc/self/fd/*; do echo $f; done").result()[1].count(b"\n") <= 4
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert host.run("ulimit -n; ulimit -Hn").result()[1] == b"%d\n%d\n" % limits
        assert signals_of(host.run(SIGNALS)) == {"SigBlk": set(), "SigIgn": set()}


@pytest.mark.parametrize(("size", "status"), [(100_000, 0), (140_000, 126), (3_000_000, 126)])
@pytest.mark.parametrize("part", ["command", "argument", "variable"])
def test_run_oversized_word_reports_exit_status_126(size: int, status: int, part: str) -> None:
    """A word may have 128 KiB on Linux (execve(2))."""
    long = "x" * size
    command = {"command": f": '{long}'", "argument": f"true {long}", "variable": "true"}[part]
    with local_supervisor() as host:
        child = host.run(command, env={"A": long} if part == "variable" else {})
        exit_code, out, err = child.result()
        assert (exit_code, out) == (status, b"")
        assert err.endswith(b": Argument list too long\n" if status else b"")
        assert host.run("echo well").result()[1] == b"well\n"


def test_run_missing_directory_reports_cd_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with local_supervisor() as host:
        for directory, reason in ((tmp_path / "gone", errno.ENOENT), (tmp_path / "file", errno.ENOTDIR)):
            child = host.run("touch never", cwd=directory)
            assert child.wait() == ("cd", os.strerror(reason))
            assert child.received == []


# Standard input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 12_000_000])
def test_input_reaches_command_unchanged(size: int) -> None:
    data = hashlib.sha512(b"seed").digest() * (size // 64 + 1)
    data = data[:size]
    with local_supervisor() as host:
        child = host.run("cat", stdin=None)
        child.write(data)
        assert child.result() == (0, data, b"")
        if size <= protocol.STREAM_CHUNK_BYTES:
            assert host.run("cat", stdin=data).result() == (0, data, b"")  # with the command itself


def test_input_unread_by_command_is_no_error(tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    with local_supervisor() as host:
        child = host.run(f"head -c 3; exec <&-; echo closed; read x <{go}; exit 4", stdin=None)
        child.write(b"abc" + bytes(3 * WINDOW_BYTES), close=False)  # the rest is dropped
        go.write_text("go\n")
        assert child.wait_exit_code() == 4
        assert child.output() == b"abcclosed\n"
        child.host.send(protocol.INPUT, child.number, b"after the end")
        child.host.send(protocol.INPUT_END, child.number)
        child.host.send(protocol.WINDOW_UPDATE, child.number, b"5")
        child.stop()
        host.sync()


def test_input_window_limits_sender(tmp_path: Path) -> None:
    """The window grows only when the command has read, so a supervisor keeps no more than a window."""
    go = tmp_path / "go"
    os.mkfifo(go)
    with local_supervisor() as host:
        child = host.run(f"cat {go}; wc -c", stdin=None)
        for _ in range(WINDOW_BYTES // protocol.STREAM_CHUNK_BYTES):
            host.send(protocol.INPUT, child.number, bytes(protocol.STREAM_CHUNK_BYTES))
        child.input_window -= WINDOW_BYTES
        host.sync()
        assert child.input_window == 0
        assert host.run("echo not delayed").result()[1] == b"not delayed\n"
        go.write_text("go\n")
        child.write(bytes(WINDOW_BYTES), close=False)
        host.receive_until(
            lambda: child.input_window > WINDOW_BYTES - WINDOW_UPDATE_THRESHOLD_BYTES, "nearly a whole window"
        )
        child.write(b"")
        assert child.result() == (0, b"go\n%d\n" % (2 * WINDOW_BYTES), b"")


# Output ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["exec cat /dev/zero", "cat /dev/zero >&2", "cat /dev/zero & cat /dev/zero >&2"])
def test_output_window_limits_child_and_delays_no_other(command: str) -> None:
    with local_supervisor() as host:
        child = host.run(command, updates_window=False)
        host.receive_until(lambda: child.received_bytes >= WINDOW_BYTES, "a whole window")
        assert host.run("head -c 5000000 /dev/zero").result()[1] == bytes(5_000_000)
        host.sync()
        assert child.received_bytes == WINDOW_BYTES
        for size in (1, 70_000, 500_000):
            before = child.received_bytes
            child.send_window_update(size)
            host.receive_until(lambda wanted=before + size: child.received_bytes >= wanted, "that much more")  # type: ignore[misc]
            host.sync()
            assert child.received_bytes == before + size
        child.stop()
        host.sync()
        child.updates_window = True
        child.send_window_update(WINDOW_BYTES)
        assert child.wait_exit_code() == -signal.SIGTERM


def test_output_window_delays_end_of_child() -> None:
    with local_supervisor() as host:
        # Beyond the window, less than the smallest pipe holds: this one may have been enlarged or not.
        child = host.run(f"head -c {WINDOW_BYTES + 60_000} /dev/zero; exit 3", updates_window=False)
        host.receive_until(lambda: child.received_bytes == WINDOW_BYTES, "a whole window")
        host.receive_until(lambda: not host.child_pids(), "the exit of its process")
        host.sync()
        assert child.end is None
        child.send_window_update(59_999)
        host.receive_until(lambda: child.received_bytes == WINDOW_BYTES + 59_999, "that much more")
        host.sync()
        assert child.end is None
        child.send_window_update(10)
        assert child.wait_exit_code() == 3
        assert child.received_bytes == WINDOW_BYTES + 60_000


def test_output_unread_channel_loses_nothing(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(3)]
    with local_supervisor() as host:
        children = [host.run(f"head -c 9000000 /dev/urandom | tee {path} | cat; exit 5") for path in paths]
        for child in children:
            child.send_window_update(100_000_000)
        assert wait_until(host.is_stdout_full, 20)
        unread = host.run("cat", stdin=None)
        unread.write(b"sent")
        assert [child.wait_exit_code() for child in children] == [5, 5, 5]
        assert [child.output() == path.read_bytes() for child, path in zip(children, paths, strict=True)] == [True] * 3
        assert unread.result()[1] == b"sent"


def test_run_three_hundred_children_at_once() -> None:
    with local_supervisor() as host:
        children = [
            host.run(f"cat; echo {number}; echo e{number} >&2; exit {number % 7}", stdin=None) for number in range(300)
        ]
        host.sync()
        assert not any(child.end for child in children)
        for number, child in enumerate(children):
            child.write(b"%d " % number)
        for number, child in enumerate(children):
            assert child.result() == (number % 7, b"%d %d\n" % (number, number), b"e%d\n" % number)


def test_run_without_free_descriptors_fails_child_only(tmp_path: Path) -> None:
    """A child that gets no pipes fails, and the others go on."""
    setup_code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))"
    with local_supervisor(setup_code=setup_code) as host:
        children = [host.run("cat", stdin=None) for _ in range(10)]
        host.receive_until(lambda: any(child.end for child in children), "a child without pipes")
        host.sync()
        failed = [child for child in children if child.end]
        assert {child.end for child in failed} == {("failed", "no process for it: Too many open files")}
        rest = [child for child in children if not child.end]
        assert rest
        for child in rest:
            child.write(b"sent")
            assert child.result() == (0, b"sent", b"")
        assert host.run("echo again").result() == (0, b"again\n", b"")


# Requests -------------------------------------------------------------------------------------------------------------


def test_request_tempdir_is_private_and_removed(tmp_path: Path) -> None:
    tmp = tmp_path / "t"
    tmp.mkdir()
    with local_supervisor(env={**os.environ, "TMPDIR": str(tmp)}) as host:
        paths = [Path(os.fsdecode(host.request("tempdir")[1])) for _ in range(3)]
        assert paths == [tmp / f"lazycluster-{host.token}.{number}" for number in (1, 2, 3)]
        assert all(path.stat().st_mode & 0o777 == 0o700 for path in paths)
        (paths[0] / "file").touch()
        assert host.request("discard", os.fsencode(paths[1]), b"/no/such") == [b"ok"]
        tmp.rename(tmp_path / "elsewhere")
        assert host.request("tempdir") == [b"failed", b"No such file or directory"]
        (tmp_path / "elsewhere").rename(tmp)
    assert list(tmp.iterdir()) == [paths[1]]


def test_request_ports_returns_free_ports() -> None:
    with local_supervisor() as host, socket.create_server(("127.0.0.1", 0)) as taken:
        port = b"%d" % taken.getsockname()[1]
        assert host.request("ports", port) == [b"failed", b"RuntimeError: "]
        host.send(protocol.PREPARE, 0, protocol.pack(bootstrap.ports_extension(), b""))
        assert host.request("ports", port) == [b"ok"]
        with socket.create_server(("127.0.0.1", 0)) as released:
            free = b"%d" % released.getsockname()[1]
        assert host.request("ports", port, free) == [b"ok", free]
        assert host.request("ports") == [b"ok"]
        assert host.request("ports", b"x")[0] == b"failed"


@pytest.mark.parametrize(
    ("method", "reason"), [("no such", b"ValueError: no such"), ("", b"ValueError: "), ("é", b"Unicode")]
)
def test_request_unknown_method_fails(method: str, reason: bytes) -> None:
    with local_supervisor() as host:
        state, error = host.request(method)
        assert state == b"failed"
        assert error.startswith(reason)
        host.sync()


def test_keepalive_is_sent_if_nothing_else_is() -> None:
    with local_supervisor(limits={"keepalive_interval": 0.05}) as host:
        host.receive_until(lambda: host.keepalives >= 3, "three keepalives")
        assert host.run("echo well").result()[1] == b"well\n"


def test_frame_of_unknown_child_is_ignored() -> None:
    with local_supervisor() as host:
        for kind in (
            protocol.INPUT,
            protocol.INPUT_END,
            protocol.WINDOW_UPDATE,
            protocol.STOP,
            protocol.KEEPALIVE,
            protocol.ENDED,
        ):
            host.send(kind, 77, b"1")
        host.sync()


def test_frame_with_invalid_body_fails_its_child_only() -> None:
    with local_supervisor() as host:
        child, other = host.run("cat", stdin=None), host.run("cat", stdin=None)
        host.send(protocol.WINDOW_UPDATE, child.number, b"many")
        kind, detail = child.wait()
        assert (kind, detail.partition(":")[0]) == ("failed", "ValueError")
        other.write(b"sent")
        assert other.result()[1] == b"sent"
        for impossible in (host.run("true; \0"), host.run("true", env={"A": "\0"})):
            kind, detail = impossible.wait()
            assert (kind, detail.partition(":")[0]) == ("failed", "ValueError")
        host.sync()


def test_frames_byte_by_byte_are_understood() -> None:
    with local_supervisor() as host:
        child = host.observed_children[1] = ObservedChild(host, 1)
        for byte in protocol.encode_frame(protocol.RUN, 1, protocol.pack(b"0", b"", b"5", b"cat", b"")):
            host.write(bytes([byte]))
        for byte in protocol.encode_frame(protocol.INPUT, 1, b"hello") + protocol.encode_frame(protocol.INPUT_END, 1):
            host.write(bytes([byte]))
        assert child.result() == (0, b"hello", b"")


def test_run_child_of_nohup_ignores_no_signal() -> None:
    """The supervisor's starter ignores signals as nohup does; commands do not inherit that."""
    setup_code = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 13, 15)]"
    with local_supervisor(setup_code=setup_code) as host:
        assert signals_of(host.run(SIGNALS)) == {"SigBlk": set(), "SigIgn": set()}
