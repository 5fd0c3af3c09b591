"""What a runtime's way onto a host does by itself: `RuntimeTransport`, the interface under `Runtime`."""

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
from lazycluster._functions.function_call import FunctionCall
from lazycluster._functions.outcome import read_outcome
from lazycluster._functions.serialize import serialize_call
from lazycluster._model.command import Command
from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._model.watch import Watch
from lazycluster._transports import factory
from lazycluster._transports.interface import RuntimeTransport
from lazycluster._waiting import CancelToken
from lazycluster.results import Collector, Error, Stream, Value
from tests.contract.conftest import HOST_ALIAS, TransportCase
from tests.reserved_ports import reserve_free_port
from tests.waiting import wait_until


@pytest.fixture
def transport(case: TransportCase) -> Iterator[RuntimeTransport]:
    """Return a way that is set up, in a temporary directory; a test may close it."""
    made = factory.make_transport(HOST_ALIAS, case.options)
    assert made.temp_dirs == []
    directory, info = made.set_up(None)
    assert info.python_version is not None
    assert made.temp_dirs == [directory]
    yield made
    if made.is_alive():
        made.clean_up()
        made.close()
    discard(case.local_path(directory))


@pytest.fixture
def cwd(transport: RuntimeTransport) -> str:
    return transport.temp_dirs[0]


# Commands ------------------------------------------------------------------------------------------------------------


def test_where_a_command_runs_and_what_it_reads(case: TransportCase, transport: RuntimeTransport, cwd: str) -> None:
    case.script('pwd; echo "$X"; cat', stdout=f"{cwd}\nset\nread")
    case.script("pwd", stdout=f"{case.home}\n")

    result = transport.run(Command('pwd; echo "$X"; cat', cwd=cwd, env={"X": "set"}, stdin=b"read"))

    assert result.stdout == f"{cwd}\nset\nread"
    assert transport.run(Command("pwd")).stdout == f"{case.home}\n"
    assert transport.run(Command("pwd", cwd="~")).stdout == f"{case.home}\n"


def test_much_standard_input(case: TransportCase, transport: RuntimeTransport) -> None:
    data = os.urandom(3_000_000)

    assert transport.run(Command(case.script("cat", stdout=data), stdin=data)).stdout_bytes == data


@pytest.mark.parametrize("name", ["no-identifier", "", "1ST", "A=B"])
def test_a_variable_that_is_none(transport: RuntimeTransport, name: str) -> None:
    with pytest.raises(ValueError, match="environment"):
        transport.run(Command("true", env={name: "x"}))


@pytest.mark.parametrize("cwd", ["no such directory", "/no/such", "~/no such"])
def test_a_directory_that_is_not_there(transport: RuntimeTransport, cwd: str) -> None:
    with pytest.raises(WorkingDirectoryError) as caught:
        transport.run(Command("true", cwd=cwd))
    assert (caught.value.host, caught.value.path) == (HOST_ALIAS, cwd)


def test_output_is_handed_on_as_it_comes_and_collected(case: TransportCase, transport: RuntimeTransport) -> None:
    seen: list[tuple[Stream, bytes]] = []
    collector = Collector()
    command = case.script("echo out; sleep 0.1; echo err >&2; exit 5", stdout="out\n", stderr="err\n", exit_code=5)

    result = transport.run(
        Command(command), Watch(on_output=lambda stream, data: seen.append((stream, data)), collector=collector)
    )

    assert seen == [(Stream.STDOUT, b"out\n"), (Stream.STDERR, b"err\n")]
    assert collector.getvalue(Stream.STDOUT) == b"out\n"
    assert (result.output, result.exit_code) == ("out\nerr\n", 5)


def test_a_collector_has_what_came_before_a_timeout(case: TransportCase, transport: RuntimeTransport) -> None:
    collector = Collector()
    command = case.script("echo begun; sleep 1000", stdout="begun\n", delay=1000)

    with pytest.raises(CommandTimeoutError) as caught:
        transport.run(Command(command, timeout=0.3), Watch(collector=collector))

    assert collector.getvalue(Stream.STDOUT) == caught.value.stdout_bytes == b"begun\n"


def test_a_stop_that_was_asked_for_before(case: TransportCase, transport: RuntimeTransport) -> None:
    cancel_token = CancelToken()
    cancel_token.cancel()

    with pytest.raises(CommandStoppedError) as caught:
        transport.run(Command(case.script("sleep 1000", delay=1000)), Watch(cancel_token=cancel_token))

    assert (caught.value.host, caught.value.command) == (HOST_ALIAS, "sleep 1000")
    cancel_token.close()


def test_a_stop_while_it_runs(case: TransportCase, transport: RuntimeTransport) -> None:
    cancel_token = CancelToken()
    command = case.script("echo begun; sleep 1000", stdout="begun\n", delay=1000)
    begun = time.monotonic()

    with pytest.raises(CommandStoppedError):
        transport.run(Command(command), Watch(lambda _stream, _data: cancel_token.cancel(), cancel_token=cancel_token))

    assert time.monotonic() - begun < 5
    cancel_token.close()


# Functions -----------------------------------------------------------------------------------------------------------


def test_the_outcome_of_a_function_replaces_what_was_in_the_file(transport: RuntimeTransport, cwd: str) -> None:
    outcome = io.BytesIO(b"something else")

    for payload, expected in ((serialize_call(os.getcwd), cwd), (serialize_call(len, "four"), 4)):
        transport.call(FunctionCall(payload, cwd=cwd), outcome)
        assert read_outcome(outcome, HOST_ALIAS, payload.function) == Value(expected)


def test_a_function_is_followed_like_a_command(transport: RuntimeTransport) -> None:
    seen: list[tuple[Stream, bytes]] = []
    collector = Collector()

    transport.call(
        FunctionCall(serialize_call(print, "shown")),
        io.BytesIO(),
        Watch(lambda stream, data: seen.append((stream, data)), collector=collector),
    )

    assert {stream for stream, _ in seen} == {Stream.STDERR}
    assert b"".join(data for _, data in seen) == collector.getvalue(Stream.STDERR) == b"shown\n"


def test_a_function_that_takes_too_long(transport: RuntimeTransport, cwd: str) -> None:
    def endless() -> None:
        print("begun")
        directory = Path.cwd()
        while directory.exists():
            time.sleep(0.01)

    with pytest.raises(CommandTimeoutError) as caught:
        transport.call(FunctionCall(serialize_call(endless), cwd=cwd, timeout=1.0), io.BytesIO())

    assert (caught.value.host, caught.value.timeout) == (HOST_ALIAS, 1.0)
    assert caught.value.command.startswith("python: ")
    assert "begun\n" in caught.value.stderr
    outcome = io.BytesIO()
    transport.call(FunctionCall(serialize_call(len, "four")), outcome)
    assert read_outcome(outcome, HOST_ALIAS, "len") == Value(4)


def test_a_function_that_fails_is_no_failure_of_the_call(transport: RuntimeTransport) -> None:
    outcome = io.BytesIO()

    transport.call(FunctionCall(serialize_call(int, "no number")), outcome)

    answer = read_outcome(outcome, HOST_ALIAS, "int")
    assert isinstance(answer, Error)
    assert isinstance(answer.error, ValueError)


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_progress_is_told(
    case: TransportCase, transport: RuntimeTransport, cwd: str, tmp_path: Path, kind: str
) -> None:
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
    case: TransportCase, transport: RuntimeTransport, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")

    transport.put(tmp_path / "file", f"sent {case.kind}")
    transport.get(f"sent {case.kind}", tmp_path / "back")

    assert (case.home / f"sent {case.kind}").read_text() == (tmp_path / "back").read_text() == "x"


def test_the_path_of_nothing(transport: RuntimeTransport, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        transport.get("", tmp_path)
    with pytest.raises(TransferError, match="the root directory has no name"):
        transport.put(Path("/"))


# The host ------------------------------------------------------------------------------------------------------------


def test_directories_are_known_until_they_are_gone(case: TransportCase, transport: RuntimeTransport, cwd: str) -> None:
    made = transport.create_tempdir()
    assert transport.temp_dirs == [cwd, made]
    assert transport.delete_dir(made, cwd=cwd)
    assert transport.temp_dirs == [cwd]
    transport.create_dir("relative", cwd=cwd)
    assert (case.local_path(cwd) / "relative").is_dir()
    assert transport.delete_dir("relative", cwd=cwd)


def test_free_ports_keep_their_order(transport: RuntimeTransport) -> None:
    ports = [reserve_free_port() for _ in range(5)]

    assert transport.free_ports(ports) == ports
    assert transport.free_ports([]) == []


@pytest.mark.parametrize("kind", list(ForwardType))
def test_the_owner_of_a_tunnel_lives_as_long_as_it(transport: RuntimeTransport, kind: ForwardType) -> None:
    class Owner:
        def __init__(self, gone: threading.Event) -> None:
            self.gone = gone

        def __del__(self) -> None:
            self.gone.set()

    gone = threading.Event()
    forwarding = Forwarding(kind, reserve_free_port(), reserve_free_port())
    tunnel = transport.open_tunnel(forwarding, Owner(gone))
    with pytest.raises(PortInUseError):
        transport.open_tunnel(forwarding, None)
    assert not gone.is_set()

    tunnel.request_stop()
    tunnel.join(10)

    assert wait_until(lambda: not tunnel.is_alive(), timeout=10)
    assert gone.wait(10)
    tunnel.terminate()


def test_how_it_stands_until_it_is_closed(case: TransportCase, transport: RuntimeTransport, cwd: str) -> None:
    assert transport.host == HOST_ALIAS
    assert transport.is_alive()
    assert transport.can_reach_host(5)

    transport.clean_up()
    assert not case.local_path(cwd).exists()
    transport.close()
    transport.close()

    assert not transport.is_alive()
    assert not transport.can_reach_host(5)
    with pytest.raises(RuntimeClosedError):
        transport.run(Command("true"))
    with pytest.raises(RuntimeClosedError):
        transport.call(FunctionCall(serialize_call(int)), io.BytesIO())


def test_closing_ends_what_another_thread_waits_for(case: TransportCase, transport: RuntimeTransport) -> None:
    """Per step the command ends like one that was killed, because the host still tells of that."""
    command = case.script("echo begun; sleep 1000", stdout="begun\n", delay=1000)
    begun = threading.Event()
    ended: list[object] = []

    def run() -> None:
        try:
            ended.append(transport.run(Command(command), Watch(lambda _stream, _data: begun.set())).signal)
        except ConnectionLostError as error:
            ended.append((error.host, error.command, error.started))

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(10)

    transport.close()

    thread.join(20)
    assert not thread.is_alive()
    assert ended in ([15], [(HOST_ALIAS, command, True)])
    assert case.kind == "per-step" or ended != [15]
