"""Reward models: a language model with one number as its output, read at the last token of prompt and completion."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftConfig, TaskType
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from ..errors import UserError, first_line
from .causal_lm import (
    check_path,
    check_vocabulary,
    enable_checkpointing,
    is_adapter,
    load_tokenizer,
    prepare,
    window_of,
)
from .latent_diffusion import weights_hash
from .lora import save_transformer
from .quiet import quiet

_HEADS = ("score", "classifier")
_WHOLE: Mapping[str, Sequence[str]] = {"missing_keys": (), "mismatched_keys": ()}
_FOLDER = "give a causal language model to start from, or a sequence classification model with num_labels 1"


class RewardNetwork(nn.Module):
    """A transformers sequence classification model with one label, read at a position that is given, not guessed."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def head_name(self) -> str:
        """Where the head stands in the model."""
        return next(name for name in _HEADS if hasattr(self.model, name))

    @property
    def head(self) -> nn.Module:
        """Hidden states (..., H) to scores (..., 1)."""
        head: nn.Module = getattr(self.model, self.head_name)
        return head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
        """Ids, mask and positions (B, T), index of each row's last token (B,), to scores (B,) float32."""
        hidden = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        rows = torch.arange(len(last), device=last.device)
        scores: Tensor = self.head(hidden[rows, last]).float().squeeze(-1)
        return scores


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A reward network with its tokenizer; ``network`` is what is trained.

    ``is_merged``: it was read from an adapter's folder, whose adapter now is part of its weights.
    """

    network: RewardNetwork
    tokenizer: Any
    is_merged: bool = False

    @property
    def window(self) -> int:
        """Longest sequence, prompt and completion, in tokens."""
        return window_of(self.network.model.config, self.tokenizer)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass."""
        enable_checkpointing(self.network.model)

    def model_hash(self) -> str:
        """Identity of weights, configuration and vocabulary."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return weights_hash(self.network.model, settings=str([vocabulary, self.tokenizer.chat_template]))

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write weights (or adapters and head) and tokenizer as plain transformers and peft load them.

        Adapters over a model that was merged itself are merged too: alone they would go with a base that is nowhere.
        """
        assert isinstance(network, RewardNetwork)
        with quiet():
            save_transformer(network.model, folder, is_merged=self.is_merged)
            self.tokenizer.save_pretrained(folder)


def load(
    path: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> RewardModel:
    """Load a reward model, or a causal LM under a new head drawn from ``seed``; eval mode, frozen, without dropout.

    An adapter of either is merged.

    Raises UserError for a path that is neither, a model with several labels, missing trunk weights, damaged weights, and
    a tokenizer with more tokens than the model.
    """
    check_path(path)
    tokenizer = load_tokenizer(path, revision=revision)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if is_adapter(path):
                model, found = _merged(path, dtype), _WHOLE
            else:
                _check_labels(path, AutoConfig.from_pretrained(path, revision=revision))
                model, found = AutoModelForSequenceClassification.from_pretrained(
                    path, revision=revision, variant=variant, dtype=dtype, output_loading_info=True, num_labels=1
                )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"{path}: could not be loaded as a reward model: {first_line(error)}", _FOLDER) from error
    missing = sorted(key for key in found["missing_keys"] if key.split(".")[0] not in _HEADS)
    if missing:
        raise UserError(f"{path}: {len(missing)} weights are missing, the first is {missing[0]!r}", _FOLDER)
    if not any(hasattr(model, name) for name in _HEADS):
        raise UserError(f"{path}: {type(model).__name__} has no head of the names {_HEADS}", _FOLDER)
    check_vocabulary(path, tokenizer, model)
    prepare(model, path, device)
    # transformers' own forward pass finds the last token by the padding id; without one it takes no batches.
    if model.config.pad_token_id is None:
        model.config.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
    return RewardModel(RewardNetwork(model), tokenizer, is_merged=is_adapter(path))


def _merged(path: str, dtype: torch.dtype) -> Any:
    """The model of an adapter's folder: of a reward model whole, of a language model the trunk under a new head."""
    if PeftConfig.from_pretrained(path).task_type == TaskType.SEQ_CLS:
        return AutoPeftModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, num_labels=1
        ).merge_and_unload()
    writer = AutoPeftModelForCausalLM.from_pretrained(path, dtype=dtype).merge_and_unload()
    config = copy.deepcopy(writer.config)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    model.base_model.load_state_dict(writer.base_model.state_dict())
    return model


def _check_labels(path: str, config: Any) -> None:
    is_classifier = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    if is_classifier and config.num_labels != 1:
        raise UserError(f"{path}: its head has {config.num_labels} labels, a reward model has one", _FOLDER)
