"""Which scorers judge, on which scale, and by which policy their scores become labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError, nearest
from ..records import ScoreRecord, parse_json
from .ensembles import ENSEMBLES, ROUNDING, BoolArray, FloatArray, Verdicts, mean, sigmoid, signs

TIES = ("drop", "soft", "half")

CALIBRATE = "fit one on labelled pairs, and give its file as `calibration`"


@dataclass(frozen=True, slots=True)
class LabelPolicy:
    """How verdicts become labels.

    ``ensemble``: mean, vote or abstain, for several scorers. ``tie_margin`` in [0, 0.5): a pair with
    |P(sample 0 preferred) - 0.5| <= tie_margin is a tie. ``ties``: drop leaves ties out, half keeps them with label 0.5,
    and both label the other pairs 1 or 0; soft keeps every pair with the probability itself as its label, tie or not.
    ``min_probability`` in [0.5, 1): a pair is kept only if P(preferred sample preferred) >= min_probability; ties that
    ``half`` keeps are exempt, and 0.5 keeps all. Raises UserError for other values.
    """

    ensemble: str
    ties: str
    tie_margin: float
    min_probability: float

    def __post_init__(self) -> None:
        for name, known in (("ensemble", list(ENSEMBLES)), ("ties", list(TIES))):
            if getattr(self, name) not in known:
                raise UserError(f"`{name}`: got {getattr(self, name)!r}", nearest(getattr(self, name), known))
        if not 0 <= self.tie_margin < 0.5:
            raise UserError(f"`tie_margin`: got {self.tie_margin}", "allowed: 0 or more, below 0.5")
        if not 0.5 <= self.min_probability < 1:
            raise UserError(
                f"`min_probability`: got {self.min_probability}", "allowed: 0.5 (keeps every pair) or more, below 1"
            )


@dataclass(frozen=True, slots=True)
class Judge:
    """One scorer under one recipe; ``logit_scale * raw`` is its Bradley-Terry logit, None where it has no scale."""

    scorer: str
    recipe_id: str
    logit_scale: float | None


@dataclass(frozen=True, slots=True)
class Panel:
    """The scorers that judge, by name, and the policy that turns what they say into labels."""

    judges: tuple[Judge, ...]
    policy: LabelPolicy

    @property
    def is_calibrated(self) -> bool:
        """Whether every scorer has a logit scale."""
        return all(judge.logit_scale is not None for judge in self.judges)

    def require_scales(self, what: str) -> None:
        """Raise UserError where a scorer has no logit scale, which ``what`` needs."""
        for judge in self.judges:
            if judge.logit_scale is None:
                problem = (
                    f"scorer {judge.scorer!r} (recipe {judge.recipe_id!r}) has no logit scale: its scores are no"
                    f" probabilities, which {what} needs"
                )
                raise UserError(problem, CALIBRATE)

    def judge(self, raw_0: FloatArray, raw_1: FloatArray) -> Verdicts:
        """Verdicts on M pairs from the raw scores of their samples, each (J, M), rows as in ``judges``.

        One scorer's P(sample 0 preferred) is sigmoid(logit_scale * (raw_0 - raw_1)) (Bradley and Terry, Biometrika
        39:324, 1952); without a scale it is tied only where the raw scores are equal.
        """
        margin = self.policy.tie_margin
        if self.is_calibrated:
            scales = np.array([judge.logit_scale for judge in self.judges], np.float64)
            probabilities = sigmoid(scales[:, None] * (raw_0 - raw_1))
            sides = signs(probabilities, margin)
        else:
            probabilities = None
            sides = np.sign(raw_0 - raw_1).astype(np.int8)
        # One scorer is of one mind, so there is nothing to combine.
        combine = ENSEMBLES[self.policy.ensemble] if len(self.judges) > 1 else mean
        return combine(sides, probabilities, margin)

    def is_probable(self, verdicts: Verdicts) -> BoolArray:
        """Which of the pairs (M,) pass ``min_probability``."""
        passed = np.ones(len(verdicts.side), bool)
        if self.policy.min_probability > 0.5:
            passed = chosen_probability(verdicts) >= self.policy.min_probability - ROUNDING
            if self.policy.ties == "half":
                passed |= verdicts.side == 0
        return passed


def chosen_probability(verdicts: Verdicts) -> FloatArray:
    """Calibrated probability (M,) that the preferred sample is preferred; of a tie, the larger of the two.

    Below 0.5 where a majority decides against the mean of the probabilities.
    """
    assert verdicts.probability is not None
    first, second = verdicts.probability, 1 - verdicts.probability
    return np.where(verdicts.side == 1, first, np.where(verdicts.side == -1, second, np.maximum(first, second)))


def build_panel(
    records: Iterable[ScoreRecord], policy: LabelPolicy, calibration: Mapping[str, float] | None = None
) -> Panel:
    """The panel of all scorers in ``records``, by name; ``calibration`` maps recipe ids to logit scales.

    A scale in ``calibration`` comes before the scorer's own. Raises UserError for a scorer with scores under two
    recipes or scales, a recipe under two names, a score that is not finite, a calibration of other recipes alone, and a
    policy that needs a logit scale where a scorer has none.
    """
    by_name: dict[str, Judge] = {}
    for record in records:
        for what, value in (("raw", record.raw), ("score", record.score), ("logit_scale", record.logit_scale)):
            if value is not None and not math.isfinite(value):
                problem = f"{record.sample}: scorer {record.scorer!r} gave {value} as {what}"
                raise UserError(problem, "score the sample again")
        judge = Judge(record.scorer, record.recipe_id, record.logit_scale)
        known = by_name.setdefault(record.scorer, judge)
        if known.recipe_id != judge.recipe_id:
            problem = f"scorer {judge.scorer!r} has scores under two recipes: {known.recipe_id!r}, {judge.recipe_id!r}"
            raise UserError(problem, "score all samples under one recipe: such scores cannot be compared")
        if known.logit_scale != judge.logit_scale:
            problem = f"recipe {judge.recipe_id!r} has two logit scales: {known.logit_scale}, {judge.logit_scale}"
            raise UserError(problem, "score all samples again")
    names = {judge.recipe_id: judge.scorer for judge in by_name.values()}
    for judge in by_name.values():
        if (other := names[judge.recipe_id]) != judge.scorer:
            problem = f"recipe {judge.recipe_id!r} stands under two names: {judge.scorer!r}, {other!r}"
            raise UserError(problem, "a recipe judges once; leave one of the names out")
    scales = calibration or {}
    if scales and not scales.keys() & names.keys():
        problem = f"the calibration is of other recipes ({', '.join(scales)}), not of {', '.join(names)}"
        raise UserError(problem, "calibrate the same scorers, weights and precision")
    judges = [Judge(j.scorer, j.recipe_id, scales.get(j.recipe_id, j.logit_scale)) for j in by_name.values()]
    panel = Panel(tuple(sorted(judges, key=lambda judge: judge.scorer)), policy)
    _check_scales(panel, judges)
    return panel


def _check_scales(panel: Panel, judges: Sequence[Judge]) -> None:
    policy, several = panel.policy, len(judges) > 1
    for judge in judges:
        if judge.logit_scale is not None and not (math.isfinite(judge.logit_scale) and judge.logit_scale > 0):
            problem = f"recipe {judge.recipe_id!r} has the logit scale {judge.logit_scale}"
            raise UserError(problem, "allowed: above 0; below it, the better sample would be taken for the worse")
    if several and policy.ensemble == "mean":
        panel.require_scales("`ensemble` mean (not vote or abstain)")
    if policy.ties == "soft" and not (several and policy.ensemble == "vote"):
        panel.require_scales("`ties` soft")
    if policy.min_probability > 0.5:
        panel.require_scales(f"`min_probability` {policy.min_probability}")
    if policy.tie_margin > 0:
        panel.require_scales(f"`tie_margin` {policy.tie_margin}")


def read_calibration(path: str | Path) -> dict[str, float]:
    """Logit scales by recipe id from the calibration.json that a calibration has written.

    JSON: {"scorers": {recipe_id: {"logit_scale": number >= 0, ...}}}; 0 says that the scorer knows nothing of the labels,
    and is refused where that scorer is to judge. Raises UserError naming file and recipe.
    """
    path = Path(path)
    remedy = "give the calibration.json that a calibration has written"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", remedy) from error
    content = parse_json(data, str(path), remedy)
    scorers = content.get("scorers") if isinstance(content, dict) else None
    if not isinstance(scorers, dict) or not scorers:
        raise UserError(f"{path}: no key 'scorers' with a recipe in it", remedy)
    scales: dict[str, float] = {}
    for recipe, entry in scorers.items():
        scale = entry.get("logit_scale") if isinstance(entry, dict) else None
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < math.inf:
            raise UserError(f"{path}, recipe {recipe!r}: logit_scale is {scale!r}, not a number, 0 or more", remedy)
        scales[recipe] = float(scale)
    return scales
