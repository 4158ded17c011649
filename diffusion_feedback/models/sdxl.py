"""Stable Diffusion XL: two text encoders, and size and crop told to the network as time ids (arXiv:2307.01952)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from ..types import Conditioning
from .latent_diffusion import LatentDiffusion, ddpm_process, load_pipeline, place


def encode_text(pipeline: Any, prompts: list[str]) -> Conditioning:
    """Penultimate states of both encoders side by side, (N, tokens, D), and the second one's pooled state, (N, E)."""
    hidden, _, pooled, _ = pipeline.encode_prompt(prompts, device=pipeline.device, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": hidden, "text_embeds": pooled}


def join(text: Conditioning, sizes: Tensor) -> Conditioning:
    """Add each image's size story (N, 6) as time ids."""
    return {**text, "time_ids": sizes}


def call(network: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """The UNet's prediction, shaped as ``noisy``."""
    added = {"text_embeds": conditioning["text_embeds"], "time_ids": conditioning["time_ids"]}
    hidden = conditioning["encoder_hidden_states"]
    prediction: Tensor = network(noisy, timesteps, hidden, added_cond_kwargs=added, return_dict=False)[0]
    return prediction


def load(
    path: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LatentDiffusion:
    """Load an SDXL folder or hub id; the network in ``dtype``, the encoders in float32.

    Raises UserError as ``load_pipeline`` does.
    """
    pipeline = load_pipeline(StableDiffusionXLPipeline, path, revision=revision, variant=variant, add_watermarker=False)
    return LatentDiffusion(place(pipeline, device, dtype), ddpm_process(pipeline.scheduler), encode_text, join, call)
