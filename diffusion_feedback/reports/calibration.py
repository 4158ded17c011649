"""Figures that say how far scorers can be trusted: reliability, and accuracy against the share of pairs kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from ..errors import UserError
from ..evaluation.calibration import ScorerCalibration
from ..evaluation.statistics import Interval
from .figures import FAINT, INK, SERIES_COLORS, dress, inline_svg, svg_style

_MAX_SERIES = len(SERIES_COLORS)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with the bounds of its 95 % interval. Raises UserError unless low <= value <= high, all finite."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        # A bound may miss the estimate by rounding alone.
        if not self.low - 1e-9 <= self.value <= self.high + 1e-9 or not math.isfinite(self.low + self.high):
            problem = f"{self.value} lies outside its interval {self.low} to {self.high}, or is not finite"
            raise UserError(problem, "give finite numbers, low <= value <= high")


@dataclass(frozen=True, slots=True)
class IntervalPoint:
    """A point of a figure of shares, all in [0, 1], with the 95 % interval of ``y``."""

    x: float
    y: Estimate


@dataclass(frozen=True, slots=True)
class ReliabilityFigure:
    """Observed agreement against the scorer's confidence in [0.5, 1], by series ("as published", "after the fit")."""

    title: str
    series: Mapping[str, Sequence[IntervalPoint]]
    detail: str = ""


def reliability_figure(scorer: ScorerCalibration) -> ReliabilityFigure:
    """How often labels agree with ``scorer``, by its confidence: under its own scale, where it has one, and the fitted."""
    probabilities = {"own scale": scorer.own, "after the fit": scorer.fitted}
    series = {
        name: [IntervalPoint(b.confidence, Estimate(b.observed, b.low, b.high)) for b in own.reliability]
        for name, own in probabilities.items()
        if own is not None
    }
    return ReliabilityFigure(scorer.name, series, f"{len(scorer.fitted.reliability)} bins of about equally many pairs")


def coverage_series(scorers: Sequence[ScorerCalibration]) -> Mapping[str, Sequence[IntervalPoint]]:
    """The accuracy of each scorer among the pairs that it is surest of, by the share of pairs kept."""
    return {scorer.name: [IntervalPoint(p.share, _estimate(p.accuracy)) for p in scorer.coverage] for scorer in scorers}


def _estimate(interval: Interval) -> Estimate:
    return Estimate(interval.value, interval.low, interval.high)


def reliability_svg(figure: ReliabilityFigure, *, size: tuple[float, float] = (4.2, 3.6)) -> str:
    """Draw ``figure`` as inline SVG, with the diagonal of perfect calibration; ``size`` in inches."""
    with svg_style((figure.title, sorted(figure.series.items()), size)):
        canvas = Figure(figsize=size, layout="constrained")
        axes = canvas.add_subplot()
        axes.plot([0.5, 1], [0.5, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        for number, (name, points) in enumerate(figure.series.items()):
            _draw(axes, name, points, SERIES_COLORS[number % _MAX_SERIES], whiskers=True)
        dress(axes, "confidence of the scorer", "labels that agree")
        lowest = min([0.5, *(point.y.low for points in figure.series.values() for point in points)])
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(max(0.0, lowest - 0.02), 1.02)
        axes.xaxis.set_major_locator(FixedLocator([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]))
        _percent(axes.xaxis, axes.yaxis)
        if len(figure.series) > 1:
            canvas.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK, handlelength=1.2)
        return inline_svg(canvas)


def coverage_svg(series: Mapping[str, Sequence[IntervalPoint]], *, size: tuple[float, float] = (5.6, 3.4)) -> str:
    """Draw accuracy against the share of pairs kept, from all on the left to the surest few; inline SVG, inches."""
    with svg_style((sorted(series.items()), size)):
        canvas = Figure(figsize=size, layout="constrained")
        axes = canvas.add_subplot()
        axes.axhline(0.5, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        for number, (name, points) in enumerate(series.items()):
            _draw(axes, name, points, SERIES_COLORS[number % _MAX_SERIES], whiskers=False)
        dress(axes, "pairs kept, the surest ones", "accuracy")
        axes.set_xlim(1.02, 0.08)
        axes.xaxis.set_major_locator(FixedLocator([1.0, 0.8, 0.6, 0.4, 0.2]))
        _percent(axes.xaxis, axes.yaxis)
        canvas.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK, handlelength=1.2)
        return inline_svg(canvas)


def _draw(axes: Axes, name: str, points: Sequence[IntervalPoint], color: str, *, whiskers: bool) -> None:
    x = [point.x for point in points]
    y = [point.y.value for point in points]
    low, high = [point.y.low for point in points], [point.y.high for point in points]
    if whiskers:
        axes.vlines(x, low, high, color=color, linewidth=1, alpha=0.55)
    else:
        axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
    axes.plot(x, y, color=color, label=name, linewidth=1.8, marker="o", markersize=4)


def _percent(*every: Axis) -> None:
    for axis in every:
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
