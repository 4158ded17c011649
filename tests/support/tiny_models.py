"""Tiny real diffusers pipelines with random weights, built from configs alone: no hub, no files but those written here."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TOKENS = 77


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that spells words letter by letter."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = letters + [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def _vae(**more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **more,
    )


def _text_config(tokens: CLIPTokenizer, width: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
    )


def _scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", prediction_type=prediction_type, clip_sample=False, steps_offset=1
    )


def save_sd(folder: Path, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a tiny StableDiffusionPipeline (16 px, 8 x 8 latents) to ``folder``."""
    torch.manual_seed(seed)
    tokens = tokenizer(folder / "spelling")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokens)),
        tokenizer=tokens,
        unet=unet,
        scheduler=_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def save_sdxl(folder: Path, seed: int = 0, second_width: int = 16) -> Path:
    """Write a tiny StableDiffusionXLPipeline (16 px, 8 x 8 latents) to ``folder``; its second text encoder has this width."""
    torch.manual_seed(seed)
    tokens = tokenizer(folder / "spelling")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16 + second_width,
        attention_head_dim=2,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + second_width,
        use_linear_projection=True,
    )
    StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokens)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokens, second_width)),
        tokenizer=tokens,
        tokenizer_2=tokens,
        unet=unet,
        scheduler=_scheduler("epsilon"),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def sd3_pipeline(seed: int = 0) -> StableDiffusion3Pipeline:
    """A tiny StableDiffusion3Pipeline (16 px, 8 x 8 latents) without the third text encoder: a transformer and a flow."""
    torch.manual_seed(seed)
    with TemporaryDirectory() as folder:
        tokens = tokenizer(Path(folder))
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    for parameter in transformer.parameters():  # some start at zero, which would hide everything before them
        torch.nn.init.normal_(parameter, std=0.2)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(_text_config(tokens)),
        tokenizer=tokens,
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokens)),
        tokenizer_2=tokens,
        text_encoder_3=None,
        tokenizer_3=None,
    )
