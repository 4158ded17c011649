"""Stable Diffusion 1.x and 2.x (one text encoder; noise or v prediction)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from ..types.models import Conditioning
from .latent_diffusion import LatentDiffusion
from .pipelines import load_pipeline, place, reuse_pipeline
from .schedulers import ddpm_process

NETWORK = "unet"
PARTS: Mapping[str, object] = {"safety_checker": None, "requires_safety_checker": False}


def encode_text(pipeline: StableDiffusionPipeline, prompts: list[str]) -> Conditioning:
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
    pipeline = load_pipeline(StableDiffusionPipeline, path, revision=revision, variant=variant, **PARTS)
    return _denoiser(pipeline, path, dtype, device)


def over(
    pipeline: StableDiffusionPipeline, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> LatentDiffusion:
    """The denoiser of a ``StableDiffusionPipeline`` that is loaded already, whose weights it shares; as ``load`` else."""
    reused = reuse_pipeline(pipeline, **PARTS)
    return _denoiser(reused, "the pipeline", dtype, device if device is not None else pipeline.device)


def _denoiser(
    pipeline: StableDiffusionPipeline, path: str, dtype: torch.dtype, device: torch.device | str
) -> LatentDiffusion:
    process = ddpm_process(pipeline.scheduler, path)
    placed = place(pipeline, device, dtype, network_name=NETWORK)
    return LatentDiffusion(placed, NETWORK, process, encode_text, join, call)
