"""Held-out implicit accuracy: how often the tuned model, as a judge against its reference, agrees with held-out labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..evaluation.statistics import proportion_interval
from ..objectives.metrics import denoising_metrics, pair_metrics
from ..progress import progress
from ..types.images import PreferenceBatch
from .preference import PreferenceStep


def implicit_accuracy(
    step: PreferenceStep,
    network: nn.Module,
    batches: Callable[[Sequence[int], int], PreferenceBatch],
    *,
    num_pairs: int,
    batch_size: int,
) -> dict[str, float]:
    """Accuracy of the implicit reward on held-out pairs, ties half, with its Wilson interval, and the two errors apart.

    Timesteps and noise are those of draw 0 under the step's own seed, so every evaluation asks the same questions.
    (Implicit reward: Eq. 8, arXiv:2311.12908.)
    """
    totals: dict[str, float] = {}
    starts = range(0, num_pairs, batch_size)
    for start in progress(starts, desc="held-out pairs", unit="batch", leave=False, disable=len(starts) < 20):
        batch = batches(list(range(start, min(start + batch_size, num_pairs))), 0)
        with torch.no_grad():
            logps = step.logps(network, batch)
        for name, values in {**pair_metrics(logps, beta=1.0), **denoising_metrics(logps)}.items():
            totals[name] = totals.get(name, 0.0) + float(values.cpu().double().sum())
    accuracy = proportion_interval(totals["rewards/accuracies"], num_pairs)
    errors = {name: value / num_pairs for name, value in totals.items() if name.startswith("error/")}
    return {"accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high, **errors}
