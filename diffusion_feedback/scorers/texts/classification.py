"""A transformers model for sequence classification with its tokenizer: what reward models and classifiers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from ...errors import UserError, first_line
from ...foreign import apply_template, reading
from ...records import Text
from ...text_folders import (
    check_vocabulary,
    load_network,
    load_tokenizer,
    located,
    positions_of,
    rows_of,
)
from ...types.models import Tokenizer
from ...weights import state_hash
from ..scorer import PRECISION


@dataclass(frozen=True, slots=True)
class Classification:
    """Model, tokenizer, and how texts become tokens.

    ``ends`` appends the tokenizer's end token to plain texts, as training on them does; ``max_length`` is the most
    tokens that are read, ``cut_left`` says which end of a longer text is dropped.
    """

    model: Any
    tokenizer: Any
    source: str
    max_length: int
    batch_size: int
    ends: bool
    cut_left: bool

    @property
    def recipe(self) -> str:
        """Precision, limit, and hash of weights and vocabulary: the part of a recipe id that is alike for both."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        state = {**self.model.state_dict(), "vocabulary": torch.tensor([*repr(vocabulary).encode()], dtype=torch.uint8)}
        precision = PRECISION[next(self.model.parameters()).dtype]
        return f"{self.max_length} tokens{'+end' if self.ends else ''}/{precision}/{state_hash(state)}"

    def encode(self, texts: Sequence[str], finished: Sequence[bool], *, rendered: bool) -> list[list[int]]:
        """Token ids of ``texts``; ``rendered`` ones come from a chat template and bring their special tokens along."""
        encoded = self.tokenizer(list(texts), add_special_tokens=not rendered, truncation=False, verbose=False)
        sequences: list[list[int]] = []
        for ids, text, ended in zip(encoded.input_ids, texts, finished, strict=True):
            if self.ends and ended and not rendered and ids[-1:] != [self.tokenizer.eos_token_id]:
                ids = [*ids, self.tokenizer.eos_token_id]
            if not ids:
                raise UserError(f"{self.source}: the text {text!r} has no tokens", "leave empty texts out")
            check_tokens(ids, self.model, self.source)
            sequences.append(list(ids[-self.max_length :] if self.cut_left else self._cut_right(text, ids)))
        return sequences

    def _cut_right(self, text: str, ids: list[int]) -> list[int]:
        if len(ids) <= self.max_length:
            return ids
        # By the tokenizer, so that special tokens at the end stay.
        cut: list[int] = self.tokenizer(text, truncation=True, max_length=self.max_length).input_ids
        return cut

    @torch.inference_mode()
    def logits(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Logits (N, labels) float32 on the CPU, row by row what ``sequences`` alone would give."""
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        rows: list[Tensor] = [torch.empty(0)] * len(sequences)
        for start in range(0, len(order), self.batch_size):
            chunk = order[start : start + self.batch_size]
            outputs = self._forward([sequences[index] for index in chunk]).float().cpu()
            for index, row in zip(chunk, outputs, strict=True):
                rows[index] = row
        return torch.stack(rows)

    def _forward(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        device = next(self.model.parameters()).device
        ids, mask = padded(sequences)
        call = {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}
        head = getattr(self.model, "score", None)
        if not isinstance(head, nn.Module):  # an encoder, which pools by itself
            pooled: Tensor = self.model(**call).logits
            return pooled
        # A decoder's own forward looks for the last token that is not the padding's, and misses an end token of that id.
        hidden = self.model.base_model(**call, use_cache=False).last_hidden_state
        scored: Tensor = head(hidden[torch.arange(len(sequences), device=device), (mask.sum(1) - 1).to(device)])
        return scored


def load_judge_network(
    path: str,
    auto: type[PreTrainedModel],
    what: str,
    device: torch.device | str,
    dtype: torch.dtype,
    **settings: object,
) -> tuple[PreTrainedModel, Tokenizer]:
    """The network by the auto class ``auto``, without dropout, and the tokenizer at ``path``: a folder or a hub id.

    ``settings`` go to its ``from_pretrained``. Raises UserError where there is no such ``what``, or its weights are not all
    there.
    """
    remedy = f"give a folder that {auto.__name__} loads, the folder of its adapter, or a hub id"
    located(path, what, remedy)
    loaded = load_network(path, auto, what, remedy, is_trained=False, dtype=dtype, **settings)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(path)
    check_vocabulary(path, tokenizer, loaded.model)
    missing = sorted(name for name in loaded.missing if not name.endswith("position_ids"))
    if missing:
        problem = f"{path}: weights are missing, such as {missing[0]}: it was not trained to be {what}"
        raise UserError(problem, f"train one, or {remedy}")
    with reading(path, what, f"use another device than {device}"):
        return loaded.model.to(device).eval(), tokenizer


def load_classification(
    path: str,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    num_labels: int | None,
    ends: bool,
    max_length: str,
    batch_size: str,
) -> Classification:
    """Load model and tokenizer from ``path``, a folder (a LoRA adapter's too) or a hub id; dropout is off.

    ``num_labels`` is what the model must have, None for any number; ``ends`` applies to decoders with an end token.
    Raises UserError where there is no such model, its head is missing, or numbers are out of range.
    """
    wanted = {} if num_labels is None else {"num_labels": num_labels}
    model, tokenizer = load_judge_network(
        path, AutoModelForSequenceClassification, "a judge of texts", device, dtype, **wanted
    )
    is_decoder = isinstance(getattr(model, "score", None), nn.Module)
    limit = min(int(tokenizer.model_max_length), _positions(model.config))
    return Classification(
        model=model,
        tokenizer=tokenizer,
        source=path,
        max_length=min(whole_number("max_length", max_length), limit) if max_length else limit,
        batch_size=whole_number("batch_size", batch_size),
        ends=ends and is_decoder and tokenizer.eos_token_id is not None,
        cut_left=is_decoder,
    )


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids (N, T) of ``sequences`` side by side, and the mask (N, T) of what is no padding."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    # Which id stands on the padding does not matter: it is masked, and never read.
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.tensor([token for sequence in sequences for token in sequence])
    return ids, mask


def _positions(config: PreTrainedConfig) -> int:
    # Of RoBERTa's table of positions the first ones belong to padding.
    padded = config.model_type in ("roberta", "xlm-roberta", "camembert")
    return positions_of(config) - (config.pad_token_id + 1 if padded else 0)


def check_tokens(ids: Sequence[int], model: object, source: str) -> None:
    """Raise UserError where a token of ``ids`` is beyond the embedding of ``model``, which was loaded from ``source``."""
    if max(ids) >= rows_of(model):
        problem = f"{source}: a text has the token {max(ids)}, the model knows {rows_of(model)} tokens"
        raise UserError(problem, "leave out the words of that token: the model was not trained on it")


def conversation_text(
    prompt: Text, completion: Text, tokenizer: Tokenizer, source: str, *, finished: bool = True
) -> str:
    """Prompt and completion as one conversation by the tokenizer's chat template; texts become user and assistant turns.

    The last turn stays open where the completion is not ``finished``.
    Raises UserError where the tokenizer has no template, or the template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{source}: its tokenizer has no chat template", "judge plain texts, or give another judge")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    turns += [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
    try:
        text: str = apply_template(
            tokenizer, [dict(turn) for turn in turns], tokenize=False, continue_final_message=not finished
        )
    except Exception as error:  # a stranger's template may fail in any way
        problem = f"{source}: its chat template refuses a conversation: {first_line(error)}"
        raise UserError(problem, "give conversations of the form that this judge was trained on") from error
    return text


def encode_pairs(
    judge: Classification,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    finished: Sequence[bool] | None,
    *,
    as_chat: bool,
) -> list[list[int]]:
    """Token ids of each prompt with its completion: plain texts are joined, conversations go through the template.

    Completions that are not ``finished`` (None: all are) get no end.
    """
    ended = [True] * len(completions) if finished is None else list(finished)
    plain: dict[int, str] = {}
    rendered: dict[int, str] = {}
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if isinstance(prompt, str) and isinstance(completion, str) and not as_chat:
            plain[index] = prompt + completion
        else:
            rendered[index] = conversation_text(
                prompt, completion, judge.tokenizer, judge.source, finished=ended[index]
            )
    sequences: list[list[int]] = [[]] * len(completions)
    for texts in (plain, rendered):
        if texts:
            encoded = judge.encode(list(texts.values()), [ended[i] for i in texts], rendered=texts is rendered)
            for index, ids in zip(texts, encoded, strict=True):
                sequences[index] = ids
    return sequences


def whole_number(name: str, value: str) -> int:
    """A setting's ``value`` as a number of 1 or more. Raises UserError for another."""
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"{name}={value}: not a whole number", "allowed: 1 or more")
    return int(value)


def yes_or_no(name: str, value: str) -> bool:
    """A setting's ``value`` as a truth value. Raises UserError for another word than true or false."""
    if value not in ("true", "false"):
        raise UserError(f"{name}={value}: neither yes nor no", "allowed: true, false")
    return value == "true"
