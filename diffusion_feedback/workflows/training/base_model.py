"""The model that a run starts from: loaded, made trainable, and kept as the reference."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...catalog import resolve
from ...config.recipe import Recipe
from ...errors import UserError
from ...folders import expand
from ...models.causal_lm import CausalLM
from ...models.pipelines import family_at
from ...models.reference import AdaptersOff, FrozenModel
from ...models.single_files import is_single_file
from ...runs import recorded_model, weights_of
from ...text_folders import is_adapter
from ...types.models import Adaptable, AdapterSettings, Tokenizer, Tuned
from ...types.training import Reference
from ..settings import ModelSource
from .given import Setup
from .memory import weight_bytes
from .starting import start_from_run, starts_elsewhere, trained_adapters, trained_as_a_whole

logger = logging.getLogger(__name__)


def base_model(setup: Setup, **settings: object) -> Any:
    """The model that is tuned, frozen, in the recipe's precision: the one that was given, or that the recipe names.

    ``settings`` are further ones of the family's loader.
    """
    own = setup.model()
    model = own if own is not None else load_model(setup.recipe, setup.accelerator.device, None, **settings)
    if setup.recipe.model.init_from is not None and setup.recipe.model.tuning == "full":
        start_from_run(setup.recipe, model, trained_as_a_whole(model))  # they are the reference too
    return model


def load_model(recipe: Recipe, device: torch.device, path: str | None = None, **settings: object) -> Any:
    """The model of the recipe's family at ``path`` (the recipe's own unless given), frozen, in the recipe's precision."""
    path = path or recipe.model.pretrained_model_name_or_path
    return load_named_model(path, source_of(recipe, path), dtype=recipe.model.dtype, device=device, **settings)


def source_of(recipe: Recipe, path: str) -> ModelSource:
    """Which weights ``path`` has: revision and variant of ``recipe`` are those of its own model, and of no other."""
    model = recipe.model
    if path != model.pretrained_model_name_or_path:
        return ModelSource(family=model.family)
    return ModelSource(family=model.family, revision=model.revision, variant=model.variant, model_config=model.config)


def load_named_model(
    path: str,
    source: ModelSource,
    *,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    **settings: object,
) -> Any:
    """The model that ``path`` means (a folder, a hub id, a step of a run), frozen, in ``dtype``, with the LoRA of ``source`` on.

    ``settings`` are further ones of the family's loader. Raises UserError where it cannot be loaded.
    """
    path = weights_of(path)
    if source.lora_scale != 1 and not source.lora:
        if not is_adapter(path):
            raise UserError(
                f"`lora_scale`: means nothing for {path}, which has no adapters", "give `lora`, or leave it out"
            )
        settings["lora_scale"] = source.lora_scale
    if source.model_config is not None:
        if not is_single_file(path):
            problem = f"model.config (`model_config`): means nothing for {path}, which is no single file"
            raise UserError(problem, "leave it out")
        settings["config"] = source.model_config
    model = resolve("family", source.family or recorded_family(path) or family_at(path, source.revision))(
        path,
        revision=source.revision,
        variant=source.variant,
        dtype=getattr(torch, dtype),
        device=device,
        **settings,
    )
    if source.lora:
        logger.info("%s", model.load_lora(source.lora, source.lora_scale))
    return model


def recorded_family(path: str) -> str | None:
    """The family that the recipe of the run in the folder ``path`` names; None for other folders and hub ids."""
    remedy = "copy the run's folder whole, or say with `family` what the model is"
    recorded = recorded_model(expand(path), remedy, "family")
    return str(recorded["family"]) if recorded else None


def make_trainable(setup: Setup, model: Adaptable, base_hash: str | None = None) -> list[str]:
    """Adapters over the frozen ``model``, or the whole of it; returns lines on what the adapters are.

    ``base_hash``, where it is that of ``model`` alone, is compared with that of the run at which adapters start. What a
    run that goes on started at is not read again: its checkpoint takes the place of it, and it may be gone.
    """
    recipe, settings = setup.recipe, setup.recipe.model
    if settings.tuning == "full":
        make_whole_trainable(recipe, model)
        return []
    adapters = AdapterSettings(
        rank=settings.lora_rank,
        alpha=settings.lora_alpha if settings.lora_alpha is not None else float(settings.lora_rank),
        targets=settings.lora_targets,
        seed=recipe.training.seed,
        modules_to_save=settings.lora_modules_to_save,
        revision=settings.revision,
        start=None if setup.goes_on else settings.init_lora,
    )
    lines = model.add_adapters(adapters)
    if settings.init_from is not None and not setup.goes_on:
        start_from_run(recipe, model, trained_adapters(model), base_hash)
    if settings.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return [f"adapters         {line}" for line in lines]


def make_whole_trainable(recipe: Recipe, model: Tuned) -> None:
    """All that full tuning trains."""
    for part in model.trained_parts():
        part.requires_grad_(True)
    if recipe.model.gradient_checkpointing:
        model.enable_gradient_checkpointing()


@dataclass(frozen=True, slots=True)
class FrozenReference:
    """A reference, the hash of its weights, the bytes that it takes besides the policy, and in words what it is.

    ``give`` is None, and ``weights_hash`` empty, where nothing is compared with one.
    """

    give: Reference | None
    weights_hash: str
    num_bytes: int
    description: str

    @classmethod
    def none(cls, why: str) -> FrozenReference:
        """No reference, for the reason ``why``."""
        return cls(None, "", 0, f"none: {why}")

    def is_start_of(self, recipe: Recipe, base_hash: str) -> bool:
        """Whether the policy of ``recipe``, over a base of ``base_hash``, is this before the first update."""
        return self.weights_hash == base_hash and not starts_elsewhere(recipe)

    def identity(self) -> dict[str, str]:
        """The hash of the weights under its name."""
        return {"reference": self.weights_hash} if self.weights_hash else {}


def _itself(policy: nn.Module) -> AbstractContextManager[nn.Module]:
    return nullcontext(policy)


def frozen_reference(
    recipe: Recipe, model: Adaptable, base_hash: str, device: torch.device, tokenizer: Tokenizer | None = None
) -> FrozenReference:
    """The recipe's reference, made before ``model`` becomes trainable: another model, the adapters switched off, or a copy.

    With cached values the whole model need not be copied: it is called before the first update, while it is the reference.
    Raises UserError for a reference with another vocabulary than that of the policy's ``tokenizer``.
    """
    path, cached = recipe.model.reference_model_name_or_path, recipe.text.cache_reference
    how = "computed once and looked up" if cached else None
    if path is not None:
        other: CausalLM = load_model(recipe, device, path=path)
        if tokenizer is None or other.tokenizer.get_vocab() != tokenizer.get_vocab():
            problem = f"{path}: its tokenizer has another vocabulary than the policy's"
            raise UserError(problem, "a reference must read the policy's tokens: use a model of the same tokenizer")
        size = weight_bytes(other.network.parameters())
        give: Reference = FrozenModel(other.network)
        return FrozenReference(give, other.model_hash(), size, f"{path}: {how or 'a model of its own'}")
    name = "the model as loaded"
    if recipe.model.tuning == "lora":
        return FrozenReference(AdaptersOff(), base_hash, 0, f"{name}: {how or 'the adapters switched off'}")
    if cached:
        return FrozenReference(_itself, base_hash, 0, f"{name}: {how}")
    size = weight_bytes(model.network.parameters())
    return FrozenReference(FrozenModel.copy_of(model.network), base_hash, size, f"{name}: a copy of its own")
