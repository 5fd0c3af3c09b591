"""Python functions as bytes: what travels to a host, and the outcome that comes back."""
