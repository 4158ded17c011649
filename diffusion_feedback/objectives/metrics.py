"""What is watched while training on pairs: per example (B,), detached; the caller averages over the global batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..types.training import PairLogps
from .log_ratios import check_beta, log_ratios, token_means, widen


def reward_scale(settings: Mapping[str, Any]) -> float:
    """The beta by which an objective with ``settings`` measures rewards: its own, that of its first term with one, or 1."""
    with_beta = (part for part in (settings, *settings.get("terms", ())) if "beta" in part)
    return float(next(with_beta, {"beta": 1.0})["beta"])


def pair_metrics(logps: PairLogps, *, beta: float, per_token: bool = False) -> dict[str, Tensor]:
    """Implicit rewards and what follows from them, each (B,) and detached; ``beta`` > 0.

    - rewards/chosen, rewards/rejected: beta * log(policy / reference) (Sec. 5, arXiv:2305.18290); without a reference
      beta * log(policy), or with ``per_token`` its mean over tokens, as simpo and orpo reward;
    - rewards/margins: their difference z, that of dpo; means over tokens, offsets and other divergences are not in it;
    - rewards/accuracies: 1 where z > 0, 1/2 for a tie, so that a model equal to its reference scores 1/2;
    - logps/chosen, logps/rejected: those of the policy;
    - gradient_factor: sigmoid(-z), the weight of the pair in dpo's gradient, 1/2 at the start (Sec. 4, same paper).

    Raises UserError for a beta out of range.
    """
    check_beta(beta)
    policy = widen(logps.policy_chosen).detach(), widen(logps.policy_rejected).detach()
    is_reference_free = logps.reference_chosen is None and logps.reference_rejected is None
    if is_reference_free:
        chosen, rejected = token_means(logps) if per_token else policy
    else:
        chosen, rejected = log_ratios(logps)
    # The margin comes from the log-ratios and not from the rewards, so that it is the z of dpo to the last digit.
    margins = (beta * (chosen - rejected)).detach()
    return {
        "rewards/chosen": (beta * chosen).detach(),
        "rewards/rejected": (beta * rejected).detach(),
        "rewards/margins": margins,
        "rewards/accuracies": 0.5 * (1 + torch.sign(margins)),
        "logps/chosen": policy[0],
        "logps/rejected": policy[1],
        "gradient_factor": torch.sigmoid(-margins),
    }


def denoising_metrics(logps: PairLogps) -> dict[str, Tensor]:
    """Mean squared errors of chosen and rejected apart, each (B,) and detached, for logps that are -1/2 of such errors.

    error/chosen and error/rejected are the policy's; error/chosen_change and error/rejected_change are policy minus
    reference, and left out without one. A loss on the difference falls even when the chosen error rises, as long as
    the rejected one rises faster; a positive error/chosen_change tells.
    """
    metrics = {
        "error/chosen": -2 * widen(logps.policy_chosen).detach(),
        "error/rejected": -2 * widen(logps.policy_rejected).detach(),
    }
    if logps.reference_chosen is not None and logps.reference_rejected is not None:
        chosen, rejected = log_ratios(logps)
        metrics["error/chosen_change"] = -2 * chosen.detach()
        metrics["error/rejected_change"] = -2 * rejected.detach()
    return metrics
