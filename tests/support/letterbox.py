"""HPSv2's letterbox worked out from its definition in float64, without torchvision."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffusion_feedback.scorers.views import Resampling


def cubic_weights(length: int, target: int, antialias: bool) -> np.ndarray:
    """Matrix (target, length) of separable cubic resampling in float64, from the definition.

    Antialiased: Keys' kernel with a = -0.5, stretched when scaling down, weights of what lies inside normalised.
    Else: a = -0.75, four taps, borders repeated.
    """
    a = -0.5 if antialias else -0.75
    ratio = length / target
    stretch = max(ratio, 1.0) if antialias else 1.0
    centres = (np.arange(target)[:, None] + 0.5) * ratio - 0.5
    taps = np.arange(-2, length + 2)[None, :]
    x = np.abs(taps - centres) / stretch
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4)
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    matrix = weights[:, 2:-2].copy()
    if not antialias:
        matrix[:, 0] += weights[:, :2].sum(1)
        matrix[:, -1] += weights[:, -2:].sum(1)
    return matrix / matrix.sum(1, keepdims=True)


def letterbox_by_hand(levels: Tensor, side: int, resampling: Resampling) -> Tensor:
    """The letterbox of ``levels`` (3, H, W), float64 (3, S, S)."""
    _, height, width = levels.shape
    scale = side / max(height, width)
    fitted = max(1, round(height * scale)), max(1, round(width * scale))
    array = levels.double().numpy()
    if scale != 1:
        rows, columns = (
            cubic_weights(old, new, resampling == "antialias") for old, new in zip((height, width), fitted, strict=True)
        )
        array = rows @ array @ columns.T
    top, left = (side - fitted[0]) // 2, (side - fitted[1]) // 2
    out = torch.zeros(3, side, side, dtype=torch.float64)
    out[:, top : top + fitted[0], left : left + fitted[1]] = torch.from_numpy(array)
    return out
