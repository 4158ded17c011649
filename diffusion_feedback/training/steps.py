"""Steps: (network, batch) to StepOutput. The kind of objective decides the step; model and data are handed in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..objectives.metrics import denoising_metrics, pair_metrics
from ..types import Batch, Likelihood, Objective, PairLogps, Reference, StepOutput

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


@dataclass(frozen=True, slots=True)
class PairwiseStep:
    """Chosen against rejected, policy against reference: Diffusion-DPO and its relatives."""

    parts: StepParts

    def check(self) -> None:
        """Ask the objective for one loss, so that settings out of range are refused before the work begins."""
        self.parts.objective(PairLogps(*[torch.zeros(1) for _ in range(4)]), **self.parts.settings)

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

    def losses(self, logps: PairLogps, batch: Any) -> Tensor:
        """Per-pair losses (B,), unweighted."""
        soft: dict[str, Tensor] = {}
        if self.parts.soft_labels and "chosen_probability" in inspect.signature(self.parts.objective).parameters:
            soft["chosen_probability"] = batch.chosen_probability.to(logps.policy_chosen)
        return self.parts.objective(logps, **soft, **self.parts.settings)

    def __call__(self, network: nn.Module, batch: Any) -> StepOutput:
        """Sum of weighted losses, and per-pair metrics."""
        parts, logps = self.parts, self.logps(network, batch)
        losses = self.losses(logps, batch)
        beta = float(parts.settings.get("beta", 1.0))
        metrics = {"loss": losses.detach(), **pair_metrics(logps, beta=beta), **parts.pair_figures(logps)}
        return StepOutput(parts.total(losses, batch), metrics)

    def gate(self, network: nn.Module, batch: Any) -> dict[str, float]:
        """Check that policy and reference agree before the first update. Raises UserError when they do not.

        The largest difference in logit units, beta * |log-probability difference|, must stay below 1e-2: then dpo's
        loss is ln 2 and the accuracy one half, up to rounding.
        """
        with torch.no_grad():
            logps = self.logps(network, batch)
            loss = float(self.losses(logps, batch).mean())
        if logps.reference_chosen is None or logps.reference_rejected is None or not self.parts.starts_at_reference:
            check_first_loss(loss)
            return {"loss": loss}
        differences = torch.cat(
            [logps.policy_chosen - logps.reference_chosen, logps.policy_rejected - logps.reference_rejected]
        )
        beta = float(self.parts.settings.get("beta", 1.0))
        gap = float(differences.abs().max())  # NaN where any is NaN
        equal = PairLogps(*[torch.zeros_like(logps.policy_chosen) for _ in range(4)])
        expected = float(self.losses(equal, batch).mean())
        if not beta * gap < 1e-2:
            problem = f"step 0: policy and reference differ by {beta * gap:.3g} in logit units; loss {loss:.6f}, expected {expected:.6f}"
            raise UserError(
                problem, "the adapters do not start at zero, or the weights are not finite; nothing was trained"
            )
        return {"loss": loss, "expected_loss": expected, "max_logit_gap": beta * gap}


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
            loss = float(self(network, batch).metrics["loss"].mean())
        check_first_loss(loss)
        return {"loss": loss}
