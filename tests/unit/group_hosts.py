"""The hosts of the fixture `group`, and conditions that its tests wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.keyboard_interrupt import library_thread_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lazycluster import Runtime, RuntimeGroup
    from lazycluster.managed import ManagedProcess
    from lazycluster.testing.calls import Asked
    from tests.unit.transport_recorder import TransportRecorder

GROUP_HOSTS = ["web1", "web2", "web3"]


def group_thread_names() -> list[str]:
    """Return the names of the living threads that work for groups.

    Runtimes that tests share may keep other threads of the library.
    """
    return library_thread_names("lazycluster-host-") + library_thread_names("lazycluster-map-")


def hosts_of(calls: Iterable[Asked]) -> list[str]:
    return sorted(call.host for call in calls)


def running(transports: TransportRecorder, count: int) -> Callable[[], bool]:
    """Return the condition that at least `count` commands and functions run."""
    return lambda: transports.running_calls >= count


def living_processes(runtime: Runtime) -> list[ManagedProcess]:
    return list(runtime.get_processes(only_alive=True).values())


def open_tunnels(group: RuntimeGroup) -> dict[str, list[str]]:
    """Return the forwardings of the open tunnels by host."""
    return {
        runtime.host: [name.partition(": ")[2] for name in names]
        for runtime in group.runtimes
        if (names := [process.name for process in living_processes(runtime) if "tunnel" in process.name])
    }


def double(item: int) -> int:
    if item < 0:
        raise ValueError(f"negative: {item}")
    return 2 * item
