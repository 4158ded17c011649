"""Losses on single samples: no pair, no reference. Log-probabilities (B,) in, losses (B,) out, never their mean."""

from __future__ import annotations

from torch import Tensor

from .log_ratios import widen


def sft(logps: Tensor) -> Tensor:
    """Negative log-likelihood, (B,), in float32 or wider: supervised fine-tuning on the samples.

    For diffusion models a log-probability is -1/2 of a mean squared error, so this is half the usual denoising loss
    (Eq. 14, arXiv:2006.11239); adaptive optimizers do not notice the factor.
    """
    return -widen(logps)
