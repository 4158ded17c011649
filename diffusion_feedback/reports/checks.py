"""The check of a data set in plain words: what it holds, what is wrong with it, and what to do about each problem."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from .rendering import load_template

if TYPE_CHECKING:
    from ..data.check import CheckReport
    from ..data.text_check import TextReport


def check_summary(report: CheckReport | TextReport) -> str:
    """What ``report`` says."""
    filters: dict[str, Callable[..., str]] = {"counted": counted, "spread": spread, "thousands": "{:,}".format}
    template = load_template(f"checks/{report.template}.txt.j2", filters)
    log = report.reader.log
    return template.render(report=report, log=log, num_unusable=len(log.skipped)).removesuffix("\n")


def counted(counts: Mapping[str, int]) -> str:
    """Each number with its name, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {name}" for name, number in ordered)


def spread(values: Iterable[int]) -> str:
    """Smallest, median and largest, or the one value that all have."""
    known = sorted(values)
    low, middle, high = known[0], statistics.median_low(known), known[-1]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}, median {middle:,}"
