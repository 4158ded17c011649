"""PartiPrompts (arXiv:2206.10789): 1,632 prompts of twelve categories."""

from __future__ import annotations

from .benchmark import Benchmark


def benchmark() -> Benchmark:
    """The published table; its column Category is the style."""
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
