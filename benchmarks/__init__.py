"""How fast things are, measured against others: each is run by ``python -m benchmarks.NAME`` from the repository's root."""
