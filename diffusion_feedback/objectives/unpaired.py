"""Losses on single samples that were called desirable or undesirable: (B,) in, (B,) out, never their mean.

h = log p_policy - log p_reference of a sample. The keyword-only parameters are the recipe's schema. All functions raise
UserError for settings out of range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types.training import UnpairedLogps
from .log_ratios import check_beta, check_not_negative, widen


def unpaired_log_ratios(logps: UnpairedLogps) -> Tensor:
    """h of each sample, (B,); no gradient reaches the reference. Raises ValueError unless all are of one shape (B,)."""
    shapes = [tuple(each.shape) for each in (logps.policy, logps.reference, logps.desirable)]
    if len(shapes[0]) != 1 or len(set(shapes)) != 1:
        raise ValueError(f"log-probabilities and labels must all have one shape (B,), got {shapes}")
    return widen(logps.policy) - widen(logps.reference).detach()


def _losses(logps: UnpairedLogps, z: Tensor, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """Weight times sigmoid(-z) for desirable samples, and times sigmoid(z) for undesirable ones."""
    check_not_negative("desirable_weight", desirable_weight)
    check_not_negative("undesirable_weight", undesirable_weight)
    is_desirable = logps.desirable.to(device=z.device, dtype=torch.bool)
    share = is_desirable.to(z)
    weights = desirable_weight * share + undesirable_weight * (1 - share)
    return weights * torch.sigmoid(torch.where(is_desirable, -z, z))


def kto(
    logps: UnpairedLogps,
    kl: Tensor | None = None,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w_D (1 - sigmoid(beta (h - z))) for desirable samples, w_U (1 - sigmoid(beta (z - h))) for undesirable ones.

    z = ``kl``, a scalar >= 0, is the point of reference: the divergence of policy from reference over the whole batch,
    estimated on prompts with the completions of others, max(0, mean h), without a gradient; 0 where it is not given.
    ``beta`` > 0; ``desirable_weight`` w_D and ``undesirable_weight`` w_U >= 0, best so that w_D times the number of
    desirable samples is 1 to 4/3 of w_U times that of undesirable ones.

    KTO: Eq. 7, arXiv:2402.01306.
    """
    check_beta(beta)
    h = unpaired_log_ratios(logps)
    reference_point = torch.zeros((), dtype=h.dtype, device=h.device) if kl is None else kl.detach().to(h)
    return _losses(logps, beta * (h - reference_point), desirable_weight, undesirable_weight)


def apo_zero_unpaired(
    logps: UnpairedLogps, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Tensor:
    """kto with the reference itself as its point of reference, z = 0: ``pairwise.apo_zero`` for single samples.

    Settings as in ``kto``. Eq. 7, arXiv:2408.06266, sample by sample.
    """
    check_beta(beta)
    return _losses(logps, beta * unpaired_log_ratios(logps), desirable_weight, undesirable_weight)
