"""The benchmark of Human Preference Score v2 (arXiv:2306.09341): 800 prompts in each of four styles."""

from __future__ import annotations

import numpy as np

from ..bootstrap import Array
from .benchmark import Benchmark
from .published import PUBLISHED, STYLES

GROUP = 80


def benchmark() -> Benchmark:
    """The benchmark as its authors run it."""
    return Benchmark(
        name="hpsv2",
        title="HPSv2 benchmark",
        source="Human Preference Score v2, arXiv:2306.09341; prompts: zhwang/HPDv2 on the hub",
        prompts="zhwang/HPDv2",
        files={style: f"benchmark/{style}.json" for style in STYLES},
        scorers=("hpsv2",),
        styles=STYLES,
        per_style=800,
        style_mean=grouped_mean,
        published=PUBLISHED,
        spread_name=f"standard deviation of the means of groups of {GROUP} prompts",
    )


def grouped_mean(values: Array) -> tuple[float, float | None]:
    """Mean and standard deviation (ddof 0) of the means of consecutive groups of 80 prompts; of ten groups of 800.

    Groups go by the index of the prompt, so a missing image (NaN) moves no other image to another group. A group
    without any image is left out; of fewer than two groups there is no deviation.
    """
    groups = [values[start : start + GROUP] for start in range(0, len(values), GROUP)]
    means = np.array([np.nanmean(group) for group in groups if not np.isnan(group).all()])
    return float(means.mean()), float(means.std()) if len(means) > 1 else None
