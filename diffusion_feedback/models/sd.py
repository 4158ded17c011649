"""Stable Diffusion 1.x and 2.x (one text encoder; noise or v prediction)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from ..types import Conditioning
from .latent_diffusion import LatentDiffusion, ddpm_process
from .pipelines import load_pipeline, place


def encode_text(pipeline: Any, prompts: list[str]) -> Conditioning:
    """Last hidden states of the text encoder, (N, tokens, D)."""
    hidden, _ = pipeline.encode_prompt(prompts, pipeline.device, 1, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": hidden}


def join(text: Conditioning, sizes: Tensor) -> Conditioning:
    """Stable Diffusion knows nothing of sizes: ``text`` as it is."""
    return text


def call(network: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """The UNet's prediction, shaped as ``noisy``."""
    prediction: Tensor = network(noisy, timesteps, conditioning["encoder_hidden_states"], return_dict=False)[0]
    return prediction


def load(
    path: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LatentDiffusion:
    """Load a Stable Diffusion folder or hub id; the network in ``dtype``, the encoders in float32.

    The safety checker is left out: it would blacken training samples. Raises UserError as ``load_pipeline`` does.
    """
    pipeline = load_pipeline(
        StableDiffusionPipeline,
        path,
        revision=revision,
        variant=variant,
        safety_checker=None,
        requires_safety_checker=False,
    )
    process = ddpm_process(pipeline.scheduler, path)
    return LatentDiffusion(place(pipeline, device, dtype), process, encode_text, join, call)
