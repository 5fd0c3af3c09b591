"""Files to and from the hosts of a group, batches of hosts, and the group as a container."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lazycluster import (
    CommandTimeoutError,
    Error,
    HostFileNotFoundError,
    HostsFailedError,
    Runtime,
    RuntimeGroup,
    TransferError,
)
from lazycluster.testing import FakeHost, Ran
from tests.unit.group_hosts import GROUP_HOSTS

# Files ---------------------------------------------------------------------------------------------------------------


def test_group_put_and_get_reach_all_hosts(group: RuntimeGroup, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    progress: set[tuple[str, int, int | None]] = set()

    group.put(tmp_path / "file", "sent", on_progress=lambda *now: progress.add(now))
    for runtime in group:
        assert runtime.read_text("sent") == "content"
        runtime.write_text("sent", runtime.host)
    group.get("sent", tmp_path / "{host}" / "back", on_progress=lambda *now: progress.add(now))

    assert [(tmp_path / host / "back").read_text() for host in GROUP_HOSTS] == GROUP_HOSTS
    assert progress == {(host, size, size) for host in GROUP_HOSTS for size in (7, 4)}


def test_group_put_and_get_work_at_the_same_time(group: RuntimeGroup, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    together = threading.Barrier(len(GROUP_HOSTS))

    group.put(tmp_path / "file", on_progress=lambda *_: together.wait(10))
    group.get("file", tmp_path / "{host}", on_progress=lambda *_: together.wait(10))


def test_group_get_failure_keeps_the_other_hosts(group: RuntimeGroup, tmp_path: Path) -> None:
    for host in ("web1", "web3"):
        group[host].write_text("file", host)

    with pytest.raises(HostsFailedError) as caught:
        group.get("file", tmp_path / "{host}")
    assert [(host, type(error)) for host, error in caught.value.errors] == [("web2", HostFileNotFoundError)]
    collected = group.get("file", tmp_path / "again-{host}", on_error="collect")
    assert isinstance(collected["web2"], Error)
    assert (collected["web1"], collected["web3"]) == (None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again-web1", "again-web3", "web1", "web3"]


def test_group_put_failure_keeps_the_other_hosts(group: RuntimeGroup, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    group["web2"].create_dir("target/file")

    for host in ("web1", "web3"):
        group[host].create_dir("target")
    with pytest.raises(HostsFailedError) as caught:
        group.put(tmp_path / "file", "target")
    assert [(host, type(error)) for host, error in caught.value.errors] == [("web2", TransferError)]
    collected = group.put(tmp_path / "file", "target", on_error="collect")
    assert [type(outcome) for outcome in collected.values()] == [type(None), Error, type(None)]
    assert group["web3"].read_text("target/file") == "content"


def test_group_get_without_host_in_path_is_refused(group: RuntimeGroup, tmp_path: Path, fake_host: FakeHost) -> None:
    before = list(fake_host.calls)
    with pytest.raises(ValueError) as caught:
        group.get("file", "same")
    assert str(caught.value) == "local must contain {host} for several hosts, got 'same'"
    for local in (None, tmp_path):
        with pytest.raises(ValueError):
            group.get("file", local)
    with pytest.raises(ValueError):
        group.get("", "{host}")
    with pytest.raises(ValueError):
        group.get("file", "{host}", on_error="ignore")  # type: ignore[call-overload]
    with pytest.raises(ValueError):
        group.put(tmp_path, on_error="ignore")  # type: ignore[call-overload]
    assert fake_host.calls == before


def test_group_get_of_one_host_needs_no_host_in_path(fake_host: FakeHost, tmp_path: Path) -> None:
    with RuntimeGroup(hosts=["web1"]) as group:
        group["web1"].write_text("file", "content")
        group.get("file", tmp_path)

    assert (tmp_path / "file").read_text() == "content"


# A container of runtimes ---------------------------------------------------------------------------------------------


def test_group_is_a_container_of_its_runtimes(group: RuntimeGroup) -> None:
    assert len(group) == 3
    assert list(group) == group.runtimes
    assert [runtime.host for runtime in group] == GROUP_HOSTS
    assert all(group[host] is group.get_runtime(host) for host in GROUP_HOSTS)
    assert "web1" in group
    assert group["web1"] in group
    assert "web4" not in group
    with Runtime("web1") as other:
        assert other not in group

    for host in GROUP_HOSTS:
        group.remove_runtime(host).close()
    assert (len(group), list(group), bool(group), "web1" in group) == (0, [], True, False)


@pytest.mark.parametrize("host", ["web4", None, 0])
def test_group_item_of_unknown_host_is_key_error(group: RuntimeGroup, host: str) -> None:
    with pytest.raises(KeyError) as caught:
        group[host]
    assert caught.value.args == (f"unknown host {host!r} (group: web1, web2, web3)",)


# Batches of hosts ----------------------------------------------------------------------------------------------------


def test_run_at_once_works_in_batches(group: RuntimeGroup, fake_host: FakeHost) -> None:
    """Two hosts wait for each other, and the third begins after both."""
    together = threading.Barrier(2)
    begun: list[str] = []

    def arrive(asked: Ran) -> bool:
        begun.append(asked.host)
        if asked.host != "web3":
            together.wait(10)
        return True

    for host in GROUP_HOSTS:
        fake_host.host(host).on(arrive, stdout=host, exit_code=3)

    assert [result.stdout for result in group.run("any", at_once=2).values()] == GROUP_HOSTS
    assert sorted(begun[:2]) == ["web1", "web2"], "an exit status is no failure"
    assert begun[2:] == ["web3"]


def test_run_at_once_stops_after_failed_batch(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("work", stdout="done")
    fake_host.host("web2").on("work", delay=60)

    with pytest.raises(HostsFailedError) as caught:
        group.run("work", timeout=0.01, at_once=2)

    error = caught.value
    assert [(host, type(failure)) for host, failure in error.errors] == [("web2", CommandTimeoutError)]
    assert (list(error.values), error.not_started, error.total) == (["web1"], ("web3",), 3)
    assert fake_host.host("web3").commands == []

    collected = group.run("work", timeout=0.01, at_once=1, on_error="collect")
    assert [isinstance(result, Error) for result in collected.values()] == [False, True, False]


@pytest.mark.parametrize("at_once", [0, -1, True, 1.5, "2"])
def test_run_at_once_of_no_number_is_refused(group: RuntimeGroup, fake_host: FakeHost, at_once: int) -> None:
    with pytest.raises(ValueError, match="at_once must be a whole number from 1 on or None, got"):
        group.run("true", at_once=at_once)
    assert fake_host.commands == []
