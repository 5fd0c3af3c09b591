"""The record of a forwarding, and its text as ssh writes it."""

from __future__ import annotations

from typing import Any

import pytest

from lazycluster._model.forwarding import Forwarding, ForwardType


@pytest.mark.parametrize(
    ("forwarding", "text"),
    [
        (Forwarding(ForwardType.LOCAL, 8080, 80), "-L localhost:8080:localhost:80"),
        (Forwarding(ForwardType.REMOTE, 1, 65535), "-R localhost:1:localhost:65535"),
        (Forwarding(ForwardType.LOCAL, 8080, 80, connect_host="db"), "-L localhost:8080:db:80"),
        (Forwarding(ForwardType.REMOTE, 8080, 80, listen_host="127.0.0.1"), "-R 127.0.0.1:8080:localhost:80"),
    ],
    ids=["local", "remote", "other connect host", "other listen host"],
)
def test_forwarding_text_is_as_ssh_writes_it(forwarding: Forwarding, text: str) -> None:
    assert str(forwarding) == text


@pytest.mark.parametrize(
    "ports", [(0, 80), (80, 0), (65536, 80), (80, 65536), (-1, 80), ("80", 80), (True, 80)], ids=str
)
def test_forwarding_refuses_wrong_ports(ports: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError):
        Forwarding(ForwardType.LOCAL, *ports)


def test_forward_type_values_are_flags_of_ssh() -> None:
    assert ForwardType("-L") is ForwardType.LOCAL
    assert ForwardType("-R") is ForwardType.REMOTE
