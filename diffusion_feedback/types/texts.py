"""Texts in memory: token sequences, their batches, and the protocols of what judges texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids (T,) int32, and which of them are scored, (T,) bool: those whose log-probability counts.

    The first ``prompt_length`` tokens are the prompt: none of them is scored, and the two sides of a pair may share
    them in one forward pass. The first token of all is never scored, as nothing predicts it.
    """

    ids: NDArray[np.int32]
    scored: NDArray[np.bool_]
    prompt_length: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_scored(self) -> int:
        """How many tokens count: those of the completion, its end token included."""
        return int(self.scored.sum())


@dataclass(frozen=True, slots=True)
class TokenExample:
    """A ``records.TextRecord`` as tokens; ``example_id`` is the record's, other fields mean what they mean there.

    ``times`` is how often it is drawn in an epoch.
    """

    example_id: str
    chosen: TokenSequence
    rejected: TokenSequence | None = None
    label: bool | None = None
    margin: float = 0.0
    chosen_probability: float = 1.0
    weight: float = 1.0
    times: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of the longer side, which is what a padded pass pays for."""
        return max(len(self.chosen), len(self.rejected) if self.rejected is not None else 0)


@dataclass(frozen=True, slots=True)
class TextBatch:
    """B examples of tokens: pairs, or, with an empty ``rejected``, single samples in ``chosen``.

    ``chosen_probability`` (B,) in [0.5, 1]; ``weight`` (B,) > 0; ``margin`` (B,) >= 0, by how much chosen is known to be
    better, 0 where nothing is known; ``draw`` is the epoch.
    """

    example_ids: Sequence[str]
    chosen: Sequence[TokenSequence]
    rejected: Sequence[TokenSequence]
    chosen_probability: Tensor
    weight: Tensor
    margin: Tensor
    draw: int = 0

    def __len__(self) -> int:
        return len(self.example_ids)


@dataclass(frozen=True, slots=True)
class UnpairedBatch:
    """B single completions, each ``desirable`` (B,) bool or not; ``mismatched`` (B) are the same prompts with the
    completions of other examples, by which KTO estimates its point of reference.
    """

    example_ids: Sequence[str]
    samples: Sequence[TokenSequence]
    mismatched: Sequence[TokenSequence]
    desirable: Tensor
    weight: Tensor
    draw: int = 0

    def __len__(self) -> int:
        return len(self.example_ids)


@dataclass(frozen=True, slots=True)
class TrajectoryBatch:
    """B completions with rewards: ``rewards[b]`` (``sequences[b].num_scored``,) float32 are what came with each scored
    token, in order. ``weight`` (B,) > 0; ``draw`` is the epoch.
    """

    example_ids: Sequence[str]
    sequences: Sequence[TokenSequence]
    rewards: Sequence[NDArray[np.float32]]
    weight: Tensor
    draw: int = 0

    def __len__(self) -> int:
        return len(self.example_ids)


@runtime_checkable
class TextScorer(Protocol):
    """Judges completions of prompts: a reward model, a classifier, a function. Larger is better.

    One whose scores are Bradley-Terry strengths, times ``logit_scale``, has that number as well.
    """

    @property
    def recipe_id(self) -> str:
        """Names everything that makes the number: kind, version, precision, hash of the weights."""
        ...

    def score(
        self, prompts: Sequence[object], completions: Sequence[object], finished: Sequence[bool] | None = None
    ) -> Sequence[float]:
        """One finite number for each completion, in order; prompts and completions are texts or lists of messages.

        ``finished`` tells which completions came to their end; one that was cut off gets no end token. None: all did.
        """
        ...


@runtime_checkable
class PairJudge(Protocol):
    """Compares two completions of one prompt, as a reader does who is shown both."""

    @property
    def recipe_id(self) -> str:
        """Names everything that makes the verdict: kind, version, question, precision, hash of the weights."""
        ...

    def judge(self, prompts: Sequence[object], firsts: Sequence[object], seconds: Sequence[object]) -> Sequence[float]:
        """Preference in [0, 1] for the completion shown first, one for each prompt.

        A judge may favour a place: whoever asks, asks in both orders.
        """
        ...
