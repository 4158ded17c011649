"""Completions with rewards, one for the whole or one for each turn or token: what values are learnt from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..catalog import nearest
from ..errors import UserError
from ..records import Text, TextRecord
from ..types import TokenExample, TokenSequence, TrajectoryBatch
from .places import files_of_split, glob_files, hub_id, is_glob
from .readers import OnBadRow
from .rows import BadRow
from .text_sources import SUFFIXES, Cells, HubTexts, TextRow, TextSource, file_source

_COMPLETIONS = ("completion", "text", "messages")
_FORMATS = (
    "give rows of prompt (or none), completion, and reward (a number) or rewards (a list), in JSON Lines or parquet: "
    "a file, a glob, a folder, or a hub id"
)


@dataclass(frozen=True, slots=True)
class TrajectoryRecord:
    """A completion and its rewards as they stand on disk: one for the whole (``is_total``), or a list of them."""

    record: TextRecord
    rewards: tuple[float, ...]
    is_total: bool


class TrajectoryReader:
    """The usable trajectories of a source, in its order. ``skipped`` lists (source, reason) of bad rows left out.

    Iterating raises UserError at a bad row unless ``on_bad_row`` is "skip", and at the end where no row was usable.
    """

    def __init__(self, sources: Sequence[TextSource], name: str, *, on_bad_row: OnBadRow = "error") -> None:
        self.sources, self.name, self.on_bad_row = sources, name, on_bad_row
        self.skipped: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[TrajectoryRecord]:
        self.skipped = []
        count = 0
        for row in chain.from_iterable(source.rows() for source in self.sources):
            try:
                record = to_trajectory(row)
            except BadRow as error:
                self.leave_out(row.source, error)
            else:
                count += 1
                yield record
        self.require(count)

    def leave_out(self, source: str, error: BadRow) -> None:
        """Take note of a bad row. Raises it unless bad rows are skipped."""
        if self.on_bad_row == "error":
            raise error
        self.skipped.append((source, error.problem))

    def require(self, count: int) -> None:
        """Raise UserError where ``count``, the number of usable rows, is 0."""
        if not count:
            reason = f"; the first bad row: {self.skipped[0][1]}" if self.skipped else ""
            raise UserError(f"{self.name}: no usable trajectories{reason}", _FORMATS)


def open_trajectories(
    path: str, *, split: str = "train", revision: str | None = None, on_bad_row: OnBadRow = "error"
) -> TrajectoryReader:
    """Open the trajectories at ``path``: a file, a glob, a folder of files, or a hub id.

    Each row has ``completion`` (or ``text``, or ``messages``), texts or lists of turns, ``prompt`` where there is one, and
    either ``reward``, a number that comes with the last token, or ``rewards``: one for each of the assistant's turns, or
    for each token of the completion; the end token's may be left out and is 0 then. Raises UserError for a path that is
    none of these.
    """
    return TrajectoryReader(_find(path, split, revision), path, on_bad_row=on_bad_row)


def _find(name: str, split: str, revision: str | None) -> list[TextSource]:
    path = Path(name).expanduser()
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{name}: trajectories are not read from a file of this kind", _FORMATS)
        return [file_source(path)]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise UserError(f"{name}: no file of trajectories in this folder", _FORMATS)
        return [file_source(file) for file in files_of_split(path, files, split, "trajectory")]
    if is_glob(name):
        if not (files := glob_files(name, SUFFIXES)):
            raise UserError(f"{name}: no file has such a name", _FORMATS)
        return [file_source(file) for file in files]
    if (found := hub_id(name, SUFFIXES)) is not None:
        return [HubTexts(found, split, revision)]
    raise UserError(f"{name}: no such file or folder", _FORMATS)


# --- rows ------------------------------------------------------------------------------------------------------------


def to_trajectory(row: TextRow) -> TrajectoryRecord:
    """The trajectory of ``row``. Raises BadRow naming file, row and column."""
    cells = row.cells
    if isinstance(cells, BadRow):
        raise cells
    column = next((name for name in _COMPLETIONS if cells.get(name) is not None), None)
    if column is None:
        problem = f"{row.source}: no column {', '.join(map(repr, _COMPLETIONS))}"
        raise BadRow("missing", f"{problem}; {nearest('completion', list(map(str, cells)))}")
    completion = _text(cells[column], f"{row.source}, column {column!r}")
    prompt = "" if cells.get("prompt") is None else _text(cells["prompt"], f"{row.source}, column 'prompt'", empty=True)
    if prompt and isinstance(prompt, str) != isinstance(completion, str):
        raise BadRow("text", f"{row.source}: prompt and {column} must both be texts, or both lists of turns")
    rewards, is_total = _rewards(cells, row.source)
    return TrajectoryRecord(TextRecord(prompt, completion, source=row.source), rewards, is_total)


def _text(value: Any, where: str, *, empty: bool = False) -> Text:
    if isinstance(value, str) and (value or empty):
        return value
    is_turns = isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value)
    if is_turns and (value or empty):
        for turn in value:
            if not all(isinstance(turn.get(key), str) for key in ("role", "content")):
                raise BadRow("text", f"{where}: the turn {str(dict(turn))[:60]} has no text in 'role' and 'content'")
        return tuple(value)
    raise BadRow("text", f"{where}: found {str(value)[:60]!r}, not a text of at least one character, nor turns")


def _rewards(cells: Cells, source: str) -> tuple[tuple[float, ...], bool]:
    given = [name for name in ("reward", "rewards") if cells.get(name) is not None]
    if len(given) != 1:
        found = "both 'reward' and 'rewards'" if given else "neither 'reward' nor 'rewards'"
        raise BadRow("label", f"{source}: {found}; one of them is needed")
    value, where = cells[given[0]], f"{source}, column {given[0]!r}"
    if given == ["reward"]:
        return (_number(value, where),), True
    if not isinstance(value, list) or not value:
        raise BadRow("label", f"{where}: found {str(value)[:60]!r}, not a list of numbers")
    return tuple(_number(each, f"{where}, item {number}") for number, each in enumerate(value)), False


def _number(value: Any, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise BadRow("label", f"{where}: found {value!r}, not a finite number")
    return float(value)


# --- tokens ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A completion as tokens, with one reward for each scored token, (``sequence.num_scored``,) float32."""

    pair_id: str
    sequence: TokenSequence
    rewards: NDArray[np.float32]
    source: str


def place_rewards(found: TrajectoryRecord, sequence: TokenSequence) -> NDArray[np.float32]:
    """One reward for each scored token: a total at the last, a turn's at its last token. Raises BadRow where they do not fit.

    Scored tokens that follow each other without a gap are a turn. As many rewards as turns belong to the turns, as many as
    scored tokens, or one fewer (the end token's), to the tokens.
    """
    scored = np.flatnonzero(sequence.scored)
    last_of_turn = np.append(np.diff(scored) > 1, True)
    placed = np.zeros(len(scored), np.float32)
    count, turns = len(found.rewards), int(last_of_turn.sum())
    if found.is_total:
        placed[-1] = found.rewards[0]
    elif count == turns:
        placed[last_of_turn] = found.rewards
    elif count in (len(scored), len(scored) - 1):
        placed[:count] = found.rewards
    else:
        wanted = f"{turns} (one a turn) or {len(scored)} (one a token, the end token included)"
        raise BadRow("label", f"{found.record.source}, column 'rewards': {count} numbers, expected {wanted}")
    return placed


@dataclass(frozen=True, slots=True)
class TrajectoryIndex:
    """Trajectories as tokens, in order."""

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

    def head(self, number: int) -> TrajectoryIndex:
        """The first ``number``."""
        return replace(self, trajectories=self.trajectories[:number])

    def batch(self, indices: Sequence[int], draw: int) -> TrajectoryBatch:
        """The trajectories of ``indices``."""
        found = [self.trajectories[index] for index in indices]
        return TrajectoryBatch(
            pair_ids=[each.pair_id for each in found],
            sequences=[each.sequence for each in found],
            rewards=[each.rewards for each in found],
            weight=torch.ones(len(found)),
            draw=draw,
        )


def index_trajectories(
    reader: TrajectoryReader,
    encode: Callable[[Sequence[TextRecord]], Sequence[TokenExample]],
    *,
    max_length: int,
    max_completion_length: int | None = None,
) -> TrajectoryIndex:
    """Read and tokenise all of ``reader``; ``encode`` must cut nothing and keep the order.

    A trajectory longer than ``max_length`` tokens, or its completion than ``max_completion_length``, is a bad row and not
    cut: what remained would have another reward. Raises UserError as the reader does.
    """
    records = list(reader)
    examples = encode([found.record for found in records])
    kept: list[Trajectory] = []
    for found, example in zip(records, examples, strict=True):
        try:
            rewards = _fitting(found, example.chosen, max_length, max_completion_length)
        except BadRow as error:
            reader.leave_out(found.record.source, error)
        else:
            kept.append(Trajectory(found.record.pair_id, example.chosen, rewards, found.record.source))
    reader.require(len(kept))
    return TrajectoryIndex(kept)


def _fitting(
    found: TrajectoryRecord, sequence: TokenSequence, max_length: int, max_completion_length: int | None
) -> NDArray[np.float32]:
    source, completion = found.record.source, len(sequence) - sequence.prompt_length
    if len(sequence) > max_length:
        raise BadRow("text", f"{source}: {len(sequence)} tokens, more than the {max_length} of text.max_length")
    if max_completion_length is not None and completion > max_completion_length:
        problem = f"{source}: a completion of {completion} tokens, more than the {max_completion_length}"
        raise BadRow("text", f"{problem} of text.max_completion_length")
    if not sequence.num_scored:
        raise BadRow("text", f"{source}: no token of the completion is learnt from")
    return place_rewards(found, sequence)
