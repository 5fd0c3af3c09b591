"""`lazycluster doctor` and `info` with real hosts, each misconfigured in one way; nothing of it remains there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from lazycluster.testing import LocalSshd, Relay, write_config
from tests.client_programs import assert_becomes_idle
from tests.command_line import main
from tests.observation import options_without_python, skip_or_fail
from tests.processes import command_line, find_local_pids
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd

ALL = [
    "configuration",
    "name",
    "port",
    "host key",
    "authentication",
    "sessions",
    "login shell",
    "temporary directory",
    "python3",
    "supervisor",
    "round trip",
    "files",
    "ports from the host",
    "ports to the host",
    "clock",
]


@attrs.frozen
class Finding:
    """One record of `lazycluster doctor --json`."""

    check: str
    verdict: str
    found: str
    advice: str


def examine(host: str, config_file: Path, *, connect_timeout: float = 10.0) -> dict[str, Finding]:
    """Examine a host and return the findings by check."""
    arguments = ["doctor", host, "--config", str(config_file), "--connect-timeout", str(connect_timeout), "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exit_status = main(arguments)
    findings = [Finding(**record) for record in json.loads(output.getvalue())["findings"]]
    assert len({finding.check for finding in findings}) == len(findings)
    for finding in findings:
        assert bool(finding.advice) is (finding.verdict in {"warning", "failed"}), finding
    assert exit_status == any(finding.verdict == "failed" for finding in findings)
    return {finding.check: finding for finding in findings}


def examine_server(server: LocalSshd) -> dict[str, Finding]:
    """Examine a server, and assert that nothing of the examination remains on it."""
    found = examine(server.host, server.config_file)
    assert_becomes_idle(server)
    return found


def checks_with(verdict: str, found: Mapping[str, Finding]) -> list[str]:
    return [finding.check for finding in found.values() if finding.verdict == verdict]


def problems(found: Mapping[str, Finding]) -> dict[str, str]:
    """Return the verdicts of the checks that warn or fail."""
    return {check: finding.verdict for check, finding in found.items() if finding.verdict in {"warning", "failed"}}


def assert_ends_at(found: Mapping[str, Finding], check: str) -> Finding:
    """Assert that a check failed, and that all later ones were skipped because of it; return its finding."""
    assert problems(found) == {check: "failed"}
    later = list(found)[list(found).index(check) + 1 :]
    assert checks_with("skipped", found)[-len(later) :] == later
    assert all(found[each].found.endswith(f": {check}") for each in later)
    return found[check]


def write_changed_config(server: LocalSshd, directory: Path, **changes: str) -> Path:
    """Return a copy of the client's configuration with some values of its section replaced."""
    text = server.config()
    for keyword, value in changes.items():
        text = re.sub(rf"(?m)^(\s+{keyword}) .*$", lambda match, value=value: f"{match[1]} {value}", text)  # type: ignore[misc]
    return write_config(directory / "changed", text)


# A healthy host ------------------------------------------------------------------------------------------------------


def test_doctor_healthy_host_finds_no_problem(sshd: LocalSshd) -> None:
    found = examine_server(sshd)

    assert problems(found) == {}
    assert list(found) == ALL
    assert checks_with("skipped", found) == []
    assert "OpenSSH" in found["port"].found
    assert "ssh-ed25519 SHA256:" in found["host key"].found
    assert str(sshd.identity_file) in found["authentication"].found
    assert found["sessions"].found == "10 at once on a connection"


@pytest.mark.parametrize("shell", ["fish", "tcsh", "zsh"])
def test_doctor_other_login_shell_finds_no_problem(make_sshd: MakeSshd, shell: str) -> None:
    if shutil.which(shell) is None:
        skip_or_fail(f"there is no {shell} on this machine")
    before = set(Path("/").iterdir())
    found = examine_server(make_sshd(shell=shell))

    assert set(Path("/").iterdir()) <= before, "fish of root creates a missing home directory"
    assert problems(found) == {}
    assert f"/{shell}; no Bourne shell, so commands run in /bin/sh" in found["login shell"].found


def test_doctor_proxy_jump_finds_no_problem(sshd: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    config = write_config(tmp_path / "config", jump, sshd.config(name="far") + "    ProxyJump jump\n")
    found = examine("far", config)
    assert_becomes_idle(sshd)
    assert_becomes_idle(jump)

    assert problems(found) == {}
    assert found["jump host"].verdict == "ok"
    assert found["name"].verdict == "skipped"
    assert found["name"].found == "127.0.0.1 is looked up by the jump host jump, not here"
    assert "OpenSSH" in found["port"].found


# Hosts that cannot be reached ----------------------------------------------------------------------------------------


def test_doctor_unknown_name_fails_at_name(tmp_path: Path) -> None:
    finding = assert_ends_at(examine("nowhere.invalid", write_config(tmp_path / "config")), "name")

    assert "nowhere.invalid" in finding.found
    assert "Check the spelling" in finding.advice


def test_doctor_refused_port_fails_at_port(sshd: LocalSshd, tmp_path: Path) -> None:
    port = reserve_free_port()
    finding = assert_ends_at(examine(sshd.host, write_changed_config(sshd, tmp_path, Port=str(port))), "port")

    assert "Connection refused" in finding.found
    assert "sshd runs there" in finding.advice


def test_doctor_silent_port_fails_at_port(sshd: LocalSshd, tmp_path: Path) -> None:
    with Relay(sshd.port) as relay:
        relay.cut()
        config = write_config(tmp_path / "config", sshd.config(port=relay.port))
        found = examine(sshd.host, config, connect_timeout=1.5)

    assert "no answer in time" in assert_ends_at(found, "port").found


def test_doctor_dead_jump_host_fails_at_jump_host(sshd: LocalSshd, tmp_path: Path) -> None:
    port = reserve_free_port()
    down = sshd.config(name="jump", port=port)
    config = write_config(tmp_path / "config", down, sshd.config(name="far") + "    ProxyJump jump\n")
    finding = assert_ends_at(examine("far", config), "jump host")

    assert "Connection refused" in finding.found
    assert finding.advice == "Examine it by itself first: `lazycluster doctor jump`."


@pytest.mark.parametrize(
    ("keyword", "value", "check", "words"),
    [("HostName", "nowhere.invalid", "name", "seen from the jump host"), ("Port", "1", "port", "Connection refused")],
)
def test_doctor_unreachable_from_jump_host_fails(
    sshd: LocalSshd, make_sshd: MakeSshd, tmp_path: Path, keyword: str, value: str, check: str, words: str
) -> None:
    jump = make_sshd(name="jump")
    text = re.sub(rf"(?m)^(\s+{keyword}) .*$", rf"\1 {value}", sshd.config(name="far")) + "    ProxyJump jump\n"
    found = examine("far", write_config(tmp_path / "config", jump, text))

    assert found["jump host"].verdict == "ok"
    assert words in assert_ends_at(found, check).found
    assert_becomes_idle(jump)


def test_doctor_unknown_host_key_fails_at_host_key(sshd: LocalSshd, tmp_path: Path) -> None:
    config = write_changed_config(sshd, tmp_path, UserKnownHostsFile=str(tmp_path / "known_hosts"))
    finding = assert_ends_at(examine(sshd.host, config), "host key")

    assert "not known" in finding.found
    assert "it shows ssh-ed25519 SHA256:" in finding.found
    assert f"`ssh -F {config} {sshd.host} true`" in finding.advice


@pytest.mark.parametrize("mark", ["", "@revoked "], ids=["changed", "revoked"])
def test_doctor_untrusted_host_key_fails_at_host_key(sshd: LocalSshd, tmp_path: Path, mark: str) -> None:
    known = sshd.known_hosts.read_text()
    if not mark:
        subprocess.run(
            ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")), check=True, timeout=30
        )
        known = f"{known.split()[0]} {(tmp_path / 'other.pub').read_text()}"
    (tmp_path / "known_hosts").write_text(mark + known)
    finding = assert_ends_at(
        examine(sshd.host, write_changed_config(sshd, tmp_path, UserKnownHostsFile=str(tmp_path / "known_hosts"))),
        "host key",
    )

    assert ("revoked" if mark else f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'") in finding.advice


def make_key(path: Path, *, passphrase: str = "", mode: int = 0o600) -> Path:
    argv = ("ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "a test", "-f", str(path))
    subprocess.run(argv, check=True, timeout=30)
    path.chmod(mode)
    return path


@contextlib.contextmanager
def without_agent() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        yield


def test_doctor_unknown_key_advises_ssh_copy_id(sshd: LocalSshd, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    config = write_changed_config(sshd, tmp_path, IdentityFile=str(key))
    with without_agent():
        finding = assert_ends_at(examine(sshd.host, config), "authentication")

    assert f"keys offered: {key} ED25519" in finding.found
    assert "no agent" in finding.found
    assert f"`ssh-copy-id -F {config} {sshd.host}`" in finding.advice


def test_doctor_key_with_passphrase_advises_ssh_add(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd()
    key = make_key(tmp_path / "key", passphrase="correct horse")
    shutil.copyfile(f"{key}.pub", server.directory / "authorized_keys")
    with without_agent():
        found = examine(server.host, write_changed_config(server, tmp_path, IdentityFile=str(key)))
    finding = assert_ends_at(found, "authentication")

    assert f'{key} has a passphrase and is not in an agent: `eval "$(ssh-agent)"; ssh-add {key}`' in finding.advice


def test_doctor_key_readable_by_others_advises_chmod(sshd: LocalSshd, tmp_path: Path) -> None:
    key = tmp_path / "key"
    shutil.copyfile(sshd.identity_file, key)
    key.chmod(0o644)
    with without_agent():
        found = examine(sshd.host, write_changed_config(sshd, tmp_path, IdentityFile=str(key)))
    finding = assert_ends_at(found, "authentication")

    assert f"`chmod 600 {key}`" in finding.advice


def test_doctor_bad_option_fails_at_configuration(sshd: LocalSshd, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config", sshd, extra="Nonsense yes\n")
    finding = assert_ends_at(examine(sshd.host, config), "configuration")

    assert "Bad configuration option: nonsense" in finding.found


# Hosts that work badly -----------------------------------------------------------------------------------------------


def test_doctor_no_forwarding_fails_at_ports(make_sshd: MakeSshd) -> None:
    found = examine_server(make_sshd(options={"AllowTcpForwarding": "no"}))

    assert problems(found) == {"ports from the host": "failed", "ports to the host": "failed"}
    assert "administratively prohibited" in found["ports from the host"].found
    assert "AllowTcpForwarding, PermitOpen" in found["ports from the host"].advice
    assert "AllowTcpForwarding, PermitListen" in found["ports to the host"].advice


def test_doctor_remote_forwarding_only_fails_at_one_check(make_sshd: MakeSshd) -> None:
    found = examine_server(make_sshd(options={"AllowTcpForwarding": "remote"}))

    assert problems(found) == {"ports from the host": "failed"}
    assert found["ports to the host"].found == "-R: 32 KiB there and back"  # a Python there has sent it


def test_doctor_max_sessions_1_warns(make_sshd: MakeSshd) -> None:
    found = examine_server(make_sshd(options={"MaxSessions": "1"}))

    assert problems(found) == {"sessions": "warning"}
    assert "MaxSessions" in found["sessions"].advice


def test_doctor_max_sessions_0_fails_at_sessions(make_sshd: MakeSshd) -> None:
    found = examine_server(make_sshd(options={"MaxSessions": "0"}))

    assert problems(found) == {"sessions": "failed"}
    assert found["ports from the host"].verdict == "ok"
    assert found["login shell"].verdict == "skipped"


def test_doctor_max_sessions_50_counts_to_12(make_sshd: MakeSshd) -> None:
    found = examine_server(make_sshd(options={"MaxSessions": "50"}))

    assert found["sessions"].found == "12 or more at once on a connection"


def test_doctor_no_sftp_subsystem_warns(make_sshd: MakeSshd) -> None:
    found = examine_server(make_sshd(options={"Subsystem": "other /bin/true"}))

    assert problems(found) == {"files": "warning"}
    assert "scp (the sftp subsystem) fails" in found["files"].found
    assert "scp -O (scp on the host) works; tar (tar on the host) works" in found["files"].found
    assert "Subsystem sftp internal-sftp" in found["files"].advice


@pytest.mark.parametrize(("program", "route"), [("scp", "scp -O"), ("tar", "tar")])
def test_doctor_missing_program_is_named(make_sshd: MakeSshd, tmp_path: Path, program: str, route: str) -> None:
    options = options_without_python(tmp_path, {"python3": Path(sys.executable).resolve()})
    (tmp_path / "bin" / program).unlink()
    found = examine_server(make_sshd(options=options))

    assert problems(found)["files"] == ("warning" if program == "scp" else "failed")
    assert f"{route} ({program} on the host) fails: " in found["files"].found
    assert f"Install {program} there" in found["files"].advice


def test_doctor_noisy_slow_start_up_files_warn(make_sshd: MakeSshd) -> None:
    if shutil.which("bash") is None:
        skip_or_fail("there is no bash on this machine")
    server = make_sshd(shell="bash")
    (server.home / ".bashrc").write_text("printf 'welcome \\033[31mback\\n'\nsleep 0.6\n")
    found = examine_server(server)
    if "welcome" not in found["login shell"].found:
        skip_or_fail("this bash reads no start-up file when sshd starts it")

    assert problems(found) == {"login shell": "warning", "files": "failed"}
    assert r"print 'welcome \x1b[31mback'" in found["login shell"].found
    milliseconds = re.search(r"start-up files take (\d+) ms", found["login shell"].found)
    assert milliseconds is not None
    assert int(milliseconds[1]) >= 300
    assert "let ~/.bashrc begin with `case $- in *i*) ;; *) return ;; esac`" in found["login shell"].advice
    assert "start-up files" in found["files"].advice


def test_doctor_nologin_shell_fails_at_login_shell(make_sshd: MakeSshd, tmp_path: Path) -> None:
    shell = tmp_path / "nologin"
    shell.write_text("#!/bin/sh\necho This account is closed.\nexit 1\n")
    shell.chmod(0o755)
    found = examine_server(make_sshd(shell=str(shell)))

    assert problems(found) == {"login shell": "failed"}
    assert "exit status 1 before our command began: 'This account is closed.'" in found["login shell"].found
    assert checks_with("skipped", found) == ["temporary directory", "python3", "supervisor", "files", "clock"]


def test_doctor_hanging_shell_fails_at_login_shell(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"ForceCommand": "exec sleep 600"})
    found = examine(server.host, server.config_file, connect_timeout=4)

    assert problems(found) == {"login shell": "failed"}
    assert "`true` did not end within 4 s" in found["login shell"].found
    assert len(server.log.split("Starting session: ")) == 2  # one, and no more sessions that hang
    assert_eventually(lambda: server.connections() <= 1, "the connections are closed")


def test_doctor_python_outside_path_is_named(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd(options=options_without_python(tmp_path, {}))
    conda = tmp_path / "bare-home" / "miniconda3" / "bin"
    conda.mkdir(parents=True)
    (conda / "python3").symlink_to(Path(sys.executable).resolve())
    found = examine_server(server)

    assert problems(found)["python3"] == "failed"
    assert "no python3 on the PATH of a session; found " in found["python3"].found
    assert f"{sys.version.split()[0]} ({conda}/python3)" in found["python3"].found
    assert "Name it: Runtime(..., python='" in found["python3"].advice
    assert found["supervisor"].verdict == "skipped"
    assert found["round trip"].verdict == "ok"
    assert found["ports to the host"].verdict == "ok"


def test_doctor_other_python_version_warns(make_sshd: MakeSshd, tmp_path: Path) -> None:
    fake = "#!/bin/sh\necho cpython 3.7.1\n"
    found = examine_server(make_sshd(options=options_without_python(tmp_path, {"python3": fake})))

    assert found["python3"].verdict == "warning"
    assert "3.7.1" in found["python3"].found


def test_doctor_unwritable_temp_dir_fails(make_sshd: MakeSshd) -> None:
    found = examine_server(make_sshd(environment={"TMPDIR": "/proc"}))

    assert problems(found) == {"temporary directory": "failed"}
    assert found["temporary directory"].found.startswith("/proc: ")
    assert found["files"].verdict == "skipped"


def test_doctor_port_in_use_on_host_tries_another(sshd: LocalSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client's own end of a connection also takes a port on which no server listens."""
    with socket.socket() as bound, socket.socket(socket.AF_INET6) as bound_ipv6:
        bound.bind(("127.0.0.1", 0))
        bound_ipv6.bind(("::1", bound.getsockname()[1]))
        ports = iter([bound.getsockname()[1], bound.getsockname()[1], reserve_free_port()])
        monkeypatch.setattr(secrets, "choice", lambda _ports: next(ports))
        found = examine_server(sshd)

    assert found["ports to the host"].verdict == "ok"
    assert list(ports) == []


def test_doctor_slow_connection_warns_at_round_trip(sshd: LocalSshd, tmp_path: Path) -> None:
    with Relay(sshd.port, delay=0.055) as relay:
        found = examine(sshd.host, write_config(tmp_path / "config", sshd.config(port=relay.port)))

    assert problems(found) == {"round trip": "warning"}
    assert "start-up files take" in found["login shell"].found
    assert_becomes_idle(sshd)


# The command line ----------------------------------------------------------------------------------------------------


def run_lazycluster(*words: str) -> subprocess.CompletedProcess[str]:
    argv = (sys.executable, "-m", "lazycluster", *words)
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)


def test_doctor_in_a_pipe_prints_plain_lines(sshd: LocalSshd) -> None:
    ended = run_lazycluster("doctor", sshd.host, "--config", str(sshd.config_file))

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    assert [line[9:29].strip() for line in ended.stdout.splitlines()] == ALL
    assert_becomes_idle(sshd)


def test_doctor_unknown_host_prints_advice_and_exits_1(tmp_path: Path) -> None:
    ended = run_lazycluster("doctor", "nowhere.invalid", "--config", str(write_config(tmp_path / "config")))

    assert (ended.returncode, ended.stderr) == (1, "")
    lines = ended.stdout.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("failed   name                unknown host name (")
    assert lines[2].startswith("         Check the spelling")
    assert lines[3].startswith("skipped  port, host key, authentication, ")


def test_doctor_json_lists_every_check(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxSessions": "0"})
    ended = run_lazycluster("doctor", server.host, "--config", str(server.config_file), "--json")

    report = json.loads(ended.stdout)
    assert ended.returncode == 1
    assert (report["host"], report["well"]) == (server.host, False)
    assert [each["check"] for each in report["findings"]] == ALL
    assert report["findings"][5]["verdict"] == "failed"
    assert "MaxSessions" in report["findings"][5]["advice"]


@pytest.mark.parametrize("command", ["doctor", "info"])
def test_doctor_and_info_wrong_arguments_exit_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["a b"], ["host", "--connect-timeout", "0"], ["host", "--config", "/no/such/file"]):
        assert main([command, *words]) == 2, words
        assert capsys.readouterr().out == ""
    assert main([command, "--help"]) == 0
    assert "Examples:" in capsys.readouterr().out


def test_doctor_on_a_terminal_prints_coloured_marks(sshd: LocalSshd) -> None:
    argv = (sys.executable, "-m", "lazycluster", "doctor", sshd.host, "--config", str(sshd.config_file))
    own_end, other_end = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "LC_ALL": "C.UTF-8"}
    with subprocess.Popen(argv, stdin=other_end, stdout=other_end, stderr=other_end, env=environment) as process:
        os.close(other_end)
        shown = b""
        with contextlib.suppress(OSError):  # Linux reports so that no process has the terminal open any more
            while data := os.read(own_end, 1 << 16):
                shown += data
        assert process.wait(60) == 0
    os.close(own_end)

    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "\x1b[32m" in shown.decode()
    for check in ALL:
        assert re.search(rf"✓\s+{check}\s", text), check


def test_doctor_ctrl_c_leaves_nothing(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"ForceCommand": 'sleep 0.5; eval "$SSH_ORIGINAL_COMMAND"'})
    argv = (sys.executable, "-m", "lazycluster", "doctor", server.host, "--config", str(server.config_file))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("ok       supervisor"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)

    assert process.returncode == 130, (stdout, stderr)
    assert "Traceback" not in stderr
    assert_becomes_idle(server)


def test_doctor_ctrl_c_ends_unanswered_log_in(sshd: LocalSshd, tmp_path: Path) -> None:
    with Relay(sshd.port) as relay:
        relay.cut()
        config = write_config(tmp_path / "config", sshd.config(port=relay.port))
        argv = (sys.executable, "-m", "lazycluster", "doctor", sshd.host, "--config", str(config))
        with subprocess.Popen(
            (*argv, "--connect-timeout", "60"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert_eventually(
                lambda: any("LogLevel=DEBUG1" in command_line(pid) for pid in find_local_pids(str(config))),
                "ssh connects",
                20,
            )
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=30)

        assert process.returncode == 130
        assert b"Traceback" not in stderr
        assert find_local_pids(str(config)) == []


def test_info_prints_text_and_json(sshd: LocalSshd) -> None:
    words = ("info", sshd.host, "--config", str(sshd.config_file))
    ended, ended_with_json = run_lazycluster(*words), run_lazycluster(*words, "--json")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"Runtime {sshd.host}\n")
    facts = json.loads(ended_with_json.stdout)
    assert facts["memory"] > 0
    assert facts["gpus"] is not None
    assert_becomes_idle(sshd)


def test_info_unknown_host_names_doctor_command(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config")
    ended = run_lazycluster("info", "nowhere.invalid", "--config", str(config))

    assert ended.returncode == 1
    assert f"lazycluster doctor nowhere.invalid --config {config}\n" in ended.stderr
    assert "Traceback" not in ended.stderr
