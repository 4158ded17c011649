"""A family of models of one's own: Stable Diffusion without the last layer of its text encoder ("clip skip").

    dfb train --config configs/shapes_dpo_lora.yaml --model.family examples/own_family.py:clip_skip
    dfb generate assets/shapes-sd --family examples/own_family.py:clip_skip --prompts prompts.txt --output_dir out/images

A family is a row that says how a model is loaded. What is loaded has all that a denoiser promises (``types/models.py``); over a diffusers
pipeline ``LatentDiffusion`` has it, from three functions: how prompts are encoded, how sizes join them, and how the
network is called. Their source is part of the model's identity, so no cached embedding outlives a change.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from diffusion_feedback import Family, LatentDiffusion
from diffusion_feedback.models.pipelines import load_pipeline, place
from diffusion_feedback.models.schedulers import ddpm_process


def encode_text(pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
    """The text part of the conditioning: tensors by name, batch first."""
    hidden, _ = pipeline.encode_prompt(prompts, pipeline.device, 1, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": hidden}


def join(text: dict[str, Tensor], sizes: Tensor) -> dict[str, Tensor]:
    """Text and sizes of the original images (N, 6); this family knows nothing of sizes."""
    return text


def call(network: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The network's prediction, shaped as ``noisy``."""
    return network(noisy, timesteps, conditioning["encoder_hidden_states"], return_dict=False)[0]


def load(
    path: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LatentDiffusion:
    """Load the pipeline at ``path``, and leave the last layer of its text encoder out."""
    pipeline = load_pipeline(
        StableDiffusionPipeline,
        path,
        revision=revision,
        variant=variant,
        safety_checker=None,
        requires_safety_checker=False,
    )
    model = pipeline.text_encoder
    encoder = getattr(model, "text_model", model).encoder  # the layers moved up between versions of transformers
    encoder.layers = encoder.layers[:-1]
    model.config.num_hidden_layers -= 1  # so that a saved pipeline is loaded without it too
    process = ddpm_process(pipeline.scheduler, path)
    return LatentDiffusion(
        place(pipeline, device, dtype, network_name="unet"), "unet", process, encode_text, join, call
    )


clip_skip = Family(load)
