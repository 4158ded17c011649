"""Metrics of examples, summed over passes and processes with their weights, to the means of a whole update."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..types.training import StepOutput

_WEIGHT = "weight of "


def weighted_sums(output: StepOutput) -> dict[str, Tensor]:
    """Weighted sums of the metrics of ``output``, and the sums of their weights under names of their own."""
    sums: dict[str, Tensor] = {}
    for name, values in output.metrics.items():
        weights = output.weights.get(name)
        wide = values.float()
        sums[name] = (wide if weights is None else wide * weights.to(wide)).sum()
        sums[_WEIGHT + name] = wide.new_tensor(len(wide)) if weights is None else weights.to(wide).sum()
    return sums


def weighted_means(totals: Mapping[str, float]) -> dict[str, float]:
    """The means of what ``weighted_sums`` gave, summed over all passes; what no example had says nothing."""
    return {
        name: total / totals[_WEIGHT + name]
        for name, total in totals.items()
        if not name.startswith(_WEIGHT) and totals[_WEIGHT + name]
    }
