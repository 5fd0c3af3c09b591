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


class GroupPorts:
    """The part of `RuntimeGroup` about ports and tunnels."""

    _members: Members

    def has_free_port(self, port: int, exclude_hosts: str | Iterable[str] | None = None) -> bool:
        """Return whether a server could listen on a port of every host.

        Raises:
            HostsFailedError: If some hosts could not be asked.
        """
        return bool(self._free_ports([check_port(port)], exclude_hosts))

    def get_free_port(
        self,
        ports: Iterable[int],
        enforce_check_on_localhost: bool = False,
        exclude_hosts: str | Iterable[str] | None = None,
    ) -> int:
        """Return the first port of a list that is free on every host; each host is asked once, all at the same time.

        Args:
            ports: The ports, in the order of preference.
            enforce_check_on_localhost: Whether the port must be free on the local machine, too.
            exclude_hosts: Hosts that are not asked.

        Raises:
            NoPortsLeftError: If no port of the list is free, or the list is empty.
            HostsFailedError: If some hosts could not be asked.
        """
        wanted = [check_port(port) for port in ports]
        free = self._free_ports(wanted, exclude_hosts) if wanted else []
        for port in free:
            if not enforce_check_on_localhost or is_port_free(port):
                return port
        raise NoPortsLeftError("the group", tuple(wanted))

    def _free_ports(self, ports: list[int], exclude_hosts: str | Iterable[str] | None) -> list[int]:
        runtimes = self._members.select(exclude_hosts=exclude_hosts)
        found = gather({host: functools.partial(runtime.free_ports, ports) for host, runtime in runtimes.items()})
        free = [set(of_host) for of_host in unwrap_all(found, "asking for free ports").values()]
        return [port for port in ports if all(port in of_host for of_host in free)]

    def expose_port_to_runtimes(
        self, local_port: int, runtime_port: int | None = None, exclude_hosts: str | Iterable[str] | None = None
    ) -> list[str]:
        """Make a service on `local_port` of the local machine reachable on every host at `localhost:runtime_port`.

        All tunnels to one host share one connection.

        Returns:
            The keys under which `stop_process()` ends the tunnels, in the order of the hosts.

        Raises:
            HostsFailedError: If it failed on some hosts; the tunnels to the other hosts are closed.
        """
        check_port(local_port)
        check_port(local_port if runtime_port is None else runtime_port)
        runtimes = self._members.select(exclude_hosts=exclude_hosts)
        work = {
            host: functools.partial(runtime.expose_port_to_runtime, local_port, runtime_port)
            for host, runtime in runtimes.items()
        }
        outcomes = gather(
            work,
            limit=self._members.max_connections,
            rollback=lambda host, key: runtimes[host].stop_process(key),
        )
        if any(isinstance(outcome, Error) for outcome in outcomes.values()):
            keys = values_by_host(outcomes)
            gather({host: functools.partial(runtimes[host].stop_process, key) for host, key in keys.items()})
        return list(unwrap_all(outcomes, f"exposing port {local_port}").values())

    def expose_port_from_runtime_to_group(
        self, host: str, runtime_port: int, local_port: int | None = None, group_port: int | None = None
    ) -> list[str]:
        """Make a service of one host reachable on all others, through the local machine.

        Args:
            host: The host of the service.
            runtime_port: The port of the service on it.
            local_port: The port at which the local machine reaches it; default: `runtime_port`.
            group_port: The port at which the other hosts reach it, at localhost; default: `runtime_port`.

        Returns:
            The keys under which `stop_process()` ends the tunnels; the tunnel from the host is the first.

        Raises:
            PortInUseError: If the port is in use on the local machine.
            HostsFailedError: If it failed on some hosts; all its tunnels are closed.
        """
        source = self._members.get(host)
        local_port = runtime_port if local_port is None else local_port
        group_port = check_port(runtime_port if group_port is None else group_port)
        key = source.expose_port_from_runtime(runtime_port, local_port)
        try:
            others = self.expose_port_to_runtimes(local_port, group_port, host)
        except BaseException:
            source.stop_process(key)
            raise
        return [key, *others]

    def stop_process(self, key: str) -> None:
        """End a task or tunnel of one of the hosts by its key.

        Raises:
            ValueError: If no process has that key.
        """
        for runtime in self._members.all().values():
            if key in runtime.get_processes():
                runtime.stop_process(key)
                return
        raise ValueError(f"no host of the group has a process with the key {key!r}")
