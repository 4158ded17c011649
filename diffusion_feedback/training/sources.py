"""Which examples make up which pass: a function of (seed, step), exact for any number of processes and passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UserError
from .order import EpochOrder, split

Batches = Callable[[Sequence[int], int], Any]


@dataclass(frozen=True, slots=True)
class FixedBatchSource:
    """Passes of equal size. ``batches(indices, draw)`` gives examples; ``draw`` is the epoch, or the step where examples are repeated."""

    order: EpochOrder
    batches: Batches
    micro_batches_per_step: int
    processes: int = 1
    rank: int = 0

    @property
    def batch_size(self) -> int:
        """Examples in one optimizer step, over all processes."""
        return self.order.batch_size

    def micro_batches(self, number: int) -> Iterator[Any]:
        """This process's part of optimizer step ``number``."""
        parts = split(self.order.indices(number), self.micro_batches_per_step, self.processes, self.rank)
        draw = self.order.draw(number)
        return (self.batches(indices, draw) for indices in parts)

    def denominator(self, number: int) -> float:
        """The number of examples."""
        return float(self.batch_size)


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Passes of like lengths under a budget of tokens, padding included; which examples a step holds does not change.

    ``lengths`` are the tokens that each example takes in a pass (both sides of a pair); ``max_tokens`` is the budget of
    one pass, exceeded only by an example that is alone. ``counts`` are what the loss of each example is divided by:
    scored tokens for a mean over tokens; 1 each where not given. Padding and passes change the sum by rounding alone.
    """

    order: EpochOrder
    batches: Batches
    lengths: Sequence[int]
    max_tokens: int
    processes: int = 1
    rank: int = 0
    counts: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.order.batch_size < self.processes:
            problem = f"{self.order.batch_size} examples in a step are fewer than the {self.processes} processes"
            raise UserError(problem, "raise training.train_batch_size")

    @property
    def batch_size(self) -> int:
        """Examples in one optimizer step, over all processes."""
        return self.order.batch_size

    def micro_batches(self, number: int) -> Iterator[Any]:
        """This process's part of optimizer step ``number``: every ``processes``-th example by length."""
        by_length = sorted(self.order.indices(number), key=lambda index: (-self.lengths[index], index))
        draw = self.order.draw(number)
        passes = under_budget(by_length[self.rank :: self.processes], self.lengths, self.max_tokens)
        return (self.batches(indices, draw) for indices in passes)

    def denominator(self, number: int) -> float:
        """The number of examples, or the sum of their ``counts``."""
        counts = self.counts
        return float(self.batch_size if counts is None else sum(counts[index] for index in self.order.indices(number)))


@dataclass(frozen=True, slots=True)
class UnpairedSource:
    """Passes of single samples, each with a partner whose completion its prompt is mismatched with.

    ``batches(indices, partners, draw)`` gives the examples of each of ``passes``, in the place of its own. The partner of
    an example is the next one in the order of the whole step, the first one's for the last: it depends on the step alone,
    not on passes and processes. Raises UserError for steps of one example, which would be its own partner.
    """

    passes: FixedBatchSource | TokenSource
    batches: Callable[[Sequence[int], Sequence[int], int], Any]

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            problem = "a step of one example has no mismatched completion, by which the divergence is estimated"
            raise UserError(problem, "raise training.train_batch_size or training.gradient_accumulation_steps")

    @property
    def batch_size(self) -> int:
        """Examples in one optimizer step, over all processes."""
        return self.passes.batch_size

    def micro_batches(self, number: int) -> Iterator[Any]:
        """This process's part of optimizer step ``number``."""
        indices = self.passes.order.indices(number)
        partner = dict(zip(indices, [*indices[1:], indices[0]], strict=True))
        numbers = replace(self.passes, batches=lambda own, draw: (own, draw))
        for own, draw in numbers.micro_batches(number):
            yield self.batches(own, [partner[index] for index in own], draw)

    def denominator(self, number: int) -> float:
        """The number of examples."""
        return float(self.batch_size)


def under_budget(by_length: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut ``by_length`` (longest first) into runs of which each, padded to its longest, holds ``max_tokens`` at most."""
    runs: list[list[int]] = []
    for index in by_length:
        if runs and lengths[runs[-1][0]] * (len(runs[-1]) + 1) <= max_tokens:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs
