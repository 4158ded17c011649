"""A transformers model over tokens as it is tuned: its network and tokenizer, what is trained of it, and how it is saved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import torch
from peft import TaskType
from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..quiet import quiet
from ..text_folders import NO_LIMIT, positions_of, rows_of
from ..types.models import AdapterSettings, Tokenizer
from ..weights import check_finite, modules_hash, move
from .lora import save_transformer
from .lora_starting import model_factors, start_at
from .lora_targets import add_adapters
from .output_heads import trunk_of
from .saving import ADAPTER_FILES, TOKENIZER_FILES, TRANSFORMER_FILES, saving

_NOISE = re.compile("dropout|layerdrop|drop_prob|pdrop|jitter")  # names of rates of noise in transformers' models


class TextNetwork(Protocol):
    """A transformers ``model`` behind a forward pass of ours, which ends in its ``head``.

    ``task_type`` is peft's, by which it finds the class of the model; ``modules_to_save`` are names of modules that are
    trained whole beside adapters.
    """

    model: PreTrainedModel
    task_type: TaskType

    @property
    def head(self) -> nn.Module: ...
    @property
    def modules_to_save(self) -> Sequence[str]: ...


class TokenModel(Protocol):
    """What every transformers model over tokens does, whatever it gives, by its network, which is trained, and its tokenizer.

    ``is_merged``: it was read from an adapter's folder, whose adapter now is part of its weights.
    """

    network: TextNetwork
    tokenizer: Tokenizer
    is_merged: bool

    @property
    def library_model(self) -> PreTrainedModel:
        """The object of its library that all this is made of."""
        return self.network.model

    def trained_parts(self) -> list[nn.Module]:
        """What full tuning trains: of a multimodal model the part for texts and the head."""
        trunk = trunk_of(self.library_model)
        return [self.library_model] if trunk is self.library_model.base_model else [trunk, self.network.head]

    def add_adapters(self, settings: AdapterSettings) -> list[str]:
        """Adapters over the frozen model, and modules trained whole beside them; says in words what is trained."""
        whole = (*self.network.modules_to_save, *settings.modules_to_save)
        factors = model_factors(self.library_model, settings.start) if settings.start is not None else {}
        lines = add_adapters(
            self.library_model,
            replace(settings, modules_to_save=whole),
            task_type=self.network.task_type,
            is_merged=self.is_merged,
        )
        return lines if settings.start is None else [*lines, start_at(self.library_model, factors, settings.start)]

    @property
    def window(self) -> int:
        """Longest sequence, prompt and completion, in tokens, that the model holds; as its tokenizer says where it states none."""
        positions = positions_of(self.library_model.config)
        return positions if positions < NO_LIMIT else int(min(positions, self.tokenizer.model_max_length))

    @property
    def usual_length(self) -> int:
        """How long texts are when nobody says otherwise: as the tokenizer says, at most what the model holds."""
        return int(min(self.window, self.tokenizer.model_max_length))

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass; frozen weights under adapters pass gradients on."""
        model = self.library_model
        # transformers is changing the name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        model.enable_input_require_grads()

    def model_hash(self) -> str:
        """Identity of weights, configuration and vocabulary."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return modules_hash(self.library_model, settings=str([vocabulary, self.tokenizer.chat_template]))

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write weights (or adapters and head) and tokenizer as plain transformers and peft load them.

        Adapters over a model that was merged itself are merged too: alone they would go with a base that is nowhere.
        """
        with quiet(), saving(folder) as beside:
            save_transformer(cast(TextNetwork, network).model, beside, is_merged=self.is_merged)
            self.tokenizer.save_pretrained(beside)

    def written_files(self) -> tuple[str, ...]:
        """Patterns of what ``save`` may write."""
        return (*TRANSFORMER_FILES, *ADAPTER_FILES, *TOKENIZER_FILES)


def prepare(model: PreTrainedModel, path: str, device: torch.device | str) -> None:
    """Freeze ``model``, in eval mode, without dropout, on ``device``. Raises UserError for damaged weights."""
    check_finite(model, path)
    _no_dropout(model, path)
    model.requires_grad_(False).eval()
    move(model, device)


def _no_dropout(model: nn.Module, path: str) -> None:
    """Switch all dropout off: its draws could not be repeated, and policy and reference would differ.

    Rates that a module reads from its config are set there. Raises UserError for a model at ``path`` whose training
    passes differ all the same.
    """
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        _silence(module)
    if not _repeats(model):
        configs = (getattr(module, "config", None) for module in modules)
        for config in {id(each): each for each in configs if each}.values():
            _silence(config)
        if not _repeats(model):
            problem = f"{path}: two training passes of a {type(model).__name__} on the same tokens differ"
            raise UserError(problem, "use a model without noise of its own")


def _silence(holder: object) -> None:
    for name, value in list(vars(holder).items()):
        if isinstance(value, float) and _NOISE.search(name):
            setattr(holder, name, 0.0)


@torch.no_grad()
def _repeats(model: PreTrainedModel) -> bool:
    was_training = model.training
    ids = torch.arange(min(16, rows_of(model)), device=model.device)[None]
    trunk = trunk_of(model)
    # The part for text alone of a multimodal model, which in training asks for images too.
    part = trunk if trunk is not model.base_model else model
    model.train()
    with torch.random.fork_rng(devices=[]):
        first, second = (part(input_ids=ids, use_cache=False, return_dict=True)[0] for _ in range(2))
    model.train(was_training)
    return bool(torch.equal(first, second))
