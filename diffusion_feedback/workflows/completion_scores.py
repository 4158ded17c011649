"""Completions and who judges them: scores, and divergence from another model."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from torch import nn

from ..likelihoods.divergence import exact_divergence, num_prefixes, sampled_divergence
from ..likelihoods.tokens import TokenLikelihood
from ..records import CompletionRecord, Text
from ..types.texts import TextScorer, TokenSequence
from .completing import TextSampler

_MOST_PREFIXES = 20_000  # of one prompt; beyond it a divergence is estimated on samples alone


def score_records(scorer: TextScorer, records: Sequence[CompletionRecord]) -> list[float]:
    """The score of each completion; equal ones of one prompt are scored once, so that rounding does not part them."""
    keys = [(prompt_name(record.prompt), record.completion, record.is_finished) for record in records]
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    distinct = [records[place] for place in sorted(first.values())]
    scores = scorer.score(
        [record.prompt for record in distinct],
        [completion_text(record) for record in distinct],
        [record.is_finished for record in distinct],
    )
    by_place = dict(zip(sorted(first.values()), scores, strict=True))
    return [by_place[first[key]] for key in keys]


def prompt_name(prompt: Text) -> str:
    """A prompt as one text, by which a table of scores knows it."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, default=dict, sort_keys=True)


def completion_text(record: CompletionRecord) -> Text:
    """The completion as its prompt stands: a text, or the assistant's turn."""
    if isinstance(record.prompt, str):
        return record.completion
    return ({"role": "assistant", "content": record.completion},)


def divergence_of(
    sampler: TextSampler, reference: nn.Module, records: Sequence[CompletionRecord]
) -> dict[str, list[float]]:
    """Estimates of KL(sampler || reference) on completions that ``sampler`` drew with all tokens allowed, nats.

    ``log_ratio`` and ``token_kl`` for every completion, ``exact`` for every prompt where there are few enough.
    """
    model, sampling = sampler.model, sampler.sampling
    device = next(model.network.parameters()).device
    prompts = sampler.encode([record.prompt for record in records])
    sequences = [sequence_of(prompt, record.token_ids) for prompt, record in zip(prompts, records, strict=True)]
    likelihood = TokenLikelihood(device, temperature=sampling.temperature)
    sampled = sampled_divergence(model.network, reference, sequences, likelihood=likelihood)
    estimates = {"log_ratio": sampled.log_ratio.tolist(), "token_kl": sampled.token_kl.tolist()}
    vocabulary, ends = int(model.library_model.get_output_embeddings().weight.shape[0]), model.end_token_ids
    if num_prefixes(vocabulary, len(ends), sampling.max_new_tokens) <= _MOST_PREFIXES:
        different = dict(zip((record.prompt_index for record in records), prompts, strict=True))
        estimates["exact"] = [
            exact_divergence(
                model.network,
                reference,
                prompt,
                max_new_tokens=sampling.max_new_tokens,
                end_ids=ends,
                temperature=sampling.temperature,
                device=device,
            )
            for _, prompt in sorted(different.items())
        ]
    return estimates


def sequence_of(prompt: Sequence[int], completion: Sequence[int]) -> TokenSequence:
    """The tokens as they were drawn: nothing is decoded and read again."""
    scored = np.zeros(len(prompt) + len(completion), np.bool_)
    scored[len(prompt) :] = True
    return TokenSequence(np.array([*prompt, *completion], np.int32), scored, len(prompt))
