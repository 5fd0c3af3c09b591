"""Records that all rooms share: commands, their output and progress, forwardings, time-outs and checks."""
