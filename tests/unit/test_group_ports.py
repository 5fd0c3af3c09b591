"""Free ports and tunnels of a group."""

from __future__ import annotations

import math
import socket
from typing import Any

import pytest

from lazycluster import (
    HostsFailedError,
    NoPortsLeftError,
    PortInUseError,
    Runtime,
    RuntimeGroup,
    RuntimeTask,
)
from lazycluster.testing import AskedForPorts, FakeHost, OpenedTunnel
from tests.keyboard_interrupt import interrupt
from tests.reserved_ports import reserve_free_port
from tests.unit.group_hosts import GROUP_HOSTS, open_tunnels
from tests.waiting import wait_until


def test_get_free_port_is_free_on_all_hosts(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.host("web1").ports_in_use = {8000}
    fake_host.host("web3").ports_in_use = {8001, 8003}
    assert not group.has_free_port(8000)
    assert group.has_free_port(8000, exclude_hosts="web1")
    assert group.has_free_port(8002)
    assert group.get_free_port([8003, 8001, 8004, 8002]) == 8004, "the first in the order of preference"
    assert group.get_free_port(iter([8003, 8001, 8000]), exclude_hosts=["web3"]) == 8003
    asked = [call.ports for call in fake_host.calls if isinstance(call, AskedForPorts)]
    assert asked[-2:] == [(8003, 8001, 8000)] * 2, "one round trip for each host"
    for ports in ((8000, 8001, 8003), ()):
        with pytest.raises(NoPortsLeftError) as caught:
            group.get_free_port(ports)
        assert (caught.value.host, caught.value.ports) == ("the group", ports)
    for port in (0, 65536):
        with pytest.raises(ValueError, match="port"):
            group.has_free_port(port)
        with pytest.raises(ValueError, match="port"):
            group.get_free_port([8000, port])


def test_get_free_port_checks_localhost(group: RuntimeGroup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken, free = server.getsockname()[1], reserve_free_port()
        assert group.get_free_port([taken, free]) == taken
        assert group.get_free_port([taken, free], enforce_check_on_localhost=True) == free


def test_has_free_port_host_down_raises(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.host("web2").go_down()
    with pytest.raises(HostsFailedError) as caught:
        group.has_free_port(8000)
    assert [host for host, _ in caught.value.errors] == ["web2"]
    assert group.has_free_port(8000, exclude_hosts="web2")
    fake_host.host("web2").come_up()


def test_expose_port_to_runtimes_has_key_of_each_host(group: RuntimeGroup) -> None:
    keys = group.expose_port_to_runtimes(80, 8080)
    assert keys == [f"to-runtime-8080-0@{host}" for host in GROUP_HOSTS]
    assert open_tunnels(group) == {host: ["-R localhost:8080:localhost:80"] for host in GROUP_HOSTS}
    keys += group.expose_port_to_runtimes(81, exclude_hosts="web2")
    assert keys[3:] == ["to-runtime-81-1@web1", "to-runtime-81-1@web3"]
    for key in keys:
        group.stop_process(key)
    assert open_tunnels(group) == {}
    with pytest.raises(ValueError, match="no host of the group has a process with the key 'none'"):
        group.stop_process("none")


def test_stop_process_stops_on_one_host(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.on("sleep", delay=math.inf)
    group.execute_task(RuntimeTask("t").run_command("sleep"), broadcast=True)
    keys = [key for runtime in group.runtimes for key in runtime.get_processes()]
    assert keys == [f"t-0@{host}" for host in GROUP_HOSTS]
    group.stop_process(keys[1])
    assert [process.is_alive() for process in group.task_processes] == [True, False, True]


def test_expose_port_to_runtimes_port_in_use_rolls_back(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.host("web2").ports_in_use = {8080}
    with pytest.raises(HostsFailedError) as caught:
        group.expose_port_to_runtimes(80, 8080)
    assert [(host, type(error)) for host, error in caught.value.errors] == [("web2", PortInUseError)]
    assert open_tunnels(group) == {}
    assert len(group.expose_port_to_runtimes(80, 8080, exclude_hosts="web2")) == 2


def test_expose_port_from_runtime_to_group_opens_tunnels(group: RuntimeGroup) -> None:
    keys = group.expose_port_from_runtime_to_group("web2", 8786)
    assert keys == ["from-runtime-8786-0@web2", "to-runtime-8786-0@web1", "to-runtime-8786-0@web3"]
    assert open_tunnels(group) == {
        "web1": ["-R localhost:8786:localhost:8786"],
        "web2": ["-L localhost:8786:localhost:8786"],
        "web3": ["-R localhost:8786:localhost:8786"],
    }
    for key in keys:
        group.stop_process(key)
    group.expose_port_from_runtime_to_group("web1", 80, 8080, 8081)
    assert open_tunnels(group) == {
        "web1": ["-L localhost:8080:localhost:80"],
        "web2": ["-R localhost:8081:localhost:8080"],
        "web3": ["-R localhost:8081:localhost:8080"],
    }


@pytest.mark.parametrize("ports", [(0,), (80, 0), (80, 8080, 0), (80, 8080, 70000)])
def test_expose_port_from_runtime_to_group_invalid_port(
    group: RuntimeGroup, fake_host: FakeHost, ports: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="port"):
        group.expose_port_from_runtime_to_group("web1", *ports)
    assert not [call for call in fake_host.calls if isinstance(call, OpenedTunnel)]


def test_expose_port_from_runtime_to_group_rolls_back(group: RuntimeGroup, fake_host: FakeHost) -> None:
    fake_host.host("web3").ports_in_use = {8081}
    with pytest.raises(HostsFailedError) as caught:
        group.expose_port_from_runtime_to_group("web1", 80, 8080, 8081)
    assert [(host, type(error)) for host, error in caught.value.errors] == [("web3", PortInUseError)]
    assert caught.value.total == 2
    assert open_tunnels(group) == {}
    group.runtimes[0].expose_port_from_runtime(80, 8080)
    with pytest.raises(PortInUseError) as local_error:
        group.expose_port_from_runtime_to_group("web2", 80, 8080)
    assert (local_error.value.host, local_error.value.port) == ("localhost", 8080)
    assert list(open_tunnels(group)) == ["web1"]


def test_expose_port_ctrl_c_rolls_back(group: RuntimeGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tunnel of web2 opens after the others were rolled back, and is closed, too."""
    expose_port_to_runtime = Runtime.expose_port_to_runtime

    def expose(runtime: Runtime, *args: Any) -> str:
        if runtime.host == "web2":
            assert wait_until(lambda: "web3" in open_tunnels(group), 10)
            assert wait_until(lambda: "web3" not in open_tunnels(group), 10)
        return expose_port_to_runtime(runtime, *args)

    monkeypatch.setattr(Runtime, "expose_port_to_runtime", expose)
    interrupt(
        lambda: group.expose_port_from_runtime_to_group("web1", 80, 8080),
        lambda: open_tunnels(group).keys() >= {"web1", "web3"},
    )
    assert open_tunnels(group) == {}
