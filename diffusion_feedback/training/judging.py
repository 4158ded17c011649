"""The step that teaches a model to judge: a reward model which completion is better, a scorer which image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..objectives.metrics import pair_metrics
from ..objectives.pairwise import preference_divergence
from ..objectives.ranking import own_logits
from ..types.images import PreferenceBatch
from ..types.texts import TextBatch
from ..types.training import PairLogps, StepOutput
from .heldout import Batches, Measured, Passes, Sums, sums_over
from .steps import StepParts, check_first_loss


@dataclass(frozen=True, slots=True)
class JudgingStep:
    """Chosen against rejected samples of a prompt, as the judge sees them that is the likelihood of ``parts``.

    An objective of kind ranking sees all scores, logits of prompts against images (B, 2B), which is PickScore's training;
    one of kind reward those of the pairs (``PairLogps``). Margins are handed to an objective that takes them; its
    settings say whether they count.
    """

    parts: StepParts

    @property
    def _ranks(self) -> bool:
        return self.parts.objective.kind == "ranking"

    def check(self) -> None:
        """Ask the objective for one loss, so that settings out of range are refused before the work begins."""
        scores = torch.zeros(2, 4) if self._ranks else torch.zeros(4)
        self.parts.objective.check_losses(self._seen(scores), examples=2, **self.parts.settings)

    def scores(self, network: nn.Module, batch: object) -> Tensor:
        """What the judge says of ``batch``: logits (B, 2B), or rewards (2B,), the chosen samples first."""
        inputs = self.parts.likelihood.prepare(batch)
        with self.parts.autocast():
            scores: Tensor = self.parts.likelihood.scores(network, inputs)
        return scores

    def pairs(self, scores: Tensor) -> PairLogps:
        """The scores of the chosen and the rejected sample of each prompt, each (B,)."""
        return own_logits(scores) if self._ranks else PairLogps.of_halves(scores)

    def _seen(self, scores: Tensor) -> Tensor | PairLogps:
        return scores if self._ranks else self.pairs(scores)

    def losses(self, scores: Tensor, batch: PreferenceBatch | TextBatch) -> Tensor:
        """Per-pair losses (B,), unweighted."""
        objective = self.parts.objective
        handed: dict[str, Tensor] = {}
        if isinstance(batch, TextBatch) and "margin" in objective.inputs:
            handed["margin"] = batch.margin.to(scores)
        if self.parts.soft_labels:
            handed["chosen_probability"] = batch.chosen_probability.to(scores)
        return objective(self._seen(scores), **handed, **self.parts.settings)  # type: ignore[no-any-return]

    def metrics(self, scores: Tensor) -> dict[str, Tensor]:
        """Rewards, margins and accuracies; of rewards also ``mean_reward``, which centring keeps near 0; each (B,)."""
        metrics = pair_metrics(self.pairs(scores), beta=1.0)
        rewards = {name: value for name, value in metrics.items() if name.startswith("rewards/")}
        if self._ranks:
            return rewards
        return {**rewards, "mean_reward": (rewards["rewards/chosen"] + rewards["rewards/rejected"]) / 2}

    def __call__(self, network: nn.Module, batch: PreferenceBatch | TextBatch) -> StepOutput:
        """Sum of weighted losses, and per-pair metrics."""
        scores = self.scores(network, batch)
        losses = self.losses(scores, batch)
        return StepOutput(self.parts.total(losses, batch), {"loss": losses.detach(), **self.metrics(scores)})

    def gate(self, network: nn.Module, batch: PreferenceBatch | TextBatch) -> dict[str, float]:
        """Check that the first loss is finite. Raises UserError when it is not."""
        with torch.no_grad():
            return check_first_loss(float(self.losses(self.scores(network, batch), batch).mean()))


def judging_sums(step: JudgingStep, network: nn.Module, batches: Batches, passes: Passes) -> Sums:
    """The metrics of held-out pairs, of which ``accuracy`` says how often the judge prefers the chosen sample.

    ``loss`` is the Bradley-Terry loss of the majority labels, without margin, centring and weights, whatever the run
    trains on: ln 2 for a judge that knows nothing, more for one that is sure and wrong. Ties have no majority: leave
    them out.
    """

    def measure(indices: Sequence[int]) -> Measured:
        scores = step.scores(network, batches(indices, 0))
        return {**step.metrics(scores), "loss": preference_divergence(step.pairs(scores))}, {}

    return sums_over(passes, measure, "pairs")
