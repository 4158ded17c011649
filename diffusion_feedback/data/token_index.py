"""Random access to examples of tokens, in an order that the files do not matter for; every example stands in it once."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from ..errors import UserError
from ..records import content_hash
from ..types.texts import TextBatch, TokenExample, TokenSequence, UnpairedBatch


@dataclass(frozen=True, slots=True)
class _Vote:
    """One row, its share of votes for the side that comes first when sorted, and the margin of that side."""

    example: TokenExample
    share: float
    margin: float


class TokenIndex:
    """Examples sorted by ``example_id``, so that the order of files and rows never matters.

    Rows of the same tokens, whichever side is chosen, are merged: the share of votes and the (signed) margin are their
    means, of weights and times the largest counts. Pairs without a majority are ties: ``ties`` "drop" leaves them out, "soft"
    keeps them at 0.5. Of single completions with labels the majority decides, and evenly split ones are left out. Those
    without labels are demonstrations and stay as often as they occur, for that is how likely they are.

    ``num_duplicates`` rows repeat others; ``num_contradicting`` examples had rows on both sides; ``num_ties`` examples
    have no majority; ``num_identical`` pairs have the same tokens on both sides, and are left out. Raises UserError where
    nothing is left, and for pairs beside single completions or labels on some of the examples alone.
    """

    def __init__(self, examples: Iterable[TokenExample], *, ties: Literal["drop", "soft"] = "drop") -> None:
        rows = list(examples)
        _check_alike(rows)
        votes: dict[str, list[_Vote]] = {}
        is_demonstration = rows[0].rejected is None and rows[0].label is None
        for number, example in enumerate(rows):
            key = str(number) if is_demonstration else _content(example)
            votes.setdefault(key, []).append(_vote(example))
        different = [
            same for same in votes.values() if _side(same[0].example.chosen) != _side(same[0].example.rejected)
        ]
        merged = [_merged(same) for same in different]
        is_soft = ties == "soft" and rows[0].rejected is not None
        kept = [example for example, share in merged if share != 0.5 or is_soft]
        if not kept:
            problem = f"0 usable examples: all {len(votes)} are ties, contradict each other, or have two sides alike"
            raise UserError(problem, "keep tied pairs as soft labels with data.ties: soft, or give more examples")
        self._examples: Sequence[TokenExample] = sorted(kept, key=lambda example: example.example_id)
        self._longest = max(example.length for example in kept)
        shares = [[vote.share for vote in same] for same in different]
        self.num_duplicates = len(rows) - len(votes)
        self.num_contradicting = sum(min(same) < 0.5 < max(same) for same in shares)
        self.num_ties = sum(share == 0.5 for _, share in merged)
        self.num_identical = len(votes) - len(different)

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def examples(self) -> Sequence[TokenExample]:
        """The examples in the order of the index."""
        return self._examples

    @property
    def times(self) -> tuple[float, ...] | None:
        """How often each example is drawn in an epoch; None where that is once for all."""
        times = tuple(example.times for example in self._examples)
        return None if set(times) <= {1.0} else times

    def head(self, number: int) -> TokenIndex:
        """The index of the first ``number`` examples: as they are sorted by hash, a fixed random sample."""
        head = copy.copy(self)
        head._examples = self._examples[:number]
        return head

    def batch(self, indices: Sequence[int], draw: int) -> TextBatch:
        """The examples at ``indices``: pairs, or single completions with an empty ``rejected``. ``draw`` is the epoch."""
        examples = [self._examples[index] for index in indices]
        return TextBatch(
            example_ids=[example.example_id for example in examples],
            chosen=[example.chosen for example in examples],
            rejected=[example.rejected for example in examples if example.rejected is not None],
            chosen_probability=torch.tensor([example.chosen_probability for example in examples]),
            weight=torch.tensor([example.weight for example in examples]),
            margin=torch.tensor([example.margin for example in examples]),
            draw=draw,
        )

    def unpaired(self, indices: Sequence[int], partners: Sequence[int], draw: int) -> UnpairedBatch:
        """The labelled completions at ``indices``, and the prompts of these with the completions at ``partners``.

        A mismatched sequence is cut at its end where it is longer than every example of the index, so that it fits
        where they do. Raises UserError for examples without labels.
        """
        examples = [self._examples[index] for index in indices]
        if any(example.label is None for example in examples):
            raise UserError("the data has no column 'label'", "give prompt, completion and label (true or false)")
        others = [self._examples[index].chosen for index in partners]
        return UnpairedBatch(
            example_ids=[example.example_id for example in examples],
            samples=[example.chosen for example in examples],
            mismatched=[
                _mismatched(example.chosen, other, self._longest)
                for example, other in zip(examples, others, strict=True)
            ],
            desirable=torch.tensor([bool(example.label) for example in examples]),
            weight=torch.tensor([example.weight for example in examples]),
            draw=draw,
        )

    def labels_hash(self) -> str:
        """Identity of the examples and labels that a run learns from."""
        return content_hash(
            *(f"{e.example_id} {e.label} {e.chosen_probability} {e.margin} {e.weight}" for e in self._examples)
        )


def unpair(examples: Iterable[TokenExample]) -> list[TokenExample]:
    """Pairs as two labelled completions each, the chosen one desirable; labelled completions stay as they are."""
    singles: list[TokenExample] = []
    for example in examples:
        if example.rejected is None:
            singles.append(example)
            continue
        for name, side, label in (("chosen", example.chosen, True), ("rejected", example.rejected, False)):
            singles.append(
                TokenExample(
                    content_hash(example.example_id, name),
                    side,
                    label=label,
                    weight=example.weight,
                    times=example.times,
                )
            )
    return singles


def _check_alike(rows: Sequence[TokenExample]) -> None:
    if not rows:
        raise UserError("0 usable examples", "give data with at least one example")
    pairs = sum(example.rejected is not None for example in rows)
    if 0 < pairs < len(rows):
        problem = f"{pairs} of {len(rows)} examples are pairs, the others single completions"
        raise UserError(problem, "give one kind of data")
    labelled = sum(example.label is not None for example in rows)
    if 0 < labelled < len(rows):
        raise UserError(f"{labelled} of {len(rows)} examples have a label", "label all of them, or none")


def _side(sequence: TokenSequence | None) -> bytes:
    if sequence is None:
        return b""
    return b"%d " % sequence.prompt_length + sequence.ids.tobytes() + sequence.scored.tobytes()


def _content(example: TokenExample) -> str:
    """The same for rows of the same tokens, whichever side is chosen."""
    return content_hash(*sorted((_side(example.chosen), _side(example.rejected))))


def _vote(example: TokenExample) -> _Vote:
    if example.rejected is None:
        return _Vote(example, 1.0 if example.label in (None, True) else 0.0, 0.0)
    if _side(example.chosen) <= _side(example.rejected):
        return _Vote(example, example.chosen_probability, example.margin)
    return _Vote(example, 1 - example.chosen_probability, -example.margin)


def _merged(votes: Sequence[_Vote]) -> tuple[TokenExample, float]:
    """One example of rows with the same tokens, and the share of votes for the side that comes first when sorted."""
    if len(votes) == 1:
        return votes[0].example, votes[0].share
    share = math.fsum(vote.share for vote in votes) / len(votes)
    # Those that have the majority on their side; whichever row comes first, one and the same name is taken.
    agreeing = [vote.example for vote in votes if (vote.share - 0.5) * (share - 0.5) > 0 or share == 0.5]
    example = min(agreeing, key=lambda example: example.example_id)
    weight, times = (max(getattr(vote.example, name) for vote in votes) for name in ("weight", "times"))
    if example.rejected is None:
        return replace(example, weight=weight, times=times), share
    margin = math.fsum(vote.margin for vote in votes) / len(votes)
    margin = max(margin if share >= 0.5 else -margin, 0.0)
    return replace(example, weight=weight, times=times, margin=margin, chosen_probability=max(share, 1 - share)), share


def _mismatched(sequence: TokenSequence, other: TokenSequence, longest: int) -> TokenSequence:
    prompt = sequence.prompt_length
    ids = np.concatenate([sequence.ids[:prompt], other.ids[other.prompt_length :]])
    scored = np.concatenate([sequence.scored[:prompt], other.scored[other.prompt_length :]])
    return TokenSequence(ids[:longest], scored[:longest], prompt)
