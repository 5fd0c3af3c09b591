"""Files and directories on their way to and from a host."""
