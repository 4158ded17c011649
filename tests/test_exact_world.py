"""The world that can be enumerated, against loops over every completion, simulation and optimisation by another way; and
the tables of its networks against the package's own likelihoods and reward models.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from diffusion_feedback.likelihoods.rewards import SequenceRewards
from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from experiments.exact_frontier.networks import new_policy, new_reward_network, policy_table, reward_table
from experiments.exact_frontier.training import Once, Pairs, Texts, draw_pairs
from experiments.exact_frontier.world import (
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


def everything(world: ExactWorld) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and completion number of every text of the world."""
    prompts = np.repeat(np.arange(world.vocabulary), world.completions)
    return prompts, np.tile(np.arange(world.completions), world.vocabulary)


@pytest.fixture(scope="module")
def texts(world: ExactWorld) -> Texts:
    return Texts(world)


def test_a_networks_table_is_its_likelihood_of_every_text(world: ExactWorld, texts: Texts) -> None:
    """The walk over prefixes in float64, against one padded pass of TokenLikelihood in float32."""
    network, tokens = new_policy(world, 3), TokenLikelihood()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():  # as initialised, a network gives nearly the same to all
            parameter.add_(0.3 * torch.randn_like(parameter))
        passed = tokens.logps(network, tokens.prepare_sequences(texts.sequences(*everything(world))))
    table = joint(policy_table(network, world))
    np.testing.assert_allclose(table.ravel(), passed.numpy(), atol=2e-5)
    np.testing.assert_allclose(np.exp(table).sum(axis=1), 1, rtol=1e-12)
    assert table.std() > 0.5


def test_a_reward_networks_table_is_its_score_of_every_text(world: ExactWorld, texts: Texts) -> None:
    policy = new_policy(world, 3)
    network, reader = new_reward_network(world, policy, 4), SequenceRewards("cpu")
    with torch.no_grad():
        passed = reader.scores(network, reader.prepare_sequences(texts.sequences(*everything(world))))
    table = reward_table(network, world)
    np.testing.assert_allclose(table.ravel(), passed.numpy(), atol=1e-5)
    assert table.std() > 1e-3


def test_texts_know_their_numbers(world: ExactWorld, texts: Texts) -> None:
    prompts, completions = everything(world)
    found = texts.places(texts.sequences(prompts, completions))
    np.testing.assert_array_equal(found[0], prompts)
    np.testing.assert_array_equal(found[1], completions)
    one = texts.sequence(2, 5)
    assert one.ids.tolist() == [2, 0, 1, 2]
    assert one.scored.tolist() == [False, True, True, True]


def test_labels_follow_bradley_terry_on_the_true_reward(world: ExactWorld) -> None:
    pairs = draw_pairs(world.source, world.rewards, 20_000, 4, 9)
    assert (pairs.chosen != pairs.rejected).all()
    assert len(pairs) == pairs.groups[-1] < 6 * 20_000
    gain = world.rewards[pairs.prompts, pairs.chosen] - world.rewards[pairs.prompts, pairs.rejected]
    # Of all pairs that differ by as much, a share of sigmoid(difference) has the better completion chosen.
    for low, high in ((0.1, 0.5), (0.5, 1.0), (1.0, 2.0)):
        inside = (np.abs(gain) >= low) & (np.abs(gain) < high)
        predicted = 1 / (1 + np.exp(-np.abs(gain[inside])))
        deviation = 4 * math.sqrt((predicted * (1 - predicted)).sum()) / inside.sum()
        assert inside.sum() > 1000
        assert (gain[inside] > 0).mean() == pytest.approx(predicted.mean(), abs=deviation)
    for group in (0, 7, 19_999):  # one prompt a group, and no more than four completions
        at = pairs.members([group])
        assert len(set(pairs.prompts[at])) <= 1
        assert len({*pairs.chosen[at], *pairs.rejected[at]}) <= 4


def test_a_batch_of_groups_has_the_mean_of_its_pairs(world: ExactWorld, texts: Texts) -> None:
    pairs = draw_pairs(world.source, world.rewards, 50, 4, 9)
    batch = texts.batches(pairs)
    whole = batch(range(50), 0)
    assert len(whole) == len(pairs)
    assert float(whole.weight.sum()) / 50 == pytest.approx(1)
    some = batch([3, 1], 0)
    assert list(some.example_ids) == [str(at) for group in (3, 1) for at in range(*pairs.groups[group : group + 2])]


def test_reading_each_sequence_once_changes_nothing(world: ExactWorld, texts: Texts) -> None:
    network, tokens = new_policy(world, 3).requires_grad_(True), TokenLikelihood()
    pairs = draw_pairs(world.source, world.rewards, 20, 4, 9)
    batch = texts.batches(pairs)(range(20), 0)
    found = []
    for likelihood in (tokens, Once(tokens)):
        network.zero_grad()
        inputs = likelihood.prepare(batch)
        logps = likelihood.logps(network, inputs)
        (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
        gradients = torch.cat([parameter.grad.ravel() for parameter in network.parameters()])
        found.append((logps.detach(), likelihood.lengths(inputs), gradients))
    for plain, once in zip(*found, strict=True):
        torch.testing.assert_close(once, plain, atol=1e-4, rtol=1e-4)
    read = Once(tokens).prepare(batch)[0]
    assert len(read.sequences) < len(batch.chosen) + len(batch.rejected)


def test_a_joint_table_serves_as_reference(world: ExactWorld, texts: Texts) -> None:
    pairs = Pairs(np.array([1, 2]), np.array([4, 0]), np.array([5, 26]), np.array([0, 1, 2]))
    table = joint(some_policy(6))
    found = texts.lookup(table)(texts.batches(pairs)([0, 1], 0))
    np.testing.assert_allclose(found, [table[1, 4], table[2, 0], table[1, 5], table[2, 26]], rtol=1e-6)
