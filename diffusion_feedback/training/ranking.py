"""The step that teaches a scorer to rank: no reference, no draws, logits of prompts against images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..catalog.rows import ObjectiveRow
from ..evaluation.statistics import proportion_interval
from ..objectives.metrics import pair_metrics
from ..objectives.ranking import own_logits, pickscore
from ..progress import progress
from ..types.images import PreferenceBatch
from ..types.training import Ranker, StepOutput
from .steps import Autocast, check_first_loss, weighted_total


@dataclass(frozen=True, slots=True)
class RankingStep:
    """Chosen against rejected images of a prompt, as a scorer sees them: PickScore's training.

    ``soft_labels`` hands vote shares to the objective, ``weighted`` counts the pairs' weights.
    """

    ranker: Ranker[Any]
    objective: ObjectiveRow
    settings: Mapping[str, Any]
    soft_labels: bool = False
    weighted: bool = True
    autocast: Autocast = nullcontext

    def check(self) -> None:
        """Ask the objective for one loss, so that settings out of range are refused before the work begins."""
        self.objective.check_losses(torch.zeros(2, 4), examples=2, **self.settings)

    def logits(self, network: nn.Module, batch: PreferenceBatch) -> Tensor:
        """Logits of ``batch``, (B, 2B) float32."""
        inputs = self.ranker.prepare(batch)
        with self.autocast():
            return self.ranker.logits(network, inputs)

    def losses(self, logits: Tensor, batch: PreferenceBatch) -> Tensor:
        """Per-pair losses (B,), unweighted."""
        soft = {"chosen_probability": batch.chosen_probability.to(logits)} if self.soft_labels else {}
        return self.objective(logits, **soft, **self.settings)  # type: ignore[no-any-return]

    def __call__(self, network: nn.Module, batch: PreferenceBatch) -> StepOutput:
        """Sum of weighted losses, and per-pair metrics."""
        logits = self.logits(network, batch)
        losses = self.losses(logits, batch)
        metrics = {"loss": losses.detach(), **_rewards(logits)}
        return StepOutput(weighted_total(losses, batch, weighted=self.weighted), metrics)

    def gate(self, network: nn.Module, batch: PreferenceBatch) -> dict[str, float]:
        """Check that the first loss is finite. Raises UserError when it is not."""
        with torch.no_grad():
            loss = float(self.losses(self.logits(network, batch), batch).mean())
        check_first_loss(loss)
        return {"loss": loss}


def _rewards(logits: Tensor) -> dict[str, Tensor]:
    metrics = pair_metrics(own_logits(logits), beta=1.0)
    return {name: value for name, value in metrics.items() if name.startswith("rewards/")}


def ranking_accuracy(
    step: RankingStep,
    network: nn.Module,
    batches: Callable[[Sequence[int], int], PreferenceBatch],
    *,
    num_pairs: int,
    batch_size: int,
) -> dict[str, float]:
    """How often the scorer prefers the held-out choice, equal scores half, with its Wilson interval; and the mean loss.

    ``loss`` is the pair loss of PickScore's objective on the majority labels, unweighted, whatever the run trains on:
    ln 2 for a scorer that knows nothing, more for one that is sure and wrong. Ties have no majority: leave them out.
    """
    accurate, loss = 0.0, 0.0
    starts = range(0, num_pairs, batch_size)
    for start in progress(starts, desc="held-out pairs", unit="batch", leave=False, disable=len(starts) < 20):
        batch = batches(list(range(start, min(start + batch_size, num_pairs))), 0)
        with torch.no_grad():
            logits = step.logits(network, batch)
        accurate += float(_rewards(logits)["rewards/accuracies"].cpu().double().sum())
        loss += float(pickscore(logits).cpu().double().sum())
    interval = proportion_interval(accurate, num_pairs)
    return {
        "accuracy": interval.value,
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "loss": loss / num_pairs,
    }
