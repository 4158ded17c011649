"""DrawBench (arXiv:2205.11487): 200 prompts that are hard in eleven ways."""

from __future__ import annotations

from .benchmark import Benchmark


def benchmark() -> Benchmark:
    """A table with a column Category, which is the style, or a plain list of the 200 prompts."""
    return Benchmark(
        name="drawbench",
        title="DrawBench",
        source="Imagen, arXiv:2205.11487",
        prompts="zhwang/HPDv2",
        files={"": "benchmark/drawbench.json"},
        scorers=("pickscore",),
        style_columns=("category",),
        total=200,
    )
