"""What training on squares takes away from pictures of other shapes, in numbers, before it is trained on."""

from __future__ import annotations

from collections.abc import Sequence


def square_notes(sizes: Sequence[tuple[int, int]], resolutions: Sequence[int]) -> list[str]:
    """Lines on how many images of ``sizes`` (width, height; px) are cut, and enlarged to each of ``resolutions``."""
    lines = []
    lost = {size: 1 - min(size) / max(size) for size in set(sizes)}
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
