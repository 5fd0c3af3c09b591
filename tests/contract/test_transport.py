"""What a runtime's way onto a host does by itself: `HostTransport`, the interface under `Runtime`."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazycluster import (
    CommandStoppedError,
    CommandTimeoutError,
    ConnectionLostError,
    PortInUseError,
    RuntimeClosedError,
    TransferError,
    WorkingDirectoryError,
)
from lazycluster._files.install import discard
from lazycluster._functions.outcome import read_outcome
from lazycluster._functions.serialize import dump
from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._model.watch import Watch
from lazycluster._transports import factory
from lazycluster._transports.interface import HostTransport
from lazycluster._waiting import Cancellation
from lazycluster.results import Collector, Error, Stream, Value
from lazycluster.testing.processes import wait_until
from tests.contract.conftest import HOST, Case
from tests.ports import free_port


@pytest.fixture
def transport(case: Case) -> Iterator[HostTransport]:
    """Return a way that is set up, in a temporary directory; a test may close it."""
    made = factory.reach(HOST, case.options)
    assert made.directories == []
    directory, info = made.set_up(None)
    assert info.python_version is not None
    assert made.directories == [directory]
    yield made
    if made.is_alive():
        made.clean_up()
        made.close()
    discard(case.there(directory))


@pytest.fixture
def cwd(transport: HostTransport) -> str:
    return transport.directories[0]


# Commands ------------------------------------------------------------------------------------------------------------


def test_where_a_command_runs_and_what_it_reads(case: Case, transport: HostTransport, cwd: str) -> None:
    case.script('pwd; echo "$X"; cat', stdout=f"{cwd}\nset\nread")
    case.script("pwd", stdout=f"{case.home}\n")

    result = transport.run('pwd; echo "$X"; cat', cwd=cwd, env={"X": "set"}, stdin=b"read")

    assert result.stdout == f"{cwd}\nset\nread"
    assert transport.run("pwd").stdout == f"{case.home}\n"
    assert transport.run("pwd", cwd="~").stdout == f"{case.home}\n"


def test_much_standard_input(case: Case, transport: HostTransport) -> None:
    data = os.urandom(3_000_000)

    assert transport.run(case.script("cat", stdout=data), stdin=data).stdout_bytes == data


@pytest.mark.parametrize("name", ["no-identifier", "", "1ST", "A=B"])
def test_a_variable_that_is_none(transport: HostTransport, name: str) -> None:
    with pytest.raises(ValueError, match="environment"):
        transport.run("true", env={name: "x"})


@pytest.mark.parametrize("cwd", ["no such directory", "/no/such", "~/no such"])
def test_a_directory_that_is_not_there(transport: HostTransport, cwd: str) -> None:
    with pytest.raises(WorkingDirectoryError) as caught:
        transport.run("true", cwd=cwd)
    assert (caught.value.host, caught.value.path) == (HOST, cwd)


def test_output_is_handed_on_as_it_comes_and_collected(case: Case, transport: HostTransport) -> None:
    seen: list[tuple[Stream, bytes]] = []
    collector = Collector()
    command = case.script("echo out; sleep 0.1; echo err >&2; exit 5", stdout="out\n", stderr="err\n", exit_code=5)

    result = transport.run(
        command, watch=Watch(on_output=lambda stream, data: seen.append((stream, data)), collector=collector)
    )

    assert seen == [(Stream.STDOUT, b"out\n"), (Stream.STDERR, b"err\n")]
    assert collector.joined(Stream.STDOUT) == b"out\n"
    assert (result.output, result.exit_code) == ("out\nerr\n", 5)


def test_a_collector_has_what_came_before_a_timeout(case: Case, transport: HostTransport) -> None:
    collector = Collector()
    command = case.script("echo begun; sleep 1000", stdout="begun\n", delay=1000)

    with pytest.raises(CommandTimeoutError) as caught:
        transport.run(command, timeout=0.3, watch=Watch(collector=collector))

    assert collector.joined(Stream.STDOUT) == caught.value.stdout == b"begun\n"


def test_a_stop_that_was_asked_for_before(case: Case, transport: HostTransport) -> None:
    cancellation = Cancellation()
    cancellation.request()

    with pytest.raises(CommandStoppedError) as caught:
        transport.run(case.script("sleep 1000", delay=1000), watch=Watch(cancellation=cancellation))

    assert (caught.value.host, caught.value.command) == (HOST, "sleep 1000")
    cancellation.close()


def test_a_stop_while_it_runs(case: Case, transport: HostTransport) -> None:
    cancellation = Cancellation()
    command = case.script("echo begun; sleep 1000", stdout="begun\n", delay=1000)
    begun = time.monotonic()

    with pytest.raises(CommandStoppedError):
        transport.run(command, watch=Watch(lambda _stream, _data: cancellation.request(), cancellation=cancellation))

    assert time.monotonic() - begun < 5
    cancellation.close()


# Functions -----------------------------------------------------------------------------------------------------------


def test_the_outcome_of_a_function_replaces_what_was_in_the_file(transport: HostTransport, cwd: str) -> None:
    outcome = io.BytesIO(b"something else")

    for payload, expected in ((dump(os.getcwd), cwd), (dump(len, "four"), 4)):
        transport.call(payload, outcome, cwd=cwd)
        assert read_outcome(outcome, HOST, payload.function) == Value(expected)


def test_a_function_is_followed_like_a_command(transport: HostTransport) -> None:
    seen: list[tuple[Stream, bytes]] = []
    collector = Collector()

    transport.call(
        dump(print, "shown"),
        io.BytesIO(),
        watch=Watch(lambda stream, data: seen.append((stream, data)), collector=collector),
    )

    assert {stream for stream, _ in seen} == {Stream.STDERR}
    assert b"".join(data for _, data in seen) == collector.joined(Stream.STDERR) == b"shown\n"


def test_a_function_that_takes_too_long(transport: HostTransport, cwd: str) -> None:
    def endless() -> None:
        print("begun")
        directory = Path.cwd()
        while directory.exists():
            time.sleep(0.01)

    with pytest.raises(CommandTimeoutError) as caught:
        transport.call(dump(endless), io.BytesIO(), cwd=cwd, timeout=1.0)

    assert (caught.value.host, caught.value.timeout) == (HOST, 1.0)
    assert caught.value.command.startswith("python: ")
    assert b"begun\n" in caught.value.stderr
    outcome = io.BytesIO()
    transport.call(dump(len, "four"), outcome)
    assert read_outcome(outcome, HOST, "len") == Value(4)


def test_a_function_that_fails_is_no_failure_of_the_call(transport: HostTransport) -> None:
    outcome = io.BytesIO()

    transport.call(dump(int, "no number"), outcome)

    answer = read_outcome(outcome, HOST, "int")
    assert isinstance(answer, Error)
    assert isinstance(answer.error, ValueError)


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_progress_is_told(case: Case, transport: HostTransport, cwd: str, tmp_path: Path, kind: str) -> None:
    size = 3_000_000
    source = tmp_path / "source"
    if kind == "tree":
        source.mkdir()
    (source / "file" if kind == "tree" else source).write_bytes(os.urandom(size))

    for move in ("put", "get"):
        reports: list[tuple[int, int | None]] = []
        watch = Watch(on_progress=lambda done, total, reports=reports: reports.append((done, total)))  # type: ignore[misc]  # a default that binds
        if move == "put":
            transport.put(source, "sent", cwd=cwd, watch=watch)
        else:
            transport.get("sent", tmp_path / "back", cwd=cwd, watch=watch)
        done = [amount for amount, _ in reports]
        assert done == sorted(done)
        assert {total for _, total in reports} == ({size} if kind == "file" else {None})
        assert done[-1] == size if kind == "file" else size <= done[-1] < size + 30_000


def test_without_a_directory_relative_paths_start_in_the_home(
    case: Case, transport: HostTransport, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")

    transport.put(tmp_path / "file", f"sent {case.way}")
    transport.get(f"sent {case.way}", tmp_path / "back")

    assert (case.home / f"sent {case.way}").read_text() == (tmp_path / "back").read_text() == "x"


def test_the_path_of_nothing(transport: HostTransport, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        transport.get("", tmp_path)
    with pytest.raises(TransferError, match="the root directory has no name"):
        transport.put(Path("/"))


# The host ------------------------------------------------------------------------------------------------------------


def test_directories_are_known_until_they_are_gone(case: Case, transport: HostTransport, cwd: str) -> None:
    made = transport.create_tempdir()
    assert transport.directories == [cwd, made]
    assert transport.delete_dir(made, cwd=cwd)
    assert transport.directories == [cwd]
    transport.create_dir("relative", cwd=cwd)
    assert (case.there(cwd) / "relative").is_dir()
    assert transport.delete_dir("relative", cwd=cwd)


def test_free_ports_keep_their_order(transport: HostTransport) -> None:
    ports = [free_port() for _ in range(5)]

    assert transport.free_ports(ports) == ports
    assert transport.free_ports([]) == []


@pytest.mark.parametrize("kind", list(ForwardType))
def test_the_owner_of_a_tunnel_lives_as_long_as_it(transport: HostTransport, kind: ForwardType) -> None:
    class Owner:
        def __init__(self, gone: threading.Event) -> None:
            self.gone = gone

        def __del__(self) -> None:
            self.gone.set()

    gone = threading.Event()
    forwarding = Forwarding(kind, free_port(), free_port())
    tunnel = transport.expose(forwarding, Owner(gone))
    with pytest.raises(PortInUseError):
        transport.expose(forwarding, None)
    assert not gone.is_set()

    tunnel.request_stop()
    tunnel.join(10)

    assert wait_until(lambda: not tunnel.is_alive(), timeout=10)
    assert gone.wait(10)
    tunnel.terminate()


def test_how_it_stands_until_it_is_closed(case: Case, transport: HostTransport, cwd: str) -> None:
    assert transport.host == HOST
    assert transport.is_alive()
    assert transport.reaches_host(5)

    transport.clean_up()
    assert not case.there(cwd).exists()
    transport.close()
    transport.close()

    assert not transport.is_alive()
    assert not transport.reaches_host(5)
    with pytest.raises(RuntimeClosedError):
        transport.run("true")
    with pytest.raises(RuntimeClosedError):
        transport.call(dump(int), io.BytesIO())


def test_closing_ends_what_another_thread_waits_for(case: Case, transport: HostTransport) -> None:
    """Per step the command ends like one that was killed, because the host still tells of that."""
    command = case.script("echo begun; sleep 1000", stdout="begun\n", delay=1000)
    begun = threading.Event()
    ended: list[object] = []

    def run() -> None:
        try:
            ended.append(transport.run(command, watch=Watch(lambda _stream, _data: begun.set())).signal)
        except ConnectionLostError as error:
            ended.append((error.host, error.command, error.started))

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(10)

    transport.close()

    thread.join(20)
    assert not thread.is_alive()
    assert ended in ([15], [(HOST, command, True)])
    assert case.way == "per-step" or ended != [15]
