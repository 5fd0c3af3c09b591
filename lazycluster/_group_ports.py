"""Ports of a group: those that are free on every host, and tunnels that expose one to every host."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from lazycluster._gather import gather, unwrap_all, values_by_host
from lazycluster._membership import Members
from lazycluster._model.checks import check_port
from lazycluster._remote.ports import is_port_free
from lazycluster.exceptions import NoPortsLeftError
from lazycluster.results import Error


def free_ports(group: Members, ports: list[int], exclude_hosts: str | Iterable[str] | None) -> list[int]:
    """Return the ports of a list that are free on every host, in their order; one round trip to each host.

    Raises:
        HostsFailedError: Some hosts could not be asked.
    """
    runtimes = group.get_runtimes(exclude_hosts=exclude_hosts)
    found = gather({host: functools.partial(runtime.free_ports, ports) for host, runtime in runtimes.items()})
    free = [set(of_host) for of_host in unwrap_all(found, "asking for free ports").values()]
    return [port for port in ports if all(port in of_host for of_host in free)]


def first_free_port(
    group: Members, ports: Iterable[int], exclude_hosts: str | Iterable[str] | None, *, also_local: bool
) -> int:
    """Return the first port of a list that is free on every host, and on the local machine if `also_local`.

    Raises:
        NoPortsLeftError: No port of the list is free, or the list is empty.
        HostsFailedError: Some hosts could not be asked.
    """
    wanted = [check_port(port) for port in ports]
    free = free_ports(group, wanted, exclude_hosts) if wanted else []
    for port in free:
        if not also_local or is_port_free(port):
            return port
    raise NoPortsLeftError("the group", tuple(wanted))


def expose_to_all(
    group: Members,
    local_port: int,
    host_port: int | None,
    exclude_hosts: str | Iterable[str] | None,
    *,
    max_connections: int,
) -> list[str]:
    """Make a local port reachable on every host and return the keys of the tunnels, in the order of the hosts.

    Raises:
        HostsFailedError: It failed on some hosts; the tunnels to the other hosts are closed.
    """
    check_port(local_port)
    check_port(local_port if host_port is None else host_port)
    runtimes = group.get_runtimes(exclude_hosts=exclude_hosts)
    work = {
        host: functools.partial(runtime.expose_port_to_runtime, local_port, host_port)
        for host, runtime in runtimes.items()
    }
    outcomes = gather(work, limit=max_connections, rollback=lambda host, key: runtimes[host].stop_process(key))
    if any(isinstance(outcome, Error) for outcome in outcomes.values()):
        keys = values_by_host(outcomes)
        gather({host: functools.partial(runtimes[host].stop_process, key) for host, key in keys.items()})
    return list(unwrap_all(outcomes, f"exposing port {local_port}").values())


def expose_from_one_to_others(
    group: Members, host: str, host_port: int, local_port: int | None, group_port: int | None, *, max_connections: int
) -> list[str]:
    """Make a port of one host reachable on all others and return the keys of the tunnels, that from the host first.

    Raises:
        PortInUseError: The port is in use on the local machine.
        HostsFailedError: It failed on some hosts; all tunnels are closed.
    """
    source = group.get_runtime(host)
    resolved_local_port = host_port if local_port is None else local_port
    resolved_group_port = check_port(host_port if group_port is None else group_port)
    key = source.expose_port_from_runtime(host_port, resolved_local_port)
    try:
        others = expose_to_all(group, resolved_local_port, resolved_group_port, host, max_connections=max_connections)
    except BaseException:
        source.stop_process(key)
        raise
    return [key, *others]
