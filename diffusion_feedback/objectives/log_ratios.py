"""What every objective starts from: log-ratios of policy to reference, in float32 or wider, and checked settings.

Notation: h = log p_policy - log p_reference of one sample; d = h_chosen - h_rejected; z = beta * d.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import UserError
from ..types import PairLogps


def widen(values: Tensor) -> Tensor:
    """Half precision to float32, wider types as they are: beta * d has more digits than half precision holds."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def log_ratios(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """h of the chosen and of the rejected samples, each (B,); no gradient reaches the reference.

    Raises UserError when there is no reference, ValueError when the four are not all of one shape (B,).
    """
    if logps.reference_chosen is None or logps.reference_rejected is None:
        raise UserError("this objective compares the policy with a reference, and none was given", "use a reference")
    chosen, rejected = logps.policy_chosen, logps.policy_rejected
    shapes = [tuple(t.shape) for t in (chosen, rejected, logps.reference_chosen, logps.reference_rejected)]
    if len(shapes[0]) != 1 or len(set(shapes)) != 1:
        raise ValueError(f"log-probabilities must all have one shape (B,), got {shapes}")
    # Policy minus reference first: the two are close, so this subtraction loses nothing where the sums are large.
    return (
        widen(chosen) - widen(logps.reference_chosen).detach(),
        widen(rejected) - widen(logps.reference_rejected).detach(),
    )


def log_ratio_margin(logps: PairLogps) -> Tensor:
    """d = h_chosen - h_rejected, (B,); zero where policy and reference agree. Raises as ``log_ratios`` does."""
    chosen, rejected = log_ratios(logps)
    return chosen - rejected


def check_beta(beta: float) -> None:
    """Raise UserError unless ``beta`` is finite and above 0."""
    if not 0 < beta < math.inf:
        raise UserError(f"objective.beta: got {beta!r}", "allowed: a finite number above 0")


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise UserError unless ``label_smoothing`` lies in [0, 0.5); at 0.5 a label says nothing, beyond it lies."""
    if not 0 <= label_smoothing < 0.5:
        raise UserError(f"objective.label_smoothing: got {label_smoothing!r}", "allowed: 0 to below 0.5")
