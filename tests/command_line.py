"""The command line `lazycluster` as a function, found as its installed script finds it."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

main: Callable[..., int] = entry_points(group="console_scripts", name="lazycluster")["lazycluster"].load()
