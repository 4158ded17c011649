"""Losses on pairs: chosen against rejected, policy against reference.

Each takes log-probabilities (B,) and gives losses (B,) in float32 or wider, never their mean: the caller divides by the
global count. The keyword-only parameters are the recipe's schema. Only functions with ``chosen_probability`` take soft
labels, only those with ``margin`` margins. Notation: that of ``log_ratios``; b_w = beta * h_w, b_l = beta * h_l.

For diffusion models a log-probability is -1/2 of a mean squared error, so that beta 5000 is a slope of 2500 per unit of
error; for texts it is a sum over tokens. Where ``f_divergence_type`` is a setting, h stands for f'(e^h) (see
``divergences``). All functions raise UserError for settings out of range and, but for ``preference_divergence``, for a missing
reference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..types.training import PairLogps
from .divergences import score_margin
from .labels import label_entropy, label_probability, preference_loss
from .log_ratios import (
    LARGEST_EXPONENT,
    check_beta,
    check_label_smoothing,
    check_not_negative,
    check_positive,
    lengths,
    log_ratio_margin,
    log_ratios,
    widen,
)


def dpo(
    logps: PairLogps,
    chosen_probability: Tensor | None = None,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float | None = None,
) -> Tensor:
    """Cross entropy of the implicit preference sigmoid(z) with the label.

    -q log sigmoid(z) - (1 - q) log sigmoid(-z), where q = p (1 - eps) + (1 - p) eps is the probability that the label
    is right: p is ``chosen_probability`` (B,) in [0, 1], or 1; eps is ``label_smoothing`` in [0, 0.5). The minimum lies
    at sigmoid(z) = q. ``beta`` > 0: about 5000 for mean denoising errors, 0.1 for sums over tokens.

    DPO: Eq. 7, arXiv:2305.18290; Diffusion-DPO: Eq. 14, arXiv:2311.12908; conservative DPO (eps > 0):
    "A note on DPO with noisy preferences and relationship to IPO", ericmitchell.ai/cdpo.pdf.
    """
    check_beta(beta)
    z = beta * score_margin(logps, f_divergence_type, f_alpha_divergence_coef)
    return preference_loss(z, chosen_probability, label_smoothing)


def cdpo(
    logps: PairLogps,
    chosen_probability: Tensor | None = None,
    *,
    beta: float,
    label_smoothing: float,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float | None = None,
) -> Tensor:
    """Conservative DPO: ``dpo`` whose ``label_smoothing`` in (0, 0.5), the share of wrong labels, has to be given.

    Source: ericmitchell.ai/cdpo.pdf.
    """
    check_positive("label_smoothing", label_smoothing)
    return dpo(
        logps,
        chosen_probability,
        beta=beta,
        label_smoothing=label_smoothing,
        f_divergence_type=f_divergence_type,
        f_alpha_divergence_coef=f_alpha_divergence_coef,
    )


def dpo_norm(
    logps: PairLogps,
    chosen_probability: Tensor | None = None,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float | None = None,
) -> Tensor:
    """dpo on means over tokens: z = beta (h_w / n_w - h_l / n_l), so that length alone is no way to a larger margin.

    ``beta`` > 0 is larger than for sums: 5 in the paper; all else as in ``dpo``. Length-normalised DPO of arXiv:2411.15124.
    """
    check_beta(beta)
    z = beta * score_margin(logps, f_divergence_type, f_alpha_divergence_coef, per_token=True)
    return preference_loss(z, chosen_probability, label_smoothing)


def odpo(
    logps: PairLogps,
    chosen_probability: Tensor | None = None,
    margin: Tensor | None = None,
    *,
    beta: float,
    alpha: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """dpo with an offset: chosen has to lead by as much as it is better, z - ``alpha`` * margin instead of z.

    ``margin`` (B,) >= 0 comes with the data, 0 where none is known; ``alpha`` >= 0; all else as in ``dpo``. The paper's
    logarithmic offset takes a column of logarithms, of gaps of 1 and more. Raises ValueError for a margin of another shape.

    DPO with an offset (ODPO) of arXiv:2402.10571.
    """
    check_beta(beta)
    check_not_negative("alpha", alpha)
    z = beta * log_ratio_margin(logps)
    offset = torch.zeros_like(z) if margin is None else widen(margin).detach().to(z)
    if offset.shape != z.shape:
        raise ValueError(f"margin must have shape {tuple(z.shape)}, got {tuple(offset.shape)}")
    return preference_loss(z - alpha * offset, chosen_probability, label_smoothing)


def rdpo(
    logps: PairLogps,
    chosen_probability: Tensor | None = None,
    *,
    beta: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """dpo regularised in length: z + ``alpha`` (n_w - n_l) instead of z.

    The optimum of E[reward - alpha n] - beta KL: what a longer chosen sample owes to its length is explained by the
    offset and not learnt. ``alpha`` >= 0 in logits per token (0.05 to 1 are usual); all else as in ``dpo``.

    Length-regularised DPO (R-DPO) of arXiv:2403.19159.
    """
    check_beta(beta)
    check_not_negative("alpha", alpha)
    n_chosen, n_rejected = lengths(logps)
    z = beta * log_ratio_margin(logps) + alpha * (n_chosen - n_rejected)
    return preference_loss(z, chosen_probability, label_smoothing)


def dpop(
    logps: PairLogps,
    chosen_probability: Tensor | None = None,
    *,
    beta: float,
    dpop_lambda: float = 50.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """DPO-positive: dpo on d - lambda max(0, -h_w), so that no margin is gained by making the chosen sample less likely.

    ``dpop_lambda`` >= 0; all else as in ``dpo``. DPOP of arXiv:2402.13228.
    """
    check_beta(beta)
    check_not_negative("dpop_lambda", dpop_lambda)
    chosen, rejected = log_ratios(logps)
    z = beta * (chosen - rejected - dpop_lambda * torch.relu(-chosen))
    return preference_loss(z, chosen_probability, label_smoothing)


def ipo(
    logps: PairLogps,
    *,
    beta: float,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float | None = None,
) -> Tensor:
    """Squared distance of the margin from its target: (h_w / n_w - h_l / n_l - 1 / (2 beta))^2.

    Unlike dpo it has a finite optimum for certain labels. Texts count by means over tokens, as in the authors' own
    experiments, not by sums. ``beta`` > 0 is tau of the paper. The target is in units of log-probability: with denoising
    errors and beta 5000 it is 1e-4 and the first loss 1e-8, so an optimizer needs an epsilon far below its gradients.

    Eq. 17, arXiv:2310.12036.
    """
    check_beta(beta)
    margin = score_margin(logps, f_divergence_type, f_alpha_divergence_coef, per_token=True)
    return (margin - 1 / (2 * beta)).square()


def hinge(
    logps: PairLogps,
    *,
    beta: float,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float | None = None,
) -> Tensor:
    """max(0, 1 - z): pairs already separated by 1 / ``beta`` no longer count. ``beta`` > 0.

    The calibration loss of SLiC (arXiv:2305.10425) on log-ratios instead of log-probabilities: the hinge-norm loss of
    arXiv:2309.06657.
    """
    check_beta(beta)
    return torch.relu(1 - beta * score_margin(logps, f_divergence_type, f_alpha_divergence_coef))


def robust(
    logps: PairLogps,
    *,
    beta: float,
    label_smoothing: float,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float | None = None,
) -> Tensor:
    """dpo, unbiased where a share eps = ``label_smoothing`` of the labels is known to be flipped.

    [-(1 - eps) log sigmoid(z) + eps log sigmoid(-z)] / (1 - 2 eps): its mean over such flips is dpo's loss on the true
    labels. ``beta`` > 0, eps in [0, 0.5). With eps > 0 it has no lower bound as z grows: stop early.

    The robust DPO loss (rDPO) of arXiv:2403.00409.
    """
    check_beta(beta)
    check_label_smoothing(label_smoothing)
    z = beta * score_margin(logps, f_divergence_type, f_alpha_divergence_coef)
    right, flipped = -logsigmoid(z), -logsigmoid(-z)
    return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def exo(
    logps: PairLogps,
    *,
    beta: float,
    label_smoothing: float,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float | None = None,
) -> Tensor:
    """Reverse divergence of the preference q = sigmoid(z) from the smoothed label: KL(q || 1 - eps).

    q (log q - log(1 - eps)) + (1 - q) (log(1 - q) - log eps), eps = ``label_smoothing`` in (0, 0.5): a certain label is
    infinitely far from every q, so it must be smoothed. ``beta`` > 0. The minimum 0 lies at sigmoid(z) = 1 - eps.

    EXO for pairs: Eq. 16, arXiv:2402.00856.
    """
    check_beta(beta)
    check_positive("label_smoothing", label_smoothing)
    check_label_smoothing(label_smoothing)
    z = beta * score_margin(logps, f_divergence_type, f_alpha_divergence_coef)
    smoothed = torch.tensor(label_smoothing, dtype=z.dtype, device=z.device)
    right = torch.sigmoid(z) * (logsigmoid(z) - torch.log1p(-smoothed))
    return right + torch.sigmoid(-z) * (logsigmoid(-z) - torch.log(smoothed))


def discopop(
    logps: PairLogps,
    *,
    beta: float,
    tau: float = 0.05,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float | None = None,
) -> Tensor:
    """Log-ratio modulated loss, found by search: (1 - g) (-log sigmoid(z)) + g e^-z with g = sigmoid(z / tau).

    ``beta``, ``tau`` > 0. Around z = 0 it rises with z instead of falling, and pairs far below 0 count as in dpo: a known
    property of this loss. The product g e^-z is taken as one exponential, so it does not overflow.

    Eq. 5, arXiv:2406.08414.
    """
    check_beta(beta)
    check_positive("tau", tau)
    z = beta * score_margin(logps, f_divergence_type, f_alpha_divergence_coef)
    exponential = torch.exp((logsigmoid(z / tau) - z).clamp(max=LARGEST_EXPONENT))
    return torch.sigmoid(-z / tau) * -logsigmoid(z) + exponential


def nca(logps: PairLogps, *, beta: float) -> Tensor:
    """-log sigmoid(b_w) - 1/2 log sigmoid(-b_w) - 1/2 log sigmoid(-b_l): each sample against the reference.

    Noise contrastive alignment for two samples; it holds the chosen sample's likelihood where dpo lets it sink.
    ``beta`` > 0. NCA of arXiv:2402.05369.
    """
    check_beta(beta)
    chosen, rejected = (beta * h for h in log_ratios(logps))
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def sppo(logps: PairLogps, chosen_probability: Tensor | None = None, *, beta: float) -> Tensor:
    """Self-play preference optimisation: (h_w - (p - 1/2) / beta)^2 + (h_l + (p - 1/2) / beta)^2.

    p is ``chosen_probability`` (B,) in [0, 1], how likely chosen is to win against a sample of the policy, or 1 (the hard
    form). ``beta`` > 0 is 1 / eta of the paper. Eq. 4.7, arXiv:2405.00675.
    """
    check_beta(beta)
    chosen, rejected = log_ratios(logps)
    target = (label_probability(chosen_probability, chosen) - 0.5) / beta
    return (chosen - target).square() + (rejected + target).square()


def apo_zero(logps: PairLogps, *, beta: float) -> Tensor:
    """1 - sigmoid(b_w) + sigmoid(b_l): chosen up, rejected down, for samples that are better than the model's own.

    Anchored preference optimisation. ``beta`` > 0. Eq. 7, arXiv:2408.06266.
    """
    check_beta(beta)
    chosen, rejected = (beta * h for h in log_ratios(logps))
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down(logps: PairLogps, *, beta: float) -> Tensor:
    """sigmoid(b_w) + 1 - sigmoid(b_w - b_l): both down, rejected further, for samples that are worse than the model's own.

    At b_w = b_l = 0 the two parts pull the chosen sample with equal force, and it stays. ``beta`` > 0. Eq. 8,
    arXiv:2408.06266.
    """
    check_beta(beta)
    chosen, rejected = (beta * h for h in log_ratios(logps))
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def preference_divergence(logps: PairLogps, chosen_probability: Tensor | None = None) -> Tensor:
    """Divergence of the prediction sigmoid(d) from the label, d = policy_chosen - policy_rejected; no reference is used.

    p log(p / sigmoid(d)) + (1 - p) log((1 - p) / sigmoid(-d)), with p = ``chosen_probability`` (B,) in [0, 1], or 1: the
    Kullback-Leibler divergence. Cross entropy less the label's own entropy, so it has the gradient of cross entropy and
    its minimum is 0 for every p; for p = 1 it is cross entropy itself. The "log-probabilities" are the scores of a
    reward model, known up to a constant of the pair.

    Bradley & Terry (1952), as the reward model's loss: Eq. 1, arXiv:2203.02155.
    """
    d = widen(logps.policy_chosen) - widen(logps.policy_rejected)
    p = label_probability(chosen_probability, d)
    return preference_loss(d, p) - label_entropy(p)
