"""f-DPO: how far the policy is held to the reference is measured by another divergence than the reverse KL.

A sample's score is f'(e^h) instead of h = f'(e^h) of the reverse KL. It is defined for objectives that see nothing but
the difference of two scores, as only there the unknown normaliser of the prompt drops out. (arXiv:2309.16240.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..errors import UserError
from ..types.training import PairLogps
from .log_ratios import LARGEST_EXPONENT, check_setting, lengths, log_ratios

DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


def check_divergence(f_divergence_type: str, f_alpha_divergence_coef: float | None) -> None:
    """Raise UserError for an unknown divergence, and unless alpha_divergence, and it alone, comes with its coefficient."""
    check_setting("f_divergence_type", f_divergence_type, f_divergence_type in DIVERGENCES, ", ".join(DIVERGENCES))
    key, coefficient = "objective.f_alpha_divergence_coef", f_alpha_divergence_coef
    if f_divergence_type != "alpha_divergence":
        if coefficient is not None:
            raise UserError(f"{key}: means nothing for {f_divergence_type}", "leave it out, or use alpha_divergence")
    elif not (isinstance(coefficient, (int, float)) and math.isfinite(coefficient)):
        raise UserError(f"{key}: got {coefficient!r}", "alpha_divergence needs a finite number, 1 is the reverse KL")


def divergence_score(h: Tensor, f_divergence_type: str, f_alpha_divergence_coef: float | None) -> Tensor:
    """f'(e^h), shaped as ``h``: h for reverse_kl; 1 - e^-h for forward_kl; ln 2 + log sigmoid(h) for js_divergence;
    (e^((a - 1) h) - 1) / (a - 1) for alpha_divergence with a = ``f_alpha_divergence_coef``, h at a = 1. This a is TRL's;
    the alpha of arXiv:2309.16240 is 1 - a.

    Exponents are cut at 80, where they would leave float32: beyond it there is no gradient.
    """
    if f_divergence_type == "forward_kl":
        return -torch.expm1((-h).clamp(max=LARGEST_EXPONENT))
    if f_divergence_type == "js_divergence":
        return math.log(2) + logsigmoid(h)
    power = 0.0 if f_alpha_divergence_coef is None else f_alpha_divergence_coef - 1
    if f_divergence_type == "reverse_kl" or abs(power) < 1e-6:
        return h
    return torch.expm1((power * h).clamp(max=LARGEST_EXPONENT)) / power


def score_margin(
    logps: PairLogps, f_divergence_type: str, f_alpha_divergence_coef: float | None, *, per_token: bool = False
) -> Tensor:
    """Score of chosen minus score of rejected, (B,): d for the reverse KL; ``per_token`` divides each score by its length.

    Raises UserError for a divergence that ``check_divergence`` refuses, and as ``log_ratios`` does.
    """
    check_divergence(f_divergence_type, f_alpha_divergence_coef)
    chosen, rejected = (divergence_score(h, f_divergence_type, f_alpha_divergence_coef) for h in log_ratios(logps))
    if not per_token:
        return chosen - rejected
    n_chosen, n_rejected = lengths(logps)
    return chosen / n_chosen - rejected / n_rejected
