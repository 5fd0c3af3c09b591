"""Python functions as bytes: the calls that travel to a host, and the outcomes that come back."""
