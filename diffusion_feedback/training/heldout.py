"""What is measured on held-out examples: sums over all of them, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..evaluation.statistics import proportion_interval
from ..objectives.metrics import pair_metrics
from ..progress import progress
from ..types.training import Coupled, Step
from .preference import PreferenceStep

Batches = Callable[[Sequence[int], int], Any]
Passes = Sequence[Sequence[int]]
"""The examples of each forward pass; together they are all examples, once."""

Measured = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""Metrics (B,) of the examples of a pass, and the weights (B,) of those of the same name where there are some."""

PassT = TypeVar("PassT")
_OF_EACH = {
    "rewards/accuracies",
    "error/chosen_change",
    "error/rejected_change",
    "logps/chosen",
    "logps/chosen_change",
    "logps/rejected_change",
}


@dataclass(frozen=True, slots=True)
class Sums:
    """Weighted sums over examples of what is known of each, and the sums of the weights.

    ``values`` are those metrics of single examples by which runs are compared, in the order in which they were seen.
    """

    totals: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Add ``metrics`` (B,) of a batch, by the ``weights`` (B,) of the same name where there are some."""
        for name, values in metrics.items():
            wide = values.cpu().double()  # some devices have no float64
            weight = weights[name].to(wide) if name in weights else torch.ones_like(wide)
            self.totals[name] = self.totals.get(name, 0.0) + float((wide * weight).sum())
            self.weights[name] = self.weights.get(name, 0.0) + float(weight.sum())
            if name in _OF_EACH:
                self.values.setdefault(name, []).extend(wide.tolist())

    def means(self) -> dict[str, float]:
        """The weighted means of what some example had."""
        return {name: total / self.weights[name] for name, total in self.totals.items() if self.weights[name]}

    def of_each(self, passes: Passes) -> dict[str, list[float]]:
        """``values`` in the order of the examples, which came in ``passes``; those alone that all examples have."""
        seen = [index for indices in passes for index in indices]
        return {
            name: [value for _, value in sorted(zip(seen, values, strict=True))]
            for name, values in self.values.items()
            if len(values) == len(seen)
        }

    def accuracy(self) -> dict[str, float]:
        """How often the chosen sample was preferred, ties half, with its 95 % Wilson interval; nothing without pairs."""
        name = "rewards/accuracies"
        if name not in self.totals:
            return {}
        interval = proportion_interval(self.totals[name], round(self.weights[name]))
        return {"accuracy": interval.value, "accuracy_low": interval.low, "accuracy_high": interval.high}


def sums_over(passes: Sequence[PassT], measure: Callable[[PassT], Measured], what: str) -> Sums:
    """Sums over all ``passes`` of what ``measure`` says of the examples of one; ``what`` these are, in words."""
    sums = Sums()
    with torch.no_grad():
        for each in progress(passes, desc=f"held-out {what}", unit="batch", leave=False, disable=len(passes) < 20):
            sums.add(*measure(each))
    return sums


def step_sums(step: Step[Any], network: nn.Module, batches: Batches, passes: Passes, what: str) -> Sums:
    """Sums of the metrics of ``step``; all passes are one batch as far as coupled objectives go. Draw 0, as always."""
    held = [batches(indices, 0) for indices in passes]
    if isinstance(step, Coupled):
        step = step.coupled(network, held, lambda values: [values])

    def measure(batch: object) -> Measured:
        output = step(network, batch)
        return output.metrics, output.weights

    return sums_over(held, measure, what)


def implicit_sums(step: PreferenceStep, network: nn.Module, batches: Batches, passes: Passes) -> Sums:
    """How the tuned model, as a judge against its reference, sees held-out pairs; of a denoiser its errors too.

    ``accuracy`` is that of the implicit reward (Eq. 8, arXiv:2311.12908), ties half. Timesteps and noise are those of
    draw 0 under the step's own seed, so every evaluation asks the same questions.
    """

    def measure(indices: Sequence[int]) -> Measured:
        logps = step.logps(network, batches(indices, 0))
        return {**pair_metrics(logps, beta=1.0), **step.parts.pair_metrics_of(logps)}, {}

    return sums_over(passes, measure, "pairs")


def even_passes(num_examples: int, size: int) -> list[list[int]]:
    """All examples in their order, ``size`` a pass."""
    return [list(range(start, min(start + size, num_examples))) for start in range(0, num_examples, size)]
