"""What a pass over the rows of a data set meets: rows are counted, and a bad one stops it or is left out and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from ..errors import UserError, plural
from ..progress import progress
from .rows import BadRow

OnBadRow = Literal["error", "skip"]

Item = TypeVar("Item")


@dataclass(slots=True)
class ReadCounts:
    """What one pass met: ``usable`` rows were given out, and ``bad`` ones are counted by kind of reason.

    By their own account ``unlabelled``, ``not_different`` and ``silent`` rows (all scores alike, or marked as no good) say
    nothing; ties count whether kept or not, and ``both_bad`` are those of them whose votes say so. ``outside`` are images of usable pairs that do not lie in the data set's
    folder: full paths, and links. ``unread`` are rows by column that a format of texts does not read.
    """

    rows: int = 0
    usable: int = 0
    ties: int = 0
    both_bad: int = 0
    unlabelled: int = 0
    not_different: int = 0
    silent: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    outside: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        named = [
            (self.ties, "tie" if self.ties == 1 else "ties"),
            (self.both_bad, f"{'of these ' * bool(self.ties)}both bad"),
            (self.unlabelled, "unlabelled (has_label false, or a vote skipped)"),
            (self.not_different, "not different (are_different false)"),
            (self.silent, "without a preference, or marked as no good"),
            (self.bad.total(), "bad"),
        ]
        counts = [f"{count:,} {name}" for count, name in named if count]
        return plural(self.rows, "row") + (f", of which {', '.join(counts)}" if counts else "")


@dataclass(slots=True)
class ReadLog:
    """What the last pass over the rows of the data set ``name`` met: ``skipped`` lists (source, reason) of bad rows left out.

    ``kind`` says what its usable rows are, ``missing`` what to do where no row is wrong and none is usable, and ``correct``
    where some are. A pass stops at a bad row unless ``on_bad_row`` is "skip".
    """

    name: str
    on_bad_row: OnBadRow
    kind: str
    missing: str
    correct: str = "correct the rows; a check of the data lists them all"
    counts: ReadCounts = field(default_factory=ReadCounts)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def begin(self) -> None:
        """A pass begins."""
        self.counts, self.skipped = ReadCounts(), []

    def leave_out(self, source: str, error: BadRow) -> None:
        """Take note of a bad row. Raises it unless bad rows are skipped."""
        if self.on_bad_row == "error":
            raise error
        self.counts.bad[error.kind] += 1
        self.skipped.append((source, error.problem))

    def require_usable(self) -> None:
        """Raise UserError where the pass found no usable row, saying why."""
        if self.counts.usable:
            return
        problem = f"{self.name}: 0 usable {self.kind} ({self.counts})"
        if self.skipped:
            raise UserError(f"{problem}; the first: {self.skipped[0][1]}", self.correct)
        raise UserError(problem, self.missing if self.counts.rows else "the data holds no rows")

    def watched(self, items: Iterable[Item], doing: str, total: int | None, *, hidden: bool = False) -> Iterator[Item]:
        """``items`` of a pass, with a bar of the rows that it has met, of ``total``."""
        desc = f"{doing} {self.name}"
        with progress(desc=desc, total=total, unit="row", mininterval=0.5, disable=hidden) as bar:
            for item in items:
                yield item
                bar.update(self.counts.rows - bar.n)
            bar.update(self.counts.rows - bar.n)
