"""Losses that teach a reward model: scores of chosen and rejected samples in, losses (B,) out, never their mean.

``scores`` holds them as ``policy_chosen`` and ``policy_rejected``, each (B,): the rewards r_w and r_l of one prompt's two
samples, Bradley-Terry strengths in nats, known up to a constant of the prompt.
"""

from __future__ import annotations

from torch import Tensor

from ..types.training import PairLogps
from . import pairwise
from .log_ratios import check_not_negative, widen


def bradley_terry(
    scores: PairLogps,
    chosen_probability: Tensor | None = None,
    margin: Tensor | None = None,
    *,
    center_rewards_coefficient: float = 0.0,
    use_margin: bool = False,
) -> Tensor:
    """-log sigmoid(r_w - r_l - m) + c (r_w + r_l)^2, each (B,), in float32 or wider.

    With ``use_margin`` m is ``margin`` (B,) >= 0, by how much chosen is known to be better, else 0. With
    ``chosen_probability`` (B,) in [0, 1] the first part is the divergence from that label, as in
    ``pairwise.preference_divergence``. c = ``center_rewards_coefficient`` >= 0 keeps rewards near 0, which the first part does
    not: it only sees differences; 0.01 is usual.

    Raises UserError for a coefficient out of range, ValueError for a margin of another shape. Reward model: Eq. 1,
    arXiv:2203.02155; margin: Eq. 2, arXiv:2307.09288; centring: Eq. 2, arXiv:2312.09244.
    """
    check_not_negative("center_rewards_coefficient", center_rewards_coefficient)
    chosen, rejected = widen(scores.policy_chosen), widen(scores.policy_rejected)
    if use_margin and margin is not None:
        if margin.shape != chosen.shape:
            raise ValueError(f"margin must have shape {tuple(chosen.shape)}, got {tuple(margin.shape)}")
        scores = PairLogps(chosen - margin.to(chosen), rejected)
    losses = pairwise.preference_divergence(scores, chosen_probability)
    return losses + center_rewards_coefficient * (chosen + rejected).square()
