"""Groups of real hosts, each with its own sshd: one host fails in every way, and the others continue."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import (
    AuthenticationError,
    ChangedHostKeyError,
    ConnectionLostError,
    ConnectTimeoutError,
    ForwardingRefusedError,
    HostsFailedError,
    InvalidRuntimeError,
    PortInUseError,
    PortRefusedError,
    RuntimeGroup,
    RuntimeTask,
    TaskExecutionError,
    UnknownHostError,
)
from lazycluster.results import CommandResult
from lazycluster.testing import LocalSshd, Relay, write_config
from tests.client_programs import count_connections, count_log_ins, find_host_pids
from tests.keyboard_interrupt import interrupt
from tests.observation import EchoServer, assert_no_leaks, is_echoing, listening_addresses, unique_sleep_seconds
from tests.processes import find_local_pids
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually, wait_until

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd

HOSTS = ["web1", "web2", "web3"]
DEFAULT = {"MaxStartups": "10:30:100"}


class Hosts:
    """Three hosts and their ssh configuration."""

    def __init__(self, servers: list[LocalSshd], config: Path) -> None:
        self.servers = servers
        self.config = config
        self.lost: list[str] = []
        write_config(config, *servers)

    def group(self, hosts: list[str] | None = None, **keywords: object) -> RuntimeGroup:
        given: dict[str, object] = {"config_file": self.config, **keywords}
        return RuntimeGroup(hosts=hosts or HOSTS, **given)  # type: ignore[arg-type]

    def lose(self, group: RuntimeGroup, host: str, *, for_good: bool) -> None:
        """End a host's connections with all that runs there, as a crash would; with `for_good` stop its sshd, too."""
        server = self.servers[HOSTS.index(host)]
        self.lost.append(group.get_runtime(host).working_dir)
        if for_good:
            server.stop()
        else:
            server.kill_connections()

    def running(self, number: int, text: str) -> list[int]:
        return find_host_pids(self.servers[number], text)


@pytest.fixture
def hosts(make_sshd: MakeSshd, tmp_path: Path) -> Hosts:
    return Hosts([make_sshd(name=name, options=DEFAULT) for name in HOSTS], tmp_path / "config")


@pytest.fixture
def group(hosts: Hosts) -> Iterator[RuntimeGroup]:
    with assert_no_leaks(hosts.servers[0]), remove_files_of_lost_hosts(hosts), hosts.group() as group:
        yield group


@contextmanager
def remove_files_of_lost_hosts(hosts: Hosts) -> Iterator[None]:
    """Remove the files of lost hosts, as a restart of the machines would."""
    yield
    for path in hosts.lost:
        shutil.rmtree(path, ignore_errors=True)


def act_when(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Do something in another thread as soon as a condition holds."""

    def wait() -> None:
        if wait_until(condition, 20):
            act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


# One host dies -------------------------------------------------------------------------------------------------------


def test_execute_task_lost_host_gets_no_tasks(hosts: Hosts, group: RuntimeGroup) -> None:
    """Its working directory is gone, so every task fails there at once, and the host is never busy."""
    group.execute_task(RuntimeTask().run_command("true"), host="web1").join()
    hosts.lose(group, "web1", for_good=False)
    with pytest.raises(TaskExecutionError):
        group.execute_task(RuntimeTask().run_command("true"), host="web1").join()
    for _ in range(6):
        group.execute_task(RuntimeTask().run_command("true")).join()
    assert len(group.get_runtime("web1").task_processes) == 2

    group.remove_runtime("web1").cleanup()
    group.add_runtime("web1")
    group.execute_task(RuntimeTask().run_command("true"), host="web1").join()
    assert {host for host, result in group.run("true").items() if result.ok} == set(HOSTS)


@pytest.mark.parametrize("for_good", [False, True])
def test_run_host_dies_keeps_other_results(hosts: Hosts, group: RuntimeGroup, for_good: bool) -> None:
    mark = unique_sleep_seconds()
    sleep = f'if [ -e stay ]; then sleep {mark}; fi; echo "well, $PWD"'
    group.get_runtime("web2").run("touch stay")
    thread = act_when(
        lambda: bool(hosts.running(1, f"sleep {mark}")), lambda: hosts.lose(group, "web2", for_good=for_good)
    )
    with pytest.raises(HostsFailedError) as caught:
        group.run(sleep)
    thread.join()
    assert [host for host, _ in caught.value.errors] == ["web2"]
    assert isinstance(caught.value.exceptions[0], ConnectionLostError)
    results = list(caught.value.values.values())
    assert [isinstance(result, CommandResult) and result.stdout[:5] for result in results] == ["well,", "well,"]
    found = group.run("true", on_error="collect")
    assert [isinstance(found[host], CommandResult) for host in ("web1", "web3")] == [True, True]


def test_map_host_dies_moves_items(hosts: Hosts, group: RuntimeGroup) -> None:
    def work(item: int) -> tuple[int, str]:
        time.sleep(0.001)
        return item, os.environ["SSH_CONNECTION"].split()[3]

    mapped = group.map(work, itertools.count())
    found = [next(mapped)]
    lost_port = f"{hosts.servers[1].port}"

    def all_hosts_work() -> bool:
        found.extend(next(mapped) for _ in range(10))
        return len({port for _, port in found}) == len(HOSTS)

    def other_hosts_work() -> bool:
        found.extend(next(mapped) for _ in range(10))
        return {port for _, port in found[-300:]} == {f"{server.port}" for server in hosts.servers} - {lost_port}

    assert_eventually(all_hosts_work, "each host works on items", timeout=30)
    hosts.lose(group, "web2", for_good=True)
    assert_eventually(other_hosts_work, "the other hosts share the items", timeout=30)
    assert [item for item, _ in found] == list(range(len(found)))
    mapped.close()


def test_map_cut_connections_host_rejoins(hosts: Hosts, tmp_path: Path) -> None:
    def work(item: int) -> tuple[int, str]:
        time.sleep(0.001)
        return item, os.environ["SSH_CONNECTION"].split()[3]

    with assert_no_leaks(hosts.servers[0]), hosts.group(working_dir=str(tmp_path)) as group:
        mapped = group.map(work, itertools.count())
        found = [next(mapped) for _ in range(300)]
        hosts.servers[1].kill_connections()
        cut_port = f"{hosts.servers[1].port}"
        found += [next(mapped) for _ in range(1000)]

        def has_rejoined() -> bool:
            found.extend(next(mapped) for _ in range(10))
            return any(port == cut_port for _, port in found[-50:])

        assert_eventually(has_rejoined, "the host works on items again", timeout=30)
        assert [item for item, _ in found] == list(range(len(found)))
        mapped.close()


def test_map_all_hosts_die_raises(hosts: Hosts, group: RuntimeGroup) -> None:
    mapped = group.map(abs, itertools.count(), retries=5)
    assert [next(mapped) for _ in range(100)] == list(range(100))
    for host in HOSTS:
        hosts.lose(group, host, for_good=True)
    with pytest.raises(HostsFailedError) as caught:
        list(mapped)
    assert [host for host, _ in caught.value.errors] == HOSTS


def test_send_file_host_dies_fails_only_there(hosts: Hosts, group: RuntimeGroup, tmp_path: Path) -> None:
    size = 1 << 28
    with (tmp_path / "big").open("wb") as file:
        file.truncate(size)
    place = Path(group.get_runtime("web2").working_dir)
    thread = act_when(lambda: any(place.iterdir()), lambda: hosts.lose(group, "web2", for_good=True))
    tasks = group.send_file(tmp_path / "big")
    with pytest.raises(HostsFailedError) as caught:
        group.join()
    thread.join()
    assert [(host, type(error)) for host, error in caught.value.errors] == [("web2", TaskExecutionError)]
    assert list(tasks) == HOSTS
    for host in ("web1", "web3"):
        assert (Path(group.get_runtime(host).working_dir) / "big").stat().st_size == size


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_group_host_dies_while_connecting(hosts: Hosts, tmp_path: Path, on_error: str) -> None:
    with assert_no_leaks(hosts.servers[0]), Relay(hosts.servers[1].port, delay=0.1) as relay:
        config = write_config(
            tmp_path / "relayed",
            hosts.servers[0],
            hosts.servers[1].config(port=relay.port),
            hosts.servers[2],
        )

        def vanish() -> None:
            hosts.servers[1].stop()
            relay.drop()

        thread = act_when(lambda: count_connections(hosts.servers[1]) > 0, vanish)
        with ExitStack() as stack:
            if on_error == "skip":
                group = stack.enter_context(hosts.group(config_file=config, on_error=on_error, connect_timeout=3.0))
                assert group.hosts == ["web1", "web3"]
                [(host, error)] = group.failed_hosts.items()
                assert all(result.ok for result in group.run("true").values())
            else:
                with pytest.raises(HostsFailedError) as caught:
                    hosts.group(config_file=config, connect_timeout=3.0)
                [(host, error)] = caught.value.errors
            assert host == "web2"
            assert isinstance(error, InvalidRuntimeError)
        thread.join()


def test_group_lost_host_can_be_added_again(hosts: Hosts, group: RuntimeGroup) -> None:
    hosts.lose(group, "web2", for_good=False)
    group.remove_runtime("web2").cleanup()
    group.add_runtime("web2")
    assert all(result.ok for result in group.run("pwd").values())
    assert group.hosts == ["web1", "web3", "web2"]


# Hosts that cannot be reached ----------------------------------------------------------------------------------------


def test_group_unusable_hosts_name_their_causes(hosts: Hosts, tmp_path: Path) -> None:
    good, other, _ = hosts.servers
    options = f"    UserKnownHostsFile {tmp_path}/known\n    StrictHostKeyChecking yes\n    IdentitiesOnly yes\n"
    (tmp_path / "known").write_text(
        f"[127.0.0.1]:{good.port} {(other.directory / 'host_key.pub').read_text()}\n"  # another's key
    )
    with assert_no_leaks(good), socket.create_server(("127.0.0.1", 0)) as silent:
        key = f"    IdentityFile {good.identity_file}\n"
        dead = {
            "refused": f"    HostName 127.0.0.1\n    Port {reserve_free_port()}\n",
            "silent": f"    HostName 127.0.0.1\n    Port {silent.getsockname()[1]}\n",
            "nowhere": "    HostName nowhere.invalid\n",
            "changed": f"    HostName 127.0.0.1\n    Port {good.port}\n{options}{key}",
        }
        sections = [f"Host {name}\n{lines}" for name, lines in dead.items()]
        strange = good.config(name="strange").replace(str(good.identity_file), str(other.identity_file))
        config = write_config(tmp_path / "dead", *hosts.servers, *sections, strange)
        names = ["web1", *dead, "web2", "strange", "web3"]
        with hosts.group(names, config_file=config, on_error="skip", connect_timeout=3.0) as group:
            assert group.hosts == HOSTS
            assert {host: type(error.__cause__) for host, error in group.failed_hosts.items()} == {
                "refused": PortRefusedError,
                "silent": ConnectTimeoutError,
                "nowhere": UnknownHostError,
                "changed": ChangedHostKeyError,
                "strange": AuthenticationError,
            }
            assert all(result.ok for result in group.run("true").values())
        with pytest.raises(HostsFailedError) as caught:
            hosts.group(names, config_file=config, connect_timeout=3.0)
        assert [host for host, _ in caught.value.errors] == [*dead, "strange"]


# Many log-ins at once ------------------------------------------------------------------------------------------------


def make_aliases(server: LocalSshd, prefix: str, count: int, extra: str = "") -> tuple[list[str], str]:
    """Return `count` names for a host, and their sections of a configuration."""
    names = [f"{prefix}{number}" for number in range(count)]
    return names, "\n".join(server.config(name=name) + extra for name in names)


@pytest.mark.parametrize("limit", ["10:30:100", pytest.param("3:100:3", marks=pytest.mark.soak)])
def test_group_many_log_ins_through_jump_host(make_sshd: MakeSshd, tmp_path: Path, limit: str) -> None:
    """sshd refuses some of more than ten log-ins at once, or all but three; the library tries them again."""
    jump, inner = (make_sshd(name=name, options={"MaxStartups": limit}) for name in ("jump", "inner"))
    names, text = make_aliases(inner, "inner", 20, "    ProxyJump jump\n")
    config = write_config(tmp_path / "jump", jump, text)
    with assert_no_leaks(jump):
        with RuntimeGroup(hosts=names, config_file=config, connect_timeout=60.0) as group:
            assert group.hosts == names
            assert {result.stdout for result in group.run("echo well").values()} == {"well\n"}
        assert count_log_ins(jump) >= 20
    if limit == "3:100:3":
        assert "drop connection" in jump.log


def test_group_many_log_ins_default_max_startups(hosts: Hosts, tmp_path: Path) -> None:
    aliases = [make_aliases(server, f"{server.host}-", 12) for server in hosts.servers]
    names = [name for names_of_server, _ in aliases for name in names_of_server]
    config = write_config(tmp_path / "many", *(text for _, text in aliases))
    with assert_no_leaks(hosts.servers[0]):
        with hosts.group(names, config_file=config, max_connections=36, connect_timeout=60.0) as group:
            assert group.hosts == names
            with EchoServer() as service:
                ports = {host: reserve_free_port() for host in names}
                assert len(ports) == 36
                keys = [
                    runtime.expose_port_to_runtime(service.port, ports[runtime.host]) for runtime in group.runtimes[:3]
                ]
                assert all(is_echoing(port) for port in list(ports.values())[:3])
                for key in keys:
                    group.stop_process(key)
        assert_eventually(lambda: all(server.connections() == 0 for server in hosts.servers), "all have logged out")


# The user's own ------------------------------------------------------------------------------------------------------


def test_group_leaves_control_master_of_user_alone(hosts: Hosts, tmp_path: Path) -> None:
    socket_path = f"{os.environ['TMPDIR']}/u"
    config = write_config(
        tmp_path / "own",
        *hosts.servers,
        extra=f"Host *\n    ControlMaster auto\n    ControlPath {socket_path}\n    ControlPersist 60\n",
    )
    ssh = ("ssh", "-F", str(config), "web1")
    subprocess.run((*ssh[:3], "-M", "-N", "-f", "web1"), check=True, stdin=subprocess.DEVNULL, capture_output=True)
    try:
        own = hosts.servers[0].connections()
        with hosts.group(config_file=config) as group:
            assert all(result.ok for result in group.run("true").values())
            assert [server.connections() for server in hosts.servers] == [own + 1, 1, 1], "each has one of ours"
        assert subprocess.run((*ssh[:3], "-O", "check", "web1"), capture_output=True, check=False).returncode == 0
        assert hosts.servers[0].connections() == own
    finally:
        subprocess.run((*ssh[:3], "-O", "exit", "web1"), capture_output=True, check=False)
    assert_eventually(lambda: not Path(socket_path).exists(), "the user's own master has ended")


# Ctrl-C --------------------------------------------------------------------------------------------------------------


def test_group_ctrl_c_ends_remote_processes(hosts: Hosts, resident: bool) -> None:
    mark = unique_sleep_seconds()
    command = f"sleep {mark}"
    task = RuntimeTask().run_command(command)

    def wait(_item: int = 0) -> None:
        subprocess.run(("sleep", mark), check=False)

    def assert_interrupt_ends(work: Callable[[], object], *busy: int) -> None:
        interrupt(work, lambda: all(hosts.running(number, command) for number in busy))
        assert_eventually(
            lambda: not any(hosts.running(number, command) for number in busy), "it ends before the grace period"
        )

    with assert_no_leaks(hosts.servers[0]), hosts.group(resident=resident, grace=60.0) as group:
        assert_interrupt_ends(lambda: group.run(command), 0, 1, 2)
        assert_interrupt_ends(lambda: group.call(wait), 0, 1, 2)
        assert_interrupt_ends(lambda: list(group.map(wait, itertools.count())), 0, 1, 2)
        assert_interrupt_ends(lambda: group.execute_task(task, host="web1", execute_async=False), 0)
        assert_interrupt_ends(lambda: group.execute_task(task, broadcast=True, execute_async=False), 0, 1, 2)
        assert all(result.ok for result in group.run("true").values())


@pytest.mark.parametrize("password", [None, "secret"])
def test_group_ctrl_c_while_connecting_ends_ssh(hosts: Hosts, tmp_path: Path, password: str | None) -> None:
    with assert_no_leaks(hosts.servers[0]), socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        sections = [f"Host silent{number}\n    HostName 127.0.0.1\n    Port {port}\n" for number in range(5)]
        config = write_config(tmp_path / "silent", *hosts.servers, *sections)
        names = [*HOSTS, *(f"silent{number}" for number in range(5)), "never"]
        interrupt(
            lambda: hosts.group(names, config_file=config, connect_timeout=600.0, max_connections=8, password=password),
            lambda: all(count_log_ins(server) for server in hosts.servers) and len(find_local_pids(str(config))) >= 5,
        )
        assert find_local_pids(str(config)) == []


# Ports ---------------------------------------------------------------------------------------------------------------


def test_expose_port_to_runtimes_reaches_local_service(hosts: Hosts, group: RuntimeGroup) -> None:
    """All hosts are on this machine, so only one of them can have the port."""
    with EchoServer() as service:
        port = reserve_free_port()
        [key] = group.expose_port_to_runtimes(service.port, port, exclude_hosts=["web2", "web3"])
        assert key == f"to-runtime-{port}-0@web1"
        assert is_echoing(port)
        assert not group.has_free_port(port)
        group.stop_process(key)
        assert_eventually(lambda: listening_addresses(port) == [], "the port is free again")
        assert group.has_free_port(port)


def test_expose_port_to_runtimes_failure_closes_tunnels(hosts: Hosts, group: RuntimeGroup) -> None:
    with EchoServer() as service:
        port = reserve_free_port()
        with pytest.raises(HostsFailedError) as caught:
            group.expose_port_to_runtimes(service.port, port)
        assert len(caught.value.errors) == 2, "the three are one machine, and the first one got the port"
        # sshd refuses a port that another host took after this one found it free.
        assert all(isinstance(error, PortInUseError | ForwardingRefusedError) for error in caught.value.exceptions)
        assert listening_addresses(port) == []
        assert all(runtime.alive_process_count == 0 for runtime in group.runtimes)
        assert_eventually(
            lambda: all(server.connections() == 1 for server in hosts.servers), "no connection for tunnels"
        )


def test_expose_port_from_runtime_to_group_reaches_service(hosts: Hosts, group: RuntimeGroup) -> None:
    group.remove_runtime("web3").cleanup()
    with EchoServer() as service:
        local_port, host_port = reserve_free_port(), reserve_free_port()
        keys = group.expose_port_from_runtime_to_group("web1", service.port, local_port, host_port)
        assert keys == [f"from-runtime-{local_port}-0@web1", f"to-runtime-{host_port}-0@web2"]
        assert is_echoing(host_port, b"x" * 100_000), "data reaches the other host through the local machine"
        assert is_echoing(local_port)
        for key in keys:
            group.stop_process(key)
        assert_eventually(
            lambda: not listening_addresses(local_port) + listening_addresses(host_port), "the ports are free again"
        )

        taken = reserve_free_port()
        with socket.create_server(("127.0.0.1", taken)):
            with pytest.raises(HostsFailedError) as caught:
                group.expose_port_from_runtime_to_group("web1", service.port, local_port, taken)
            [(host, error)] = caught.value.errors
            assert isinstance(error, PortInUseError)
            assert (host, error.host, error.port) == ("web2", "web2", taken)
            assert listening_addresses(local_port) == []
            with pytest.raises(PortInUseError) as local_error:
                group.expose_port_from_runtime_to_group("web1", service.port, taken)
            assert (local_error.value.host, local_error.value.port) == ("localhost", taken)
        assert [runtime.alive_process_count for runtime in group.runtimes] == [0, 0]


def test_group_tunnels_to_one_host_share_a_process(hosts: Hosts, group: RuntimeGroup) -> None:
    before = count_connections(hosts.servers[0])
    with EchoServer() as service:
        for _ in range(5):
            group.expose_port_to_runtimes(service.port, reserve_free_port(), exclude_hosts=["web2", "web3"])
        processes = group.get_runtime("web1").get_processes()
        assert len({process.pid for process in processes.values()}) == 1
        assert count_connections(hosts.servers[0]) == before + 1


# The end -------------------------------------------------------------------------------------------------------------


def test_group_cleanup_dead_host_ends_other_connections(hosts: Hosts) -> None:
    with assert_no_leaks(hosts.servers[0]), remove_files_of_lost_hosts(hosts):
        group = hosts.group()
        group.run(f"nohup sleep {unique_sleep_seconds()} >/dev/null 2>&1 &")
        hosts.lose(group, "web2", for_good=True)
        group.cleanup()
        living = hosts.servers[::2]
        assert_eventually(lambda: not any(server.connections() for server in living), "the others have logged out")
