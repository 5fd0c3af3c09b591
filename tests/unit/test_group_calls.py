"""Commands, functions and items on the hosts of a group, which of them fail, and Ctrl-C."""

from __future__ import annotations

import io
import itertools
import math
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lazycluster import (
    CommandFailedError,
    CommandTimeoutError,
    ConnectionLostError,
    FunctionNotSerializableError,
    HostsFailedError,
    HostUnreachableError,
    OutputLimitError,
    RuntimeGroup,
    RuntimeTask,
)
from lazycluster.results import CommandResult, Error, Stream
from lazycluster.testing import Called, FakeHost, Ran
from tests.keyboard_interrupt import interrupt
from tests.pseudo_terminal import pseudo_terminal, strip_escape_sequences
from tests.unit.group_hosts import GROUP_HOSTS, double, group_thread_names, hosts_of, running
from tests.unit.transport_recorder import TransportRecorder
from tests.waiting import wait_until


def test_run_returns_result_of_each_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    for number, host in enumerate(GROUP_HOSTS):
        fake_host.host(host).on("id", stdout=f"{host}\n", stderr="e", exit_code=number, delay=0.03 * (3 - number))
    seen: list[tuple[str, Stream, bytes]] = []
    results = group.run("id", on_output=lambda *piece: seen.append(piece))
    assert list(results) == GROUP_HOSTS
    assert [result.exit_code for result in results.values()] == [0, 1, 2], "an exit status raises nothing"
    assert [result.stdout for result in results.values()] == ["web1\n", "web2\n", "web3\n"]
    assert set(seen) == {
        piece
        for host in GROUP_HOSTS
        for piece in ((host, Stream.STDOUT, f"{host}\n".encode()), (host, Stream.STDERR, b"e"))
    }


def test_run_stdin_goes_to_each_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("cat")
    group.run("cat", stdin=b"input")
    ran = [call for call in fake_host.calls if isinstance(call, Ran)]
    assert hosts_of(ran) == GROUP_HOSTS
    assert {call.stdin for call in ran} == {b"input"}


def test_run_stdin_file_goes_whole_to_each_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("cat")
    group.run("cat", stdin=io.BytesIO(b"input" * 100_000))
    ran = [call for call in fake_host.calls if isinstance(call, Ran)]
    assert hosts_of(ran) == GROUP_HOSTS
    assert {call.stdin for call in ran} == {b"input" * 100_000}


def test_run_starts_on_all_hosts_in_parallel(group: RuntimeGroup, fake_host: FakeHost) -> None:
    together = threading.Barrier(3)

    def arrive(asked: Ran) -> bool:
        together.wait(10)
        return True

    for host in GROUP_HOSTS:
        fake_host.host(host).on(arrive, stdout=host)
    assert [result.stdout for result in group.run("any").values()] == GROUP_HOSTS


def test_run_failure_keeps_other_results(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("work", stdout="done")
    fake_host.host("web2").on("work", error=ConnectionLostError("web2", "work", "cut", started=True))
    fake_host.host("web3").on("work", delay=math.inf, stdout="half")
    with pytest.raises(HostsFailedError) as caught:
        group.run("work", timeout=0.2)
    assert [(host, type(error)) for host, error in caught.value.errors] == [
        ("web2", ConnectionLostError),
        ("web3", CommandTimeoutError),
    ]
    done = caught.value.values["web1"]
    assert isinstance(done, CommandResult)
    assert done.stdout == "done"
    assert pickle.loads(pickle.dumps(caught.value)).values == caught.value.values

    found = group.run("work", timeout=0.2, on_error="collect")
    assert list(found) == GROUP_HOSTS
    assert isinstance(found["web1"], CommandResult)
    assert isinstance(found["web2"], Error)
    assert isinstance(found["web2"].error, ConnectionLostError)
    assert isinstance(found["web3"], Error)
    assert (found["web2"].host, found["web3"].host) == ("web2", "web3")
    assert (found["web3"].index, found["web3"].item) == (None, None)
    with pytest.raises(CommandTimeoutError):
        found["web3"].unwrap()


def test_run_on_output_raises_is_error_of_its_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id", stdout="x")

    def follow(host: str, _stream: Stream, _data: bytes) -> None:
        if host == "web2":
            raise BrokenPipeError("closed")

    with pytest.raises(HostsFailedError) as caught:
        group.run("id", on_output=follow)
    assert [(host, type(error)) for host, error in caught.value.errors] == [("web2", BrokenPipeError)]


def test_run_on_line_gets_host_and_line_in_one_thread(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id", stdout="one\ntwo")
    seen: list[tuple[str, Stream, str]] = []
    threads: set[int] = set()

    def follow(host: str, stream: Stream, line: str) -> None:
        threads.add(threading.get_ident())
        seen.append((host, stream, line))

    group.run("id", on_line=follow)
    assert sorted(seen, key=lambda piece: piece[0]) == [
        (host, Stream.STDOUT, line) for host in GROUP_HOSTS for line in ("one", "two")
    ]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_run_check_fails_for_hosts_with_other_exit_status(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("work", stdout="done")
    fake_host.host("web2").on("work", stdout="why", exit_code=3)
    with pytest.raises(HostsFailedError) as caught:
        group.run("work", check=True)
    assert [(host, error.args) for host, error in caught.value.errors] == [("web2", ("web2", "work", 3, "why"))]
    assert list(caught.value.values) == ["web1", "web3"]
    found = group.run("work", check=True, on_error="collect")
    assert isinstance(found["web2"], Error)
    with pytest.raises(CommandFailedError):
        found["web2"].unwrap()


def test_run_max_output_is_a_limit_of_each_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("work", stdout="done")
    fake_host.host("web2").on("work", stdout="too much")
    with pytest.raises(HostsFailedError) as caught:
        group.run("work", max_output=4)
    assert [(host, type(error)) for host, error in caught.value.errors] == [("web2", OutputLimitError)]
    assert caught.value.errors[0][1].args == ("web2", "work", 4, "stdout", b"too much", b"")
    assert list(caught.value.values) == ["web1", "web3"]


def test_run_cwd_starts_in_each_working_directory(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("id")
    for host in GROUP_HOSTS:
        group.get_runtimes()[host].create_dir("sub")
    group.run("id", cwd="sub")
    ran = {call.host: call.cwd for call in fake_host.calls if isinstance(call, Ran)}
    assert ran == {host: f"{group.get_runtimes()[host].working_dir}/sub" for host in GROUP_HOSTS}


@pytest.mark.parametrize("option", ["on_output", "on_line", "max_output", "cwd", "stdin", "timeout"])
def test_run_bad_option_is_refused_first(group: RuntimeGroup, fake_host: FakeHost, option: str) -> None:
    options: Any = {option: ["bad"]}
    before = len(fake_host.calls)
    with pytest.raises(ValueError, match=f"^{option} must be "):
        group.run("id", **options)
    assert len(fake_host.calls) == before


def test_run_ctrl_c_stops_commands(group: RuntimeGroup, fake_host: FakeHost, transports: TransportRecorder) -> None:
    fake_host.on("sleep", delay=math.inf)
    interrupt(lambda: group.run("sleep"), running(transports, 3))
    assert not running(transports, 1)()
    assert wait_until(lambda: not group_thread_names(), timeout=10)


def test_group_invalid_on_error_raises(group: RuntimeGroup, fake_host: FakeHost) -> None:
    bad: Any = "skip"
    task = RuntimeTask()
    for use in (
        lambda: group.run("id", on_error=bad),
        lambda: group.with_options(on_error=bad),
        lambda: group.map(int, ["1"], on_error=bad),
        lambda: group.execute_task(task, on_error=bad),
        lambda: group.send_file(__file__, on_error=bad),
    ):
        with pytest.raises(ValueError, match="on_error must be 'raise' or 'collect', got 'skip'"):
            use()
    assert fake_host.calls == []


def test_group_invalid_argument_contacts_no_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    for use in (
        lambda: group.run(""),
        lambda: group.run("id", timeout=0),
        lambda: group.expose_port_to_runtimes(0),
        lambda: group.expose_port_to_runtimes(80, 70000),
    ):
        with pytest.raises(ValueError, match=r"command must|timeout must|port must") as caught:
            use()
        assert not isinstance(caught.value, HostsFailedError)
    assert fake_host.calls == []


@pytest.mark.parametrize("progress", [True, False])
def test_group_progress_shows_bars_on_terminal(
    progress: bool, fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    for host in GROUP_HOSTS:
        fake_host.host(host).on("true")
    with (
        pseudo_terminal(monkeypatch, name="stderr") as seen,
        RuntimeGroup(hosts=GROUP_HOSTS, progress=progress) as group,
    ):
        assert list(group.map(abs, range(-4, 0))) == [4, 3, 2, 1]
        fake_host.host("web2").go_down()
        with pytest.raises(HostsFailedError):
            group.run("true")
        with pytest.raises(HostsFailedError):
            group.execute_task(RuntimeTask("once").run_command("true"), broadcast=True, execute_async=False)
        group.clear_tasks()
        group.execute_task(RuntimeTask().run_command("true"), host="web1")
        group.join()
    text = strip_escape_sequences(seen.text)
    shown = [words in text for words in ("connecting", "4/4 items", "task once", "waiting for tasks")]
    assert shown == [progress] * 4
    assert (text.count("3/3 hosts, 1 failed") >= 2) == progress
    assert progress or not text


def test_call_returns_value_of_each_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    group.add_env_variables({"A": "1"})
    found = group.call(lambda *args, **kwargs: (args, kwargs, os.environ["A"], Path.cwd().exists()), 1, two=2)
    assert found == dict.fromkeys(GROUP_HOSTS, ((1,), {"two": 2}, "1", True))
    assert list(found) == GROUP_HOSTS
    assert hosts_of(fake_host.calls) == GROUP_HOSTS


def test_call_failure_keeps_other_values(group: RuntimeGroup) -> None:
    group.runtimes[1].add_env_variables({"BAD": "1"})

    def work() -> str:
        if "BAD" in os.environ:
            raise KeyError("why")
        return "well"

    with pytest.raises(HostsFailedError) as caught:
        group.call(work)
    assert [(host, type(error)) for host, error in caught.value.errors] == [("web2", KeyError)]
    assert caught.value.values == {"web1": "well", "web3": "well"}
    found = group.with_options(on_error="collect").call(work)
    assert isinstance(found["web2"], Error)
    assert (found["web2"].host, found["web3"]) == ("web2", "well")


@pytest.mark.parametrize("function", [None, "text", 3])
def test_call_and_map_not_callable_raises(group: RuntimeGroup, fake_host: FakeHost, function: Any) -> None:
    for use in (lambda: group.call(function), lambda: group.map(function, [])):
        with pytest.raises(ValueError, match="function"):
            use()
    assert fake_host.calls == []


def test_call_unpicklable_function_raises(group: RuntimeGroup) -> None:
    lock = threading.Lock()
    with pytest.raises(FunctionNotSerializableError):  # and no HostsFailedError
        group.call(lambda: lock)


def test_call_pickles_function_once(group: RuntimeGroup) -> None:
    pickled: list[int] = []

    class Counted:
        def __call__(self) -> int:
            return 7

        def __getstate__(self) -> dict[str, object]:
            pickled.append(1)
            return {}

    assert group.call(Counted()) == dict.fromkeys(group.hosts, 7)
    assert len(pickled) == 1


def test_call_runs_in_working_dir_of_each_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    group.call(double, 2)
    for call in fake_host.calls:
        assert isinstance(call, Called)
        assert call.cwd == group.get_runtime(call.host).working_dir


def test_call_ctrl_c_stops_functions(
    group: RuntimeGroup, fake_host: FakeHost, transports: TransportRecorder, tmp_path: Path
) -> None:
    def wait() -> None:
        while not (tmp_path / "over").exists():
            time.sleep(0.01)

    try:
        interrupt(lambda: group.call(wait), running(transports, 3))
        assert not running(transports, 1)()
        assert wait_until(lambda: not group_thread_names(), timeout=10)
    finally:
        (tmp_path / "over").touch()


@pytest.mark.parametrize("ordered", [True, False])
def test_map_returns_all_values(group: RuntimeGroup, fake_host: FakeHost, ordered: bool) -> None:
    found = list(group.map(double, range(2000), ordered=ordered))
    assert (found if ordered else sorted(found)) == list(range(0, 4000, 2))
    assert set(hosts_of(fake_host.calls)) <= set(GROUP_HOSTS)


def test_map_item_fails_raises_or_collects(group: RuntimeGroup) -> None:
    mapped = group.map(double, [1, -2, 3])
    assert next(mapped) == 2
    with pytest.raises(ValueError, match="-2"):
        next(mapped)
    assert next(mapped, None) is None
    assert wait_until(lambda: not group_thread_names(), timeout=10)
    found = list(group.map(double, [1, -2, 3], on_error="collect"))
    assert [found[0], found[2]] == [2, 6]
    assert isinstance(found[1], Error)
    assert isinstance(found[1].error, ValueError)


def test_map_hosts_die_one_after_another(group: RuntimeGroup, fake_host: FakeHost) -> None:
    mapped = group.map(double, itertools.count())
    assert [next(mapped) for _ in range(10)] == list(range(0, 20, 2))
    fake_host.host("web2").go_down()
    assert [next(mapped) for _ in range(500)] == list(range(20, 1020, 2))
    fake_host.host("web1").go_down()
    fake_host.host("web3").go_down()
    with pytest.raises(HostsFailedError) as caught:
        for _ in mapped:
            pass
    assert [host for host, _ in caught.value.errors] == GROUP_HOSTS
    assert wait_until(lambda: not group_thread_names(), timeout=10)
    for host in GROUP_HOSTS:
        fake_host.host(host).come_up()


def test_map_all_hosts_dead_raises(group: RuntimeGroup, fake_host: FakeHost) -> None:
    for host in GROUP_HOSTS:
        fake_host.host(host).go_down()
    with pytest.raises(HostsFailedError) as caught:
        list(group.map(double, range(5), retries=3))
    assert [host for host, _ in caught.value.errors] == GROUP_HOSTS
    assert all(isinstance(error, HostUnreachableError) for error in caught.value.exceptions)
    for host in GROUP_HOSTS:
        fake_host.host(host).come_up()


@pytest.mark.parametrize("retries", [-1, True, 1.5, None])
def test_map_invalid_retries_raises(group: RuntimeGroup, retries: Any) -> None:
    with pytest.raises(ValueError, match="retries must be a whole number from 0 on"):
        group.map(double, [], retries=retries)


def test_map_not_iterable_raises_at_once(group: RuntimeGroup) -> None:
    nothing: Any = None
    with pytest.raises(TypeError):
        group.map(double, nothing)


def test_map_early_exit_ends_threads(group: RuntimeGroup, fake_host: FakeHost, transports: TransportRecorder) -> None:
    mapped = group.map(double, itertools.count())
    assert [next(mapped) for _ in range(3)] == [0, 2, 4]
    mapped.close()
    assert wait_until(lambda: not group_thread_names(), timeout=10)
    assert not running(transports, 1)()
    for item in group.map(double, itertools.count()):
        if item > 100:
            break
    assert wait_until(lambda: not group_thread_names(), 10), "an iterator without references ends its threads"


def test_map_ctrl_c_stops_items(
    group: RuntimeGroup, fake_host: FakeHost, transports: TransportRecorder, tmp_path: Path
) -> None:
    def wait(_item: int) -> None:
        while not (tmp_path / "over").exists():
            time.sleep(0.01)

    try:
        interrupt(lambda: list(group.map(wait, itertools.count())), running(transports, 3))
        assert not running(transports, 1)()
        assert wait_until(lambda: not group_thread_names(), timeout=10)
    finally:
        (tmp_path / "over").touch()
