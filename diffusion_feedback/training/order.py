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
    """

    num_examples: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size > self.num_examples:
            problem = (
                f"the effective batch of {self.batch_size} examples is larger than the {self.num_examples} usable ones"
            )
            raise UserError(problem, "lower training.train_batch_size or training.gradient_accumulation_steps")

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass through the data."""
        return self.num_examples // self.batch_size

    def epoch(self, step: int) -> int:
        """The pass through the data that ``step`` (from 0) belongs to."""
        return step // self.steps_per_epoch

    def indices(self, step: int) -> list[int]:
        """The examples of optimizer step ``step`` (from 0), over all processes and micro-batches."""
        permutation = _permutation(self.num_examples, self.seed, self.epoch(step))
        start = (step % self.steps_per_epoch) * self.batch_size
        return [int(index) for index in permutation[start : start + self.batch_size]]


@lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def split(indices: list[int], micro_batches: int, processes: int, rank: int) -> list[list[int]]:
    """The micro-batches of process ``rank`` in one optimizer step; together the processes cover ``indices`` once."""
    size = len(indices) // (micro_batches * processes)
    starts = [(micro * processes + rank) * size for micro in range(micro_batches)]
    return [indices[start : start + size] for start in starts]
