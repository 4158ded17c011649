"""The metrics of an evaluation by which a step can be the best, one row each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .rows import ON_SAMPLES, Kind, ObjectiveRow

SCORES = "scores/"
WINS = "wins/"


@dataclass(frozen=True, slots=True)
class HeldoutMetric:
    """A metric of an evaluation: what it is in words, whether more is better, and which runs have it.

    ``of_images`` is None where runs on images and on texts have it alike; ``from_samples``: it needs no held-out examples.
    """

    words: str
    higher_is_better: bool
    kinds: Collection[Kind]
    of_images: bool | None = None
    from_samples: bool = False


_REWARD: tuple[Kind, ...] = ("reward",)
_ROLLOUTS: tuple[Kind, ...] = ("policy_gradient",)
_ON_PAIRS: tuple[Kind, ...] = (*ON_SAMPLES, "ranking", "reward")

HELDOUT_METRICS: dict[str, HeldoutMetric] = {
    "accuracy": HeldoutMetric("held-out accuracy", True, _ON_PAIRS),
    "error/chosen": HeldoutMetric("held-out error on chosen images", False, ON_SAMPLES, of_images=True),
    "loss": HeldoutMetric("held-out loss", False, (*ON_SAMPLES, "reward", "value_learning"), of_images=False),
    "nll": HeldoutMetric("negative log-likelihood of held-out texts", False, ON_SAMPLES, of_images=False),
    "margin": HeldoutMetric("held-out margin of rewards", True, _REWARD),
    "scores": HeldoutMetric("mean reward of completions", True, _ROLLOUTS, from_samples=True),
}
_OF_SCORERS = {
    SCORES: HeldoutMetric("mean score of the samples", True, ON_SAMPLES, of_images=True, from_samples=True),
    WINS: HeldoutMetric("win rate of the samples", True, ON_SAMPLES, of_images=True, from_samples=True),
}


def heldout_metric(name: str) -> HeldoutMetric:
    """The row of the metric ``name``; scores/SCORER and wins/SCORER are those of any scorer. Raises KeyError."""
    prefix = name.partition("/")[0] + "/"
    return _OF_SCORERS[prefix] if prefix in _OF_SCORERS and name != prefix else HELDOUT_METRICS[name]


def heldout_metrics_of(objective: ObjectiveRow, *, of_images: bool) -> list[str]:
    """The metrics that runs of ``objective`` have, on images or on texts; those of scorers as scores/SCORER."""
    rows = HELDOUT_METRICS | {f"{prefix}SCORER": row for prefix, row in _OF_SCORERS.items()}
    if objective.kind == "ranking":  # whose loss is measured too
        return ["accuracy", "loss"]
    return [name for name, row in rows.items() if objective.kind in row.kinds and row.of_images in (None, of_images)]
