"""What is watched while a language model learns, in training and on held-out texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluation.statistics import proportion_interval
from ..likelihoods.tokens import TokenLikelihood
from ..objectives.log_ratios import log_ratios, widen
from ..objectives.metrics import pair_metrics
from ..progress import progress
from ..types.texts import TextBatch
from ..types.training import Coupled, PairLogps, Step
from .preference import PreferenceStep

Batches = Callable[[Sequence[int], int], Any]


def token_metrics(logps: PairLogps) -> dict[str, Tensor]:
    """Per pair (B,), detached: how far both completions have moved, in nats, and how well the chosen one is known.

    logps/chosen_change and logps/rejected_change are policy minus reference, and left out without one. A loss on their
    difference falls even when the chosen completion grows less likely, as long as the rejected one does so faster; a
    negative logps/chosen_change tells. nll_loss is the negative log-likelihood of the chosen completion per token.
    """
    metrics: dict[str, Tensor] = {}
    if logps.reference_chosen is not None and logps.reference_rejected is not None:
        chosen, rejected = log_ratios(logps)
        metrics = {"logps/chosen_change": chosen.detach(), "logps/rejected_change": rejected.detach()}
    if logps.chosen_length is not None:
        policy = widen(logps.policy_chosen).detach()
        metrics["nll_loss"] = -policy / logps.chosen_length.to(policy)
    return metrics


@dataclass(frozen=True, slots=True)
class Means:
    """Means of a step's metrics over held-out examples, and the sums of the weights that they were taken with."""

    values: Mapping[str, float]
    weights: Mapping[str, float]


def step_means(step: Step[TextBatch], network: nn.Module, batches: Batches, passes: Sequence[Sequence[int]]) -> Means:
    """Run ``step`` on all ``passes`` without gradients: one batch as far as coupled objectives go. Draw 0, as always."""
    held = [batches(indices, 0) for indices in passes]
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    with torch.no_grad():
        if isinstance(step, Coupled):
            step = step.coupled(network, held, lambda values: [values])
        for batch in progress(held, desc="held-out texts", unit="batch", leave=False, disable=len(held) < 20):
            output = step(network, batch)
            for name, values in output.metrics.items():
                wide = values.double()
                weight = output.weights[name].to(wide) if name in output.weights else torch.ones_like(wide)
                sums[name] = sums.get(name, 0.0) + float((wide * weight).sum())
                weights[name] = weights.get(name, 0.0) + float(weight.sum())
    return Means({name: total / weights[name] for name, total in sums.items() if weights[name]}, weights)


def heldout_metrics(means: Means, *, chosen_logps: float, num_tokens: int, start: float | None) -> dict[str, float]:
    """The metrics of one evaluation.

    ``chosen_logps`` is the sum of the log-likelihoods of all chosen completions (nats), ``num_tokens`` the number of
    their tokens (0 where none was called good), ``start`` the same sum before the first update, None at that moment.

    - nll, perplexity: of the chosen completions, per token;
    - logps/chosen_change: mean over examples, against the reference, or against the start where there is none;
    - log_ratio: the same per token;
    - accuracy with its Wilson interval, ties half: how often the implicit reward prefers the chosen completion;
    - loss, rewards/*, logps/*: means of the step's own metrics.
    """
    kept = ("loss", "rewards/", "logps/", "kl")
    metrics = {name: value for name, value in means.values.items() if name.startswith(kept)}
    num = means.weights.get("logps/chosen", 0.0)
    if num_tokens:
        nll = -chosen_logps / num_tokens
        metrics |= {"nll": nll, "perplexity": math.exp(min(nll, 700.0))}
        if "logps/chosen_change" not in metrics and start is not None:
            metrics["logps/chosen_change"] = (chosen_logps - start) / num
        if "logps/chosen_change" in metrics:
            metrics["log_ratio"] = metrics["logps/chosen_change"] * num / num_tokens
    if "rewards/accuracies" in metrics:
        count = round(means.weights["rewards/accuracies"])
        metrics |= _accuracy(metrics.pop("rewards/accuracies") * count, count)
    return metrics


def _accuracy(right: float, num: int) -> dict[str, float]:
    interval = proportion_interval(right, num)
    return {"accuracy": interval.value, "accuracy_low": interval.low, "accuracy_high": interval.high}


def text_accuracy(
    step: PreferenceStep, network: nn.Module, batches: Batches, passes: Sequence[Sequence[int]]
) -> dict[str, float]:
    """How often the implicit reward prefers the chosen completion of a held-out pair, ties half, with its interval."""
    right = 0.0
    for indices in passes:
        with torch.no_grad():
            logps = step.logps(network, batches(indices, 0))
        right += float(pair_metrics(logps, beta=1.0)["rewards/accuracies"].double().sum())
    return _accuracy(right, sum(map(len, passes)))


def chosen_logps(
    likelihood: TokenLikelihood,
    network: nn.Module,
    batches: Callable[[Sequence[int], int], TextBatch],
    passes: Sequence[Sequence[int]],
) -> float:
    """Sum of the log-likelihoods of all chosen completions under ``network``, nats."""
    total = 0.0
    with torch.no_grad():
        for indices in passes:
            inputs = likelihood.chosen(likelihood.prepare(batches(indices, 0)))
            total += float(likelihood.logps(network, inputs).double().sum())
    return total
