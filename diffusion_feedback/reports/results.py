"""Results as parts of a page: notices, notes, groups of cases, and cells of tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import yaml

from ..evaluation.comparison import CaseRow, pick_cases
from ..evaluation.statistics import Interval, WinRate
from ..records import Text
from .content import Case, Cell, Group, Mark, Notice, Table, Tone
from .html import fixed, percent
from .rendering import TEMPLATES, load_template


def notice(kind: str, tone: Tone = "caution", **values: object) -> Notice:
    """The notice whose words stand in ``notices/KIND.txt.j2``, the title in the first line; they show ``values``."""
    words = load_template(f"notices/{kind}.txt.j2", {"percent": percent}).render(values)
    title, text = words.rstrip("\n").split("\n", 1)
    return Notice(title, text, tone)


def explanations(page: str, needed: Mapping[str, object]) -> list[tuple[str, str]]:
    """What "How to read this" says on a ``page``, (title, text); without what ``needed`` has under a false value."""
    texts = yaml.safe_load(TEMPLATES.joinpath("notes.yaml").read_text("utf-8"))[page]
    return [(title, text) for title, text in texts.items() if needed.get(title, True)]


def case_groups(
    rows: Sequence[CaseRow], count: int, case_of: Callable[[CaseRow], Case], detail: str = "", after_name: str = ""
) -> list[Group[Case]]:
    """The ``count`` largest gains, largest losses (the worst first) and typical cases of ``rows``, shown by ``case_of``.

    A gain is above 0 and a loss below it; what else was picked is typical.
    """
    best, median, worst = pick_cases(rows, count)
    named = {
        "Largest gains": [row for row in best if row.delta > 0],
        "Largest losses": [row for row in worst if row.delta < 0],
        "Typical cases": [row for row in best if row.delta <= 0] + [*median] + [row for row in worst if row.delta >= 0],
    }
    return [Group(title, list(map(case_of, chosen)), detail, after_name) for title, chosen in named.items() if chosen]


def interval_cell(estimate: Interval | None, digits: int = 3) -> Cell:
    """An estimate above its interval; empty for None."""
    if estimate is None:
        return Cell("")
    bounds = f"{fixed(estimate.low, digits)} to {fixed(estimate.high, digits)}"
    return Cell(fixed(estimate.value, digits), bounds)


def share_cell(share: Interval | WinRate | None, *lines: str, mark: Mark = "") -> Cell:
    """A share in [0, 1] as per cent, above its interval and ``lines``; empty for None."""
    if share is None:
        return Cell("")
    value = share.win_rate if isinstance(share, WinRate) else share.value
    return Cell(percent(value), "\n".join([f"{percent(share.low)} to {percent(share.high)}", *lines]), mark)


def completions_table(
    names: Sequence[str], rows: Iterable[tuple[Text, Sequence[tuple[str, float]]]], detail: str
) -> Table:
    """Completions of the models ``names`` side by side, a row a prompt, each above its score."""
    cells = [(Cell(prompt_text(prompt)), [Cell(text, fixed(score, 3)) for text, score in row]) for prompt, row in rows]
    return Table("Completions", names, cells, detail, "prompt", is_text=True)


def prompt_text(prompt: Text) -> str:
    """A prompt as one text: of a conversation, its turns line by line."""
    return prompt if isinstance(prompt, str) else "\n".join(str(turn["content"]) for turn in prompt)
