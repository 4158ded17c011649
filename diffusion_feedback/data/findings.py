"""What the checks of pairs and of texts say in the same words."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

_EXAMPLES = 5


def counted(counts: Mapping[str, int]) -> str:
    """Each number with its name, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {name}" for name, number in ordered)


def value_range(values: Sequence[int]) -> str:
    """Smallest, median and largest, or the one value that all have."""
    low, middle, high = min(values), statistics.median_low(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}, median {middle:,}"


def bad_row_lines(bad: Iterable[tuple[int, str, str]], unusable: Sequence[tuple[str, str]]) -> list[str]:
    """Lines on bad rows: how many, what is wrong and the remedy of each kind; then reasons of the first ``unusable``."""
    lines = [f"  ! {number:,} rows {what} -> {remedy}" for number, what, remedy in bad]
    lines += [f"      {reason}" for _, reason in unusable[:_EXAMPLES]]
    if len(unusable) > _EXAMPLES:
        lines.append(f"      and {len(unusable) - _EXAMPLES:,} more")
    return lines
