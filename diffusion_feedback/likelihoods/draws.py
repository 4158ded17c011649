"""Random draws that are counted, not consumed: each is a function of (seed, draw, pair id) and of nothing else.

So the same pair and draw give the same timestep, noise, flip, crop and caption dropout whatever the batch size, rank,
worker or order; resuming needs no generator state, and one process equals many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairDraw:
    """Everything random about one pair in one pass: uniforms in [0, 1), and the key of its noise.

    The names say what each uniform decides; they are drawn in one go, so switching one use on or off (say the flip)
    leaves the others as they were.
    """

    timestep: float
    flip: float
    crop_x: float
    crop_y: float
    dropout: float
    noise_key: int


def draw_pair(seed: int, draw: int, example_id: str) -> PairDraw:
    """The draws of pair ``example_id`` in pass ``draw`` (0, 1, ...) under ``seed``."""
    digest = hashlib.sha256(f"{seed}/{draw}/{example_id}".encode()).digest()
    words = np.frombuffer(digest, "<u8").tolist()
    uniforms = np.random.Generator(np.random.Philox(key=words[:2])).random(5).tolist()
    timestep, flip, crop_x, crop_y, dropout = uniforms
    return PairDraw(timestep, flip, crop_x, crop_y, dropout, noise_key=words[2] >> 1)


def draw_noise(draws: Sequence[PairDraw], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (B, *shape) float32 on the CPU, one tensor per pair, each from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(d.noise_key)) for d in draws])
