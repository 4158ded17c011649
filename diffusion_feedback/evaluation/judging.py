"""Verdicts on two models' samples of the same prompts: win rates, the bias of a judge's places, means, perplexity."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .bootstrap import Array, cluster_codes, ratio_intervals, share_intervals
from .statistics import Interval, WinRate, mean_interval, permutation_test, win_rate_of_counts


@dataclass(frozen=True, slots=True)
class PositionBias:
    """What a pair judge makes of the order in which it is shown two samples.

    ``first_share`` is the share of questions, in [0, 1], in which it prefers the one shown first (a half is fair; an
    undecided answer counts half); ``disagreement`` the share of pairs on which its two answers contradict each other,
    or one of them is undecided; ``num`` pairs were judged, in both orders.
    """

    first_share: Interval
    disagreement: Interval
    num: int


def outcomes_of_scores(scores_a: Sequence[float], scores_b: Sequence[float], *, tie_margin: float = 0.0) -> list[float]:
    """1 where a wins, 0 where b does, 0.5 where they differ by ``tie_margin`` or less."""
    return [0.5 if abs(a - b) <= tie_margin else float(a > b) for a, b in zip(scores_a, scores_b, strict=True)]


def outcomes_of_both_orders(a_first: Sequence[float], b_first: Sequence[float]) -> list[float]:
    """1 where a wins in both orders, 0 where b does, 0.5 where the judge contradicts itself or is undecided.

    Preferences in [0, 1] are for the sample shown first: of a in ``a_first``, of b in ``b_first``. A judge that only
    looks at the place therefore calls every pair a tie (Zheng et al., arXiv:2306.05685, section 3.4). Raises UserError for
    preferences outside [0, 1].
    """
    outcomes = []
    for first, second in zip(a_first, b_first, strict=True):
        for preference in (first, second):
            if not 0 <= preference <= 1:
                raise UserError(f"a preference of {preference}", "a judge of pairs answers with a number from 0 to 1")
        sides = _side(first), -_side(second)
        outcomes.append(0.5 if sides[0] != sides[1] else (sides[0] + 1) / 2)
    return outcomes


def position_bias(a_first: Sequence[float], b_first: Sequence[float], prompts: Sequence[Hashable]) -> PositionBias:
    """How far the judge's answers depend on the order; intervals over the prompts. Raises UserError for one prompt."""
    codes = cluster_codes(prompts)
    firsts = [(_side(x) + _side(y) + 2) / 4 for x, y in zip(a_first, b_first, strict=True)]
    differ = [float(_side(x) != -_side(y) or _side(x) == 0) for x, y in zip(a_first, b_first, strict=True)]
    ones = np.ones((2, len(firsts)))
    first_share, disagreement = share_intervals(np.array([firsts, differ]), ones, codes)
    return PositionBias(first_share, disagreement, len(firsts))


def clustered_win_rate(outcomes: Sequence[float], prompts: Sequence[Hashable]) -> WinRate:
    """Win rate of ``outcomes`` (1 won, 0.5 tie, 0 lost), whose interval takes the samples of one prompt together.

    With one sample a prompt it is ``win_rate_of_counts``: Tango's interval and the exact sign test. With several, whole
    prompts are resampled, and the p-value is that of a sign-flip test of the prompts' own win rates against a half.
    Raises UserError for no outcomes, and for several samples of a single prompt.
    """
    wins, losses = sum(value == 1 for value in outcomes), sum(value == 0 for value in outcomes)
    ties = len(outcomes) - wins - losses
    codes = cluster_codes(prompts)
    num_prompts = int(codes.max()) + 1 if len(codes) else 0
    if num_prompts == len(outcomes):
        return win_rate_of_counts(wins, ties, losses)
    values = np.asarray(outcomes, np.float64)
    (share,) = share_intervals(values[None], np.ones((1, len(values))), codes)
    p_value = permutation_test((_means(outcomes, prompts) - 0.5).tolist())
    return WinRate(share.value, share.low, share.high, wins, ties, losses, len(values), p_value)


def clustered_mean(values: Sequence[float], prompts: Sequence[Hashable]) -> Interval:
    """Mean of the prompts' own means, with its bootstrap interval over prompts; ``num`` is the number of prompts."""
    return mean_interval(_means(values, prompts).tolist())


def standard_error(values: Sequence[float], prompts: Sequence[Hashable]) -> float:
    """Standard error of ``clustered_mean``; nan for a single prompt."""
    own = _means(values, prompts)
    return float(own.std(ddof=1) / math.sqrt(len(own))) if len(own) > 1 else math.nan


def perplexity(losses: Sequence[float], tokens: Sequence[int]) -> Interval:
    """exp of the mean loss a token over all texts; ``losses`` (N,) are sums over a text's ``tokens`` (N,), nats.

    The interval resamples whole texts. Raises UserError for fewer than two texts.
    """
    (mean,) = ratio_intervals([list(losses)], [list(map(float, tokens))], np.arange(len(losses)))
    return Interval(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high), mean.num)


def _means(values: Sequence[float], prompts: Sequence[Hashable]) -> Array:
    """The mean of each prompt's own values, by first appearance."""
    codes = cluster_codes(prompts)
    means: Array = np.bincount(codes, weights=np.asarray(values, np.float64)) / np.bincount(codes)
    return means


def _side(preference: float) -> int:
    return (preference > 0.5) - (preference < 0.5)
