"""The contact sheet of a data set: pairs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..shown_pairs import ShownPair, write_pair_page


@dataclass(frozen=True, slots=True)
class Sheet:
    """``pairs`` of ``source``, which are of images or texts (``medium``) and ``num_pairs`` in all; ``scope`` says which."""

    source: str
    medium: str
    pairs: Sequence[ShownPair]
    scope: str
    num_pairs: int
    notes: Sequence[str] = ()

    @property
    def filters(self) -> dict[str, int]:
        """The number of pairs of each kind that some of them are of and others not."""
        kinds = [kind for pair in self.pairs for kind in pair.kinds]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds)) if kinds.count(kind) < len(self.pairs)}


def write_sheet(sheet: Sheet, file: Path) -> None:
    """Write ``sheet`` as one page to ``file``, whole or not at all."""
    write_pair_page("sheet.html.j2", file, title=f"Pairs of {sheet.source}", sheet=sheet)
