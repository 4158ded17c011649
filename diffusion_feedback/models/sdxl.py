"""Stable Diffusion XL: two text encoders, and size and crop given to the network as time ids (arXiv:2307.01952)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from ..types.models import Conditioning
from .latent_diffusion import LatentDiffusion
from .pipelines import load_pipeline, place, reuse_pipeline
from .schedulers import ddpm_process

NETWORK = "unet"
PARTS: Mapping[str, object] = {"add_watermarker": False}


def encode_text(pipeline: StableDiffusionXLPipeline, prompts: list[str]) -> Conditioning:
    """Penultimate states of both encoders side by side, (N, tokens, D), and the second one's pooled state, (N, E).

    The empty prompt is "nothing": zeros where the pipeline says so, as the branch that guidance starts from has them.
    Captions are dropped to it, so that training and sampling mean the same nothing.
    """
    hidden, _, pooled, _ = pipeline.encode_prompt(prompts, device=pipeline.device, do_classifier_free_guidance=False)
    if pipeline.config.force_zeros_for_empty_prompt:
        empty = [index for index, prompt in enumerate(prompts) if not prompt]
        hidden[empty], pooled[empty] = 0.0, 0.0
    return {"encoder_hidden_states": hidden, "text_embeds": pooled}


def join(text: Conditioning, sizes: Tensor) -> Conditioning:
    """Add each image's size conditioning (N, 6) as time ids."""
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
    pipeline = load_pipeline(StableDiffusionXLPipeline, path, revision=revision, variant=variant, **PARTS)
    return _denoiser(pipeline, path, dtype, device)


def over(
    pipeline: StableDiffusionXLPipeline, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> LatentDiffusion:
    """The denoiser of a ``StableDiffusionXLPipeline`` that is loaded already, whose weights it shares; as ``load`` else."""
    reused = reuse_pipeline(pipeline, **PARTS)
    return _denoiser(reused, "the pipeline", dtype, device if device is not None else pipeline.device)


def _denoiser(
    pipeline: StableDiffusionXLPipeline, path: str, dtype: torch.dtype, device: torch.device | str
) -> LatentDiffusion:
    process = ddpm_process(pipeline.scheduler, path)
    placed = place(pipeline, device, dtype, network_name=NETWORK)
    return LatentDiffusion(placed, NETWORK, process, encode_text, join, call)
