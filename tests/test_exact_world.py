"""The world that can be enumerated, against loops over every completion, simulation and optimisation by another way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from exact_world import (
    SPREAD,
    ExactWorld,
    Frontier,
    best_of_n,
    best_of_n_bound,
    divergence,
    entropy,
    expected,
    joint,
    sample,
    tabulate,
    tilted,
)
from scipy.optimize import minimize

V, T = 3, 3


@pytest.fixture(scope="module")
def world() -> ExactWorld:
    return ExactWorld.draw(5, vocabulary=V, length=T)


def completions() -> list[tuple[int, ...]]:
    return list(itertools.product(range(V), repeat=T))


def by_hand(world: ExactWorld) -> tuple[list[list[float]], list[list[float]]]:
    """Probabilities under the source, and rewards, of every completion of every prompt, one at a time."""
    probabilities, rewards = [], []
    for prompt in range(V):
        chances, numbers = [], []
        for completion in completions():
            chance, number, before = 1.0, 0.0, prompt
            for symbol in completion:
                chance *= math.exp(world.transitions[before, symbol])
                number += float(world.unigram[symbol]) + float(world.bigram[before, symbol])
                before = symbol
            chances.append(chance)
            numbers.append(number)
        probabilities.append(chances)
        rewards.append(numbers)
    return probabilities, rewards


def some_policy(seed: int) -> list[np.ndarray]:
    """A policy without any structure: each conditional of its own."""
    rng = np.random.default_rng(seed)
    raw = [rng.dirichlet(np.ones(V), size=(V,) * (depth + 1)) for depth in range(T)]
    return [np.log(each) for each in raw]


def test_source_and_reward_are_those_of_a_loop_over_completions(world: ExactWorld) -> None:
    probabilities, rewards = by_hand(world)
    np.testing.assert_allclose(np.exp(joint(world.source)), probabilities, rtol=1e-12)
    np.testing.assert_allclose(world.rewards, rewards, atol=1e-12)
    assert world.symbols.tolist() == [list(each) for each in completions()]


def test_scale_of_the_reward(world: ExactWorld) -> None:
    probabilities, rewards = by_hand(world)
    assert sum(
        p * r for ps, rs in zip(probabilities, rewards, strict=True) for p, r in zip(ps, rs, strict=True)
    ) / V == pytest.approx(0, abs=1e-9)
    distance = 0.0
    for chances, numbers in zip(probabilities, rewards, strict=True):
        weights = [p * math.exp(r / 0.5) for p, r in zip(chances, numbers, strict=True)]
        best = [weight / sum(weights) for weight in weights]
        distance += sum(q * math.log(q / p) for q, p in zip(best, chances, strict=True)) / V
    assert distance == pytest.approx(SPREAD, rel=1e-6)


def test_two_worlds_differ_and_one_world_repeats() -> None:
    first, again, other = (ExactWorld.draw(seed, vocabulary=V, length=T) for seed in (1, 1, 2))
    assert np.array_equal(first.rewards, again.rewards)
    assert not np.allclose(first.transitions, other.transitions)


def test_joint_multiplies_the_conditionals() -> None:
    policy = some_policy(1)
    table = joint(policy)
    for prompt in range(V):
        for number, (a, b, c) in enumerate(completions()):
            value = policy[0][prompt, a] + policy[1][prompt, a, b] + policy[2][prompt, a, b, c]
            assert table[prompt, number] == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(np.exp(table).sum(axis=1), 1, rtol=1e-12)


def test_divergence_entropy_and_expectation_by_hand(world: ExactWorld) -> None:
    p, q = joint(some_policy(1)), joint(some_policy(2))
    pairs = [(math.exp(a), a, b, r) for a, b, r in zip(p.flat, q.flat, world.rewards.flat, strict=True)]
    assert divergence(p, q) == pytest.approx(sum(w * (a - b) for w, a, b, _ in pairs) / V, rel=1e-12)
    assert entropy(p) == pytest.approx(-sum(w * a for w, a, _, _ in pairs) / V, rel=1e-12)
    assert expected(p, world.rewards) == pytest.approx(sum(w * r for w, _, _, r in pairs) / V, rel=1e-12)


def test_completions_of_no_probability_count_for_nothing() -> None:
    p = np.log(np.array([[0.5, 0.5, 1e-300]]))
    p[0, 2] = -np.inf
    q = np.log(np.array([[0.25, 0.5, 0.25]]))
    assert divergence(p, q) == pytest.approx(0.5 * math.log(2))
    assert entropy(p) == pytest.approx(math.log(2))


@pytest.mark.parametrize("beta", [2.0, 0.5, 0.1])
def test_tilted_policy_is_what_an_optimiser_finds(world: ExactWorld, beta: float) -> None:
    """L-BFGS on the logits of E[r] - beta KL, which knows nothing of the closed form."""
    reference, rewards = joint(world.source)[0], world.rewards[0]

    def loss(logits: np.ndarray) -> tuple[float, np.ndarray]:
        logps = logits - np.logaddexp.reduce(logits)
        p, value = np.exp(logps), rewards - beta * (logps - reference)
        mean = float(p @ value)
        return -mean, -p * (value - mean)

    found = minimize(
        loss, reference, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    )
    logps = found.x - np.logaddexp.reduce(found.x)
    expected_logps = tilted(joint(world.source), world.rewards, beta)[0]
    np.testing.assert_allclose(np.exp(logps), np.exp(expected_logps), atol=1e-5)


def test_no_policy_lies_above_the_frontier(world: ExactWorld) -> None:
    frontier = Frontier(joint(world.source), world.rewards)
    for seed in range(50):
        policy = joint(some_policy(seed))
        kl, reward = divergence(policy, frontier.reference), expected(policy, world.rewards)
        assert reward <= frontier.best_reward(kl) + 1e-9
        assert frontier.share(kl, reward) <= 1


def test_frontier_returns_the_points_it_is_made_of(world: ExactWorld) -> None:
    frontier = Frontier(joint(world.source), world.rewards)
    for beta in (3.0, 0.7, 0.2):
        kl, reward = frontier.point(beta)
        assert frontier.best_reward(kl) == pytest.approx(reward, rel=1e-8)
        assert frontier.share(kl, reward) == pytest.approx(1, rel=1e-7)
    assert frontier.best_reward(0) == expected(frontier.reference, world.rewards)
    assert frontier.best_reward(1e6) == pytest.approx(world.rewards.max(axis=1).mean(), rel=1e-6)
    assert math.isnan(frontier.share(0.0, 1.0))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_best_of_n_is_what_all_draws_give(number: int) -> None:
    """Every tuple of draws, one at a time, with two completions of equal reward that share what they win."""
    reference = np.log(np.array([[0.1, 0.4, 0.2, 0.3]]))
    rewards = np.array([[1.0, -1.0, 2.0, 1.0]])
    p, won = np.exp(reference[0]), np.zeros(4)
    for draws in itertools.product(range(4), repeat=number):
        best = max(rewards[0, list(draws)])
        winners = [each for each in draws if rewards[0, each] == best]
        for winner in winners:
            won[winner] += math.prod(p[list(draws)]) / len(winners)
    np.testing.assert_allclose(np.exp(best_of_n(reference, rewards, number))[0], won, rtol=1e-12)


def test_best_of_n_diverges_by_no_more_than_its_bound() -> None:
    world = ExactWorld.draw(0, vocabulary=4, length=4)
    reference = joint(world.source)
    for number in (1, 2, 8, 64, 512):
        table = best_of_n(reference, world.rewards, number)
        np.testing.assert_allclose(np.exp(table).sum(axis=1), 1, rtol=1e-9)
        assert divergence(table, reference) <= best_of_n_bound(number) + 1e-12
    assert best_of_n_bound(1) == 0
    assert best_of_n_bound(4) == pytest.approx(0.6362943611)
    np.testing.assert_allclose(best_of_n(reference, world.rewards, 1), reference, atol=1e-12)


def test_samples_follow_the_table_and_their_own_draws_alone() -> None:
    policy = some_policy(3)
    rng = np.random.default_rng(0)
    prompts, draws = rng.integers(V, size=60_000), rng.random((60_000, T))
    drawn = sample(policy, prompts, draws)
    table = np.exp(joint(policy))
    for prompt in range(V):
        counts = np.bincount(drawn[prompts == prompt], minlength=V**T)
        deviation = (counts - counts.sum() * table[prompt]) / np.sqrt(counts.sum() * table[prompt])
        assert (deviation**2).sum() < V**T + 5 * math.sqrt(2 * V**T)
    order = rng.permutation(100)
    np.testing.assert_array_equal(sample(policy, prompts[order], draws[order]), drawn[order])


def test_tabulate_asks_for_every_prefix_in_order() -> None:
    policy = some_policy(4)

    def conditional(sequences: np.ndarray) -> np.ndarray:
        table = policy[sequences.shape[1] - 1]
        return np.array([table[tuple(sequence)] for sequence in sequences])

    for made, known in zip(tabulate(conditional, V, T), policy, strict=True):
        np.testing.assert_array_equal(made, known)
