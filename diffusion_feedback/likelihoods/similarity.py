"""Similarity of prompts and images as unnormalised log-preference: what a CLIP scorer is taught by.

In the Bradley-Terry model P(image a preferred to b | prompt) = sigmoid(s_a - s_b), with s = logit_scale * cosine
(Eq. 1, arXiv:2305.01569).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..types.images import ImageHandle, PreferenceBatch


@dataclass(frozen=True, slots=True)
class SimilarityInputs:
    """What the towers see: ``tokens`` (B, T), ``pixels`` (2B, 3, S, S) float32, chosen first."""

    tokens: Tensor
    pixels: Tensor


@dataclass(frozen=True, slots=True)
class PromptImageSimilarity:
    """A ``types.SampleJudge``. ``tokenize`` gives token ids (N, T), ``cut`` the pictures (N, 3, S, S) uint8 of handles,
    ``normalise`` makes those what the image tower takes; there is nothing random in it.
    """

    tokenize: Callable[[Sequence[str]], Tensor]
    cut: Callable[[Sequence[ImageHandle]], Tensor]
    normalise: Callable[[Tensor], Tensor]
    device: torch.device | str = "cpu"

    def prepare(self, batch: PreferenceBatch) -> SimilarityInputs:
        """Tokens and pixels of ``batch``, on the device."""
        pictures = self.cut([*batch.chosen, *batch.rejected]).to(self.device)
        return SimilarityInputs(self.tokenize(batch.prompts).to(self.device), self.normalise(pictures))

    def scores(self, network: nn.Module, inputs: SimilarityInputs) -> Tensor:
        """logit_scale * cosine, (B, 2B) float32."""
        logits: Tensor = network(inputs.tokens, inputs.pixels)
        return logits.float()
