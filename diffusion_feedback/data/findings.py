"""What the checks of pairs and of texts find in the same way, and what training on squares takes away from pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from ..errors import plural

_RATIOS = ((1, 1), (5, 4), (4, 3), (3, 2), (8, 5), (16, 9), (2, 1), (21, 9))
_MUCH = 0.2  # of the area, left out of an image


class Votes:
    """What rows say of the same example: each row's share of votes for the side that comes first when sorted."""

    def __init__(self) -> None:
        self._shares: dict[str, tuple[str, list[float]]] = {}  # with the place where the example was met first

    def add(self, example: str, source: str, share: float) -> None:
        """Take in the row at ``source``, which says ``share`` of ``example``."""
        self._shares.setdefault(example, (source, []))[1].append(share)

    @classmethod
    def joined(cls, several: Iterable[Votes]) -> Votes:
        """What several data sets say together."""
        together = cls()
        for votes in several:
            for example, (source, shares) in votes._shares.items():
                for share in shares:
                    together.add(example, source, share)
        return together

    def shared_with(self, other: Votes) -> int:
        """Examples that stand in both."""
        return len(self._shares.keys() & other._shares.keys())

    @property
    def ties(self) -> int:
        """Examples without a majority."""
        return sum(math.fsum(shares) / len(shares) == 0.5 for _, shares in self._shares.values())

    @property
    def num_usable(self) -> int:
        """Examples that training uses by default: each once, without ties."""
        return len(self._shares) - self.ties

    @property
    def duplicates(self) -> int:
        """Rows that repeat an example."""
        return sum(len(shares) - 1 for _, shares in self._shares.values())

    @property
    def contradicting(self) -> list[str]:
        """Where the examples stand whose rows prefer, or label, both ways."""
        return [source for source, shares in self._shares.values() if min(shares) < 0.5 < max(shares)]


def lost_area(size: tuple[int, int]) -> float:
    """The share of the area of an image of this width and height that its largest square leaves out, in [0, 1)."""
    return 1 - min(size) / max(size)


def shape_of(size: tuple[int, int]) -> str:
    """The aspect ratio of an image of this width and height by its usual name, within 3 %, else "wider" or "taller"."""
    long, short = max(size), min(size)
    for ratio in _RATIOS:
        if abs(long * ratio[1] / (short * ratio[0]) - 1) <= 0.03:
            first, second = ratio if size[0] >= size[1] else ratio[::-1]
            return f"{first}:{second}"
    return "otherwise wide" if size[0] > size[1] else "otherwise tall"


def square_notes(sizes: Sequence[tuple[int, int]], resolutions: Sequence[int]) -> list[str]:
    """Lines on how many images of ``sizes`` (width, height; px) are cut, and enlarged to each of ``resolutions``."""
    lines = []
    lost = {size: lost_area(size) for size in set(sizes)}
    cut = sorted((size for size in sizes if lost[size] > 0), key=lambda size: lost[size])
    if cut:
        median, worst = statistics.median(lost[size] for size in cut), cut[-1]
        much = sum(lost[size] > _MUCH for size in cut)
        lines.append(
            f"{len(cut):,} of {plural(len(sizes), 'image')} {'is' if len(cut) == 1 else 'are'} not square: a square from"
            f" the middle is trained on, which leaves out {median:.1%} of the area (median), {lost[worst]:.1%} at worst ({worst[0]} x {worst[1]}); {much:,} lose"
            f" more than {_MUCH:.0%}"
        )
    for resolution in resolutions:
        small = [size for size in sizes if min(size) < resolution]
        if small:
            least = min(small, key=min)
            of = f"{len(small):,} of {plural(len(sizes), 'image')} {'is' if len(small) == 1 else 'are'}"
            note = f"{of} enlarged when trained at {resolution} px"
            lines.append(f"{note}, the smallest from {least[0]} x {least[1]}")
    return lines
