"""Accuracy, scale, reliability and agreement against hand-worked numbers, loops, scipy, and their promise of coverage."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, bootstrap

from diffusion_feedback.errors import UserError
from diffusion_feedback.evaluation.bootstrap import cluster_codes, ratio_intervals, share_intervals
from diffusion_feedback.evaluation.calibration import (
    LABELS,
    Judgement,
    LabelledPairs,
    accuracy,
    accuracy_per_prompt,
    agreements,
    calibrate_scorer,
    coverage_curve,
    preference_credit,
    tie_protocol_credit,
    tune_tie_threshold,
)
from diffusion_feedback.evaluation.temperature import (
    MAX_LOGIT,
    calibration_error_by_chance,
    cross_entropy,
    expected_calibration_error,
    fit_scale,
    reliability,
    scale_interval,
)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def simulated(
    seed: int, num_prompts: int = 60, per_prompt: int = 5, scale: float = 3.0
) -> tuple[np.ndarray, LabelledPairs]:
    """Differences and votes drawn from a Bradley-Terry model of that ``scale``; a few ties and split votes."""
    source = np.random.default_rng(seed)
    num = num_prompts * per_prompt
    difference = source.normal(0, 0.6, num)
    label_0 = (source.random(num) < 1 / (1 + np.exp(-scale * difference))).astype(float)
    label_0[::17] = 0.5
    label_0[5::41] = 0.7
    return difference, LabelledPairs(label_0, [f"prompt {number // per_prompt}" for number in range(num)])


def judged(difference: np.ndarray, own: float | None = None, name: str = "a") -> Judgement:
    return Judgement(name, f"{name}.1/fp32", own, difference)


# --- the two accuracies ----------------------------------------------------------------------------------------------


def test_tie_protocol_on_all_nine_cases() -> None:
    # Rows: p_0 of 0.9, 0.52, 0.1 at a threshold of 0.1 predict image 0, tie, image 1. Columns: labels 0, tie, 1.
    expected = {(0.9, 1.0): 1, (0.9, 0.5): 0.5, (0.9, 0.0): 0}
    expected |= {(0.52, 1.0): 0.5, (0.52, 0.5): 1, (0.52, 0.0): 0.5}
    expected |= {(0.1, 1.0): 0, (0.1, 0.5): 0.5, (0.1, 0.0): 1}
    for (probability, label), credit in expected.items():
        logit = math.log(probability / (1 - probability))
        assert tie_protocol_credit(np.array([logit]), np.array([label]), 0.1) == [credit], (probability, label)


def test_thresholds_at_the_ends_and_one_a_pair() -> None:
    logits, labels = np.array([0.0, 1e-9, 40.0]), np.array([0.5, 1.0, 1.0])
    assert tie_protocol_credit(logits, labels, 0.0).tolist() == [1, 1, 1]
    assert tie_protocol_credit(logits, labels, 1.0).tolist() == [1, 0.5, 0.5]
    assert tie_protocol_credit(logits, labels, np.array([0.0, 1.0, 0.0])).tolist() == [1, 0.5, 1]


def test_threshold_is_the_best_by_a_loop() -> None:
    difference, pairs = simulated(1)
    labels = pairs.label_0.copy()
    labels[np.abs(difference) < 0.12] = 0.5
    means = []
    for step in range(11):
        credits = []
        for d, label in zip(difference, labels, strict=True):
            p = sigmoid(3 * d)
            predicted = 0.5 if abs(p - (1 - p)) <= step / 10 else float(p > 0.5)
            vote = 0.5 if label == 0.5 else float(label > 0.5)
            credits.append(1.0 if predicted == vote else 0.5 if 0.5 in (predicted, vote) else 0.0)
        means.append(sum(credits) / len(credits))
    best = means.index(max(means)) / 10
    assert 0 < best < 1
    assert tune_tie_threshold(3 * difference, labels) == best
    assert tie_protocol_credit(3 * difference, labels, best).mean() == pytest.approx(max(means), abs=1e-12)


def test_accuracy_without_ties_by_hand() -> None:
    pairs = LabelledPairs(np.array([1.0, 0.0, 1.0, 0.5, 0.3, 1.0]), list("aabbcc"))
    # right, wrong, equal scores (half), left out, right (0.3 prefers image 1), right
    found = accuracy(np.array([2.0, 1.0, 0.0, 5.0, -0.1, 0.2]), pairs)
    assert (found.value, found.num) == (pytest.approx(3.5 / 5), 5)
    assert preference_credit(np.array([0.0]), np.array([1.0])) == [0.5]


@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_order_of_images_and_unit_of_scores_change_nothing(seed: int, unit: float) -> None:
    difference, pairs = simulated(seed, num_prompts=12, per_prompt=3)
    flip = np.where(np.random.default_rng(seed + 1).random(len(pairs)) < 0.5, -1.0, 1.0)
    swapped = LabelledPairs(0.5 + flip * (pairs.label_0 - 0.5), pairs.prompts)
    plain = calibrate_scorer(judged(difference, own=2.0), pairs)
    other = calibrate_scorer(judged(difference * flip * unit, own=2.0 / unit), swapped)
    assert other.fit.status == plain.fit.status
    assert other.fit.logit_scale * unit == pytest.approx(plain.fit.logit_scale, rel=1e-6, abs=1e-9)
    assert other.accuracy == plain.accuracy
    assert other.accuracy_with_ties.value == pytest.approx(plain.accuracy_with_ties.value, abs=1e-12)
    assert other.own is not None
    assert plain.own is not None
    assert other.own.ece == pytest.approx(plain.own.ece, abs=1e-9)
    assert other.own.log_loss.value == pytest.approx(plain.own.log_loss.value, rel=1e-9)
    assert [point.accuracy.value for point in other.coverage] == pytest.approx(
        [point.accuracy.value for point in plain.coverage], abs=1e-12
    )


# --- the scale -------------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand() -> None:
    found = cross_entropy(np.array([0.0, 2.0, 2.0, -800.0]), np.array([1.0, 1.0, 0.25, 0.0]))
    p = sigmoid(2)
    expected = [math.log(2), -math.log(p), -0.25 * math.log(p) - 0.75 * math.log(1 - p), 0.0]
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_scale_is_where_a_fine_grid_is_lowest(seed: int) -> None:
    difference, pairs = simulated(seed)
    found = fit_scale(difference, pairs.label_0)
    assert found.status == "fitted"

    def loss(scale: float) -> float:
        terms = []
        for d, y in zip(difference, pairs.label_0, strict=True):
            p = sigmoid(scale * d)
            terms.append(-y * math.log(p) - (1 - y) * math.log(1 - p))
        return math.fsum(terms)

    grid = np.arange(0.5, 8, 0.01)
    near = float(grid[np.argmin([loss(scale) for scale in grid])])
    assert found.logit_scale == pytest.approx(near, abs=0.01)
    fine = minimize_scalar(loss, bounds=(near - 0.02, near + 0.02), method="bounded", options={"xatol": 1e-9})
    assert found.logit_scale == pytest.approx(fine.x, abs=1e-5)


def test_scale_is_recovered_and_its_interval_keeps_its_promise() -> None:
    """Votes of one prompt share a mood, so that pairs are dependent; the interval has to cover all the same."""
    covered = []
    for seed in range(200):
        source = np.random.default_rng(seed)
        codes = np.repeat(np.arange(60), 6)
        # All differences of a prompt share their size, and all its votes one coin: dependence that does not shift s.
        difference = np.repeat(source.normal(0, 1, 60), 6) + source.normal(0, 0.2, 360)
        coin = np.where(source.random(360) < 0.6, np.repeat(source.random(60), 6), source.random(360))
        label_0 = (coin < 1 / (1 + np.exp(-1.5 * difference))).astype(float)
        fit = fit_scale(difference, label_0)
        found = scale_interval(difference, label_0, codes, fit)
        assert found is not None
        covered.append(found.low <= 1.5 <= found.high)
    # Binomial(200, 0.95): below 180 has probability 0.002; taking pairs as independent covers 78 %.
    assert sum(covered) >= 180


def test_interval_of_the_scale_by_hand() -> None:
    difference, pairs = simulated(4, num_prompts=6, per_prompt=4)
    fit = fit_scale(difference, pairs.label_0)
    pulls = dict.fromkeys(pairs.prompts, 0.0)
    curvature = 0.0
    for d, y, prompt in zip(difference, pairs.label_0, pairs.prompts, strict=True):
        p = sigmoid(fit.logit_scale * d)
        pulls[prompt] += d * (p - y)
        curvature += d * d * p * (1 - p)
    error = math.sqrt(6 / 5 * sum(pull**2 for pull in pulls.values())) / curvature
    half = 2.570582 * error / fit.logit_scale  # t quantile at 5 degrees of freedom
    found = scale_interval(difference, pairs.label_0, pairs.codes, fit)
    assert found is not None
    assert (math.log(found.low), math.log(found.high)) == pytest.approx(
        (math.log(fit.logit_scale) - half, math.log(fit.logit_scale) + half), abs=1e-5
    )


def test_separated_labels_stop_at_the_stated_cap() -> None:
    difference = np.array([0.1, -0.3, 2.0, -1.0])
    found = fit_scale(difference, (difference > 0).astype(float))
    assert found.status == "capped"
    assert math.sqrt(np.mean((found.logit_scale * difference) ** 2)) == pytest.approx(MAX_LOGIT)
    assert scale_interval(difference, (difference > 0).astype(float), np.arange(4), found) is None


@pytest.mark.parametrize(
    ("difference", "label_0"),
    [
        ([0.0, 0.0], [1.0, 0.0]),
        ([1.0, -2.0], [0.0, 1.0]),
        ([1.0, -2.0], [0.5, 0.5]),
        ([1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 0.0, 0.0]),
    ],
    ids=["equal scores", "reversed", "all ties", "unrelated"],
)
def test_scorers_without_signal_get_a_scale_of_zero(difference: list[float], label_0: list[float]) -> None:
    found = fit_scale(np.array(difference), np.array(label_0))
    assert (found.logit_scale, found.status) == (0.0, "no_signal")


# --- reliability -----------------------------------------------------------------------------------------------------


def test_reliability_and_ece_by_a_loop() -> None:
    difference, pairs = simulated(3, num_prompts=50, per_prompt=4)
    bins = reliability(2 * difference, pairs.label_0)
    rows = []
    for d, y in zip(difference, pairs.label_0, strict=True):
        p = sigmoid(2 * d)
        rows.append((p, y) if p > 0.5 else (1 - p, 1 - y))
    rows.sort()
    expected_ece = 0.0
    assert [found.num for found in bins] == [20] * 10
    for number, found in enumerate(bins):
        part = rows[20 * number : 20 * number + 20]
        confidence, observed = sum(p for p, _ in part) / 20, sum(y for _, y in part) / 20
        assert (found.confidence, found.observed) == (pytest.approx(confidence), pytest.approx(observed))
        expected_ece += 20 / 200 * abs(observed - confidence)
    assert expected_calibration_error(bins) == pytest.approx(expected_ece, abs=1e-12)


def test_wilson_interval_of_a_bin() -> None:
    labels = np.array([1.0] * 7 + [0.0] * 3)
    [found] = reliability(np.full(10, 0.4), labels)
    wilson = binomtest(7, 10).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-9)
    assert (found.num, found.observed) == (10, pytest.approx(0.7))


def test_equal_scores_observe_one_half() -> None:
    [found] = reliability(np.zeros(4), np.array([1.0, 1.0, 1.0, 0.0]))
    assert (found.confidence, found.observed) == (0.5, 0.5)
    assert expected_calibration_error([found]) == 0


def test_equal_confidences_are_never_parted() -> None:
    logits = np.repeat([0.1, -0.1, 1.0, 3.0], [30, 30, 30, 10])
    bins = reliability(logits, np.ones(100))
    assert [found.num for found in bins] == [60, 30, 10]
    order = np.random.default_rng(0).permutation(100)
    assert reliability(logits[order], np.ones(100)) == bins


def test_ece_by_chance_is_what_calibrated_scorers_show() -> None:
    source = np.random.default_rng(0)
    logits = source.normal(0, 1.2, 600)
    probability = 1 / (1 + np.exp(-logits))
    shown = [
        expected_calibration_error(reliability(logits, (source.random(600) < probability).astype(float)))
        for _ in range(200)
    ]
    assert calibration_error_by_chance(logits) == pytest.approx(np.mean(shown), rel=0.05)


# --- bootstrap over prompts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_interval_against_scipys_bootstrap_of_clusters(sign: int) -> None:
    """Skewed values in few clusters, where an interval without bias correction and acceleration lies elsewhere."""
    source = np.random.default_rng(5)
    codes = cluster_codes(np.sort(source.integers(0, 20, 130)).tolist())
    values, counts = sign * source.lognormal(0, 1.5, 130), source.integers(0, 2, 130).astype(float)
    [found] = ratio_intervals(values * counts, counts, codes)
    tops = np.array([sum((values * counts)[codes == c]) for c in range(codes.max() + 1)])
    bottoms = np.array([sum(counts[codes == c]) for c in range(codes.max() + 1)])

    def scipys(method: str) -> tuple[float, float]:
        interval = bootstrap(
            (tops, bottoms),
            lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=20_000,
            method=method,
            rng=np.random.default_rng(1),
        ).confidence_interval
        return float(interval.low), float(interval.high)

    (low, high), plain = scipys("BCa"), scipys("percentile")
    tolerance = 0.025 * (high - low)
    assert found.value == pytest.approx(tops.sum() / bottoms.sum())
    assert found.num == counts.sum()
    assert (found.low, found.high) == pytest.approx((low, high), abs=tolerance)
    assert max(abs(low - plain[0]), abs(high - plain[1])) > 2 * tolerance


def test_interval_of_clustered_pairs_keeps_its_promise() -> None:
    """A share whose pairs are alike within a prompt: resampling pairs covers it in 72 % of cases."""
    covered = 0
    for seed in range(200):
        source = np.random.default_rng(1000 + seed)
        right = (source.random(320) < np.repeat(source.beta(1.4, 0.6, 40), 8)).astype(float)
        [found] = share_intervals(right, np.ones(320), np.repeat(np.arange(40), 8))
        covered += found.low <= 0.7 <= found.high
    assert covered >= 180  # Binomial(200, 0.95) is below with probability 0.002


def test_many_ratios_share_their_resamples() -> None:
    source = np.random.default_rng(2)
    codes = np.repeat(np.arange(30), 3)
    values = source.normal(0, 1, (3, 90))
    together = ratio_intervals(values, np.ones_like(values), codes)
    assert together == [ratio_intervals(row, np.ones(90), codes)[0] for row in values]


def test_all_right_gives_wilson_over_the_prompts() -> None:
    codes = np.repeat(np.arange(12), 5)
    counted = (codes < 10).astype(float)
    [found] = share_intervals(counted, counted, codes)
    assert (found.value, found.high, found.num) == (1.0, 1.0, 50)
    assert found.low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)  # Wilson at 10 of 10
    [constant] = ratio_intervals(np.full(60, 0.3), np.ones(60), codes)
    assert (constant.low, constant.high) == (constant.value, constant.value)


def test_resamples_without_a_pair_that_counts_are_left_out() -> None:
    counts = np.zeros(8)
    counts[0] = 1
    [found] = ratio_intervals(counts * 0.4, counts, np.arange(8))
    assert (found.low, found.value, found.high, found.num) == (0.4, 0.4, 0.4, 1)


# --- coverage, agreement, the whole ----------------------------------------------------------------------------------


def test_coverage_by_a_loop() -> None:
    difference, pairs = simulated(7, num_prompts=40)
    rows = sorted(
        ((abs(d), (d > 0) == (y > 0.5)) for d, y in zip(difference, pairs.label_0, strict=True) if y != 0.5),
        reverse=True,
    )
    points = coverage_curve(difference, pairs)
    assert len(points) == 10
    for point, percent in zip(points, range(100, 0, -10), strict=True):
        kept = rows[: round(percent / 100 * len(rows))]
        assert point.share == pytest.approx(len(kept) / len(rows))
        assert point.accuracy.value == pytest.approx(sum(right for _, right in kept) / len(kept))
        assert point.accuracy.low <= point.accuracy.value <= point.accuracy.high
    assert points[0].accuracy == accuracy(difference, pairs)


def test_coverage_keeps_equal_margins_together() -> None:
    pairs = LabelledPairs(np.array([1.0, 0.0, 1.0, 0.0]), list("abcd"))
    points = coverage_curve(np.array([1.0, 1.0, 1.0, 1.0]), pairs)
    assert {point.share for point in points} == {1.0}


def test_agreement_by_hand() -> None:
    pairs = LabelledPairs(np.array([1.0, 1.0, 0.0, 0.5]), list("abcd"))
    a, b = judged(np.array([1.0, 2.0, -1.0, 1.0]), name="a"), judged(np.array([0.5, -1.0, 0.0, 3.0]), name="b")
    found = {(row.a, row.b): row.share for row in agreements([a, b], pairs)}
    assert found.keys() == {("a", LABELS), ("b", LABELS), ("a", "b")}
    assert (found["a", LABELS].value, found["a", LABELS].num) == (1.0, 3)
    assert found["b", LABELS].value == pytest.approx((1 + 0 + 0.5) / 3)
    assert (found["a", "b"].value, found["a", "b"].num) == ((1 + 0 + 0.5 + 1) / 4, 4)


def test_what_is_fitted_is_judged_on_other_prompts() -> None:
    difference, pairs = simulated(11)
    found = calibrate_scorer(judged(difference, own=9.0), pairs)
    losses, credits = [], []
    for half in (0, 1):
        here, there = pairs.half == half, pairs.half != half
        scale = fit_scale(difference[there], pairs.label_0[there]).logit_scale
        losses.append(cross_entropy(scale * difference[here], pairs.label_0[here]))
        threshold = tune_tie_threshold(9 * difference[there], pairs.label_0[there])
        credits.append(tie_protocol_credit(9 * difference[here], pairs.label_0[here], threshold))
    assert found.fitted.log_loss.value == pytest.approx(np.concatenate(losses).mean())
    assert found.accuracy_with_ties.value == pytest.approx(np.concatenate(credits).mean())
    assert found.fit == fit_scale(difference, pairs.label_0)
    assert found.own is not None
    assert found.own.log_loss.value == pytest.approx(cross_entropy(9 * difference, pairs.label_0).mean())
    # The votes were drawn at scale 3: 9 is far too sure of itself, the fit is not.
    assert found.fit.logit_scale == pytest.approx(3, rel=0.25)
    assert found.fitted.log_loss.high < found.own.log_loss.low
    assert found.own.ece > 2 * found.own.ece_by_chance


def test_halves_are_of_whole_prompts_and_do_not_depend_on_the_rows() -> None:
    _, pairs = simulated(2, num_prompts=21)
    halves = {
        prompt: {half for p, half in zip(pairs.prompts, pairs.half, strict=True) if p == prompt}
        for prompt in pairs.prompts
    }
    assert all(len(found) == 1 for found in halves.values())
    assert sorted(sum(half in found for found in halves.values()) for half in (0, 1)) == [10, 11]
    turned = LabelledPairs(pairs.label_0[::-1], pairs.prompts[::-1])
    assert turned.half.tolist() == pairs.half[::-1].tolist()


def test_a_tuning_set_gives_scale_and_threshold() -> None:
    difference, pairs = simulated(12)
    other, tuning = simulated(13, scale=1.0)
    found = calibrate_scorer(replace(judged(difference), tuning=other), pairs, tuning)
    fit = fit_scale(other, tuning.label_0)
    threshold = tune_tie_threshold(fit.logit_scale * other, tuning.label_0)
    assert (found.fit, found.tie_threshold) == (fit, threshold)
    assert found.own is None
    assert found.fitted.log_loss.value == pytest.approx(
        cross_entropy(fit.logit_scale * difference, pairs.label_0).mean()
    )
    credit = tie_protocol_credit(fit.logit_scale * difference, pairs.label_0, threshold)
    assert found.accuracy_with_ties.value == pytest.approx(credit.mean())


def test_separable_reversed_and_equal_scores_are_told_as_they_are() -> None:
    difference, pairs = simulated(14)
    decided = LabelledPairs((difference > 0).astype(float), pairs.prompts)
    perfect = calibrate_scorer(judged(difference), decided)
    assert (perfect.fit.status, perfect.accuracy.value, perfect.accuracy.high) == ("capped", 1.0, 1.0)
    assert 0.9 < perfect.accuracy.low < 1
    reverse = calibrate_scorer(judged(-difference), decided)
    assert (reverse.fit.status, reverse.accuracy.value) == ("no_signal", 0.0)
    assert reverse.fitted.log_loss.value == pytest.approx(math.log(2))
    blind = calibrate_scorer(judged(np.zeros(len(pairs))), decided)
    assert (blind.accuracy.value, blind.num_equal, blind.fitted.ece) == (0.5, len(pairs), 0.0)


def test_wrong_input_is_named() -> None:
    _, pairs = simulated(0, num_prompts=3)
    with pytest.raises(UserError, match="scorer 'a': 4 differences for 15 pairs"):
        calibrate_scorer(judged(np.zeros(4)), pairs)
    values = np.zeros(15)
    values[3] = math.nan
    with pytest.raises(UserError, match=r"pair 3 differ by nan \(1 of 15"):
        calibrate_scorer(judged(values), pairs)
    with pytest.raises(UserError, match="all 2 labelled pairs are ties"):
        LabelledPairs(np.array([0.5, 0.5]), ["a", "b"])
    with pytest.raises(UserError, match="of one prompt, 'a'"):
        LabelledPairs(np.array([1.0, 0.0]), ["a", "a"])
    with pytest.raises(UserError, match="no labelled pairs"):
        LabelledPairs(np.array([]), [])
    for bad in (1.5, -0.1, math.nan):
        with pytest.raises(UserError, match="the label of pair 1 is"):
            LabelledPairs(np.array([1.0, bad]), ["a", "b"])
    with pytest.raises(UserError, match="2 labels for 1 prompts"):
        LabelledPairs(np.array([1.0, 0.0]), ["a"])
    with pytest.raises(UserError, match="1 clusters"):
        ratio_intervals(np.ones(3), np.ones(3), np.zeros(3, np.int64))
    with pytest.raises(UserError, match="no pair counts"):
        ratio_intervals(np.ones(3), np.zeros(3), np.arange(3))
    with pytest.raises(UserError, match="not finite"):
        ratio_intervals([math.inf, 1.0], np.ones(2), np.arange(2))


def test_two_prompts_are_enough() -> None:
    for labels in itertools.product((0.0, 0.5, 1.0), repeat=2):
        if labels == (0.5, 0.5):
            continue
        found = calibrate_scorer(judged(np.array([0.4, -0.2]), own=1.0), LabelledPairs(np.array(labels), ["a", "b"]))
        assert found.accuracy.low <= found.accuracy.value <= found.accuracy.high


# --- per prompt ------------------------------------------------------------------------------------------------------


def test_accuracy_per_prompt_by_hand() -> None:
    """a: right of two 1/2; b: equal scores 1/2, a tie left out; c: both right; d: nothing but a tie, left out."""
    pairs = LabelledPairs(np.array([1.0, 0.0, 1.0, 0.5, 0.3, 1.0, 0.5]), list("aabbccd"))
    found = accuracy_per_prompt(np.array([2.0, 1.0, 0.0, 5.0, -0.1, 0.2, 1.0]), pairs)
    assert (found.value, found.num) == (pytest.approx((0.5 + 0.5 + 1) / 3), 5)
    assert accuracy(np.array([2.0, 1.0, 0.0, 5.0, -0.1, 0.2, 1.0]), pairs).value == pytest.approx(3.5 / 5)


def rankings(seed: int, num: int = 40) -> tuple[np.ndarray, LabelledPairs, list[tuple[list[float], list[int]]]]:
    """Every pair of ``num`` rankings of 2 to 9 images, two of which are of one prompt; scores and ranks of each."""
    source = np.random.default_rng(seed)
    lists, difference, labels, prompts, names = [], [], [], [], []
    for number in range(num):
        size = int(source.integers(2, 10))
        ranks = source.permutation(size).tolist()
        scores = (source.normal(0, 1, size) - 0.4 * np.array(ranks)).tolist()
        lists.append((scores, ranks))
        for i in range(size):
            for j in range(i + 1, size):
                difference.append(scores[i] - scores[j])
                labels.append(float(ranks[i] < ranks[j]))
                prompts.append(f"prompt {min(number, num - 2)}")
                names.append(number)
    return np.array(difference), LabelledPairs(np.array(labels), prompts, names), lists


def test_accuracy_per_ranking_counts_inversions() -> None:
    """HPSv2's accuracy on HPDv2's test set: 1 - inverted pairs / pairs of each ranking, and their mean."""
    difference, pairs, lists = rankings(0)
    shares = []
    for scores, ranks in lists:
        order = [sorted(scores, reverse=True).index(score) for score in scores]
        couples = [(i, j) for i in range(len(ranks)) for j in range(i + 1, len(ranks))]
        inverted = sum((order[i] - order[j]) * (ranks[i] - ranks[j]) < 0 for i, j in couples)
        shares.append(1 - inverted / len(couples))
    found = accuracy_per_prompt(difference, pairs)
    assert found.value == pytest.approx(np.mean(shares), abs=1e-12)
    assert abs(found.value - accuracy(difference, pairs).value) > 0.005
    by_prompt = accuracy_per_prompt(difference, LabelledPairs(pairs.label_0, pairs.prompts))
    assert by_prompt.value == pytest.approx(
        np.mean([*shares[:-2], np.average(shares[-2:], weights=[len(r) * (len(r) - 1) for _, r in lists[-2:]])])
    )


def test_interval_per_prompt_covers_the_truth() -> None:
    """The mean over 500 sets lies in the 95 % intervals of 60 others about as often as it should."""
    truth = np.mean([accuracy_per_prompt_value(*rankings(seed, 40)[:2]) for seed in range(1000, 1500)])
    found = [accuracy_per_prompt(*rankings(seed, 40)[:2]) for seed in range(60)]
    inside = [interval.low <= truth <= interval.high for interval in found]
    assert 0.85 <= np.mean(inside) <= 1.0


def accuracy_per_prompt_value(difference: np.ndarray, pairs: LabelledPairs) -> float:
    credit = preference_credit(difference, pairs.label_0)
    return float((credit * pairs.ranking_weights).sum() / pairs.ranking_weights.sum())


def test_rankings_of_another_number_are_refused() -> None:
    with pytest.raises(UserError, match="1 rankings for 2 prompts"):
        LabelledPairs(np.array([1.0, 0.0]), ["a", "b"], ["x"])
