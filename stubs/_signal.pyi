# CPython's own module beneath `signal`: the same functions, and numbers in the place of enumerations.
from signal import *  # noqa: F403
