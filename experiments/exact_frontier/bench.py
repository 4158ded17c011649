"""What the methods of the frontier share for one seed: the fine-tuned model, the judged pairs, the reward model; and how a
policy is measured. Everything is trained in the seed's folder and read back from there when it is done.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_feedback.catalog import objective_row
from diffusion_feedback.likelihoods.rewards import SequenceRewards
from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from diffusion_feedback.models.causal_lm import LanguageModel
from diffusion_feedback.models.reference import FrozenModel
from diffusion_feedback.training.judging import JudgingStep
from diffusion_feedback.training.preference import PreferenceStep
from diffusion_feedback.training.steps import PointwiseStep, StepParts
from diffusion_feedback.types.training import Likelihood

from .networks import new_policy, new_reward_network, policy_table, reward_table
from .training import Course, Once, Pairs, Texts, draw_pairs, draw_samples, fit, pair_source
from .world import ExactWorld, Floats, Frontier, Policy, divergence, entropy, expected, joint, sample

SFT_SAMPLES, NUM_PROMPTS, NUM_COMPLETIONS, HELD_OUT = 100_000, 52_000, 4, 100_000
SFT_COURSE = Course(300, 256, 3e-3)
PAIR_COURSE = Course(
    1600, 128, 1.5e-3
)  # four passes; every objective on pairs, and the reward model: up to 6 pairs a prompt
CENTRING = 0.01  # coefficient of the reward model's centring

# Streams of draws, after the seed.
_SFT, _PAIRS, _HELD_OUT, _ROUNDS = 0, 1, 2, 3

Row = dict[str, Any]


@dataclass
class Bench:
    """One seed of the experiment in ``world``; ``folder`` is the seed's own."""

    world: ExactWorld
    seed: int
    folder: Path

    def __post_init__(self) -> None:
        self.texts = Texts(self.world)
        self.tokens = TokenLikelihood()

    @cached_property
    def base(self) -> LanguageModel:
        """The network that nothing was taught."""
        return new_policy(self.world, self.seed)

    @cached_property
    def fine_tuned(self) -> LanguageModel:
        """The network after supervised fine-tuning on samples of the source: everybody's start and reference."""
        prompts, completions = draw_samples(self.world.source, SFT_SAMPLES, self.seed, _SFT)
        samples = Pairs(prompts, completions, completions[:0], np.arange(SFT_SAMPLES + 1))
        return self.supervised("sft", samples, self.tokens, SFT_COURSE)

    def supervised(self, name: str, samples: Pairs, likelihood: Likelihood, course: Course) -> LanguageModel:
        """The base after supervised fine-tuning on the chosen completions of ``samples``."""
        network = copy.deepcopy(self.base)
        step = PointwiseStep(StepParts(likelihood, None, objective_row("sft"), {}))
        fit(self.folder / name, network, step, pair_source(self.texts, samples, course, self.seed), course)
        return network

    @cached_property
    def policy(self) -> Policy:
        """The fine-tuned network's table."""
        return policy_table(self.fine_tuned, self.world)

    @cached_property
    def frontier(self) -> Frontier:
        """The best that can be reached from the fine-tuned network."""
        return Frontier(joint(self.policy), self.world.rewards)

    @cached_property
    def pairs(self) -> Pairs:
        """Judged pairs of the fine-tuned network's completions, which every offline method learns from."""
        return draw_pairs(self.policy, self.world.rewards, NUM_PROMPTS, NUM_COMPLETIONS, self.seed, _PAIRS)

    def round_pairs(self, policy: Policy, number: int, num_prompts: int) -> Pairs:
        """Judged pairs of the completions of ``policy``, for round ``number``."""
        return draw_pairs(policy, self.world.rewards, num_prompts, NUM_COMPLETIONS, self.seed, _ROUNDS, number)

    @cached_property
    def held_out(self) -> Pairs:
        """Pairs of independent completions of the fine-tuned network; the truly better one is chosen."""
        prompts, first = draw_samples(self.policy, HELD_OUT, self.seed, _HELD_OUT)
        draws = np.random.default_rng([self.seed, _HELD_OUT, 1]).random((HELD_OUT, self.world.length))
        second = sample(self.policy, prompts, draws)
        gain = self.world.rewards[prompts, first] - self.world.rewards[prompts, second]
        chosen, rejected = np.where(gain > 0, first, second), np.where(gain > 0, second, first)
        differ = np.abs(gain) > 1e-9
        size = int(differ.sum())
        return Pairs(prompts[differ], chosen[differ], rejected[differ], np.arange(size + 1))

    def accuracy(self, values: Floats) -> float:
        """How often ``values`` (prompts, completions) prefer the truly better completion of a held-out pair."""
        pairs = self.held_out
        return float((values[pairs.prompts, pairs.chosen] > values[pairs.prompts, pairs.rejected]).mean())

    @cached_property
    def learned_rewards(self) -> Floats:
        """What a reward model that was trained on ``pairs`` gives every completion."""
        network = new_reward_network(self.world, self.fine_tuned, self.seed)
        settings = {"center_rewards_coefficient": CENTRING}
        step = JudgingStep(StepParts(Once(SequenceRewards("cpu")), None, objective_row("bradley_terry"), settings))
        source = pair_source(self.texts, self.pairs, PAIR_COURSE, self.seed)
        fit(self.folder / "reward-model", network, step, source, PAIR_COURSE)
        return reward_table(network, self.world)

    def pair_parts(self, objective: str, reference: Floats | None, **settings: Any) -> StepParts:
        """What a step on pairs is made of, by the objective's name; the reference is a joint table, so that it costs no pass."""
        return StepParts(
            Once(self.tokens),
            None if reference is None else FrozenModel.copy_of(self.fine_tuned),
            objective_row(objective),
            settings,
            reference_logps=None if reference is None else self.texts.lookup(reference),
            pair_metrics_of=lambda logps: {},
        )

    def on_pairs(
        self, name: str, start: LanguageModel, pairs: Pairs, parts: StepParts, course: Course
    ) -> LanguageModel:
        """A copy of ``start``, trained on ``pairs`` in the folder ``name``."""
        network = copy.deepcopy(start)
        source = pair_source(self.texts, pairs, course, self.seed)
        fit(self.folder / name, network, PreferenceStep.of(parts), source, course)
        return network

    def measure(self, logps: Floats, beta: float | None = None) -> Row:
        """Exact metrics of the policy with the joint table ``logps``, beside the optimum at ``beta``."""
        frontier = self.frontier
        kl, reward = divergence(logps, frontier.reference), expected(logps, frontier.rewards)
        row: Row = {"kl": kl, "reward": reward, "best_reward": frontier.best_reward(kl)}
        row["share"] = frontier.share(kl, reward)
        if beta is not None:
            row["optimum_kl"], row["optimum_reward"] = frontier.point(beta)
        return row

    def measure_source(self) -> Row:
        """How well supervised fine-tuning has met the source: nats a token, and the excess of the one over the other."""
        source = joint(self.world.source)
        known, loss = entropy(source), -expected(source, self.frontier.reference)
        start = expected(self.frontier.reference, self.frontier.rewards)
        length = self.world.length
        return {
            "entropy": known / length,
            "cross_entropy": loss / length,
            "excess": loss / known - 1,
            "reward": start,
        }


def timed(row: Mapping[str, Any], begin: float) -> Row:
    """``row`` with the processor's seconds since ``begin`` (``time.process_time``)."""
    return {**row, "cpu_seconds": round(time.process_time() - begin, 1)}
