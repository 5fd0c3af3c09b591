"""Local processes of a mocked `subprocess`, which are read like any other."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from pytest_subprocess.fake_popen import FakePopen
from pytest_subprocess.fake_process import FakeProcess

from lazycluster._processes.local_process import LocalProcess
from lazycluster._processes.run import run_and_capture
from lazycluster._waiting import CancelledError, CancelToken, Deadline
from lazycluster.results import Collector, Stream

OUT, ERR = Stream.STDOUT, Stream.STDERR


@pytest.fixture
def output() -> Collector:
    return Collector()


def start_ssh(output: Collector) -> LocalProcess:
    return LocalProcess(["ssh", "web1"], on_output=output.write, deadline=Deadline(20))


def test_mocked_process_is_read_like_any_other(fp: FakeProcess, output: Collector) -> None:
    fp.register(["ssh", "web1"], stdout=b"out\n", stderr=b"err\n", returncode=3)
    process = start_ssh(output)
    assert process.is_stdin_open
    process.write(b"x" * 1_000_000)
    process.close_stdin()
    assert not process.pump(lambda: False)
    assert process.at_eof
    assert (process.wait(5), output.getvalue(OUT), output.getvalue(ERR)) == (3, b"out\n", b"err\n")
    process.close()


def test_mocked_process_may_print_more_than_a_pipe_holds(fp: FakeProcess, output: Collector) -> None:
    fp.register(["ssh", "web1"], stdout=b"x" * 3_000_000)
    process = start_ssh(output)
    process.pump(lambda: False)
    process.close()
    assert len(output.getvalue(OUT)) == 3_000_000


def test_mocked_process_with_callback_keeps_output(fp: FakeProcess, output: Collector) -> None:
    called: list[FakePopen] = []
    fp.register(["ssh", "web1"], stdout=b"out", callback=called.append)
    process = start_ssh(output)
    process.pump(lambda: False)
    process.close()
    assert (len(called), output.getvalue(OUT)) == (1, b"out")


def test_mocked_output_gets_exit_status(fp: FakeProcess, output: Collector) -> None:
    fp.register(["ssh", "web1"], stdout=b"out", returncode=4)
    process = LocalProcess(
        ["ssh", "web1"],
        on_output=output.write,
        deadline=Deadline(20),
        mocked_output=lambda data, exit_code: b"%s, %d." % (data, exit_code),
    )
    process.pump(lambda: False)
    process.close()
    assert (output.getvalue(OUT), output.getvalue(ERR)) == (b"out, 4.", b", 4.")


def test_mocked_process_cancelled_raises(fp: FakeProcess, output: Collector) -> None:
    fp.register(["ssh", "web1"], stdout=b"out")
    token = CancelToken()
    token.cancel()
    process = LocalProcess(["ssh", "web1"], on_output=output.write, deadline=Deadline(20), cancel_token=token)
    with pytest.raises(CancelledError):
        process.pump(lambda: False)
    process.close()
    token.close()


def test_mocked_process_raises_error_of_callback(fp: FakeProcess, output: Collector) -> None:
    def fail(_process: FakePopen) -> None:
        raise ValueError("of the test")

    fp.register(["ssh", "web1"], callback=fail)
    with pytest.raises(ValueError) as caught:
        start_ssh(output)
    assert caught.value.args == ("of the test",)


def test_mocked_process_leaks_no_descriptor(fp: FakeProcess, output: Collector) -> None:
    fp.register(["ssh", "web1"], stdout=b"out", occurrences=3)
    start_ssh(output).close()
    gc.collect()
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(2):
        start_ssh(output).close()
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_run_and_capture_returns_mocked_output(fp: FakeProcess) -> None:
    fp.register(["ssh", "-G", "web1"], stdout="hostname web1\n", stderr="noise", returncode=1)
    completed = run_and_capture(["ssh", "-G", "web1"], timeout=10)
    assert (completed.exit_code, completed.stdout, completed.stderr) == (1, "hostname web1\n", "noise")
