"""Samples that the policy draws for its own training: drawn, judged and measured, an iteration at a time.

A sample is a prompt with what was drawn for it, in actions: the tokens of a completion, the denoising steps of an image.
An iteration is a fixed number of samples: some prompts, and as many samples of each. Every draw is a function of
(seed, iteration, prompt, generation): processes and batches change nothing but rounding. Every process holds them all.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, fields
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ..objectives.returns import shaped_scores
from .order import EpochOrder


class DrawnSample(Protocol):
    """What was drawn, with the prompt that it was drawn for; ``len`` is what it takes in a pass, in tokens or steps."""

    @property
    def num_scored(self) -> int:
        """How many actions it was drawn by."""
        ...

    def __len__(self) -> int: ...


PromptT = TypeVar("PromptT", bound=Sized)
SampleT = TypeVar("SampleT", bound=DrawnSample)


class SampleCodec(Protocol[SampleT]):
    """How samples are kept in a checkpoint: as tensors by name."""

    def pack(self, samples: Sequence[SampleT]) -> dict[str, Tensor]: ...
    def unpack(self, state: Mapping[str, Tensor]) -> list[SampleT]: ...


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """What the networks say of drawn actions, flat float32 (N,) on the CPU, sample by sample; None where nobody asks.

    ``logps`` and ``entropy`` are of the policy that drew them, ``values`` those of the states before them.
    """

    logps: Tensor
    reference: Tensor | None = None
    values: Tensor | None = None
    entropy: Tensor | None = None

    def columns(self) -> dict[str, Tensor]:
        """What there is, by name."""
        return {each.name: flat for each in fields(self) if (flat := getattr(self, each.name)) is not None}


Measure = Callable[[Sequence[SampleT]], TokenStatistics]


@dataclass(frozen=True, slots=True)
class Rollouts(Generic[SampleT]):
    """One iteration: M samples, which are trained on as they were drawn.

    ``scores`` (M,) and ``finished`` (M,) bool, whether each came to its own end; ``seconds`` is what drawing took.
    Consecutive samples of one prompt stand together.
    """

    samples: Sequence[SampleT]
    scores: Tensor
    finished: Tensor
    statistics: TokenStatistics
    seconds: float = 0.0

    @property
    def lengths(self) -> Tensor:
        """Actions of each sample, (M,)."""
        return torch.tensor([sample.num_scored for sample in self.samples])

    def state_dict(self, codec: SampleCodec[SampleT]) -> dict[str, Tensor]:
        """All of it as tensors."""
        return {
            **codec.pack(self.samples),
            "scores": self.scores,
            "finished": self.finished,
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            **self.statistics.columns(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], codec: SampleCodec[SampleT]) -> Rollouts[SampleT]:
        """What ``state_dict`` wrote."""
        statistics = TokenStatistics(
            **{each.name: state[each.name] for each in fields(TokenStatistics) if each.name in state}
        )
        return cls(codec.unpack(state), state["scores"], state["finished"], statistics, float(state["seconds"]))


def sample_seed(seed: int, iteration: int, prompt_id: str, generation: int) -> int:
    """The seed of one sample, in [0, 2^63)."""
    digest = hashlib.sha256(f"{seed}/{iteration}/{prompt_id}/{generation}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True, slots=True)
class JudgedSample(Generic[SampleT]):
    """One sample with its score, and what was measured of each of its actions."""

    sample: SampleT
    score: float
    columns: Mapping[str, Sequence[float]]


Shares = Callable[[list[dict[int, JudgedSample[SampleT]]]], list[dict[int, JudgedSample[SampleT]]]]
"""The judged samples of this process to those of all, in the order of ranks."""


@dataclass(frozen=True, slots=True)
class RolloutSampler(Generic[PromptT, SampleT]):
    """Draws an iteration: ``sampler(number)`` gives its ``Rollouts``, the same in every process.

    ``prompt_ids`` are the identities of ``prompts``, ``order`` says which of them an iteration takes. ``draw`` makes
    samples of prompts under the current policy from seeds, ``batch_size`` at once; ``is_finished`` tells which came to
    their own end; ``judge`` scores samples of prompts (by index); ``measure`` gives their log-probabilities and values.
    ``gather`` joins what each process did.
    """

    prompts: Sequence[PromptT]
    prompt_ids: Sequence[str]
    order: EpochOrder
    num_generations: int
    draw: Callable[[Sequence[PromptT], Sequence[int]], Sequence[SampleT]]
    is_finished: Callable[[SampleT], bool]
    judge: Callable[[Sequence[int], Sequence[SampleT]], Sequence[float]]
    measure: Measure[SampleT]
    seed: int = 0
    batch_size: int = 64
    missing_eos_penalty: float | None = None
    reward_clip: float | None = None
    gather: Shares[SampleT] = list
    processes: int = 1
    rank: int = 0

    def __call__(self, iteration: int) -> Rollouts[SampleT]:
        """All samples of ``iteration`` (from 0)."""
        begin = time.monotonic()
        slots = [(index, g) for index in self.order.indices(iteration) for g in range(self.num_generations)]
        # Prompts of like lengths are drawn together; each process takes every n-th of n, so that all have like work.
        by_length = sorted(range(len(slots)), key=lambda slot: (-len(self.prompts[slots[slot][0]]), slot))
        mine = by_length[self.rank :: self.processes]
        drawn: dict[int, JudgedSample[SampleT]] = {}
        for start in range(0, len(mine), self.batch_size):
            part = mine[start : start + self.batch_size]
            drawn.update(zip(part, self._draw([slots[slot] for slot in part], iteration), strict=True))
        whole: dict[int, JudgedSample[SampleT]] = {}
        for each in self.gather([drawn]):
            whole.update(each)
        return self._join([whole[slot] for slot in range(len(slots))], time.monotonic() - begin)

    def _draw(self, slots: Sequence[tuple[int, int]], iteration: int) -> list[JudgedSample[SampleT]]:
        indices = [index for index, _ in slots]
        seeds = [sample_seed(self.seed, iteration, self.prompt_ids[index], g) for index, g in slots]
        samples = self.draw([self.prompts[index] for index in indices], seeds)
        scores = self.judge(indices, samples)
        sizes = [sample.num_scored for sample in samples]
        statistics = self.measure(samples).columns()
        columns = {name: [part.tolist() for part in flat.split(sizes)] for name, flat in statistics.items()}
        return [
            JudgedSample(sample, float(score), {name: column[row] for name, column in columns.items()})
            for row, (sample, score) in enumerate(zip(samples, scores, strict=True))
        ]

    def _join(self, judged: Sequence[JudgedSample[SampleT]], seconds: float) -> Rollouts[SampleT]:
        samples = [each.sample for each in judged]
        finished = torch.tensor([self.is_finished(sample) for sample in samples])
        scores = shaped_scores(
            torch.tensor([each.score for each in judged]),
            finished,
            missing_eos_penalty=self.missing_eos_penalty,
            reward_clip=self.reward_clip,
        )
        names = judged[0].columns
        columns = {name: torch.tensor([value for each in judged for value in each.columns[name]]) for name in names}
        return Rollouts(samples, scores, finished, TokenStatistics(**columns), seconds)
