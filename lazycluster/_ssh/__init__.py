"""The OpenSSH client: its configuration, its words, its master, sessions and tunnels."""
