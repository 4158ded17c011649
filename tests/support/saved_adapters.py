"""Adapters with drawn weights, saved as runs save them: of a diffusers pipeline, and of a language model."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from diffusion_feedback.catalog import resolve
from diffusion_feedback.models import causal_lm, lora, lora_targets
from diffusion_feedback.types.models import AdapterSettings

TARGETS = ["attention", "feed_forward", "convolutions"]


def draw(network: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in lora.trainable(network):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def save_image_lora(base: Path, family: str, folder: Path, *, rank: int = 4, alpha: float = 12.0) -> Path:
    """The folder of a finished LoRA run over the pipeline ``base``, with its recipe."""
    denoiser = resolve("family", family)(str(base))
    lora.add(denoiser.network, AdapterSettings(rank=rank, alpha=alpha, targets=TARGETS, seed=0))
    draw(denoiser.network)
    folder.mkdir(parents=True, exist_ok=True)
    denoiser.save(denoiser.network, folder)
    model = {"pretrained_model_name_or_path": str(base), "tuning": "lora", "family": family}
    model |= {"revision": None, "variant": None, "lora_rank": rank, "lora_alpha": alpha}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": model}))
    return folder


def save_text_adapter(base: Path, folder: Path) -> Path:
    """The folder of an adapter over the language model ``base``, with its tokenizer."""
    model = causal_lm.load(str(base))
    settings = AdapterSettings(rank=4, alpha=8, targets=["attention", "feed_forward"], seed=1)
    lora_targets.add_adapters(model.network.model, settings, task_type="CAUSAL_LM")
    draw(model.network)
    model.save(model.network, folder)
    return folder
