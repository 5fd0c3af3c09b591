"""`python -m lazycluster` is `lazycluster`."""

import sys

from lazycluster.cli import main

sys.exit(main())
