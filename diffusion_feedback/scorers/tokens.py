"""Prompts to the token ids that CLIP's text tower reads: by a folder's own tokenizer, or cleaned first as OpenAI does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer

from ..errors import UserError
from ..foreign import reading
from ..quiet import quiet
from ..records import content_hash
from .hub_files import optional_file

VOCABULARY = 49_408
"""Size of OpenAI's byte-pair vocabulary, which open_clip brings along."""


@dataclass(frozen=True)
class PromptTokenizer:
    """Prompts to token ids of one fixed length; what is too long is cut, and its end token kept.

    ``encode`` gives the ids of each prompt, start and end token included; ``id`` is a hash of vocabulary and length.
    ``encode_cleaned`` does so for prompts that are cleaned first as OpenAI's clip and open_clip do.
    """

    id: str
    length: int
    end: int
    padding: int
    encode: Callable[[Sequence[str]], list[list[int]]]
    encode_cleaned: Callable[[Sequence[str]], list[list[int]]]

    def cleaning(self) -> PromptTokenizer:
        """The same tokenizer for prompts that are cleaned first; its ids are those of OpenAI's clip."""
        return replace(self, encode=self.encode_cleaned)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Ids (N, length) int64. Without the end token a prompt would be read as if it were empty."""
        rows = torch.full((len(prompts), self.length), self.padding)
        for row, ids in zip(rows, self.encode(prompts), strict=True):
            kept = ids if len(ids) <= self.length else [*ids[: self.length - 1], self.end]
            row[: len(kept)] = torch.tensor(kept)
        return rows

    def cuts(self, prompts: Sequence[str]) -> list[bool]:
        """Which of ``prompts`` are cut."""
        return [len(ids) > self.length for ids in self.encode(prompts)]


def folder_tokenizer(source: str, text: CLIPTextConfig) -> PromptTokenizer:
    """The tokenizer beside the weights, or CLIP's standard one for a model of that vocabulary.

    Raises UserError where there is none, and where its ids or its end token are not those that the model knows.
    """
    own = optional_file(source, "tokenizer.json") or (
        optional_file(source, "vocab.json") and optional_file(source, "merges.txt")
    )
    if own:
        with quiet(), reading(source, "CLIP's tokenizer", "save the tokenizer again with save_pretrained"):
            tokenizer = CLIPTokenizer.from_pretrained(source, trust_remote_code=False)
    elif text.vocab_size == VOCABULARY:
        tokenizer = _standard_tokenizer()
    else:
        problem = f"{source}: holds no tokenizer, and its vocabulary of {text.vocab_size} is not CLIP's {VOCABULARY}"
        raise UserError(problem, "save the tokenizer of the model into the folder (tokenizer.json)")
    vocabulary = tokenizer.get_vocab()
    last, end = max(vocabulary.values()), tokenizer.eos_token_id
    if last >= text.vocab_size:
        problem = f"{source}: the tokenizer's ids go to {last}, the model knows {text.vocab_size} tokens"
        raise UserError(problem, "save the tokenizer of this model into the folder")
    # The model reads a prompt at its end token: configurations of before mid-2023 say 2 and mean the highest id.
    if end != text.eos_token_id and not (text.eos_token_id == 2 and end == last):
        problem = f"{source}: prompts end in token {end}, config.json says eos_token_id {text.eos_token_id}"
        raise UserError(problem, "set text_config.eos_token_id to the tokenizer's end token")
    if not isinstance(tokenizer.model_max_length, int) or tokenizer.model_max_length < 3:
        problem = f"{source}: tokenizer_config.json says model_max_length {tokenizer.model_max_length!r}"
        raise UserError(
            problem, f"allowed: 3 or more (start, a word, end); the model reads {text.max_position_embeddings}"
        )
    length = min(text.max_position_embeddings, tokenizer.model_max_length)
    with reading(source, "CLIP's tokenizer", "save the tokenizer again with save_pretrained"):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return PromptTokenizer(
        id=content_hash(json.dumps([sorted(vocabulary.items()), rules, length])),
        length=length,
        end=end,
        padding=end,
        encode=lambda prompts: tokenizer(list(prompts), verbose=False)["input_ids"] if prompts else [],
        encode_cleaned=_encode_cleaned(tokenizer),
    )


def _encode_cleaned(tokenizer: SimpleTokenizer) -> Callable[[Sequence[str]], list[list[int]]]:
    """OpenAI's way to read prompts: broken encodings repaired, typographic quotes and full-width signs made plain, HTML
    entities resolved, white space joined, lower case; by the function that open_clip brings along.

    transformers' tokenizer does none of the first three. It joins accents that stand apart instead, which OpenAI's does
    not after the entities, so that its own normaliser is taken out.
    """
    bare = copy.deepcopy(tokenizer.backend_tokenizer)
    bare.normalizer = None
    bare.no_truncation()
    bare.no_padding()
    clean = get_clean_fn("lower")
    return lambda prompts: [encoding.ids for encoding in bare.encode_batch([clean(prompt) for prompt in prompts])]


def _standard_tokenizer() -> object:
    """CLIPTokenizer over OpenAI's vocabulary, from the copy that open_clip brings along."""
    bundled = open_clip.SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): number for token, number in bundled.encoder.items()}
    merges = sorted(bundled.bpe_ranks, key=bundled.bpe_ranks.__getitem__)
    return CLIPTokenizer(vocab=vocabulary, merges=merges)
