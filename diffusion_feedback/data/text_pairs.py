"""Preference pairs of texts, of which any number is gone through while a few are held."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, plural
from ..records import Text, TextRecord, content_hash
from .columns import Columns
from .places import name_of_data
from .texts import open_texts

if TYPE_CHECKING:
    from .places import Dataset


def plain_text(text: Text) -> str:
    """The words of ``text``: the contents of its turns, one below the other."""
    return text if isinstance(text, str) else "\n".join(str(turn.get("content") or "") for turn in text)


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two completions of a prompt, the one that more rows prefer as ``chosen``.

    ``chosen_probability`` in [0.5, 1] is the mean over the ``num_rows`` rows that have the pair; 0.5 is a tie.
    ``is_contested``: votes disagree on it, which a lone tie is not. ``key`` is
    a hash of the content: pairs sorted by it are in a fixed random order.
    """

    key: str
    prompt: str
    chosen: str
    rejected: str
    chosen_probability: float
    num_rows: int
    source: str
    is_contested: bool = False


class TextPairs:
    """The pairs of a data set of texts; each pass reads it again. What repeats a pair is joined with it.

    ``log`` says what was met. Raises UserError for data that cannot be read, and for data without pairs.
    """

    def __init__(
        self,
        path: str | Path | Dataset,
        *,
        split: str = "train",
        revision: str | None = None,
        columns: Columns = None,
    ) -> None:
        self._reader = open_texts(path, split=split, revision=revision, columns=columns, on_bad_row="skip")
        self.log = self._reader.log
        # Rows of each pair, the sum of their shares for its first text, and whether a row is no tie.
        self._votes: dict[str, tuple[int, float, bool]] = {}
        for record in self.log.watched(self._reader.scan(), "reading", self._reader.num_rows):
            if record.rejected is not None:
                key, share = _identity(record)
                number, total, has_choice = self._votes.get(key, (0, 0.0, False))
                self._votes[key] = number + 1, total + share, has_choice or share != 0.5
        if not self._votes:
            self.log.require_usable()
            problem = f"{name_of_data(path)}: its examples are no pairs"
            raise UserError(problem, "give a prompt with a chosen and a rejected completion")

    def __len__(self) -> int:
        return len(self._votes)

    @property
    def num_ties(self) -> int:
        """Pairs that no majority of their rows decides."""
        return sum(total == number / 2 for number, total, _ in self._votes.values())

    @property
    def notes(self) -> list[str]:
        """What the last pass left aside."""
        left = len(self.log.skipped)
        return [
            *self._reader.notes,
            *([f"{self.log.name}: {plural(left, 'bad row is', 'bad rows are')} left out"] if left else []),
        ]

    def first(
        self,
        number: int,
        key: Callable[[TextPair], tuple[float | str, ...]],
        where: Callable[[TextPair], bool] = lambda _: True,
    ) -> tuple[list[TextPair], int]:
        """The ``number`` pairs that come first by ``key`` among those ``where`` it holds, and how many these are."""
        counter = count()
        kept = (pair for pair in self._pairs() if where(pair) and next(counter) >= 0)
        return heapq.nsmallest(number, kept, key=key), next(counter)

    def _pairs(self) -> Iterator[TextPair]:
        seen: set[str] = set()
        for record in self._reader.scan():
            if record.rejected is None:
                continue
            key, _ = _identity(record)
            if key in seen:
                continue
            seen.add(key)
            number, total, has_choice = self._votes[key]
            chosen, rejected = plain_text(record.chosen), plain_text(record.rejected)
            share = total / number if _is_sorted(record) else 1 - total / number
            if share < 0.5:  # other rows outvote this one
                chosen, rejected, share = rejected, chosen, 1 - share
            is_contested = has_choice and share < 1
            yield TextPair(key, plain_text(record.prompt), chosen, rejected, share, number, record.source, is_contested)


def _identity(record: TextRecord) -> tuple[str, float]:
    """The hash of a pair, whichever side is chosen, and the share of votes for the side that comes first when sorted."""
    assert record.rejected is not None
    sides = sorted(_as_string(side) for side in (record.chosen, record.rejected))
    key = content_hash(_as_string(record.prompt), json.dumps(dict(record.template), sort_keys=True), *sides)
    return key, record.chosen_probability if _is_sorted(record) else 1 - record.chosen_probability


def _is_sorted(record: TextRecord) -> bool:
    assert record.rejected is not None
    return _as_string(record.chosen) <= _as_string(record.rejected)


def _as_string(text: Text) -> str:
    return text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, sort_keys=True)
