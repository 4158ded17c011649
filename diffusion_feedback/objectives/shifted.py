"""Losses on pairs whose point of reference moves with training: a running mean of the rewards seen so far."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..types.training import PairLogps
from .log_ratios import check_beta, log_ratios


def bco(logps: PairLogps, mean_log_ratio: Tensor | None = None, *, beta: float) -> Tensor:
    """Binary classifier of chosen against rejected: -log sigmoid(beta (h_w - m)) - log sigmoid(-beta (h_l - m)), (B,).

    m = ``mean_log_ratio``, a scalar: the mean of h over the chosen and rejected samples of all earlier updates, so that
    beta * m is the paper's reward shift delta; 0 where it is not given, as before the first update. The published code
    lets the mean include the current micro-batch, which makes the loss depend on how a batch is cut. ``beta`` > 0.

    BCO: arXiv:2404.04656. Raises UserError for a beta out of range and for a missing reference.
    """
    check_beta(beta)
    chosen, rejected = log_ratios(logps)
    mean = torch.zeros((), dtype=chosen.dtype, device=chosen.device)
    mean = mean if mean_log_ratio is None else mean_log_ratio.detach().to(chosen)
    return -logsigmoid(beta * (chosen - mean)) - logsigmoid(-beta * (rejected - mean))
