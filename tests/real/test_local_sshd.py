"""The private sshd, used through the plain `ssh` and `scp` of this machine."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster.testing import LocalSshd, LocalSshdError, Relay, SshdNotFoundError, local_sshd, write_config
from tests.processes import is_alive
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd

Ended = subprocess.CompletedProcess[str]


def ssh(server: LocalSshd, *command: str, options: tuple[str, ...] = (), config: Path | None = None) -> Ended:
    argv = ("ssh", "-F", str(config or server.config_file), "-o", "BatchMode=yes", *options, server.host, *command)
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


def scp(server: LocalSshd, *arguments: str) -> Ended:
    argv = ("scp", "-q", "-F", str(server.config_file), "-o", "BatchMode=yes", *arguments)
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


def wait_for_processes(server: LocalSshd, count: int) -> None:
    assert_eventually(lambda: len(server.processes()) >= count, f"the server has {count} processes", timeout=30)


# Commands and files --------------------------------------------------------------------------------------------------


def test_local_sshd_runs_commands_in_private_home(sshd: LocalSshd) -> None:
    ended = ssh(sshd, 'echo "$HOME"; pwd; id -un; exit 7')

    assert (ended.returncode, ended.stderr) == (7, "")
    assert ended.stdout.splitlines() == [str(sshd.home), str(sshd.home), sshd.user]
    assert sshd.home == sshd.directory / "home"


def test_local_sshd_hides_its_launcher_from_commands(sshd: LocalSshd) -> None:
    assert {"SSH_ORIGINAL_COMMAND", "OLDPWD"}.isdisjoint(
        line.partition("=")[0] for line in ssh(sshd, "env").stdout.splitlines()
    )


def test_local_sshd_has_python_of_this_process(sshd: LocalSshd) -> None:
    name = "python{}.{}".format(*sys.version_info)

    assert ssh(sshd, f"{name} -V").stdout.split()[1] == sys.version.split()[0] or shutil.which(name)


@pytest.mark.parametrize(
    "text",
    ["a'b", 'a"b', "a\\nb", "$HOME", "a  b", "#", "*", "é\n'x' \"$y\"", "x" * 100_000],
    ids=["single quote", "double quote", "backslash", "variable", "spaces", "hash", "star", "lines", "long"],
)
def test_local_sshd_passes_command_text_unchanged(sshd: LocalSshd, text: str) -> None:
    quoted = "'" + text.replace("'", "'\\''") + "'"

    assert ssh(sshd, f"printf %s {quoted}").stdout == text


@pytest.mark.parametrize("protocol", ["-s", "-O"], ids=["sftp", "scp"])
def test_local_sshd_scp_copies_to_and_from_home(sshd: LocalSshd, tmp_path: Path, protocol: str) -> None:
    (tmp_path / "sent").write_bytes(bytes(range(256)))

    assert scp(sshd, protocol, str(tmp_path / "sent"), f"{sshd.host}:sent{protocol}").stderr == ""
    assert (sshd.home / f"sent{protocol}").read_bytes() == bytes(range(256))
    assert scp(sshd, protocol, f"{sshd.host}:sent{protocol}", str(tmp_path / "fetched")).stderr == ""
    assert (tmp_path / "fetched").read_bytes() == bytes(range(256))


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
def test_local_sshd_shell_is_the_login_shell(
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


def test_local_sshd_without_command_starts_login_shell(make_sshd: MakeSshd) -> None:
    server = make_sshd(shell="bash")
    (server.home / ".profile").write_text("echo profile; exit 3\n")

    ended = ssh(server)

    assert (ended.returncode, ended.stdout) == (3, "profile\n")


def test_local_sshd_reads_start_up_file_once(make_sshd: MakeSshd, tmp_path: Path) -> None:
    (tmp_path / ".zshenv").write_text("echo noise\n")
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh on this machine")

    assert ssh(make_sshd(home=tmp_path, shell="zsh"), "echo done").stdout.splitlines() == ["noise", "done"]


def test_local_sshd_home_false_uses_home_of_user(require_sshd: None) -> None:
    with LocalSshd(home=False) as server:
        assert ssh(server, "pwd").returncode == 0
        assert server.home == Path(f"~{server.user}").expanduser()
        assert "ForceCommand" not in (server.directory / "sshd_config").read_text()


def test_local_sshd_environment_and_options_take_effect(make_sshd: MakeSshd) -> None:
    server = make_sshd(
        environment={"GREETING": 'hello "big" \\world', "EMPTY": ""}, options={"maxsessions": "3", "Banner": "none"}
    )

    assert ssh(server, 'echo "$GREETING${EMPTY-unset}"').stdout == 'hello "big" \\world\n'
    assert "maxsessions 3" in (server.directory / "sshd_config").read_text()


def test_local_sshd_option_replaces_default_in_any_case(make_sshd: MakeSshd) -> None:
    config = (make_sshd(options={"maxstartups": "1:1:1"}).directory / "sshd_config").read_text()

    assert [line for line in config.splitlines() if "startups" in line.lower()] == ["maxstartups 1:1:1"]


def test_write_config_accepts_path_as_text(tmp_path: Path) -> None:
    path = write_config(str(tmp_path / "config"), "Host a\n")
    assert path.read_text() == "Host a\n\n"


def test_write_config_of_several_servers(make_sshd: MakeSshd, tmp_path: Path) -> None:
    one, two = make_sshd(name="one"), make_sshd(name="two")
    config = write_config(tmp_path / "config", one, two, extra="Host three\n    HostName 127.0.0.1\n")

    assert [ssh(server, "pwd", config=config).stdout.strip() for server in (one, two)] == [str(one.home), str(two.home)]
    assert one.connection_kwargs == {"config_file": str(one.config_file)}


# Start and stop ------------------------------------------------------------------------------------------------------


def test_local_sshd_stop_ends_processes_of_sessions(make_sshd: MakeSshd) -> None:
    server = make_sshd()
    assert ssh(server, "setsid sleep 1000 >/dev/null 2>&1 </dev/null &").returncode == 0
    client = subprocess.Popen(("ssh", "-F", server.config_file, server.host, "sleep 1000"), stderr=subprocess.DEVNULL)
    wait_for_processes(server, 4)
    directory, pids = server.directory, server.processes()

    server.stop()

    assert client.wait(30) == 255
    assert not any(is_alive(pid) for pid in pids)
    assert not directory.exists()
    assert server.processes() == ()
    server.stop()


def test_local_sshd_kill_connections_keeps_server(make_sshd: MakeSshd) -> None:
    server = make_sshd()
    client = subprocess.Popen(("ssh", "-F", server.config_file, server.host, "sleep 1000"), stderr=subprocess.DEVNULL)
    wait_for_processes(server, 3)
    assert_eventually(lambda: server.connections() == 1, "one connection is open", timeout=30)

    server.kill_connections()

    assert client.wait(30) == 255
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
def test_local_sshd_ends_with_its_owner(require_sshd: None, number: signal.Signals) -> None:
    owner = subprocess.Popen((sys.executable, "-c", _OWNER), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    config, pid = owner.stdout.readline().split()
    client = subprocess.Popen(("ssh", "-F", config, "local", "echo up; sleep 1000"), stdout=-1, stderr=-3)
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"

    owner.send_signal(number)
    owner.communicate(timeout=30)

    assert_eventually(
        lambda: not is_alive(int(pid)) and not Path(config).parent.exists(), "the server and its directory are gone"
    )
    client.communicate(timeout=30)
    assert client.returncode == 255


def test_local_sshd_may_be_started_again(require_sshd: None) -> None:
    server = LocalSshd()
    for _ in range(2):
        server.start()
        assert ssh(server, "echo again").stdout == "again\n"
        with pytest.raises(LocalSshdError) as caught:
            server.start()
        assert caught.value.reason == "it is running already"
        server.stop()


def test_local_sshd_attributes_before_start_are_an_error() -> None:
    for name in ("directory", "config_file", "pid", "log"):
        with pytest.raises(LocalSshdError) as caught:
            getattr(LocalSshd(), name)
        assert caught.value.reason == "it is not running; call start() first"


def test_local_sshd_refused_option_raises_error_with_log(require_sshd: None) -> None:
    server = LocalSshd(options={"MaxSessions": "many"})

    with pytest.raises(LocalSshdError) as caught:
        server.start()
    assert caught.value.reason == "it ended at once"
    assert "MaxSessions" in caught.value.log
    assert str(caught.value) == f"cannot start a private sshd: it ended at once\n{caught.value.log}"
    assert server.processes() == ()


def test_local_sshd_start_timeout_is_an_error(require_sshd: None) -> None:
    server = LocalSshd(options={"ListenAddress": f"127.0.0.1:{reserve_free_port()}"})

    with pytest.raises(LocalSshdError) as caught:
        server.start(timeout=0.5)
    assert caught.value.reason == "it did not answer within 0.5 s"
    assert server.processes() == ()


def test_local_sshd_port_taken_before_start_is_replaced(require_sshd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with Relay(target=1) as taken, LocalSshd() as taken_too:
        ports = iter([taken.port, taken_too.port])
        monkeypatch.setattr(local_sshd, "find_free_port", lambda: next(ports, 0) or reserve_free_port())
        with LocalSshd() as server:
            assert server.port not in {taken.port, taken_too.port}
            assert ssh(server, "true").returncode == 0


def test_local_sshd_port_always_taken_is_an_error(require_sshd: None) -> None:
    with Relay(target=1) as taken, pytest.raises(LocalSshdError) as caught:
        LocalSshd(options={"Port": str(taken.port)}).start()
    assert "already in use" in caught.value.log


def test_local_sshd_missing_programs_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocalSshdError) as caught:
        LocalSshd(shell="nosuchshell").start()
    assert caught.value.reason == "there is no shell nosuchshell on this machine"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalSshdError) as caught:
        LocalSshd().start()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert "install openssh-client" in caught.value.reason
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(SshdNotFoundError) as missing:
        LocalSshd().start()
    assert str(missing.value) == "sshd not found: install openssh-server"


# Through a relay -----------------------------------------------------------------------------------------------------


def test_local_sshd_through_relay_has_known_host_key(sshd: LocalSshd, tmp_path: Path) -> None:
    with Relay(sshd.port) as relay:
        config = write_config(tmp_path / "config", sshd.config(name="local", port=relay.port))

        ended = ssh(sshd, "echo through", config=config)

    assert (ended.stdout, ended.stderr) == ("through\n", "")


def test_local_sshd_relay_cut_ends_ssh_by_server_alive(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd()  # ssh by itself leaves its command running there
    with Relay(server.port) as relay:
        config = write_config(tmp_path / "config", server.config(port=relay.port))
        options = ("-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1")
        argv = ("ssh", "-F", str(config), *options, server.host, "echo up; sleep 1000")
        client = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        relay.cut()

        _, stderr = client.communicate(timeout=60)

    assert client.returncode == 255
    assert b"not responding" in stderr
