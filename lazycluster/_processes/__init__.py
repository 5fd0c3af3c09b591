"""Local processes: this package starts every process of the library, and never judges how one ended."""
