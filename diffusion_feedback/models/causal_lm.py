"""Language models (transformers' causal LMs): hidden states and head apart, loading, counted sampling, saving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..errors import UserError, first_line
from ..foreign import reading
from ..quiet import quiet
from ..text_folders import (
    adapter_config,
    check_vocabulary,
    is_adapter,
    load_network,
    load_tokenizer,
    located,
    rows_of,
)
from ..types.models import Tokenizer, TokenProcessor
from ..weights import check_complete
from .end_tokens import closing_token_id
from .output_heads import check_logits, head_of, hidden_states
from .text_network import TokenModel, prepare
from .text_sampling import sample_tokens

Read = Callable[[Tensor, nn.Module], Any]
"""Takes hidden states (B, T, H) after the last norm, and the output head; what it returns, the forward pass returns."""

_WHAT = "a language model"
_FOLDER = "give a folder that save_pretrained wrote for a causal language model, its adapter folder, or a hub id"


class LanguageModel(nn.Module):
    """A transformers causal LM whose output head is called by the reader, so that only what is requested is projected."""

    task_type = TaskType.CAUSAL_LM
    modules_to_save = ()

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def head(self) -> nn.Module:
        """The output head as it lies in the model: hidden states (..., H) to logits that are not scaled or capped yet."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, read: Read) -> object:
        """Ids and positions (B, T), mask (B, T) or (B, 1, T, T) bool, to what ``read`` makes of the hidden states."""
        hidden = hidden_states(self.model, input_ids, attention_mask=attention_mask, position_ids=position_ids)
        return read(hidden, head_of(self.model))


@dataclass(frozen=True)
class CausalLM(TokenModel):
    """A language model with its tokenizer: what is tuned, and draws completions."""

    network: LanguageModel
    tokenizer: Tokenizer
    is_merged: bool = False

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: the tokenizer's own end token first, then those of the generation settings, then
        the one that closes the assistant's turn in the tokenizer's chat template.
        """
        stated = _stated_ends(self.library_model)
        candidates = [self.tokenizer.eos_token_id, *stated, closing_token_id(self.tokenizer)]
        known = rows_of(self.library_model)
        return tuple(dict.fromkeys(token for token in candidates if token is not None and token < known))

    @property
    def unsaid_end_token_ids(self) -> tuple[int, ...]:
        """The end tokens that the model's own generation settings do not name: other readers would run past them."""
        stated = _stated_ends(self.library_model)
        return tuple(token for token in self.end_token_ids if token not in stated)

    def sample(
        self,
        network: nn.Module,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        processors: Sequence[TokenProcessor] = (),
    ) -> list[list[int]]:
        """One completion (token ids, the end token included where it was drawn) a prompt and seed, in one batch.

        Each depends on its own prompt and seed alone, up to rounding. ``temperature`` 0 takes the likeliest token;
        ``top_k`` 0 and ``top_p`` 1 leave all tokens in. ``processors`` change the scores (N, V) before that. Raises
        UserError for a prompt without tokens, or of tokens that the model does not know, and for one that leaves no room
        for a token.
        """
        assert isinstance(network, LanguageModel)
        model = network.model
        for number, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self.window:
                problem = f"prompt {number}: {len(prompt)} tokens, the model's window holds {self.window}"
                raise UserError(problem, "prompts need at least one token, and leave room for one more")
            if max(prompt) >= rows_of(model):
                problem = f"prompt {number}: token {max(prompt)} is beyond the model's {rows_of(model)} tokens"
                raise UserError(problem, "leave out the words of that token: the model was not trained on it")
        space = self.window - max(map(len, prompts), default=0)
        return sample_tokens(
            model,
            prompts,
            seeds,
            max_new_tokens=min(max_new_tokens, space),
            end_ids=self.end_token_ids,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            processors=processors,
        )

    def save(self, network: nn.Module, folder: Path) -> None:
        """As ``TokenModel.save``; whatever ends a completion here is in the generation settings, and so with every reader."""
        assert isinstance(network, LanguageModel)
        settings = network.model.generation_config
        stated = settings.eos_token_id
        try:
            if self.unsaid_end_token_ids:
                settings.eos_token_id = list(self.end_token_ids)
            super().save(network, folder)
        finally:
            settings.eos_token_id = stated


def _stated_ends(model: PreTrainedModel) -> list[int | None]:
    stated = model.generation_config.eos_token_id
    return list(stated) if isinstance(stated, list) else [stated]


def load(
    path: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    lora_scale: float = 1.0,
) -> CausalLM:
    """Load a causal LM folder or hub id in ``dtype``, eval mode, frozen, without dropout; an adapter is merged, times
    ``lora_scale``.

    Raises UserError for a path that is neither, another kind of model, missing weights, weights that are not finite, a
    tokenizer with more tokens than the model, and models whose logits are not their head's output, scaled or soft capped.
    """
    located(path, _WHAT, _FOLDER)
    if is_adapter(path) and adapter_config(path).task_type == TaskType.SEQ_CLS:
        raise UserError(f"{path}: a reward model or classifier, which writes no texts", _FOLDER)
    with quiet():
        loaded = load_network(
            path,
            AutoModelForCausalLM,
            _WHAT,
            _FOLDER,
            revision=revision,
            variant=variant,
            dtype=dtype,
            lora_scale=lora_scale,
        )
    model = loaded.model
    if "score.weight" in loaded.unexpected:
        raise UserError(f"{path}: a reward model or classifier, which writes no texts", _FOLDER)
    tokenizer = load_tokenizer(path, revision=revision)
    check_complete(path, loaded.missing, _FOLDER)
    return from_model(model, tokenizer, path, device, is_merged=loaded.is_merged)


def from_model(
    model: PreTrainedModel, tokenizer: Tokenizer, path: str, device: torch.device | str, *, is_merged: bool = False
) -> CausalLM:
    """The same over a transformers ``model`` that is loaded already, which errors call ``path``. Raises UserError as ``load``."""
    check_vocabulary(path, tokenizer, model)
    with reading(path, _WHAT, _FOLDER):  # models that take other inputs than tokens fail each in its own way
        prepare(model, path, device)
        check_logits(model, path)
    language_model = CausalLM(LanguageModel(model), tokenizer, is_merged=is_merged)
    if language_model.unsaid_end_token_ids:
        _check_generation(model, path)
    return language_model


def _check_generation(model: PreTrainedModel, path: str) -> None:
    """Settings that transformers does not save once they are changed would stop a run at its very end."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError as error:
        problem = f"{path}: generation_config.json cannot be saved with a result: {first_line(error)}"
        raise UserError(
            problem, 'correct that file (often: set "do_sample": true beside temperature and top_p)'
        ) from error
