"""Rollouts on a tiny real model: what is drawn, what is measured, and that passes and processes change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
from torch import Tensor, nn

from diffusion_feedback.errors import UserError
from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from diffusion_feedback.models.actor_critic import ActorCritic
from diffusion_feedback.models.causal_lm import CausalLM, LanguageModel
from diffusion_feedback.models.reference import FrozenModel
from diffusion_feedback.objectives.policy_gradient import GRPO, PPO, RLOO
from diffusion_feedback.training.order import EpochOrder
from diffusion_feedback.training.policy_gradient import PolicyGradientStep
from diffusion_feedback.training.rollout_batches import Pretraining, RolloutSource
from diffusion_feedback.training.rollouts import Rollouts, RolloutSampler, TokenStatistics, sample_seed
from diffusion_feedback.training.token_rollouts import (
    TokenCodec,
    completion_ids,
    drawn_sequence,
    draws_sequences,
    ends_in,
)
from diffusion_feedback.types.texts import TokenSequence

PROMPTS = ("a red", "the cat sat on", "hello", "good")
TEMPERATURE = 0.7
ALGORITHMS = {"ppo": PPO(kl_coef=0.2), "grpo": GRPO(beta=0.2), "rloo": RLOO(beta=0.2)}


def reward(ids: Sequence[int]) -> float:
    return sum(token % 3 for token in ids) / len(ids)


class World:
    """A policy, its reference, and rollouts of it."""

    def __init__(self, algorithm: Any, *, moved: float = 0.05, temperature: float = TEMPERATURE) -> None:
        self.spelling = tiny_text.tokenizer()
        policy = LanguageModel(tiny_text.language_model("llama", vocab_size=len(self.spelling)))
        reference = FrozenModel.copy_of(policy)
        self.model = CausalLM(policy, self.spelling)
        self.network: nn.Module = ActorCritic(policy) if algorithm.learns_values else policy
        self.network.requires_grad_(True)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.add_(moved * torch.randn(parameter.shape, generator=generator))
        self.algorithm = algorithm
        self.step = PolicyGradientStep(
            algorithm,
            TokenLikelihood(temperature=temperature),
            TokenLikelihood(),
            reference,
            language_model=lambda network: policy,
            starts_at_reference=moved == 0,
        )
        self.prompts = [self.spelling(text)["input_ids"] for text in PROMPTS]

    @property
    def ends(self) -> tuple[int, ...]:
        return (*self.model.end_token_ids, 261, 262, 263, 264, 265, 266)  # so that some completions are finished

    def sampler(self, **changes: Any) -> RolloutSampler:
        def sample(prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[int]]:
            return self.model.sample(self.model.network, prompts, seeds, max_new_tokens=6, temperature=TEMPERATURE)

        standard = RolloutSampler(
            self.prompts,
            PROMPTS,
            EpochOrder(len(PROMPTS), 4, 0),
            4,
            draw=draws_sequences(sample),
            is_finished=ends_in(self.ends),
            judge=lambda indices, samples: [reward(completion_ids(each)) for each in samples],
            measure=lambda sequences: self.step.measure(self.network, sequences),
        )
        return replace(standard, **changes)

    def source(self, draw: Callable[[int], Rollouts] | None = None, **changes: Any) -> RolloutSource:
        settings = {"num_ppo_epochs": 2, "num_mini_batches": 2, "pass_size": 8, **changes}
        return RolloutSource(draw or self.sampler(), TokenCodec(), self.algorithm, 16, 4, **settings)

    def texts(self, coef: float = 0.5) -> Pretraining:
        ids = [self.spelling(text)["input_ids"] for text in tiny_text.sentences(10)]
        return Pretraining([drawn_sequence(each[:1], each[1:]) for each in ids], EpochOrder(10, 6, 0), coef)


@pytest.fixture(params=list(ALGORITHMS))
def world(request: pytest.FixtureRequest) -> World:
    return World(ALGORITHMS[request.param])


@pytest.fixture(scope="module")
def ppo_world() -> World:
    return World(ALGORITHMS["ppo"])


# ---------------------------------------------------------------- what is drawn


def same_rollouts(one: Rollouts, other: Rollouts) -> None:
    assert [each.ids.tolist() for each in one.samples] == [each.ids.tolist() for each in other.samples]
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(one.finished, other.finished)
    for name, flat in one.statistics.columns().items():
        torch.testing.assert_close(flat, other.statistics.columns()[name], atol=1e-5, rtol=1e-5)


def test_batches_and_processes_do_not_change_the_draws(ppo_world: World) -> None:
    whole = ppo_world.sampler()(3)
    same_rollouts(whole, ppo_world.sampler(batch_size=3)(3))
    shares: list[Any] = []

    def leave(own: list[Any]) -> list[Any]:
        shares.extend(own)
        return own

    # Ranks 1 and 2 leave their shares; alone, a rank lacks the others' completions. Rank 0 gathers all three.
    for rank in (1, 2):
        with pytest.raises(KeyError):
            ppo_world.sampler(processes=3, rank=rank, gather=leave)(3)
    same_rollouts(whole, ppo_world.sampler(processes=3, rank=0, gather=lambda own: [*own, *shares])(3))


def test_each_iteration_draws_anew_and_a_seed_is_its_own(ppo_world: World) -> None:
    first, second = ppo_world.sampler()(0), ppo_world.sampler()(1)
    assert [each.ids.tolist() for each in first.samples] != [each.ids.tolist() for each in second.samples]
    seeds = {
        sample_seed(seed, iteration, prompt, generation)
        for seed in (0, 1)
        for iteration in (0, 1, 10)
        for prompt in ("a", "b")
        for generation in range(4)
    }
    assert len(seeds) == 2 * 3 * 2 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_completions_of_a_prompt_stand_together_as_they_were_drawn(ppo_world: World) -> None:
    sampler = ppo_world.sampler()
    rollouts = sampler(0)
    order = [index for index in sampler.order.indices(0) for _ in range(4)]
    for sequence, index, score, finished in zip(
        rollouts.samples, order, rollouts.scores.tolist(), rollouts.finished.tolist(), strict=True
    ):
        prompt = ppo_world.prompts[index]
        assert sequence.ids[: sequence.prompt_length].tolist() == prompt
        assert sequence.scored.tolist() == [False] * len(prompt) + [True] * (len(sequence) - len(prompt))
        completion = sequence.ids[sequence.prompt_length :].tolist()
        assert score == pytest.approx(reward(completion), abs=1e-6)
        assert finished == (completion[-1] in ppo_world.ends)
    assert rollouts.finished.any()
    assert not rollouts.finished.all()


@dataclass(frozen=True)
class Picture:
    """An image as a sample: the latents (T + 1, 2, 2) that denoising in T steps went through."""

    prompt: str
    path: Tensor

    @property
    def num_scored(self) -> int:
        return len(self.path) - 1

    def __len__(self) -> int:
        return self.num_scored


class PictureCodec:
    def pack(self, samples: Sequence[Picture]) -> dict[str, Tensor]:
        names = torch.tensor([PROMPTS.index(sample.prompt) for sample in samples])
        return {"names": names, "paths": torch.stack([sample.path for sample in samples])}

    def unpack(self, state: Mapping[str, Tensor]) -> list[Picture]:
        return [Picture(PROMPTS[name], path) for name, path in zip(state["names"], state["paths"], strict=True)]


def test_rollouts_of_images_are_drawn_cut_into_passes_and_kept() -> None:
    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Picture]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return [Picture(p, torch.randn(4, 2, 2, generator=g)) for p, g in zip(prompts, generators, strict=True)]

    def measure(samples: Sequence[Picture]) -> TokenStatistics:
        return TokenStatistics(torch.cat([-each.path[1:].square().mean((1, 2)) for each in samples]))

    sampler = RolloutSampler(
        PROMPTS,
        PROMPTS,
        EpochOrder(len(PROMPTS), 4, 0),
        3,
        draw=draw,
        is_finished=lambda sample: True,
        judge=lambda indices, samples: [float(each.path[-1].sum()) for each in samples],
        measure=measure,
        batch_size=5,
    )

    def source() -> RolloutSource[Picture]:
        return RolloutSource(
            sampler, PictureCodec(), GRPO(beta=0.0), 12, 3, num_ppo_epochs=1, num_mini_batches=2, pass_size=4
        )

    one, other = source(), source()
    batches = [batch for number in range(2) for batch in one.micro_batches(number)]
    assert [len(batch) for batch in batches] == [4, 2, 4, 2]
    assert {tuple(batch.lengths.tolist()) for batch in batches} == {(3,) * 4, (3,) * 2}
    for batch in batches:
        assert torch.equal(batch.old, measure(batch.samples).logps)
    other.load_state_dict(one.state_dict())
    assert other.rollouts is not None
    assert one.rollouts is not None
    pairs = zip(one.rollouts.samples, other.rollouts.samples, strict=True)
    assert all(torch.equal(a.path, b.path) and a.prompt == b.prompt for a, b in pairs)


def test_penalty_for_a_missing_end(ppo_world: World) -> None:
    plain = ppo_world.sampler()(0)
    shaped = ppo_world.sampler(missing_eos_penalty=2.0, reward_clip=0.5)(0)
    expected = plain.scores.clamp(-0.5, 0.5) - 2.0 * (~plain.finished).float()
    assert torch.equal(shaped.scores, expected)


# ---------------------------------------------------------------- what is measured


def brute_force(network: LanguageModel, sequence: TokenSequence, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the completion by the model's own forward pass and a full softmax."""
    ids = torch.from_numpy(sequence.ids.astype(np.int64))
    with torch.no_grad():
        shares = (network.model(input_ids=ids[None]).logits[0].double() / temperature).log_softmax(-1)
    places = torch.arange(sequence.prompt_length, len(ids))
    return shares[places - 1, ids[places]], -(shares.exp() * shares).sum(-1)[places - 1]


def test_one_temperature_for_old_and_reference(ppo_world: World) -> None:
    rollouts = ppo_world.sampler()(0)
    with ppo_world.step.reference(ppo_world.model.network) as reference:  # type: ignore[misc]
        for network, flat in (
            (ppo_world.model.network, rollouts.statistics.logps),
            (reference, rollouts.statistics.reference),
        ):
            assert flat is not None
            found = [brute_force(network, each, TEMPERATURE) for each in rollouts.samples]  # type: ignore[arg-type]
            torch.testing.assert_close(flat, torch.cat([logps for logps, _ in found]).float(), atol=2e-4, rtol=1e-4)
            if network is ppo_world.model.network:
                entropy = torch.cat([each for _, each in found]).float()
                torch.testing.assert_close(rollouts.statistics.entropy, entropy, atol=2e-4, rtol=1e-4)


def test_values_are_those_of_the_states_before_the_tokens(ppo_world: World) -> None:
    rollouts = ppo_world.sampler()(0)
    network = ppo_world.network
    assert isinstance(network, ActorCritic)
    expected = []
    for sequence in rollouts.samples:
        for place in range(sequence.prompt_length, len(sequence)):
            before = torch.from_numpy(sequence.ids[:place].astype(np.int64))[None]
            with torch.no_grad():
                hidden = network.policy.model.base_model(input_ids=before).last_hidden_state
                expected.append(network.value_head(hidden)[0, -1])
    assert rollouts.statistics.values is not None
    assert rollouts.statistics.values.std() > 0.01
    torch.testing.assert_close(rollouts.statistics.values, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_gate_finds_another_temperature_and_a_reference_that_is_none() -> None:
    source = World(PPO()).source()
    batch = next(source.micro_batches(0))
    right, wrong = World(PPO()), World(PPO(), temperature=1.0)
    assert right.step.gate(right.network, batch)["max_logp_gap"] < 1e-4
    with pytest.raises(UserError, match="max_logp_gap"):
        wrong.step.gate(wrong.network, batch)
    with pytest.raises(UserError, match="max_reference_gap"):
        replace(right.step, starts_at_reference=True).gate(right.network, batch)
    start = World(PPO(), moved=0.0)
    figures = start.step.gate(start.network, next(start.source().micro_batches(0)))
    assert figures["max_reference_gap"] < 1e-4


# ---------------------------------------------------------------- passes


def gradient(world: World, sources: Sequence[RolloutSource], number: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of one update over all ``sources``, one a process, as the loop makes them."""
    network = copy.deepcopy(world.network)
    step = world.step
    # The policy has moved since its completions were drawn, and some ratios are clipped.
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    total = 0.0
    for source in sources:
        for batch in source.micro_batches(number):
            output = step(network, batch)
            (output.loss / source.denominator(number)).backward()
            total += float(output.loss.detach()) / source.denominator(number)
    return total, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_passes_budgets_and_processes_give_one_gradient(world: World) -> None:
    rollouts = world.sampler()(0)
    texts = world.texts()

    def sources(**changes: Any) -> list[RolloutSource]:
        processes = changes.get("processes", 1)
        return [
            world.source(lambda iteration: rollouts, pretraining=texts, rank=rank, **changes)
            for rank in range(processes)
        ]

    loss, expected = gradient(world, sources(pass_size=16), 3)
    assert max(float(each.abs().max()) for each in expected.values()) > 1e-3
    for changes in ({"pass_size": 1}, {"max_tokens": 40}, {"pass_size": 3, "processes": 3}):
        other, found = gradient(world, sources(**changes), 3)
        assert other == pytest.approx(loss, abs=1e-4)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)


def test_pretraining_text_adds_its_mean_per_token(world: World) -> None:
    rollouts = world.sampler()(0)
    without = gradient(world, [world.source(lambda iteration: rollouts)], 1)
    texts = world.texts(coef=0.5)
    with_texts = gradient(world, [world.source(lambda iteration: rollouts, pretraining=texts, pass_size=3)], 1)
    # The same by transformers' own loss: cross entropy of all tokens of the update's texts but each one's first.
    network = copy.deepcopy(world.network)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    language_model = network.policy if isinstance(network, ActorCritic) else network
    losses, tokens = [], 0
    for index in texts.order.indices(1):
        ids = torch.from_numpy(texts.samples[index].ids.astype(np.int64))[None]
        losses.append(language_model.model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1))
        tokens += ids.shape[1] - 1
    mean = 0.5 * torch.stack(losses).sum() / tokens
    mean.backward()
    assert with_texts[0] - without[0] == pytest.approx(float(mean.detach()), abs=1e-3)
    for name, parameter in network.named_parameters():
        added = 0 if parameter.grad is None else parameter.grad
        torch.testing.assert_close(with_texts[1][name], without[1][name] + added, atol=2e-4, rtol=1e-3)


def test_every_epoch_sees_every_completion_once(ppo_world: World) -> None:
    rollouts = ppo_world.sampler()(0)
    source = ppo_world.source(lambda iteration: rollouts, num_mini_batches=4, pass_size=3)
    identity = {id(sequence): index for index, sequence in enumerate(rollouts.samples)}
    orders = []
    for epoch in range(2):
        seen = [
            identity[id(sequence)]
            for part in range(4)
            for batch in source.micro_batches(4 * epoch + part)
            for sequence in batch.samples
        ]
        assert sorted(seen) == list(range(16))
        orders.append(seen)
    assert orders[0] != orders[1]
    lengths = sum(source.denominator(part) for part in range(4))
    assert lengths == float(rollouts.lengths.sum())


def test_advantages_are_whitened_over_the_iteration(ppo_world: World) -> None:
    source = ppo_world.source()
    advantages = torch.cat([b.advantages for part in range(2) for b in source.micro_batches(part)])
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-5)
    assert float(advantages.std()) == pytest.approx(1, abs=1e-4)


def test_state_goes_on_where_it_stopped() -> None:
    world = World(PPO(kl_coef=0.2, target_kl=0.01, horizon=100.0))
    calls: list[int] = []

    def draw(iteration: int) -> Rollouts:
        calls.append(iteration)
        return world.sampler()(iteration)

    whole = world.source(draw)
    for number in range(6):
        whole.denominator(number)
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    resumed = world.source(draw)
    resumed.load_state_dict(state)
    assert calls == [0, 1]
    for number in range(6, 10):
        for one, other in zip(whole.micro_batches(number), resumed.micro_batches(number), strict=True):
            assert [each.ids.tolist() for each in one.samples] == [each.ids.tolist() for each in other.samples]
            for name in ("old", "advantages", "reference", "old_values", "returns", "lengths"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
            timeless = [{k: v for k, v in each.metrics.items() if k != "eps"} for each in (one, other)]
            assert timeless[0] == timeless[1]
        assert resumed.kl_coef == whole.kl_coef
    assert calls == [0, 1, 2, 2]
    # The policy is far from its reference: the coefficient rises by 20 % * 16 / 100 at each of two new iterations.
    assert whole.kl_coef == pytest.approx(0.2 * 1.032**2)
    assert world.source(draw).state_dict() == {}


def test_figures_are_those_of_the_iteration(ppo_world: World) -> None:
    source = ppo_world.source()
    batch = next(source.micro_batches(0))
    rollouts = source.rollouts
    assert rollouts is not None
    assert rollouts.statistics.reference is not None
    parts = (rollouts.statistics.logps - rollouts.statistics.reference).split(rollouts.lengths.tolist())
    kl = sum(float(part.sum()) for part in parts) / 16
    assert batch.metrics["objective/kl"] == pytest.approx(kl, rel=1e-4)
    assert batch.metrics["objective/non_score_reward"] == pytest.approx(-0.2 * kl, rel=1e-4)
    total = batch.metrics["objective/scores"] + batch.metrics["objective/non_score_reward"]
    assert batch.metrics["objective/rlhf_reward"] == pytest.approx(total)
    assert batch.metrics["val/num_eos_tokens"] == float(rollouts.finished.sum())
    metrics = ppo_world.step(ppo_world.network, batch).metrics
    assert float(metrics["val/ratio"].mean()) == pytest.approx(1, abs=1e-4)
    assert float(metrics["policy/approxkl_avg"].mean()) == pytest.approx(0, abs=1e-6)
    assert {"loss/policy_avg", "loss/value_avg", "policy/clipfrac_avg", "val/clipfrac_avg", "val/ratio_var"} <= set(
        metrics
    )


def test_parts_that_do_not_fit_are_refused(ppo_world: World) -> None:
    with pytest.raises(UserError, match="num_mini_batches"):
        ppo_world.source(num_mini_batches=3)
    with pytest.raises(UserError, match="fewer than the 9 processes"):
        ppo_world.source(processes=9)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_learning_raises_the_reward(name: str) -> None:
    """Twenty updates from rollouts, in a plain loop, on a reward that tokens decide."""
    world = World(replace(ALGORITHMS[name], **({"kl_coef": 0.01} if name == "ppo" else {"beta": 0.01})))
    source = world.source(world.sampler(num_generations=16), num_ppo_epochs=4, num_mini_batches=1, pass_size=64)
    source = replace(source, num_completions=64, num_generations=16)
    optimizer = torch.optim.AdamW(world.network.parameters(), lr=4e-3)
    scores = []
    for number in range(20):
        for batch in source.micro_batches(number):
            scores.append(batch.metrics["objective/scores"])
            (world.step(world.network, batch).loss / source.denominator(number)).backward()
        torch.nn.utils.clip_grad_norm_(world.network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert scores[-1] > scores[0] + 0.1
