"""How far a scorer can be trusted: its accuracy, calibration and agreement on pairs that people have labelled.

Everything rests on the difference raw_0 - raw_1 of a pair's two scores. Intervals resample prompts, because pairs of
one prompt are alike. What is fitted (scale, tie threshold) is never judged on the pairs that it was fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UserError, plural
from ..records import content_hash
from .bootstrap import Array, cluster_codes, ratio_intervals, share_intervals
from .statistics import Interval
from .temperature import (
    ReliabilityBin,
    ScaleFit,
    calibration_error_by_chance,
    cross_entropy,
    expected_calibration_error,
    fit_scale,
    reliability,
    scale_interval,
)

TIE_THRESHOLDS = tuple(number / 10 for number in range(11))
COVERAGE = tuple(number / 10 for number in range(10, 0, -1))
LABELS = "labels"
"""The row of the people's labels in the agreement between scorers."""


@dataclass(frozen=True)
class LabelledPairs:
    """N labelled pairs: ``label_0`` (N,) in [0, 1] is the share of votes for image 0, 0.5 is a tie; ``prompts`` (N,).

    ``rankings`` (N,) says which pairs people judged together, as one ranking of several images; None where all pairs of
    a prompt belong together. Raises UserError for no pairs, unequal lengths, labels out of range, only ties, or a single
    prompt.
    """

    label_0: Array
    prompts: Sequence[str]
    rankings: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        if len(self.label_0) != len(self.prompts):
            raise UserError(f"{len(self.label_0)} labels for {len(self.prompts)} prompts", "give one label a pair")
        if self.rankings is not None and len(self.rankings) != len(self.prompts):
            raise UserError(f"{len(self.rankings)} rankings for {len(self.prompts)} prompts", "give one ranking a pair")
        if not len(self.label_0):
            raise UserError("no labelled pairs", "give pairs with labels")
        bad = np.flatnonzero(~((self.label_0 >= 0) & (self.label_0 <= 1)))
        if len(bad):
            raise UserError(f"the label of pair {bad[0]} is {self.label_0[bad[0]]}", "labels are numbers from 0 to 1")
        if self.is_tie.all():
            raise UserError(f"all {len(self.label_0)} labelled pairs are ties", "give pairs with a preference")
        if len(set(self.prompts)) < 2:
            problem = f"all {len(self.prompts)} labelled pairs are of one prompt, {self.prompts[0]!r}"
            raise UserError(problem, "give pairs of at least two prompts: intervals say what other prompts would give")

    def __len__(self) -> int:
        return len(self.label_0)

    @property
    def counts(self) -> dict[str, int]:
        """How many pairs, prompts, ties and rankings there are; without rankings, each prompt counts as one."""
        rankings = self.prompts if self.rankings is None else self.rankings
        numbers = {"num": len(self), "prompts": len(set(self.prompts)), "ties": int(self.is_tie.sum())}
        return numbers | {"rankings": len(set(rankings))}

    @cached_property
    def is_tie(self) -> NDArray[np.bool_]:
        """Where people preferred neither image, (N,)."""
        return np.equal(self.label_0, 0.5)

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """The number of each pair's prompt, (N,)."""
        return cluster_codes(self.prompts)

    @cached_property
    def ranking_weights(self) -> Array:
        """1 / (decided pairs of its ranking) for each decided pair, 0 for ties, (N,): every ranking weighs the same."""
        decided = ~self.is_tie
        codes = self.codes if self.rankings is None else cluster_codes(self.rankings)
        sizes = np.bincount(codes, weights=decided)
        weights: Array = np.divide(decided, sizes[codes], out=np.zeros(len(self)), where=decided)
        return weights

    @cached_property
    def half(self) -> NDArray[np.int64]:
        """0 or 1: the half of the prompts that a pair belongs to, (N,); by the prompts' hashes, so always the same."""
        order = sorted(set(self.prompts), key=content_hash)
        place = {prompt: number % 2 for number, prompt in enumerate(order)}
        return np.array([place[prompt] for prompt in self.prompts], np.int64)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one scorer says of the pairs: ``difference`` (N,) is raw_0 - raw_1, ``tuning`` the same of a tuning set.

    ``own_logit_scale`` makes a Bradley-Terry logit of the difference; None where the scorer has none.
    """

    name: str
    recipe_id: str
    own_logit_scale: float | None
    difference: Array
    tuning: Array | None = None


@dataclass(frozen=True, slots=True)
class CoveragePoint:
    """Accuracy among the pairs that the scorer is most sure of; ``share`` in (0, 1] of the pairs is kept."""

    share: float
    accuracy: Interval


@dataclass(frozen=True, slots=True)
class Probabilities:
    """How good one set of probabilities is: mean cross entropy (nats), ECE, and what ECE chance alone would give.

    It stands in calibration.json field by field.
    """

    log_loss: Interval
    ece: float
    ece_by_chance: float
    reliability: Sequence[ReliabilityBin]


@dataclass(frozen=True, slots=True)
class ScorerCalibration:
    """One scorer on the labelled pairs.

    ``fit`` and ``tie_threshold`` are what to use from now on: from the tuning set, else from all pairs. ``accuracy``
    leaves labelled ties out; ``accuracy_per_prompt`` does too, and gives every prompt the same weight, however many pairs
    it has; ``accuracy_with_ties`` predicts ties. ``own`` are the scorer's own probabilities (None
    without a scale), ``fitted`` those after the fit, each pair by a scale that was fitted on other prompts.
    ``num_equal`` pairs have equal scores.
    """

    name: str
    recipe_id: str
    own_logit_scale: float | None
    fit: ScaleFit
    scale_interval: Interval | None
    accuracy: Interval
    accuracy_per_prompt: Interval
    accuracy_with_ties: Interval
    tie_threshold: float
    own: Probabilities | None
    fitted: Probabilities
    coverage: Sequence[CoveragePoint]
    num_equal: int

    @property
    def note(self) -> str:
        """What a reader of its metrics must know; often nothing."""
        words = {
            "fitted": "",
            "capped": "the labels follow it without an exception, so its scale has no finite best value; capped",
            "no_signal": "no positive scale is better than chance: it cannot tell, or prefers what people reject",
        }
        equal = f"{plural(self.num_equal, 'pair')} with equal scores" if self.num_equal else ""
        return "; ".join(filter(None, (words[self.fit.status], equal)))

    def to_json(self) -> dict[str, object]:
        """As it stands in calibration.json."""
        interval = self.scale_interval
        return {
            "name": self.name,
            "logit_scale": self.fit.logit_scale,
            "logit_scale_interval": None if interval is None else [interval.low, interval.high],
            "fit_status": self.fit.status,
            "own_logit_scale": self.own_logit_scale,
            "accuracy": asdict(self.accuracy),
            "accuracy_per_prompt": asdict(self.accuracy_per_prompt),
            "accuracy_with_ties": asdict(self.accuracy_with_ties),
            "tie_threshold": self.tie_threshold,
            **asdict(self.fitted),
            "own": None if self.own is None else asdict(self.own),
            "coverage": [{"share": point.share, **asdict(point.accuracy)} for point in self.coverage],
            "equal_scores": self.num_equal,
        }


@dataclass(frozen=True, slots=True)
class Agreement:
    """The share of pairs on which ``a`` and ``b`` prefer the same image."""

    a: str
    b: str
    share: Interval


def calibrate_scorer(
    judgement: Judgement, pairs: LabelledPairs, tuning: LabelledPairs | None = None
) -> ScorerCalibration:
    """Compare ``judgement`` with the labels of ``pairs``.

    Scale and tie threshold are fitted on ``tuning``; without one, those of each half of the prompts are fitted on the
    other half. Raises UserError for differences that are not finite or of another number.
    """
    difference = _checked(judgement.name, judgement.difference, pairs)
    basis, basis_pairs = difference, pairs
    if tuning is not None:
        basis, basis_pairs = _checked(judgement.name, judgement.tuning, tuning), tuning
    own = judgement.own_logit_scale

    def threshold(values: Array, labels: Array) -> float:
        scale = fit_scale(values, labels).logit_scale if own is None else own
        return tune_tie_threshold(scale * values, labels)

    def scale(values: Array, labels: Array) -> float:
        return fit_scale(values, labels).logit_scale

    def held_out(fit: Callable[[Array, Array], float]) -> Array:
        if tuning is not None:
            return np.full(len(pairs), fit(basis, tuning.label_0))
        first, second = (pairs.half == half for half in (0, 1))
        values = [fit(difference[other], pairs.label_0[other]) for other in (second, first)]
        return np.where(first, *values)

    fitted_logits = held_out(scale) * difference
    own_logits = None if own is None else own * difference
    credit = tie_protocol_credit(
        fitted_logits if own_logits is None else own_logits, pairs.label_0, held_out(threshold)
    )
    fit = fit_scale(basis, basis_pairs.label_0)
    [with_ties] = share_intervals(credit, np.ones(len(pairs)), pairs.codes)
    return ScorerCalibration(
        name=judgement.name,
        recipe_id=judgement.recipe_id,
        own_logit_scale=own,
        fit=fit,
        scale_interval=scale_interval(basis, basis_pairs.label_0, basis_pairs.codes, fit),
        accuracy=accuracy(difference, pairs),
        accuracy_per_prompt=accuracy_per_prompt(difference, pairs),
        accuracy_with_ties=with_ties,
        tie_threshold=threshold(basis, basis_pairs.label_0),
        own=None if own_logits is None else _probabilities(own_logits, pairs),
        fitted=_probabilities(fitted_logits, pairs),
        coverage=coverage_curve(difference, pairs),
        num_equal=int((difference == 0).sum()),
    )


def confident_mistakes(difference: Array, pairs: LabelledPairs, count: int) -> list[int]:
    """Places of the ``count`` pairs on which the scorer is surest of what people did not prefer, the surest first.

    ``difference`` (N,) is raw_0 - raw_1, whose size is how sure it is under any scale; of each prompt one pair.
    """
    wrong = np.flatnonzero(preference_credit(difference, pairs.label_0) == 0).tolist()
    first: dict[str, int] = {}
    for place in sorted(wrong, key=lambda place: (-abs(float(difference[place])), place)):
        first.setdefault(pairs.prompts[place], place)
    return list(first.values())[:count]


def preference_credit(difference: Array, label_0: Array) -> Array:
    """1 where the higher score is on the side that most votes prefer, 0 where it is on the other, per pair (N,).

    Equal scores count one half, which is what a coin would get; ImageReward's own script counts them as wrong. A
    labelled tie gets one half here and is left out of the accuracy by the caller.
    """
    return (1 + np.sign(difference) * np.sign(label_0 - 0.5)) / 2


def accuracy(difference: Array, pairs: LabelledPairs) -> Interval:
    """Share of pairs on which the scorer prefers what people prefer; labelled ties left out, equal scores one half."""
    decided = ~pairs.is_tie
    [share] = share_intervals(preference_credit(difference, pairs.label_0) * decided, decided, pairs.codes)
    return share


def accuracy_per_prompt(difference: Array, pairs: LabelledPairs) -> Interval:
    """The mean over prompts (over ``pairs.rankings``, where there are such) of each one's accuracy.

    The macro accuracy that HPSv2 (arXiv:2306.09341) reports; the one over pairs is dominated by prompts with many images.
    Rankings whose pairs are all ties are left out. ``num`` is the number of pairs that count; prompts are resampled.
    """
    weights = pairs.ranking_weights
    [share] = share_intervals(preference_credit(difference, pairs.label_0) * weights, weights, pairs.codes)
    return share


def tie_protocol_credit(logits: Array, label_0: Array, threshold: ArrayLike) -> Array:
    """Credit per pair (N,) where ties are predicted too: the protocol of PickScore (arXiv:2305.01569).

    A tie is predicted where |p_1 - p_0| <= ``threshold`` (a number, or one a pair). A prediction (image 0, image 1,
    tie) that equals the label gets 1, one half where exactly one of the two is a tie, else 0. A label that is no
    single vote counts for the side with more of them.
    """
    margin = np.tanh(logits / 2)  # p_0 - p_1
    predicted = np.where(np.abs(margin) <= threshold, 0.0, np.sign(margin))
    labelled = np.sign(label_0 - 0.5)
    credit: Array = 1 - np.abs(predicted - labelled) / 2
    return credit


def tune_tie_threshold(logits: Array, label_0: Array) -> float:
    """The threshold in 0, 0.1, ... 1 of the largest mean ``tie_protocol_credit``; the smallest of equally good ones."""
    credits = [float(tie_protocol_credit(logits, label_0, threshold).mean()) for threshold in TIE_THRESHOLDS]
    return TIE_THRESHOLDS[int(np.argmax(credits))]


def coverage_curve(difference: Array, pairs: LabelledPairs) -> list[CoveragePoint]:
    """Accuracy among the top 100 %, 90 % ... 10 % of pairs by the predicted margin; labelled ties left out.

    The margin |p_0 - p_1| rises with |difference| under any scale, so no scale is needed. Pairs as far apart as the
    last one kept are kept too, so ``share`` can be above the share requested.
    """
    decided = ~pairs.is_tie
    margin = np.abs(difference)
    ordered = np.sort(margin[decided])[::-1]
    wanted = [max(1, round(share * len(ordered))) for share in COVERAGE]
    kept = np.stack([decided & (margin >= ordered[number - 1]) for number in wanted])
    intervals = share_intervals(preference_credit(difference, pairs.label_0) * kept, kept, pairs.codes)
    return [CoveragePoint(interval.num / len(ordered), interval) for interval in intervals]


def agreements(judgements: Sequence[Judgement], pairs: LabelledPairs) -> list[Agreement]:
    """The agreement of every two scorers, and of each with the labels under the name ``LABELS``.

    Pairs on which either side has equal scores count one half. With the labels it is the accuracy: labelled ties are
    left out there.
    """
    everything: Mapping[str, Array] = {judgement.name: judgement.difference for judgement in judgements}
    with_labels = [Agreement(judgement.name, LABELS, accuracy(judgement.difference, pairs)) for judgement in judgements]
    names = [(a, b) for number, a in enumerate(everything) for b in list(everything)[number + 1 :]]
    if not names:
        return with_labels
    same = np.stack([(1 + np.sign(everything[a]) * np.sign(everything[b])) / 2 for a, b in names])
    intervals = share_intervals(same, np.ones_like(same), pairs.codes)
    return with_labels + [Agreement(a, b, interval) for (a, b), interval in zip(names, intervals, strict=True)]


def _checked(name: str, difference: Array | None, pairs: LabelledPairs) -> Array:
    if difference is None or len(difference) != len(pairs):
        problem = f"scorer {name!r}: {0 if difference is None else len(difference)} differences for {len(pairs)} pairs"
        raise UserError(problem, "score both images of every pair")
    bad = np.flatnonzero(~np.isfinite(difference))
    if len(bad):
        problem = f"scorer {name!r}: the scores of pair {bad[0]} differ by {difference[bad[0]]}"
        raise UserError(f"{problem} ({len(bad)} of {len(pairs)} are not finite)", "score the images again")
    return np.asarray(difference, np.float64)


def _probabilities(logits: Array, pairs: LabelledPairs) -> Probabilities:
    [log_loss] = ratio_intervals(cross_entropy(logits, pairs.label_0), np.ones(len(pairs)), pairs.codes)
    bins = reliability(logits, pairs.label_0)
    return Probabilities(log_loss, expected_calibration_error(bins), calibration_error_by_chance(logits), bins)
