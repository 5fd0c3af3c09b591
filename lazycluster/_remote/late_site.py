"""What `python -S` leaves out of its start, made up for before the first function; sent to the host.

Commands need no site-packages, and a Python with many of them takes longer to start for these than for all else.

Standard library only, and the syntax of Python 3.6.
"""

import site
import sys


class _Flags(tuple):  # type: ignore[type-arg]  # Python 3.6 cannot subscript it
    """`sys.flags`, whose own type nobody can make another of, as if there had been no -S.

    multiprocessing hands these on to the Pythons that it starts (see `subprocess._args_from_interpreter_flags`).
    """

    __slots__ = ()
    no_site = 0

    def __getattr__(self, name: str) -> object:
        return getattr(_original_flags, name)

    def __repr__(self) -> str:
        return repr(_original_flags).replace("no_site=1", "no_site=0")


_original_flags = sys.flags


def run_site_main() -> None:
    """Find site-packages, and run what they and `sitecustomize` want run at the start of each Python.

    Raises:
        RuntimeError: One of them ends the Python that it is run in.
    """
    if not _original_flags.no_site:
        return
    try:
        site.main()
    except SystemExit as error:
        raise RuntimeError(f"sitecustomize, or a .pth file in site-packages, ends Python: {error!r}") from error
    place = repr(_original_flags).partition("no_site=")[0].count("=")
    sys.flags = _Flags((*_original_flags[:place], 0, *_original_flags[place + 1 :]))  # type: ignore[assignment]
