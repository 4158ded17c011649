"""Votes as people's tables spell them: which side a cell prefers, and who voted; for images and for texts alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ..errors import UserError, shown

VOTE_COLUMNS = ("vote", "winner", "preference", "choice", "preferred")
ANNOTATOR_COLUMNS = ("user_id", "annotator", "annotator_id", "worker_id", "rater_id", "voter")
BOTH_BAD = "both_bad"
"""The column that keeps, of a vote that was converted to a label, whether it called both sides bad."""

_WORDS: Mapping[str, float | str] = {
    **dict.fromkeys(("a", "left", "first", "a wins", "left wins"), 1.0),
    **dict.fromkeys(("b", "right", "second", "b wins", "right wins"), 0.0),
    **dict.fromkeys(("tie", "tied", "draw", "equal", "same", "both", "both good", "bothgood", "no preference"), 0.5),
    **dict.fromkeys(("both bad", "bothbad", "tie bothbad", "tie both bad", "neither"), BOTH_BAD),
    **dict.fromkeys(("skip", "skipped"), "skip"),
}
_SIDE = "image|img|picture|photo|response|answer|completion|model|option|side|text|output|candidate|assistant"
_BEFORE, _BEHIND = re.compile(rf"^(?:{_SIDE}) (?=\S)"), re.compile(rf"(?<=\S) (?:{_SIDE})$")
_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")
_LAST_DIGITS = re.compile(r"(\d+)\D*$")
_ALLOWED = "a, b, tie or both_bad (left or right; the name of the better one; skip for no vote)"


@dataclass(frozen=True, slots=True)
class Choice:
    """What one vote says: its ``share`` for the first side (1, 0.5 or 0), and whether both are called bad."""

    share: float
    is_both_bad: bool = False


@dataclass(frozen=True)
class VoteColumn:
    """How the cells of the column ``name`` of the table ``where`` are read.

    ``sides`` are the columns of the first and the second side; ``values`` gives all cells of the column once more, as
    numbers are understood by all of them together, or is None where they pass but once. ``may_be_share``: whether the
    table may give shares of votes in their place.
    """

    name: str
    sides: tuple[str, str]
    where: str
    values: Callable[[], Iterable[object]] | None = None
    may_be_share: bool = True

    def read(self, cell: object, first: object = None, second: object = None) -> Choice | None:
        """The choice of ``cell``; None where it is no vote by its own account (skip).

        ``first`` and ``second`` are the cells of the sides: a vote may name the better one. Raises ValueError for a cell
        that is no vote, and UserError for numbers that may mean either side.
        """
        text = "" if cell is None else str(cell).strip()
        names = [str(side).strip() if isinstance(side, str) else None for side in (first, second)]
        if text and names[0] != names[1] and text in names:
            return Choice(float(text == names[0]))
        if _NUMBER.fullmatch(text) or isinstance(cell, bool):
            return Choice(self._of_number(int(cell) if isinstance(cell, bool) else int(float(text))))
        word = " ".join(re.split(r"[\s_()\[\]-]+", text.lower())).strip()
        meaning = next((_WORDS[each] for each in _spellings(word) if each in _WORDS), None)
        if meaning is None:
            raise ValueError(f"found {shown(cell)}, not a vote: {_ALLOWED}")
        if isinstance(meaning, float):
            return Choice(meaning)
        return Choice(0.5, is_both_bad=True) if meaning == BOTH_BAD else None

    def _of_number(self, number: int) -> float:
        # One number that neither side has says that the others are counted otherwise too: no row of them can be trusted.
        if self._numbers is None or {number, *self._met} - {*self._numbers}:
            raise UserError(*self._ambiguous(number))
        return float(number == self._numbers[0])

    @cached_property
    def _numbers(self) -> tuple[int, int] | None:
        """The numbers of the first and the second side: as their columns are numbered, or 1 and 2; None where unsure."""
        ends = [match[1] for side in self.sides if (match := _LAST_DIGITS.search(side))]
        if len(ends) == 2 and int(ends[1]) == int(ends[0]) + 1:
            return int(ends[0]), int(ends[1])
        return (1, 2) if self._met == {1, 2} or self._met == {2} else None

    @cached_property
    def _met(self) -> set[int]:
        texts = (str(int(cell) if isinstance(cell, bool) else cell).strip() for cell in (self.values or tuple)())
        return {int(float(text)) for text in texts if _NUMBER.fullmatch(text)}

    def _ambiguous(self, number: int) -> tuple[str, str]:
        first, second = self.sides
        problem = f"{self.where}, column {self.name!r}: found {number}, which may mean {first!r} or {second!r}"
        if self.may_be_share and self._met <= {0, 1}:
            # Sides that are numbered from 1 are no form of shares: label_1 might be of either.
            sides = f"image_a={first},image_b={second}," if self._numbers is not None else ""
            as_shares = (
                f"`columns` {sides}label_0={self.name} where 1 is a vote for {first!r}, label_1={self.name} where 1"
            )
            return problem, f"say which: {as_shares} is one for {second!r}; or write a, b, tie or both_bad"
        return problem, "write a, b, tie or both_bad"


def _spellings(word: str) -> tuple[str, ...]:
    return word, _BEFORE.sub("", word), _BEHIND.sub("", word)


def is_true(cell: object) -> bool:
    """Whether the cell of a column of yes and no says yes, as every form of tables writes it; a blank one does not."""
    return str(cell).strip().lower() in ("true", "1", "1.0")


def annotator_of(cell: object) -> str:
    """Who voted, by the cell of a column of annotators; "" for nobody."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return "" if cell is None else str(cell).strip()
