"""The models that gpu_report.py measures: the published architectures with random weights, made on the device itself.

A forward pass costs what it costs whatever the weights are, so nothing is downloaded. ``tiny`` has the same blocks at a
size that a CPU runs in seconds: it shows that the report works, not how fast anything is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusion_feedback.models import sd, sdxl
from diffusion_feedback.models.latent_diffusion import LatentDiffusion
from diffusion_feedback.models.pipelines import ddpm_process

ASSETS = Path(__file__).resolve().parent.parent / "assets"
TOKENS = 77
SD_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}
# The parameters of the published UNets, by which a wrong architecture would be noticed.
PARAMETERS = {"sd15": 859_520_964, "sdxl": 2_567_463_684}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_BIG_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 16,
}


@dataclass(frozen=True)
class ImageSetting:
    """What a family's step is measured at: the image side in px, pairs a pass, the LoRA's rank."""

    resolution: int
    pairs: int
    rank: int = 16


SETTINGS = {
    "full": {"sd15": ImageSetting(512, 16), "sdxl": ImageSetting(1024, 4)},
    "tiny": {"sd15": ImageSetting(32, 2, 4), "sdxl": ImageSetting(32, 2, 4)},
}


def unet_config(family: str, size: str) -> dict[str, Any]:
    """The UNet's configuration of ``family`` (sd15, sdxl) at ``size`` (full, tiny)."""
    config = dict(SD_UNET if family == "sd15" else SDXL_UNET)
    if size == "full":
        return config
    width = len(config.get("block_out_channels", (1, 2, 3, 4)))
    config |= {"sample_size": 4, "block_out_channels": (8,) * width, "norm_num_groups": 4, "attention_head_dim": 2}
    config |= {"layers_per_block": 1, "cross_attention_dim": 16 if family == "sd15" else 32}
    if family == "sdxl":
        config |= {"transformer_layers_per_block": 1, "projection_class_embeddings_input_dim": 16 + 6 * 8}
        config |= {"addition_time_embed_dim": 8}
    return config


def denoiser(family: str, size: str, device: str, dtype: torch.dtype) -> LatentDiffusion:
    """The model of ``family`` on ``device``: the network in ``dtype``, the encoders in float32, all frozen."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**unet_config(family, size)).to(dtype)
        vae = AutoencoderKL(**(VAE if size == "full" else VAE | {"block_out_channels": (8,) * 4, "norm_num_groups": 4}))
        texts = [_text_encoder(CLIP_L if size == "full" else TINY_TEXT, is_second=False)]
        if family == "sdxl":
            texts.append(_text_encoder(CLIP_BIG_G if size == "full" else TINY_TEXT, is_second=True))
    tokens = CLIPTokenizer.from_pretrained(ASSETS / "shapes-sd" / "tokenizer", model_max_length=TOKENS)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    parts: dict[str, Any] = {"vae": vae, "unet": unet, "tokenizer": tokens, "scheduler": scheduler}
    for part in (unet, vae, *texts):
        part.requires_grad_(False).eval()
    if family == "sd15":
        optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, text_encoder=texts[0], **optional)
        return LatentDiffusion(pipeline, ddpm_process(scheduler), sd.FAMILY)
    both = {"text_encoder": texts[0], "text_encoder_2": texts[1], "tokenizer_2": tokens, "add_watermarker": False}
    pipeline = StableDiffusionXLPipeline(**parts, **both)
    return LatentDiffusion(pipeline, ddpm_process(scheduler), sdxl.FAMILY)


def _text_encoder(config: dict[str, Any], *, is_second: bool) -> Any:
    tokens = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "max_position_embeddings": TOKENS}
    kind = CLIPTextModelWithProjection if is_second else CLIPTextModel
    return kind(CLIPTextConfig(**{**tokens, **config}))
