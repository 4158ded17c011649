"""Losses on pairs that know no reference: the policy's own log-probabilities of chosen and rejected samples.

(B,) in, (B,) out in float32 or wider, never their mean. The keyword-only parameters are the recipe's schema; notation as in
``log_ratios``, and a = s / n, the mean log-probability of a sample's tokens. The SFT term is -a_w. All functions raise
UserError for settings out of range.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..types.training import PairLogps
from .labels import preference_loss
from .log_ratios import (
    LARGEST_EXPONENT,
    check_beta,
    check_not_negative,
    check_setting,
    chosen_nll,
    policy_logps,
    token_means,
)

# The largest mean log-probability whose odds are taken: nearer to 0 the odds of a certain sample are infinite.
_LARGEST_MEAN = -1e-6


def cpo(
    logps: PairLogps,
    chosen_probability: Tensor | None = None,
    *,
    beta: float,
    alpha: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log sigmoid(beta (s_w - s_l)) - ``alpha`` a_w: dpo against a uniform reference, and an SFT term.

    ``beta`` > 0, ``alpha`` >= 0; ``label_smoothing`` in [0, 0.5) and ``chosen_probability`` (B,) as in ``pairwise.dpo``.
    Eq. 3, and the sum of both parts below it, arXiv:2401.08417.
    """
    check_beta(beta)
    check_not_negative("alpha", alpha)
    chosen, rejected = policy_logps(logps)
    preference = preference_loss(beta * (chosen - rejected), chosen_probability, label_smoothing)
    return preference + alpha * chosen_nll(logps)


def simpo(
    logps: PairLogps,
    chosen_probability: Tensor | None = None,
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log sigmoid(beta (a_w - a_l) - ``gamma``): means over tokens as rewards, and a margin that chosen has to reach.

    ``beta`` > 0 (2 to 10 are usual), ``gamma`` >= 0 (0.3 to 0.8 times beta); ``label_smoothing`` in [0, 0.5) and
    ``chosen_probability`` (B,) as in ``pairwise.dpo``. Eq. 6, arXiv:2405.14734.
    """
    check_beta(beta)
    check_not_negative("gamma", gamma)
    chosen, rejected = token_means(logps)
    return preference_loss(beta * (chosen - rejected) - gamma, chosen_probability, label_smoothing)


def alphapo(
    logps: PairLogps,
    chosen_probability: Tensor | None = None,
    *,
    beta: float,
    gamma: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """simpo with rewards (1 - e^(-alpha a)) / alpha instead of a: their shape decides how hard unlikely samples are pushed.

    ``alpha`` is any finite number but 0, where it is simpo itself; 0.25 is usual. All else as in ``simpo``. Exponents are
    cut at 80. AlphaPO of arXiv:2501.03884.
    """
    check_beta(beta)
    check_not_negative("gamma", gamma)
    check_setting("alpha", alpha, math.isfinite(alpha) and alpha != 0, "a finite number but 0; for 0 use simpo")
    chosen, rejected = (-torch.expm1((-alpha * a).clamp(max=LARGEST_EXPONENT)) / alpha for a in token_means(logps))
    return preference_loss(beta * (chosen - rejected) - gamma, chosen_probability, label_smoothing)


def slic(logps: PairLogps, *, delta: float, alpha: float = 0.0) -> Tensor:
    """max(0, ``delta`` - s_w + s_l) - ``alpha`` a_w: sequence likelihood calibration by ranks, and an SFT term.

    ``delta`` >= 0 in units of log-probability, ``alpha`` >= 0. The paper's SFT term is on a target of its own; here the
    chosen sample is the target. Rank loss of Sec. 2.3, arXiv:2305.10425.
    """
    check_not_negative("delta", delta)
    check_not_negative("alpha", alpha)
    chosen, rejected = policy_logps(logps)
    return torch.relu(delta - chosen + rejected) + alpha * chosen_nll(logps)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for ``x`` < 0, precise at both ends: by expm1 near 0, where 1 - e^x loses its digits, else by log1p."""
    near = x > -math.log(2)
    # What is not taken is kept away from where its gradient is not finite.
    by_expm1 = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, by_expm1, by_log1p)


def log_odds(mean: Tensor) -> Tensor:
    """log(p / (1 - p)) with p = e^``mean``, shaped as ``mean``, which is cut at -1e-6: certainty has infinite odds."""
    mean = mean.clamp(max=_LARGEST_MEAN)
    return mean - log1mexp(mean)


def orpo(logps: PairLogps, *, beta: float) -> Tensor:
    """-a_w - ``beta`` log sigmoid(log odds(a_w) - log odds(a_l)): supervised fine-tuning with an odds ratio penalty.

    odds(a) = p / (1 - p) with p = e^a. ``beta`` > 0 is lambda of the paper, 0.1 usual. Only tokens of the completion
    count, each sample by its own mean, while the published code takes the mean over all tokens of a batch, the prompt's
    included. For images a is -1/2 of the mean squared error. Eq. 6 and 7, arXiv:2403.07691.
    """
    check_beta(beta)
    chosen, rejected = token_means(logps)
    return chosen_nll(logps) - beta * logsigmoid(log_odds(chosen) - log_odds(rejected))
