"""Two runs of one benchmark against each other, prompt by prompt, and whether the scorers tell the same story."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError, plural
from ..statistics import Interval, WinRate, mean_interval, permutation_test, win_rate
from .benchmark import OVERALL, PromptValues


@dataclass(frozen=True, slots=True)
class StyleComparison:
    """One style (or ``OVERALL``): how often the run beats the baseline, by how much, and how likely by chance.

    ``difference`` is the mean of run - baseline in the scorer's unit; ``p_value`` is that of the permutation test.
    """

    style: str
    win_rate: WinRate
    difference: Interval
    p_value: float


@dataclass(frozen=True, slots=True)
class ScorerComparison:
    """A run against a baseline under one scorer."""

    scorer: str
    recipe_id: str
    styles: tuple[StyleComparison, ...]
    overall: StyleComparison

    def to_json(self) -> dict[str, object]:
        """As it stands in results.json."""
        return {
            "recipe_id": self.recipe_id,
            "styles": {row.style: _to_json(row) for row in self.styles},
            "overall": _to_json(self.overall),
        }


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One scorer says better beyond doubt while another says worse: what reward hacking looks like."""

    up: ScorerComparison
    down: ScorerComparison


def compare_scorers(
    styles: Sequence[str],
    before: Sequence[PromptValues],
    after: Sequence[PromptValues],
    *,
    tie_margin: float = 0.0,
    allow_missing: bool = False,
) -> list[ScorerComparison]:
    """Compare the runs ``after`` and ``before`` under every scorer recipe that both have; named as in ``after``.

    ``styles`` are the styles of the prompts, in their order. Each prompt is one comparison: its images were averaged
    before. Raises UserError where a scorer stands under another recipe, where no recipe is shared, and where the two
    lack different prompts, unless ``allow_missing`` says to compare on those that both have.
    """
    _check_recipes(before, after)
    known = {own.recipe_id: own for own in before}
    shared = [(known[own.recipe_id], own) for own in after if own.recipe_id in known]
    return [_compare(styles, old, new, tie_margin, allow_missing) for old, new in shared]


def disagreements(comparisons: Sequence[ScorerComparison]) -> list[Disagreement]:
    """Pairs where one scorer's whole win-rate interval lies above 0.5 and another's win rate below it."""
    ups = [row for row in comparisons if row.overall.win_rate.low > 0.5]
    downs = [row for row in comparisons if row.overall.win_rate.win_rate < 0.5]
    return [Disagreement(up, down) for up in ups for down in downs]


def _check_recipes(before: Sequence[PromptValues], after: Sequence[PromptValues]) -> None:
    recipes = {own.scorer: own.recipe_id for own in before}
    for own in after:
        other = recipes.get(own.scorer, own.recipe_id)
        if other != own.recipe_id:
            problem = f"scorer {own.scorer!r} is {own.recipe_id} here and {other} in the baseline"
            raise UserError(problem, "scores of two recipes cannot be compared: score both runs by the same one")
    if not {own.recipe_id for own in before} & {own.recipe_id for own in after}:
        names = [", ".join(own.scorer for own in side) or "none" for side in (after, before)]
        raise UserError(
            f"no scorer in common: {names[0]} here, {names[1]} in the baseline", "score both runs by the same scorer"
        )


def _compare(
    styles: Sequence[str], before: PromptValues, after: PromptValues, tie_margin: float, allow_missing: bool
) -> ScorerComparison:
    gaps = [np.isnan(own.values) for own in (before, after)]
    both = ~(gaps[0] | gaps[1])
    if not both.all() and not allow_missing:
        numbers = f"{plural(int(gaps[1].sum()), 'prompt has', 'prompts have')} no {after.scorer} score here, {int(gaps[0].sum())} in the baseline"
        remedy = "complete both runs, or make the one that lacks some with `allow_missing`, to compare what they share"
        raise UserError(numbers, remedy)
    if not both.any():
        raise UserError(f"the two runs share no prompt with a {after.scorer} score", "complete both runs")
    labels = np.array(styles)

    def row(style: str, chosen: NDArray[np.bool_]) -> StyleComparison:
        new, old = after.values[chosen], before.values[chosen]
        difference = new - old
        return StyleComparison(
            style,
            win_rate(new.tolist(), old.tolist(), tie_margin=tie_margin),
            mean_interval(difference.tolist()),
            permutation_test(difference.tolist()),
        )

    named = [(style, both & (labels == style)) for style in dict.fromkeys(styles)]
    rows = [row(style, chosen) for style, chosen in named if chosen.any()]
    return ScorerComparison(after.scorer, after.recipe_id, tuple(rows), row(OVERALL, both))


def _to_json(row: StyleComparison) -> dict[str, object]:
    difference = asdict(row.difference)
    # JSON knows no infinity: one prompt says nothing of the spread.
    bounds = {name: value if np.isfinite(value) else None for name, value in difference.items()}
    return {"win_rate": asdict(row.win_rate), "mean_difference": bounds, "permutation_p_value": row.p_value}
