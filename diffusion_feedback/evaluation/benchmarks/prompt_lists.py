"""Benchmarks that are lists of prompts and nothing more: the metrics are plain means."""

from __future__ import annotations

from .benchmark import Benchmark


def drawbench() -> Benchmark:
    """200 prompts that are hard in eleven ways: a table with a column Category, which is the style, or a plain list."""
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


def partiprompts() -> Benchmark:
    """The published table of 1,632 prompts; its column Category is the style, one of twelve."""
    return Benchmark(
        name="partiprompts",
        title="PartiPrompts",
        source="Parti, arXiv:2206.10789; prompts: PartiPrompts.tsv of github.com/google-research/parti",
        prompts="nateraw/parti-prompts",
        files={"": "PartiPrompts.tsv"},
        scorers=("pickscore",),
        style_columns=("category",),
        total=1632,
    )


def own_prompts() -> Benchmark:
    """Prompts of one's own, from any file, each once; a column style or category is the style."""
    return Benchmark(
        name="prompts",
        title="Own prompts",
        source="a file of prompts",
        prompts=None,
        files={},
        scorers=("pickscore",),
        unique=True,
    )


def pickapic() -> Benchmark:
    """Any file of what people typed, such as the 500 of validation_unique or test_unique; duplicates are left out."""
    return Benchmark(
        name="pickapic",
        title="Pick-a-Pic prompts",
        source="Pick-a-Pic, arXiv:2305.01569",
        prompts=None,
        files={},
        scorers=("pickscore",),
        style_columns=(),
        unique=True,
    )
