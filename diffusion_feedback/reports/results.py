"""Results as parts of a page: win rates, groups of cases, and cells of tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..evaluation.comparison import CaseRow, pick_cases
from ..evaluation.statistics import Interval, WinRate
from ..records import Text
from .content import Case, CaseGroup, Rate
from .html import fixed, percent
from .parts import Cell, Mark


def rate_of(label: str, won: WinRate, detail: str = "", *, num_prompts: int | None = None) -> Rate:
    """``won`` under ``label``, with the p-value of its sign test.

    ``num_prompts``: how many prompts the comparisons are of; where these are more, no sign test is shown, as the samples of
    one prompt are alike.
    """
    p_value = won.p_value if num_prompts in (None, won.num) else None
    return Rate(label, won.win_rate, won.low, won.high, won.num, won.tie_share, p_value, detail)


def case_groups(
    rows: Sequence[CaseRow], count: int, case_of: Callable[[CaseRow], Case], detail: str = "", after_name: str = ""
) -> list[CaseGroup]:
    """The ``count`` largest gains, typical cases and largest losses of ``rows``, each shown by ``case_of``."""
    picks = pick_cases(rows, count)
    named = (("Largest gains", picks.best), ("Typical cases", picks.median), ("Largest losses", picks.worst))
    return [CaseGroup(title, list(map(case_of, chosen)), detail, after_name) for title, chosen in named if chosen]


def interval_cell(estimate: Interval | None, digits: int = 3) -> Cell:
    """An estimate above its interval; empty for None."""
    if estimate is None:
        return Cell("")
    bounds = f"{fixed(estimate.low, digits)} to {fixed(estimate.high, digits)}"
    return Cell(fixed(estimate.value, digits), bounds)


def share_cell(estimate: Interval) -> Cell:
    """A share in [0, 1] as per cent, above its interval."""
    return Cell(percent(estimate.value), f"{percent(estimate.low)} to {percent(estimate.high)}")


def win_rate_cell(won: WinRate | None, *lines: str, mark: Mark = "") -> Cell:
    """A win rate as per cent, above its interval and ``lines``; empty for None."""
    if won is None:
        return Cell("")
    interval = f"{percent(won.low)} to {percent(won.high)}"
    return Cell(percent(won.win_rate), "\n".join([interval, *lines]), mark)


def prompt_text(prompt: Text) -> str:
    """A prompt as one text: of a conversation, its turns line by line."""
    return prompt if isinstance(prompt, str) else "\n".join(str(turn["content"]) for turn in prompt)
