"""The head that LAION's aesthetic predictor and ImageReward put on CLIP's or BLIP's features: one affine map."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from .checkpoints import fill

_HIDDEN = (1024, 128, 64, 16, 1)


def affine_head(state: Mapping[str, Tensor], width: int, source: str, prefix: str) -> tuple[Tensor, Tensor]:
    """Weight (width,) and bias () of the head in ``state``, whose names begin with ``prefix``.

    Five linear layers with dropout between them and no activation, so that they are one affine map at inference, which is
    multiplied out in float64. Raises UserError naming ``source`` where it is another head.
    """
    linear = [nn.Linear(*sizes, device="meta") for sizes in pairwise((width, *_HIDDEN))]
    dropout = nn.Identity()  # counted in the published names
    layers = [linear[0], dropout, linear[1], dropout, linear[2], dropout, linear[3], linear[4]]
    fill(nn.Sequential(*layers), state, source, lambda name: prefix + name)
    weight, bias = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    with torch.no_grad():
        for layer in linear:
            weight, bias = layer.weight.double() @ weight, layer.weight.double() @ bias + layer.bias.double()
    return weight[0].float(), bias[0].float()
