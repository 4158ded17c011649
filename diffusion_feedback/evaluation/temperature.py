"""From a scorer's raw differences to probabilities: the one scale that fits labelled pairs best, and how well it does.

P(image 0 is preferred) = sigmoid(scale * (raw_0 - raw_1)), the Bradley-Terry model; fitting the scale alone is
temperature scaling (Guo et al. 2017, arXiv:1706.04599). Swapping the two images of a pair changes nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, stdtrit

from .bootstrap import Array
from .statistics import CONFIDENCE, Interval, proportion_interval

FitStatus = Literal["fitted", "capped", "no_signal"]

MAX_LOGIT = 10.0
"""Where a fit stops: the root mean square of scale * difference. A typical pair is at P = 0.99995 there."""


@dataclass(frozen=True, slots=True)
class ScaleFit:
    """The scale that minimises the cross entropy over [0, cap].

    ``fitted``: a minimum inside. ``capped``: the labels follow the scorer (almost) without an exception, so the cross
    entropy falls for ever, and the scale is that of ``MAX_LOGIT``. ``no_signal``: no positive scale is better than
    P = 0.5 for every pair, and the scale is 0.
    """

    logit_scale: float
    status: FitStatus


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pairs of like confidence: its mean, and the share of labels for the predicted image with its Wilson interval."""

    confidence: float
    observed: float
    low: float
    high: float
    num: int


def cross_entropy(logits: Array, label_0: Array) -> Array:
    """-label_0 log p - (1 - label_0) log(1 - p) with p = sigmoid(logits), per pair (N,); soft labels welcome, nats."""
    return label_0 * np.logaddexp(0, -logits) + (1 - label_0) * np.logaddexp(0, logits)


def fit_scale(difference: Array, label_0: Array) -> ScaleFit:
    """The scale s >= 0 that minimises the mean cross entropy of sigmoid(s * ``difference``) against ``label_0``.

    Both (N,); labels in [0, 1], a tie is 0.5 and takes part. The cross entropy is convex in s, so its derivative, mean
    of difference * (sigmoid(s * difference) - label_0), has one root, found by Brent's method to 1e-12.
    """
    unit = float(np.sqrt(np.mean(difference**2)))
    if unit == 0:
        return ScaleFit(0.0, "no_signal")
    scaled = difference / unit  # so that the search does not depend on the scorer's unit

    def slope(scale: float) -> float:
        return float(np.mean(scaled * (expit(scale * scaled) - label_0)))

    if slope(0.0) >= 0:
        return ScaleFit(0.0, "no_signal")
    if slope(MAX_LOGIT) <= 0:
        return ScaleFit(MAX_LOGIT / unit, "capped")
    return ScaleFit(float(brentq(slope, 0.0, MAX_LOGIT, xtol=1e-12, rtol=1e-12)) / unit, "fitted")


def scale_interval(difference: Array, label_0: Array, codes: NDArray[np.int64], fit: ScaleFit) -> Interval | None:
    """95 % interval of a fitted scale, by the sandwich estimator over clusters, on the logarithm of the scale.

    ``codes`` (N,) is the cluster (prompt) of each pair. Liang and Zeger, Biometrika 73:13, 1986, with the factor
    C / (C - 1) and Student's t of C - 1 degrees for C clusters. None where the fit has no minimum inside its range, or there is one cluster.
    """
    num_clusters = int(codes.max()) + 1
    if fit.status != "fitted" or num_clusters < 2:
        return None
    probability = expit(fit.logit_scale * difference)
    curvature = float(np.sum(difference**2 * probability * (1 - probability)))
    pull = np.bincount(codes, weights=difference * (probability - label_0))
    error = float(np.sqrt(np.sum(pull**2) * num_clusters / (num_clusters - 1))) / curvature
    factor = float(np.exp(stdtrit(num_clusters - 1, 0.5 + CONFIDENCE / 2) * error / fit.logit_scale))
    return Interval(fit.logit_scale, fit.logit_scale / factor, fit.logit_scale * factor, len(difference))


def reliability(logits: Array, label_0: Array, *, num_bins: int = 10) -> list[ReliabilityBin]:
    """The reliability curve: what share of labels agrees, against how sure the scorer was; by rising confidence.

    Folded to the predicted image, as Guo et al. do: the confidence is max(p, 1 - p) in [0.5, 1], the observation is
    the label's share for the predicted image, so the order of the two images does not matter. A pair at p = 0.5
    predicts none, and counts 0.5; a labelled tie counts 0.5. Bins hold about equally many pairs (equal mass), pairs of
    equal confidence are never parted, so there can be fewer than ``num_bins``. Intervals are Wilson's over the pairs.
    """
    confidence, observed = _folded(logits, label_0)
    bins = _bins(confidence, num_bins)
    parts = []
    for number in np.unique(bins):
        inside = bins == number
        total = int(inside.sum())
        interval = proportion_interval(float(observed[inside].sum()), total)
        parts.append(
            ReliabilityBin(float(confidence[inside].mean()), interval.value, interval.low, interval.high, total)
        )
    return parts


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """ECE in [0, 1]: mean over pairs of |observed - confidence| of their bin (Guo et al. 2017, eq. 3).

    Guo's bins are of equal width; these are of equal mass, which spreads the noise of the estimate evenly.
    """
    total = sum(each.num for each in bins)
    return sum(each.num * abs(each.observed - each.confidence) for each in bins) / total


def calibration_error_by_chance(logits: Array, *, num_bins: int = 10) -> float:
    """The ECE that a perfectly calibrated scorer would show on as many pairs, one vote each.

    The observed share of a bin of n pairs varies with variance sum(p (1 - p)) / n^2; the mean of its absolute value is
    sqrt(2 / pi) standard deviations (normal approximation). An ECE near this value shows no miscalibration.
    """
    confidence, _ = _folded(logits, np.full(len(logits), 0.5))
    variance = np.bincount(_bins(confidence, num_bins), weights=confidence * (1 - confidence))
    return float(np.sqrt(2 / np.pi) * np.sqrt(variance).sum() / len(logits))


def _folded(logits: Array, label_0: Array) -> tuple[Array, Array]:
    side = np.sign(logits)
    return expit(np.abs(logits)), 0.5 + side * (label_0 - 0.5)


def _bins(confidence: Array, num_bins: int) -> NDArray[np.int64]:
    """The bin of each pair: between quantiles, equal confidences together."""
    edges = np.quantile(confidence, np.arange(1, num_bins) / num_bins, method="higher")
    return np.searchsorted(np.unique(edges), confidence, side="right")
