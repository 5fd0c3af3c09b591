"""The contestants on many hosts at once: ours, plain ssh, and the peers, each used in its fastest way."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks import baselines, variants
from benchmarks.contestants import Abilities, Contestant, expect, expect_no_failures
from benchmarks.hosts import MAX_LOGINS, Hosts, open_masters
from benchmarks.processes import run_programs
from benchmarks.timing import failure_from
from lazycluster import RuntimeGroup

if TYPE_CHECKING:
    import asyncssh

T = TypeVar("T")
_LOOPBACK_ADDRESS = "127.0.0.1"
_PDSH_FAILED = re.compile(r": ([\w-]+): ssh exited with exit code \d+$", re.MULTILINE)

# Ours -----------------------------------------------------------------------------------------------------------------


def new_group(hosts: Hosts) -> RuntimeGroup:
    """Return a group on hosts."""
    return RuntimeGroup(hosts=hosts.names, config_file=str(hosts.config_file))


@contextlib.contextmanager
def _lazycluster(hosts: Hosts) -> Iterator[Abilities]:
    with new_group(hosts) as group:

        def command() -> None:
            expect(dict.fromkeys(hosts.names, 0), {host: ended.exit_code for host, ended in group.run("true").items()})

        yield Abilities(command)


# Plain ssh ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _plain_ssh(hosts: Hosts) -> Iterator[Abilities]:
    """Run one ssh for each host, at most `MAX_LOGINS` at a time."""

    def command() -> None:
        failed = run_programs([(*hosts.ssh, "--", name, "true") for name in hosts.names], MAX_LOGINS)
        expect_no_failures({hosts.names[place]: said for place, said in failed.items()}, len(hosts.members))

    yield Abilities(command)


@contextlib.contextmanager
def _ssh_through_masters(hosts: Hosts) -> Iterator[Abilities]:
    with open_masters(hosts) as through, _plain_ssh(through) as abilities:
        yield abilities


# Peers ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _pdsh(hosts: Hosts) -> Iterator[Abilities]:
    """Run pdsh, which runs one ssh for each host, at most `MAX_LOGINS` at a time."""
    options = (f"PDSH_SSH_ARGS_APPEND={hosts.ssh_options()}",)
    argv = ("env", *options, "pdsh", "-S", "-R", "ssh", "-f", str(MAX_LOGINS), "-w", ",".join(hosts.names), "true")

    def command() -> None:
        said = run_programs([argv], 1)
        if said:
            failed = dict.fromkeys(_PDSH_FAILED.findall(said[0]), said[0].partition("\n")[0])
            expect_no_failures(failed or dict.fromkeys(hosts.names, said[0]), len(hosts.members))

    yield Abilities(command)


@contextlib.contextmanager
def _pdsh_through_masters(hosts: Hosts) -> Iterator[Abilities]:
    with open_masters(hosts) as through, _pdsh(through) as abilities:
        yield abilities


@contextlib.contextmanager
def _asyncssh(hosts: Hosts) -> Iterator[Abilities]:
    """Keep a connection to each host in one event loop; only the log-ins are limited."""
    import asyncssh

    known_hosts = asyncssh.read_known_hosts(str(hosts.known_hosts))
    connections: list[asyncssh.SSHClientConnection] = []

    async def all_of(coroutines: list[Coroutine[Any, Any, T]]) -> list[T]:
        found = await asyncio.gather(*coroutines, return_exceptions=True)
        failed = {
            host.name: failure_from(each).reason
            for host, each in zip(hosts.members, found, strict=True)
            if isinstance(each, Exception)
        }
        expect_no_failures(failed, len(hosts.members))
        return [each for each in found if not isinstance(each, BaseException)]

    async def connect() -> None:
        gate = asyncio.Semaphore(MAX_LOGINS)

        async def connect_one(port: int, user: str, key: str) -> None:
            async with gate:
                made = await asyncssh.connect(
                    _LOOPBACK_ADDRESS,
                    port,
                    username=user,
                    client_keys=[key],
                    known_hosts=known_hosts,
                    config=None,
                    agent_path=None,
                )
            connections.append(made)

        await all_of([connect_one(host.port, host.user, str(host.identity_file)) for host in hosts.members])

    async def run() -> None:
        ended = await all_of([connection.run("true") for connection in connections])
        expect([0] * len(hosts.members), [each.exit_status for each in ended])

    async def close() -> None:
        for connection in connections:
            connection.close()
        await asyncio.gather(*(connection.wait_closed() for connection in connections), return_exceptions=True)

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(connect())
        yield Abilities(lambda: loop.run_until_complete(run()))
    finally:
        loop.run_until_complete(close())
        loop.close()


@contextlib.contextmanager
def _parallel_ssh(hosts: Hosts, at_once: int = MAX_LOGINS) -> Iterator[Abilities]:
    from pssh.clients import ParallelSSHClient
    from pssh.config import HostConfig

    configs = [
        HostConfig(host.user, host.port, private_key=str(host.identity_file), allow_agent=False, identity_auth=False)
        for host in hosts.members
    ]
    client = ParallelSSHClient([_LOOPBACK_ADDRESS] * len(configs), host_config=configs, pool_size=at_once)

    clients = {}

    def command() -> None:
        outputs = client.run_command("true", stop_on_errors=False)
        clients.update({number: output.client for number, output in enumerate(outputs) if output.client is not None})
        client.join(outputs, consume_output=True)
        failed = {
            host.name: str(output.exception or f"exit status {output.exit_code}")
            for host, output in zip(hosts.members, outputs, strict=True)
            if output.exception is not None or output.exit_code != 0
        }
        expect_no_failures(failed, len(hosts.members))

    try:
        yield Abilities(command)
    finally:
        for each in clients.values():
            each.disconnect()


@contextlib.contextmanager
def _fabric(hosts: Hosts) -> Iterator[Abilities]:
    """Keep a `ThreadingGroup`, which has a thread for each host, without a limit."""
    import fabric
    from fabric.exceptions import GroupException

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    config = fabric.Config(overrides={"load_ssh_configs": False})
    group = fabric.ThreadingGroup.from_connections(
        fabric.Connection(
            _LOOPBACK_ADDRESS,
            host.user,
            host.port,
            config=config,
            connect_kwargs={
                "key_filename": str(host.identity_file),
                "look_for_keys": False,
                "allow_agent": False,
            },
        )
        for host in hosts.members
    )
    names = {host.port: host.name for host in hosts.members}

    def command() -> None:
        try:
            ended = group.run("true", hide=True, in_stream=False)
        except GroupException as error:
            failed = {connection.port: each for connection, each in error.result.failed.items()}
            expect_no_failures(
                {names[port]: failure_from(each).reason for port, each in failed.items()}, len(hosts.members)
            )
            raise
        expect([0] * len(hosts.members), [each.exited for each in ended.values()])

    try:
        yield Abilities(command)
    finally:
        group.close()


# All of them ----------------------------------------------------------------------------------------------------------


LAZYCLUSTER_GROUP = Contestant(variants.LAZYCLUSTER, _lazycluster)
PLAIN_SSH = Contestant(baselines.SSH_PER_COMMAND.name, _plain_ssh)
_LIBRARIES = (
    Contestant("asyncssh", _asyncssh, "asyncssh"),
    Contestant("fabric", _fabric, "fabric"),
)
PEER_NAMES = ("asyncssh", "fabric", "parallel-ssh", "pdsh")
"""Each by the name of its distribution."""
WARM_CONTESTANTS = (
    LAZYCLUSTER_GROUP,
    Contestant(baselines.SSH_THROUGH_MASTER.name, _ssh_through_masters),
    *_LIBRARIES,
    Contestant("parallel-ssh", functools.partial(_parallel_ssh, at_once=1000), "pssh"),
    Contestant("pdsh", _pdsh_through_masters, program="pdsh"),
)
"""Those that are connected once they have run a command."""
COLD_CONTESTANTS = (
    LAZYCLUSTER_GROUP,
    PLAIN_SSH,
    *_LIBRARIES,
    Contestant("parallel-ssh", _parallel_ssh, "pssh"),
    Contestant("pdsh", _pdsh, program="pdsh"),
)
"""Those that connect when they are opened, or run their first command."""
