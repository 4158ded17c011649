"""The step of objectives whose point of reference is a running mean over the run, and of sums that may hold one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..objectives.metrics import reward_scale
from ..types import PairLogps, StepOutput
from .steps import PairwiseStep, StepParts, gate_against_reference, takes


@dataclass(slots=True)
class ShiftedStep:
    """``PairwiseStep`` that hands its objective the mean log-ratio of the samples of all earlier updates.

    The mean moves once an update, by the figures of the global batch: it is the same in all processes and for every way
    of cutting a batch into passes. ``updates`` counts them.
    """

    parts: StepParts
    mean_log_ratio: float = 0.0
    updates: int = 0

    def check(self) -> None:
        """Ask the objective for one loss, so that settings out of range are refused before the work begins."""
        PairwiseStep(self.parts).check()

    def logps(self, network: nn.Module, batch: Any) -> PairLogps:
        """Log-probabilities of ``batch`` under policy and reference, on the very same inputs."""
        return PairwiseStep(self.parts).logps(network, batch)

    def losses(self, logps: PairLogps, batch: Any) -> Tensor:
        """Per-pair losses (B,), unweighted."""
        more = {}
        if takes(self.parts.objective, "mean_log_ratio"):
            more["mean_log_ratio"] = torch.tensor(self.mean_log_ratio, dtype=torch.float64)
        return PairwiseStep(self.parts).losses(logps, batch, **more)

    def __call__(self, network: nn.Module, batch: Any) -> StepOutput:
        """Sum of weighted losses, and per-pair metrics."""
        logps = self.logps(network, batch)
        return PairwiseStep(self.parts).output(logps, self.losses(logps, batch), batch)

    def gate(self, network: nn.Module, batch: Any) -> dict[str, float]:
        """Check that policy and reference agree before the first update. Raises UserError when they do not."""
        with torch.no_grad():
            logps = self.logps(network, batch)
            return gate_against_reference(self.parts, logps, lambda given: self.losses(given, batch))

    def observe(self, network: nn.Module, metrics: Mapping[str, float]) -> None:
        """Take the samples of an update into the mean; updates are of one size, so they count alike."""
        rewards = (metrics["rewards/chosen"] + metrics["rewards/rejected"]) / 2
        self.updates += 1
        self.mean_log_ratio += (rewards / reward_scale(self.parts.settings) - self.mean_log_ratio) / self.updates

    def state_dict(self) -> dict[str, Tensor]:
        """The mean and the number of updates behind it."""
        return {
            "mean_log_ratio": torch.tensor(self.mean_log_ratio, dtype=torch.float64),
            "updates": torch.tensor(self.updates),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.mean_log_ratio, self.updates = float(state["mean_log_ratio"]), int(state["updates"])
