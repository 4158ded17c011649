"""A family of models of one's own: Stable Diffusion without the last layer of its text encoder ("clip skip").

    dfb train --config configs/shapes_dpo_lora.yaml --model.family examples/own_family.py:clip_skip
    dfb generate assets/shapes-sd --family examples/own_family.py:clip_skip --prompts prompts.txt --output_dir out/images

A family is a row that says how a model is loaded. What is loaded has all that a denoiser promises (``types/models.py``);
over a diffusers pipeline ``DiffusionFamily`` makes it, of three functions: how prompts are encoded, how sizes join them, and
how the network is called. Their source is part of the model's identity, so no cached embedding outlives a change.
"""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from diffusion_feedback import DiffusionFamily, Family, LatentDiffusion


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


NO_CHECKER = {"safety_checker": None, "requires_safety_checker": False}
PLAIN = DiffusionFamily(StableDiffusionPipeline, encode_text, join, call, components=NO_CHECKER)


def load(path: str, **settings: Any) -> LatentDiffusion:
    """Load the pipeline at ``path`` (revision, variant, dtype, device), and leave the last layer of its text encoder out."""
    denoiser = PLAIN.load(path, **settings)
    encoder = denoiser.pipeline.text_encoder
    if not getattr(encoder.config, "is_skipped", False):  # what a run has saved comes without that layer
        layers = getattr(encoder, "text_model", encoder).encoder  # they moved up between versions of transformers
        layers.layers = layers.layers[:-1]
        encoder.config.update({"num_hidden_layers": len(layers.layers), "is_skipped": True})
    return denoiser


clip_skip = Family(load)
