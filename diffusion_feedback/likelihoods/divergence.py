"""KL(policy || reference) of two language models: estimated on the policy's samples, or exact by going through them all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..types.texts import TokenSequence
from .tokens import TokenInputs, TokenLikelihood

_ROWS = 512  # prefixes in one forward pass of the enumeration


@dataclass(frozen=True, slots=True)
class SampledDivergence:
    """Two estimates of KL(policy || reference) for each of S samples of the policy, nats, (S,) float64 on the CPU.

    ``log_ratio`` sums log p - log q of the tokens that were drawn (k1 of Schulman, 2020: unbiased, of any sign).
    ``token_kl`` sums the exact divergences of the next-token distributions along the way: unbiased too, never negative,
    and of less variance, as only the way itself is drawn (Amini et al., arXiv:2504.10637).
    """

    log_ratio: Tensor
    token_kl: Tensor


@torch.no_grad()
def sampled_divergence(
    policy: nn.Module,
    reference: nn.Module,
    samples: Sequence[TokenSequence],
    *,
    likelihood: TokenLikelihood,
    batch_size: int = 16,
) -> SampledDivergence:
    """Both estimates for ``samples``, drawn from ``policy`` at the likelihood's temperature, all tokens allowed.

    Of samples that were cut, the divergence is that of the tokens drawn. Raises ValueError for no samples.
    """
    if not samples:
        raise ValueError("no samples")
    ratios, kls = torch.zeros(len(samples), dtype=torch.float64), torch.zeros(len(samples), dtype=torch.float64)
    order = sorted(range(len(samples)), key=lambda index: -len(samples[index]))
    for start in range(0, len(order), batch_size):
        chunk = torch.tensor(order[start : start + batch_size])
        inputs = likelihood.prepare_sequences([samples[index] for index in chunk.tolist()])
        p, q = (_next_logps(network, inputs, likelihood.temperature) for network in (policy, reference))
        rows, targets = chunk[inputs.rows.cpu()], inputs.targets[:, None]
        ratios.index_add_(0, rows, (p.gather(1, targets) - q.gather(1, targets)).squeeze(1).double().cpu())
        kls.index_add_(0, rows, _kl(p, q).double().cpu())
    return SampledDivergence(ratios, kls)


def _next_logps(network: nn.Module, inputs: TokenInputs, temperature: float) -> Tensor:
    """Log-probabilities (N, V) float32 of all tokens at each scored place."""
    logits: Tensor = network(
        inputs.input_ids,
        inputs.attention_mask,
        inputs.position_ids,
        lambda hidden, head: head(hidden.flatten(0, 1)[inputs.read]).float(),
    )
    return torch.log_softmax(logits / temperature, -1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL of each row; a token that p never draws costs nothing, whatever q says of it."""
    terms = p.exp() * (p - q)
    return torch.where(p == -torch.inf, 0.0, terms).sum(-1)


def num_prefixes(vocabulary: int, num_ends: int, max_new_tokens: int) -> int:
    """How many beginnings of a completion there are that something is drawn after."""
    return sum((vocabulary - num_ends) ** length for length in range(max_new_tokens))


@torch.no_grad()
def exact_divergence(
    policy: nn.Module,
    reference: nn.Module,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    end_ids: Collection[int],
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> float:
    """KL(policy || reference) of completions of ``prompt``, nats: over all of them, so for small worlds only.

    Chain rule: the sum over every prefix of its probability under the policy times the divergence of what comes next;
    sums in float64. A completion ends with a token of ``end_ids`` or after ``max_new_tokens``.
    """
    prefixes, weights = np.array([list(prompt)], np.int64), torch.ones(1, dtype=torch.float64)
    total = 0.0
    for length in range(max_new_tokens):
        following: list[Tensor] = []
        for start in range(0, len(prefixes), _ROWS):
            ids = torch.from_numpy(prefixes[start : start + _ROWS]).to(device)
            p, q = (_last_logps(network, ids, temperature) for network in (policy, reference))
            share = weights[start : start + _ROWS]
            total += float((share * _kl(p, q)).sum())
            following.append(share[:, None] * p.exp())
        if length + 1 == max_new_tokens:
            break
        chances = torch.cat(following)
        alive = [token for token in range(chances.shape[1]) if token not in end_ids]
        weights = chances[:, alive].reshape(-1)
        prefixes = np.concatenate(
            [np.repeat(prefixes, len(alive), 0), np.tile(np.array(alive), len(prefixes))[:, None]], axis=1
        )
    return total


def _last_logps(network: nn.Module, ids: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (B, V) float64 on the CPU of what follows each of the equally long ``ids`` (B, T)."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    seen = torch.ones_like(ids, dtype=torch.bool)
    logits: Tensor = network(ids, seen, positions, lambda hidden, head: head(hidden[:, -1]).double())
    return torch.log_softmax(logits / temperature, -1).cpu()
