"""Losses on pairs: chosen against rejected, policy against reference.

Each takes log-probabilities (B,) and gives losses (B,) in float32 or wider, never their mean: the caller divides by the
global count. The keyword-only parameters are the recipe's schema. Only functions with ``chosen_probability`` take soft
labels. Notation: d = (policy - reference)_chosen - (policy - reference)_rejected, z = beta * d.

For diffusion models a log-probability is -1/2 of a mean squared error, so that beta 5000 is a slope of 2500 per unit of
error. All functions raise UserError for settings out of range and, but for ``bradley_terry``, for a missing reference.
"""

from __future__ import annotations

import torch
from torch import Tensor, special
from torch.nn.functional import logsigmoid

from ..types import PairLogps
from .log_ratios import check_beta, check_label_smoothing, log_ratio_margin, widen


def label_probability(chosen_probability: Tensor | None, like: Tensor) -> Tensor:
    """``chosen_probability`` as wide as ``like`` (B,), ones where there is none. Raises ValueError for another shape."""
    p = torch.ones_like(like) if chosen_probability is None else widen(chosen_probability)
    if p.shape != like.shape:
        raise ValueError(f"chosen_probability must have shape {tuple(like.shape)}, got {tuple(p.shape)}")
    return p


def dpo(
    logps: PairLogps, chosen_probability: Tensor | None = None, *, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """Cross entropy of the implicit preference sigmoid(z) with the label.

    -q log sigmoid(z) - (1 - q) log sigmoid(-z), where q = p (1 - eps) + (1 - p) eps is the probability that the label
    is right: p is ``chosen_probability`` (B,) in [0, 1], or 1; eps is ``label_smoothing`` in [0, 0.5). The minimum lies
    at sigmoid(z) = q. ``beta`` > 0: about 5000 for mean denoising errors, 0.1 for sums over tokens.

    DPO: Eq. 7, arXiv:2305.18290; Diffusion-DPO: Eq. 14, arXiv:2311.12908; conservative DPO (eps > 0):
    "A note on DPO with noisy preferences and relationship to IPO", ericmitchell.ai/cdpo.pdf.
    """
    check_beta(beta)
    check_label_smoothing(label_smoothing)
    z = beta * log_ratio_margin(logps)
    p = label_probability(chosen_probability, z)
    q = p * (1 - label_smoothing) + (1 - p) * label_smoothing
    return -q * logsigmoid(z) - (1 - q) * logsigmoid(-z)


def ipo(logps: PairLogps, *, beta: float) -> Tensor:
    """Squared distance of the margin from its target: (d - 1 / (2 beta))^2.

    Unlike dpo it has a finite optimum for certain labels. For text, give means over tokens, not sums (the authors'
    reading). ``beta`` > 0 is tau of the paper. The target is in units of log-probability: with denoising errors and
    beta 5000 it is 1e-4 and the first loss 1e-8, so an optimizer needs an epsilon far below its gradients.

    Eq. 17, arXiv:2310.12036.
    """
    check_beta(beta)
    return (log_ratio_margin(logps) - 1 / (2 * beta)).square()


def hinge(logps: PairLogps, *, beta: float) -> Tensor:
    """max(0, 1 - z): pairs already separated by 1 / ``beta`` no longer count. ``beta`` > 0.

    The calibration loss of SLiC (arXiv:2305.10425) on log-ratios instead of log-probabilities: the hinge-norm loss of
    arXiv:2309.06657.
    """
    check_beta(beta)
    return torch.relu(1 - beta * log_ratio_margin(logps))


def robust(logps: PairLogps, *, beta: float, label_smoothing: float) -> Tensor:
    """dpo, unbiased where a share eps = ``label_smoothing`` of the labels is known to be flipped.

    [-(1 - eps) log sigmoid(z) + eps log sigmoid(-z)] / (1 - 2 eps): its mean over such flips is dpo's loss on the true
    labels. ``beta`` > 0, eps in [0, 0.5). With eps > 0 it has no lower bound as z grows: stop early.

    The robust DPO loss (rDPO) of arXiv:2403.00409.
    """
    check_beta(beta)
    check_label_smoothing(label_smoothing)
    z = beta * log_ratio_margin(logps)
    right, flipped = -logsigmoid(z), -logsigmoid(-z)
    return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def label_entropy(p: Tensor) -> Tensor:
    """Entropy of a label that is right with probability ``p`` in [0, 1], in nats: 0 for certain labels, ln 2 for ties."""
    entropy: Tensor = special.entr(p) + special.entr(1 - p)
    return entropy


def bradley_terry(logps: PairLogps, chosen_probability: Tensor | None = None) -> Tensor:
    """Divergence of the prediction sigmoid(d) from the label, d = policy_chosen - policy_rejected; no reference is used.

    p log(p / sigmoid(d)) + (1 - p) log((1 - p) / sigmoid(-d)), with p = ``chosen_probability`` (B,) in [0, 1], or 1: the
    Kullback-Leibler divergence. Cross entropy less the label's own entropy, so it has the gradient of cross entropy and
    its minimum is 0 for every p; for p = 1 it is cross entropy itself. The "log-probabilities" are the scores of a
    reward model, known up to a constant of the pair.

    Bradley & Terry (1952), as the reward model's loss: Eq. 1, arXiv:2203.02155.
    """
    d = widen(logps.policy_chosen) - widen(logps.policy_rejected)
    p = label_probability(chosen_probability, d)
    return -p * logsigmoid(d) - (1 - p) * logsigmoid(-d) - label_entropy(p)
