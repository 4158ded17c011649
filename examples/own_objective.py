r"""Objectives of one's own: functions of log-probabilities. The keyword-only parameters are what a recipe may set.

    dfb train --config configs/shapes_dpo_lora.yaml \
        --objective "{name: examples/own_objective.py:margin_dpo, beta: 5000, margin: 0.5}"

A plain function learns from pairs, against a reference. Anything else is said by a row, as of ``focal_dpo`` below.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffusion_feedback import ObjectiveRow, PairLogps


def _log_ratio_margin(logps: PairLogps) -> Tensor:
    """By how much the policy prefers the chosen sample more than the reference does, (B,)."""
    assert logps.reference_chosen is not None
    assert logps.reference_rejected is not None
    reference = logps.reference_chosen - logps.reference_rejected
    return logps.policy_chosen - logps.policy_rejected - reference.detach()


def margin_dpo(logps: PairLogps, *, beta: float, margin: float = 0.0) -> Tensor:
    """DPO that asks for a lead of ``margin`` logits: one loss for each pair (B,), never their mean."""
    return -logsigmoid(beta * _log_ratio_margin(logps) - margin)


def _focal(logps: PairLogps, chosen_probability: Tensor | None = None, *, beta: float, power: float = 2.0) -> Tensor:
    """DPO that looks away from pairs that are learnt already; ``chosen_probability`` (B,) are soft labels."""
    z = beta * _log_ratio_margin(logps)
    p = torch.ones_like(z) if chosen_probability is None else chosen_probability.to(z)
    return torch.sigmoid(-z) ** power * (-p * logsigmoid(z) - (1 - p) * logsigmoid(-z))


# A row says what a plain function does not: here that soft labels (data.soft_labels: true) are handed over.
focal_dpo = ObjectiveRow(_focal, inputs=("chosen_probability",))
