"""Verdicts by hand: both orders, places, samples of one prompt, perplexity."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffusion_feedback.errors import UserError
from diffusion_feedback.evaluation.judging import (
    clustered_mean,
    clustered_win_rate,
    outcomes_of_both_orders,
    outcomes_of_scores,
    perplexity,
    position_bias,
    standard_error,
)
from diffusion_feedback.evaluation.statistics import mean_interval, win_rate_of_counts


def test_scores_become_outcomes() -> None:
    assert outcomes_of_scores([2, 1, 1, 1.05], [1, 2, 1, 1], tie_margin=0.1) == [1.0, 0.0, 0.5, 0.5]


def test_a_verdict_needs_both_orders() -> None:
    # a in both orders, b in both, always the first, always the second, undecided once
    assert outcomes_of_both_orders([0.9, 0.1, 0.9, 0.1, 0.5], [0.2, 0.8, 0.9, 0.1, 0.1]) == [1, 0, 0.5, 0.5, 0.5]
    with pytest.raises(UserError, match="a preference of 1.5"):
        outcomes_of_both_orders([1.5], [0.5])
    with pytest.raises(UserError, match="a preference of nan"):
        outcomes_of_both_orders([0.5], [math.nan])


def test_a_judge_of_places_is_found_out() -> None:
    prompts = [f"p{number}" for number in range(40)]
    always_first = position_bias([0.9] * 40, [0.9] * 40, prompts)
    assert (always_first.first_share.value, always_first.disagreement.value) == (1, 1)
    assert always_first.first_share.low > 0.85
    fair = position_bias([0.9, 0.1] * 20, [0.1, 0.9] * 20, prompts)
    assert (fair.first_share.value, fair.disagreement.value) == (0.5, 0)
    assert fair.num == 40
    # 2 of 4 answers each: first twice, first once and undecided once, second twice, fair
    mixed = position_bias([0.9, 0.9, 0.1, 0.9], [0.9, 0.5, 0.1, 0.1], list("abcd"))
    assert mixed.first_share.value == pytest.approx((1 + 0.75 + 0 + 0.5) / 4)
    assert mixed.disagreement.value == pytest.approx(3 / 4)


def test_one_sample_a_prompt_is_the_plain_win_rate() -> None:
    outcomes = [1.0] * 12 + [0.5] * 3 + [0.0] * 5
    found = clustered_win_rate(outcomes, range(20))
    assert found == win_rate_of_counts(12, 3, 5)


def test_samples_of_one_prompt_add_no_certainty() -> None:
    """Eight copies of each verdict must not make the interval narrower than the verdicts themselves do."""
    rng = np.random.default_rng(0)
    outcomes = rng.choice([0.0, 1.0], 60, p=[0.4, 0.6]).tolist()
    copies = clustered_win_rate(np.repeat(outcomes, 8).tolist(), np.repeat(np.arange(60), 8).tolist())
    plain = clustered_win_rate(outcomes, range(60))
    assert copies.win_rate == pytest.approx(plain.win_rate)
    assert copies.num == 480
    assert (copies.high - copies.low) == pytest.approx(plain.high - plain.low, rel=0.1)
    blind = win_rate_of_counts(copies.wins, copies.ties, copies.losses)
    assert (blind.high - blind.low) < 0.5 * (copies.high - copies.low)
    assert copies.p_value == pytest.approx(plain.p_value, abs=0.03)


def test_means_and_errors_are_over_prompts() -> None:
    values, prompts = [1.0, 3.0, 5.0, 7.0, 0.0, 0.0], ["a", "a", "b", "b", "c", "c"]
    assert clustered_mean(values, prompts) == mean_interval([2.0, 6.0, 0.0])
    assert standard_error(values, prompts) == pytest.approx(float(np.std([2.0, 6.0, 0.0], ddof=1)) / math.sqrt(3))
    assert math.isnan(standard_error([1.0], ["a"]))


def test_perplexity_is_that_of_all_tokens() -> None:
    losses, tokens = [2.0, 9.0, 4.0, 1.0], [2, 3, 5, 1]
    found = perplexity(losses, tokens)
    assert found.value == pytest.approx(math.exp(16 / 11))
    assert found.low < found.value < found.high
    with pytest.raises(UserError):
        perplexity([1.0], [1])
