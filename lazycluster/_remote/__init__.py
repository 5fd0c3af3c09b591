"""Everything that runs on a host: standard library only, in the syntax of Python 3.6."""
