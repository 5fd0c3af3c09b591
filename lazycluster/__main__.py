"""`python -m lazycluster` is `lazycluster`."""

import sys

from lazycluster._cli import main

sys.exit(main())
