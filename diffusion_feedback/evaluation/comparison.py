"""Two models' scores on the same prompts, case by case: the rows, the summary and the cases worth reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError
from .statistics import WinRate, win_rate


@dataclass(frozen=True, slots=True)
class CaseRow:
    """One prompt with its score before and after; ``index`` is its place in the input."""

    index: int
    prompt: str
    before: float
    after: float

    @property
    def delta(self) -> float:
        """after - before; above 0 is an improvement."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class Comparison:
    """After against before: rows by falling delta, and the win rate of after."""

    rows: Sequence[CaseRow]
    win_rate: WinRate


def compare(
    prompts: Sequence[str], before_scores: Sequence[float], after_scores: Sequence[float], *, tie_margin: float = 0.0
) -> Comparison:
    """Compare scores of the same prompts and seeds under two models; higher is better.

    Raises UserError for unequal lengths, no rows, or scores that are not finite.
    """
    if len({len(prompts), len(before_scores), len(after_scores)}) > 1:
        problem = f"{len(prompts)} prompts, {len(before_scores)} scores before, {len(after_scores)} after"
        raise UserError(problem, "score the same prompts and seeds with both models")
    rate = win_rate(after_scores, before_scores, tie_margin=tie_margin)
    cells = zip(prompts, before_scores, after_scores, strict=True)
    rows = [CaseRow(index, prompt, float(a), float(b)) for index, (prompt, a, b) in enumerate(cells)]
    return Comparison(_by_delta(rows), rate)


def pick_cases(rows: Sequence[CaseRow], count: int) -> tuple[Sequence[CaseRow], Sequence[CaseRow], Sequence[CaseRow]]:
    """The ``count`` best, median and worst of ``rows``, each by falling delta; no case stands in two groups.

    Without at least ``3 * count`` rows the groups share what is there evenly; an odd one out is a worst case first,
    because these are the ones that a reader must not miss. Raises ValueError for ``count`` below 1.
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    ordered = _by_delta(rows)
    num_worst = min(count, (len(ordered) + 2) // 3)
    num_best = min(count, (len(ordered) + 1) // 3)
    num_median = min(count, len(ordered) // 3)
    start = min(max((len(ordered) - num_median) // 2, num_best), len(ordered) - num_worst - num_median)
    return ordered[:num_best], ordered[start : start + num_median], ordered[len(ordered) - num_worst :]


def _by_delta(rows: Sequence[CaseRow]) -> list[CaseRow]:
    return sorted(rows, key=lambda row: (-row.delta, row.index))
