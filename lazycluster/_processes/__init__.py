"""Local processes: this package starts all but those on a terminal, and never judges how one ended."""
