"""`lazycluster put` and `lazycluster get` with fake hosts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster._cli import files, main
from tests.pseudo_terminal import pseudo_terminal, strip_escape_sequences

if TYPE_CHECKING:
    from lazycluster.testing import FakeHost


def get(*arguments: str | Path) -> int:
    return main(["get", "--hosts", "a,b", *map(str, arguments)])


@pytest.mark.parametrize("target", ["/dev/null", "/dev/null/sub", "file", "file/sub/deep", "dangling"])
def test_get_target_not_a_directory_exits_2(
    target: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_host: FakeHost,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("dangling").symlink_to("nowhere")
    assert get("x", target) == 2
    error = capsys.readouterr().err
    assert "is not a directory" in error or "is a file" in error
    assert fake_host.calls == []


def test_get_host_directory_is_a_file_fails_there(
    tmp_path: Path, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").touch()
    fake_host.path("x").write_text("content")
    assert get("x", tmp_path) == 1
    out, err = capsys.readouterr()
    assert f"'{tmp_path / 'a'}': File exists\n" in err
    assert out == "x fetched from 1 of 2 hosts\n"


def test_get_failure_leaves_no_directory(tmp_path: Path, fake_host: FakeHost) -> None:
    assert get("missing", tmp_path / "got" / "deep") == 1
    assert list(tmp_path.iterdir()) == []


def test_get_interrupted_leaves_no_directory(
    tmp_path: Path, fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        for host in ("a", "b"):
            (tmp_path / "got" / host).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "run_on_hosts", interrupted)
    assert get("x", tmp_path / "got") == 130
    assert list(tmp_path.iterdir()) == []


def test_get_failure_keeps_existing_and_fetched_files(tmp_path: Path, fake_host: FakeHost) -> None:
    fake_host.host("b").path("x").write_text("content")
    assert get("x", tmp_path / "new") == 1
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["new", "new/b", "new/b/x"]
    (tmp_path / "old" / "a").mkdir(parents=True)
    assert get("missing", tmp_path / "old") == 1
    assert [str(path.relative_to(tmp_path / "old")) for path in (tmp_path / "old").rglob("*")] == ["a"]


def test_put_one_host_prints_singular(tmp_path: Path, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").touch()
    assert main(["put", "--hosts", "a", str(tmp_path / "x")]) == 0
    assert capsys.readouterr().out.endswith("sent to 1 of 1 host\n")


def test_put_directory_bar_is_complete_at_end(
    tmp_path: Path, fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(bytes(3_100_000))
    with pseudo_terminal(monkeypatch) as seen:
        assert main(["put", "--hosts", "a", str(tmp_path / "tree")]) == 0
    assert "3.1/3.1 MB" in strip_escape_sequences(seen.text).splitlines()[-2]


def test_put_filtered_host_has_not_failed(
    tmp_path: Path, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_host.host("b").executables = {"tool"}
    (tmp_path / "f").touch()
    assert main(["put", "--hosts", "a,b", "--group-filter", "installed=tool", str(tmp_path / "f")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'f'} sent to 1 of 1 host; 1 left out\n"


def test_get_and_put_empty_remote_path_exit_2(fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("get", ""), ("put", "/dev/null", "")):
        assert main([arguments[0], "--hosts", "a", *arguments[1:]]) == 2
        assert "path on the host must not be empty, got ''" in capsys.readouterr().err
    assert fake_host.calls == []
