"""The commands of the command line for many hosts, in a pipe and in a terminal, with private sshds."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest

from lazycluster.testing import LocalSshd, write_config
from tests.command_line import main
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTS = ("web-1", "web-2")
DEAD = "Host dead\n    HostName 127.0.0.1\n    Port {port}\n"


@pytest.fixture(scope="module")
def servers(require_sshd: None, run_directory: Path) -> Iterator[list[LocalSshd]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(LocalSshd(name=name, environment={"TMPDIR": str(run_directory)})) for name in HOSTS]


@pytest.fixture
def config(servers: list[LocalSshd], tmp_path: Path) -> str:
    """Return a configuration of hosts that can be reached."""
    return str(write_config(tmp_path / "ssh_config", *servers))


@pytest.fixture
def config_with_dead(servers: list[LocalSshd], tmp_path: Path) -> str:
    """Return a configuration of the same hosts and one more, "dead", that refuses connections."""
    return str(write_config(tmp_path / "ssh_config", *servers, extra=DEAD.format(port=reserve_free_port())))


def spawn(*arguments: str) -> pexpect.spawn:
    words = [sys.executable, "-m", "lazycluster", *arguments]
    return pexpect.spawn(words[0], words[1:], encoding="utf-8", timeout=30, dimensions=(40, 110))


# list-runtimes -------------------------------------------------------------------------------------------------------


def test_list_runtimes_prints_active_and_inactive(config_with_dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-runtimes", "--config", config_with_dead]) == 0
    out = capsys.readouterr().out
    assert "2 active hosts" in out
    assert "1 inactive host\n" in out
    assert re.search(r"^dead +connection refused", out, re.MULTILINE)
    assert "\x1b" not in out


def test_list_runtimes_long_prints_hardware(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-runtimes", "-l", "--config", config]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^host +OS +Python +CPU cores +memory +GPUs$", out, re.MULTILINE)
    assert re.search(r"^web-1 .* GiB ", out, re.MULTILINE)


def test_list_runtimes_json_lists_hosts(config_with_dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-runtimes", "-l", "--json", "--config", config_with_dead]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [record["host"] for record in listed["active"]] == [*HOSTS]
    assert all(record["memory"] > 0 and record["cpu_cores"] > 0 for record in listed["active"])
    assert [record["host"] for record in listed["inactive"]] == ["dead"]


def test_list_runtimes_no_host_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "config"
    empty.write_text("Host *\n    User someone\n")
    assert main(["list-runtimes", "--config", str(empty)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lazycluster: ")
    assert str(empty) in captured.err
    empty.write_text("Host nowhere\n    HostName nowhere.invalid\n")
    assert main(["list-runtimes", "--config", str(empty)]) == 1


# run -----------------------------------------------------------------------------------------------------------------


def test_run_prefixes_lines_with_host(
    config: str, servers: list[LocalSshd], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--config", config, "--", "pwd; echo oops >&2; printf 'no end'"]) == 0
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == sorted(
        line for server in servers for line in (f"{server.host} | {server.home}", f"{server.host} | no end")
    )
    assert {"web-1 | oops", "web-2 | oops", "2 hosts, all well"} <= set(err.splitlines())
    assert "\x1b" not in out + err


def test_run_failure_sets_exit_status(config_with_dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", config_with_dead, "--hosts", "web-1,web-2", "exit 4"]) == 1
    assert re.search(r"^web-1 +4 ", capsys.readouterr().err, re.MULTILINE)
    assert main(["run", "--config", config_with_dead, "true"]) == 3
    assert "3 hosts, 1 failed" in capsys.readouterr().err
    assert main(["run", "--config", config_with_dead, "--hosts", "dead", "true"]) == 3
    assert re.search(r"^  dead: connection refused", capsys.readouterr().err, re.MULTILINE)


def test_run_json_has_record_of_each_host(config_with_dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", config_with_dead, "--json", "--timeout", "20", "--", "echo hello; exit 2"]) == 3
    records = {record["host"]: record for record in map(json.loads, capsys.readouterr().out.splitlines())}
    assert (records["web-1"]["exit_code"], records["web-1"]["stdout"]) == (2, "hello\n")
    assert records["dead"].keys() == {"host", "error"}


@pytest.mark.parametrize("options", [(), ("--no-resident",)])
def test_run_names_what_command_left_running(options: tuple[str, ...], config: str) -> None:
    command = "nohup sleep 1234 >/dev/null 2>&1 & until ps -o command= -p $! | grep -q ^sleep; do :; done"
    words = (sys.executable, "-m", "lazycluster", "run", "--config", config, *options, "--", command)
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    for host in HOSTS:
        assert ended.stderr.splitlines().count(f"{host}: ended what commands had left running: `sleep 1234`") == 1
    assert ended.returncode == 0


def test_run_timeout_exits_1(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", config, "--timeout", "0.2", "--", "sleep 1000"]) == 1
    assert "its timeout of 0.2 s" in capsys.readouterr().err


def test_run_group_filter_selects_hosts(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    only = 'true=case $SSH_CONNECTION in *) [ "$HOME" = {} ] && echo true;; esac'
    home = Path(config).parent / "other-home"
    assert main(["run", "--config", config, "--group-filter", only.format(home), "true"]) == 3
    assert "did not print true" in capsys.readouterr().err
    options = ["--group-filter", "min-memory=1", "--group-filter", "min-cores=0.5", "--group-filter", "installed=sh"]
    assert main(["run", "--config", config, *options, "true"]) == 0
    assert main(["run", "--config", config, "--group-filter", "minimum=1", "true"]) == 2
    assert "gpu, min-memory=MB" in capsys.readouterr().err


def test_run_stdin_goes_to_every_host(config: str) -> None:
    words = (sys.executable, "-m", "lazycluster", "run", "--config", config)
    data = b"\n".join(b"%d" % number for number in range(100_000)) + b"\n"
    ended = subprocess.run((*words, "--stdin", "--", "wc -c"), input=data, capture_output=True, timeout=60)
    assert (ended.returncode, sorted(ended.stdout.split())) == (0, sorted(b"web-1 | 588890 web-2 | 588890".split()))
    ended = subprocess.run((*words, "--", "cat"), input=data, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, b"")


@pytest.mark.parametrize("command", ["yes", "seq 100000; exec sleep 1000"])
def test_run_closed_stdout_ends_commands(command: str, config: str, servers: list[LocalSshd]) -> None:
    words = (sys.executable, "-m", "lazycluster", "run", "--config", config, "--", command)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"web-")
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""
    assert_eventually(
        lambda: all(server.processes() == (server.pid,) for server in servers), "the commands and connections end"
    )


def test_run_terminal_colours_host_names(config: str) -> None:
    child = spawn("run", "--config", config, "--", "echo hello")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "connecting" in child.before
    assert "\x1b[36mweb-1 | \x1b[0mhello" in child.before
    assert "2 hosts, all well" in child.before


@pytest.mark.parametrize("command", ["exec sleep 1000", "trap '' TERM; while :; do sleep 1; done"])
def test_run_ctrl_c_ends_remote_commands(command: str, config: str, servers: list[LocalSshd]) -> None:
    child = spawn("run", "--config", config, "--", f"echo started; {command}")
    for _ in servers:
        child.expect("started")
    child.send("\x03")
    child.expect(r"\nlazycluster: ending the commands[^\n]*\r\n")
    child.expect(pexpect.EOF)
    assert child.before.startswith("lazycluster: interrupted")
    assert child.before.count("\n") == 1
    child.close()
    assert child.exitstatus == 130
    assert_eventually(lambda: all(server.connections() == 0 for server in servers), "the connections are closed")
    assert all(server.processes() == (server.pid,) for server in servers)


# put, get ------------------------------------------------------------------------------------------------------------


def test_put_and_get_copy_directory(
    config: str, servers: list[LocalSshd], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "a tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("content")
    assert main(["put", "--config", config, str(tree)]) == 0
    assert capsys.readouterr().out == f"{tree} sent to 2 of 2 hosts\n"
    for server in servers:
        assert (server.home / "a tree" / "sub" / "file").read_text() == "content"
        (server.home / "a tree" / "sub" / "file").write_text(server.host)
    got = tmp_path / "got"
    assert main(["get", "--config", config, "a tree/sub", str(got)]) == 0
    assert {path.read_text() for path in got.rglob("file")} == set(HOSTS)
    assert (got / "web-1" / "sub" / "file").read_text() == "web-1"


def test_get_and_put_failure_sets_exit_status(
    config_with_dead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["get", "--config", config_with_dead, "nothing", str(tmp_path / "got")]) == 1
    out, err = capsys.readouterr()
    assert out == "nothing fetched from 0 of 3 hosts\n"
    assert re.search(r"^web-1 +cannot fetch 'nothing'", err, re.MULTILINE)
    assert main(["put", "--config", config_with_dead, str(tmp_path / "missing")]) == 2


def test_put_terminal_shows_progress_bar(config: str, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(3_000_000))
    child = spawn("put", "--config", config, str(tmp_path / "large"))
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "3.0/3.0 MB" in child.before


# expose --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["--from", "--to"])
def test_expose_lost_connection_comes_back(direction: str, config: str, servers: list[LocalSshd]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        port, listen = service.getsockname()[1], reserve_free_port()

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = service.accept()
                    with connection:
                        connection.sendall(b"hello")

        threading.Thread(target=answer, daemon=True).start()
        child = spawn("expose", direction, "--config", config, "web-1", f"{port}:{listen}")
        child.expect(r"connecting to web-1 \.\.\.")
        child.expect("Ctrl-C ends it")
        with socket.create_connection(("127.0.0.1", listen), timeout=10) as connection:
            assert connection.recv(5) == b"hello"
        servers[0].kill_connections()
        child.expect("the connection is gone; bringing it back")
        child.expect("the connection is back")
        with socket.create_connection(("127.0.0.1", listen), timeout=10) as connection:
            assert connection.recv(5) == b"hello"
        child.send("\x03")
        child.expect("stopped")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
        service.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listen), timeout=10)


@pytest.mark.parametrize("ports", ["0", "70000", "http", "80:", "1:2:3"])
def test_expose_invalid_ports_exit_2(ports: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["expose", "--config", config, "web-1", ports]) == 2
    assert "PORT or PORT:PORT" in capsys.readouterr().err
