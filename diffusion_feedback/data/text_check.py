"""What a data set of texts holds and what is wrong with it, in numbers and plain words, before a training run finds out."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..progress import progress
from ..records import Text, TextRecord, content_hash
from .findings import bad_row_lines, counted, value_range
from .texts import TextCounts, TextReader, open_texts

_BAD = {
    "json": ("that are no JSON objects", "write one JSON object on each line"),
    "missing": ("without a needed value", "fill the column, or remove the rows"),
    "text": ("with something else than text", "write the column as text, in UTF-8"),
    "empty": ("with an empty text", "remove them: there is nothing to learn from an empty completion"),
    "turns": (
        "with turns that are not valid",
        'a turn is {"role": ..., "content": ...}, a completion the assistant\'s',
    ),
    "identical": ("with the same text as chosen and rejected", "remove them: there is nothing to prefer"),
    "label": ("with a label that is not valid", "write labels as true or false"),
    "unread": ("with a column that says more and is not read", "give it a name that a known format has, or remove it"),
    "score": ("with a number out of its range", "margin >= 0, chosen_probability 0.5 to 1, weight > 0"),
}
_AT_ONCE = 1000


class TokenTally(Protocol):
    """What the examples are as tokens, gathered by whoever has a tokenizer."""

    @property
    def is_ready(self) -> bool:
        """Whether nothing was found that makes training useless."""
        ...

    def add(self, records: Sequence[TextRecord]) -> None: ...
    def lines(self) -> list[str]:
        """The findings in plain words."""
        ...


@dataclass(frozen=True, slots=True)
class TextReport:
    """The findings. ``counts`` are over rows; what follows is over the examples.

    ``num_usable`` are the examples that training uses by default: each once, without ties. ``kinds`` counts pairs,
    labelled completions, demonstrations and whole texts; ``labels`` desirable and undesirable ones. ``lengths`` lists
    characters by side; ``longer_chosen`` is the number of pairs whose chosen side is the longer one. ``margins`` are
    those above 0. ``duplicates`` are rows that repeat an example, ``contradicting`` are examples whose rows prefer, or
    label, both ways; ``ties`` are examples without a majority; ``repeated_prompts`` are examples whose texts begin with
    their prompt once more. ``left_aside`` says which columns and files were not read. ``unusable`` is (source, reason); ``tokens`` are None without a tokenizer.
    """

    name: str
    format: str
    counts: TextCounts
    num_usable: int
    kinds: Mapping[str, int]
    num_conversational: int
    num_prompts: int
    labels: Mapping[str, int]
    lengths: Mapping[str, Sequence[int]]
    longer_chosen: int
    margins: Sequence[float]
    duplicates: int
    contradicting: Sequence[str]
    ties: int
    repeated_prompts: Sequence[str]
    unusable: Sequence[tuple[str, str]]
    left_aside: Sequence[str] = ()
    tokens: TokenTally | None = None

    @property
    def is_ready(self) -> bool:
        """Whether training takes the data as it is."""
        fits = self.tokens is None or self.tokens.is_ready
        return self.num_usable > 0 and not self.unusable and len(self.kinds) == 1 and fits

    def to_text(self) -> str:
        """The report in plain words, with what to do about each problem."""
        aside = [f"  {note}" for note in self.left_aside]
        lines = [f"{self.name}: {self.format}", f"  {self.counts}", *aside, *self._contents(), *self._problems()]
        if self.tokens is not None and self.counts.examples:
            lines += self.tokens.lines()
        return "\n".join([*lines, self._verdict()])

    def _contents(self) -> list[str]:
        if not self.counts.examples:
            return []
        total = self.counts.examples
        turns = {0: "plain texts", total: "conversations"}.get(
            self.num_conversational, f"{self.num_conversational:,} of them conversations"
        )
        over = f" over {self.num_prompts:,} prompts" if "prompt" in self.lengths else ""
        lines = [f"  {counted(self.kinds)}, {turns}{over}"]
        lines += [f"  {side}: {value_range(lengths)} characters" for side, lengths in self.lengths.items()]
        if pairs := self.kinds.get("pairs"):
            lines.append(f"  the chosen side is the longer one in {self.longer_chosen / pairs:.0%} of the pairs")
        if self.labels:
            lines.append(f"  labels: {counted(self.labels)}")
        if self.margins:
            low, high = min(self.margins), max(self.margins)
            lines.append(f"  margins: {len(self.margins):,} pairs have one, {low:.4g} to {high:.4g}")
        return lines

    def _problems(self) -> list[str]:
        bad = ((number, *_BAD[kind]) for kind, number in self.counts.bad.items())
        lines = bad_row_lines(bad, self.unusable)
        if len(self.kinds) > 1:
            lines.append(f"  ! {counted(self.kinds)} stand side by side -> give one kind of data to a run")
        if self.contradicting:
            first = f"the first: {self.contradicting[0]}"
            lines.append(f"  ! {len(self.contradicting):,} examples have rows that contradict each other ({first})")
            lines.append("      -> training takes the mean of their votes; one against one is a tie")
        if self.duplicates:
            lines.append(f"  ! {self.duplicates:,} rows repeat an example -> training uses each example once")
        if self.repeated_prompts:
            what = f"{len(self.repeated_prompts):,} examples have texts that begin with their prompt once more"
            lines.append(f"  ! {what} (the first: {self.repeated_prompts[0]})")
            lines.append(
                "      -> the model would learn to repeat the prompt; remove the column prompt, or the repetition"
            )
        if len(self.labels) == 1:
            lines.append(f"  ! all labels are alike ({counted(self.labels)}) -> unpaired objectives need both")
        return lines

    def _verdict(self) -> str:
        if self.is_ready:
            ties = f" ({self.ties:,} ties are left out; data.ties: soft keeps tied pairs)" if self.ties else ""
            return f"Ready to train: {self.num_usable:,} examples{ties}."
        if self.num_usable and self.unusable:
            what = f"Not ready: {len(self.unusable):,} unusable rows stop a run"
            return (
                f"{what}. Correct them, or train on the other {self.num_usable:,} examples with data.on_bad_row: skip."
            )
        if self.num_usable:
            return "Not ready: see above."
        return "Not ready: all usable examples are ties." if self.counts.examples else "Not ready: no usable example."


@dataclass(slots=True)
class _Tally:
    """What is gathered over the examples of one pass."""

    kinds: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    prompts: set[str] = field(default_factory=set)
    margins: list[float] = field(default_factory=list)
    repeated_prompts: list[str] = field(default_factory=list)
    num_conversational: int = 0
    longer_chosen: int = 0
    # Example to where it was met first, and each row's vote for the side that comes first when sorted.
    votes: dict[str, tuple[str, list[float]]] = field(default_factory=dict)

    def add(self, record: TextRecord) -> None:
        sides = [side for side in (record.chosen, record.rejected) if side is not None]
        self.kinds[_kind(record)] += 1
        self.num_conversational += record.is_conversational
        named = [("prompt", record.prompt or None), ("chosen", record.chosen), ("rejected", record.rejected)]
        for name, side in named if record.rejected is not None else [named[0], ("completion", record.chosen)]:
            if side is not None:
                self.lengths.setdefault(name, []).append(_characters(side))
        if record.prompt:
            self.prompts.add(content_hash(_as_string(record.prompt)))
            if repeats_prompt(record):
                self.repeated_prompts.append(record.source)
        if record.label is not None:
            self.labels["desirable" if record.label else "undesirable"] += 1
        if record.margin:
            self.margins.append(record.margin)
        if record.rejected is not None:
            self.longer_chosen += _characters(record.chosen) > _characters(record.rejected)
        self._vote(record, [_as_string(side) for side in sides])

    def _vote(self, record: TextRecord, sides: Sequence[str]) -> None:
        """As the index of tokens joins examples: the same one, whichever side is chosen."""
        rest = _as_string(record.prompt), json.dumps(dict(record.template), sort_keys=True)
        key = content_hash(*rest, *sorted(sides))
        share = record.chosen_probability if len(sides) == 2 else float(record.label in (None, True))
        if len(sides) == 2 and sides[0] > sides[1]:
            share = 1 - share
        self.votes.setdefault(key, (record.source, []))[1].append(share)


def check_texts(
    path: str | Path,
    *,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    tokens: TokenTally | None = None,
) -> TextReport:
    """Read all examples of ``path`` (as ``open_texts``), and say what is there and what is wrong.

    ``tokens`` sees all usable examples. Raises UserError for what makes the data unreadable as a whole: no such path, no
    known format, a file of prompts alone.
    """
    reader = open_texts(path, split=split, revision=revision, streaming=streaming, on_bad_row="skip")
    tally, waiting = _Tally(), list[TextRecord]()
    with progress(desc=f"checking {path}", total=reader.num_rows, unit="row", mininterval=0.5) as bar:
        for record in reader.scan():
            tally.add(record)
            if tokens is not None:
                waiting.append(record)
            if len(waiting) == _AT_ONCE and tokens is not None:
                tokens.add(waiting)
                waiting = []
            bar.update(reader.counts.rows - bar.n)
        bar.update(reader.counts.rows - bar.n)
    if waiting and tokens is not None:
        tokens.add(waiting)
    return _report(reader, tally, tokens)


def _report(reader: TextReader, tally: _Tally, tokens: TokenTally | None) -> TextReport:
    shares = [math.fsum(votes) / len(votes) for _, votes in tally.votes.values()]
    ties = sum(share == 0.5 for share in shares)
    return TextReport(
        name=reader.name,
        format=reader.format,
        counts=reader.counts,
        num_usable=len(shares) - ties,
        kinds=tally.kinds,
        num_conversational=tally.num_conversational,
        num_prompts=len(tally.prompts),
        labels=tally.labels,
        lengths=tally.lengths,
        longer_chosen=tally.longer_chosen,
        margins=tally.margins,
        duplicates=reader.counts.examples - len(tally.votes),
        contradicting=[source for source, votes in tally.votes.values() if min(votes) < 0.5 < max(votes)],
        ties=ties,
        repeated_prompts=tally.repeated_prompts,
        unusable=reader.skipped,
        left_aside=reader.notes(),
        tokens=tokens,
    )


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
