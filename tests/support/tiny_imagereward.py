"""A tiny ImageReward checkpoint with random weights under the published names, and its vocabulary."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

IMAGE_WIDTH, TEXT_WIDTH, LAYERS, PATCH, IMAGE_SIZE = 128, 128, 2, 8, 32
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "cat",
    "##s",
    "dog",
    "on",
    "the",
    "sea",
    ",",
    ".",
    "in",
    "day",
    "time",
]
VOCABULARY = len(WORDS) + 2  # and BLIP's [DEC] and [ENC]


def state(seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of the published file, small: none is zero or one, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    def linear(name: str, inside: int, outside: int) -> None:
        found[f"{name}.weight"] = normal(outside, inside, scale=inside**-0.5)
        found[f"{name}.bias"] = normal(outside, scale=0.1)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"] = 1 + normal(width, scale=0.2)
        found[f"{name}.bias"] = normal(width, scale=0.2)

    image, text = "blip.visual_encoder", "blip.text_encoder"
    found[f"{image}.cls_token"] = normal(1, 1, IMAGE_WIDTH)
    found[f"{image}.pos_embed"] = normal(1, 1 + (IMAGE_SIZE // PATCH) ** 2, IMAGE_WIDTH)
    found[f"{image}.patch_embed.proj.weight"] = normal(IMAGE_WIDTH, 3, PATCH, PATCH, scale=(3 * PATCH**2) ** -0.5)
    found[f"{image}.patch_embed.proj.bias"] = normal(IMAGE_WIDTH, scale=0.1)
    for block in (f"{image}.blocks.{number}" for number in range(LAYERS)):
        norm(f"{block}.norm1", IMAGE_WIDTH)
        linear(f"{block}.attn.qkv", IMAGE_WIDTH, 3 * IMAGE_WIDTH)
        linear(f"{block}.attn.proj", IMAGE_WIDTH, IMAGE_WIDTH)
        norm(f"{block}.norm2", IMAGE_WIDTH)
        linear(f"{block}.mlp.fc1", IMAGE_WIDTH, 4 * IMAGE_WIDTH)
        linear(f"{block}.mlp.fc2", 4 * IMAGE_WIDTH, IMAGE_WIDTH)
    norm(f"{image}.norm", IMAGE_WIDTH)
    found[f"{text}.embeddings.position_ids"] = torch.arange(64)[None]
    found[f"{text}.embeddings.word_embeddings.weight"] = normal(VOCABULARY, TEXT_WIDTH)
    found[f"{text}.embeddings.position_embeddings.weight"] = normal(64, TEXT_WIDTH)
    norm(f"{text}.embeddings.LayerNorm", TEXT_WIDTH)
    for layer in (f"{text}.encoder.layer.{number}" for number in range(LAYERS)):
        for kind, width in (("attention", TEXT_WIDTH), ("crossattention", IMAGE_WIDTH)):
            linear(f"{layer}.{kind}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            linear(f"{layer}.{kind}.self.key", width, TEXT_WIDTH)
            linear(f"{layer}.{kind}.self.value", width, TEXT_WIDTH)
            linear(f"{layer}.{kind}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            norm(f"{layer}.{kind}.output.LayerNorm", TEXT_WIDTH)
        linear(f"{layer}.intermediate.dense", TEXT_WIDTH, 4 * TEXT_WIDTH)
        linear(f"{layer}.output.dense", 4 * TEXT_WIDTH, TEXT_WIDTH)
        norm(f"{layer}.output.LayerNorm", TEXT_WIDTH)
    linear("blip.vision_proj", IMAGE_WIDTH, 16)
    linear("blip.text_proj", TEXT_WIDTH, 16)
    widths = (TEXT_WIDTH, 1024, 128, 64, 16, 1)
    for place, inside, outside in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        linear(f"mlp.layers.{place}", inside, outside)
    return found


def save(folder: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    """Write ``ImageReward.pt`` and ``vocab.txt`` into ``folder``; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state() if tensors is None else tensors, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder
