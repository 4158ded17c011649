"""Output heads whose logits are scaled or capped after the product, as some language models do."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ShapedHead(nn.Module):
    """``head`` followed by what the model makes of its logits: cap tanh(scale z / cap), or scale z where ``cap`` is None."""

    def __init__(self, head: nn.Module, *, scale: float = 1.0, cap: float | None = None) -> None:
        super().__init__()
        self.head, self.scale, self.cap = head, scale, cap

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., H) to logits (..., V)."""
        logits: Tensor = self.head(hidden)
        if self.cap is None:
            return logits * self.scale
        return self.cap * torch.tanh(logits * (self.scale / self.cap))
