"""Reward models: a language model with one number as its output, read at the last token of prompt and completion."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from ..errors import UserError
from ..foreign import reading
from ..quiet import quiet
from ..text_folders import (
    LoadedModel,
    adapter_config,
    check_vocabulary,
    is_adapter,
    load_config,
    load_network,
    load_tokenizer,
    located,
    rows_of,
    text_config_of,
)
from ..types.models import Tokenizer
from ..weights import check_complete
from .end_tokens import padding_token
from .output_heads import hidden_states
from .text_network import TokenModel, prepare

_HEADS = ("score", "classifier")
_WHAT = "a reward model"
_FOLDER = "give a causal language model to start from, or a sequence classification model with num_labels 1"


class RewardNetwork(nn.Module):
    """A transformers sequence classification model with one label, read at a position that is given, not guessed."""

    task_type = TaskType.SEQ_CLS

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def modules_to_save(self) -> list[str]:
        """Where the head stands in the model, which is trained whole."""
        return [next(name for name in _HEADS if hasattr(self.model, name))]

    @property
    def head(self) -> nn.Module:
        """Hidden states (..., H) to scores (..., 1)."""
        head: nn.Module = getattr(self.model, self.modules_to_save[0])
        return head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
        """Ids, mask and positions (B, T), index of each row's last token (B,), to scores (B,) float32."""
        hidden = hidden_states(self.model, input_ids, attention_mask=attention_mask, position_ids=position_ids)
        rows = torch.arange(len(last), device=last.device)
        scores: Tensor = self.head(hidden[rows, last]).float().squeeze(-1)
        return scores


@dataclass(frozen=True)
class RewardModel(TokenModel):
    """A reward network with its tokenizer: what is tuned, and judges texts."""

    network: RewardNetwork
    tokenizer: Tokenizer
    is_merged: bool = False


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
    located(path, _WHAT, _FOLDER)
    tokenizer = load_tokenizer(path, revision=revision)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded = _load(path, revision, variant, dtype)
    model = loaded.model
    missing = (key for key in loaded.missing if key.split(".")[0] not in _HEADS)
    check_complete(path, missing, _FOLDER)
    return from_model(model, tokenizer, path, device, is_merged=loaded.is_merged)


def from_model(
    model: PreTrainedModel, tokenizer: Tokenizer, path: str, device: torch.device | str, *, is_merged: bool = False
) -> RewardModel:
    """The same over a transformers ``model`` of one label that is loaded already, which errors call ``path``.

    Raises UserError as ``load``.
    """
    _check_labels(path, model.config)
    if not any(hasattr(model, name) for name in _HEADS):
        raise UserError(f"{path}: {type(model).__name__} has no head of the names {_HEADS}", _FOLDER)
    check_vocabulary(path, tokenizer, model)
    with reading(path, _WHAT, _FOLDER):
        prepare(model, path, device)
    _set_padding(model, tokenizer)
    return RewardModel(RewardNetwork(model), tokenizer, is_merged=is_merged)


def _load(path: str, revision: str | None, variant: str | None, dtype: torch.dtype) -> LoadedModel:
    if is_adapter(path) and adapter_config(path).task_type != TaskType.SEQ_CLS:
        return _under_new_head(load_network(path, AutoModelForCausalLM, "a language model", _FOLDER, dtype=dtype), path)
    if not is_adapter(path):
        _check_labels(path, load_config(path, _WHAT, _FOLDER, revision=revision))
    return load_network(
        path,
        AutoModelForSequenceClassification,
        _WHAT,
        _FOLDER,
        revision=revision,
        variant=variant,
        dtype=dtype,
        num_labels=1,
    )


def _under_new_head(base: LoadedModel, path: str) -> LoadedModel:
    """The trunk of a language model that was merged with its adapter, under a new head."""
    config = copy.deepcopy(base.model.config)
    config.num_labels = 1
    with reading(path, _WHAT, _FOLDER):
        model = AutoModelForSequenceClassification.from_config(config, dtype=base.model.dtype)
        model.base_model.load_state_dict(base.model.base_model.state_dict())
    return LoadedModel(model, frozenset(), frozenset(), base.is_merged)


def _set_padding(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """A padding token that ends no text, for other readers: transformers' own forward pass reads the last token that is no
    padding, so with an end token as padding it would read the token before it. Without such a token it takes texts one by one.
    """
    token = padding_token(tokenizer, rows_of(model))
    if token is not None and token != tokenizer.pad_token:
        tokenizer.add_special_tokens({"pad_token": token})
    for config in {id(part): part for part in (model.config, text_config_of(model.config))}.values():
        config.pad_token_id = None if token is None else tokenizer.pad_token_id


def _check_labels(path: str, config: PreTrainedConfig) -> None:
    is_classifier = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    if is_classifier and config.num_labels != 1:
        raise UserError(f"{path}: its head has {config.num_labels} labels, a reward model has one", _FOLDER)
