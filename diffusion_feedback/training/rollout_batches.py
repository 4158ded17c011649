"""The updates that are made from each iteration of rollouts: a source of passes that keeps what was drawn.

Samples are drawn at the first update of an iteration by the policy as it then is, and measured once; then the
updates go through them in counted permutations. Advantages are estimated, and whitened, over the whole iteration, which
a checkpoint holds: what was drawn is never drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..objectives.policy_gradient import Estimates, Experience, PolicyGradient
from ..objectives.returns import k1, per_completion
from .order import EpochOrder
from .rollouts import Rollouts, SampleCodec, SampleT
from .sources import under_budget


@dataclass(frozen=True, slots=True)
class Pretraining(Generic[SampleT]):
    """Samples that the policy must not unlearn, as texts: some each update, their loss weighed by ``coef``.

    ``order`` decides which of ``samples`` an update sees. The loss is the mean over their scored tokens of - log p,
    the last term of Eq. 2 in arXiv:2203.02155 per token.
    """

    samples: Sequence[SampleT]
    order: EpochOrder
    coef: float


@dataclass(frozen=True, slots=True)
class RolloutBatch(Generic[SampleT]):
    """B samples of one pass, actions flat (N,): what was measured when they were drawn, and what they are worth.

    ``metrics`` describe the whole iteration. ``pretraining`` are some of the pretraining samples, their summed loss
    weighed by ``pretraining_scale``, which makes it ``coef`` times their mean per token once the loop has divided.
    """

    samples: Sequence[SampleT]
    lengths: Tensor
    old: Tensor
    advantages: Tensor
    reference: Tensor | None
    old_values: Tensor | None
    returns: Tensor | None
    metrics: Mapping[str, float]
    pretraining: Sequence[SampleT] = ()
    pretraining_scale: float = 0.0

    @property
    def weight(self) -> Tensor:
        """Every sample counts alike, (B,)."""
        return torch.ones(len(self.samples))

    def __len__(self) -> int:
        return len(self.samples)


@dataclass
class RolloutSource(Generic[SampleT]):
    """Mini-batches of rollouts: a ``types.BatchSource`` that is also an ``Observer``, as it has a state to keep.

    ``draw`` gives the ``num_completions`` rollouts of an iteration; each is gone through ``num_ppo_epochs`` times in
    ``num_mini_batches`` updates. A pass holds samples of like lengths: ``pass_size`` of them, or with ``max_tokens``
    as many as fit, padding included. ``codec`` keeps the samples of the iteration in progress in checkpoints.

    Raises UserError where the mini-batches do not divide the samples, or are smaller than the processes.
    """

    draw: Callable[[int], Rollouts[SampleT]]
    codec: SampleCodec[SampleT]
    algorithm: PolicyGradient
    num_completions: int
    num_generations: int = 1
    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    seed: int = 0
    pass_size: int = 8
    max_tokens: int | None = None
    processes: int = 1
    rank: int = 0
    pretraining: Pretraining[SampleT] | None = None
    iteration: int = -1
    kl_coef: float = field(init=False)
    rollouts: Rollouts[SampleT] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.kl_coef = self.algorithm.kl_coef
        if self.num_completions % self.num_mini_batches:
            problem = f"rollouts.num_mini_batches: {self.num_mini_batches} parts of {self.num_completions} completions"
            raise UserError(problem, "use a number that divides num_prompts * num_generations")
        if self.batch_size < self.processes:
            problem = (
                f"rollouts: {self.batch_size} completions in an update are fewer than the {self.processes} processes"
            )
            raise UserError(problem, "raise rollouts.num_prompts, or lower rollouts.num_mini_batches")

    @property
    def batch_size(self) -> int:
        """Completions in one update, over all processes."""
        return self.num_completions // self.num_mini_batches

    @property
    def updates_per_iteration(self) -> int:
        """Optimizer steps that are made from the rollouts of one iteration."""
        return self.num_ppo_epochs * self.num_mini_batches

    def micro_batches(self, number: int) -> Iterator[RolloutBatch[SampleT]]:
        """This process's passes of update ``number`` (from 0)."""
        rollouts = self._current(number)
        indices = self._indices(number)
        lengths = [len(sample) for sample in rollouts.samples]
        by_length = sorted(indices, key=lambda index: (-lengths[index], index))
        budget, sizes = (self.pass_size, [1] * len(lengths)) if self.max_tokens is None else (self.max_tokens, lengths)
        runs = under_budget(by_length[self.rank :: self.processes], sizes, budget)
        texts, scale = self._pretraining(number)
        return (self._batch(run, texts[place :: len(runs)], scale) for place, run in enumerate(runs))

    def denominator(self, number: int) -> float:
        """Tokens, or completions, of update ``number``, as the algorithm counts."""
        lengths = self._current(number).lengths[self._indices(number)]
        return float(self.algorithm.counts(lengths).sum())

    def observe(self, network: nn.Module, metrics: Mapping[str, float]) -> None:
        """An update changes nothing here."""

    def state_dict(self) -> dict[str, Tensor]:
        """The iteration in progress, and the KL coefficient that it was estimated with."""
        if self.rollouts is None:
            return {}
        coef = torch.tensor(self.kl_coef, dtype=torch.float64)
        counters = {"iteration": torch.tensor(self.iteration), "kl_coef": coef}
        return {**counters, **self.rollouts.state_dict(self.codec)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what ``state_dict`` wrote after an update. Raises KeyError where it is not there."""
        self.iteration, self.kl_coef = int(state["iteration"]), float(state["kl_coef"])
        self._hold(Rollouts.from_state(state, self.codec))

    def _current(self, number: int) -> Rollouts[SampleT]:
        iteration = number // self.updates_per_iteration
        if self.rollouts is None or iteration != self.iteration:
            if self.rollouts is not None:
                self.kl_coef = self.algorithm.next_kl_coef(self.kl_coef, self._kl(), self.num_completions)
            drawn = self.draw(iteration)
            self.iteration = iteration
            self._hold(drawn)
        assert self.rollouts is not None
        return self.rollouts

    def _hold(self, rollouts: Rollouts[SampleT]) -> None:
        statistics = rollouts.statistics
        self.rollouts, self._lengths = rollouts, rollouts.lengths
        experience = Experience(
            statistics.logps,
            self._lengths,
            rollouts.scores,
            statistics.reference,
            statistics.values,
            self.num_generations,
        )
        self._estimates: Estimates = self.algorithm.estimate(experience, self.kl_coef)
        self._metrics = self._describe(rollouts)

    def _kl(self) -> float:
        """Mean over completions of the sum of log(pi / pi_ref), nats; 0 without a reference."""
        assert self.rollouts is not None
        statistics = self.rollouts.statistics
        if statistics.reference is None:
            return 0.0
        return float(per_completion(k1(statistics.logps, statistics.reference), self._lengths).mean())

    def _describe(self, rollouts: Rollouts[SampleT]) -> dict[str, float]:
        """Means over the iteration's completions, under the names of TRL's PPO."""
        score, other = float(rollouts.scores.mean()), float(self._estimates.non_score.mean())
        metrics = {
            "objective/entropy": float(-per_completion(rollouts.statistics.logps, self._lengths).mean()),
            "objective/scores": score,
            "objective/non_score_reward": other,
            "objective/rlhf_reward": score + other,
            "val/num_eos_tokens": float(rollouts.finished.sum()),
            "completions/mean_length": float(self._lengths.float().mean()),
            "episode": float((self.iteration + 1) * self.num_completions),
        }
        if rollouts.statistics.reference is not None:
            metrics |= {"objective/kl": self._kl(), "objective/kl_coef": self.kl_coef}
        if rollouts.statistics.entropy is not None:
            metrics["policy/entropy_avg"] = float(rollouts.statistics.entropy.mean())
        if rollouts.seconds:
            metrics["eps"] = self.num_completions / rollouts.seconds
        return metrics

    def _indices(self, number: int) -> list[int]:
        epoch, part = divmod(number % self.updates_per_iteration, self.num_mini_batches)
        iteration = number // self.updates_per_iteration
        permutation = np.random.default_rng([self.seed, iteration, epoch]).permutation(self.num_completions)
        return [int(index) for index in permutation[part * self.batch_size : (part + 1) * self.batch_size]]

    def _pretraining(self, number: int) -> tuple[list[SampleT], float]:
        """This process's pretraining samples of update ``number``, and the factor of their summed loss."""
        ptx = self.pretraining
        if ptx is None:
            return [], 0.0
        whole = [ptx.samples[index] for index in ptx.order.indices(number)]
        tokens = sum(sample.num_scored for sample in whole)
        return whole[self.rank :: self.processes], ptx.coef * self.denominator(number) / tokens

    def _batch(self, run: Sequence[int], texts: Sequence[SampleT], scale: float) -> RolloutBatch[SampleT]:
        assert self.rollouts is not None
        starts = self._lengths.cumsum(0) - self._lengths
        tokens = torch.cat([torch.arange(int(self._lengths[i])) + starts[i] for i in run])

        def taken(flat: Tensor | None) -> Tensor | None:
            return None if flat is None else flat[tokens]

        statistics, estimates = self.rollouts.statistics, self._estimates
        return RolloutBatch(
            [self.rollouts.samples[index] for index in run],
            self._lengths[list(run)],
            statistics.logps[tokens],
            estimates.advantages[tokens],
            taken(statistics.reference),
            taken(statistics.values),
            taken(estimates.returns),
            self._metrics,
            texts,
            scale,
        )
