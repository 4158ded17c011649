"""Benchmarks that are lists of prompts and nothing more: the metrics are plain means."""

from __future__ import annotations

from functools import partial

from .benchmark import Benchmark

# A table with a column Category, which is the style, or a plain list of the 200 prompts, which are hard in eleven ways.
drawbench = partial(
    Benchmark,
    name="drawbench",
    title="DrawBench",
    source="Imagen, arXiv:2205.11487",
    prompts="zhwang/HPDv2",
    files={"": "benchmark/drawbench.json"},
    scorers=("pickscore",),
    style_columns=("category",),
    total=200,
)
# The published table of 1,632 prompts; its column Category is the style, one of twelve.
partiprompts = partial(
    Benchmark,
    name="partiprompts",
    title="PartiPrompts",
    source="Parti, arXiv:2206.10789; prompts: PartiPrompts.tsv of github.com/google-research/parti",
    prompts="nateraw/parti-prompts",
    files={"": "PartiPrompts.tsv"},
    scorers=("pickscore",),
    style_columns=("category",),
    total=1632,
)
# Any file of what people typed, such as the 500 of validation_unique or test_unique; duplicates are left out.
pickapic = partial(
    Benchmark,
    name="pickapic",
    title="Pick-a-Pic prompts",
    source="Pick-a-Pic, arXiv:2305.01569",
    prompts=None,
    files={},
    scorers=("pickscore",),
    style_columns=(),
    unique=True,
)
