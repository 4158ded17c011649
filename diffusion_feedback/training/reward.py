"""The step that teaches a reward model which completion is better, and its held-out accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..catalog.rows import ObjectiveRow
from ..evaluation.statistics import proportion_interval
from ..objectives.metrics import pair_metrics
from ..objectives.pairwise import preference_divergence
from ..progress import progress
from ..types.texts import TextBatch
from ..types.training import PairLogps, StepOutput
from .steps import Autocast, check_first_loss, weighted_total

InputsT = TypeVar("InputsT")


class Rewards(Protocol[InputsT]):
    """Scores whole texts under a network that is being taught to judge."""

    def prepare(self, batch: TextBatch) -> InputsT:
        """Pad the texts of ``batch``, once."""
        ...

    def rewards(self, network: nn.Module, inputs: InputsT) -> Tensor:
        """(2B,) float32: the chosen texts first."""
        ...


@dataclass(frozen=True, slots=True)
class RewardStep:
    """Chosen against rejected completions of a prompt, as a reward model sees them.

    ``soft_labels`` hands vote shares to the objective, ``weighted`` counts the pairs' weights. Margins are handed to
    an objective that takes them; its settings say whether they count.
    """

    judge: Rewards[Any]
    objective: ObjectiveRow
    settings: Mapping[str, Any]
    soft_labels: bool = False
    weighted: bool = True
    autocast: Autocast = nullcontext

    def check(self) -> None:
        """Ask the objective for one loss, so that settings out of range are refused before the work begins."""
        self.objective.check_losses(PairLogps(torch.zeros(2), torch.zeros(2)), examples=2, **self.settings)

    def scores(self, network: nn.Module, batch: TextBatch) -> PairLogps:
        """Rewards of chosen and rejected completions, each (B,)."""
        inputs = self.judge.prepare(batch)
        with self.autocast():
            rewards = self.judge.rewards(network, inputs)
        return PairLogps.of_halves(rewards)

    def losses(self, scores: PairLogps, batch: TextBatch) -> Tensor:
        """Per-pair losses (B,), unweighted."""
        like = scores.policy_chosen
        handed = {"margin": batch.margin.to(like)} if "margin" in self.objective.inputs else {}
        if self.soft_labels:
            handed["chosen_probability"] = batch.chosen_probability.to(like)
        return self.objective(scores, **handed, **self.settings)  # type: ignore[no-any-return]

    def __call__(self, network: nn.Module, batch: TextBatch) -> StepOutput:
        """Sum of weighted losses, and per-pair metrics."""
        scores = self.scores(network, batch)
        losses = self.losses(scores, batch)
        return StepOutput(
            weighted_total(losses, batch, weighted=self.weighted), {"loss": losses.detach(), **_score_metrics(scores)}
        )

    def gate(self, network: nn.Module, batch: TextBatch) -> dict[str, float]:
        """Check that the first loss is finite. Raises UserError when it is not."""
        with torch.no_grad():
            loss = float(self.losses(self.scores(network, batch), batch).mean())
        check_first_loss(loss)
        return {"loss": loss}


def _score_metrics(scores: PairLogps) -> dict[str, Tensor]:
    """Rewards, margins and accuracies, and ``mean_reward``, which centring keeps near 0; each (B,)."""
    metrics = pair_metrics(scores, beta=1.0)
    rewards = {name: value for name, value in metrics.items() if name.startswith("rewards/")}
    return {**rewards, "mean_reward": (rewards["rewards/chosen"] + rewards["rewards/rejected"]) / 2}


def reward_accuracy(
    step: RewardStep,
    network: nn.Module,
    batches: Callable[[Sequence[int], int], TextBatch],
    passes: Sequence[Sequence[int]],
) -> dict[str, float]:
    """How often the reward model prefers the held-out choice, equal scores half, with its Wilson interval; and more.

    ``loss`` is the Bradley-Terry loss of the majority labels, without margin, centring and weights, whatever the run
    trains on: ln 2 for a model that knows nothing. ``margin`` and ``mean_reward`` are means over pairs. ``passes`` are
    the pairs of each forward pass; together they are all pairs, once.
    """
    totals: dict[str, float] = {}
    for indices in progress(passes, desc="held-out pairs", unit="batch", leave=False, disable=len(passes) < 20):
        with torch.no_grad():
            scores = step.scores(network, batches(indices, 0))
        metrics = {**_score_metrics(scores), "loss": preference_divergence(scores)}
        for name, values in metrics.items():
            totals[name] = totals.get(name, 0.0) + float(values.cpu().double().sum())
    num = sum(map(len, passes))
    accuracy = proportion_interval(totals["rewards/accuracies"], num)
    return {
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "loss": totals["loss"] / num,
        "margin": totals["rewards/margins"] / num,
        "mean_reward": totals["mean_reward"] / num,
    }
