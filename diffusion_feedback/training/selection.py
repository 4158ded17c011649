"""Which step of a run was the best, and when a run has stopped to get better: both by its evaluations alone.

What is decided depends on the metrics of the steps so far, so that a run that goes on decides what one without a break does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..catalog.heldout import heldout_metric
from ..errors import UserError
from ..runs import checkpoint_steps
from .run_folder import PREFIX, RunFolder

MetricsByStep = Mapping[int, Mapping[str, float]]
"""By step, the metrics of its evaluation."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is watched of the evaluations of a run.

    ``keep_best`` and ``early_stopping`` are names of metrics, None where nothing is kept and the run goes on to its end.
    ``patience``: evaluations in a row that may pass without a gain of more than ``min_delta``.
    """

    keep_best: str | None = None
    early_stopping: str | None = None
    patience: int = 3
    min_delta: float = 0.0

    @property
    def watched(self) -> set[str]:
        """The metrics that are watched."""
        return {name for name in (self.keep_best, self.early_stopping) if name is not None}

    def best(self, evaluations: MetricsByStep) -> tuple[int, float] | None:
        """Step and value of the best of ``evaluations``, the earliest of equal ones; None without one of a trained model."""
        if self.keep_best is None:
            return None
        values = _values(evaluations, self.keep_best)
        trained = {step: value for step, value in values.items() if step > 0}
        sign = _sign(self.keep_best)
        step = max(trained, key=lambda step: (sign * trained[step], -step), default=None)
        return None if step is None else (step, trained[step])

    def stop(self, evaluations: MetricsByStep) -> str | None:
        """Why the run ends after the last of ``evaluations``, in words; None where it goes on."""
        if self.early_stopping is None:
            return None
        sign, waited, best, best_step = _sign(self.early_stopping), 0, -math.inf, 0
        values = _values(evaluations, self.early_stopping)
        for step in sorted(values):
            if sign * values[step] > best + self.min_delta:
                waited, best, best_step = 0, sign * values[step], step
            else:
                waited += 1
        if waited < self.patience:
            return None
        words = heldout_metric(self.early_stopping).words
        moved = "risen" if sign > 0 else "fallen"
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{words} has not {moved}{by} in {waited} evaluations since step {best_step} ({sign * best:.4g})"


@dataclass
class Evaluations:
    """The evaluations of the run in ``folder`` so far, and which of its checkpoints is marked as the best by ``selection``."""

    folder: RunFolder
    selection: Selection = field(default_factory=Selection)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    best: tuple[int, float] | None = None

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in the ``metrics`` of ``step``."""
        self.metrics[step] = dict(metrics)

    def can_judge(self, step: int) -> bool:
        """Whether the evaluation of ``step`` has what is watched: one that an earlier part of the run made may not."""
        return self.selection.watched <= self.metrics.get(step, {}).keys()

    def check_first(self) -> None:
        """Raise UserError where the evaluation before the first update lacks a metric of held-out examples."""
        metrics = self.metrics.get(0)
        for name in sorted(self.selection.watched) if metrics else ():
            if not heldout_metric(name).from_samples:  # which compare samples with those of this moment
                _values({0: metrics or {}}, name)

    def is_best(self, step: int) -> bool:
        """Whether ``step``, which was just evaluated, is better than the best so far."""
        metric = self.selection.keep_best
        own = self.selection.best({step: self.metrics[step]}) if metric and step in self.metrics else None
        if metric is None or own is None:
            return False
        return self.best is None or _sign(metric) * own[1] > _sign(metric) * self.best[1]

    def mark(self, step: int, *, writes: bool, keep: int | None = None) -> None:
        """``step``, whose checkpoint is written, is the best; the process that ``writes`` says so on the disk.

        All checkpoints are removed then but this one and the newest ``keep``; none where that is None.
        """
        metric = self.selection.keep_best
        assert metric is not None
        value = self.metrics[step][metric]
        self.best = step, value
        if writes:
            self.folder.mark_best(step, metric, value)
            if keep is not None:
                self.folder.prune(keep)

    def stop(self) -> str | None:
        """Why the run ends here, in words; None where it goes on."""
        return self.selection.stop(self.metrics)

    def restore(
        self, step: int, saved: object, *, writes: bool, is_due: Callable[[int], bool] = lambda step: True
    ) -> None:
        """Take up what was known after ``step``: by the state of its checkpoint, and by what was evaluated after that was written.

        The evaluation of ``step`` itself is left out where none ``is_due`` there: the run had its end there, and has no more.
        The mark is put right: a process may have been killed between an evaluation and what follows from it.
        """
        before: Mapping[Any, Any] = saved if isinstance(saved, Mapping) else {}
        rows = [row for row in self.folder.read_metrics() if row["step"] <= step]
        known = {int(at): dict(metrics) for at, metrics in before.items()}
        for row in rows:
            own = {name.removeprefix(PREFIX): value for name, value in row.items() if name.startswith(PREFIX)}
            if own:
                known[row["step"]] = own
        if step > 0 and not is_due(step):
            known.pop(step, None)
        self.metrics = known
        kept = checkpoint_steps(self.folder.path)
        # What is watched may be another metric than before, which earlier evaluations lack.
        has_it = {at: metrics for at, metrics in known.items() if at in kept and self.selection.keep_best in metrics}
        self.best = self.selection.best(has_it)
        if self.best is not None:
            self.mark(self.best[0], writes=writes)
        elif writes and self.selection.keep_best is not None:
            self.folder.forget_best()


def best_line(folder: RunFolder) -> str | None:
    """Which step of the run in ``folder`` is marked as the best, and how it is given; None where none is."""
    best = folder.read_best()
    if best is None:
        return None
    step, metric, value = best
    return f"best step: {step} ({heldout_metric(metric).words} {value:.4g}); its weights are {folder.path}@best"


def _sign(metric: str) -> int:
    return 1 if heldout_metric(metric).higher_is_better else -1


def _values(evaluations: MetricsByStep, metric: str) -> dict[int, float]:
    """The finite values of ``metric`` by step. Raises UserError where the newest evaluation lacks it."""
    newest = evaluations[max(evaluations)] if evaluations else {metric: 0.0}
    if metric not in newest:
        known = ", ".join(sorted(newest)) or "none, as nothing is held out"
        raise UserError(f"validation: {metric!r} is no metric of this run's evaluations", f"they have {known}")
    values = {step: metrics[metric] for step, metrics in evaluations.items() if metric in metrics}
    return {step: value for step, value in values.items() if math.isfinite(value)}
