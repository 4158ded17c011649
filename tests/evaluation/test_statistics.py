"""Win rates and intervals against hand-worked numbers, other libraries, and their own promise of coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, multinomial

from diffusion_feedback.errors import UserError
from diffusion_feedback.evaluation.statistics import (
    mean_interval,
    permutation_test,
    proportion_interval,
    win_rate,
    win_rate_of_counts,
)


def test_win_rate_counts_a_tie_as_half() -> None:
    found = win_rate([3.0, 1.0, 2.0, 5.0], [1.0, 1.0, 4.0, 2.0])
    assert (found.wins, found.ties, found.losses, found.num) == (2, 1, 1, 4)
    assert found.win_rate == 0.625
    assert found.tie_share == 0.25
    assert found.p_value == 1.0  # two of three decided: 2 * P(X >= 2) = 1


def test_tie_margin_is_inclusive() -> None:
    found = win_rate([1.0, 1.5, 2.0], [0.5, 1.5, 3.0], tie_margin=0.5)
    assert (found.wins, found.ties, found.losses) == (0, 2, 1)


def test_sign_test_by_hand() -> None:
    # 9 of 10 decided: 2 * (C(10,9) + C(10,10)) / 2^10 = 22 / 1024; the five ties do not enter.
    assert win_rate_of_counts(9, 5, 1).p_value == pytest.approx(22 / 1024, abs=1e-12)


@pytest.mark.parametrize(("wins", "losses"), [(7, 3), (10, 0), (0, 10), (61, 39), (1, 0), (0, 1), (500, 500)])
def test_without_ties_the_interval_is_wilsons(wins: int, losses: int) -> None:
    found = win_rate_of_counts(wins, 0, losses)
    wilson = binomtest(wins, wins + losses).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-9)


def _score_statistic(wins: int, losses: int, num: int, delta: float) -> float:
    """Tango's statistic with the nuisance share found by numerical maximum likelihood, not by his formula."""
    ties = num - wins - losses

    def minus_likelihood(q: float) -> float:
        shares = (q + delta, q, 1 - 2 * q - delta)
        return -sum(n * math.log(max(p, 1e-300)) for n, p in zip((wins, losses, ties), shares, strict=True))

    bounds = (max(0.0, -delta), (1 - delta) / 2)
    q = minimize_scalar(minus_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return float((wins - losses - num * delta) / math.sqrt(num * (2 * q + delta - delta**2)))


@pytest.mark.parametrize(("wins", "ties", "losses"), [(20, 10, 5), (3, 40, 1), (1, 1, 1), (12, 30, 0), (40, 3, 60)])
def test_the_bounds_are_where_the_score_test_just_rejects(wins: int, ties: int, losses: int) -> None:
    found = win_rate_of_counts(wins, ties, losses)
    num = wins + ties + losses
    for bound, quantile in ((found.low, 1.959964), (found.high, -1.959964)):
        assert _score_statistic(wins, losses, num, 2 * bound - 1) == pytest.approx(quantile, abs=1e-4)


def test_edge_cases_of_the_interval() -> None:
    all_wins, all_losses = win_rate_of_counts(20, 0, 0), win_rate_of_counts(0, 0, 20)
    # Wilson at p = 1: n / (n + z^2).
    assert (all_wins.win_rate, all_wins.high) == (1.0, 1.0)
    assert all_wins.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)
    assert (all_losses.low, all_losses.high) == pytest.approx((0.0, 1 - all_wins.low), abs=1e-12)
    ties = win_rate_of_counts(0, 20, 0)
    # Nothing decided in n: |delta| <= z^2 / (n + z^2).
    bound = 1.959964**2 / (20 + 1.959964**2)
    assert (ties.win_rate, ties.p_value) == (0.5, 1.0)
    assert (ties.low, ties.high) == pytest.approx((0.5 - bound / 2, 0.5 + bound / 2), abs=1e-6)
    single = win_rate([1.0], [0.0])
    assert single.low == pytest.approx(1 / (1 + 1.959964**2), abs=1e-6)
    assert single.high == 1.0


def test_swapping_sides_mirrors_everything() -> None:
    one, other = win_rate_of_counts(30, 12, 17), win_rate_of_counts(17, 12, 30)
    assert (one.win_rate, one.low, one.high) == pytest.approx((1 - other.win_rate, 1 - other.high, 1 - other.low))
    assert one.p_value == other.p_value


def test_ties_narrow_the_interval() -> None:
    without, with_ties = win_rate_of_counts(60, 0, 40), win_rate_of_counts(40, 40, 20)
    assert with_ties.win_rate == without.win_rate
    assert with_ties.high - with_ties.low < without.high - without.low


@pytest.mark.parametrize(
    ("win", "tie", "num"), [(0.5, 0.0, 60), (0.45, 0.2, 40), (0.6, 0.1, 100), (0.25, 0.5, 60), (0.8, 0.1, 60)]
)
def test_coverage_is_what_the_interval_promises(win: float, tie: float, num: int) -> None:
    """Exact coverage: summed over every outcome of the trinomial, so no chance is left in the test."""
    counts = [(w, t, num - w - t) for w in range(num + 1) for t in range(num + 1 - w)]
    chances = multinomial.pmf(counts, num, [win, tie, 1 - win - tie])
    truth = win + tie / 2
    covered = 0.0
    for cell, chance in zip(counts, chances, strict=True):
        if chance > 1e-7:
            found = win_rate_of_counts(*cell)
            covered += float(chance) * (found.low <= truth <= found.high)
    assert 0.93 < covered < 0.97


def test_coverage_by_simulation() -> None:
    rng = np.random.default_rng(7)
    outcomes = rng.multinomial(200, [0.5, 0.15, 0.35], size=4000)
    bounds = {tuple(row): win_rate_of_counts(*map(int, row)) for row in outcomes}
    covered = np.mean([bounds[tuple(row)].low <= 0.575 <= bounds[tuple(row)].high for row in outcomes])
    assert 0.93 < covered < 0.97


@pytest.mark.parametrize(("successes", "total"), [(0, 5), (5, 5), (3, 7), (123, 400)])
def test_proportion_interval_is_scipys(successes: int, total: int) -> None:
    found = proportion_interval(successes, total)
    wilson = binomtest(successes, total).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)
    assert found.value == successes / total


def test_half_successes_lie_between_and_on_the_safe_side() -> None:
    below, half, above = (proportion_interval(count, 20) for count in (12, 12.5, 13))
    assert below.low < half.low < above.low
    exact = win_rate_of_counts(10, 5, 5)
    assert half.low < exact.low
    assert half.high > exact.high


def test_mean_interval_against_students_t() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.5, 400).tolist()
    found = mean_interval(values)
    half = 1.966 * np.std(values, ddof=1) / math.sqrt(400)  # t quantile at 399 degrees of freedom
    assert found.value == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.02)
    assert mean_interval(values) == found


def test_mean_interval_without_spread() -> None:
    assert mean_interval([0.1, 0.1, 0.1]).low == pytest.approx(0.1)
    single = mean_interval([4.0])
    assert (single.value, single.low, single.high, single.num) == (4.0, -math.inf, math.inf, 1)
    two = mean_interval([1.0, 2.0])
    assert 1.0 <= two.low <= 1.5 <= two.high <= 2.0


def test_wrong_input_is_named() -> None:
    with pytest.raises(UserError, match=r"3 scores_a against 2 scores_b"):
        win_rate([1, 2, 3], [1, 2])
    with pytest.raises(UserError, match=r"scores_b\[1\] is nan"):
        win_rate([1, 2, 3], [1, math.nan, 2])
    with pytest.raises(UserError, match="scores_a: no values"):
        win_rate([], [])
    with pytest.raises(UserError, match="tie_margin is -1"):
        win_rate([1.0], [2.0], tie_margin=-1)
    with pytest.raises(UserError, match="7 successes out of 5"):
        proportion_interval(7, 5)
    with pytest.raises(UserError, match="0 wins, 0 ties, 0 losses"):
        win_rate_of_counts(0, 0, 0)


# --- permutation test ------------------------------------------------------------------------------------------------


def test_permutation_test_by_hand() -> None:
    # The 8 signings of (1, 2, 3) have the sums 6, 4, 2, 0, 0, -2, -4, -6.
    assert permutation_test([1.0, 2.0, 3.0]) == 2 / 8
    assert permutation_test([-1.0, 2.0, 3.0]) == 4 / 8
    assert permutation_test([1.0, 1.0, 1.0, 1.0, -1.0]) == 12 / 32  # |sum| >= 3: (1 + 5) of each sign
    assert permutation_test([0.0, 0.0]) == 1.0
    assert permutation_test([0.0, 1.0, 2.0, 3.0]) == 2 / 8


@pytest.mark.parametrize("num", [4, 9, 13])
def test_permutation_test_agrees_with_scipy(num: int) -> None:
    differences = np.random.default_rng(num).normal(0.4, 1, num)
    found = scipy.stats.permutation_test(
        (differences, np.zeros(num)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=2**14
    )
    assert permutation_test(differences) == pytest.approx(found.pvalue, abs=1e-12)


def test_drawn_flips_agree_with_all_of_them() -> None:
    differences = np.random.default_rng(5).normal(0.3, 1, 16)
    exact = permutation_test(differences, flips=2**16)
    drawn = permutation_test(differences)
    assert abs(drawn - exact) < 4 * np.sqrt(exact * (1 - exact) / 10_000)
    assert drawn == permutation_test(differences)
    assert drawn != permutation_test(differences, seed=1)


def test_drawn_p_values_are_never_zero() -> None:
    assert permutation_test(np.arange(1.0, 41.0)) == 1 / 10_001


def test_drawn_flips_of_many_follow_the_normal_law() -> None:
    differences = np.random.default_rng(2).normal(0.03, 1, 3000)
    expected = 2 * scipy.stats.norm.sf(abs(differences.sum()) / np.sqrt((differences**2).sum()))
    assert permutation_test(differences) == pytest.approx(expected, abs=0.02)


def test_permutation_test_refuses_what_is_not_finite() -> None:
    with pytest.raises(UserError, match=r"differences\[1\] is nan"):
        permutation_test([0.0, float("nan")])
