"""Stable Diffusion 1.x and 2.x (one text encoder; noise or v prediction)."""

from __future__ import annotations

from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from ..types.models import Conditioning
from .exports.original_names import SD
from .latent_diffusion import DiffusionFamily


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


# The safety checker is left out: it would blacken training samples.
FAMILY = DiffusionFamily(
    StableDiffusionPipeline,
    encode_text,
    join,
    call,
    components={"safety_checker": None, "requires_safety_checker": False},
    layout=SD,
)
load, from_pipeline = FAMILY.load, FAMILY.from_pipeline
