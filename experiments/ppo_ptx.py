"""What the pretraining term of PPO-ptx is for, measured where everything can be counted exactly.

The exact world (``exact_frontier.world``) has eight prompts. A small transformer learns the source of texts on all of them; then
PPO teaches it a reward on the first four, and nobody asks for the others: they stand for the rest of what a language
model knows. The pretraining term shows it texts of the source that begin with those others. Reward on the four prompts
and negative log-likelihood of the source on the others (nats a token) come from going through all completions: no
sampling error is in them, the intervals are those of training, over seeds (Student's t, 95 %).

    python -m experiments.ppo_ptx --seeds 0 1 2 --output runs/ppo_ptx

Measured by that command, with one thread (about 5 minutes of a CPU core):

| | reward, prompts that are rewarded | KL to the start | NLL of the source elsewhere | its change |
|---|---|---|---|---|
| start | 0.041 ± 0.005 | 0.000 ± 0.000 | 1.396 ± 0.001 | +0.00 ± 0.00 % |
| PPO, ptx_coef 0.0 | 2.591 ± 0.103 | 5.110 ± 0.199 | 2.522 ± 0.078 | +80.71 ± 5.66 % |
| PPO, ptx_coef 1.0 | 2.575 ± 0.054 | 5.069 ± 0.230 | 1.398 ± 0.001 | +0.16 ± 0.11 % |

The rewards differ by -0.016 ± 0.116, -0.6 % of what PPO gains.

Exits with 1 unless, on average over seeds: without the term the held-out log-likelihood worsens by more than 2 %; with
it by less than 2 %; and the interval of the difference in reward holds 0 or the rewards differ by less than 2 %.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from diffusion_feedback.models.actor_critic import ActorCritic
from diffusion_feedback.models.causal_lm import LanguageModel
from diffusion_feedback.models.reference import FrozenModel
from diffusion_feedback.models.text_sampling import sample_tokens
from diffusion_feedback.objectives.policy_gradient import PPO
from diffusion_feedback.records import atomic_write
from diffusion_feedback.training.order import EpochOrder
from diffusion_feedback.training.policy_gradient import PolicyGradientStep
from diffusion_feedback.training.rollout_batches import Pretraining, RolloutSource
from diffusion_feedback.training.rollouts import RolloutSampler
from diffusion_feedback.training.token_rollouts import TokenCodec, completion_ids, draws_sequences
from diffusion_feedback.types.texts import TokenSequence

from .exact_frontier.bench import Bench
from .exact_frontier.networks import policy_table
from .exact_frontier.training import Course, draw_samples, fit
from .exact_frontier.world import ExactWorld, Floats, divergence, expected, joint

ITERATIONS, COMPLETIONS, EPOCHS, RATE, BETA = 80, 256, 4, 1e-3, 0.25
TEXTS, TEXTS_PER_UPDATE = 20_000, 256
_TEXTS = 7  # stream of draws, after the seed
Row = dict[str, Any]


def num_rewarded(world: ExactWorld) -> int:
    """How many prompts are rewarded: the first half of them."""
    return world.vocabulary // 2


def pretraining_texts(bench: Bench, coef: float) -> Pretraining[TokenSequence]:
    """Texts of the source that begin with the prompts that nobody asks for."""
    prompts, completions = draw_samples(bench.world.source, 2 * TEXTS, bench.seed, _TEXTS)
    others = prompts >= num_rewarded(bench.world)
    sequences = bench.texts.sequences(prompts[others], completions[others])
    return Pretraining(sequences, EpochOrder(len(sequences), TEXTS_PER_UPDATE, bench.seed), coef)


def rollout_sampler(
    bench: Bench, network: ActorCritic, step: PolicyGradientStep
) -> RolloutSampler[list[int], TokenSequence]:
    """Draws completions of the rewarded prompts, judged by the true reward."""
    world, number = bench.world, num_rewarded(bench.world)
    prompts = [[index % number] for index in range(number * COMPLETIONS)]
    powers = world.vocabulary ** np.arange(world.length)[::-1]

    def judge(indices: Sequence[int], samples: Sequence[TokenSequence]) -> list[float]:
        found: list[float] = world.rewards[
            np.array(indices) % number, np.array(list(map(completion_ids, samples))) @ powers
        ].tolist()
        return found

    return RolloutSampler(
        prompts=prompts,
        prompt_ids=[str(index) for index in range(len(prompts))],
        order=EpochOrder(len(prompts), COMPLETIONS, bench.seed),
        num_generations=1,
        is_finished=lambda sample: False,
        draw=draws_sequences(
            lambda some, seeds: sample_tokens(
                network.policy.model, some, seeds, max_new_tokens=world.length, end_ids=()
            )
        ),
        judge=judge,
        measure=lambda sequences: step.measure(network, sequences),
        seed=bench.seed,
        batch_size=COMPLETIONS,
    )


def metrics_of(bench: Bench, network: LanguageModel) -> Row:
    """Exact: reward and divergence on the rewarded prompts, negative log-likelihood of the source on the others."""
    world, number = bench.world, num_rewarded(bench.world)
    logps, source = joint(policy_table(network, world)), joint(world.source)
    reference: Floats = bench.frontier.reference
    return {
        "reward": expected(logps[:number], world.rewards[:number]),
        "kl": divergence(logps[:number], reference[:number]),
        "nll": -expected(source[number:], logps[number:]) / world.length,
    }


def run(bench: Bench, coef: float) -> Row:
    """PPO with the true reward, and with the pretraining term where ``coef`` > 0."""
    network = ActorCritic(copy.deepcopy(bench.fine_tuned), seed=bench.seed)
    algorithm = PPO(kl_coef=BETA, cliprange_value=1.0)
    likelihood, reference = TokenLikelihood(), FrozenModel.copy_of(bench.fine_tuned)
    step = PolicyGradientStep(algorithm, likelihood, likelihood, reference, lambda actor: network.policy)
    source = RolloutSource(
        rollout_sampler(bench, network, step),
        TokenCodec(),
        algorithm,
        COMPLETIONS,
        num_ppo_epochs=EPOCHS,
        seed=bench.seed,
        pass_size=COMPLETIONS,
        pretraining=pretraining_texts(bench, coef) if coef else None,
    )
    begin = time.process_time()
    fit(bench.folder / f"ppo-ptx-{coef}", network, step, source, Course(ITERATIONS * EPOCHS, COMPLETIONS, RATE))
    return {**metrics_of(bench, network.policy), "cpu_seconds": time.process_time() - begin}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("inf")
    return float(np.mean(values)), float(half)


def table(rows: dict[str, list[Row]], coefs: Sequence[float]) -> str:
    """Means with intervals over seeds; changes are against the same seed's start."""
    lines = [
        "| | reward, prompts that are rewarded | KL to the start | NLL of the source elsewhere | its change |",
        "|---|---|---|---|---|",
    ]
    for name in ["start", *map(str, coefs)]:
        cells = [
            "{:.3f} ± {:.3f}".format(*interval([row[key] for row in rows[name]])) for key in ("reward", "kl", "nll")
        ]
        change = [100 * (row["nll"] / first["nll"] - 1) for row, first in zip(rows[name], rows["start"], strict=True)]
        label = "start" if name == "start" else f"PPO, ptx_coef {name}"
        lines.append(f"| {label} | {' | '.join(cells)} | {'{:+.2f} ± {:.2f} %'.format(*interval(change))} |")
    return "\n".join(lines)


def holds(rows: dict[str, list[Row]], coefs: Sequence[float]) -> bool:
    """Whether the largest coefficient keeps what is lost without it, at equal reward; says how large the differences are."""
    without, kept = rows["0.0"], rows[str(max(coefs))]

    def change(found: list[Row]) -> float:
        return float(np.mean([row["nll"] / first["nll"] - 1 for row, first in zip(found, rows["start"], strict=True)]))

    mean, half = interval([row["reward"] - other["reward"] for row, other in zip(kept, without, strict=True)])
    gain = float(np.mean([row["reward"] - first["reward"] for row, first in zip(without, rows["start"], strict=True)]))
    print(f"difference in reward {mean:+.4f} ± {half:.4f}, {100 * mean / gain:+.2f} % of the gain without the term")
    print(f"change of the NLL {100 * change(without):+.2f} % without, {100 * change(kept):+.2f} % with the term")
    return change(without) > 0.02 and change(kept) < 0.02 and (abs(mean) <= half or abs(mean) < 0.02 * gain)


def main() -> int:
    """Run all seeds and coefficients; what was measured before is read back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--coefs", type=float, nargs="+", default=[0.0, 1.0], help="0 among them: without the term")
    parser.add_argument("--output", type=Path, default=Path("runs/ppo_ptx"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    world, rows = ExactWorld.draw(0), dict[str, list[Row]]()
    for seed in arguments.seeds:
        bench = Bench(world, seed, arguments.output / f"seed-{seed}")
        for name in ["start", *map(str, arguments.coefs)]:
            file = bench.folder / f"{name}.json"
            if not file.exists():
                row = metrics_of(bench, bench.fine_tuned) if name == "start" else run(bench, float(name))
                with atomic_write(file) as partial:
                    partial.write_text(json.dumps(row, indent=1) + "\n", "utf-8")
            rows.setdefault(name, []).append(json.loads(file.read_text("utf-8")))
            print(f"seed {seed} {name}: {rows[name][-1]}", flush=True)
    print(table(rows, arguments.coefs))
    return 0 if holds(rows, arguments.coefs) else 1


if __name__ == "__main__":
    sys.exit(main())
