"""Two completions of one prompt in one row: prompt + chosen + rejected, where neither completion sees the other.

Positions of both completions go on from the prompt's end and the attention mask hides the one from the other, so every
token sees exactly what it sees in a row of its own. A row has P + C + R tokens instead of 2 P + C + R.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UserError, first_line, is_out_of_memory
from ..types.texts import TokenSequence

_PROMPT, _CHOSEN, _REJECTED, _PADDING = range(4)


@dataclass(frozen=True, slots=True)
class Rows:
    """R rows of T tokens: ``ids``, ``positions`` (R, T) int64; ``mask`` (R, T), or (R, 1, T, T) with [r, 0, i, j] saying
    whether token i sees token j, bool. ``before``: for each sequence the places in (R * T) that predict its scored tokens.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    positions: NDArray[np.int64]
    before: Sequence[NDArray[np.int64]]


def own_rows(sequences: Sequence[TokenSequence]) -> Rows:
    """One row a sequence, padded on the right."""
    longest = max((len(sequence) for sequence in sequences), default=0)
    ids = np.zeros((len(sequences), longest), np.int64)
    mask = np.zeros(ids.shape, np.bool_)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence.ids
        mask[row, : len(sequence)] = True
    positions = np.tile(np.arange(longest), (len(sequences), 1))
    before = [row * longest + np.flatnonzero(sequence.scored) - 1 for row, sequence in enumerate(sequences)]
    return Rows(ids, mask, positions, before)


def shared_rows(chosen: Sequence[TokenSequence], rejected: Sequence[TokenSequence]) -> Rows:
    """One row a pair, padded on the right; what the two sides' prompts have in common stands in it once."""
    pairs = list(zip(chosen, rejected, strict=True))
    common = [shared_length(*pair) for pair in pairs]
    longest = max((len(one) + len(other) - p for (one, other), p in zip(pairs, common, strict=True)), default=0)
    ids, positions = (np.zeros((len(pairs), longest), np.int64) for _ in range(2))
    part = np.full(ids.shape, _PADDING, np.int8)
    before: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for row, ((one, other), p) in enumerate(zip(pairs, common, strict=True)):
        middle, end = len(one), len(one) + len(other) - p
        ids[row, :end] = np.concatenate([one.ids, other.ids[p:]])
        positions[row, :end] = np.concatenate([np.arange(len(one)), np.arange(p, len(other))])
        part[row, :p], part[row, p:middle], part[row, middle:end] = _PROMPT, _CHOSEN, _REJECTED
        places = np.flatnonzero(one.scored) - 1, np.flatnonzero(other.scored) - 1
        # The first token of each completion is predicted by the last one of the prompt.
        shifted = places[1] + np.where(places[1] >= p, middle - p, 0)
        before[0].append(row * longest + places[0])
        before[1].append(row * longest + shifted)
    earlier = np.tri(longest, dtype=np.bool_)
    sees = (part[:, None, :] == _PROMPT) | (part[:, None, :] == part[:, :, None])
    return Rows(ids, (sees & earlier)[:, None], positions, [*before[0], *before[1]])


def shared_length(one: TokenSequence, other: TokenSequence) -> int:
    """How many tokens of their prompts two sequences have in common from the start: what a shared row saves."""
    most = min(one.prompt_length, other.prompt_length)
    differing = np.flatnonzero(one.ids[:most] != other.ids[:most])
    return int(differing[0]) if len(differing) else most


class SharingCheck:
    """Whether a network gives the same numbers for shared rows: checked at the first batch, and at each longer one.

    Models that bound or bias attention by the distance in the row, or ignore the mask, do not; some of them only beyond
    some length.
    """

    def __init__(self) -> None:
        self._longest: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()

    def is_due(self, network: nn.Module, length: int) -> bool:
        """Whether rows of ``length`` tokens are longer than all that were found equal under ``network``."""
        return length > self._longest.get(network, 0)

    @contextmanager
    def trying(self, network: nn.Module) -> Iterator[None]:
        """The first pass of shared rows: whatever ``network`` makes of their mask that is no error of memory is a UserError."""
        try:
            yield
        except Exception as error:  # models that take no such mask fail each in its own way
            if is_out_of_memory(error):
                raise
            problem = f"text.share_prompt: this model takes no rows of two completions: {first_line(error)}"
            raise UserError(problem, "its attention does not follow the mask: set text.share_prompt: false") from error

    def compare(self, network: nn.Module, length: int, shared: Tensor, apart: Tensor, *, is_half: bool) -> None:
        """Log-probabilities of the same tokens under ``network``, from shared rows and from rows of their own.

        Raises UserError where they differ beyond rounding.
        """
        tolerance = 5e-2 if is_half else 1e-3
        gap = float((shared - apart).abs().mean()) if len(shared) else 0.0
        if not gap <= tolerance:
            problem = f"text.share_prompt: this model's log-probabilities differ by {gap:.3g} a token in shared rows"
            raise UserError(problem, "its attention does not follow the mask: set text.share_prompt: false")
        self._longest[network] = length
