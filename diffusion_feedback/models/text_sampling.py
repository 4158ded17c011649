"""Sampling from a causal LM whose every completion depends on its own prompt and seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..quiet import quiet


class _GumbelNoise:
    """Adds Gumbel noise, so that the largest score is a draw from the softmax (the Gumbel-max trick).

    Row i draws from a generator of its own, so neither its neighbours nor the size of the batch change it.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        return scores.float() - torch.stack(rows).log().to(scores.device)


@torch.no_grad()
def sample_tokens(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    processors: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
) -> list[list[int]]:
    """Completions of one batch, as ``causal_lm.CausalLM.sample`` describes them; ``model`` is put in eval mode."""
    if not prompts:
        return []
    longest, device = max(map(len, prompts)), model.device
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    # Padding after an end token is distinguished from an end token by position, so any id serves.
    pad = end_ids[0] if end_ids else 0
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(end_ids) or None, pad_token_id=pad
    )
    chain: list[Any] = list(processors)
    if temperature > 0:
        chain += [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
        chain += [TopKLogitsWarper(top_k)] if top_k else []
        chain += [TopPLogitsWarper(top_p)] if top_p < 1 else []
        chain.append(_GumbelNoise(seeds))
    was_training, stated = model.training, model.generation_config
    model.eval()
    model.generation_config = settings  # from its own ones ``generate`` would fill in what is left open, such as top_p
    try:
        with quiet():
            drawn = model.generate(ids, attention_mask=mask, logits_processor=LogitsProcessorList(chain))
    finally:
        model.generation_config = stated
        model.train(was_training)
    return [_until_end(row, end_ids) for row in drawn[:, longest:].tolist()]


def _until_end(row: list[int], end_ids: Sequence[int]) -> list[int]:
    for position, token in enumerate(row):
        if token in end_ids:
            return row[: position + 1]
    return row
