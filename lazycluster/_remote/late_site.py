"""The part of Python's start that `python -S` leaves out, run before the first function; sent to the host.

Commands need no site-packages. If there are many, they take longer than the rest of Python's start.

Standard library only, and the syntax of Python 3.6.
"""

import site
import sys


def run_site_main() -> None:
    """Find site-packages, and run `.pth` files and `sitecustomize`, as each Python does at its start.

    Raises:
        RuntimeError: If one of them ends the Python that runs it.
    """
    if not sys.flags.no_site:
        return
    try:
        site.main()
    except SystemExit as error:
        raise RuntimeError(f"sitecustomize, or a .pth file in site-packages, ends Python: {error!r}") from error
