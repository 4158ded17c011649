"""Steps: (network, batch) to StepOutput. The kind of objective decides the step; model and data are handed in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..catalog.rows import ObjectiveRow
from ..errors import UserError
from ..objectives.metrics import denoising_metrics, reward_scale
from ..types.training import Batch, PairLogps, Reference, StepOutput

_MOST_APART = 1e-2  # logit units between two models that are to be one
Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class StepParts:
    """What every step is made of. ``autocast`` surrounds policy and reference alike, so both run the same kernels.

    ``likelihood`` is a ``types.Likelihood``, or the ``types.SampleJudge`` of a step that teaches one. ``reference`` is None for
    objectives that know no reference, and where ``reference_logps`` looks up what the reference says of a
    batch, (2B,), where that was computed before. ``starts_at_reference``: policy and reference must agree before the
    first update; ``starts_elsewhere``: it begins with weights of its own. ``pair_metrics_of`` are what is watched besides the rewards.
    """

    likelihood: Any
    reference: Reference | None
    objective: ObjectiveRow
    settings: Mapping[str, Any]
    soft_labels: bool = False
    weighted: bool = True
    autocast: Autocast = nullcontext
    unwrap: Callable[[nn.Module], nn.Module] = lambda network: network
    reference_logps: Callable[[Any], Tensor] | None = None
    starts_at_reference: bool = True
    starts_elsewhere: bool = False
    pair_metrics_of: Callable[[PairLogps], Mapping[str, Tensor]] = denoising_metrics

    def total(self, losses: Tensor, batch: Batch) -> Tensor:
        """Sum of ``losses`` (B,), each times its pair's weight where weights count."""
        return (losses * batch.weight.to(losses)).sum() if self.weighted else losses.sum()


def check_first_loss(loss: float) -> dict[str, float]:
    """The ``loss`` before the first update, by its name. Raises UserError unless it is finite."""
    if not loss < float("inf"):
        raise UserError(f"step 0: the loss is {loss}", "the weights or images hold values that are not finite")
    return {"loss": loss}


def gate_against_reference(
    parts: StepParts, logps: PairLogps, losses: Callable[[PairLogps], Tensor]
) -> dict[str, float]:
    """Metrics of the check before the first update: ``losses`` at ``logps``, and how far these are from the reference.

    The largest difference in logit units, beta * |log-probability difference|, must stay below 1e-2: then dpo's
    loss is ln 2 and the accuracy one half, up to rounding. Raises UserError where it does not, and for a loss that is
    not finite; without a reference, or with one that policy does not start from, that is all that is checked. Where policy
    starts elsewhere on purpose, loss and difference are what they are, and are reported beside the loss of equal models.
    Of a denoiser the mean squared error is reported too.
    """
    loss = float(losses(logps).mean())
    error = {}
    if parts.pair_metrics_of is denoising_metrics:
        error = {"error": float(-2 * torch.cat([logps.policy_chosen, logps.policy_rejected]).float().mean())}
    is_compared = parts.starts_at_reference or parts.starts_elsewhere
    if logps.reference_chosen is None or logps.reference_rejected is None or not is_compared:
        return {**check_first_loss(loss), **error}
    differences = torch.cat(
        [logps.policy_chosen - logps.reference_chosen, logps.policy_rejected - logps.reference_rejected]
    )
    gap = reward_scale(parts.settings) * float(differences.abs().max())  # NaN where any is NaN
    limit = _MOST_APART if parts.starts_at_reference else float("inf")
    equal = dataclasses.replace(logps, policy_chosen=logps.reference_chosen, policy_rejected=logps.reference_rejected)
    expected = float(losses(equal).mean())
    if not gap < limit:
        problem = (
            f"step 0: policy and reference differ by {gap:.3g} in logit units; loss {loss:.6f}, expected {expected:.6f}"
        )
        raise UserError(
            problem, "the adapters do not start at zero, or the weights are not finite; nothing was trained"
        )
    return {"loss": loss, "expected_loss": expected, "max_logit_gap": gap, **error}


def check_repeats(parts: StepParts, first: Tensor, second: Tensor) -> dict[str, float]:
    """How far two passes of the reference (2B,) on the same draws differ, in logit units.

    Raises UserError where that is 1e-2 or more: then policy and reference cannot be compared.
    """
    gap = reward_scale(parts.settings) * float((first - second).abs().max())
    if not gap < _MOST_APART:
        problem = f"step 0: two passes of the reference differ by {gap:.3g} in logit units"
        raise UserError(problem, "it draws at random in its forward pass, or its weights are not finite")
    return {"max_reference_gap": gap}


@dataclass(frozen=True, slots=True)
class PointwiseStep:
    """Chosen samples alone, without a reference: supervised fine-tuning."""

    parts: StepParts

    def check(self) -> None:
        """Ask the objective for one loss, so that settings out of range are refused before the work begins."""
        self.parts.objective.check_losses(torch.zeros(2), examples=2, **self.parts.settings)

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

    def gate(self, network: nn.Module, batch: object) -> dict[str, float]:
        """Check that the first loss is finite. Raises UserError when it is not."""
        with torch.no_grad():
            metrics = self(network, batch).metrics
        error = {"error": float(metrics["error/chosen"].mean())} if "error/chosen" in metrics else {}
        return {**check_first_loss(float(metrics["loss"].mean())), **error}
