"""A batch of items on a host: one process calls the function with one item after another, for a limited time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lazycluster import Runtime
from lazycluster._invoke import call_each
from lazycluster._runtime_core import core_of
from lazycluster.results import Value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazycluster._transports.host_context import HostContext
    from lazycluster.testing import LocalSshd


@pytest.fixture(scope="module")
def context(sshd: LocalSshd, resident: bool) -> Iterator[HostContext]:
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        yield core_of(runtime).context()


def test_call_each_uses_one_process(context: HostContext) -> None:
    outcomes = call_each(context, lambda _: os.getpid(), range(5), time_budget=60.0)
    assert len(outcomes) == 5
    assert len({outcome.unwrap() for outcome in outcomes}) == 1


def test_call_each_budget_spent_returns_first_outcomes(context: HostContext) -> None:
    assert call_each(context, abs, range(100), time_budget=0.0) == [Value(0)]
