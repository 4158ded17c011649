"""Labels as probabilities, and the cross entropy of a preference with them."""

from __future__ import annotations

import torch
from torch import Tensor, special
from torch.nn.functional import logsigmoid

from .log_ratios import check_label_smoothing, widen


def label_probability(chosen_probability: Tensor | None, like: Tensor) -> Tensor:
    """``chosen_probability`` as wide as ``like`` (B,), ones where there is none. Raises ValueError for another shape."""
    p = torch.ones_like(like) if chosen_probability is None else widen(chosen_probability)
    if p.shape != like.shape:
        raise ValueError(f"chosen_probability must have shape {tuple(like.shape)}, got {tuple(p.shape)}")
    return p


def label_entropy(p: Tensor) -> Tensor:
    """Entropy of a label that is right with probability ``p`` in [0, 1], in nats: 0 for certain labels, ln 2 for ties."""
    entropy: Tensor = special.entr(p) + special.entr(1 - p)
    return entropy


def preference_loss(z: Tensor, chosen_probability: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of the preference sigmoid(``z``) with the label, (B,): -q log sigmoid(z) - (1 - q) log sigmoid(-z).

    q = p (1 - eps) + (1 - p) eps is the probability that the label is right: p is ``chosen_probability`` (B,) in [0, 1],
    or 1; eps is ``label_smoothing`` in [0, 0.5). The minimum lies at sigmoid(z) = q.

    Raises UserError for a smoothing out of range.
    """
    check_label_smoothing(label_smoothing)
    p = label_probability(chosen_probability, z)
    q = p * (1 - label_smoothing) + (1 - p) * label_smoothing
    return -q * logsigmoid(z) - (1 - q) * logsigmoid(-z)
