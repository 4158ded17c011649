"""Completions as samples of rollouts: drawn token by token, kept in checkpoints as tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..types.texts import TokenSequence

DrawTokens = Callable[[Sequence[Sequence[int]], Sequence[int]], Sequence[Sequence[int]]]
"""(Prompts as token ids, seeds) to the token ids of one completion each."""


def drawn_sequence(prompt: Sequence[int], completion: Sequence[int]) -> TokenSequence:
    """A prompt and its drawn completion, every token of which counts."""
    ids = np.array([*prompt, *completion], dtype=np.int32)
    return TokenSequence(ids, np.arange(len(ids)) >= len(prompt), len(prompt))


def completion_ids(sample: TokenSequence) -> list[int]:
    """The token ids of the completion, its end token included where it was drawn."""
    return [int(token) for token in sample.ids[sample.prompt_length :]]


def draws_sequences(draw: DrawTokens) -> Callable[[Sequence[Sequence[int]], Sequence[int]], list[TokenSequence]]:
    """``draw``, giving prompts and completions as one."""

    def drawn(prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[TokenSequence]:
        return [drawn_sequence(prompt, ids) for prompt, ids in zip(prompts, draw(prompts, seeds), strict=True)]

    return drawn


def ends_in(end_token_ids: Collection[int]) -> Callable[[TokenSequence], bool]:
    """Tells of a sample whether its last token is one of ``end_token_ids``."""
    return lambda sample: int(sample.ids[-1]) in end_token_ids


class TokenCodec:
    """Token sequences, every token of whose completion counts, as tensors."""

    def pack(self, samples: Sequence[TokenSequence]) -> dict[str, Tensor]:
        """Ids one after the other, and lengths."""
        return {
            "ids": torch.from_numpy(np.concatenate([sample.ids for sample in samples])),
            "lengths": torch.tensor([len(sample) for sample in samples]),
            "prompt_lengths": torch.tensor([sample.prompt_length for sample in samples]),
        }

    def unpack(self, state: Mapping[str, Tensor]) -> list[TokenSequence]:
        """What ``pack`` gave."""
        parts = state["ids"].split(state["lengths"].tolist())
        lengths = state["prompt_lengths"].tolist()
        return [
            drawn_sequence(ids[:size], ids[size:]) for ids, size in zip(map(Tensor.tolist, parts), lengths, strict=True)
        ]
