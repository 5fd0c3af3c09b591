"""The end: however it comes, nothing is left here or on the host."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lazycluster import CommandTimeoutError, Connection, Runtime, RuntimeClosedError, RuntimeTask, TaskExecutionError
from lazycluster.testing import LocalSshd
from tests.client_programs import ClientProgram, find_master
from tests.internals import ssh_client_of
from tests.observation import (
    EchoServer,
    assert_no_leaks,
    is_echoing,
    list_resources,
    listening_addresses,
    running_relay,
    unique_sleep_seconds,
)
from tests.processes import command_line, is_alive
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd


def sleeping(server: LocalSshd, command: str) -> list[int]:
    return [pid for pid in server.processes() if command_line(pid) == command]


class Busy:
    """A runtime with everything that it can have: tasks under way, tunnels, directories, daemons of commands."""

    def __init__(self, server: LocalSshd, service: EchoServer, resident: bool, **keywords: Any) -> None:
        self.server = server
        self.number = unique_sleep_seconds()
        self.ports = [reserve_free_port(), reserve_free_port()]
        self.runtime = Runtime(server.host, resident=resident, **(keywords or server.connection_kwargs))
        runtime = self.runtime
        runtime.expose_port_from_runtime(service.port, self.ports[0])
        runtime.expose_port_to_runtime(service.port, self.ports[1])
        runtime.create_tempdir()
        runtime.run(
            f"nohup setsid sleep {self.number} >/dev/null 2>&1 </dev/null & (sleep {self.number} &) ; mkdir sub"
        )
        self.tasks = [
            runtime.execute_task(RuntimeTask("command").run_command(f"sleep {self.number} & sleep {self.number}")),
            runtime.execute_task(RuntimeTask("function").run_function(wait_for_ever, self.number)),
        ]
        runtime.execute_task(RuntimeTask("done").run_function(bytes, 2000)).join()
        assert_eventually(lambda: len(sleeping(server, f"sleep {self.number}")) >= 5, "all of it runs")
        assert all(is_echoing(port) for port in self.ports)

    def left(self) -> list[str]:
        """Return what is still there of it."""
        processes = [command_line(pid) for pid in sleeping(self.server, f"sleep {self.number}")]
        return [*filter(None, processes), *(f"port {port}" for port in self.ports if listening_addresses(port))]


def wait_for_ever(number: str) -> None:
    subprocess.run(("sleep", number), check=False)


# Asked for -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "with", "with and exception"])
def test_everything_is_gone_when_it_returns(sshd: LocalSshd, way: str, resident: bool) -> None:
    with assert_no_leaks(sshd), EchoServer() as service:
        busy = Busy(sshd, service, resident)
        runtime = busy.runtime
        begun = time.monotonic()
        if way == "close":
            runtime.close()
        elif way == "with":
            with runtime:
                assert runtime.run("true").ok
        else:
            with pytest.raises(ZeroDivisionError), runtime:
                print(1 / 0)

        assert time.monotonic() - begun < 5
        assert busy.left() == [], "at once, not later"
        assert not Path(runtime.working_dir).exists()
        assert runtime.alive_process_count == 0
        for task in busy.tasks:
            with pytest.raises(TaskExecutionError, match="stopped"):
                task.join()
        runtime.cleanup()
        runtime.close()


def test_what_it_was_called_on_twice_at_once(sshd: LocalSshd, resident: bool) -> None:
    with assert_no_leaks(sshd), EchoServer() as service:
        busy = Busy(sshd, service, resident)
        threads = [threading.Thread(target=busy.runtime.cleanup) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert busy.left() == []


def test_a_daemon_of_a_command_is_ended_and_a_stranger_is_not(
    sshd: LocalSshd, monkeypatch: pytest.MonkeyPatch, resident: bool
) -> None:
    own, strange = unique_sleep_seconds(), unique_sleep_seconds()
    with Connection(sshd.host, **sshd.connection_kwargs) as stranger:
        stranger.run(f"setsid sleep {strange} >/dev/null 2>&1 </dev/null &")
        with (
            assert_no_leaks(sshd),
            Runtime(sshd.host, resident=resident, grace=0.5, **sshd.connection_kwargs) as runtime,
        ):
            runtime.run(f"trap '' HUP; setsid sleep {own} >/dev/null 2>&1 </dev/null &")
            task = RuntimeTask().run_command(f"(setsid sh -c 'trap \"\" TERM; sleep {own}; sleep {own}' &)")
            runtime.execute_task(task, execute_async=False)
            assert_eventually(lambda: len(sleeping(sshd, f"sleep {own}")) >= 2, "both run")
        assert not sleeping(sshd, f"sleep {own}")
        [pid] = sleeping(sshd, f"sleep {strange}")
        os.kill(pid, signal.SIGKILL)


def test_a_named_working_directory_stays_with_its_content(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    work = tmp_path / "work"
    with assert_no_leaks(sshd), Runtime(sshd.host, str(work), resident=resident, **sshd.connection_kwargs) as runtime:
        runtime.run("echo kept >file")
        temporary = Path(runtime.create_tempdir())
        assert temporary.is_dir()
    assert (work / "file").read_text() == "kept\n"
    assert not temporary.exists()


def test_files_that_cannot_be_listed_or_written_go_too(sshd: LocalSshd, resident: bool) -> None:
    with assert_no_leaks(sshd), Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        runtime.run("mkdir -p a/b; touch a/b/c 'new\nline' -- -dash; chmod 000 a/b a; ln -s / root; mkfifo pipe")
        runtime.run("mkdir ' ' && cd ' ' && touch '*' '..x' && chmod 555 .")
    assert Path("/etc/passwd").exists(), "no link was followed"


def test_what_comes_too_late_is_refused_and_leaves_nothing(sshd: LocalSshd, resident: bool) -> None:
    with assert_no_leaks(sshd):
        runtime = Runtime(sshd.host, resident=resident, **sshd.connection_kwargs)
        runtime.cleanup()
        port = reserve_free_port()
        for use in (
            lambda: runtime.expose_port_from_runtime(9, port),
            lambda: runtime.expose_port_to_runtime(9, port),
            lambda: runtime.execute_task(RuntimeTask().run_command("touch never")),
        ):
            with pytest.raises(RuntimeClosedError):
                use()
        assert listening_addresses(port) == []


# The link is gone ----------------------------------------------------------------------------------------------------


def test_a_dead_link_makes_it_quick(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    """Here all is gone at once; the host ends what was started when it sees the end of the link.

    Daemons of commands too, where a supervisor is there to end them.
    """
    daemons = 0 if resident else 2
    server = make_sshd(environment={"TMPDIR": str(tmp_path)})
    with EchoServer() as service, running_relay(server, tmp_path) as (relay, keywords):
        before = list_resources(server).keys()
        busy = Busy(server, service, resident, **keywords)
        relay.cut()
        begun = time.monotonic()
        busy.runtime.cleanup()
        took = time.monotonic() - begun

        assert took < 5
        assert listening_addresses(busy.ports[0]) == []
        new = [(thing, words) for thing, words in list_resources(server).items() if thing not in before]
        assert [each for each in new if each[1].startswith("ssh: ") or each[0].startswith("thread")] == []
        assert all(process.exitcode is not None for process in busy.runtime.task_processes)
        relay.restore()
        assert_eventually(lambda: server.connections() == 0, "the host has noticed")
        assert_eventually(lambda: len(busy.left()) <= daemons, f"the tasks have ended, but {busy.left()}", timeout=8)
        assert all(f"sleep {busy.number}" == left for left in busy.left()), "what daemons of commands there are"


def test_a_link_that_broke_and_is_back_is_used_to_clean_up(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    with assert_no_leaks(sshd), running_relay(sshd, tmp_path) as (relay, keywords):
        with Runtime(sshd.host, resident=resident, **keywords) as runtime:
            number = unique_sleep_seconds()
            runtime.run(f"setsid sleep {number} >/dev/null 2>&1 </dev/null &")
            relay.drop()
            assert_eventually(lambda: not ssh_client_of(runtime).is_connected, "the break is noticed")
        assert not Path(runtime.working_dir).exists()
        assert not sleeping(sshd, f"sleep {number}")


def test_a_host_that_is_gone_makes_it_quick(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    server = make_sshd(environment={"TMPDIR": str(tmp_path)})
    with EchoServer() as service:
        busy = Busy(server, service, resident)
        server.stop()
        begun = time.monotonic()
        busy.runtime.cleanup()
        assert time.monotonic() - begun < 5
        assert_eventually(lambda: not any(listening_addresses(port) for port in busy.ports), "no port is left")


def test_a_master_that_is_stopped_makes_it_quick(sshd: LocalSshd, resident: bool) -> None:
    with assert_no_leaks(sshd):
        runtime = Runtime(sshd.host, resident=resident, **sshd.connection_kwargs)
        os.kill(find_master(sshd.port).pid, signal.SIGSTOP)
        begun = time.monotonic()
        runtime.cleanup()
        assert time.monotonic() - begun < 10


# Forgotten -----------------------------------------------------------------------------------------------------------


def test_a_runtime_that_is_forgotten_is_cleaned_up(sshd: LocalSshd, resident: bool) -> None:
    with assert_no_leaks(sshd):
        runtime = Runtime(sshd.host, resident=resident, **sshd.connection_kwargs)
        number = unique_sleep_seconds()
        runtime.run(f"setsid sleep {number} >/dev/null 2>&1 </dev/null &")
        runtime.execute_task(RuntimeTask("done").run_command("true")).join()
        runtime.create_tempdir()
        working_dir = Path(runtime.working_dir)
        gone = weakref.ref(runtime)
        del runtime
        gc.collect()

        assert gone() is None, "nothing keeps it: not the end of the program, nor what it has run"
        assert_eventually(lambda: not working_dir.exists(), "its directory is removed")
        assert_eventually(lambda: not sleeping(sshd, f"sleep {number}"), "its daemons are ended")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Garbage goes by its reference counts alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_connection_dropped_ends_without_gc(sshd: LocalSshd, tmp_path: Path, no_collector: None) -> None:
    with assert_no_leaks(sshd):
        connection = Connection(sshd.host, **sshd.connection_kwargs)
        connection.run("cat", stdin=bytes(1_000_000))
        with pytest.raises(CommandTimeoutError):
            connection.run(["sleep", "60"], timeout=0.1)
        connection.put(Path(__file__), str(tmp_path / "sent"))
        connection.get(str(tmp_path / "sent"), tmp_path / "fetched")
        master = find_master(sshd.port).pid
        del connection
        assert_eventually(lambda: not is_alive(master), "its master ends")


def test_runtime_dropped_ends_after_failed_tasks(sshd: LocalSshd, resident: bool) -> None:
    def fail(runtime: Runtime) -> None:
        with pytest.raises(TaskExecutionError):
            runtime.execute_task(RuntimeTask().run_command("false"), execute_async=False)
        task = runtime.execute_task(RuntimeTask().run_command("false"))
        with pytest.raises(TaskExecutionError):
            task.join()
        with pytest.raises(TaskExecutionError):
            list(runtime.execute_task(RuntimeTask().run_command("false").run_function(bytes)).function_returns)

    with assert_no_leaks(sshd):
        runtime = Runtime(sshd.host, resident=resident, **sshd.connection_kwargs)
        fail(runtime)
        gone = weakref.ref(runtime)
        del runtime
        gc.collect()
        assert gone() is None, "no error keeps it"


def test_a_runtime_that_is_forgotten_lives_as_long_as_its_tasks(
    sshd: LocalSshd, tmp_path: Path, resident: bool
) -> None:
    go = tmp_path / "go"
    with assert_no_leaks(sshd):
        runtime = Runtime(sshd.host, resident=resident, **sshd.connection_kwargs)
        command = f"while [ ! -e {go} ]; do sleep 0.01; done; pwd"
        task = runtime.execute_task(RuntimeTask().run_command(command))
        working_dir = Path(runtime.working_dir)
        gone = weakref.ref(runtime)
        del runtime
        gc.collect()
        assert working_dir.exists()
        go.touch()
        task.join()
        gc.collect()

        assert task.execution_log == [f"{working_dir}\n"]
        assert_eventually(lambda: gone() is None and not working_dir.exists(), "it is cleaned up")


def test_a_runtime_that_is_forgotten_lives_as_long_as_its_tunnels(sshd: LocalSshd, resident: bool) -> None:
    """As in `Runtime("host").expose_port_from_runtime(8787)`."""
    with assert_no_leaks(sshd), EchoServer() as service:
        port = reserve_free_port()
        runtime = Runtime(sshd.host, resident=resident, **sshd.connection_kwargs)
        process = runtime.get_process(runtime.expose_port_from_runtime(service.port, port))
        working_dir = Path(runtime.working_dir)
        gone = weakref.ref(runtime)
        del runtime
        gc.collect()
        assert is_echoing(port)
        process.terminate()
        del process
        gc.collect()

        assert listening_addresses(port) == []
        assert_eventually(lambda: gone() is None and not working_dir.exists(), "it is cleaned up")


_PROGRAM = """
    from lazycluster import Runtime, RuntimeTask
    runtime = Runtime({host!r}, config_file={config!r}, resident={resident})
    runtime.expose_port_from_runtime({service}, {ports[0]})
    runtime.expose_port_to_runtime({service}, {ports[1]})
    runtime.create_tempdir()
    runtime.run("setsid sleep {number} >/dev/null 2>&1 </dev/null &")
    task = runtime.execute_task(RuntimeTask().run_command("sleep {number}"))
    runtime.execute_task(RuntimeTask().run_function(bytes, 2000000)).join()
    second = Runtime({host!r}, config_file={config!r}, resident={resident})
    second.run("true")
    say(runtime.working_dir)
    {end}
"""

ENDINGS = {
    "an exception": ("raise RuntimeError('wanted')", 1, "wanted"),
    "sys.exit in a function": ("def leave():\n        with runtime:\n            sys.exit(4)\n    leave()", 4, ""),
    "Ctrl-C": ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt"),
    "the last line, and a reference cycle": (
        "runtime.myself = runtime; second.other = runtime; runtime.other = second",
        0,
        "",
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_leaving_the_program_leaves_nothing(sshd: LocalSshd, ending: str, resident: bool) -> None:
    end, status, said = ENDINGS[ending]
    number, ports = unique_sleep_seconds(), [reserve_free_port(), reserve_free_port()]
    with assert_no_leaks(sshd), EchoServer() as service:
        text = _PROGRAM.format(
            host=sshd.host,
            config=str(sshd.config_file),
            service=service.port,
            ports=ports,
            number=number,
            end=end,
            resident=resident,
        )
        with ClientProgram(text) as program:
            working_dir = Path(program.read_line())
            code, _, errors = program.wait(30)

        assert code == status, errors
        assert said in errors
        assert (errors == "") is (said == "")
        assert not working_dir.exists()
        assert not sleeping(sshd, f"sleep {number}")
        assert not any(listening_addresses(port) for port in ports)


def test_a_fork_of_the_program_does_not_clean_up_what_is_its_parents(sshd: LocalSshd, resident: bool) -> None:
    text = f"""
    from lazycluster import Runtime
    runtime = Runtime({sshd.host!r}, config_file={str(sshd.config_file)!r}, resident={resident})
    child = os.fork()
    if child == 0:
        del runtime
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert runtime.run("echo still here").stdout == "still here\\n"
    assert runtime.run('[ -d "$WORKING_DIR" ]').ok
    say("done")
    """
    with assert_no_leaks(sshd), ClientProgram(text) as program:
        assert program.wait(30)[:2] == (0, "done\n")


def test_importing_starts_nothing(sshd: LocalSshd) -> None:
    text = """
    import logging
    before = set(os.listdir("/proc/self/task")), list(logging.root.handlers), signal.getsignal(signal.SIGTERM)
    import lazycluster
    assert before == (set(os.listdir("/proc/self/task")), logging.root.handlers, signal.getsignal(signal.SIGTERM))
    for name in ("rich", "pexpect", "dask", "multiprocessing"):
        assert name not in sys.modules, name
    say("done")
    """
    with assert_no_leaks(sshd), ClientProgram(text) as program:
        assert program.wait(30) == (0, "done\n", "")


def test_nothing_is_left_in_the_directories_for_temporary_files(
    make_sshd: MakeSshd, tmp_path: Path, resident: bool
) -> None:
    """Seen on both sides apart: the host has a TMPDIR of its own."""
    theirs, ours = tmp_path / "theirs", tmp_path / "o"
    theirs.mkdir()
    ours.mkdir()
    server = make_sshd(environment={"TMPDIR": str(theirs)})
    text = f"""
    from lazycluster import Runtime, RuntimeTask
    with Runtime({server.host!r}, config_file={str(server.config_file)!r}, resident={resident}) as runtime:
        assert runtime.working_dir.startswith({str(theirs)!r})
        task = RuntimeTask().run_command("mktemp; cat <<END\\nhere\\nEND").run_function(bytes, 3000000)
        task.send_file({str(Path(__file__).parent)!r}, "it's a name")
        task.get_file("it's a name", {str(tmp_path / "back")!r})
        task.send_file({__file__!r}, "it's a file").get_file("it's a file", {str(tmp_path / "file")!r})
        runtime.execute_task(task, execute_async=False)
        runtime.create_tempdir()
        runtime.run("cat", stdin=bytes(100000))
    """
    with ClientProgram(text, environment={"TMPDIR": str(ours)}) as program:
        assert program.wait(60) == (0, "", "")

    left = [path.name for path in theirs.iterdir()]
    assert [name for name in left if not name.startswith("tmp.")] == []
    assert len(left) == 1, "the command's own file is its own affair"
    assert list(ours.iterdir()) == []
