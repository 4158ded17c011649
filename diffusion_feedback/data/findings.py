"""What the checks of pairs and of texts find in the same way, and what training on squares takes away from pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence


class Votes:
    """What rows say of the same example: each row's share of votes for the side that comes first when sorted."""

    def __init__(self) -> None:
        self._shares: dict[str, tuple[str, list[float]]] = {}  # with the place where the example was met first

    def add(self, example: str, source: str, share: float) -> None:
        """Take in the row at ``source``, which says ``share`` of ``example``."""
        self._shares.setdefault(example, (source, []))[1].append(share)

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


def square_notes(sizes: Sequence[tuple[int, int]], resolutions: Sequence[int]) -> list[str]:
    """Lines on how many images of ``sizes`` (width, height; px) are cut, and enlarged to each of ``resolutions``."""
    lines = []
    lost = {size: lost_area(size) for size in set(sizes)}
    cut = [size for size in sizes if lost[size] > 0]
    if cut:
        mean, worst = sum(lost[size] for size in cut) / len(cut), max(cut, key=lambda size: lost[size])
        note = f"{len(cut):,} of {len(sizes):,} images are not square: a square of each is trained on"
        lines.append(
            f"{note}, which leaves out {mean:.1%} of their area on average, {lost[worst]:.1%} at worst"
            f" ({worst[0]} x {worst[1]})"
        )
    for resolution in resolutions:
        small = [size for size in sizes if min(size) < resolution]
        if small:
            least = min(small, key=min)
            note = f"{len(small):,} of {len(sizes):,} images are enlarged when trained at {resolution} px"
            lines.append(f"{note}, the smallest from {least[0]} x {least[1]}")
    return lines
