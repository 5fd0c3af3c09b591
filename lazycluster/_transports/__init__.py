"""Two ways to run things on a host, and the interface that they share."""
