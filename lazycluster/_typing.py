"""Names that the standard library has since Python 3.11, imported from it or from their backports."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from builtins import BaseExceptionGroup, ExceptionGroup
    from typing import Self, Unpack, assert_never
else:
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup
    from typing_extensions import Self, Unpack, assert_never

__all__ = ["BaseExceptionGroup", "ExceptionGroup", "Self", "Unpack", "assert_never"]
