"""Bootstrap over clusters: intervals for shares and means of pairs that belong together by their prompt."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from ..errors import UserError
from .statistics import CONFIDENCE, Interval, proportion_interval

Array = NDArray[np.float64]

_RESAMPLES = 4999
_BATCH_VALUES = 4_000_000  # resampled clusters held at once, so that many clusters do not fill the memory


def cluster_codes(clusters: Sequence[Hashable]) -> NDArray[np.int64]:
    """Number each distinct cluster, (N,), by its first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], np.int64)


def ratio_intervals(numerators: ArrayLike, denominators: ArrayLike, codes: NDArray[np.int64]) -> list[Interval]:
    """95 % intervals of sum(numerators[k]) / sum(denominators[k]) for every k, resampling whole clusters.

    ``numerators`` and ``denominators`` are (K, N), the latter 0 or more; ``codes`` (N,) is the cluster of each of the N
    pairs, from 0. A mean over N has denominators of 1; pairs that do not count have 0 in both. All K share 4999
    resamples under a fixed seed, so results of equal data are equal. Bias-corrected and accelerated (Efron, JASA
    82:171, 1987), the acceleration by leaving out one cluster at a time. ``num`` is the number of pairs that count.
    Raises UserError for values that are not finite, fewer than two clusters, or nothing that counts.
    """
    top, bottom = np.atleast_2d(np.asarray(numerators, np.float64)), np.atleast_2d(np.asarray(denominators, np.float64))
    if not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        raise UserError("values that are not finite cannot be resampled", "score the images again")
    num_clusters = int(codes.max()) + 1 if len(codes) else 0
    if num_clusters < 2:
        raise UserError(f"{num_clusters} clusters to resample", "give pairs of at least two prompts")
    if (bottom.sum(axis=1) == 0).any():
        raise UserError("no pair counts", "give pairs with a preference")
    sums = np.stack([[np.bincount(codes, weights=row) for row in rows] for rows in (top, bottom)], dtype=np.float64)
    totals = _resampled_totals(sums.reshape(-1, num_clusters).T).reshape(-1, *sums.shape[:2])
    return [
        _accelerated(sums[0, k], sums[1, k], totals[:, 0, k], totals[:, 1, k], int((bottom[k] > 0).sum()))
        for k in range(len(top))
    ]


def share_intervals(numerators: ArrayLike, denominators: ArrayLike, codes: NDArray[np.int64]) -> list[Interval]:
    """``ratio_intervals`` for shares in [0, 1].

    A share of exactly 0 or 1 has no spread to resample. There the bound is Wilson's over the clusters that count, as
    if each were a single pair, which is on the safe side.
    """
    intervals = ratio_intervals(numerators, denominators, codes)
    counted = np.atleast_2d(np.asarray(denominators)) > 0
    for k, interval in enumerate(intervals):
        if interval.value in (0.0, 1.0):
            num_clusters = len(np.unique(codes[counted[k]]))
            wilson = proportion_interval(interval.value * num_clusters, num_clusters)
            intervals[k] = Interval(interval.value, wilson.low, wilson.high, interval.num)
    return intervals


def _resampled_totals(sums: Array) -> Array:
    """Totals (R, K) over resamples of the C clusters of ``sums`` (C, K), as many as there are, with replacement."""
    num_clusters = len(sums)
    source = np.random.default_rng(0)
    parts, left = [], _RESAMPLES
    while left:
        size = min(left, max(1, _BATCH_VALUES // num_clusters))
        drawn = source.integers(0, num_clusters, (size, num_clusters))
        drawn += num_clusters * np.arange(size)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=size * num_clusters).reshape(size, num_clusters)
        parts.append(counts @ sums)
        left -= size
    return np.concatenate(parts)


def _accelerated(top: Array, bottom: Array, tops: Array, bottoms: Array, num: int) -> Interval:
    """The interval of one ratio from its sums per cluster (C,) and its resampled totals (R,)."""
    value = float(top.sum() / bottom.sum())
    kept = bottoms > 0  # a resample may hold no pair that counts
    drawn = tops[kept] / bottoms[kept]
    left_out = bottom.sum() - bottom
    others = (top.sum() - top)[left_out > 0] / left_out[left_out > 0]
    # Rounding makes equal ratios differ in the last digits; they are distinguished from a real spread by this much.
    if not len(drawn) or np.ptp(drawn) <= 1e-12 * max(1.0, abs(value)):
        return Interval(value, value, value, num)
    pull = others.mean() - others
    spread = (pull**2).sum()
    acceleration = (pull**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    below = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    bias = ndtri(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    shifted = bias + ndtri([0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    low, high = np.quantile(drawn, ndtr(bias + shifted / (1 - acceleration * shifted)))
    # An extreme bias can push the interval past the estimate itself; it is widened then, never moved.
    return Interval(value, min(float(low), value), max(float(high), value), num)
