"""Several scorers held against the same labels: how far each can be trusted, and how far they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from ..errors import plural
from .calibration import LABELS, Agreement, LabelledPairs, ScorerCalibration
from .statistics import Interval

FEW_PROMPTS = 20
"""Below this many prompts, intervals that resample prompts are known to be too narrow."""


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """Scorers on labelled pairs; ``source`` and ``tuning_source`` say where the pairs were read.

    ``ceiling`` names the scorer whose accuracy is the noise ceiling; ``num_left_out`` counts bad rows and pairs with
    bad images. ``per_prompt``: tables show the accuracy per prompt too; calibration.json always holds it.
    """

    source: str
    pairs: LabelledPairs = field(repr=False)
    tuning_source: str | None
    tuning: LabelledPairs | None = field(repr=False)
    scorers: Sequence[ScorerCalibration]
    agreements: Sequence[Agreement]
    ceiling: str | None
    num_left_out: int
    per_prompt: bool = False

    @property
    def logit_scales(self) -> dict[str, float]:
        """The fitted scale of each scorer by its recipe id, which labelling takes."""
        return {scorer.recipe_id: scorer.fit.logit_scale for scorer in self.scorers}

    @property
    def ranked(self) -> list[ScorerCalibration]:
        """The scorers by falling accuracy."""
        return sorted(self.scorers, key=lambda scorer: -scorer.accuracy.value)

    @property
    def judges(self) -> list[str]:
        """The people's labels, then the scorers by falling accuracy: who may agree with whom."""
        return [LABELS, *(scorer.name for scorer in self.ranked)]

    def agreement_of(self, a: str, b: str) -> Interval | None:
        """The agreement of ``a`` and ``b``, in either order; None where it is not given, as for a name with itself."""
        return next((pair.share for pair in self.agreements if {pair.a, pair.b} == {a, b}), None)

    @property
    def notes(self) -> list[str]:
        """What a reader of the metrics must know, one sentence each."""
        notes = [f"{scorer.name}: {scorer.note}" for scorer in self.scorers if scorer.note]
        num_prompts = self.pairs.counts["prompts"]
        if num_prompts < FEW_PROMPTS:
            notes.append(f"{num_prompts} prompts are few: the intervals are likely too narrow")
        shared = set(self.pairs.prompts) & set(self.tuning.prompts if self.tuning else ())
        if shared:
            notes.append(
                f"prompts that both sets of pairs share: {len(shared)}; results after the fit flatter a little"
            )
        if self.num_left_out:
            notes.append(f"{plural(self.num_left_out, 'pair was', 'pairs were')} left out, for bad rows or images")
        return notes

    def to_json(self) -> dict[str, object]:
        """The content of calibration.json; labelling reads ``scorers.<recipe_id>.logit_scale``."""
        tuning = None if self.tuning is None else {"source": self.tuning_source, **self.tuning.counts}
        return {
            "pairs": {"source": self.source, "left_out": self.num_left_out, **self.pairs.counts},
            "tuning": tuning,
            "fitted_on": "halves of the prompts in turn; the final scale on all pairs" if tuning is None else "tuning",
            "scorers": {
                scorer.recipe_id: {**scorer.to_json(), "is_noise_ceiling": scorer.name == self.ceiling}
                for scorer in self.scorers
            },
            "agreement": [{"a": pair.a, "b": pair.b, **asdict(pair.share)} for pair in self.agreements],
        }
