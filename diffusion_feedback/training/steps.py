"""Steps: (network, batch) to StepOutput. The kind of objective decides the step; model and data are handed in."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..objectives.metrics import denoising_metrics, pair_metrics, reward_scale
from ..objectives.reference_free import PER_TOKEN_REWARDS
from ..types import Batch, Likelihood, Objective, PairLogps, Reference, StepOutput, TextBatch

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class StepParts:
    """What every step is made of. ``autocast`` surrounds policy and reference alike, so both run the same kernels.

    ``reference`` is None for objectives that know no reference. ``reference_logps`` looks up what the reference says of a
    batch, (2B,), where that was computed before. ``starts_at_reference``: policy and reference must agree before the
    first update. ``pair_figures`` are what is watched besides the rewards.
    """

    likelihood: Likelihood
    reference: Reference | None
    objective: Objective
    settings: Mapping[str, Any]
    soft_labels: bool = False
    weighted: bool = True
    autocast: Autocast = nullcontext
    unwrap: Callable[[nn.Module], nn.Module] = lambda network: network
    reference_logps: Callable[[Any], Tensor] | None = None
    starts_at_reference: bool = True
    pair_figures: Callable[[PairLogps], Mapping[str, Tensor]] = denoising_metrics

    def total(self, losses: Tensor, batch: Batch) -> Tensor:
        """Sum of ``losses`` (B,), each times its pair's weight where weights count."""
        return weighted_total(losses, batch, weighted=self.weighted)


def weighted_total(losses: Tensor, batch: Batch, *, weighted: bool) -> Tensor:
    """Sum of ``losses`` (B,); where ``weighted``, each times its pair's weight."""
    return (losses * batch.weight.to(losses)).sum() if weighted else losses.sum()


def check_first_loss(loss: float) -> None:
    """Raise UserError unless the ``loss`` before the first update is finite."""
    if not loss < float("inf"):
        raise UserError(f"step 0: the loss is {loss}", "the weights or images hold values that are not finite")


def takes(objective: Objective, name: str) -> bool:
    """Whether ``objective`` asks for ``name`` besides log-probabilities."""
    return name in inspect.signature(objective).parameters


def gate_against_reference(
    parts: StepParts, logps: PairLogps, losses: Callable[[PairLogps], Tensor]
) -> dict[str, float]:
    """Figures of the check before the first update: ``losses`` at ``logps``, and how far these are from the reference.

    The largest difference in logit units, beta * |log-probability difference|, must stay below 1e-2: then dpo's
    loss is ln 2 and the accuracy one half, up to rounding. Raises UserError where it does not, and for a loss that is
    not finite; without a reference, or with one that policy does not start from, that is all that is checked. Of a
    denoiser the mean squared error is told too.
    """
    loss = float(losses(logps).mean())
    error = _first_error(parts, logps.policy_chosen, logps.policy_rejected)
    if logps.reference_chosen is None or logps.reference_rejected is None or not parts.starts_at_reference:
        check_first_loss(loss)
        return {"loss": loss, **error}
    differences = torch.cat(
        [logps.policy_chosen - logps.reference_chosen, logps.policy_rejected - logps.reference_rejected]
    )
    gap = reward_scale(parts.settings) * float(differences.abs().max())  # NaN where any is NaN
    equal = dataclasses.replace(logps, policy_chosen=logps.reference_chosen, policy_rejected=logps.reference_rejected)
    expected = float(losses(equal).mean())
    if not gap < 1e-2:
        problem = (
            f"step 0: policy and reference differ by {gap:.3g} in logit units; loss {loss:.6f}, expected {expected:.6f}"
        )
        raise UserError(
            problem, "the adapters do not start at zero, or the weights are not finite; nothing was trained"
        )
    return {"loss": loss, "expected_loss": expected, "max_logit_gap": gap, **error}


def _first_error(parts: StepParts, *logps: Tensor) -> dict[str, float]:
    """The mean squared error of a denoiser on the first batch; nothing for texts."""
    if parts.pair_figures is not denoising_metrics:
        return {}
    return {"error": float(-2 * torch.cat(logps).float().mean())}


@dataclass(frozen=True, slots=True)
class PairwiseStep:
    """Chosen against rejected, policy against reference: Diffusion-DPO and its relatives."""

    parts: StepParts

    def check(self) -> None:
        """Ask the objective for one loss, so that settings out of range are refused before the work begins."""
        parts = self.parts
        soft = parts.soft_labels and takes(parts.objective, "chosen_probability")
        label = {"chosen_probability": torch.ones(1)} if soft else {}
        parts.objective(PairLogps(*[torch.zeros(1) for _ in range(4)]), **label, **parts.settings)

    def logps(self, network: nn.Module, batch: Any) -> PairLogps:
        """Log-probabilities of ``batch`` under policy and reference, on the very same inputs."""
        parts = self.parts
        inputs = parts.likelihood.prepare(batch)
        reference = self._reference(network, batch, inputs)
        with parts.autocast():
            policy = parts.likelihood.logps(network, inputs)
        lengths = parts.likelihood.lengths(inputs)
        none: tuple[None, None] = (None, None)
        return PairLogps(
            *policy.chunk(2),
            *(none if reference is None else reference.chunk(2)),
            *(none if lengths is None else lengths.chunk(2)),
        )

    def _reference(self, network: nn.Module, batch: Any, inputs: Any) -> Tensor | None:
        parts = self.parts
        if parts.reference is None:
            return None
        if parts.reference_logps is not None:
            return parts.reference_logps(batch)
        with torch.no_grad(), parts.autocast(), parts.reference(parts.unwrap(network)) as frozen:
            return parts.likelihood.logps(frozen, inputs)

    def losses(self, logps: PairLogps, batch: Any, **more: Any) -> Tensor:
        """Per-pair losses (B,), unweighted; ``more`` goes to the objective as it is."""
        parts = self.parts
        if parts.soft_labels and takes(parts.objective, "chosen_probability"):
            more["chosen_probability"] = batch.chosen_probability.to(logps.policy_chosen)
        if isinstance(batch, TextBatch) and takes(parts.objective, "margin"):
            more["margin"] = batch.margin.to(logps.policy_chosen)
        return parts.objective(logps, **more, **parts.settings)

    def output(self, logps: PairLogps, losses: Tensor, batch: Any) -> StepOutput:
        """Sum of weighted ``losses`` (B,), and per-pair metrics."""
        parts = self.parts
        per_token = parts.objective in PER_TOKEN_REWARDS
        rewards = pair_metrics(logps, beta=reward_scale(parts.settings), per_token=per_token)
        return StepOutput(parts.total(losses, batch), {"loss": losses.detach(), **rewards, **parts.pair_figures(logps)})

    def __call__(self, network: nn.Module, batch: Any) -> StepOutput:
        """Sum of weighted losses, and per-pair metrics."""
        logps = self.logps(network, batch)
        return self.output(logps, self.losses(logps, batch), batch)

    def gate(self, network: nn.Module, batch: Any) -> dict[str, float]:
        """Check that policy and reference agree before the first update. Raises UserError when they do not."""
        with torch.no_grad():
            logps = self.logps(network, batch)
            return gate_against_reference(self.parts, logps, lambda given: self.losses(given, batch))


@dataclass(frozen=True, slots=True)
class PointwiseStep:
    """Chosen samples alone, without a reference: supervised fine-tuning."""

    parts: StepParts

    def check(self) -> None:
        """Ask the objective for one loss, so that settings out of range are refused before the work begins."""
        self.parts.objective(torch.zeros(1), **self.parts.settings)

    def __call__(self, network: nn.Module, batch: Any) -> StepOutput:
        """Sum of weighted losses over the chosen samples, and per-example metrics."""
        parts = self.parts
        inputs = parts.likelihood.chosen(parts.likelihood.prepare(batch))
        with parts.autocast():
            logps = parts.likelihood.logps(network, inputs)
        losses = parts.objective(logps, **parts.settings)
        metrics = {"loss": losses.detach(), "logps/chosen": logps.detach()}
        lengths = parts.likelihood.lengths(inputs)
        if lengths is None:
            return StepOutput(parts.total(losses, batch), metrics | {"error/chosen": -2 * logps.detach()})
        # Per token, as the loop divides it.
        per_token = metrics | {"loss": losses.detach() / lengths}
        return StepOutput(parts.total(losses, batch), per_token, {"loss": lengths})

    def gate(self, network: nn.Module, batch: Any) -> dict[str, float]:
        """Check that the first loss is finite. Raises UserError when it is not."""
        with torch.no_grad():
            metrics = self(network, batch).metrics
        loss = float(metrics["loss"].mean())
        check_first_loss(loss)
        return {"loss": loss, **({"error": float(metrics["error/chosen"].mean())} if "error/chosen" in metrics else {})}
