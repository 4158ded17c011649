"""A training run as it is compared and shown: its evaluations, what it says of held-out examples, and its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .statistics import Interval, mean_interval

Row = Mapping[str, Any]
_VALIDATION = "validation/"


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric of an evaluation by which a run is judged; ``even`` is what knowing nothing gives.

    ``of_each`` is the metric of single examples by which two runs are compared: higher is better.
    """

    key: str
    name: str
    higher_is_better: bool = True
    is_share: bool = False
    even: float | None = None
    of_each: str = ""


MEASURES = (
    Measure("accuracy", "accuracy", is_share=True, even=0.5, of_each="rewards/accuracies"),
    Measure("scores", "reward", of_each="scores"),
    Measure("perplexity", "perplexity", higher_is_better=False, of_each="logps/chosen"),
    Measure("nll", "negative log-likelihood", higher_is_better=False),
    Measure("loss", "loss", higher_is_better=False),
)
"""The first that the evaluations of a run know is what its page says first."""


@dataclass(frozen=True, slots=True)
class Change:
    """How far the ``side`` of held-out pairs has moved, from ``before`` to ``after``, with the interval of the change.

    ``quantity`` is "error", of which little is good, or "log-probability", nats.
    """

    side: str
    quantity: str
    before: float
    after: float
    bounds: Interval | None

    @property
    def share(self) -> float | None:
        """The change as a share of what was before; None of log-probabilities, which have no zero."""
        return (self.after - self.before) / self.before if self.quantity == "error" and self.before else None


@dataclass(frozen=True, slots=True)
class DrawnSamples:
    """What was drawn from prompts after a step, beside what the model drew from the same noise before training.

    ``before`` and ``after`` are texts, or the files of images; ``scores`` are what a judge gave to each of ``after``.
    ``source`` says how many the prompts are and where they come from.
    """

    step: int
    source: str
    prompts: Sequence[str]
    seeds: Sequence[int]
    before: Sequence[str | Path]
    after: Sequence[str | Path]
    scores: Sequence[float] = ()


@dataclass(frozen=True)
class TrainedRun:
    """What the folder of a training run tells, finished or not.

    Args:
        path: The folder.
        name: What it is called beside others.
        recipe: The resolved recipe, as plain values.
        rows: The lines of metrics.jsonl.
        heldout: By step, metrics of single held-out examples, and ``examples``, which says which they are.
        samples: By step, what was drawn.
        unit: What examples are called, in the plural.
        kind: The kind of model card.
        planned_steps: How many optimizer steps the whole run has; as many as were done where that is not known.
        plan: Lines on what is trained.
        warnings: What was left out, cut or guessed.
        environment: Versions, hardware and command.
        code: How the result is loaded; empty for a run that has none.
        is_finished: Whether the run came to its end.
        marked_best: The step that the run itself keeps as its best; None where it keeps none.
        history: Lines on settings that changed while it ran.
    """

    path: Path
    name: str
    recipe: Mapping[str, Any] = field(repr=False)
    rows: Sequence[Row] = field(repr=False)
    heldout: Mapping[int, Row] = field(default_factory=dict, repr=False)
    samples: Mapping[int, DrawnSamples] = field(default_factory=dict, repr=False)
    unit: str = "examples"
    kind: str = ""
    planned_steps: int = 0
    plan: Sequence[str] = ()
    warnings: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    code: str = field(default="", repr=False)
    is_finished: bool = True
    marked_best: int | None = None
    history: Sequence[str] = ()

    @cached_property
    def steps(self) -> list[Row]:
        """One row an optimizer step."""
        return [row for row in self.rows if row["step"] and not _is_evaluation(row)]

    @cached_property
    def evaluations(self) -> dict[int, dict[str, float]]:
        """The metrics of each evaluation by its step."""
        by_step = {row["step"]: row for row in self.rows if _is_evaluation(row)}
        return {
            step: {key.removeprefix(_VALIDATION): value for key, value in by_step[step].items() if _VALIDATION in key}
            for step in sorted(by_step)
        }

    @property
    def last_step(self) -> int:
        """The last step that was done; 0 for none."""
        return max((int(row["step"]) for row in self.rows), default=0)

    @property
    def seconds(self) -> float | None:
        """How long the run has worked, in all its parts; None where it was not recorded."""
        return max((float(row["seconds"]) for row in self.rows if "seconds" in row), default=None)

    @property
    def measure(self) -> Measure | None:
        """What the evaluations are judged by; None where there are none."""
        known = [set(metrics) for metrics in self.evaluations.values()][-1:]
        return next((each for each in MEASURES if known and each.key in known[0]), None)

    @property
    def last(self) -> int | None:
        """The step of the last evaluation."""
        return max(self.evaluations, default=None)

    @property
    def best(self) -> int | None:
        """The step that the run keeps as its best, else the one after which the held-out measure is best, the earliest of equals.

        None without evaluations of a step. Only ``marked_best`` is a step that RUN@best names.
        """
        if self.marked_best in self.evaluations:
            return self.marked_best
        if self.measure is None:
            return None
        key, sign = self.measure.key, 1 if self.measure.higher_is_better else -1
        known = {step: metrics[key] for step, metrics in self.evaluations.items() if step and key in metrics}
        return max(known, key=lambda step: (sign * known[step], -step), default=None)

    def estimate(self, step: int) -> Interval | None:
        """The measure after ``step`` with its 95 % interval, of no width where none is known."""
        metrics, measure = self.evaluations.get(step, {}), self.measure
        if measure is None or measure.key not in metrics:
            return None
        value = metrics[measure.key]
        low, high = (metrics.get(f"{measure.key}_{side}", value) for side in ("low", "high"))
        return Interval(value, low, high, self.num_heldout(step))

    def num_heldout(self, step: int) -> int:
        """How many held-out examples were evaluated after ``step``; 0 where that was not recorded."""
        return max(
            (len(values) for values in self.heldout.get(step, {}).values() if isinstance(values, list)), default=0
        )

    def values(self, step: int, name: str) -> list[float]:
        """The metric ``name`` of each held-out example after ``step``; empty where it was not recorded."""
        return list(self.heldout.get(step, {}).get(name, ()))

    def changes(self, step: int) -> list[Change]:
        """How far chosen and rejected samples have moved by ``step``, as far as the evaluation knows it."""
        metrics, changes = self.evaluations.get(step, {}), []
        for side in ("chosen", "rejected"):
            for prefix, quantity in (("error", "error"), ("logps", "log-probability")):
                after, change = metrics.get(f"{prefix}/{side}"), metrics.get(f"{prefix}/{side}_change")
                if after is not None and change is not None:
                    each = self.values(step, f"{prefix}/{side}_change") or self._since_start(step, f"{prefix}/{side}")
                    bounds = mean_interval(each) if len(each) > 1 else None
                    changes.append(Change(side, quantity, after - change, after, bounds))
        return changes

    def gain(self, step: int) -> Interval | None:
        """How far the measure moved from before training to ``step``, example by example; None where that is unknown."""
        each = self._since_start(step, self.measure.of_each) if self.measure is not None else []
        return mean_interval(each) if len(each) > 1 else None

    def _since_start(self, step: int, name: str) -> list[float]:
        return paired(self, 0, self, step, name)


def paired(first: TrainedRun, first_step: int, second: TrainedRun, second_step: int, name: str) -> list[float]:
    """``name`` of the second run less that of the first, example by example; empty unless these are the same examples."""
    examples = [run.heldout.get(step, {}).get("examples") for run, step in ((first, first_step), (second, second_step))]
    before, after = first.values(first_step, name), second.values(second_step, name)
    if None in examples or examples[0] != examples[1] or len(before) != len(after):
        return []
    return [b - a for a, b in zip(before, after, strict=True)]


def difference(first: TrainedRun, second: TrainedRun) -> Interval | None:
    """How far the second run is ahead of the first after their last evaluations, example by example, by their measure.

    None where they were not evaluated by one measure on the same examples.
    """
    if first.measure is None or first.measure != second.measure or first.last is None or second.last is None:
        return None
    each = paired(first, first.last, second, second.last, first.measure.of_each)
    return mean_interval(each) if len(each) > 1 else None


def _is_evaluation(row: Row) -> bool:
    return any(name.startswith(_VALIDATION) for name in row)
