"""The part of a report that says how far scorers can be trusted: table, reliability, coverage, agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from ..errors import UserError
from .figures import FAINT, INK, SERIES_COLORS, dress, inline_svg, svg_style

_MAX_SERIES = len(SERIES_COLORS)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the bounds of its 95 % interval. Raises UserError unless low <= value <= high, all finite."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        # A bound may miss the estimate by rounding alone.
        if not self.low - 1e-9 <= self.value <= self.high + 1e-9 or not math.isfinite(self.low + self.high):
            problem = f"{self.value} lies outside its interval {self.low} to {self.high}, or is not finite"
            raise UserError(problem, "give finite numbers, low <= value <= high")


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """One scorer: its accuracies (shares), mean log loss (nats) and ECE (share) before and after the fit, its scale.

    ``accuracy_per_prompt`` is None where it was not asked for. What a scorer without a scale of its own does not have is None. ``note`` is said below the name.
    """

    name: str
    recipe_id: str
    accuracy: Estimate
    accuracy_with_ties: Estimate
    tie_threshold: float
    log_loss: Estimate
    ece: float
    ece_by_chance: float
    logit_scale: float
    logit_scale_interval: tuple[float, float] | None = None
    own_logit_scale: float | None = None
    own_log_loss: Estimate | None = None
    own_ece: float | None = None
    is_ceiling: bool = False
    note: str = ""
    accuracy_per_prompt: Estimate | None = None


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


@dataclass(frozen=True, slots=True)
class CalibrationPart:
    """Everything of the part. ``coverage`` has one series a scorer; ``agreement`` maps two names to their agreement.

    ``names`` is the order of rows and columns of the agreement; a pair stands in it once, in either order.
    """

    rows: Sequence[CalibrationRow]
    reliability: Sequence[ReliabilityFigure]
    coverage: Mapping[str, Sequence[IntervalPoint]]
    names: Sequence[str]
    agreement: Mapping[tuple[str, str], Estimate]

    def agreement_of(self, a: str, b: str) -> Estimate | None:
        """The agreement of ``a`` and ``b``; None where it is not given, as for a name with itself."""
        return self.agreement.get((a, b)) or self.agreement.get((b, a))


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
