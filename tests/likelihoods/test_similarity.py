"""Prompts against images: chosen first, every prompt against every picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_feedback.likelihoods.similarity import PromptImageSimilarity
from diffusion_feedback.types.images import ImageHandle, PreferenceBatch


@dataclass(frozen=True)
class Grey:
    """A picture of one level of grey."""

    level: int

    @property
    def key(self) -> str:
        return str(self.level)

    def open(self) -> Image.Image:
        return Image.new("RGB", (2, 2), (self.level,) * 3)


class Product(nn.Module):
    """Length of the prompt times brightness."""

    def forward(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        return (tokens[:, :1].double() * pixels.double().mean((1, 2, 3))).half()


def cut(images: Sequence[ImageHandle]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image.open())).permute(2, 0, 1) for image in images])


def test_chosen_images_come_first() -> None:
    ranker = PromptImageSimilarity(lambda prompts: torch.tensor([[len(p)] for p in prompts]), cut, lambda x: x / 10)
    batch = PreferenceBatch(
        ["a", "b"], ["one", "seven"], [Grey(10), Grey(20)], [Grey(30), Grey(40)], torch.ones(2), torch.ones(2)
    )
    inputs = ranker.prepare(batch)
    assert inputs.pixels.shape == (4, 3, 2, 2)
    assert inputs.pixels[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    logits = ranker.scores(Product(), inputs)
    assert logits.dtype == torch.float32
    assert logits.tolist() == [[3, 6, 9, 12], [5, 10, 15, 20]]
