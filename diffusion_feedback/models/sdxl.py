"""Stable Diffusion XL: two text encoders, and size and crop given to the network as time ids (arXiv:2307.01952)."""

from __future__ import annotations

from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from ..types.models import Conditioning
from .exports.original_names import SDXL
from .latent_diffusion import DiffusionFamily


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


FAMILY = DiffusionFamily(
    StableDiffusionXLPipeline, encode_text, join, call, components={"add_watermarker": False}, layout=SDXL
)
load, from_pipeline = FAMILY.load, FAMILY.from_pipeline
