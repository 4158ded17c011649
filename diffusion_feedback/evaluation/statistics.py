"""Win rates, proportions and means with 95 % intervals; every number that a report claims comes from here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import bisect
from scipy.stats import binomtest, bootstrap, norm

from ..errors import UserError

CONFIDENCE = 0.95
_Z = float(norm.ppf(0.5 + CONFIDENCE / 2))
_RESAMPLES = 9999
_FLIPS = 10_000
_BATCH_VALUES = 2_000_000  # resampled values held at once, so that long inputs do not fill the memory


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the bounds of its 95 % interval, in the unit of the values, over ``num`` observations."""

    value: float
    low: float
    high: float
    num: int


@dataclass(frozen=True, slots=True)
class WinRate:
    """Share of comparisons won, in [0, 1], a tie counting half; ``low`` and ``high`` bound its 95 % interval.

    ``p_value`` is that of the two-sided sign test of "wins and losses are equally likely". Raises UserError for numbers
    outside [0, 1], bounds in the wrong order, and no comparison.
    """

    win_rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    num: int
    p_value: float

    def __post_init__(self) -> None:
        for name in ("win_rate", "low", "high", "p_value"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"win rate: {name} is {getattr(self, name)}", "give a number from 0 to 1")
        # A bound may miss the estimate by rounding alone.
        if not self.low - 1e-9 <= self.win_rate <= self.high + 1e-9:
            problem = f"win rate: {self.win_rate} lies outside its interval {self.low} to {self.high}"
            raise UserError(problem, "give low <= win_rate <= high")
        if self.num < 1:
            raise UserError(f"win rate: num is {self.num}", "give the number of comparisons, 1 or more")

    @property
    def tie_share(self) -> float:
        """Share of ties among all comparisons, in [0, 1]."""
        return self.ties / self.num


def win_rate(scores_a: Sequence[float], scores_b: Sequence[float], *, tie_margin: float = 0.0) -> WinRate:
    """How often a beats b: ``scores_a[i]`` against ``scores_b[i]``, a tie where they differ by ``tie_margin`` or less.

    The interval and the test take the comparisons as independent: average the seeds of one prompt first where prompts
    carry several. Raises UserError for no scores, unequal lengths, scores that are not finite, or a negative margin.
    """
    a, b = _finite(scores_a, "scores_a"), _finite(scores_b, "scores_b")
    if len(a) != len(b):
        raise UserError(
            f"{len(a)} scores_a against {len(b)} scores_b", "score the same prompts and seeds on both sides"
        )
    if not tie_margin >= 0:
        raise UserError(f"tie_margin is {tie_margin}", "give a margin of 0 or more, in the unit of the scores")
    difference = a - b
    wins, losses = int((difference > tie_margin).sum()), int((difference < -tie_margin).sum())
    return win_rate_of_counts(wins, len(a) - wins - losses, losses)


def win_rate_of_counts(wins: int, ties: int, losses: int) -> WinRate:
    """The win rate from its counts.

    Interval: Tango's score interval for the difference of paired proportions (Statistics in Medicine 17:891, 1998),
    mapped from wins - losses in [-1, 1] to [0, 1]. It keeps its level where a Wald or bootstrap interval collapses
    (all wins, few pairs), gains from ties as it should, and without ties it is the Wilson interval. Test: exact sign
    test, ties left out (Dixon and Mood, JASA 41:557, 1946); 1 where all are ties. Raises UserError for no comparison.
    """
    num = wins + ties + losses
    if min(wins, ties, losses) < 0 or num == 0:
        raise UserError(f"{wins} wins, {ties} ties, {losses} losses", "give counts of at least one comparison")
    low, high = _paired_score_bound(wins, losses, num), -_paired_score_bound(losses, wins, num)
    decided = wins + losses
    p_value = float(binomtest(wins, decided, 0.5).pvalue) if decided else 1.0
    rate = (wins + ties / 2) / num
    return WinRate(rate, (1 + low) / 2, (1 + high) / 2, wins, ties, losses, num, p_value)


def proportion_interval(successes: float, total: int) -> Interval:
    """Wilson score interval of ``successes`` out of ``total`` (Wilson, JASA 22:209, 1927).

    The same closed form as ``scipy.stats.binomtest(...).proportion_ci("wilson")``, which takes whole numbers only; here
    half successes are welcome, so ties may count half. That is on the safe side: outcomes in {0, 1/2, 1} vary less than
    outcomes in {0, 1} of the same mean. Raises UserError unless 0 <= successes <= total and total > 0.
    """
    if total < 1 or not 0 <= successes <= total:
        raise UserError(f"{successes} successes out of {total}", "give 0 <= successes <= total and at least one trial")
    share, spread = successes / total, _Z**2 / total
    center = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    # The bounds at 0 and 1 are exact; rounding must not leave 1e-17 there.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == total else center + half
    return Interval(share, low, high, total)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of ``values`` with its bias-corrected, accelerated bootstrap interval (Efron, JASA 82:171, 1987).

    9999 resamples under a fixed seed. Values that are all equal give an interval of no width; one value says nothing
    about the spread, so its interval is infinite. Raises UserError for no values or values that are not finite.
    """
    data = _finite(values, "values")
    mean = float(data.mean())
    if len(data) == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    # Rounding makes equal differences differ in the last digits; they are distinguished from a real spread by this much.
    if np.ptp(data) <= 1e-12 * max(1.0, abs(mean)):
        return Interval(mean, mean, mean, len(data))
    interval = bootstrap(
        (data,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH_VALUES // len(data)),
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(interval.low), float(interval.high), len(data))


def permutation_test(differences: Sequence[float], *, flips: int = _FLIPS, seed: int = 0) -> float:
    """Two-sided p-value, in (0, 1], of "each of the paired ``differences`` is as likely with the other sign".

    The statistic is the mean, so sizes count and not only signs. Where all signings together are no more than ``flips``
    they are gone through and the p-value is exact. Else ``flips`` of them are drawn under ``seed``, and
    p = (b + 1) / (flips + 1) with b as extreme as what was seen: never 0, and never too small (Phipson and Smyth,
    Statistical Applications in Genetics and Molecular Biology 9:39, 2010). Differences of 0 say nothing and change
    nothing; 1 where all are 0. Raises UserError for no differences or differences that are not finite.
    """
    sizes = np.abs(_finite(differences, "differences"))
    observed = abs(float(np.sum(np.asarray(differences, np.float64))))
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 1.0
    # Sums of the same numbers in another order differ by rounding; such sums are equal.
    limit = observed - 1e-12 * float(sizes.sum())
    if 2 ** min(len(sizes), 63) <= flips:
        signs = 1 - 2 * ((np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes))) & 1)
        return float((np.abs(signs @ sizes) >= limit).mean())
    source, extreme = np.random.default_rng(seed), 0
    rows = max(1, _BATCH_VALUES // len(sizes))
    for start in range(0, flips, rows):
        flipped = source.integers(0, 2, (min(rows, flips - start), len(sizes)), np.int8)
        # The sum of signed sizes: those left positive twice, less all.
        extreme += int((np.abs(2 * (flipped @ sizes) - sizes.sum()) >= limit).sum())
    return (extreme + 1) / (flips + 1)


def _finite(values: Sequence[float], name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    data = np.asarray(values, np.float64).reshape(-1)
    if not len(data):
        raise UserError(f"{name}: no values", "give at least one")
    bad = np.flatnonzero(~np.isfinite(data))
    if len(bad):
        raise UserError(
            f"{name}[{bad[0]}] is {data[bad[0]]} ({len(bad)} of {len(data)} are not finite)", "score it again"
        )
    return data


def _paired_score_bound(wins: int, losses: int, num: int) -> float:
    """Lower bound in [-1, 1] of (wins - losses) / num: where Tango's score statistic falls to the normal quantile."""
    if losses == num:
        return -1.0

    def excess(delta: float) -> float:
        # The likeliest share of losses when wins exceed losses by ``delta``: the root of 2 n q^2 + s q - t = 0.
        s = -wins - losses + (2 * num - wins + losses) * delta
        t = losses * delta * (1 - delta)
        q = (math.sqrt(max(s * s + 8 * num * t, 0.0)) - s) / (4 * num)
        variance = max(num * (2 * q + delta * (1 - delta)), 0.0)
        observed = wins - losses - num * delta
        if variance == 0:  # at the ends of the range: the observation is certain there, or impossible
            return -_Z if observed == 0 else math.inf
        return observed / math.sqrt(variance) - _Z

    # Bisection looks at signs alone, so the infinite statistic at -1 does no harm.
    return float(bisect(excess, -1.0, (wins - losses) / num, xtol=1e-12))
