"""`RuntimeTransport`, the interface that every transport implements: its parts that no public method shows."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import CommandStoppedError, CommandTimeoutError, PortInUseError, RuntimeClosedError
from lazycluster._functions.function_call import FunctionCall
from lazycluster._functions.outcome import read_outcome
from lazycluster._functions.serialize import serialize_call
from lazycluster._model.command import Command
from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._model.watch import Watch
from lazycluster._transports import factory
from lazycluster._waiting import CancelToken
from lazycluster.results import Collector, Error, Stream, Value
from lazycluster.testing import FakeHost, LocalSshd
from tests.client_programs import find_host_pids
from tests.observation import unique_sleep_seconds
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazycluster._transports.interface import RuntimeTransport
    from lazycluster.options import RuntimeOptions

HOST_ALIAS = "local"


@pytest.fixture(
    params=[
        pytest.param("per-command", marks=pytest.mark.real),
        pytest.param("resident", marks=pytest.mark.real),
        "fake",
    ]
)
def fake_or_real(request: pytest.FixtureRequest) -> Iterator[FakeHost | None]:
    """Return the fake host of the transport, or None for a real host."""
    with ExitStack() as stack:
        yield stack.enter_context(FakeHost()) if request.param == "fake" else None


@pytest.fixture
def transport(fake_or_real: FakeHost | None, request: pytest.FixtureRequest) -> Iterator[RuntimeTransport]:
    """Return a transport that is set up, in a temporary directory; a test may close it."""
    options: RuntimeOptions = {}
    if fake_or_real is None:
        server: LocalSshd = request.getfixturevalue("sshd")
        kind = request.node.callspec.params["fake_or_real"]
        options = {"config_file": str(server.config_file), "grace": 1.0, "resident": kind == "resident"}
    transport = factory.make_transport(HOST_ALIAS, options)
    assert transport.temp_dirs == []
    directory, info = transport.set_up(None)
    assert info.python_version is not None
    assert transport.temp_dirs == [directory]
    yield transport
    if transport.is_alive():
        transport.clean_up()
        transport.close()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def cwd(transport: RuntimeTransport) -> str:
    return transport.temp_dirs[0]


@pytest.fixture
def endless_command(fake_or_real: FakeHost | None) -> str:
    """Return a command that prints "started" and does not end by itself."""
    command = f"echo started; exec sleep {unique_sleep_seconds()}"
    if fake_or_real is not None:
        fake_or_real.on(command, stdout="started\n", delay=float("inf"))
    return command


@pytest.fixture
def cancel_token() -> Iterator[CancelToken]:
    token = CancelToken()
    yield token
    token.close()


# Commands ------------------------------------------------------------------------------------------------------------


def test_run_collector_keeps_output_before_timeout(transport: RuntimeTransport, endless_command: str) -> None:
    collector = Collector()

    with pytest.raises(CommandTimeoutError) as caught:
        transport.run(Command(endless_command, timeout=2.0), Watch(collector=collector))

    assert collector.getvalue(Stream.STDOUT) == caught.value.stdout_bytes == b"started\n"


def test_run_cancelled_token_stops_it(
    transport: RuntimeTransport, endless_command: str, cancel_token: CancelToken
) -> None:
    cancel_token.cancel()

    with pytest.raises(CommandStoppedError) as caught:
        transport.run(Command(endless_command), Watch(cancel_token=cancel_token))

    assert (caught.value.host, caught.value.command) == (HOST_ALIAS, endless_command)


def test_run_token_cancelled_on_output_stops_it(
    transport: RuntimeTransport, endless_command: str, cancel_token: CancelToken
) -> None:
    watch = Watch(lambda _stream, _data: cancel_token.cancel(), cancel_token=cancel_token)

    with pytest.raises(CommandStoppedError):
        transport.run(Command(endless_command), watch)


# Functions -----------------------------------------------------------------------------------------------------------


def test_call_outcome_replaces_content_of_file(transport: RuntimeTransport, cwd: str) -> None:
    outcome = io.BytesIO(b"something else")

    for payload, expected in ((serialize_call(os.getcwd), cwd), (serialize_call(len, "four"), 4)):
        transport.call(FunctionCall(payload, cwd=cwd), outcome)
        assert read_outcome(outcome, HOST_ALIAS, payload.function) == Value(expected)


def test_call_output_is_watched_as_standard_error(transport: RuntimeTransport) -> None:
    seen: list[tuple[Stream, bytes]] = []
    collector = Collector()

    transport.call(
        FunctionCall(serialize_call(print, "shown")),
        io.BytesIO(),
        Watch(lambda stream, data: seen.append((stream, data)), collector=collector),
    )

    assert {stream for stream, _ in seen} == {Stream.STDERR}
    assert b"".join(data for _, data in seen) == collector.getvalue(Stream.STDERR) == b"shown\n"


def test_call_timeout_leaves_transport_usable(transport: RuntimeTransport, cwd: str) -> None:
    def print_and_wait() -> None:
        print("started")
        directory = Path.cwd()
        while directory.exists():
            time.sleep(0.01)

    with pytest.raises(CommandTimeoutError) as caught:
        transport.call(FunctionCall(serialize_call(print_and_wait), cwd=cwd, timeout=3.0), io.BytesIO())

    assert (caught.value.host, caught.value.timeout) == (HOST_ALIAS, 3.0)
    assert caught.value.stderr == "started\n"
    outcome = io.BytesIO()
    transport.call(FunctionCall(serialize_call(len, "four")), outcome)
    assert read_outcome(outcome, HOST_ALIAS, "len") == Value(4)


@pytest.mark.parametrize("fake_or_real", ["per-command", "resident"], indirect=True)
@pytest.mark.real
def test_call_timeout_ends_children(transport: RuntimeTransport, sshd: LocalSshd) -> None:
    """Also children in sessions of their own, and a shell that ignores SIGTERM."""
    seconds = unique_sleep_seconds()
    started = threading.Event()

    def start_children() -> None:
        subprocess.Popen(("sleep", seconds), start_new_session=True)
        subprocess.Popen(("sh", "-c", f"trap '' TERM; sleep {seconds} & echo started; wait"))
        time.sleep(10_000)

    with pytest.raises(CommandTimeoutError):
        transport.call(
            FunctionCall(serialize_call(start_children), timeout=3.0),
            io.BytesIO(),
            Watch(lambda _stream, _data: started.set()),
        )

    assert started.is_set()
    assert_eventually(lambda: not find_host_pids(sshd, f"sleep {seconds}"), "no child is left", timeout=30)


def test_call_failing_function_is_an_error_outcome(transport: RuntimeTransport) -> None:
    outcome = io.BytesIO()

    transport.call(FunctionCall(serialize_call(int, "no number")), outcome)

    result = read_outcome(outcome, HOST_ALIAS, "int")
    assert isinstance(result, Error)
    assert isinstance(result.error, ValueError)


# The host ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_put_and_get_report_progress(transport: RuntimeTransport, cwd: str, tmp_path: Path, kind: str) -> None:
    """A resident transport moves small files by itself, and no public method shows its progress."""
    size = 3_000_000
    source = tmp_path / "source"
    if kind == "tree":
        source.mkdir()
    (source / "file" if kind == "tree" else source).write_bytes(os.urandom(size))
    reports: list[tuple[int, int | None]] = []
    watch = Watch(on_progress=lambda done, total: reports.append((done, total)))

    for action in ("put", "get"):
        reports.clear()
        if action == "put":
            transport.put(source, "sent", cwd=cwd, watch=watch)
        else:
            transport.get("sent", tmp_path / "fetched", cwd=cwd, watch=watch)
        amounts = [amount for amount, _ in reports]
        assert amounts == sorted(amounts)
        assert {total for _, total in reports} == ({size} if kind == "file" else {None})
        assert amounts[-1] == size if kind == "file" else size <= amounts[-1] < size + 30_000


def test_temp_dirs_lists_what_is_to_be_removed(transport: RuntimeTransport, cwd: str) -> None:
    directory = transport.create_tempdir()
    assert transport.temp_dirs == [cwd, directory]

    assert transport.delete_dir(directory, cwd=cwd)
    assert transport.temp_dirs == [cwd]

    transport.create_dir("relative", cwd=cwd)
    assert Path(cwd, "relative").is_dir()
    assert transport.delete_dir("relative", cwd=cwd)
    assert transport.temp_dirs == [cwd]


@pytest.mark.parametrize("kind", list(ForwardType), ids=lambda kind: kind.name.lower())
def test_open_tunnel_keeps_owner_until_it_ends(transport: RuntimeTransport, kind: ForwardType) -> None:
    class Owner:
        def __init__(self, gone: threading.Event) -> None:
            self.gone = gone

        def __del__(self) -> None:
            self.gone.set()

    owner_gone = threading.Event()
    forwarding = Forwarding(kind, reserve_free_port(), reserve_free_port())
    tunnel = transport.open_tunnel(forwarding, Owner(owner_gone))
    with pytest.raises(PortInUseError):
        transport.open_tunnel(forwarding, None)
    assert not owner_gone.is_set()

    tunnel.request_stop()
    tunnel.join(30)

    assert_eventually(lambda: not tunnel.is_alive(), "the tunnel has ended", timeout=30)
    assert owner_gone.wait(30)
    tunnel.terminate()


def test_close_transport_ends_every_use(transport: RuntimeTransport, cwd: str) -> None:
    assert transport.host == HOST_ALIAS
    assert transport.is_alive()
    assert transport.can_reach_host(30)

    transport.clean_up()
    assert not Path(cwd).exists()
    transport.close()
    transport.close()

    assert not transport.is_alive()
    assert not transport.can_reach_host(30)
    with pytest.raises(RuntimeClosedError):
        transport.run(Command("true"))
    with pytest.raises(RuntimeClosedError):
        transport.call(FunctionCall(serialize_call(int)), io.BytesIO())
