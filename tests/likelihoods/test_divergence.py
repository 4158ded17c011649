"""Divergences of two language models against all completions of a small world, gone through one by one in float64."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch

from diffusion_feedback.likelihoods.divergence import exact_divergence, num_prefixes, sampled_divergence
from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from diffusion_feedback.models.causal_lm import LanguageModel
from diffusion_feedback.types.texts import TokenSequence

VOCABULARY, END, LENGTH, PROMPT = 5, 1, 3, (0, 3)


@pytest.fixture(scope="module")
def networks() -> tuple[LanguageModel, LanguageModel]:
    """Two models of a vocabulary of five tokens."""
    models = [tiny_text.language_model(seed=seed, vocab_size=VOCABULARY) for seed in (0, 1)]
    return LanguageModel(models[0]), LanguageModel(models[1])


def completions() -> list[tuple[int, ...]]:
    """Every completion: one that ends, or one of the full length."""
    alive = [token for token in range(VOCABULARY) if token != END]
    ended = [(*begin, END) for n in range(LENGTH) for begin in itertools.product(alive, repeat=n)]
    return ended + list(itertools.product(alive, repeat=LENGTH))


def logp(network: Any, completion: tuple[int, ...], temperature: float) -> float:
    """By transformers' own logits, in float64, one completion at a time."""
    with torch.no_grad():
        table = torch.log_softmax(network(torch.tensor([[*PROMPT, *completion]])).logits[0] / temperature, -1)
    return sum(float(table[len(PROMPT) + place - 1, token]) for place, token in enumerate(completion))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_exact_and_sampled_agree_with_going_through_all(
    networks: tuple[LanguageModel, LanguageModel], temperature: float
) -> None:
    every = completions()
    wide = [copy.deepcopy(network.model).double() for network in networks]
    p, q = ([logp(model, completion, temperature) for completion in every] for model in wide)
    assert math.fsum(map(math.exp, p)) == pytest.approx(1, abs=1e-9)
    truth = math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    assert truth > 0.05
    exact = exact_divergence(*networks, PROMPT, max_new_tokens=LENGTH, end_ids=(END,), temperature=temperature)
    assert exact == pytest.approx(truth, rel=1e-5)
    samples = [
        TokenSequence(
            np.array([*PROMPT, *completion], np.int32),
            np.array([False] * len(PROMPT) + [True] * len(completion)),
            len(PROMPT),
        )
        for completion in every
    ]
    likelihood = TokenLikelihood(temperature=temperature)
    found = sampled_divergence(*networks, samples, likelihood=likelihood, batch_size=7)
    # Each sample by its log-ratio, and both estimates without bias: their mean under p is the divergence itself.
    assert found.log_ratio.tolist() == pytest.approx([a - b for a, b in zip(p, q, strict=True)], abs=1e-5)
    weights = torch.tensor(p, dtype=torch.float64).exp()
    assert float(weights @ found.log_ratio) == pytest.approx(truth, rel=1e-5)
    assert float(weights @ found.token_kl) == pytest.approx(truth, rel=1e-5)
    assert bool((found.token_kl >= 0).all())
    spread = [float(weights @ (values - truth) ** 2) for values in (found.token_kl, found.log_ratio)]
    assert spread[0] < spread[1]


def test_a_model_does_not_diverge_from_itself(networks: tuple[LanguageModel, LanguageModel]) -> None:
    policy = networks[0]
    assert exact_divergence(policy, policy, PROMPT, max_new_tokens=LENGTH, end_ids=(END,)) == 0.0
    sample = TokenSequence(np.array([0, 3, 2], np.int32), np.array([False, False, True]), 2)
    found = sampled_divergence(policy, policy, [sample], likelihood=TokenLikelihood())
    assert (float(found.log_ratio), float(found.token_kl)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="no samples"):
        sampled_divergence(policy, policy, [], likelihood=TokenLikelihood())


def test_prefixes_are_counted() -> None:
    beginnings = {completion[:n] for completion in completions() for n in range(LENGTH) if END not in completion[:n]}
    assert num_prefixes(VOCABULARY, 1, LENGTH) == len(beginnings)
