"""Model cards: what a result is, where it came from, how to use it."""
