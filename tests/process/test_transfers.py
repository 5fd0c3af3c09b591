"""Files, with pytest-subprocess in place of ssh and scp."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import pytest
from pytest_subprocess.fake_popen import FakePopen
from pytest_subprocess.fake_process import FakeProcess

from lazycluster import Connection, HostUnreachableError, SessionRefusedError, SshNotFoundError, TransferError
from tests.process.fake_ssh import recorded_argvs, register_command, register_log_in

NO_SFTP = "subsystem request failed on channel 0\r\nscp: Connection closed\r\n"
REFUSED = "mux_client_request_session: session request failed: Session open refused by peer\r\nlost connection\r\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text")
    return path


def register_prepare(fp: FakeProcess, target: str, directory: str = "/home/me", name: str = "a.txt") -> None:
    """Let the host name the place of the file that is sent."""
    register_log_in(fp)
    register_command(fp, quote(f"prepare {target}"), stdout=f"{directory}\0{name}\0".encode())


def register_fetch(fp: FakeProcess, path: str, directory: str = "/home/me", name: str = "a.txt", size: int = 4) -> None:
    """Let the host describe the file that is fetched."""
    register_log_in(fp)
    register_command(fp, quote(f"fetch {path}"), stdout=f"f\0{directory}\0{name}\0{size}\0".encode())


def write_downloaded_file(process: FakePopen) -> None:
    Path(str(process.args[-1])).write_bytes(b"new")


def test_put_prepares_copies_and_places_file(fp: FakeProcess, source: Path) -> None:
    register_prepare(fp, "sub/a.txt", "/home/me/sub")
    scp = fp.register(["scp", fp.any()])
    place = register_command(fp, quote("place sub/a.txt"))
    reports: list[tuple[int, int | None]] = []
    with Connection("web1", port=2222) as connection:
        connection.put(source, "sub/a.txt", on_progress=lambda done, total: reports.append((done, total)))
    ((*_, separator, local, remote),) = recorded_argvs([scp])
    assert (separator, local) == ("--", str(source))
    directory, _, temporary = remote.rpartition("/")
    assert directory == "web1:/home/me/sub"
    assert temporary.startswith(".lazycluster-")
    assert len(place.calls) == 1
    assert reports[-1] == (4, 4)
    assert {"-p", "Port=2222", "BatchMode=yes", "ProxyCommand=false"} <= set(recorded_argvs([scp])[0])


def test_put_path_unfit_for_scp_uses_link(fp: FakeProcess, source: Path) -> None:
    register_prepare(fp, "a.txt", "/data/with space")
    register_command(fp, quote("link to /data/with space"), stdout=b"/tmp/l/x\0")
    scp = fp.register(["scp", fp.any()])
    register_command(fp, quote("place a.txt"))
    removed = register_command(fp, quote("remove /tmp/l"))
    with Connection("web1") as connection:
        connection.put(source, "a.txt")
    assert recorded_argvs([scp])[0][-1].startswith("web1:/tmp/l/x/.lazycluster-")
    assert len(removed.calls) == 1


def test_put_local_name_is_no_host_and_no_option(
    fp: FakeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a:b", "-a"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for name in ("a:b", "-a"):
        register_prepare(fp, name, name=name)
        scp = fp.register(["scp", fp.any()])
        register_command(fp, quote(f"place {name}"))
        with Connection("web1") as connection:
            connection.put(name, name)
        assert recorded_argvs([scp])[0][-2] == str(tmp_path / name)


@pytest.mark.parametrize(
    ("stderr", "exit_code", "reason"),
    [
        ("scp: /home/me/.x: Permission denied\r\n", 1, "Permission denied"),
        ('scp: write remote "/home/me/.x": Failure\r\n', 1, "disk full, or over quota"),
        ("", 1, "scp ended with exit status 1"),
        ("", -9, "scp was ended by signal 9, Killed"),
    ],
)
def test_put_failed_scp_removes_temporary_file(
    fp: FakeProcess, source: Path, stderr: str, exit_code: int, reason: str
) -> None:
    register_prepare(fp, "a.txt")
    fp.register(["scp", fp.any()], stderr=stderr, returncode=exit_code)
    register_command(fp, quote("place a.txt"))
    removed = fp.register(["ssh", "-T", fp.any()])  # the label names the temporary file
    with Connection("web1") as connection, pytest.raises(TransferError) as caught:
        connection.put(source, "a.txt")
    error = caught.value
    assert (error.host, error.action, error.path, error.target) == ("web1", "send", str(source), "a.txt")
    assert reason in error.reason
    (call,) = recorded_argvs([removed])
    assert call[-1].startswith("'remove /home/me/.lazycluster-")
    assert not any("place a.txt" in str(called) for called in fp.calls)


@pytest.mark.parametrize("stderr", ["no such directory: /no\n", "is a directory: /home/me/a.txt\n", ""])
def test_put_refused_target_starts_no_scp(fp: FakeProcess, source: Path, stderr: str) -> None:
    register_log_in(fp)
    register_command(fp, quote("prepare a.txt"), stderr=stderr, returncode=1)
    with Connection("web1") as connection, pytest.raises(TransferError) as caught:
        connection.put(source, "a.txt")
    assert (stderr.strip() or "exit status 1") in caught.value.reason
    assert len(fp.calls) == 2


def test_put_missing_file_starts_nothing(fp: FakeProcess, tmp_path: Path) -> None:
    with Connection("web1") as connection, pytest.raises(TransferError) as caught:
        connection.put(tmp_path / "no")
    assert (caught.value.path, caught.value.reason) == (f"{tmp_path}/no", "No such file or directory")
    assert list(fp.calls) == []


def test_put_special_file_starts_nothing(fp: FakeProcess) -> None:
    with Connection("web1") as connection, pytest.raises(TransferError) as caught:
        connection.put("/dev/null")
    assert caught.value.reason == "neither a regular file nor a directory"
    assert list(fp.calls) == []


def test_get_empty_path_starts_nothing(fp: FakeProcess) -> None:
    with Connection("web1") as connection, pytest.raises(ValueError, match="must not be empty"):
        connection.get("")
    assert list(fp.calls) == []


def test_get_file_downloads_beside_target(fp: FakeProcess, tmp_path: Path) -> None:
    register_fetch(fp, "a.txt")
    scp = fp.register(["scp", fp.any()], callback=write_downloaded_file)
    with Connection("web1") as connection:
        connection.get("a.txt", tmp_path)
    *_, remote, temporary = recorded_argvs([scp])[0]
    assert remote == "web1:/home/me/a.txt"
    assert Path(temporary).parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"new"


def test_get_file_default_target_is_current_directory(
    fp: FakeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    register_fetch(fp, "~/x/a.txt")
    fp.register(["scp", fp.any()], callback=write_downloaded_file)
    with Connection("web1") as connection:
        connection.get("~/x/a.txt")
    assert (tmp_path / "a.txt").read_bytes() == b"new"


def test_get_file_failed_scp_keeps_old_file(fp: FakeProcess, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"old")
    register_fetch(fp, "a.txt")
    fp.register(["scp", fp.any()], stderr="scp: /home/me/a.txt: Permission denied\r\n", returncode=1)
    with Connection("web1") as connection, pytest.raises(TransferError) as caught:
        connection.get("a.txt", tmp_path / "a.txt")
    assert "Permission denied" in caught.value.reason
    assert (tmp_path / "a.txt").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("answer", [b"", b"f\0/home/me\0", b"noise"], ids=["empty", "incomplete", "noise"])
def test_get_file_malformed_answer_is_error(fp: FakeProcess, tmp_path: Path, answer: bytes) -> None:
    register_log_in(fp)
    register_command(fp, quote("fetch a.txt"), stdout=answer)
    with Connection("web1") as connection, pytest.raises(TransferError) as caught:
        connection.get("a.txt", tmp_path)
    assert (caught.value.host, caught.value.action, caught.value.path) == ("web1", "fetch", "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_put_without_sftp_uses_older_protocol(fp: FakeProcess, source: Path) -> None:
    register_prepare(fp, "a.txt")
    scp = [fp.register(["scp", fp.any()], stderr=NO_SFTP, returncode=255), fp.register(["scp", fp.any()])]
    register_command(fp, quote("place a.txt"))
    with Connection("web1") as connection:
        connection.put(source, "a.txt")
    first, second = recorded_argvs(scp)
    assert ("-O" in first, "-O" in second) == (False, True)
    assert first[-2:] == second[-2:]


def test_get_file_without_sftp_and_scp_on_host_is_error(fp: FakeProcess, tmp_path: Path) -> None:
    register_fetch(fp, "a.txt")
    fp.register(["scp", fp.any()], stderr=NO_SFTP, returncode=255)
    fp.register(["scp", "-p", "-O", fp.any()], stderr="sh: 1: scp: not found\r\n", returncode=127)
    with Connection("web1") as connection, pytest.raises(TransferError) as caught:
        connection.get("a.txt", tmp_path)
    assert "scp: not found" in caught.value.reason


def test_put_refused_session_is_retried(fp: FakeProcess, source: Path) -> None:
    register_prepare(fp, "a.txt")
    fp.register(["scp", fp.any()], stderr=REFUSED, returncode=255)
    fp.register(["scp", fp.any()])
    register_command(fp, quote("place a.txt"))
    with Connection("web1") as connection:
        connection.put(source, "a.txt")


def test_get_file_session_refused_twice_is_error(fp: FakeProcess, tmp_path: Path) -> None:
    register_fetch(fp, "a.txt")
    fp.register(["scp", fp.any()], stderr=REFUSED, returncode=255, occurrences=50)
    with Connection("web1") as connection, pytest.raises(TransferError) as caught:
        connection.get("a.txt", tmp_path)
    assert isinstance(caught.value.__cause__, SessionRefusedError)
    assert list(tmp_path.iterdir()) == []


def test_put_unreachable_host_is_connect_error(fp: FakeProcess, source: Path) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr="ssh: connect to host web1 port 22: No route to host\n", returncode=255)
    with Connection("web1") as connection, pytest.raises(HostUnreachableError):
        connection.put(source)


def test_put_without_local_scp_is_error(
    fp: FakeProcess, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_prepare(fp, "a.txt")
    fp.pass_command(["scp", fp.any()])
    fp.register(["ssh", "-T", fp.any()])
    monkeypatch.setenv("PATH", str(tmp_path))
    with Connection("web1") as connection, pytest.raises(SshNotFoundError) as caught:
        connection.put(source, "a.txt")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert caught.value.__cause__.filename == "scp"
