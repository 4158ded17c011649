"""What a data set of texts holds, and what is wrong with it, before a training run finds out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from ..records import Text, TextRecord, content_hash
from .annotators import AnnotatorVotes
from .columns import Columns
from .findings import Votes
from .texts import TextReader, open_texts

if TYPE_CHECKING:
    from .places import Dataset

_AT_ONCE = 1000


class TokenTally(Protocol):
    """What the examples are as tokens, gathered by whoever has a tokenizer."""

    @property
    def is_ready(self) -> bool:
        """Whether nothing was found that makes training useless."""
        ...

    def add(self, records: Sequence[TextRecord]) -> None: ...


@dataclass
class TextReport:
    """What a pass of ``reader`` over texts has met: its log counts the rows, the rest is of the usable ones.

    ``votes`` join those of the same example, ``annotators`` are those of people who are named. ``kinds`` counts pairs, labelled completions, demonstrations and whole texts; ``labels`` desirable and undesirable
    ones. ``lengths`` lists characters by side; ``longer_chosen`` is the number of pairs whose chosen side is the longer
    one. ``margins`` are those above 0. ``repeated_prompts`` are examples whose texts begin with their prompt once more.
    ``tokens`` are None without a tokenizer.
    """

    template: ClassVar[str] = "texts"

    reader: TextReader[TextRecord]
    tokens: TokenTally | None = None
    votes: Votes = field(default_factory=Votes)
    annotators: AnnotatorVotes = field(default_factory=AnnotatorVotes)
    labels: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    num_conversational: int = 0
    lengths: dict[str, list[int]] = field(default_factory=dict)
    longer_chosen: int = 0
    margins: list[float] = field(default_factory=list)
    repeated_prompts: list[str] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        """Whether training takes the data as it is."""
        fits = self.tokens is None or self.tokens.is_ready
        return self.votes.num_usable > 0 and not self.reader.log.skipped and len(self.kinds) == 1 and fits

    def add(self, record: TextRecord) -> None:
        """Take in a usable example."""
        sides = [side for side in (record.chosen, record.rejected) if side is not None]
        self.kinds[_kind(record)] += 1
        self.num_conversational += record.is_conversational
        named = [("prompt", record.prompt or None), ("chosen", record.chosen), ("rejected", record.rejected)]
        for name, side in named if record.rejected is not None else [named[0], ("completion", record.chosen)]:
            if side is not None:
                self.lengths.setdefault(name, []).append(_characters(side))
        if record.prompt:
            self.prompts[content_hash(_as_string(record.prompt))] += 1
            if repeats_prompt(record):
                self.repeated_prompts.append(record.source)
        if record.label is not None:
            self.labels["desirable" if record.label else "undesirable"] += 1
        if record.margin:
            self.margins.append(record.margin)
        if record.rejected is not None:
            self.longer_chosen += _characters(record.chosen) > _characters(record.rejected)
        # As the index of tokens joins them: the same example, whichever side is chosen.
        rest, texts = json.dumps(dict(record.template), sort_keys=True), [_as_string(side) for side in sides]
        share = record.chosen_probability if len(sides) == 2 else float(record.label in (None, True))
        if len(sides) == 2 and texts[0] > texts[1]:
            share = 1 - share
        example = content_hash(_as_string(record.prompt), rest, *sorted(texts))
        self.votes.add(example, record.source, share)
        self.annotators.add(example, record.ballot.annotator, share)


def check_texts(
    path: str | Path | Dataset,
    *,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    tokens: TokenTally | None = None,
    columns: Columns = None,
) -> TextReport:
    """Read all examples of ``path`` (as ``open_texts``), and say what is there and what is wrong.

    ``tokens`` sees all usable examples. Raises UserError for what makes the data unreadable as a whole: no such path, no
    known format, a file of prompts alone.
    """
    reader = open_texts(path, split=split, revision=revision, streaming=streaming, columns=columns, on_bad_row="skip")
    report = TextReport(reader, tokens)
    rest = reader.log.watched(reader.scan(), "checking", reader.num_rows)
    while records := list(islice(rest, _AT_ONCE)):
        for record in records:
            report.add(record)
        if tokens is not None:
            tokens.add(records)
    return report


def _kind(record: TextRecord) -> str:
    if record.rejected is not None:
        return "pairs"
    if record.label is not None:
        return "labelled completions"
    return "demonstrations" if record.prompt or record.is_conversational else "whole texts"


def _as_string(text: Text) -> str:
    return text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, sort_keys=True)


def _characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(len(turn.get("content") or "") for turn in text)


def repeats_prompt(record: TextRecord) -> bool:
    """Whether the texts of ``record`` begin with its prompt once more."""
    sides = [side for side in (record.chosen, record.rejected) if side is not None]
    return all(_begins_with(side, record.prompt) for side in sides)


def _begins_with(side: Text, prompt: Text) -> bool:
    return (
        isinstance(side, str) and isinstance(prompt, str) and bool(prompt.strip()) and side.startswith(prompt.strip())
    )
