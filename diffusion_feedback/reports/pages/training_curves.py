"""Curves of one training run, or of several laid over each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ...evaluation.statistics import Interval
from ...evaluation.trained import TrainedRun
from ..figures import Curve, CurveFigure, Point, PointsFigure

_SIDES = ("error/{}_change", "logps/{}_change", "rewards/{}")
_CHANGES = {
    "error/{}_change": ("Chosen and rejected error", "change of the error", "Against the start; the chosen one should not rise."),
    "logps/{}_change": ("Chosen and rejected log-probability", "change, nats", "Against the reference; the chosen one should not fall."),
    "rewards/{}": ("Chosen and rejected reward", "reward", "The two should part."),
}  # fmt: skip
_PLAIN = (
    ("objective/scores", "Reward", "Of the completions that each update learnt from."),
    ("objective/kl", "KL to the reference", "Nats per completion."),
    ("nll", "Negative log-likelihood", "Nats per token."),
)


def training_curves(runs: Mapping[str, TrainedRun]) -> list[CurveFigure | PointsFigure]:
    """Loss, accuracy, chosen and rejected apart, learning rate and held-out figures of ``runs``, each under its name.

    The name of a run that stands alone is empty.
    """
    figures: list[CurveFigure | PointsFigure] = [*_heldout(runs), *_loss(runs), *_accuracy(runs), *_sides(runs)]
    for key, title, detail in _PLAIN:
        figures += _figure(title, {name or title.lower(): _series(run, key) for name, run in runs.items()}, detail)
    rates = {name or "learning rate": _series(run, "lr") for name, run in runs.items()}
    return [*figures, *_figure("Learning rate", rates, "")]


def _series(run: TrainedRun, key: str) -> Curve:
    return [(float(row["step"]), float(row[key])) for row in run.steps if row.get(key) is not None]


def _figure(
    title: str, series: Mapping[str, Curve], detail: str, reference: float | None = None, y: str = ""
) -> list[CurveFigure]:
    """The figure of what is known; none of what is not."""
    known = {name: curve for name, curve in series.items() if any(math.isfinite(value) for _, value in curve)}
    return [CurveFigure(title, known, detail, y_label=y, reference=reference)] if known else []


def _loss(runs: Mapping[str, TrainedRun]) -> list[CurveFigure]:
    gates = {row["gate/expected_loss"] for run in runs.values() for row in run.rows if "gate/expected_loss" in row}
    start = gates.pop() if len(gates) == 1 else None
    detail = "Faint: each step; the line is a running mean." if _are_long(runs.values()) else ""
    if start is not None:
        detail = f"{detail} Dashed: where training starts.".strip()
    return _figure("Loss", {name or "loss": _series(run, "loss") for name, run in runs.items()}, detail, start)


def _are_long(runs: Iterable[TrainedRun]) -> bool:
    return any(len(run.steps) > 60 for run in runs)


def _accuracy(runs: Mapping[str, TrainedRun]) -> list[CurveFigure]:
    series = {name or "accuracy": _series(run, "rewards/accuracies") for name, run in runs.items()}
    return _figure("Accuracy on training pairs", series, "Of the batch of each step; says nothing of new pairs.", 0.5)


def _sides(runs: Mapping[str, TrainedRun]) -> list[CurveFigure]:
    """Chosen and rejected apart, by the first of the kinds that every run knows."""
    for pattern in _SIDES:
        known = {
            name: [_series(run, pattern.format(side)) for side in ("chosen", "rejected")] for name, run in runs.items()
        }
        if not all(curve for curves in known.values() for curve in curves):
            continue
        title, y_label, detail = _CHANGES[pattern]
        if len(known) == 1:
            (curves,) = known.values()
            return _figure(title, dict(zip(("chosen", "rejected"), curves, strict=True)), detail, 0.0, y_label)
        sides = zip(("chosen", "rejected"), zip(*known.values(), strict=True), strict=True)
        kind = title.rpartition(" ")[2]
        return [
            figure
            for side, curves in sides
            for figure in _figure(
                f"{side.capitalize()} {kind}", dict(zip(known, curves, strict=True)), "", 0.0, y_label
            )
        ]
    return []


def _heldout(runs: Mapping[str, TrainedRun]) -> list[PointsFigure]:
    """The held-out measure over steps with its intervals, where some run was evaluated more than once."""
    measures = [run.measure for run in runs.values() if run.measure is not None]
    if not measures or any(each != measures[0] for each in measures) or len(measures) < len(runs):
        return []
    measure, series = measures[0], {}
    for name, run in runs.items():
        points = []
        for step in run.evaluations:
            estimate = run.estimate(step)
            if estimate is not None:
                points.append(Point(Interval(step, step, step, 1), estimate))
        series[name or measure.name] = points
    if not any(len(points) > 1 for points in series.values()) or not all(series.values()):
        return []
    title = f"Held-out {measure.name}" if measure.key != "scores" else "Reward of the evaluations"
    return [PointsFigure(title, series, "Each evaluation with its 95 % interval.", "step", measure.name)]
