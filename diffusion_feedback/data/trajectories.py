"""Completions with rewards, one for the whole or one for each turn or token: what values are learnt from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UserError
from ..records import TextRecord
from ..types.texts import TokenExample, TokenSequence, TrajectoryBatch
from .columns import Columns, column_names
from .places import name_of_data
from .read_log import OnBadRow, ReadLog
from .rows import BadRow
from .text_cells import TextCells
from .text_formats import KNOWN_COLUMNS, TextFormat
from .texts import TextReader, find_texts

if TYPE_CHECKING:
    from datasets import Dataset


_REMEDY = (
    "give rows of prompt and completion (or messages, or text) with reward, a number, or rewards, a list of numbers"
)


@dataclass(frozen=True, slots=True)
class TrajectoryRecord:
    """A completion and its rewards as they stand on disk: one for the whole (``is_total``), or a list of them."""

    record: TextRecord
    rewards: tuple[float, ...]
    is_total: bool


def open_trajectories(
    path: str | Path | Dataset,
    *,
    split: str = "train",
    revision: str | None = None,
    on_bad_row: OnBadRow = "error",
    columns: Columns = None,
) -> TextReader[TrajectoryRecord]:
    """Open the trajectories at ``path``: whatever ``texts.open_texts`` takes.

    Each row has a text in one of the forms of single texts (prompt and completion; messages; text), and either ``reward``,
    a number that comes with the last token, or ``rewards``: one for each of the assistant's turns, or for each token of the
    completion; the end token's may be left out and is 0 then. Raises UserError for a path that is none of these.
    """
    log = ReadLog(name_of_data(path), on_bad_row, "trajectories", _REMEDY, _REMEDY)
    sources = find_texts(path, split=split, revision=revision, names=column_names(columns, KNOWN_COLUMNS))
    return TextReader(sources, _trajectory, log, prompts_alone=True)


def _trajectory(row: TextCells, form: TextFormat) -> TrajectoryRecord:
    """The trajectory of ``row``. Raises BadRow naming file, row and column."""
    rewards, is_total = _rewards(row)
    record = form.read(row)
    if record is None or record.rejected is not None or not record.chosen:
        problem = f"{row.source}: one completion is needed in each row, and this is a row of {form.name}"
        raise BadRow("text", problem)
    return TrajectoryRecord(record, rewards, is_total)


def _rewards(row: TextCells) -> tuple[tuple[float, ...], bool]:
    given = [name for name in ("reward", "rewards") if row.get(name) is not None]
    if len(given) != 1:
        present = "both" if given else "neither"
        raise BadRow("missing", f"{row.source}: found {present} of the columns 'reward' and 'rewards'; one is needed")
    if given == ["reward"]:
        value = row.number("reward")
        assert value is not None
        return (value,), True
    values = row.raw("rewards")
    if not isinstance(values, list) or not values:
        raise row.bad("score", "rewards", f"found {str(values)[:60]!r}, not a list of numbers")
    return tuple(_item(row, number, value) for number, value in enumerate(values)), False


def _item(row: TextCells, number: int, value: object) -> float:
    number_there = TextCells(row.source, {f"rewards[{number}]": value}).number(f"rewards[{number}]")
    if number_there is None:
        raise row.bad("score", "rewards", f"item {number} is empty (null)")
    return number_there


# --- tokens ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A completion as tokens, with one reward for each scored token, (``sequence.num_scored``,) float32; ``weight`` > 0."""

    example_id: str
    sequence: TokenSequence
    rewards: NDArray[np.float32]
    weight: float = 1.0


def place_rewards(trajectory: TrajectoryRecord, sequence: TokenSequence) -> NDArray[np.float32]:
    """One reward for each scored token: a total at the last, a turn's at its last token. Raises BadRow where they do not fit.

    Scored tokens that follow each other without a gap are a turn. As many rewards as turns belong to the turns, as many as
    scored tokens, or one fewer (the end token's), to the tokens.
    """
    scored = np.flatnonzero(sequence.scored)
    last_of_turn = np.append(np.diff(scored) > 1, True)
    placed = np.zeros(len(scored), np.float32)
    count, turns = len(trajectory.rewards), int(last_of_turn.sum())
    if trajectory.is_total:
        placed[-1] = trajectory.rewards[0]
    elif count == turns:
        placed[last_of_turn] = trajectory.rewards
    elif count in (len(scored), len(scored) - 1):
        placed[:count] = trajectory.rewards
    else:
        wanted = f"{turns} (one per turn) or {len(scored)} (one per token, the end token included)"
        raise BadRow("label", f"{trajectory.record.source}, column 'rewards': {count} numbers, expected {wanted}")
    return placed


@dataclass(frozen=True, slots=True)
class TrajectoryIndex:
    """Trajectories as tokens, sorted by content, so that the order of files and rows never matters."""

    trajectories: Sequence[Trajectory]

    def __len__(self) -> int:
        return len(self.trajectories)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each, prompt and completion."""
        return [len(each.sequence) for each in self.trajectories]

    @property
    def counts(self) -> list[int]:
        """Scored tokens of each: its actions."""
        return [len(each.rewards) for each in self.trajectories]

    def head(self, number: int | None) -> TrajectoryIndex:
        """The first ``number``; all for None."""
        return replace(self, trajectories=self.trajectories[:number])

    def batch(self, indices: Sequence[int], draw: int) -> TrajectoryBatch:
        """The trajectories of ``indices``."""
        trajectories = [self.trajectories[index] for index in indices]
        return TrajectoryBatch(
            example_ids=[each.example_id for each in trajectories],
            sequences=[each.sequence for each in trajectories],
            rewards=[each.rewards for each in trajectories],
            weight=torch.tensor([each.weight for each in trajectories]),
            draw=draw,
        )


def index_trajectories(
    reader: TextReader[TrajectoryRecord],
    encode: Callable[[Sequence[TextRecord]], Sequence[TokenExample]],
    *,
    max_length: int,
    max_completion_length: int | None = None,
) -> TrajectoryIndex:
    """Read and tokenise all of ``reader``; ``encode`` must cut nothing and keep the order.

    A trajectory longer than ``max_length`` tokens, or its completion than ``max_completion_length``, is a bad row and not
    cut: what remained would have another reward. Raises UserError as the reader does.
    """
    kept: list[Trajectory] = []
    for trajectory, example in _encoded(reader, encode):
        try:
            rewards = _fitting(trajectory, example.chosen, max_length, max_completion_length)
        except BadRow as error:
            reader.log.leave_out(trajectory.record.source, error)
        else:
            kept.append(Trajectory(trajectory.record.example_id, example.chosen, rewards, example.weight))
    reader.log.counts.usable = len(kept)
    reader.log.require_usable()
    return TrajectoryIndex(sorted(kept, key=lambda each: (each.example_id, each.rewards.tobytes(), each.weight)))


def _encoded(
    reader: TextReader[TrajectoryRecord], encode: Callable[[Sequence[TextRecord]], Sequence[TokenExample]]
) -> Iterator[tuple[TrajectoryRecord, TokenExample]]:
    records = list(reader)
    try:
        yield from zip(records, encode([trajectory.record for trajectory in records]), strict=True)
        return
    except UserError:
        if reader.log.on_bad_row == "error":
            raise
    # Some row cannot be tokenised, and such rows are to be left out: one at a time, to find it.
    for trajectory in records:
        try:
            (example,) = encode([trajectory.record])
        except UserError as error:
            reader.log.leave_out(trajectory.record.source, BadRow("text", error.problem))
        else:
            yield trajectory, example


def _fitting(
    trajectory: TrajectoryRecord, sequence: TokenSequence, max_length: int, max_completion_length: int | None
) -> NDArray[np.float32]:
    source, completion = trajectory.record.source, len(sequence) - sequence.prompt_length
    if len(sequence) > max_length:
        raise BadRow("text", f"{source}: {len(sequence)} tokens, more than the {max_length} of text.max_length")
    if max_completion_length is not None and completion > max_completion_length:
        problem = f"{source}: a completion of {completion} tokens, more than the {max_completion_length}"
        raise BadRow("text", f"{problem} of text.max_completion_length")
    if not sequence.num_scored:
        raise BadRow("text", f"{source}: no token of the completion is learnt from")
    return place_rewards(trajectory, sequence)
