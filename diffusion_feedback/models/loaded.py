"""Models that somebody has loaded: their class says which family they are of, and what is tuned is made over their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..quiet import quiet
from ..types.models import Denoiser, TextModel, Tokenizer
from . import causal_lm, reward_model, sd, sdxl
from .lora import is_adapted, remove

_PIPELINES: Mapping[type[Any], tuple[str, Callable[..., Denoiser]]] = {
    StableDiffusionPipeline: ("sd", sd.over),
    StableDiffusionXLPipeline: ("sdxl", sdxl.over),
}
# How the names of transformers' classes end.
_TRANSFORMERS: Mapping[str, tuple[str, Callable[..., TextModel]]] = {
    "ForSequenceClassification": ("reward_model", reward_model.over),
    "LMHeadModel": ("causal_lm", causal_lm.over),
    "ForCausalLM": ("causal_lm", causal_lm.over),
    "ForConditionalGeneration": ("causal_lm", causal_lm.over),
}


def family_of(model: object) -> str:
    """The family of a loaded pipeline or transformers ``model``. Raises UserError for a class that none is made of."""
    return _family(model)[0]


def over(
    model: object,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Denoiser | TextModel:
    """What is tuned and sampled, over the weights of a loaded ``model``, in ``dtype``; they are shared, not copied.

    ``model`` is a diffusers pipeline, or a transformers model that comes with its ``tokenizer``. It stays on its device
    unless another is given. Raises UserError for another class, a missing tokenizer, damaged weights, and parts that do
    not belong together.
    """
    build = _family(model)[1]
    if isinstance(model, DiffusionPipeline):
        return build(model, dtype=dtype, device=device)
    if tokenizer is None:
        raise UserError(f"model: a {type(model).__name__} came without its tokenizer", "give tokenizer as well")
    return build(model, tokenizer, dtype=dtype, device=device)


def with_result(model: Any, folder: Path) -> DiffusionPipeline | PeftModel:
    """The loaded ``model`` with the adapters that a run on it has left in ``folder``, in the place of those that it has."""
    without_adapters(model)
    if isinstance(model, DiffusionPipeline):
        with quiet():
            model.load_lora_weights(folder)
        return model
    return PeftModel.from_pretrained(model, folder)


def within(model: object) -> object:
    """The transformers model within peft's wrapper, adapters and all; any other ``model`` as it is."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def has_adapters(model: object) -> bool:
    """Whether the loaded ``model`` carries adapters."""
    parts = model.components.values() if isinstance(model, DiffusionPipeline) else [model]
    return any(is_adapted(part) for part in parts if isinstance(part, nn.Module))


def without_adapters(model: object) -> None:
    """Take the adapters of a run out of the loaded ``model`` again, which is then as it came."""
    parts = model.components.values() if isinstance(model, DiffusionPipeline) else [model]
    for part in parts:
        if isinstance(part, nn.Module):
            remove(part)


def _family(model: object) -> tuple[str, Callable[..., Denoiser | TextModel]]:
    name = type(model).__name__
    for kind, family in _PIPELINES.items():
        if isinstance(model, kind):
            return family
    if isinstance(model, PreTrainedModel):
        for ending, own in _TRANSFORMERS.items():
            if name.endswith(ending):
                return own
    classes = ", ".join(kind.__name__ for kind in _PIPELINES)
    problem = f"model: of a {name} no family is known"
    raise UserError(
        problem, f"give a {classes} of diffusers, or a causal language model or a classifier of transformers"
    )
