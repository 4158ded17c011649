"""Models that somebody has loaded: their class says which family they are of, and what is tuned is made over their weights."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ..catalog.families import FAMILIES, family_of_class, pipeline_classes
from ..catalog.rows import import_path
from ..errors import UserError
from ..quiet import quiet
from ..types.models import Adaptable, Tokenizer
from .lora import is_adapted, remove


def family_of(model: object) -> str:
    """The family of a loaded pipeline or transformers ``model``. Raises UserError for a class that none is made of."""
    if isinstance(model, DiffusionPipeline | PreTrainedModel):
        family = family_of_class(kind.__name__ for kind in type(model).__mro__)
        if family:
            return family
    pipelines = ", ".join(pipeline_classes().values())
    remedy = f"give a {pipelines} of diffusers, or a causal language model or a classifier of transformers"
    raise UserError(f"model: of a {type(model).__name__} no family is known", remedy)


def from_loaded(
    model: object,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Adaptable:
    """What is tuned and sampled, over the weights of a loaded ``model``, in ``dtype``; they are shared, not copied.

    ``model`` is a diffusers pipeline, or a transformers model that comes with its ``tokenizer``, of which a copy is taken.
    It stays on its device unless another is given; ``as_it_came`` undoes what is done to it. Raises UserError for another
    class, a missing tokenizer, damaged weights, and parts that do not belong together.
    """
    row = FAMILIES[family_of(model)]
    assert row.from_loaded is not None
    assert isinstance(model, DiffusionPipeline | PreTrainedModel)
    build, place = import_path(row.from_loaded), device if device is not None else model.device
    if isinstance(model, DiffusionPipeline):
        return build(model, dtype=dtype, device=place)  # type: ignore[return-value]
    name = type(model).__name__
    if tokenizer is None:
        raise UserError(f"model: a {name} came without its tokenizer", "give tokenizer as well")
    if not hasattr(tokenizer, "get_vocab"):
        raise UserError(f"`tokenizer`: got a {type(tokenizer).__name__}", "give a tokenizer of transformers, loaded")
    return build(model.to(dtype), copy.deepcopy(tokenizer), f"the {name}", place)  # type: ignore[return-value]


def load_adapters_onto(model: object, folder: Path) -> DiffusionPipeline | PeftModel:
    """The loaded ``model`` with the adapters that a run on it has left in ``folder``, in the place of those that it has."""
    for part in _parts_of(model):
        remove(part)
    if isinstance(model, DiffusionPipeline):
        with quiet():
            model.load_lora_weights(folder)
        return model
    return PeftModel.from_pretrained(model, folder)


def unwrapped(model: object) -> object:
    """The transformers model within peft's wrapper, adapters and all; any other ``model`` as it is."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def has_adapters(model: object) -> bool:
    """Whether the loaded ``model`` carries adapters."""
    return any(is_adapted(part) for part in _parts_of(unwrapped(model)))


@contextmanager
def as_it_came(*models: object, is_trained: bool = False) -> Iterator[None]:
    """Each of ``models`` that is loaded is at the end as it was: weights, device, adapters, what is frozen, modes, dropout.

    ``is_trained``: their own weights may be trained meanwhile; these keep their new values, in the precision and on the device
    from before. Weights that are put in another precision or on another device meanwhile are in memory twice.
    """
    parts = [part for model in models for part in _parts_of(model)]
    modules = {module for part in parts for module in part.modules()}
    configs = {id(config): config for each in modules if hasattr(config := getattr(each, "config", None), "__dict__")}
    # Attributes, and the tables of parts, hooks and settings among them, which stay the same objects: handles know them.
    attributes = [vars(each) for each in (*modules, *configs.values())]
    known = [table for own in attributes for table in (*own.values(), own) if type(table) in (dict, OrderedDict, set)]
    tables = [(table, copy.copy(table)) for table in known]
    weights = {weight: (weight.data, weight.requires_grad) for part in parts for weight in part.parameters()}
    try:
        yield
    finally:
        for now, before in tables:
            now.clear()
            now.update(before)
        for weight, (data, requires_grad) in weights.items():
            weight.data = weight.data.to(data) if is_trained and weight.requires_grad else data
            weight.requires_grad_(requires_grad)


def _parts_of(model: object) -> list[nn.Module]:
    parts = model.components.values() if isinstance(model, DiffusionPipeline) else [model]
    return [part for part in parts if isinstance(part, nn.Module)]
