"""Lazycluster as a contestant."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from benchmarks.contestants import Abilities, Contestant, Opener, expect
from benchmarks.sites import Site
from lazycluster import Runtime
from lazycluster.options import RuntimeOptions

P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def new_runtime(site: Site, **options: object) -> Iterator[Runtime]:
    """Keep a runtime for a block."""
    make: Callable[..., Runtime] = Runtime  # not every version knows every option
    with make(site.host, config_file=site.config_file, **options) as runtime:
        yield runtime


def abilities_of(runtime: Runtime) -> Abilities:
    """Return the abilities of a runtime."""

    def command() -> None:
        expect(0, runtime.run(["true"]).exit_code)

    def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return runtime.call(function, *args, **kwargs)

    return Abilities(command, call)


def _opener(**options: object) -> Opener[Site]:
    @contextlib.contextmanager
    def open_runtime(site: Site) -> Iterator[Abilities]:
        with new_runtime(site, **options) as runtime:
            yield abilities_of(runtime)

    return open_runtime


LAZYCLUSTER = "lazycluster"
LAZYCLUSTER_NOT_RESIDENT = "lazycluster, resident=False"
VARIANT_OPTIONS: dict[str, dict[str, object]] = {LAZYCLUSTER: {}}
"""The variants of ours that this version has, with the keywords of `Runtime` that make them."""
if "resident" in RuntimeOptions.__annotations__:
    VARIANT_OPTIONS[LAZYCLUSTER_NOT_RESIDENT] = {"resident": False}

LAZYCLUSTER_CONTESTANTS = tuple(Contestant(name, _opener(**options)) for name, options in VARIANT_OPTIONS.items())
