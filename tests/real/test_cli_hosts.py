"""The commands for many hosts, in a pipe and in a real terminal, on private sshds."""

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

from lazycluster._cli import main
from lazycluster.testing import LocalSshd, write_config
from tests.waiting import wait_until

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
    """Return a configuration of hosts that work."""
    return str(write_config(tmp_path / "ssh_config", *servers))


@pytest.fixture
def with_dead(servers: list[LocalSshd], tmp_path: Path) -> Iterator[str]:
    """Return one in which a host does not."""
    with socket.socket() as bound:  # and nobody listens
        bound.bind(("127.0.0.1", 0))
        text = DEAD.format(port=bound.getsockname()[1])
        yield str(write_config(tmp_path / "ssh_config", *servers, extra=text))


def terminal(*arguments: str) -> pexpect.spawn:
    words = [sys.executable, "-m", "lazycluster", *arguments]
    return pexpect.spawn(words[0], words[1:], encoding="utf-8", timeout=30, dimensions=(40, 110))


# list-runtimes -------------------------------------------------------------------------------------------------------


def test_list(with_dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-runtimes", "--config", with_dead]) == 0
    out = capsys.readouterr().out
    assert "2 active hosts" in out
    assert "1 inactive host\n" in out
    assert re.search(r"^dead +connection refused", out, re.MULTILINE)
    assert "\x1b" not in out


def test_list_in_full(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-runtimes", "-l", "--config", config]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^host +OS +Python +CPU cores +memory +GPUs$", out, re.MULTILINE)
    assert re.search(r"^web-1 .* GiB ", out, re.MULTILINE)


def test_list_as_json(with_dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-runtimes", "-l", "--json", "--config", with_dead]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [record["host"] for record in listed["active"]] == [*HOSTS]
    assert all(record["memory"] > 0 and record["cpu_cores"] > 0 for record in listed["active"])
    assert [record["host"] for record in listed["inactive"]] == ["dead"]


def test_list_where_nobody_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "config"
    empty.write_text("Host *\n    User nobody\n")
    assert main(["list-runtimes", "--config", str(empty)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"lazycluster: no hosts: {empty} names none. Add a `Host` entry")
    empty.write_text("Host nowhere\n    HostName nowhere.invalid\n")
    assert main(["list-runtimes", "--config", str(empty)]) == 1


# run -----------------------------------------------------------------------------------------------------------------


def test_run(config: str, servers: list[LocalSshd], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", config, "--", "pwd; echo oops >&2; printf 'no end'"]) == 0
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == sorted(
        line for server in servers for line in (f"{server.host} | {server.home}", f"{server.host} | no end")
    )
    assert {"web-1 | oops", "web-2 | oops", "2 hosts, all well"} <= set(err.splitlines())
    assert "\x1b" not in out + err


def test_run_fails_somewhere(with_dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", with_dead, "--hosts", "web-1,web-2", "exit 4"]) == 1
    assert re.search(r"^web-1 +4 ", capsys.readouterr().err, re.MULTILINE)
    assert main(["run", "--config", with_dead, "true"]) == 3
    assert "3 hosts, 1 failed" in capsys.readouterr().err
    assert main(["run", "--config", with_dead, "--hosts", "dead", "true"]) == 3
    assert "no host can be used, of 1 that --hosts names:\n  dead: connection refused" in capsys.readouterr().err


def test_run_as_json(with_dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", with_dead, "--json", "--timeout", "20", "--", "echo hello; exit 2"]) == 3
    records = {record["host"]: record for record in map(json.loads, capsys.readouterr().out.splitlines())}
    assert (records["web-1"]["exit_code"], records["web-1"]["stdout"]) == (2, "hello\n")
    assert records["dead"]["error"].startswith("connection refused")


def test_a_timeout(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", config, "--timeout", "0.2", "--", "sleep 1000"]) == 1
    assert "took longer than its timeout of 0.2 s" in capsys.readouterr().err


def test_only_hosts_that_fit(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    only = 'true=case $SSH_CONNECTION in *) [ "$HOME" = {} ] && echo true;; esac'
    home = Path(config).parent / "nobody"
    assert main(["run", "--config", config, "--group-filter", only.format(home), "true"]) == 3
    assert "did not print true" in capsys.readouterr().err
    options = ["--group-filter", "min-memory=1", "--group-filter", "min-cores=0.5", "--group-filter", "installed=sh"]
    assert main(["run", "--config", config, *options, "true"]) == 0
    assert main(["run", "--config", config, "--group-filter", "minimum=1", "true"]) == 2
    assert "(filters: gpu, min-memory=MB" in capsys.readouterr().err


def test_standard_input_goes_to_every_host(config: str) -> None:
    words = (sys.executable, "-m", "lazycluster", "run", "--config", config)
    data = b"\n".join(b"%d" % number for number in range(100_000)) + b"\n"
    ended = subprocess.run((*words, "--stdin", "--", "wc -c"), input=data, capture_output=True, timeout=60)
    assert (ended.returncode, sorted(ended.stdout.split())) == (0, sorted(b"web-1 | 588890 web-2 | 588890".split()))
    ended = subprocess.run((*words, "--", "cat"), input=data, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, b"")


@pytest.mark.parametrize("command", ["yes", "seq 100000; exec sleep 1000"])
def test_a_reader_who_has_enough(command: str, config: str, servers: list[LocalSshd]) -> None:
    words = (sys.executable, "-m", "lazycluster", "run", "--config", config, "--", command)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"web-")
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""
    assert wait_until(lambda: all(server.processes() == (server.pid,) for server in servers), timeout=10)


def test_run_in_a_terminal(config: str) -> None:
    child = terminal("run", "--config", config, "--", "echo hello")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "connecting" in child.before
    assert "\x1b[36mweb-1 | \x1b[0mhello" in child.before
    assert "2 hosts, all well" in child.before


@pytest.mark.parametrize("command", ["exec sleep 1000", "trap '' TERM; while :; do sleep 1; done"])
def test_ctrl_c_ends_the_remote_commands(command: str, config: str, servers: list[LocalSshd]) -> None:
    child = terminal("run", "--config", config, "--", f"echo begun; {command}")
    for _ in servers:
        child.expect("begun")
    child.send("\x03")
    child.expect(r"\nlazycluster: ending the commands; one that ignores SIGTERM is killed after 5 s\r\n", timeout=2)
    child.expect(pexpect.EOF)
    assert child.before == "lazycluster: interrupted; everything under way was ended\r\n"
    child.close()
    assert child.exitstatus == 130
    assert wait_until(lambda: all(server.connections() == 0 for server in servers), timeout=10)
    assert all(server.processes() == (server.pid,) for server in servers)


# put, get ------------------------------------------------------------------------------------------------------------


def test_put_and_get(config: str, servers: list[LocalSshd], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_transfer_that_fails(with_dead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["get", "--config", with_dead, "nothing", str(tmp_path / "got")]) == 1
    out, err = capsys.readouterr()
    assert out == "nothing fetched from 0 of 3 hosts\n"
    assert re.search(r"^web-1 +cannot fetch 'nothing'", err, re.MULTILINE)
    assert main(["put", "--config", with_dead, str(tmp_path / "missing")]) == 2


def test_a_bar_in_a_terminal(config: str, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(3_000_000))
    child = terminal("put", "--config", config, str(tmp_path / "large"))
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "3.0/3.0 MB" in child.before


# expose --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["--from", "--to"])
def test_expose(direction: str, config: str, servers: list[LocalSshd]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as service, socket.create_server(("127.0.0.1", 0)) as reserved:
        port, listen = service.getsockname()[1], reserved.getsockname()[1]
        reserved.close()

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = service.accept()
                    with connection:
                        connection.sendall(b"hello")

        threading.Thread(target=answer, daemon=True).start()
        child = terminal("expose", direction, "--config", config, "web-1", f"{port}:{listen}")
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
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", listen), timeout=10)


@pytest.mark.parametrize("ports", ["0", "70000", "http", "80:", "1:2:3"])
def test_ports_that_are_none(ports: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["expose", "--config", config, "web-1", ports]) == 2
    assert "ports must be PORT or PORT:PORT" in capsys.readouterr().err
