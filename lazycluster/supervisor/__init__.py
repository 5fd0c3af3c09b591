"""What runs on a host, and what travels there."""
