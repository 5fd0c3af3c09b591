"""The peers, each used in the fastest way for the purpose; all are optional."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from benchmarks import remote
from benchmarks.contestants import Abilities, Contestant, expect
from benchmarks.sites import Site

T = TypeVar("T")


@contextlib.contextmanager
def _execnet(site: Site) -> Iterator[Abilities]:
    """Open one gateway; each call sends the source of its function."""
    import execnet

    group = execnet.Group()
    try:
        gateway = group.makegateway(f"ssh=-F {site.config_file} {site.host}//python={site.python}")

        def call(function: Callable[..., object], *args: object) -> object:
            arguments = ", ".join(map(repr, args))
            source = f"{inspect.getsource(function)}\nchannel.send({function.__name__}({arguments}))"
            return gateway.remote_exec(source).receive()

        yield Abilities(lambda: expect(0, call(remote.run_true)), call)
    finally:
        group.terminate(timeout=5.0)


@contextlib.contextmanager
def _mitogen(site: Site) -> Iterator[Abilities]:
    """Open one context, which calls functions by name and fetches their modules once."""
    import mitogen.master

    broker = mitogen.master.Broker()
    try:
        context = mitogen.master.Router(broker).ssh(
            hostname=site.host,
            ssh_args=["-F", str(site.config_file)],
            python_path=site.python,
            compression=False,  # as for all others
        )
        yield Abilities(lambda: expect(0, context.call(remote.run_true)), context.call)
    finally:
        broker.shutdown()
        broker.join()


@contextlib.contextmanager
def _asyncssh(site: Site) -> Iterator[Abilities]:
    import asyncssh

    loop = asyncio.new_event_loop()

    def wait(coroutine: Coroutine[Any, Any, T]) -> T:
        return loop.run_until_complete(coroutine)

    try:
        connection = wait(
            asyncssh.connect(
                "127.0.0.1",
                site.port,
                username=site.sshd.user,
                client_keys=[str(site.sshd.identity_file)],
                known_hosts=str(site.known_hosts),
                config=None,
                agent_path=None,
            )
        )
        yield Abilities(lambda: expect(0, wait(connection.run("true")).exit_status))
        connection.close()
        wait(connection.wait_closed())
    finally:
        loop.close()


@contextlib.contextmanager
def _parallel_ssh(site: Site) -> Iterator[Abilities]:
    from pssh.clients import SSHClient

    client = SSHClient(
        "127.0.0.1",
        site.sshd.user,
        port=site.port,
        pkey=str(site.sshd.identity_file),
        allow_agent=False,
        identity_auth=False,
    )
    try:

        def command() -> None:
            output = client.run_command("true")
            client.wait_finished(output)
            expect((0, [], []), (output.exit_code, list(output.stdout), list(output.stderr)))

        yield Abilities(command)
    finally:
        client.disconnect()


@contextlib.contextmanager
def _fabric(site: Site) -> Iterator[Abilities]:
    import fabric

    logging.getLogger("paramiko").setLevel(logging.ERROR)
    connection = fabric.Connection(
        "127.0.0.1",
        site.sshd.user,
        site.port,
        config=fabric.Config(overrides={"load_ssh_configs": False}),
        connect_kwargs={
            "key_filename": str(site.sshd.identity_file),
            "look_for_keys": False,
            "allow_agent": False,
        },
    )
    with connection:
        connection.open()
        yield Abilities(lambda: expect(0, connection.run("true", hide=True, in_stream=False).exited))


EXECNET = Contestant("execnet", _execnet, "execnet")
MITOGEN = Contestant("mitogen", _mitogen, "mitogen")
PEER_CONTESTANTS = (
    EXECNET,
    MITOGEN,
    Contestant("asyncssh", _asyncssh, "asyncssh"),
    Contestant("parallel-ssh", _parallel_ssh, "pssh"),
    Contestant("fabric", _fabric, "fabric"),
)
"""Each by the name of its distribution."""
