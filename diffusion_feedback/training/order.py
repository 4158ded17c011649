"""Which pairs make up which optimizer step: a function of (seed, step), the same for any number of processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """Goes through ``num_examples`` examples in a fresh permutation each epoch, ``batch_size`` of them an optimizer step.

    The last incomplete batch of an epoch is left out, so that every step has the same weight; another permutation
    brings its examples the next time. Raises UserError when a batch is larger than the data.

    With ``times``, one for each example, an epoch draws each that many times: those of one number go through
    permutations of their own, one after the other, so that over epochs none is drawn more than once more than another,
    and every stretch of an epoch has the same mixture.
    """

    num_examples: int
    batch_size: int
    seed: int
    times: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.batch_size > self.num_draws:
            problem = (
                f"the effective batch of {self.batch_size} examples is larger than the {self.num_draws} usable ones"
            )
            raise UserError(problem, "lower training.train_batch_size or training.gradient_accumulation_steps")

    @property
    def num_draws(self) -> int:
        """Examples of one epoch, those that are repeated as often as they are."""
        return self.num_examples if self.times is None else sum(number for _, number in _groups(self.times))

    def draw(self, step: int) -> int:
        """What the random draws of ``step`` are counted by: an example has others in each step that draws it."""
        return self.epoch(step) if self.times is None else step

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass through the data."""
        return self.num_draws // self.batch_size

    def epoch(self, step: int) -> int:
        """The pass through the data that ``step`` (from 0) belongs to."""
        return step // self.steps_per_epoch

    def indices(self, step: int) -> list[int]:
        """The examples of optimizer step ``step`` (from 0), over all processes and micro-batches."""
        epoch = self.epoch(step)
        if self.times is None:
            permutation = _permutation(self.num_examples, self.seed, epoch)
        else:
            permutation = _mixture(self.times, self.seed, epoch)
        start = (step % self.steps_per_epoch) * self.batch_size
        return [int(index) for index in permutation[start : start + self.batch_size]]


@lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


@lru_cache(maxsize=2)
def _groups(times: tuple[float, ...]) -> tuple[tuple[NDArray[np.int64], int], ...]:
    """The examples that are drawn equally often, and how many draws of an epoch are theirs."""
    numbers = np.asarray(times)
    groups = [np.flatnonzero(numbers == each) for each in np.unique(numbers)]
    return tuple((group, max(1, round(len(group) * float(numbers[group[0]])))) for group in groups)


@lru_cache(maxsize=2)
def _mixture(times: tuple[float, ...], seed: int, epoch: int) -> NDArray[np.int64]:
    """The draws of ``epoch``. The k-th of n draws of a group lies at a random place in [k / n, (k + 1) / n] of it."""
    examples, places = [], []
    for number, (group, draws) in enumerate(_groups(times)):
        counts = epoch * draws + np.arange(draws)
        rounds = counts // len(group)
        for each in range(int(rounds[0]), int(rounds[-1]) + 1):
            order = np.random.default_rng([seed, each, number, 1]).permutation(len(group))
            examples.append(group[order[counts[rounds == each] % len(group)]])
        within = np.random.default_rng([seed, epoch, number, 2]).random(draws)
        places.append((np.arange(draws) + within) / draws)
    return np.concatenate(examples)[np.argsort(np.concatenate(places), kind="stable")]


def split(indices: list[int], micro_batches: int, processes: int, rank: int) -> list[list[int]]:
    """The micro-batches of process ``rank`` in one optimizer step; together the processes cover ``indices`` once."""
    size = len(indices) // (micro_batches * processes)
    starts = [(micro * processes + rank) * size for micro in range(micro_batches)]
    return [indices[start : start + size] for start in starts]
