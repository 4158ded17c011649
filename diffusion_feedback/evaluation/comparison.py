"""Two models' scores on the same prompts, case by case: the rows, the summary and the cases worth reading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import UserError
from .statistics import WinRate, win_rate


@dataclass(frozen=True, slots=True)
class CaseRow:
    """One prompt with its score before and after; ``index`` is its place in the input.

    ``image`` is the place among the images of the prompt, where a row is of a single one.
    """

    index: int
    prompt: str
    before: float
    after: float
    image: int = 0

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
    """The ``count`` best and median of ``rows`` by falling delta, and the worst by rising delta: the worst of all first.

    No case stands in two groups, and no prompt twice in one. Without at least ``3 * count`` prompts the groups share what is
    there evenly; an odd one out is a worst case first, because these are the ones that a reader must not miss. Raises
    ValueError for ``count`` below 1.
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    ordered, num = _by_delta(rows), len({row.prompt for row in rows})
    worst = _distinct(reversed(ordered), min(count, (num + 2) // 3))
    best = _distinct([row for row in ordered if row not in worst], min(count, (num + 1) // 3))
    middle = (len(ordered) - 1) / 2
    nearest = sorted(range(len(ordered)), key=lambda place: (abs(place - middle), place))
    left = [ordered[place] for place in nearest if ordered[place] not in worst and ordered[place] not in best]
    return best, _by_delta(_distinct(left, min(count, num // 3))), worst


def _distinct(rows: Iterable[CaseRow], count: int) -> list[CaseRow]:
    """The first ``count`` of ``rows`` that are of different prompts."""
    first: dict[str, CaseRow] = {}
    for row in rows:
        first.setdefault(row.prompt, row)
    return list(first.values())[:count]


def _by_delta(rows: Sequence[CaseRow]) -> list[CaseRow]:
    return sorted(rows, key=lambda row: (-row.delta, row.index, row.image))
