"""The properties of the pairs of a data set that an audit looks for in its labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.columns import Columns
from ..data.image_statistics import IMAGE_STATISTICS, image_format, image_statistics
from ..data.index import PairIndex
from ..data.readers import open_pairs
from ..data.text_pairs import TextPairs
from ..data.text_statistics import TEXT_STATISTICS, text_statistics
from ..errors import UserError, plural
from ..evaluation.bootstrap import cluster_codes
from ..evaluation.shortcuts import ComparedPairs
from ..progress import progress
from ..reports.shown_pairs import ShownPair
from .showing import show_images, show_texts

if TYPE_CHECKING:
    from ..data.places import Dataset

Count = Callable[[str], int]


@dataclass
class MeasuredPairs:
    """What was measured of each of a sample of the decided pairs of ``source``, with the sides as the data has them.

    ``words`` are those of AuditResult, as ``num_pairs`` and the other numbers. ``show`` makes what a page shows of the
    pair of a number, with a note.
    """

    source: str
    medium: str
    words: Mapping[str, tuple[str, str, str]]
    num_pairs: int
    num_ties: int
    notes: list[str]
    show: Callable[[int, str], ShownPair] = field(init=False)
    num_unreadable: int = 0
    prompts: list[str] = field(default_factory=list)
    first_preferred: list[bool] = field(default_factory=list)
    numbers: list[tuple[dict[str, float], dict[str, float]]] = field(default_factory=list)
    names: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def compared(self) -> ComparedPairs:
        """All of it as arrays. Raises UserError where no pair could be read."""
        if not self.prompts:
            problem = f"{self.source}: no decided pair could be read"
            raise UserError(problem, "a check of the data says what is wrong with it")
        measured = [name for name in self.words if any(name in side for pair in self.numbers for side in pair)]
        numbers = {
            name: np.array([[side.get(name, np.nan) for side in pair] for pair in self.numbers]) for name in measured
        }
        return ComparedPairs(np.array(self.first_preferred), cluster_codes(self.prompts), numbers, self.names)


def measure_images(
    path: str | Path | Dataset,
    most: int,
    *,
    split: str = "train",
    revision: str | None = None,
    columns: Columns = None,
) -> MeasuredPairs:
    """At most ``most`` of the pairs of images of ``path``. Raises UserError as ``open_pairs``."""
    where: dict[str, Any] = {"split": split, "revision": revision, "columns": columns}
    reader = open_pairs(path, on_bad_row="skip", ties="soft", decode=False, **where)
    index = PairIndex.build(reader)
    decided = [pair for pair in index.pairs if pair.label_0 != 0.5]
    notes = [
        *index.notes,
        *([f"{plural(len(reader.log.skipped), 'bad row is', 'bad rows are')} left out"] if reader.log.skipped else []),
    ]
    measured = MeasuredPairs(reader.log.name, "image", IMAGE_STATISTICS, len(decided), len(index) - len(decided), notes)
    measured.names = {"source model": [], "file format": []}
    shown = []
    # In the order of the data, so that each part of a file is read once.
    sample = sorted(decided[:most], key=lambda pair: pair.location or ())
    for pair in progress(sample, desc="measuring", unit="pair", mininterval=0.5):
        handles = index.images(pair)
        order = (1, 0) if pair.swapped else (0, 1)
        try:
            data = [handles[side].read() for side in order]
            first, second = (image_statistics(each, pair.source) for each in data)
        except UserError:
            measured.num_unreadable += 1
            continue
        shown.append(pair)
        measured.prompts.append(pair.prompt)
        measured.first_preferred.append((pair.label_0 > 0.5) != pair.swapped)
        measured.numbers.append((first, second))
        measured.names["source model"].append((pair.models[order[0]], pair.models[order[1]]))
        measured.names["file format"].append((image_format(data[0]), image_format(data[1])))
    measured.show = lambda number, note: show_images(index, shown[number], note)
    return measured


def measure_texts(
    path: str | Path | Dataset,
    most: int,
    *,
    split: str = "train",
    revision: str | None = None,
    columns: Columns = None,
    count_tokens: Count | None = None,
) -> MeasuredPairs:
    """At most ``most`` of the pairs of texts of ``path``. Raises UserError as ``TextPairs``."""
    source = TextPairs(path, split=split, revision=revision, columns=columns)
    pairs, num_pairs = source.first(most, lambda pair: (pair.key,), lambda pair: pair.chosen_probability > 0.5)
    # Read as chosen and rejected: which answer stood first, and whose it is, is not kept.
    notes = [*source.notes, "position, source model: not known of texts"]
    measured = MeasuredPairs(source.log.name, "text", TEXT_STATISTICS, num_pairs, source.num_ties, notes)
    for pair in pairs:
        sides = [text_statistics(text, pair.prompt) for text in (pair.chosen, pair.rejected)]
        if count_tokens is not None:
            for side, text in zip(sides, (pair.chosen, pair.rejected), strict=True):
                side["tokens"] = float(np.log1p(count_tokens(text)))
        measured.prompts.append(pair.prompt)
        measured.first_preferred.append(True)  # texts stand as chosen and rejected
        measured.numbers.append((sides[0], sides[1]))
    measured.show = lambda number, note: show_texts(pairs[number], note)
    return measured
