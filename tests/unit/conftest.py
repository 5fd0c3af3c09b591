"""Settings and fixtures of the unit tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from lazycluster import RuntimeGroup
from tests.unit.group_hosts import GROUP_HOSTS, group_thread_names
from tests.unit.transport_recorder import TransportRecorder, record_transports
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazycluster.testing import FakeHost

settings.register_profile("no deadline", deadline=None)  # on a busy machine an example may take long
settings.load_profile("no deadline")


@pytest.fixture
def transports(fake_host: FakeHost) -> Iterator[TransportRecorder]:
    """Return a record of the transports of fake hosts."""
    with record_transports() as recorder:
        yield recorder


@pytest.fixture
def group(fake_host: FakeHost, transports: TransportRecorder) -> Iterator[RuntimeGroup]:
    """Return a group of three fake hosts; at its end nothing of it may remain."""
    for host in GROUP_HOSTS:
        fake_host.host(host)
    with RuntimeGroup(hosts=GROUP_HOSTS) as group:
        yield group
    assert fake_host.closed
    assert fake_host.cleaned_up
    assert_eventually(lambda: not group_thread_names(), "the threads of the library end")
