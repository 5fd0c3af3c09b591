"""The end of a runtime of any kind: nothing is left on either machine."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lazycluster import (
    CommandStoppedError,
    CommandTimeoutError,
    Connection,
    Runtime,
    RuntimeClosedError,
    RuntimeTask,
    TaskExecutionError,
)
from lazycluster.testing import LocalSshd
from tests.client_programs import ClientProgram, find_host_pids, find_master, find_masters
from tests.observation import (
    EchoServer,
    assert_no_leaks,
    is_echoing,
    list_resources,
    listening_addresses,
    running_relay,
    unique_sleep_seconds,
)
from tests.processes import is_alive
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd


class BusyRuntime:
    """A runtime with tasks under way, tunnels, temporary directories and daemons of commands.

    All its processes are `sleep` of one number: two daemons, two of the command, and one of the function.
    """

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
            runtime.execute_task(RuntimeTask("function").run_function(sleep_in_child, self.number)),
        ]
        runtime.execute_task(RuntimeTask("done").run_function(bytes, 2000)).join()
        assert_eventually(lambda: len(self.find_pids()) == 5, "all of it runs")
        assert all(is_echoing(port) for port in self.ports)

    def find_pids(self) -> list[int]:
        return find_host_pids(self.server, f"sleep {self.number}")

    def leftovers(self) -> list[str]:
        """Return its processes and ports that are left."""
        return [
            *(f"process {pid}" for pid in self.find_pids()),
            *(f"port {port}" for port in self.ports if listening_addresses(port)),
        ]


def sleep_in_child(number: str) -> None:
    subprocess.run(("sleep", number), check=False)


# By a call -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["close", "with", "with and exception"])
def test_cleanup_ends_everything_before_it_returns(sshd: LocalSshd, ending: str, resident: bool) -> None:
    with assert_no_leaks(sshd), EchoServer() as service:
        busy = BusyRuntime(sshd, service, resident)
        runtime = busy.runtime
        if ending == "close":
            runtime.close()
        elif ending == "with":
            with runtime:
                assert runtime.run("true").ok
        else:
            with pytest.raises(ZeroDivisionError), runtime:
                print(1 / 0)

        assert busy.leftovers() == [], "gone when the call returns, not later"
        assert not Path(runtime.working_dir).exists()
        assert runtime.alive_process_count == 0
        for task in busy.tasks:
            with pytest.raises(TaskExecutionError) as caught:
                task.join()
            assert isinstance(caught.value.__cause__, CommandStoppedError)
        runtime.cleanup()
        runtime.close()


def test_cleanup_in_four_threads_at_once_leaves_nothing(sshd: LocalSshd, resident: bool) -> None:
    with assert_no_leaks(sshd), EchoServer() as service:
        busy = BusyRuntime(sshd, service, resident)
        threads = [threading.Thread(target=busy.runtime.cleanup) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert busy.leftovers() == []


def test_cleanup_ends_daemons_of_its_own_commands_only(sshd: LocalSshd, resident: bool) -> None:
    own, foreign = unique_sleep_seconds(), unique_sleep_seconds()
    with Connection(sshd.host, **sshd.connection_kwargs) as other_connection:
        other_connection.run(f"setsid sleep {foreign} >/dev/null 2>&1 </dev/null &")
        with (
            assert_no_leaks(sshd),
            Runtime(sshd.host, resident=resident, grace=0.5, **sshd.connection_kwargs) as runtime,
        ):
            runtime.run(f"trap '' HUP; setsid sleep {own} >/dev/null 2>&1 </dev/null &")
            task = RuntimeTask().run_command(f"(setsid sh -c 'trap \"\" TERM; sleep {own}; sleep {own}' &)")
            runtime.execute_task(task, execute_async=False)
            assert_eventually(lambda: len(find_host_pids(sshd, f"sleep {own}")) >= 2, "both run")
        assert not find_host_pids(sshd, f"sleep {own}")
        [pid] = find_host_pids(sshd, f"sleep {foreign}")
        os.kill(pid, signal.SIGKILL)


def test_cleanup_removes_files_of_any_name_and_mode(sshd: LocalSshd, resident: bool) -> None:
    with assert_no_leaks(sshd), Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        runtime.run("mkdir -p a/b; touch a/b/c 'new\nline' -- -dash; chmod 000 a/b a; ln -s / root; mkfifo pipe")
        runtime.run("mkdir ' ' && cd ' ' && touch '*' '..x' && chmod 555 .")
    assert Path("/etc/passwd").exists(), "no link was followed"


def test_use_after_cleanup_leaves_nothing(sshd: LocalSshd, resident: bool) -> None:
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


# Without the connection ----------------------------------------------------------------------------------------------


def test_cleanup_dead_connection_does_not_wait_for_host(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    """All local resources go at once. The host ends its processes when it sees the end of the connection.

    Only a supervisor ends the daemons of commands as well. Without keepalives ssh itself would never notice.
    """
    daemons = 0 if resident else 2
    server = make_sshd(environment={"TMPDIR": str(tmp_path)})
    with EchoServer() as service, running_relay(server, tmp_path) as (relay, keywords):
        before = list_resources(server).keys()
        busy = BusyRuntime(server, service, resident, options={"ServerAliveInterval": "0"}, **keywords)
        relay.cut()

        busy.runtime.cleanup()

        assert listening_addresses(busy.ports[0]) == []
        assert find_masters(relay.port) == []
        assert [name for name in list_resources(server).keys() - before if name.startswith("thread")] == []
        assert all(process.exitcode is not None for process in busy.runtime.task_processes)
        relay.restore()
        assert_eventually(lambda: server.connections() == 0, "the host has noticed the end", timeout=30)
        assert_eventually(lambda: len(busy.find_pids()) <= daemons, "the tasks have ended", timeout=30)
        assert_eventually(lambda: not any(map(listening_addresses, busy.ports)), "no port is left", timeout=30)


def test_cleanup_broken_connection_connects_again(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    with assert_no_leaks(sshd), running_relay(sshd, tmp_path) as (relay, keywords):
        with Runtime(sshd.host, resident=resident, **keywords) as runtime:
            master = find_master(relay.port).pid
            number = unique_sleep_seconds()
            runtime.run(f"setsid sleep {number} >/dev/null 2>&1 </dev/null &")
            relay.drop()
            assert_eventually(lambda: not is_alive(master), "ssh notices the break")
        assert not Path(runtime.working_dir).exists()
        assert not find_host_pids(sshd, f"sleep {number}")


def test_cleanup_host_gone_closes_ports(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    server = make_sshd(environment={"TMPDIR": str(tmp_path)})
    with EchoServer() as service:
        busy = BusyRuntime(server, service, resident)
        server.stop()
        busy.runtime.cleanup()
        assert_eventually(lambda: not any(listening_addresses(port) for port in busy.ports), "no port is left")


def test_cleanup_stopped_master_does_not_wait_for_it(sshd: LocalSshd, resident: bool) -> None:
    with assert_no_leaks(sshd):
        runtime = Runtime(sshd.host, resident=resident, **sshd.connection_kwargs)
        os.kill(find_master(sshd.port).pid, signal.SIGSTOP)
        runtime.cleanup()


# By dropping it ------------------------------------------------------------------------------------------------------


def test_runtime_dropped_is_cleaned_up(sshd: LocalSshd, resident: bool) -> None:
    with assert_no_leaks(sshd):
        runtime = Runtime(sshd.host, resident=resident, **sshd.connection_kwargs)
        number = unique_sleep_seconds()
        runtime.run(f"setsid sleep {number} >/dev/null 2>&1 </dev/null &")
        runtime.execute_task(RuntimeTask("done").run_command("true")).join()
        runtime.create_tempdir()
        working_dir = Path(runtime.working_dir)
        reference = weakref.ref(runtime)
        del runtime
        gc.collect()

        assert reference() is None, "neither its tasks nor the function for the end of the program keep it"
        assert_eventually(lambda: not working_dir.exists(), "its directory is removed")
        assert_eventually(lambda: not find_host_pids(sshd, f"sleep {number}"), "its daemons are ended")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Switch off the collector of reference cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_connection_dropped_ends_without_gc(sshd: LocalSshd, tmp_path: Path) -> None:
    with assert_no_leaks(sshd):
        connection = Connection(sshd.host, **sshd.connection_kwargs)
        connection.run("cat", stdin=bytes(1_000_000))
        with pytest.raises(CommandTimeoutError):
            connection.run(["sleep", "60"], timeout=0.5)
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
        reference = weakref.ref(runtime)
        del runtime
        gc.collect()
        assert reference() is None, "no error keeps it"


def test_runtime_dropped_lives_until_its_task_ends(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    file = tmp_path / "file"
    with assert_no_leaks(sshd):
        runtime = Runtime(sshd.host, resident=resident, **sshd.connection_kwargs)
        command = f"while [ ! -e {file} ]; do sleep 0.01; done; pwd"
        task = runtime.execute_task(RuntimeTask().run_command(command))
        working_dir = Path(runtime.working_dir)
        reference = weakref.ref(runtime)
        del runtime
        gc.collect()
        assert working_dir.exists()
        file.touch()
        task.join()
        gc.collect()

        assert task.execution_log == [f"{working_dir}\n"]
        assert_eventually(lambda: reference() is None and not working_dir.exists(), "it is cleaned up")


def test_runtime_dropped_lives_until_its_tunnel_ends(sshd: LocalSshd, resident: bool) -> None:
    """As in `Runtime("host").expose_port_from_runtime(8787)`."""
    with assert_no_leaks(sshd), EchoServer() as service:
        port = reserve_free_port()
        runtime = Runtime(sshd.host, resident=resident, **sshd.connection_kwargs)
        process = runtime.get_process(runtime.expose_port_from_runtime(service.port, port))
        working_dir = Path(runtime.working_dir)
        reference = weakref.ref(runtime)
        del runtime
        gc.collect()
        assert is_echoing(port)
        process.terminate()
        del process
        gc.collect()

        assert listening_addresses(port) == []
        assert_eventually(lambda: reference() is None and not working_dir.exists(), "it is cleaned up")


_BUSY_PROGRAM = """
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
    {last_line}
"""

ENDINGS = {
    "exception": ("raise RuntimeError('wanted')", 1, "wanted"),
    "sys.exit in a function": ("def end():\n        with runtime:\n            sys.exit(4)\n    end()", 4, ""),
    "Ctrl-C": ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt"),
    "last line and a reference cycle": (
        "runtime.myself = runtime; second.other = runtime; runtime.other = second",
        0,
        "",
    ),
}
"""How the program ends: its last line, its exit status, and a part of its standard error."""


@pytest.mark.parametrize("ending", ENDINGS)
def test_program_end_of_any_kind_cleans_up(sshd: LocalSshd, ending: str, resident: bool) -> None:
    last_line, expected_exit_code, error_text = ENDINGS[ending]
    number, ports = unique_sleep_seconds(), [reserve_free_port(), reserve_free_port()]
    with assert_no_leaks(sshd), EchoServer() as service:
        text = _BUSY_PROGRAM.format(
            host=sshd.host,
            config=str(sshd.config_file),
            service=service.port,
            ports=ports,
            number=number,
            last_line=last_line,
            resident=resident,
        )
        with ClientProgram(text) as program:
            working_dir = Path(program.read_line())
            exit_code, _, errors = program.wait(30)

        assert exit_code == expected_exit_code, errors
        assert error_text in errors
        warning = f"{sshd.host}: ended what commands had left running: `sleep {number}`\n"
        assert errors.count(warning) == 1
        assert (errors == warning) is (error_text == "")
        assert not working_dir.exists()
        assert not find_host_pids(sshd, f"sleep {number}")
        assert not any(listening_addresses(port) for port in ports)


def test_program_fork_leaves_runtime_of_parent_alone(sshd: LocalSshd, resident: bool) -> None:
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


def test_program_end_leaves_no_temporary_files(make_sshd: MakeSshd, tmp_path: Path, resident: bool) -> None:
    """The host has a TMPDIR of its own, so the two are seen apart."""
    host_tmp, local_tmp = tmp_path / "host", tmp_path / "l"
    host_tmp.mkdir()
    local_tmp.mkdir()
    server = make_sshd(environment={"TMPDIR": str(host_tmp)})
    text = f"""
    from lazycluster import Runtime, RuntimeTask
    with Runtime({server.host!r}, config_file={str(server.config_file)!r}, resident={resident}) as runtime:
        assert runtime.working_dir.startswith({str(host_tmp)!r})
        task = RuntimeTask().run_command("mktemp; cat <<END\\nhere\\nEND").run_function(bytes, 3000000)
        task.send_file({str(Path(__file__).parent)!r}, "it's a name")
        task.get_file("it's a name", {str(tmp_path / "fetched")!r})
        task.send_file({__file__!r}, "it's a file").get_file("it's a file", {str(tmp_path / "file")!r})
        runtime.execute_task(task, execute_async=False)
        runtime.create_tempdir()
        runtime.run("cat", stdin=bytes(100000))
    """
    with ClientProgram(text, environment={"TMPDIR": str(local_tmp)}) as program:
        assert program.wait(60) == (0, "", "")

    left = [path.name for path in host_tmp.iterdir()]
    assert [name for name in left if not name.startswith("tmp.")] == []
    assert len(left) == 1, "the file that the command made itself"
    assert list(local_tmp.iterdir()) == []
