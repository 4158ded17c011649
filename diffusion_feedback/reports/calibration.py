"""Figures that say how far scorers can be trusted: reliability, and accuracy against the share of pairs kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, PercentFormatter

from ..errors import UserError
from ..evaluation.calibration import ScorerCalibration
from ..evaluation.statistics import Interval
from .figures import DASHED, SERIES_COLORS, draw_svg


def lowest_observed(scorers: Sequence[ScorerCalibration]) -> float:
    """Where the axis of agreement begins for all ``scorers``, so that their figures compare: at 0.5 or below."""
    bins = [part.low for each in scorers for own in (each.own, each.fitted) if own for part in own.reliability]
    return max(0.0, min([0.5, *bins]) - 0.02)


def reliability_svg(scorer: ScorerCalibration, lowest: float | None = None) -> str:
    """How often labels agree with ``scorer``, by its confidence: under its own scale, where it has one, and the fitted.

    The axis of agreement begins at ``lowest``, by default where this scorer's own bins ask for.
    Inline SVG with the diagonal of perfect calibration. Raises UserError as ``coverage_svg`` does.
    """
    known = {"own scale": scorer.own, "after the fit": scorer.fitted}
    series = {
        name: [(part.confidence, Interval(part.observed, part.low, part.high, part.num)) for part in own.reliability]
        for name, own in known.items()
        if own is not None
    }

    def draw(axes: Axes) -> None:
        axes.plot([0.5, 1], [0.5, 1], **DASHED)
        for color, (name, points) in zip(SERIES_COLORS, series.items(), strict=False):
            x, y, low, high = _columns(points)
            axes.vlines(x, low, high, color=color, linewidth=1, alpha=0.55)
            axes.plot(x, y, color=color, label=name, linewidth=1.8, marker="o", markersize=4)
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(lowest_observed([scorer]) if lowest is None else lowest, 1.02)
        axes.xaxis.set_major_locator(FixedLocator([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]))
        _percent(axes)

    identity = (scorer.name, sorted(series.items()))
    return draw_svg(draw, identity, "confidence of the scorer", "labels that agree", size=(4.2, 3.6), has_legend=True)


def coverage_svg(scorers: Sequence[ScorerCalibration]) -> str:
    """The accuracy of ``scorers`` against the share of pairs kept, from all on the left to the surest few; inline SVG.

    Raises UserError unless low <= value <= high for every interval, all finite.
    """
    series = {scorer.name: [(point.share, point.accuracy) for point in scorer.coverage] for scorer in scorers}

    def draw(axes: Axes) -> None:
        axes.axhline(0.5, **DASHED)
        for color, (name, points) in zip(cycle(SERIES_COLORS), series.items(), strict=False):
            x, y, low, high = _columns(points)
            axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
            axes.plot(x, y, color=color, label=name, linewidth=1.8, marker="o", markersize=4)
        axes.set_xlim(1.02, 0.08)
        axes.xaxis.set_major_locator(FixedLocator([1.0, 0.8, 0.6, 0.4, 0.2]))
        _percent(axes)

    x_label = "pairs kept, the surest ones"
    return draw_svg(draw, sorted(series.items()), x_label, "accuracy", size=(5.6, 3.4), has_legend=True)


def _columns(points: Sequence[tuple[float, Interval]]) -> Sequence[Sequence[float]]:
    """x, y and the bounds of y."""
    for _, y in points:
        # A bound may miss the estimate by rounding alone.
        if not y.low - 1e-9 <= y.value <= y.high + 1e-9 or not math.isfinite(y.low + y.high):
            problem = f"{y.value} lies outside its interval {y.low} to {y.high}, or is not finite"
            raise UserError(problem, "give finite numbers, low <= value <= high")
    return list(zip(*((x, y.value, y.low, y.high) for x, y in points), strict=True))


def _percent(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
