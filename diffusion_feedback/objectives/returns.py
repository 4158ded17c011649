"""From judged completions to advantages: KL in the reward, generalised advantage estimation, baselines of a group.

Tokens are flat: those of M completions one after the other, N in all, ``lengths`` (M,) each. There is no padding, so
none can enter a mean. Everything is computed in float32 or wider.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .log_ratios import widen


def k1(logps: Tensor, reference: Tensor) -> Tensor:
    """log(pi / pi_ref) per token (N,): under samples of pi an unbiased estimate of KL(pi || pi_ref); may be negative.

    Schulman, "Approximating KL divergence" (2020).
    """
    return widen(logps) - widen(reference)


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """pi_ref / pi - 1 - log(pi_ref / pi) per token (N,): unbiased as ``k1`` is, never negative, of lower variance.

    The log-ratio counts as 20 at most, beyond which its exponential says nothing. Schulman, "Approximating KL
    divergence" (2020); Eq. 4, arXiv:2402.03300.
    """
    difference = (widen(reference) - widen(logps)).clamp(max=20.0)
    return torch.expm1(difference) - difference


def per_completion(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums (M,) of the flat ``values`` (N,) over each completion's tokens."""
    rows = torch.repeat_interleave(lengths)
    return values.new_zeros(len(lengths)).index_add(0, rows, values)


def shaped_scores(
    scores: Tensor, finished: Tensor, *, missing_eos_penalty: float | None = None, reward_clip: float | None = None
) -> Tensor:
    """Scores (M,) clipped to +-``reward_clip``; then the penalty is taken from completions that are not ``finished``.

    The penalty comes last, so that clipping cannot hide it.
    """
    clipped = widen(scores) if reward_clip is None else widen(scores).clamp(-reward_clip, reward_clip)
    return clipped if missing_eos_penalty is None else clipped - missing_eos_penalty * (~finished).to(clipped)


def token_rewards(scores: Tensor, kl: Tensor, lengths: Tensor, *, kl_coef: float) -> Tensor:
    """Rewards (N,): - ``kl_coef`` * ``kl`` (N,) at every token, and the score (M,) on the last one, the end token.

    Their sum over a completion is Eq. 2 of arXiv:2203.02155 without its pretraining term: r - beta log(pi / pi_ref).
    """
    rewards = -kl_coef * widen(kl)
    return rewards.index_add(0, lengths.cumsum(0) - 1, scores.to(rewards))


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Advantages (N,) from ``rewards`` (N,) and ``values`` (N,) of the states before each token.

    A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t, and 0 for both beyond the last token.
    ``gamma`` and ``lam`` in [0, 1]. Eq. 11 and 12 of arXiv:1707.06347; arXiv:1506.02438.
    """
    sizes = lengths.tolist()
    reward, value = (pad_sequence(list(flat.split(sizes)), batch_first=True) for flat in (rewards, values))
    following = torch.nn.functional.pad(value[:, 1:], (0, 1))
    delta = reward + gamma * following - value
    # Padding has reward and value 0, so the recursion is still at 0 when it reaches a completion's last token.
    advantages = torch.zeros_like(delta)
    carried = delta.new_zeros(len(sizes))
    for position in reversed(range(delta.shape[1])):
        carried = delta[:, position] + gamma * lam * carried
        advantages[:, position] = carried
    return torch.cat([row[:size] for row, size in zip(advantages, sizes, strict=True)])


def whiten(values: Tensor) -> Tensor:
    """``values`` (N,) with mean 0 and (sample) variance 1; all zeros where they are all equal."""
    centred = values - values.mean()
    variance = centred.square().sum() / max(1, len(values) - 1)
    return centred * torch.rsqrt(variance + 1e-8)


def group_normalised(scores: Tensor, num_generations: int) -> Tensor:
    """(score - mean) / (deviation + 1e-4) within each prompt's group of consecutive completions, (M,).

    The deviation is the sample's (over G - 1), as TRL has it. Sec. 4.1.2, arXiv:2402.03300.
    """
    groups = widen(scores).reshape(-1, num_generations)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def leave_one_out(scores: Tensor, num_generations: int) -> Tensor:
    """Score minus the mean score of the other completions of the same prompt, (M,): RLOO of arXiv:2402.14740."""
    groups = widen(scores).reshape(-1, num_generations)
    others = (groups.sum(1, keepdim=True) - groups) / (num_generations - 1)
    return (groups - others).flatten()


def adapted_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: float, completions: int) -> float:
    """The next coefficient, larger where the KL of a completion (nats) was above ``target``, smaller where below.

    kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) * completions / horizon): Sec. 2.2, arXiv:1909.08593.
    """
    error = min(0.2, max(-0.2, kl / target - 1))
    return kl_coef * (1 + error * completions / horizon)
