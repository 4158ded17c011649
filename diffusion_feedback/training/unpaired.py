"""The step of objectives on single samples that were called desirable or undesirable."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..objectives.metrics import pair_metrics, reward_scale
from ..objectives.unpaired import unpaired_log_ratios
from ..types import Collect, PairLogps, StepOutput, UnpairedBatch, UnpairedLogps
from .steps import PairwiseStep, StepParts, check_first_loss, gate_against_reference, takes


@dataclass(frozen=True, slots=True)
class UnpairedStep:
    """Each sample against the reference: completions with a label (``UnpairedBatch``), or the two samples of a pair.

    A pair counts as one example: its chosen sample is desirable, its rejected one is not, and its loss is the mean of
    both. ``kl`` is the divergence of policy from reference over the global batch, a scalar >= 0: ``coupled`` estimates it
    once an update where the objective asks for it, on prompts with the samples of others. It is max(0, mean log-ratio);
    pairs of images are shown with the prompts of other pairs, under the same timestep and noise.
    """

    parts: StepParts
    kl: Tensor | None = None

    def check(self) -> None:
        """Ask the objective for one loss, so that settings out of range are refused before the work begins."""
        one = torch.zeros(1)
        self.parts.objective(UnpairedLogps(one, one, one.bool()), **self.parts.settings)

    def coupled(self, network: nn.Module, batches: Sequence[Any], collect: Collect) -> UnpairedStep:
        """The step for ``batches``, this process's part of one update, with the divergence of the global batch."""
        if not takes(self.parts.objective, "kl"):
            return self
        with torch.no_grad():
            found = [self._mismatched(network, batch).double() for batch in batches]
        everyone = torch.cat(collect(torch.cat(found)))
        # In one order for every way of cutting the batch, so that the sum is the same to the last digit.
        return dataclasses.replace(self, kl=torch.sort(everyone).values.mean().clamp(min=0))

    def _mismatched(self, network: nn.Module, batch: Any) -> Tensor:
        """Log-ratios of samples under prompts that they do not belong to: (B,), or (2B,) for pairs."""
        likelihood: Any = self.parts.likelihood
        if isinstance(batch, UnpairedBatch):
            inputs = likelihood.prepare_sequences(batch.mismatched)
        else:
            inputs = likelihood.prepare(dataclasses.replace(batch, prompts=batch.mismatched))
        policy, reference = self._both(network, inputs)
        return policy - reference

    def _both(self, network: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
        """Log-probabilities of ``inputs`` under policy and reference."""
        parts = self.parts
        if parts.reference is None:
            raise UserError(
                "this objective compares the policy with a reference, and none was given", "use a reference"
            )
        with torch.no_grad(), parts.autocast(), parts.reference(parts.unwrap(network)) as frozen:
            reference = parts.likelihood.logps(frozen, inputs)
        with parts.autocast():
            return parts.likelihood.logps(network, inputs), reference

    def _losses(self, logps: UnpairedLogps) -> Tensor:
        handed = {} if self.kl is None else {"kl": self.kl}
        return self.parts.objective(logps, **handed, **self.parts.settings)

    def _pair_losses(self, logps: PairLogps) -> Tensor:
        """Mean loss of the two samples of each pair, (B,)."""
        assert logps.reference_chosen is not None
        assert logps.reference_rejected is not None
        policy = torch.cat([logps.policy_chosen, logps.policy_rejected])
        reference = torch.cat([logps.reference_chosen, logps.reference_rejected])
        desirable = torch.arange(len(policy), device=policy.device) < len(logps.policy_chosen)
        chosen, rejected = self._losses(UnpairedLogps(policy, reference, desirable)).chunk(2)
        return (chosen + rejected) / 2

    def logps(self, network: nn.Module, batch: UnpairedBatch) -> UnpairedLogps:
        """Log-probabilities of single samples under policy and reference."""
        likelihood: Any = self.parts.likelihood
        policy, reference = self._both(network, likelihood.prepare_sequences(batch.samples))
        return UnpairedLogps(policy, reference, batch.desirable.to(policy.device))

    def __call__(self, network: nn.Module, batch: Any) -> StepOutput:
        """Sum of weighted losses, and metrics of each example."""
        parts, beta = self.parts, reward_scale(self.parts.settings)
        if isinstance(batch, UnpairedBatch):
            logps = self.logps(network, batch)
            losses = self._losses(logps)
            metrics, weights = _sample_metrics(logps, beta)
        else:
            pairs = PairwiseStep(parts).logps(network, batch)
            losses, weights = self._pair_losses(pairs), {}
            metrics = {**pair_metrics(pairs, beta=beta), **parts.pair_figures(pairs)}
        if self.kl is not None:
            metrics["kl"] = self.kl.to(losses).expand(len(losses))
        return StepOutput(parts.total(losses, batch), {"loss": losses.detach(), **metrics}, weights)

    def gate(self, network: nn.Module, batch: Any) -> dict[str, float]:
        """Check that policy and reference agree before the first update. Raises UserError when they do not."""
        with torch.no_grad():
            if not isinstance(batch, UnpairedBatch):
                pairs = PairwiseStep(self.parts).logps(network, batch)
                return gate_against_reference(self.parts, pairs, self._pair_losses)
            logps = self.logps(network, batch)
            if not self.parts.starts_at_reference:
                loss = float(self._losses(logps).mean())
                check_first_loss(loss)
                return {"loss": loss}
            # The same sample twice makes a pair of which the gate is known.
            twice = PairLogps(logps.policy, logps.policy, logps.reference, logps.reference)
            return gate_against_reference(
                self.parts,
                twice,
                lambda given: self._losses(dataclasses.replace(logps, policy=given.policy_chosen)),
            )


def _sample_metrics(logps: UnpairedLogps, beta: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rewards and log-probabilities of desirable (chosen) and undesirable (rejected) samples, and the weights that keep
    them apart: 1 for samples of their own kind, 0 for others.
    """
    rewards, policy = (beta * unpaired_log_ratios(logps)).detach(), logps.policy.detach().float()
    desirable = logps.desirable.to(rewards)
    sides = {"chosen": desirable, "rejected": 1 - desirable}
    metrics = {f"{name}/{side}": values for name, values in (("rewards", rewards), ("logps", policy)) for side in sides}
    return metrics, {name: sides[name.rpartition("/")[2]] for name in metrics}
