"""Benchmarks, one a file: which prompts, how many, which scorers, and how scores become the metrics that are published."""
