"""The step of objectives on pairs that compare whole batches: ranks over the global batch, in however many parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..types import Collect, PairLogps, StepOutput
from .steps import PairwiseStep, StepParts, gate_against_reference


@dataclass(frozen=True, slots=True)
class PlacedStep:
    """The step of one update, after the look at its whole batch.

    ``population`` holds the log-probabilities of the global batch (N,); ``positions`` says for each batch of this process,
    by its identity, where its examples stand there (B,), and ``references`` what the reference says of it, (2B,).
    """

    parts: StepParts
    population: PairLogps
    positions: Mapping[int, Tensor]
    references: Mapping[int, Tensor]

    def __call__(self, network: nn.Module, batch: Any) -> StepOutput:
        """Sum of weighted losses, and per-pair metrics. Raises KeyError for a batch that was not looked at."""
        # What the look computed of the reference is not computed again.
        parts = dataclasses.replace(self.parts, reference_logps=lambda asked: self.references[id(asked)])
        step = PairwiseStep(parts)
        logps = step.logps(network, batch)
        places = self.positions[id(batch)].to(logps.policy_chosen.device)
        losses = step.losses(logps, batch, population=self.population, positions=places)
        return step.output(logps, losses, batch)


@dataclass(frozen=True, slots=True)
class CoupledStep:
    """Chosen against rejected, policy against reference, by their ranks in the global batch.

    ``coupled`` looks at all examples of an update without gradients; losses and gradients of the parts then add up to
    those of one large batch. Called by itself, the step takes the batch that it is given for the whole.
    """

    parts: StepParts

    def check(self) -> None:
        """Ask the objective for one loss, so that settings out of range are refused before the work begins."""
        PairwiseStep(self.parts).check()

    def logps(self, network: nn.Module, batch: Any) -> PairLogps:
        """Log-probabilities of ``batch`` under policy and reference, on the very same inputs."""
        return PairwiseStep(self.parts).logps(network, batch)

    def coupled(self, network: nn.Module, batches: Sequence[Any], collect: Collect) -> PlacedStep:
        """The step for ``batches``, this process's part of one update."""
        with torch.no_grad():
            found = [self.logps(network, batch) for batch in batches]
        own = np.concatenate([_rows(logps) for logps in found])
        device = found[0].policy_chosen.device
        gathered = collect(torch.from_numpy(own.reshape(-1)))
        everyone = np.concatenate([values.cpu().numpy().reshape(-1, 4) for values in gathered])
        # One order for every way of cutting the batch, so that ties are broken alike.
        everyone = everyone[np.lexsort(everyone.T)]
        population = PairLogps(*torch.from_numpy(everyone).to(device).unbind(1))
        positions, references = {}, {}
        for batch, logps in zip(batches, found, strict=True):
            positions[id(batch)] = torch.from_numpy(_places(_rows(logps), everyone))
            assert logps.reference_chosen is not None
            assert logps.reference_rejected is not None
            references[id(batch)] = torch.cat([logps.reference_chosen, logps.reference_rejected])
        return PlacedStep(self.parts, population, positions, references)

    def __call__(self, network: nn.Module, batch: Any) -> StepOutput:
        """Sum of weighted losses, and per-pair metrics, of ``batch`` as a whole."""
        step = PairwiseStep(self.parts)
        logps = step.logps(network, batch)
        return step.output(logps, step.losses(logps, batch), batch)

    def gate(self, network: nn.Module, batch: Any) -> dict[str, float]:
        """Check that policy and reference agree before the first update. Raises UserError when they do not."""
        step = PairwiseStep(self.parts)
        with torch.no_grad():
            logps = step.logps(network, batch)
            return gate_against_reference(self.parts, logps, lambda given: step.losses(given, batch))


def _rows(logps: PairLogps) -> Any:
    """Log-probabilities of policy and reference, chosen and rejected, (B, 4) float64."""
    assert logps.reference_chosen is not None
    assert logps.reference_rejected is not None
    columns = (logps.policy_chosen, logps.policy_rejected, logps.reference_chosen, logps.reference_rejected)
    return torch.stack([column.detach().double().cpu() for column in columns], 1).numpy()


def _places(rows: Any, everyone: Any) -> Any:
    """Where each of ``rows`` (B, 4) stands in ``everyone`` (N, 4); equal ones, as copies of a pair, share the first place."""
    return (rows[:, None, :] == everyone[None, :, :]).all(-1).argmax(1)
