"""A world small enough to enumerate: every policy's divergence and reward are exact, and so is the best there can be.

Prompts are single symbols out of ``vocabulary``, completions are ``length`` further symbols, so a policy is a table over
vocabulary^length completions a prompt (8 x 32,768 by default). The source of texts is a Markov chain. The reward of a
completion adds a number a symbol and a number a pair of neighbours (the prompt is the first symbol's neighbour). Its mean
under the source is 0, and its scale is such that the optimum at beta 0.5 lies 1.5 nats from the source, so that a beta
means the same in every world. Prompts are equally likely. All numbers are float64, all logarithms natural.

Tables come in two forms. A *policy* is a list of ``length`` arrays; number t has shape (vocabulary,) * (t + 2) and holds
log p(symbol t | prompt, symbols before t), prompt first, symbol last. Its *joint* form (prompts, vocabulary^length) holds
log p(completion | prompt); completions are numbered as base-``vocabulary`` numerals, first symbol first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Policy = Sequence[Floats]

SPREAD = 1.5  # nats from the source to the optimum at beta 0.5
_TIE = 1e-9  # rewards closer than this are equal: they are sums of the same numbers in another order


def _normalised(logits: Floats) -> Floats:
    """Logits to log-probabilities over the last axis."""
    highest = logits.max(axis=-1, keepdims=True)
    shifted: Floats = logits - highest - np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True))
    return shifted


def joint(policy: Policy) -> Floats:
    """Log-probabilities of all completions, (prompts, vocabulary^length), from a table of conditionals."""
    total: Floats = policy[0]
    for conditional in policy[1:]:
        total = total[..., None] + conditional
    return total.reshape(len(total), -1)


def entropy(logps: Floats) -> float:
    """Mean entropy of the completions of a prompt, in nats, from their log-probabilities (prompts, completions)."""
    return -expected(logps, logps)


def expected(logps: Floats, values: Floats) -> float:
    """Expectation of ``values`` (prompts, completions) under a joint table, over all prompts."""
    weights = np.exp(logps)
    return float((weights * np.where(weights > 0, values, 0.0)).sum(axis=1).mean())


def divergence(logps: Floats, reference: Floats) -> float:
    """KL(policy || reference) in nats, the mean over prompts, from two joint tables (prompts, completions)."""
    with np.errstate(invalid="ignore"):  # a completion that the policy never gives counts for nothing
        return expected(logps, logps - reference)


def tilted(reference: Floats, rewards: Floats, beta: float) -> Floats:
    """The policy that maximises E[r] - beta KL(. || reference): reference * exp(r / beta), normalised.

    Joint tables (prompts, completions); ``beta`` > 0. Eq. 4, arXiv:2305.18290.
    """
    return _normalised(reference + rewards / beta)


@dataclass(frozen=True, slots=True)
class Frontier:
    """The largest expected reward at every divergence from ``reference``: tilted policies, one beta for all prompts.

    A mean over prompts is bounded, so one multiplier serves them all.
    """

    reference: Floats
    rewards: Floats

    def point(self, beta: float) -> tuple[float, float]:
        """Divergence and expected reward of the optimum at ``beta``."""
        best = tilted(self.reference, self.rewards, beta)
        return divergence(best, self.reference), expected(best, self.rewards)

    def best_reward(self, kl: float) -> float:
        """The largest expected reward of any policy within ``kl`` >= 0 nats of the reference.

        Beyond the divergence of the optimum at beta 1e-3, the reward at that beta stands for the limit.
        """
        if kl <= 0:
            return expected(self.reference, self.rewards)
        return self.point(beta_at(self, kl))[1]

    def share(self, kl: float, reward: float) -> float:
        """Share of the achievable gain: (reward - reference's) / (best reward at ``kl`` - reference's); NaN for none."""
        start = expected(self.reference, self.rewards)
        gain = self.best_reward(kl) - start
        return (reward - start) / gain if gain > 0 else float("nan")


def beta_at(frontier: Frontier, kl: float) -> float:
    """The beta in [1e-3, 1e3] whose optimum lies ``kl`` nats from the reference, by bisection of its logarithm."""

    def excess(log_beta: float) -> float:
        return frontier.point(math.exp(log_beta))[0] - kl

    low, high = math.log(1e-3), math.log(1e3)
    if excess(low) <= 0:
        return 1e-3
    if excess(high) >= 0:
        return 1e3
    return math.exp(brentq(excess, low, high, xtol=1e-10))


def best_of_n(reference: Floats, rewards: Floats, number: int) -> Floats:
    """The exact joint table of the best of ``number`` completions drawn from ``reference``; ties are broken at random.

    A set of completions with equal reward, of mass m above a mass L of lesser ones, wins with probability
    (L + m)^N - L^N, which its members share as the reference does.
    """
    result = np.empty_like(reference)
    for row, (logps, values) in enumerate(zip(reference, rewards, strict=True)):
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf) > _TIE)
        mass = np.add.reduceat(np.exp(logps[order]), starts)
        above = np.minimum(np.cumsum(mass) / mass.sum(), 1.0)
        below = np.concatenate([[0.0], above[:-1]])
        # L + m over L as a logarithm of one plus a small number: the plain difference of powers loses all its digits.
        with np.errstate(divide="ignore"):
            won = number * np.log(above) + np.log1p(-((below / above) ** number))
        sizes = np.diff(np.append(starts, len(order)))
        result[row, order] = logps[order] + np.repeat(won - np.log(mass), sizes)
    return result


def best_of_n_bound(number: int) -> float:
    """log N - (N - 1) / N, in nats: what best-of-N can diverge by at most (Theorem 1, arXiv:2401.01879)."""
    return float(np.log(number) - (number - 1) / number)


@dataclass(frozen=True)
class ExactWorld:
    """Markov source, rewards, and all completions. ``transitions`` (V, V) are log-probabilities, from row to column;
    ``unigram`` (V,) and ``bigram`` (V, V) add up to the reward.
    """

    transitions: Floats
    unigram: Floats
    bigram: Floats
    length: int

    @classmethod
    def draw(cls, seed: int, *, vocabulary: int = 8, length: int = 5, skew: float = 1.5) -> ExactWorld:
        """The world of ``seed``: transition logits are normal with deviation ``skew``, the reward's numbers normal."""
        rng = np.random.default_rng([seed, vocabulary, length])
        transitions = _normalised(skew * rng.standard_normal((vocabulary, vocabulary)))
        raw = cls(transitions, rng.standard_normal(vocabulary), rng.standard_normal((vocabulary, vocabulary)), length)
        source = joint(raw.source)
        mean = expected(source, raw.rewards)
        # Only reward / beta enters the optimum, so the beta that lies SPREAD away gives the scale.
        scale = 0.5 / beta_at(Frontier(source, raw.rewards), SPREAD)
        return cls(transitions, scale * (raw.unigram - mean / length), scale * raw.bigram, length)

    @property
    def vocabulary(self) -> int:
        """Number of symbols, and of prompts."""
        return len(self.unigram)

    @property
    def completions(self) -> int:
        """Completions of a prompt."""
        return int(self.vocabulary**self.length)

    @property
    def source(self) -> list[Floats]:
        """The Markov source as a policy."""
        size = self.vocabulary
        shapes = [(size,) * (depth + 2) for depth in range(self.length)]
        return [np.broadcast_to(self.transitions, shape) for shape in shapes]

    @cached_property
    def symbols(self) -> Integers:
        """The symbols of every completion, (completions, length)."""
        numerals = np.indices((self.vocabulary,) * self.length)
        return numerals.reshape(self.length, -1).T.astype(np.int64)

    @cached_property
    def rewards(self) -> Floats:
        """Reward of every completion of every prompt, (prompts, completions)."""
        inner = self.unigram[self.symbols].sum(axis=1)
        inner = inner + self.bigram[self.symbols[:, :-1], self.symbols[:, 1:]].sum(axis=1)
        total: Floats = self.bigram[:, self.symbols[:, 0]] + inner
        return total


def sample(policy: Policy, prompts: Integers, draws: Floats) -> Integers:
    """Completions' numbers (N,), drawn from ``policy`` for ``prompts`` (N,) by inversion of ``draws`` (N, length) in
    [0, 1): completion n depends on prompt n and draws n alone.
    """
    size = len(policy[0])
    state = prompts.copy()
    for depth, conditional in enumerate(policy):
        cumulative = np.exp(conditional.reshape(-1, size)).cumsum(axis=1)
        cumulative /= cumulative[:, -1:]
        symbol = (cumulative[state] <= draws[:, depth, None]).sum(axis=1)
        state = state * size + np.minimum(symbol, size - 1)
    numbers: Integers = state % size ** len(policy)
    return numbers


Conditional = Callable[[Integers], Floats]
"""Sequences of symbols (N, t + 1), prompts first, to log-probabilities of the next symbol, (N, vocabulary)."""


def tabulate(conditional: Conditional, vocabulary: int, length: int) -> list[Floats]:
    """A policy's table from its conditionals, all sequences of one depth in one call."""
    return [
        conditional(np.indices((vocabulary,) * (depth + 1)).reshape(depth + 1, -1).T.astype(np.int64)).reshape(
            (vocabulary,) * (depth + 2)
        )
        for depth in range(length)
    ]
