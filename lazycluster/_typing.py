"""What `typing` has since Python 3.11, from there or from typing_extensions."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from typing import Self, Unpack, assert_never
else:
    from typing_extensions import Self, Unpack, assert_never

__all__ = ["Self", "Unpack", "assert_never"]
