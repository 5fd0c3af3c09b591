"""Records that all rooms share: what to run, how to follow it, checks, options."""
