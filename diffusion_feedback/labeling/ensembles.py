"""What one or several scorers say of pairs of samples: sides, calibrated probabilities, ties and abstentions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
SignArray = NDArray[np.int8]
BoolArray = NDArray[np.bool_]

ROUNDING = 1e-12  # probabilities that differ by less are equal: sums of float64 are not exact


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a panel of scorers says of M pairs (sample 0, sample 1); every array is (M,).

    ``side``: 1 where sample 0 is preferred, -1 where sample 1 is, 0 for a tie. ``agreed``: False where the panel
    abstains; ``side`` is 0 there. ``probability``: mean of the scorers' calibrated P(sample 0 preferred), in [0, 1]; None
    where a scorer has no logit scale. ``soft``: the label under soft labels, None where it needs that probability.
    ``standing``: what sample 0 gains from being compared with sample 1, in [0, 1]; its mean over all others ranks samples.
    """

    side: SignArray
    agreed: BoolArray
    probability: FloatArray | None
    soft: FloatArray | None
    standing: FloatArray


Ensemble = Callable[[SignArray, FloatArray | None, float], Verdicts]
"""(signs (J, M), probabilities (J, M) or None, tie margin) to what the J scorers together say of M pairs."""


def sigmoid(logits: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def signs(probabilities: FloatArray, tie_margin: float) -> SignArray:
    """1 where P > 0.5, -1 where P < 0.5, 0 in the tie zone |P - 0.5| <= ``tie_margin``."""
    distance = probabilities - 0.5
    return np.where(np.abs(distance) <= tie_margin + ROUNDING, 0, np.sign(distance)).astype(np.int8)


def mean(scorers: SignArray, probabilities: FloatArray | None, tie_margin: float) -> Verdicts:
    """Side by the mean of the calibrated probabilities, a tie where that mean lies in the tie zone.

    The soft label is the mean itself. Without probabilities the first scorer's sign decides, so a single scorer needs
    no logit scale for it.
    """
    if probabilities is None:
        share = (scorers[0] + 1) / 2
        return Verdicts(scorers[0], np.ones(len(share), bool), None, None, share)
    center = probabilities.mean(axis=0)
    return Verdicts(signs(center, tie_margin), np.ones(len(center), bool), center, center, center)


def vote(scorers: SignArray, probabilities: FloatArray | None, tie_margin: float) -> Verdicts:
    """Side by the majority of the scorers' sides; a draw is a tie.

    A scorer whose own probability lies in the tie zone votes for neither. The soft label is sample 0's share of the
    votes, such a scorer counting half.
    """
    total = scorers.sum(axis=0, dtype=np.int64)
    share = (total / len(scorers) + 1) / 2
    return Verdicts(np.sign(total).astype(np.int8), np.ones(len(share), bool), _mean(probabilities), share, share)


def abstain(scorers: SignArray, probabilities: FloatArray | None, tie_margin: float) -> Verdicts:
    """Side only where all scorers have the same one, a tie where each of them sees a tie; else the panel abstains.

    The soft label is the mean of the calibrated probabilities.
    """
    agreed = (scorers == scorers[0]).all(axis=0)
    share = (scorers.mean(axis=0) + 1) / 2
    center = _mean(probabilities)
    return Verdicts(np.where(agreed, scorers[0], 0).astype(np.int8), agreed, center, center, share)


ENSEMBLES: Mapping[str, Ensemble] = {"mean": mean, "vote": vote, "abstain": abstain}


def _mean(probabilities: FloatArray | None) -> FloatArray | None:
    return None if probabilities is None else probabilities.mean(axis=0)
