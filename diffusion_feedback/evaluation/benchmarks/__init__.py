"""Benchmarks, one a file: which prompts, how many, which scorers, and how scores become the figures that are published."""
