"""Completions that the policy draws for its own training: drawn, judged and measured, an iteration at a time.

An iteration is a fixed number of completions: so many prompts, so many completions each. Every draw is a function of
(seed, iteration, prompt, generation): processes and batches change nothing but rounding. Every process holds them all.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..objectives.returns import shaped_scores
from ..types import TokenSequence
from .order import PairOrder

Sample = Callable[[Sequence[Sequence[int]], Sequence[int]], list[list[int]]]
Judge = Callable[[Sequence[int], Sequence[Sequence[int]]], Sequence[float]]
Gather = Callable[[list[Any]], list[Any]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What the networks say of drawn tokens, flat float32 (N,) on the CPU; None where nobody asks.

    ``logps`` and ``entropy`` are of the policy that drew them, ``values`` those of the states before them.
    """

    logps: Tensor
    reference: Tensor | None = None
    values: Tensor | None = None
    entropy: Tensor | None = None

    def columns(self) -> dict[str, Tensor]:
        """What there is, by name."""
        found = {"logps": self.logps, "reference": self.reference, "values": self.values, "entropy": self.entropy}
        return {name: flat for name, flat in found.items() if flat is not None}


_COLUMNS = ("logps", "reference", "values", "entropy")
_Drawn = tuple[list[int], float, dict[str, list[float]]]
Measure = Callable[[Sequence[TokenSequence]], Measured]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """One iteration: M completions after their prompts, as token ids that are trained on as they were drawn.

    ``scores`` (M,) and ``finished`` (M,) bool, whether the end token was drawn; ``seconds`` is what drawing took.
    Consecutive completions of one prompt stand together.
    """

    sequences: Sequence[TokenSequence]
    scores: Tensor
    finished: Tensor
    measured: Measured
    seconds: float = 0.0

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion, (M,)."""
        return torch.tensor([sequence.num_scored for sequence in self.sequences])

    def state_dict(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        return {
            "ids": torch.from_numpy(np.concatenate([sequence.ids for sequence in self.sequences])),
            "lengths": torch.tensor([len(sequence) for sequence in self.sequences]),
            "prompt_lengths": torch.tensor([sequence.prompt_length for sequence in self.sequences]),
            "scores": self.scores,
            "finished": self.finished,
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            **self.measured.columns(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Rollouts:
        """What ``state_dict`` wrote."""
        parts = state["ids"].split(state["lengths"].tolist())
        sequences = [
            completion_of(ids.tolist(), prompt)
            for ids, prompt in zip(parts, state["prompt_lengths"].tolist(), strict=True)
        ]
        measured = Measured(**{name: state[name] for name in _COLUMNS if name in state})
        return cls(sequences, state["scores"], state["finished"], measured, float(state["seconds"]))


def completion_of(ids: Sequence[int], prompt_length: int) -> TokenSequence:
    """A prompt and its drawn completion, every token of which counts."""
    return TokenSequence(np.array(ids, dtype=np.int32), np.arange(len(ids)) >= prompt_length, prompt_length)


def completion_seed(seed: int, iteration: int, prompt_id: str, generation: int) -> int:
    """The seed of one completion, in [0, 2^63)."""
    digest = hashlib.sha256(f"{seed}/{iteration}/{prompt_id}/{generation}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True, slots=True)
class Roller:
    """Draws an iteration: ``roller(number)`` gives its ``Rollouts``, the same in every process.

    ``prompts`` are token ids, ``prompt_ids`` their identities, ``order`` which of them an iteration takes. ``sample``
    draws completions of prompts under the current policy from seeds, ``batch_size`` at once; ``judge`` scores completions (token
    ids) of prompts (by index); ``measure`` gives their log-probabilities and values. ``gather`` joins what each process
    did, in the order of ranks.
    """

    prompts: Sequence[Sequence[int]]
    prompt_ids: Sequence[str]
    order: PairOrder
    num_generations: int
    end_token_ids: Sequence[int]
    sample: Sample
    judge: Judge
    measure: Measure
    seed: int = 0
    batch_size: int = 64
    missing_eos_penalty: float | None = None
    reward_clip: float | None = None
    gather: Gather = list
    processes: int = 1
    rank: int = 0

    def __call__(self, iteration: int) -> Rollouts:
        """All completions of ``iteration`` (from 0)."""
        begin = time.monotonic()
        slots = [(index, g) for index in self.order.indices(iteration) for g in range(self.num_generations)]
        # Prompts of like lengths are drawn together; each process takes every so many-th, so that all have like work.
        by_length = sorted(range(len(slots)), key=lambda slot: (-len(self.prompts[slots[slot][0]]), slot))
        mine = by_length[self.rank :: self.processes]
        drawn: dict[int, _Drawn] = {}
        for start in range(0, len(mine), self.batch_size):
            part = mine[start : start + self.batch_size]
            drawn.update(zip(part, self._draw([slots[slot] for slot in part], iteration), strict=True))
        whole: dict[int, _Drawn] = {}
        for each in self.gather([drawn]):
            whole.update(each)
        return self._join([index for index, _ in slots], whole, time.monotonic() - begin)

    def _draw(self, slots: Sequence[tuple[int, int]], iteration: int) -> list[_Drawn]:
        indices = [index for index, _ in slots]
        seeds = [completion_seed(self.seed, iteration, self.prompt_ids[index], g) for index, g in slots]
        completions = self.sample([self.prompts[index] for index in indices], seeds)
        scores = self.judge(indices, completions)
        measured = self.measure([self._sequence(index, ids) for index, ids in zip(indices, completions, strict=True)])
        sizes = [len(ids) for ids in completions]
        columns = {name: [part.tolist() for part in flat.split(sizes)] for name, flat in measured.columns().items()}
        return [
            (ids, float(score), {name: column[row] for name, column in columns.items()})
            for row, (ids, score) in enumerate(zip(completions, scores, strict=True))
        ]

    def _sequence(self, index: int, completion: Sequence[int]) -> TokenSequence:
        prompt = self.prompts[index]
        return completion_of([*prompt, *completion], len(prompt))

    def _join(self, indices: Sequence[int], drawn: Mapping[int, _Drawn], seconds: float) -> Rollouts:
        rows = [drawn[slot] for slot in range(len(indices))]
        finished = torch.tensor([ids[-1] in self.end_token_ids for ids, _, _ in rows])
        scores = shaped_scores(
            torch.tensor([score for _, score, _ in rows]),
            finished,
            missing_eos_penalty=self.missing_eos_penalty,
            reward_clip=self.reward_clip,
        )
        columns = {name: torch.tensor([value for _, _, has in rows for value in has[name]]) for name in rows[0][2]}
        sequences = [self._sequence(index, ids) for index, (ids, _, _) in zip(indices, rows, strict=True)]
        return Rollouts(sequences, scores, finished, Measured(**columns), seconds)
