"""What lazycluster is measured against: plain OpenSSH, and the least that a command and a call can take."""

from __future__ import annotations

import contextlib
import inspect
import pickle
import shlex
from collections.abc import Callable, Iterator

from benchmarks import remote, resident
from benchmarks.contestants import Abilities, Contestant, expect
from benchmarks.processes import finish, talking_to
from benchmarks.sites import Site, master


@contextlib.contextmanager
def _raw_ssh(site: Site) -> Iterator[Abilities]:
    with master(site) as link:
        yield Abilities(lambda: finish((*link.ssh, "--", site.host, "true")))


@contextlib.contextmanager
def _cold_ssh(site: Site) -> Iterator[Abilities]:
    yield Abilities(lambda: finish((*site.ssh, "--", site.host, "true")))


@contextlib.contextmanager
def _persistent_shell(site: Site) -> Iterator[Abilities]:
    with talking_to((*site.ssh, "--", site.host, "sh")) as shell:

        def command() -> None:
            shell.send(b"/bin/true; echo done $?\n")
            expect(b"done 0\n", shell.hear.readline())

        yield Abilities(command)


@contextlib.contextmanager
def _round_trip(site: Site) -> Iterator[Abilities]:
    """Open a shell that only echoes: what the link and plain ssh take, and nothing else does."""
    with talking_to((*site.ssh, "--", site.host, "sh")) as shell:

        def echo() -> None:
            shell.send(b"echo done\n")
            expect(b"done\n", shell.hear.readline())

        yield Abilities(echo)


@contextlib.contextmanager
def _resident(site: Site) -> Iterator[Abilities]:
    program = f"{inspect.getsource(remote)}\n{inspect.getsource(resident)}"
    words = shlex.join((site.python, "-u", "-c", program))
    with talking_to((*site.ssh, "--", site.host, words)) as python:

        def call(function: Callable[..., object], *args: object) -> object:
            request = pickle.dumps((function.__name__, args), protocol=pickle.HIGHEST_PROTOCOL)
            python.send(resident.HEAD.pack(len(request)) + request)
            (size,) = resident.HEAD.unpack(python.receive(resident.HEAD.size))
            return pickle.loads(python.receive(size))

        yield Abilities(call=call)


RAW_SSH = Contestant("ssh through a master", _raw_ssh)
COLD_SSH = Contestant("ssh, a connection each", _cold_ssh)
SHELL = Contestant("persistent shell", _persistent_shell)
ROUND_TRIP = Contestant("one round trip", _round_trip)
RESIDENT = Contestant("bare resident Python", _resident)
