"""How fast lazycluster is, side by side with the floors and its peers: `python -m benchmarks`, or `make bench`."""
