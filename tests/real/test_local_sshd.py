"""The private sshd, seen through the plain `ssh` and `scp` of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster._remote.ports import find_free_port
from lazycluster.testing import (
    LocalSshd,
    LocalSshdError,
    Relay,
    SshdNotFoundError,
    _process_guard,
    local_sshd,
    write_config,
)

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd

Ended = subprocess.CompletedProcess[str]


def ssh(server: LocalSshd, *command: str, options: tuple[str, ...] = (), config: Path | None = None) -> Ended:
    argv = ("ssh", "-F", str(config or server.config_file), "-o", "BatchMode=yes", *options, server.host, *command)
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


def scp(server: LocalSshd, *arguments: str) -> Ended:
    argv = ("scp", "-q", "-F", str(server.config_file), "-o", "BatchMode=yes", *arguments)
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


def is_alive(pid: int) -> bool:
    return pid in _process_guard.parent_by_pid()


def descends(server: LocalSshd, count: int) -> bool:
    return _process_guard.wait_until(lambda: len(server.processes()) >= count, timeout=10)


# Commands and files --------------------------------------------------------------------------------------------------


def test_a_command_runs_with_the_private_home_and_the_users_own_shell(sshd: LocalSshd) -> None:
    ended = ssh(sshd, 'echo "$HOME"; pwd; id -un; exit 7')

    assert (ended.returncode, ended.stderr) == (7, "")
    assert ended.stdout.splitlines() == [str(sshd.home), str(sshd.home), sshd.user]
    assert sshd.home == sshd.directory / "home"


def test_nothing_of_how_it_is_made_is_seen_by_a_command(sshd: LocalSshd) -> None:
    assert {"SSH_ORIGINAL_COMMAND", "OLDPWD"}.isdisjoint(
        line.partition("=")[0] for line in ssh(sshd, "env").stdout.splitlines()
    )


def test_a_command_has_the_python_of_this_process(sshd: LocalSshd) -> None:
    name = "python{}.{}".format(*sys.version_info)

    assert ssh(sshd, f"{name} -V").stdout.split()[1] == sys.version.split()[0] or shutil.which(name)


@pytest.mark.parametrize("text", ["a'b", 'a"b', "a\\nb", "$HOME", "a  b", "#", "*", "é\n'x' \"$y\"", "x" * 100_000])
def test_the_shell_gets_the_text_as_it_was_sent(sshd: LocalSshd, text: str) -> None:
    quoted = "'" + text.replace("'", "'\\''") + "'"

    assert ssh(sshd, f"printf %s {quoted}").stdout == text


@pytest.mark.parametrize("protocol", ["-s", "-O"])
def test_scp_works_on_the_private_home(sshd: LocalSshd, tmp_path: Path, protocol: str) -> None:
    (tmp_path / "there").write_bytes(bytes(range(256)))

    assert scp(sshd, protocol, str(tmp_path / "there"), f"{sshd.host}:sent{protocol}").stderr == ""
    assert (sshd.home / f"sent{protocol}").read_bytes() == bytes(range(256))
    assert scp(sshd, protocol, f"{sshd.host}:sent{protocol}", str(tmp_path / "back")).stderr == ""
    assert (tmp_path / "back").read_bytes() == bytes(range(256))


@pytest.mark.parametrize(
    ("shell", "command", "expected"),
    [
        ("bash", "echo ${BASH_VERSION:+bash} a{b,c}", "bash ab ac"),
        ("dash", 'echo "$SHELL"; sleep 0', None),
        ("zsh", "echo ${ZSH_VERSION:+zsh} $SHELL[1]", "zsh /"),
        ("fish", "set x 1; echo $x (count a b)", "1 2"),
        ("tcsh", "set x = tcsh; echo $x $?version", "tcsh 1"),
        (("busybox", "sh"), "busybox true && echo $0", None),
    ],
)
def test_the_login_shell_can_be_chosen(
    make_sshd: MakeSshd, tmp_path: Path, shell: str | tuple[str, str], command: str, expected: str | None
) -> None:
    name = shell if isinstance(shell, str) else shell[0]
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} on this machine")
    server = make_sshd(shell=shell)
    expected = expected or (path if name == "dash" else str(server.directory / "sh"))

    ended = ssh(server, command)

    assert (ended.returncode, ended.stdout.splitlines()[:1], ended.stderr) == (0, [expected], "")
    (tmp_path / "file").write_text("x")
    assert scp(server, str(tmp_path / "file"), f"{server.host}:").stderr == ""
    assert (server.home / "file").read_text() == "x"


def test_without_a_command_the_login_shell_starts(make_sshd: MakeSshd) -> None:
    server = make_sshd(shell="bash")
    (server.home / ".profile").write_text("echo profile; exit 3\n")

    ended = ssh(server)

    assert (ended.returncode, ended.stdout) == (3, "profile\n")


def test_a_start_up_file_of_the_home_is_read_once(make_sshd: MakeSshd, tmp_path: Path) -> None:
    (tmp_path / ".zshenv").write_text("echo noise\n")
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh on this machine")

    assert ssh(make_sshd(home=tmp_path, shell="zsh"), "echo done").stdout.splitlines() == ["noise", "done"]


def test_the_users_own_home_is_used_when_asked_for(require_sshd: None) -> None:
    with LocalSshd(home=False) as server:
        assert ssh(server, "pwd").returncode == 0
        assert server.home == Path(f"~{server.user}").expanduser()
        assert "ForceCommand" not in (server.directory / "sshd_config").read_text()


def test_environment_and_options_reach_the_server(make_sshd: MakeSshd) -> None:
    server = make_sshd(
        environment={"GREETING": 'hello "big" \\world', "EMPTY": ""}, options={"maxsessions": "3", "Banner": "none"}
    )

    assert ssh(server, 'echo "$GREETING${EMPTY-unset}"').stdout == 'hello "big" \\world\n'
    assert "maxsessions 3" in (server.directory / "sshd_config").read_text()


def test_an_option_replaces_the_default_whatever_its_case(make_sshd: MakeSshd) -> None:
    config = (make_sshd(options={"maxstartups": "1:1:1"}).directory / "sshd_config").read_text()

    assert [line for line in config.splitlines() if "startups" in line.lower()] == ["maxstartups 1:1:1"]


def test_write_config_takes_a_path_as_text(tmp_path: Path) -> None:
    path = write_config(str(tmp_path / "config"), "Host a\n")
    assert path.read_text() == "Host a\n\n"


def test_one_configuration_leads_to_several_servers(make_sshd: MakeSshd, tmp_path: Path) -> None:
    one, two = make_sshd(name="one"), make_sshd(name="two")
    config = write_config(tmp_path / "config", one, two, extra="Host three\n    HostName 127.0.0.1\n")

    assert [ssh(server, "pwd", config=config).stdout.strip() for server in (one, two)] == [str(one.home), str(two.home)]
    assert one.connection_kwargs == {"config_file": str(one.config_file)}


# Life and death ------------------------------------------------------------------------------------------------------


def test_stopping_ends_all_that_its_sessions_started(make_sshd: MakeSshd) -> None:
    server = make_sshd()
    assert ssh(server, "setsid sleep 1000 >/dev/null 2>&1 </dev/null &").returncode == 0
    client = subprocess.Popen(("ssh", "-F", server.config_file, server.host, "sleep 1000"), stderr=subprocess.DEVNULL)
    assert descends(server, 4)
    directory, pids = server.directory, server.processes()

    server.stop()

    assert client.wait(10) == 255
    assert not any(is_alive(pid) for pid in pids)
    assert not directory.exists()
    assert server.processes() == ()
    server.stop()


def test_connections_can_be_ended_while_the_server_stays(make_sshd: MakeSshd) -> None:
    server = make_sshd()
    client = subprocess.Popen(("ssh", "-F", server.config_file, server.host, "sleep 1000"), stderr=subprocess.DEVNULL)
    assert descends(server, 3)
    assert _process_guard.wait_until(lambda: server.connections() == 1, timeout=10)

    server.kill_connections()

    assert client.wait(10) == 255
    assert server.processes() == (server.pid,)
    assert server.connections() == 0
    assert ssh(server, "true").returncode == 0


_OWNER = """
import sys, time
from lazycluster.testing import LocalSshd
sshd = LocalSshd()
sshd.start()
print(sshd.config_file, sshd.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_does_not_outlive_its_owner(require_sshd: None, number: signal.Signals) -> None:
    owner = subprocess.Popen((sys.executable, "-c", _OWNER), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    config, pid = owner.stdout.readline().split()
    client = subprocess.Popen(("ssh", "-F", config, "local", "echo up; sleep 1000"), stdout=-1, stderr=-3)
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"

    owner.send_signal(number)
    owner.communicate(timeout=10)

    assert _process_guard.wait_until(lambda: not is_alive(int(pid)) and not Path(config).parent.exists(), timeout=10)
    client.communicate(timeout=10)
    assert client.returncode == 255


def test_it_can_be_started_again(require_sshd: None) -> None:
    server = LocalSshd()
    for _ in range(2):
        server.start()
        assert ssh(server, "echo again").stdout == "again\n"
        with pytest.raises(LocalSshdError, match="running already"):
            server.start()
        server.stop()


def test_what_it_is_made_of_is_asked_for_too_early() -> None:
    for name in ("directory", "config_file", "pid", "log"):
        with pytest.raises(LocalSshdError, match=r"call start\(\) first"):
            getattr(LocalSshd(), name)


def test_a_configuration_that_sshd_refuses_is_told_with_its_log(require_sshd: None) -> None:
    server = LocalSshd(options={"MaxSessions": "many"})

    with pytest.raises(LocalSshdError, match=r"(?s)ended at once.*MaxSessions"):
        server.start()
    assert server.processes() == ()


def test_a_server_that_does_not_answer_is_told(require_sshd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_sshd, "_START_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(LocalSshd, "_is_answering", lambda _server: False)

    with pytest.raises(LocalSshdError, match=r"did not answer within 0\.1 s"):
        LocalSshd().start()


def test_a_port_that_was_taken_meanwhile_is_replaced(require_sshd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = find_free_port
    with Relay(target=1) as taken, LocalSshd() as taken_too:
        ports = iter([taken.port, taken_too.port])
        monkeypatch.setattr(local_sshd, "find_free_port", lambda: next(ports, 0) or choose())
        with LocalSshd() as server:
            assert server.port not in {taken.port, taken_too.port}
            assert ssh(server, "true").returncode == 0


def test_a_port_that_is_always_taken_is_an_error(require_sshd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with Relay(target=1) as taken:
        monkeypatch.setattr(local_sshd, "find_free_port", lambda: taken.port)
        with pytest.raises(LocalSshdError, match="already in use"):
            LocalSshd().start()


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocalSshdError, match="no shell nosuchshell"):
        LocalSshd(shell="nosuchshell").start()
    with pytest.raises(ChildProcessError, match=r"ssh-keygen ended with exit status \d+: .*nosuchfile"):
        _process_guard.run_checked(("ssh-keygen", "-l", "-f", "nosuchfile"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalSshdError, match="install openssh-client"):
        LocalSshd().start()
    monkeypatch.setattr(local_sshd, "_SSHD_SEARCH_DIRECTORIES", (str(tmp_path),))
    with pytest.raises(SshdNotFoundError, match="sshd not found: install openssh-server"):
        LocalSshd().start()


@pytest.mark.parametrize(
    ("shadow", "expected"),
    [("{user}:!$6$x:1:\n", True), ("{user}:*:1:\n", False), ("other:!:1:\n", False), (None, False)],
)
def test_a_locked_account_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shadow: str | None, expected: bool
) -> None:
    monkeypatch.setattr(local_sshd, "_SHADOW_FILE", tmp_path / "shadow")
    if shadow is not None:
        (tmp_path / "shadow").write_text(shadow.format(user=LocalSshd().user))

    assert local_sshd._is_account_locked() is expected


# The process table ---------------------------------------------------------------------------------------------------


def test_ps_and_proc_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(("sleep", "1000"))
    zombie = subprocess.Popen(("true",))
    try:
        assert _process_guard.wait_until(lambda: _process_guard.child_pids(os.getpid()) >= {child.pid}, timeout=10)
        assert _process_guard.wait_until(lambda: zombie.pid not in _process_guard.parent_by_pid(), timeout=10)
        monkeypatch.setattr(_process_guard, "_PROC_DIRECTORY", Path("/nowhere"))
        assert _process_guard.child_pids(os.getpid()) >= {child.pid}
        assert zombie.pid not in _process_guard.parent_by_pid()
    finally:
        _process_guard.kill_all(lambda: {child.pid, zombie.pid} & _process_guard.parent_by_pid().keys())
        child.wait()
        zombie.wait()
    assert child.returncode == -signal.SIGKILL


def test_waiting_for_what_never_comes_ends() -> None:
    assert _process_guard.wait_until(lambda: False, timeout=0.02) is False


# Through a relay -----------------------------------------------------------------------------------------------------


def test_ssh_through_a_relay_knows_the_host_key(sshd: LocalSshd, tmp_path: Path) -> None:
    with Relay(sshd.port) as relay:
        config = write_config(tmp_path / "config", sshd.config(name="local", port=relay.port))

        ended = ssh(sshd, "echo through", config=config)

    assert (ended.stdout, ended.stderr) == ("through\n", "")


def test_a_cut_cable_is_noticed_by_ssh(sshd: LocalSshd, tmp_path: Path) -> None:
    with Relay(sshd.port) as relay:
        config = write_config(tmp_path / "config", sshd.config(port=relay.port))
        alive = ("-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1")
        argv = ("ssh", "-F", str(config), *alive, sshd.host, "echo up; sleep 1000")
        client = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        relay.cut()

        _, stderr = client.communicate(timeout=20)

    assert client.returncode == 255
    assert b"not responding" in stderr
