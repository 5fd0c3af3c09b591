# CPython's C module that `signal` wraps: the same functions, with numbers in place of enumerations.
from signal import *  # noqa: F403
