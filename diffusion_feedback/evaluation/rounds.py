"""What one round measured on the held-out prompts: reward, divergence from the initial model, win rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..records import ScoreRecord
from .judging import clustered_mean, clustered_win_rate, outcomes_of_scores, standard_error
from .statistics import Interval, WinRate


@dataclass(frozen=True, slots=True)
class RoundMetrics:
    """Metrics of one round, with the scores that the next ones are compared with.

    ``kl`` is the mean of the divergences along the samples' way, ``kl_log_ratio`` that of their log-ratios with its
    standard error, nats; ``kl_exact`` the mean over prompts of the exact one, where it could be had. All are None where
    samples have no likelihood, as images.
    """

    number: int
    place: Path
    prompts: Sequence[str]
    scores: Sequence[float]
    first_scores: Sequence[float]
    reward: Interval
    kl: Interval | None
    kl_log_ratio: tuple[float, float] | None
    kl_exact: Interval | None
    against_previous: WinRate | None
    against_initial: WinRate | None

    def to_json(self) -> dict[str, object]:
        """What stands in summary.json and rounds.json."""
        content = asdict(self)
        names = ("reward", "kl", "kl_exact", "against_previous", "against_initial")
        ratio = dict(zip(("value", "standard_error"), self.kl_log_ratio, strict=True)) if self.kl_log_ratio else None
        return {"round": self.number, **{name: content[name] for name in names}, "kl_log_ratio": ratio}


def measure(
    number: int,
    records: Sequence[ScoreRecord],
    divergence: Mapping[str, Sequence[float]],
    place: Path,
    before: RoundMetrics | None,
) -> RoundMetrics:
    """The metrics of round ``number`` from its scores; ``before`` is the round before, None for round 0."""
    prompts, scores = [record.prompt for record in records], [record.score for record in records]
    first = scores if before is None else before.first_scores

    def against(others: Sequence[float]) -> WinRate:
        return clustered_win_rate(outcomes_of_scores(scores, others), prompts)

    ratios = divergence.get("log_ratio")
    own = list(dict.fromkeys(prompts))
    return RoundMetrics(
        number=number,
        place=place,
        prompts=prompts,
        scores=scores,
        first_scores=first,
        reward=clustered_mean(scores, prompts),
        kl=clustered_mean(divergence["token_kl"], prompts) if "token_kl" in divergence else None,
        kl_log_ratio=(clustered_mean(ratios, prompts).value, standard_error(ratios, prompts)) if ratios else None,
        kl_exact=clustered_mean(divergence["exact"], own) if divergence.get("exact") else None,
        against_previous=None if before is None else against(before.scores),
        against_initial=None if before is None else against(first),
    )
