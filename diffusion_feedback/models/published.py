"""Published diffusion models as their configurations describe them: built without weights, to count what a run will need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

LATENT_CHANNELS = 4
SCALE = 8  # px of an image in one of its latents


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A model of the hub: its ids there, its family, the configuration of its network, and the size of its text encoders.

    ``unet`` are settings of diffusers' ``UNet2DConditionModel`` beside its defaults; ``text_parameters`` are those of all
    text encoders, ``pooled`` the width of their pooled embedding (0 where the network takes none).
    """

    hub_ids: Sequence[str]
    family: str
    unet: Mapping[str, Any]
    text_parameters: int
    pooled: int = 0

    @property
    def resolution(self) -> int:
        """Side of its own images, px."""
        return int(self.unet["sample_size"]) * SCALE

    @property
    def token_width(self) -> int:
        """Numbers per token of the embedded prompt."""
        return int(self.unet["cross_attention_dim"])

    def network(self) -> nn.Module:
        """Its network on the meta device, frozen."""
        with torch.device("meta"):
            network: nn.Module = UNet2DConditionModel(**self.unet)
        return network.requires_grad_(False)

    def decoder(self) -> nn.Module:
        """Its autoencoder on the meta device, frozen; all of these models have the same one."""
        blocks = 4
        with torch.device("meta"):
            autoencoder: nn.Module = AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * blocks,
                up_block_types=("UpDecoderBlock2D",) * blocks,
                layers_per_block=2,
                latent_channels=LATENT_CHANNELS,
            )
        return autoencoder.requires_grad_(False)


_CLIP_L, _CLIP_H, _CLIP_BIG_G = 123_060_480, 340_387_840, 694_659_840
_SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
PUBLISHED: Mapping[str, PublishedModel] = {
    "sd15": PublishedModel(
        (
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "runwayml/stable-diffusion-v1-5",
            "CompVis/stable-diffusion-v1-4",
        ),
        "sd",
        {"sample_size": 64, "cross_attention_dim": 768},
        _CLIP_L,
    ),
    "sd2": PublishedModel(
        ("stabilityai/stable-diffusion-2-1-base", "stabilityai/stable-diffusion-2-base"),
        "sd",
        {"sample_size": 64, **_SD2},
        _CLIP_H,
    ),
    "sd2-768": PublishedModel(
        ("stabilityai/stable-diffusion-2-1", "stabilityai/stable-diffusion-2"),
        "sd",
        {"sample_size": 96, **_SD2},
        _CLIP_H,
    ),
    "sdxl": PublishedModel(
        ("stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/sdxl-turbo"),
        "sdxl",
        _SDXL,
        _CLIP_L + _CLIP_BIG_G,
        pooled=1280,
    ),
}


def published_model(name: str) -> PublishedModel | None:
    """The model that ``name``, a name of ``PUBLISHED`` or a hub id, stands for; None for others."""
    models = PUBLISHED.items()
    return next((model for key, model in models if name == key or name in model.hub_ids), None)
