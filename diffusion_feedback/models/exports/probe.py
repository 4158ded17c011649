"""What an export is compared by: a model's output on the same latents, prompts and timesteps, or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..latent_diffusion import LatentDiffusion

Outputs = Sequence[Tensor]

_PROMPTS = ("a photograph of a red apple on a wooden table", "")
_LARGEST = 32  # side of the latents: a model of any size answers within seconds
_TOKENS = (2, 16)


@torch.no_grad()
def image_outputs(denoiser: LatentDiffusion) -> list[Tensor]:
    """The network's predictions (2, C, h, w) at two timesteps, and what the VAE decodes the latents to; float32, CPU."""
    own = denoiser.network
    config: Any = own.config
    side = min(int(config["sample_size"]), _LARGEST)
    shape = (len(_PROMPTS), int(config["in_channels"]), side, side)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(denoiser.pipeline.device)
    text = denoiser.encode_prompts(_PROMPTS)
    sizes = torch.full((len(_PROMPTS), 6), float(denoiser.resolution))
    given = {name: value.to(latents) for name, value in denoiser.conditioning(text, sizes).items()}
    outputs = []
    with torch.backends.cudnn.flags(allow_tf32=False):  # whose rounding is a thousand times that of float32
        for share in (0.2, 0.8):
            step = int(share * denoiser.process.num_timesteps)
            timesteps = torch.full((len(_PROMPTS),), step, device=latents.device)
            outputs.append(denoiser.predict(own, latents, timesteps, given).float().cpu())
        decoded = denoiser.pipeline.vae.decode(latents, return_dict=False)[0]
    return [*outputs, decoded.float().cpu()]


@torch.no_grad()
def text_outputs(model: PreTrainedModel) -> list[Tensor]:
    """The logits of a transformers ``model`` on drawn tokens; float32, CPU."""
    rows = int(model.get_input_embeddings().num_embeddings)
    ids = torch.randint(rows, _TOKENS, generator=torch.Generator().manual_seed(0)).to(model.device)
    # A classifier reads the last token that is no padding: one by one nothing is padded.
    return [model(input_ids=row[None], use_cache=False).logits.float().cpu() for row in ids]


def relative_error(outputs: Outputs, truth: Outputs) -> float:
    """The largest difference of each of ``outputs``, as a share of the largest value of the ``truth``; the worst of them."""
    worst = 0.0
    for own, true in zip(outputs, truth, strict=True):
        error = float((own - true).abs().max() / true.abs().max())
        worst = max(worst, error if error == error else float("inf"))
    return worst
