"""Files, with pytest-subprocess in the place of ssh and scp."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import pytest
from pytest_subprocess.fake_popen import FakePopen
from pytest_subprocess.fake_process import FakeProcess

from lazycluster import ConnectError, Connection, SessionRefusedError, SshNotFoundError, TransferError
from lazycluster._model.timeouts import Timeouts
from tests.internals import ssh_client_of
from tests.process.fake_ssh import recorded_argvs, register_command, register_log_in

NO_SFTP = "subsystem request failed on channel 0\r\nscp: Connection closed\r\n"
REFUSED = "mux_client_request_session: session request failed: Session open refused by peer\r\nlost connection\r\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text")
    return path


def prepared(fp: FakeProcess, target: str, directory: str = "/home/me", name: str = "a.txt") -> None:
    """Let the host say where the file will be."""
    register_log_in(fp)
    register_command(fp, quote(f"prepare {target}"), stdout=f"{directory}\0{name}\0".encode())


def fetched(fp: FakeProcess, path: str, directory: str = "/home/me", name: str = "a.txt", size: int = 4) -> None:
    """Let the host say which file there is."""
    register_log_in(fp)
    register_command(fp, quote(f"fetch {path}"), stdout=f"f\0{directory}\0{name}\0{size}\0".encode())


def download(process: FakePopen) -> None:
    Path(str(process.args[-1])).write_bytes(b"new")


def test_sending(fp: FakeProcess, source: Path) -> None:
    prepared(fp, "sub/a.txt", "/home/me/sub")
    scp = fp.register(["scp", fp.any()])
    place = register_command(fp, quote("place sub/a.txt"))
    moved: list[tuple[int, int | None]] = []
    with Connection("web1", port=2222) as connection:
        connection.put(source, "sub/a.txt", on_progress=lambda done, total: moved.append((done, total)))
    ((*_, separator, local, remote),) = recorded_argvs([scp])
    assert (separator, local) == ("--", str(source))
    directory, _, temporary = remote.rpartition("/")
    assert directory == "web1:/home/me/sub"
    assert temporary.startswith(".lazycluster-")
    assert len(place.calls) == 1
    assert moved[-1] == (4, 4)
    assert {"-p", "Port=2222", "BatchMode=yes", "ProxyCommand=false"} <= set(recorded_argvs([scp])[0])


def test_a_path_that_scp_would_not_take_goes_through_a_link(fp: FakeProcess, source: Path) -> None:
    prepared(fp, "a.txt", "/data/with space")
    register_command(fp, quote("link to /data/with space"), stdout=b"/tmp/l/x\0")
    scp = fp.register(["scp", fp.any()])
    register_command(fp, quote("place a.txt"))
    removed = register_command(fp, quote("remove /tmp/l"))
    with Connection("web1") as connection:
        connection.put(source, "a.txt")
    assert recorded_argvs([scp])[0][-1].startswith("web1:/tmp/l/x/.lazycluster-")
    assert len(removed.calls) == 1


def test_a_name_with_a_colon_or_a_dash_is_no_host_and_no_option(
    fp: FakeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a:b", "-a"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for name in ("a:b", "-a"):
        prepared(fp, name, name=name)
        scp = fp.register(["scp", fp.any()])
        register_command(fp, quote(f"place {name}"))
        with Connection("web1") as connection:
            connection.put(name, name)
        assert recorded_argvs([scp])[0][-2] == str(tmp_path / name)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("scp: /home/me/.x: Permission denied\r\n", "Permission denied"),
        ('scp: write remote "/home/me/.x": Failure\r\n', "disk full, or over quota"),
        ("", "scp ended with exit status 1"),
    ],
)
def test_sending_fails(fp: FakeProcess, source: Path, said: str, reason: str) -> None:
    prepared(fp, "a.txt")
    fp.register(["scp", fp.any()], stderr=said, returncode=1)
    register_command(fp, quote("place a.txt"))
    removed = fp.register(["ssh", "-T", fp.any()])  # the label names the temporary file
    with Connection("web1") as connection, pytest.raises(TransferError, match=reason) as caught:
        connection.put(source, "a.txt")
    assert f"web1: cannot send '{source}' to 'a.txt'" in str(caught.value)
    (call,) = recorded_argvs([removed])
    assert call[-1].startswith("'remove /home/me/.lazycluster-")
    assert not any("place a.txt" in str(called) for called in fp.calls)


@pytest.mark.parametrize("said", ["no such directory: /no\n", "is a directory: /home/me/a.txt\n", ""])
def test_the_host_takes_no_file_there(fp: FakeProcess, source: Path, said: str) -> None:
    register_log_in(fp)
    register_command(fp, quote("prepare a.txt"), stderr=said, returncode=1)
    with Connection("web1") as connection, pytest.raises(TransferError, match=said.strip() or "exit status 1"):
        connection.put(source, "a.txt")
    assert len(fp.calls) == 2


def test_no_such_file_here(fp: FakeProcess, tmp_path: Path) -> None:
    with Connection("web1") as connection, pytest.raises(TransferError, match="No such file") as caught:
        connection.put(tmp_path / "no")
    assert str(caught.value) == f"web1: cannot send '{tmp_path}/no': No such file or directory"
    assert list(fp.calls) == []


def test_neither_file_nor_directory(fp: FakeProcess) -> None:
    with Connection("web1") as connection, pytest.raises(TransferError, match="neither a regular file nor a directory"):
        connection.put("/dev/null")
    assert list(fp.calls) == []


def test_no_path_to_fetch(fp: FakeProcess) -> None:
    with Connection("web1") as connection, pytest.raises(ValueError, match="must not be empty"):
        connection.get("")
    assert list(fp.calls) == []


def test_fetching(fp: FakeProcess, tmp_path: Path) -> None:
    fetched(fp, "a.txt")
    scp = fp.register(["scp", fp.any()], callback=download)
    with Connection("web1") as connection:
        connection.get("a.txt", tmp_path)
    *_, remote, temporary = recorded_argvs([scp])[0]
    assert remote == "web1:/home/me/a.txt"
    assert Path(temporary).parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"new"


def test_fetching_to_the_current_directory(fp: FakeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fetched(fp, "~/x/a.txt")
    fp.register(["scp", fp.any()], callback=download)
    with Connection("web1") as connection:
        connection.get("~/x/a.txt")
    assert (tmp_path / "a.txt").read_bytes() == b"new"


def test_fetching_fails_and_the_old_file_stays(fp: FakeProcess, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"old")
    fetched(fp, "a.txt")
    fp.register(["scp", fp.any()], stderr="scp: /home/me/a.txt: Permission denied\r\n", returncode=1)
    with Connection("web1") as connection, pytest.raises(TransferError, match="Permission denied"):
        connection.get("a.txt", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("answer", [b"", b"f\0/home/me\0", b"noise"])
def test_an_answer_that_makes_no_sense(fp: FakeProcess, tmp_path: Path, answer: bytes) -> None:
    register_log_in(fp)
    register_command(fp, quote("fetch a.txt"), stdout=answer)
    with Connection("web1") as connection, pytest.raises(TransferError, match=r"web1: cannot fetch 'a.txt'"):
        connection.get("a.txt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_the_sftp_subsystem_the_older_protocol_is_used(fp: FakeProcess, source: Path) -> None:
    prepared(fp, "a.txt")
    scp = [fp.register(["scp", fp.any()], stderr=NO_SFTP, returncode=255), fp.register(["scp", fp.any()])]
    register_command(fp, quote("place a.txt"))
    with Connection("web1") as connection:
        connection.put(source, "a.txt")
    first, second = recorded_argvs(scp)
    assert ("-O" in first, "-O" in second) == (False, True)
    assert first[-2:] == second[-2:]


def test_without_the_sftp_subsystem_and_without_scp_there(fp: FakeProcess, tmp_path: Path) -> None:
    fetched(fp, "a.txt")
    fp.register(["scp", fp.any()], stderr=NO_SFTP, returncode=255)
    fp.register(["scp", "-p", "-O", fp.any()], stderr="sh: 1: scp: not found\r\n", returncode=127)
    with Connection("web1") as connection, pytest.raises(TransferError, match="scp: not found"):
        connection.get("a.txt", tmp_path)


def test_a_session_refused_is_waited_for(fp: FakeProcess, source: Path) -> None:
    prepared(fp, "a.txt")
    fp.register(["scp", fp.any()], stderr=REFUSED, returncode=255)
    fp.register(["scp", fp.any()])
    register_command(fp, quote("place a.txt"))
    with Connection("web1") as connection:
        ssh_client_of(connection).timeouts = Timeouts(session_refused=0.01)
        connection.put(source, "a.txt")


def test_no_session_at_all(fp: FakeProcess, tmp_path: Path) -> None:
    fetched(fp, "a.txt")
    fp.register(["scp", fp.any()], stderr=REFUSED, returncode=255, occurrences=50)
    with Connection("web1") as connection:
        ssh_client_of(connection).timeouts = Timeouts(session_refused=0.01)
        with pytest.raises((TransferError, SessionRefusedError), match="refused"):
            connection.get("a.txt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_cannot_be_reached(fp: FakeProcess, source: Path) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr="ssh: connect to host web1 port 22: No route to host\n", returncode=255)
    with Connection("web1") as connection, pytest.raises(ConnectError, match="host unreachable"):
        connection.put(source)


def test_no_scp_on_this_machine(fp: FakeProcess, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(fp, "a.txt")
    fp.pass_command(["scp", fp.any()])
    fp.register(["ssh", "-T", fp.any()])
    monkeypatch.setenv("PATH", str(tmp_path))
    with Connection("web1") as connection, pytest.raises((TransferError, SshNotFoundError), match="scp"):
        connection.put(source, "a.txt")
