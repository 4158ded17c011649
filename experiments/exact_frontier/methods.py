"""The methods that are held against the exact frontier: each gives the metrics of one seed at one setting."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
import torch

from diffusion_feedback.models.actor_critic import ActorCritic
from diffusion_feedback.models.causal_lm import LanguageModel
from diffusion_feedback.models.reference import FrozenModel
from diffusion_feedback.models.text_sampling import sample_tokens
from diffusion_feedback.objectives.policy_gradient import PPO
from diffusion_feedback.training.order import EpochOrder
from diffusion_feedback.training.policy_gradient import PolicyGradientStep
from diffusion_feedback.training.preference import PreferenceStep
from diffusion_feedback.training.rollout_batches import RolloutSource
from diffusion_feedback.training.rollouts import RolloutSampler
from diffusion_feedback.training.sources import FixedBatchSource
from diffusion_feedback.training.token_rollouts import TokenCodec, completion_ids, draws_sequences
from diffusion_feedback.types.texts import TokenSequence, UnpairedBatch

from .bench import PAIR_COURSE, Bench, Row
from .networks import policy_table
from .training import Course, Once, fit
from .world import Floats, best_of_n, best_of_n_bound, joint, tilted

ROUNDS, ROUND_PROMPTS, ROUND_COURSE = 5, 12_000, Course(200, 64, 1e-3)
PPO_ITERATIONS, PPO_COMPLETIONS, PPO_EPOCHS, PPO_RATE = 60, 512, 4, 2e-3
BASE_COURSE = Course(200, 128, 3e-3)


def _finish(bench: Bench, network: LanguageModel, beta: float | None) -> Row:
    return bench.measure(joint(policy_table(network, bench.world)), beta)


def run_sft(bench: Bench, setting: float) -> Row:
    """Supervised fine-tuning on samples of the source."""
    return bench.measure_source()


def run_dpo(bench: Bench, beta: float) -> Row:
    """DPO on the judged pairs."""
    parts = bench.pair_parts("dpo", bench.frontier.reference, beta=beta)
    return _finish(bench, bench.on_pairs(f"dpo-{beta}", bench.fine_tuned, bench.pairs, parts, PAIR_COURSE), beta)


def run_ipo(bench: Bench, beta: float) -> Row:
    """IPO on the judged pairs; ``beta`` is per token, so its target for the whole completion is length / (2 beta)."""
    parts = bench.pair_parts("ipo", bench.frontier.reference, beta=beta)
    return _finish(bench, bench.on_pairs(f"ipo-{beta}", bench.fine_tuned, bench.pairs, parts, PAIR_COURSE), None)


def run_kto(bench: Bench, beta: float) -> Row:
    """KTO on the judged pairs taken apart: chosen completions are desirable, rejected ones are not."""
    pairs, texts, course = bench.pairs, bench.texts, PAIR_COURSE
    weight = (len(pairs.groups) - 1) / (2 * len(pairs))

    def batch(groups: Sequence[int], draw: int) -> UnpairedBatch:
        at = pairs.members(groups)
        prompts = np.tile(pairs.prompts[at], 2)
        completions = np.concatenate([pairs.chosen[at], pairs.rejected[at]])
        # Two groups further on stands another prompt, most of the time; a prompt's own completions do no harm.
        mismatched = texts.sequences(prompts, np.roll(completions, 12))
        names, weights = [str(index) for index in np.tile(at, 2)], torch.full((len(prompts),), weight)
        desirable = torch.arange(len(prompts)) < len(at)
        return UnpairedBatch(names, texts.sequences(prompts, completions), mismatched, desirable, weights, draw)

    step = PreferenceStep.of(
        replace(bench.pair_parts("kto", None, beta=beta), reference=FrozenModel.copy_of(bench.fine_tuned))
    )
    source = FixedBatchSource(EpochOrder(len(pairs.groups) - 1, course.batch_size, bench.seed), batch, 1)
    network = copy.deepcopy(bench.fine_tuned)
    fit(bench.folder / f"kto-{beta}", network, step, source, course)
    return _finish(bench, network, None)


def _from_base(bench: Bench, network: LanguageModel) -> Row:
    """Figures of a policy that was trained without supervised fine-tuning before: on held-out pairs, nats a token."""
    logps, pairs = joint(policy_table(network, bench.world)), bench.held_out
    nll = -float(logps[pairs.prompts, pairs.chosen].mean()) / bench.world.length
    return {**bench.measure(logps), "chosen_nll": nll, "accuracy": bench.accuracy(logps)}


def run_orpo(bench: Bench, beta: float) -> Row:
    """ORPO from the base on the judged pairs: no supervised fine-tuning before, no reference."""
    parts = bench.pair_parts("orpo", None, beta=beta)
    return _from_base(bench, bench.on_pairs(f"orpo-{beta}", bench.base, bench.pairs, parts, BASE_COURSE))


def run_sft_chosen(bench: Bench, setting: float) -> Row:
    """Supervised fine-tuning of the base on the chosen completions of the same pairs, as often."""
    return _from_base(bench, bench.supervised("sft-chosen", bench.pairs, Once(bench.tokens), BASE_COURSE))


def run_reward_model(bench: Bench, setting: float) -> Row:
    """The reward model's accuracy against the true reward, on pairs that it has not seen."""
    return {"accuracy": bench.accuracy(bench.learned_rewards)}


def run_best_of_n(bench: Bench, number: float) -> Row:
    """The best of N completions of the fine-tuned network by the true reward: exact, by enumeration."""
    logps = best_of_n(bench.frontier.reference, bench.world.rewards, int(number))
    return {**bench.measure(logps), "kl_bound": best_of_n_bound(int(number))}


def run_ppo(bench: Bench, beta: float) -> Row:
    """PPO with the true reward."""
    return _ppo(bench, f"ppo-{beta}", bench.world.rewards, beta)


def run_ppo_learned(bench: Bench, beta: float) -> Row:
    """PPO with the reward model that was trained on the judged pairs."""
    return _ppo(bench, f"ppo-learned-{beta}", bench.learned_rewards, beta)


def run_learned_optimum(bench: Bench, beta: float) -> Row:
    """What a perfect optimiser makes of the same reward model: exact, so the rest of the gap is PPO's."""
    return bench.measure(tilted(bench.frontier.reference, bench.learned_rewards, beta), beta)


def _ppo(bench: Bench, name: str, rewards: Floats, beta: float) -> Row:
    world, size = bench.world, bench.world.vocabulary
    network = ActorCritic(copy.deepcopy(bench.fine_tuned), seed=bench.seed)
    algorithm = PPO(kl_coef=beta, cliprange_value=1.0)
    reference = FrozenModel.copy_of(bench.fine_tuned)
    step = PolicyGradientStep(algorithm, bench.tokens, bench.tokens, reference, attrgetter("policy"))
    prompts = [[number % size] for number in range(size * PPO_COMPLETIONS)]
    powers = size ** np.arange(world.length)[::-1]

    def draw(prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[int]]:
        return sample_tokens(network.policy.model, prompts, seeds, max_new_tokens=world.length, end_ids=())

    def judge(indices: Sequence[int], samples: Sequence[TokenSequence]) -> list[float]:
        found: list[float] = rewards[
            np.array(indices) % size, np.array(list(map(completion_ids, samples))) @ powers
        ].tolist()
        return found

    sampler = RolloutSampler(
        prompts=prompts,
        prompt_ids=[str(number) for number in range(len(prompts))],
        order=EpochOrder(len(prompts), PPO_COMPLETIONS, bench.seed),
        num_generations=1,
        is_finished=lambda sample: False,
        draw=draws_sequences(draw),
        judge=judge,
        measure=lambda sequences: step.measure(network, sequences),
        seed=bench.seed,
        batch_size=PPO_COMPLETIONS,
    )
    source = RolloutSource(
        sampler,
        TokenCodec(),
        algorithm,
        PPO_COMPLETIONS,
        num_ppo_epochs=PPO_EPOCHS,
        seed=bench.seed,
        pass_size=PPO_COMPLETIONS,
    )
    fit(bench.folder / name, network, step, source, Course(PPO_ITERATIONS * PPO_EPOCHS, PPO_COMPLETIONS, PPO_RATE))
    return _finish(bench, network.policy, beta)


def run_iterated_initial(bench: Bench, beta: float) -> Row:
    """DPO in rounds, each on judged pairs of the policy as it then is; the reference stays the fine-tuned network."""
    return _iterated(bench, "initial", beta, beta)


def run_iterated_previous(bench: Bench, beta: float) -> Row:
    """The same with each round's start as its reference. Round k then aims at reference * exp(k r / beta of the round),
    so rounds of ROUNDS * ``beta`` end where one of ``beta`` aims at.
    """
    return _iterated(bench, "previous", beta, ROUNDS * beta)


def _iterated(bench: Bench, reference: str, beta: float, beta_of_round: float) -> Row:
    network, policy, rounds = bench.fine_tuned, bench.policy, []
    for number in range(ROUNDS):
        pairs = bench.round_pairs(policy, number, ROUND_PROMPTS)
        frozen = bench.frontier.reference if reference == "initial" else joint(policy)
        parts = bench.pair_parts("dpo", frozen, beta=beta_of_round)
        parts = replace(parts, starts_at_reference=number == 0 or reference == "previous")
        name = f"iterated-{reference}-{beta}/round-{number + 1}"
        network = bench.on_pairs(name, network, pairs, parts, ROUND_COURSE)
        policy = policy_table(network, bench.world)
        rounds.append(bench.measure(joint(policy), beta))
    return {**rounds[-1], "rounds": rounds}


@dataclass(frozen=True, slots=True)
class Method:
    """``run(bench, setting)`` for each of ``settings``: betas, or what stands for them; 0 for a method without any."""

    settings: tuple[float, ...]
    run: Callable[[Bench, float], Row]


BETAS = (2.0, 1.0, 0.5, 0.25, 0.1)
METHODS: Mapping[str, Method] = {
    "sft": Method((0,), run_sft),
    "reward_model": Method((0,), run_reward_model),
    "best_of_n": Method((2, 4, 16, 64, 256), run_best_of_n),
    "dpo": Method(BETAS, run_dpo),
    "ppo": Method(BETAS[1:], run_ppo),
    "ppo_learned": Method(BETAS[1:], run_ppo_learned),
    "learned_optimum": Method(BETAS[1:], run_learned_optimum),
    "iterated_initial": Method((0.1,), run_iterated_initial),
    "iterated_previous": Method((0.1,), run_iterated_previous),
    "ipo": Method((1.0, 0.2), run_ipo),
    "kto": Method((1.0,), run_kto),
    "sft_chosen": Method((0,), run_sft_chosen),
    "orpo": Method((0.5, 2.0), run_orpo),
}
