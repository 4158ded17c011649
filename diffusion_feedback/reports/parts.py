"""Parts of a report that are words in a frame: notices and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError

Mark = Literal["", "better", "worse", "differs", "quiet"]
Tone = Literal["alarm", "caution", "calm"]


@dataclass(frozen=True, slots=True)
class Notice:
    """A message above everything else; ``tone`` "alarm" cannot be overlooked, "caution" and "calm" can."""

    title: str
    text: str
    tone: Tone = "calm"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: ``text`` with smaller words below, one line for each of ``detail``; ``mark`` colours it, or says that
    it differs in its row.
    """

    text: str
    detail: str = ""
    mark: Mark = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table under its own heading: each row is its name and one cell a column.

    ``is_text`` sets the cells as words, not as numbers; ``is_folded`` shows the heading alone until it is opened. Raises UserError for a row whose cells are not one a column.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[Cell, Sequence[Cell]]]
    detail: str = ""
    corner: str = ""
    is_text: bool = False
    is_folded: bool = False

    def __post_init__(self) -> None:
        for name, cells in self.rows:
            if len(cells) != len(self.columns):
                problem = f"table {self.title!r}, row {name.text!r}: {len(cells)} cells, {len(self.columns)} columns"
                raise UserError(problem, "give one cell for each column")
