"""Prompts of Pick-a-Pic (arXiv:2305.01569): what people typed, each prompt once."""

from __future__ import annotations

from .benchmark import Benchmark


def benchmark() -> Benchmark:
    """Any file of prompts, such as the 500 of validation_unique or test_unique; duplicates are left out."""
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
