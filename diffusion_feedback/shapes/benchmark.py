"""Held-out captions of the Shapes world, judged by its exact verifier."""

from __future__ import annotations

from ..evaluation.benchmarks.benchmark import OVERALL, Benchmark


def benchmark() -> Benchmark:
    """The captions of assets/prompts/heldout.txt; the size that a caption names is its style."""
    return Benchmark(
        name="shapes",
        title="Shapes, held-out captions",
        source="the embedded world, assets/README.md",
        prompts="assets/prompts/heldout.txt",
        files={"": "heldout.txt"},
        scorers=("shapes",),
        style_of=size_of,
    )


def size_of(caption: str) -> str:
    """The size that ``caption`` names, small or large, as in "a small red circle on a blue background"."""
    words = caption.split()
    return words[1] if len(words) > 1 and words[1] in ("small", "large") else OVERALL
