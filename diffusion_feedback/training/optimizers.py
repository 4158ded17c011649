"""Optimizers by name, their keyword arguments being their recipe schema; and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from ..config.recipe import TrainingConfig
from ..errors import UserError

Parameters = Iterable[nn.Parameter]


def adamw(
    parameters: Parameters,
    learning_rate: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.01,
    epsilon: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101), fused: one kernel for all weights."""
    return torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(beta1, beta2), weight_decay=weight_decay, eps=epsilon, fused=True
    )


def adamw_8bit(
    parameters: Parameters,
    learning_rate: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.01,
    epsilon: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW with 8-bit state (arXiv:2110.02861). Raises UserError where bitsandbytes is not installed."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError("optimizer adamw_8bit needs bitsandbytes", "pip install 'diffusion-feedback[8bit]'") from error
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
        parameters, lr=learning_rate, betas=(beta1, beta2), weight_decay=weight_decay, eps=epsilon
    )
    return optimizer


def adafactor(
    parameters: Parameters,
    learning_rate: float,
    *,
    beta2_decay: float = -0.8,
    weight_decay: float = 0.0,
    clip_threshold: float = 1.0,
) -> torch.optim.Optimizer:
    """Adafactor (arXiv:1804.04235) with absolute steps: second moments by row and column, for SDXL's memory.

    torch multiplies the rate by max(eps2, RMS of the weights). With eps2 = 1 that factor is 1 for a network's weights,
    so ``learning_rate`` means what it says, and adapters that start at zero do move.
    """
    return torch.optim.Adafactor(
        parameters,
        lr=learning_rate,
        beta2_decay=beta2_decay,
        eps=(None, 1.0),
        d=clip_threshold,
        weight_decay=weight_decay,
    )


def rmsprop(
    parameters: Parameters,
    learning_rate: float,
    *,
    alpha: float = 0.99,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    epsilon: float = 1e-8,
) -> torch.optim.Optimizer:
    """RMSprop (Tieleman & Hinton, 2012): half of Adam's states; what the experiments of arXiv:2305.18290 ran with."""
    return torch.optim.RMSprop(
        parameters, lr=learning_rate, alpha=alpha, momentum=momentum, weight_decay=weight_decay, eps=epsilon
    )


def learning_rate_at(
    step: int,
    *,
    peak: float,
    scheduler: str,
    warmup_steps: int,
    max_steps: int,
    num_cycles: int = 1,
    power: float = 1.0,
    end: float = 0.0,
) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up, then ``scheduler``; a function, no state.

    After the warm-up, from step ``warmup_steps`` to ``max_steps``, the courses are those of diffusers' ``get_scheduler``,
    whose polynomial ends at 1e-7 where this one ends at ``end``.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    match scheduler:
        case "linear":
            return peak * (1.0 - progress)
        case "cosine":
            return peak * (0.5 * (1 + math.cos(math.pi * progress)))
        case "cosine_with_restarts" if progress < 1:
            return peak * (0.5 * (1 + math.cos(math.pi * (num_cycles * progress % 1.0))))
        case "cosine_with_restarts":
            return 0.0
        case "polynomial":
            return end + (peak - end) * math.pow(1.0 - progress, power)
        case _:
            return peak


def scheduled_rate(training: TrainingConfig, step: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) of a run of ``training``, whose number of steps is given."""
    assert training.max_train_steps is not None
    return learning_rate_at(
        step,
        peak=training.learning_rate,
        scheduler=training.lr_scheduler,
        warmup_steps=training.lr_warmup_steps,
        max_steps=training.max_train_steps,
        num_cycles=training.lr_num_cycles,
        power=training.lr_power,
        end=training.lr_end,
    )
