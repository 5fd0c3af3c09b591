"""The baselines of lazycluster: plain OpenSSH, and the least that a command and a call can take."""

from __future__ import annotations

import contextlib
import inspect
import pickle
import shlex
from collections.abc import Callable, Iterator

from benchmarks import remote, resident
from benchmarks.contestants import Abilities, Contestant, expect
from benchmarks.processes import interactive_program, run_program
from benchmarks.sites import Site, open_master


@contextlib.contextmanager
def _ssh_through_master(site: Site) -> Iterator[Abilities]:
    with open_master(site) as master:
        yield Abilities(lambda: run_program((*master.ssh, "--", site.host, "true")))


@contextlib.contextmanager
def _ssh_per_command(site: Site) -> Iterator[Abilities]:
    yield Abilities(lambda: run_program((*site.ssh, "--", site.host, "true")))


@contextlib.contextmanager
def _persistent_shell(site: Site) -> Iterator[Abilities]:
    with interactive_program((*site.ssh, "--", site.host, "sh")) as shell:

        def command() -> None:
            shell.send(b"/bin/true; echo done $?\n")
            expect(b"done 0\n", shell.stdout.readline())

        yield Abilities(command)


@contextlib.contextmanager
def _round_trip(site: Site) -> Iterator[Abilities]:
    """Open a shell that only echoes: the time of the network and of plain ssh alone."""
    with interactive_program((*site.ssh, "--", site.host, "sh")) as shell:

        def echo() -> None:
            shell.send(b"echo done\n")
            expect(b"done\n", shell.stdout.readline())

        yield Abilities(echo)


@contextlib.contextmanager
def _resident(site: Site) -> Iterator[Abilities]:
    program = f"{inspect.getsource(remote)}\n{inspect.getsource(resident)}"
    words = shlex.join((site.python, "-u", "-c", program))
    with interactive_program((*site.ssh, "--", site.host, words)) as python:

        def call(function: Callable[..., object], *args: object) -> object:
            request = pickle.dumps((function.__name__, args), protocol=pickle.HIGHEST_PROTOCOL)
            python.send(resident.LENGTH_HEADER.pack(len(request)) + request)
            (size,) = resident.LENGTH_HEADER.unpack(python.receive(resident.LENGTH_HEADER.size))
            return pickle.loads(python.receive(size))

        yield Abilities(call=call)


SSH_THROUGH_MASTER = Contestant("ssh through a master", _ssh_through_master)
SSH_PER_COMMAND = Contestant("ssh, a connection each", _ssh_per_command)
PERSISTENT_SHELL = Contestant("persistent shell", _persistent_shell)
SINGLE_ROUND_TRIP = Contestant("one round trip", _round_trip)
RESIDENT_PYTHON = Contestant("bare resident Python", _resident)
