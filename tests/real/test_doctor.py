"""The examination of real hosts, each of them configured badly in one way; nothing of it stays behind."""

from __future__ import annotations

import contextlib
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
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster._cli import main
from lazycluster._doctor import Finding, Verdict, examine
from lazycluster.testing import LocalSshd, Relay, write_config
from tests.client_programs import assert_becomes_idle
from tests.observation import options_without_python, skip_or_fail
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
REACHING = ALL[:5]


def examined(host: str, config_file: Path, *, connect_timeout: float = 10.0) -> dict[str, Finding]:
    findings = list(examine(host, config_file=config_file, connect_timeout=connect_timeout))
    assert len({finding.check for finding in findings}) == len(findings)
    for finding in findings:
        assert bool(finding.advice) is (finding.verdict in {Verdict.WARNING, Verdict.FAILED}), finding
    return {finding.check: finding for finding in findings}


def at(server: LocalSshd) -> dict[str, Finding]:
    """Examine a server, and see that it is left as it was."""
    found = examined(server.host, server.config_file)
    assert_becomes_idle(server)
    return found


def verdicts(found: Mapping[str, Finding], verdict: Verdict) -> list[str]:
    return [finding.check for finding in found.values() if finding.verdict is verdict]


def wrong(found: Mapping[str, Finding]) -> dict[str, str]:
    """Return what did not go well, but for what was skipped."""
    return {
        check: finding.verdict.value
        for check, finding in found.items()
        if finding.verdict in {Verdict.WARNING, Verdict.FAILED}
    }


def assert_ends_at(found: Mapping[str, Finding], check: str) -> Finding:
    """See that a check failed, and that all those behind it were skipped because of it."""
    assert wrong(found) == {check: "failed"}
    behind = list(found)[list(found).index(check) + 1 :]
    assert verdicts(found, Verdict.SKIPPED)[-len(behind) :] == behind
    assert all(found[each].found.endswith(f": {check}") for each in behind)
    return found[check]


def rewritten(server: LocalSshd, directory: Path, **changes: str) -> Path:
    """Return a copy of the client's configuration with some values of its section replaced."""
    text = server.config()
    for keyword, value in changes.items():
        text = re.sub(rf"(?m)^(\s+{keyword}) .*$", lambda match, value=value: f"{match[1]} {value}", text)  # type: ignore[misc]
    return write_config(directory / "changed", text)


def processes_with(word: str) -> list[str]:
    """Return the command lines in which a word occurs."""
    listed = subprocess.run(
        ("ps", "-A", "-ww", "-o", "command="), capture_output=True, text=True, check=True, timeout=30
    )
    return [line for line in listed.stdout.splitlines() if word in line]


# A host that is well -------------------------------------------------------------------------------------------------


def test_a_host_that_is_well(sshd: LocalSshd) -> None:
    found = at(sshd)

    assert wrong(found) == {}
    assert list(found) == ALL
    assert verdicts(found, Verdict.SKIPPED) == []
    assert "OpenSSH" in found["port"].found
    assert "ssh-ed25519 SHA256:" in found["host key"].found
    assert str(sshd.identity_file) in found["authentication"].found
    assert found["sessions"].found == "10 at once on a connection"


def test_findings_come_one_by_one_and_an_examination_may_end_early(sshd: LocalSshd) -> None:
    findings = examine(sshd.host, config_file=sshd.config_file)
    assert next(findings).check == "configuration"
    while next(findings).check != "supervisor":
        pass
    assert sshd.connections() == 1

    findings.close()

    assert_becomes_idle(sshd)


@pytest.mark.parametrize("shell", ["fish", "tcsh", "zsh"])
def test_other_login_shells(make_sshd: MakeSshd, shell: str) -> None:
    if shutil.which(shell) is None:
        skip_or_fail(f"there is no {shell} on this machine")
    found = at(make_sshd(shell=shell))

    assert wrong(found) == {}
    assert f"/{shell}; no Bourne shell, so commands run in /bin/sh" in found["login shell"].found


def test_behind_a_jump_host(sshd: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    config = write_config(tmp_path / "config", jump, sshd.config(name="far") + "    ProxyJump jump\n")
    found = examined("far", config)
    assert_becomes_idle(sshd)
    assert_becomes_idle(jump)

    assert wrong(found) == {}
    assert found["jump host"].verdict is Verdict.OK
    assert found["name"].verdict is Verdict.SKIPPED
    assert found["name"].found == "127.0.0.1 is looked up by the jump host jump, not here"
    assert "OpenSSH" in found["port"].found


# Hosts that cannot be reached ----------------------------------------------------------------------------------------


def test_a_name_that_does_not_resolve(tmp_path: Path) -> None:
    finding = assert_ends_at(examined("nowhere.invalid", write_config(tmp_path / "config")), "name")

    assert "nowhere.invalid" in finding.found
    assert "Check the spelling" in finding.advice


def test_a_dead_port(sshd: LocalSshd, tmp_path: Path) -> None:
    port = reserve_free_port()
    finding = assert_ends_at(examined(sshd.host, rewritten(sshd, tmp_path, Port=str(port))), "port")

    assert "Connection refused" in finding.found
    assert "sshd runs there" in finding.advice


def test_a_port_that_says_nothing_takes_no_longer_than_the_time_to_connect(sshd: LocalSshd, tmp_path: Path) -> None:
    with Relay(sshd.port) as relay:
        relay.cut()
        begun = time.monotonic()
        found = examined(
            sshd.host, write_config(tmp_path / "config", sshd.config(port=relay.port)), connect_timeout=1.5
        )
        took = time.monotonic() - begun

    finding = assert_ends_at(found, "port")
    assert "no answer in time" in finding.found
    assert took < 1.5 + 5


def test_a_jump_host_that_is_down(sshd: LocalSshd, tmp_path: Path) -> None:
    port = reserve_free_port()
    down = sshd.config(name="jump", port=port)
    config = write_config(tmp_path / "config", down, sshd.config(name="far") + "    ProxyJump jump\n")
    finding = assert_ends_at(examined("far", config), "jump host")

    assert "Connection refused" in finding.found
    assert finding.advice == "Examine it by itself first: `lazycluster doctor jump`."


@pytest.mark.parametrize(
    ("keyword", "value", "check", "words"),
    [("HostName", "nowhere.invalid", "name", "seen from the jump host"), ("Port", "1", "port", "Connection refused")],
)
def test_a_host_that_its_jump_host_cannot_reach(
    sshd: LocalSshd, make_sshd: MakeSshd, tmp_path: Path, keyword: str, value: str, check: str, words: str
) -> None:
    jump = make_sshd(name="jump")
    text = re.sub(rf"(?m)^(\s+{keyword}) .*$", rf"\1 {value}", sshd.config(name="far")) + "    ProxyJump jump\n"
    found = examined("far", write_config(tmp_path / "config", jump, text))

    assert found["jump host"].verdict is Verdict.OK
    assert words in assert_ends_at(found, check).found
    assert_becomes_idle(jump)


def test_an_unknown_host_key(sshd: LocalSshd, tmp_path: Path) -> None:
    config = rewritten(sshd, tmp_path, UserKnownHostsFile=str(tmp_path / "known_hosts"))
    finding = assert_ends_at(examined(sshd.host, config), "host key")

    assert "not known" in finding.found
    assert "it shows ssh-ed25519 SHA256:" in finding.found
    assert f"`ssh -F {config} {sshd.host} true`" in finding.advice


@pytest.mark.parametrize("mark", ["", "@revoked "], ids=["changed", "revoked"])
def test_a_host_key_that_is_not_to_be_trusted(sshd: LocalSshd, tmp_path: Path, mark: str) -> None:
    known = sshd.known_hosts.read_text()
    if not mark:
        subprocess.run(
            ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")), check=True, timeout=30
        )
        known = f"{known.split()[0]} {(tmp_path / 'other.pub').read_text()}"
    (tmp_path / "known_hosts").write_text(mark + known)
    finding = assert_ends_at(
        examined(sshd.host, rewritten(sshd, tmp_path, UserKnownHostsFile=str(tmp_path / "known_hosts"))), "host key"
    )

    assert ("revoked" if mark else f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'") in finding.advice


def key_at(path: Path, *, passphrase: str = "", mode: int = 0o600) -> Path:
    argv = ("ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "a test", "-f", str(path))
    subprocess.run(argv, check=True, timeout=30)
    path.chmod(mode)
    return path


@contextlib.contextmanager
def without_agent() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        yield


def test_a_key_that_the_host_does_not_know(sshd: LocalSshd, tmp_path: Path) -> None:
    key = key_at(tmp_path / "key")
    config = rewritten(sshd, tmp_path, IdentityFile=str(key))
    with without_agent():
        finding = assert_ends_at(examined(sshd.host, config), "authentication")

    assert f"keys offered: {key} ED25519" in finding.found
    assert "no agent" in finding.found
    assert f"`ssh-copy-id -F {config} {sshd.host}`" in finding.advice


def test_a_key_with_a_passphrase_and_no_agent(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd()
    key = key_at(tmp_path / "key", passphrase="correct horse")
    shutil.copyfile(f"{key}.pub", server.directory / "authorized_keys")
    with without_agent():
        found = examined(server.host, rewritten(server, tmp_path, IdentityFile=str(key)))
    finding = assert_ends_at(found, "authentication")

    assert f'{key} has a passphrase and is not in an agent: `eval "$(ssh-agent)"; ssh-add {key}`' in finding.advice


def test_a_key_that_others_may_read(sshd: LocalSshd, tmp_path: Path) -> None:
    key = tmp_path / "key"
    shutil.copyfile(sshd.identity_file, key)
    key.chmod(0o644)
    with without_agent():
        found = examined(sshd.host, rewritten(sshd, tmp_path, IdentityFile=str(key)))
    finding = assert_ends_at(found, "authentication")

    assert f"`chmod 600 {key}`" in finding.advice


def test_a_configuration_that_ssh_does_not_take(sshd: LocalSshd, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config", sshd, extra="Nonsense yes\n")
    finding = assert_ends_at(examined(sshd.host, config), "configuration")

    assert "Bad configuration option: nonsense" in finding.found


# Hosts that work badly -----------------------------------------------------------------------------------------------


def test_no_forwarding(make_sshd: MakeSshd) -> None:
    found = at(make_sshd(options={"AllowTcpForwarding": "no"}))

    assert wrong(found) == {"ports from the host": "failed", "ports to the host": "failed"}
    assert "administratively prohibited" in found["ports from the host"].found
    assert "AllowTcpForwarding, PermitOpen" in found["ports from the host"].advice
    assert "AllowTcpForwarding, PermitListen" in found["ports to the host"].advice


def test_forwarding_in_one_direction_alone(make_sshd: MakeSshd) -> None:
    found = at(make_sshd(options={"AllowTcpForwarding": "remote"}))

    assert wrong(found) == {"ports from the host": "failed"}
    assert found["ports to the host"].found == "-R: 32 KiB there and back"  # a Python there has sent it


def test_one_session_at_a_time(make_sshd: MakeSshd) -> None:
    found = at(make_sshd(options={"MaxSessions": "1"}))

    assert wrong(found) == {"sessions": "warning"}
    assert "MaxSessions" in found["sessions"].advice


def test_no_session_at_all(make_sshd: MakeSshd) -> None:
    found = at(make_sshd(options={"MaxSessions": "0"}))

    assert wrong(found) == {"sessions": "failed"}
    assert found["ports from the host"].verdict is Verdict.OK
    assert found["login shell"].verdict is Verdict.SKIPPED


def test_more_sessions_than_anybody_counts(make_sshd: MakeSshd) -> None:
    found = at(make_sshd(options={"MaxSessions": "50"}))

    assert found["sessions"].found == "12 or more at once on a connection"


def test_no_sftp_subsystem(make_sshd: MakeSshd) -> None:
    found = at(make_sshd(options={"Subsystem": "other /bin/true"}))

    assert wrong(found) == {"files": "warning"}
    assert "scp (the sftp subsystem) fails" in found["files"].found
    assert "scp -O (scp on the host) works; tar (tar on the host) works" in found["files"].found
    assert "Subsystem sftp internal-sftp" in found["files"].advice


@pytest.mark.parametrize(("program", "way"), [("scp", "scp -O"), ("tar", "tar")])
def test_a_program_is_missing(make_sshd: MakeSshd, tmp_path: Path, program: str, way: str) -> None:
    options = options_without_python(tmp_path, {"python3": Path(sys.executable).resolve()})
    (tmp_path / "bin" / program).unlink()
    found = at(make_sshd(options=options))

    assert wrong(found)["files"] == ("warning" if program == "scp" else "failed")
    assert f"{way} ({program} on the host) fails: " in found["files"].found
    assert f"Install {program} there" in found["files"].advice


def test_start_up_files_that_print_and_take_their_time(make_sshd: MakeSshd) -> None:
    if shutil.which("bash") is None:
        skip_or_fail("there is no bash on this machine")
    server = make_sshd(shell="bash")
    (server.home / ".bashrc").write_text("printf 'welcome \\033[31mback\\n'\nsleep 0.3\n")
    found = at(server)
    if "welcome" not in found["login shell"].found:
        skip_or_fail("this bash reads no start-up file below sshd")

    assert wrong(found) == {"login shell": "warning", "files": "failed"}
    assert r"print 'welcome \x1b[31mback'" in found["login shell"].found
    milliseconds = re.search(r"start-up files take (\d+) ms", found["login shell"].found)
    assert milliseconds is not None
    assert int(milliseconds[1]) >= 250
    assert "let ~/.bashrc begin with `case $- in *i*) ;; *) return ;; esac`" in found["login shell"].advice
    assert "start-up files" in found["files"].advice


def test_a_shell_that_takes_no_commands(make_sshd: MakeSshd, tmp_path: Path) -> None:
    shell = tmp_path / "nologin"
    shell.write_text("#!/bin/sh\necho This account is closed.\nexit 1\n")
    shell.chmod(0o755)
    found = at(make_sshd(shell=str(shell)))

    assert wrong(found) == {"login shell": "failed"}
    assert "exit status 1 before our command began: 'This account is closed.'" in found["login shell"].found
    assert verdicts(found, Verdict.SKIPPED) == ["temporary directory", "python3", "supervisor", "files", "clock"]


def test_a_shell_that_hangs(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"ForceCommand": "exec sleep 600"})
    found = examined(server.host, server.config_file, connect_timeout=4)

    assert wrong(found) == {"login shell": "failed"}
    assert "`true` did not end within 4 s" in found["login shell"].found
    assert len(server.log.split("Starting session: ")) == 2  # one, and no more that hang
    assert_eventually(lambda: server.connections() <= 1, "the connections are closed")


def test_no_python_on_the_path(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd(options=options_without_python(tmp_path, {}))
    conda = tmp_path / "bare-home" / "miniconda3" / "bin"
    conda.mkdir(parents=True)
    (conda / "python3").symlink_to(Path(sys.executable).resolve())
    found = at(server)

    assert wrong(found)["python3"] == "failed"
    assert "no python3 on the PATH of a session; found " in found["python3"].found
    assert f"{sys.version.split()[0]} ({conda}/python3)" in found["python3"].found
    assert "Name it: Runtime(..., python='" in found["python3"].advice
    assert found["supervisor"].verdict is Verdict.SKIPPED
    assert found["round trip"].verdict is Verdict.OK
    assert found["ports to the host"].verdict is Verdict.OK


def test_a_python_of_another_version(make_sshd: MakeSshd, tmp_path: Path) -> None:
    fake = "#!/bin/sh\necho cpython 3.7.1\n"
    found = at(make_sshd(options=options_without_python(tmp_path, {"python3": fake})))

    assert found["python3"].verdict is Verdict.WARNING
    assert "3.7.1" in found["python3"].found


def test_a_temporary_directory_that_cannot_be_written_to(make_sshd: MakeSshd) -> None:
    found = at(make_sshd(environment={"TMPDIR": "/proc"}))

    assert wrong(found) == {"temporary directory": "failed"}
    assert found["temporary directory"].found.startswith("/proc: ")
    assert found["files"].verdict is Verdict.SKIPPED


def test_a_port_that_is_taken_on_the_host_is_no_finding(sshd: LocalSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a client's own end of a connection, on which nobody listens."""
    with socket.socket() as bound, socket.socket(socket.AF_INET6) as too:
        bound.bind(("127.0.0.1", 0))
        too.bind(("::1", bound.getsockname()[1]))
        ports = iter([bound.getsockname()[1], bound.getsockname()[1], reserve_free_port()])
        monkeypatch.setattr(secrets, "choice", lambda _ports: next(ports))
        found = at(sshd)

    assert found["ports to the host"].verdict is Verdict.OK
    assert list(ports) == []


def test_a_slow_link(sshd: LocalSshd, tmp_path: Path) -> None:
    with Relay(sshd.port, delay=0.055) as relay:
        found = examined(sshd.host, write_config(tmp_path / "config", sshd.config(port=relay.port)))

    assert wrong(found) == {"round trip": "warning"}
    assert "start-up files take" in found["login shell"].found
    assert_becomes_idle(sshd)


# The command line ----------------------------------------------------------------------------------------------------


def lazycluster(*words: str) -> subprocess.CompletedProcess[str]:
    argv = (sys.executable, "-m", "lazycluster", *words)
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)


def test_doctor_in_a_pipe(sshd: LocalSshd) -> None:
    ended = lazycluster("doctor", sshd.host, "--config", str(sshd.config_file))

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    assert [line[9:29].strip() for line in ended.stdout.splitlines()] == ALL
    assert_becomes_idle(sshd)


def test_doctor_of_a_host_that_is_not_there(tmp_path: Path) -> None:
    ended = lazycluster("doctor", "nowhere.invalid", "--config", str(write_config(tmp_path / "config")))

    assert (ended.returncode, ended.stderr) == (1, "")
    lines = ended.stdout.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("failed   name                unknown host name (")
    assert lines[2].startswith("         Check the spelling")
    assert lines[3].startswith("skipped  port, host key, authentication, ")


def test_doctor_for_programs(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxSessions": "0"})
    ended = lazycluster("doctor", server.host, "--config", str(server.config_file), "--json")

    report = json.loads(ended.stdout)
    assert ended.returncode == 1
    assert (report["host"], report["well"]) == (server.host, False)
    assert [each["check"] for each in report["findings"]] == ALL
    assert report["findings"][5]["verdict"] == "failed"
    assert "MaxSessions" in report["findings"][5]["advice"]


@pytest.mark.parametrize("command", ["doctor", "info"])
def test_wrong_calls(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["a b"], ["host", "--connect-timeout", "0"], ["host", "--config", "/no/such/file"]):
        assert main([command, *words]) == 2, words
        assert capsys.readouterr().out == ""
    assert main([command, "--help"]) == 0
    assert "Examples:" in capsys.readouterr().out


def test_doctor_on_a_terminal(sshd: LocalSshd) -> None:
    argv = (sys.executable, "-m", "lazycluster", "doctor", sshd.host, "--config", str(sshd.config_file))
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "LC_ALL": "C.UTF-8"}
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that nobody has the terminal open any more
            while data := os.read(ours, 1 << 16):
                shown += data
        assert process.wait(60) == 0
    os.close(ours)

    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "\x1b[32m" in shown.decode()
    for check in ALL:
        assert re.search(rf"✓\s+{check}\s", text), check


def test_ctrl_c_leaves_nothing(make_sshd: MakeSshd) -> None:
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


def test_ctrl_c_ends_a_log_in_that_gets_no_answer(sshd: LocalSshd, tmp_path: Path) -> None:
    with Relay(sshd.port) as relay:
        relay.cut()
        config = write_config(tmp_path / "config", sshd.config(port=relay.port))
        argv = (sys.executable, "-m", "lazycluster", "doctor", sshd.host, "--config", str(config))
        with subprocess.Popen(
            (*argv, "--connect-timeout", "60"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert_eventually(
                lambda: any("LogLevel=DEBUG1" in line for line in processes_with(str(config))), "ssh dials", 20
            )
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=30)

        assert process.returncode == 130
        assert b"Traceback" not in stderr
        assert time.monotonic() - begun < 5
        assert processes_with(str(config)) == []


def test_info(sshd: LocalSshd) -> None:
    words = ("info", sshd.host, "--config", str(sshd.config_file))
    ended, of_programs = lazycluster(*words), lazycluster(*words, "--json")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"Runtime {sshd.host}\n")
    facts = json.loads(of_programs.stdout)
    assert facts["memory"] > 0
    assert facts["gpus"] is not None
    assert_becomes_idle(sshd)


def test_info_of_a_host_that_is_not_there(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config")
    ended = lazycluster("info", "nowhere.invalid", "--config", str(config))

    assert ended.returncode == 1
    assert f"lazycluster doctor nowhere.invalid --config {config}\n" in ended.stderr
    assert "Traceback" not in ended.stderr
