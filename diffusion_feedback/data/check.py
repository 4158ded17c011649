"""What a data set holds and what is wrong with it, in numbers and in plain words, before a training run finds out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..progress import progress
from ..records import content_hash
from .findings import bad_row_lines, counted, value_range
from .image_index import image_index
from .readers import KnownPair, PairReader, ReadCounts, open_pairs
from .rows import listed
from .squares import square_notes

LONG_CAPTION_WORDS = 50
"""CLIP's text encoder sees 77 tokens, which is about this many words."""

_BAD = {
    "caption": ("with an empty or missing caption", "give every pair a caption"),
    "label": ("with a label that is not valid", "label_0 is from 0 to 1, and label_1 is 1 - label_0"),
    "image": ("with a broken or missing image", "replace or remove these images"),
    "missing": ("that lack a key", "give every row the keys that the others have"),
    "identical": ("with the same image on both sides", "remove them: there is nothing to prefer"),
}
_OTHER = ("that are no pairs", "correct or remove them")
_RESOLUTIONS = (512, 1024)  # what most models are trained at


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The findings. ``counts`` are over rows; what follows is over the pairs, ties included.

    ``num_usable`` are the pairs that training uses by default: each once, without ties.
    ``labels`` counts image 0 preferred, image 1 preferred, tie, and vote shares in between (soft).
    ``duplicates`` are rows that repeat a pair, ``contradicting`` are pairs whose rows prefer different images;
    ``sizes`` lists every image's width and height, px; ``unusable`` is (source, reason); ``notes`` says what was passed
    over, ``unused`` which columns nothing is read from.
    """

    name: str
    format: str
    counts: ReadCounts
    num_usable: int
    labels: Mapping[str, int]
    num_prompts: int
    num_images: int
    duplicates: int
    contradicting: Sequence[str]
    long_captions: int
    pairs_per_prompt: Sequence[int]
    image_formats: Mapping[str, int]
    image_modes: Mapping[str, int]
    num_animated: int
    sizes: Sequence[tuple[int, int]]
    unusable: Sequence[tuple[str, str]]
    notes: Sequence[str]
    unused: Sequence[str]

    @property
    def is_ready(self) -> bool:
        """Whether training takes the data as it is."""
        return self.num_usable > 0 and not self.unusable

    def to_text(self) -> str:
        """The report in plain words, with what to do about each problem."""
        lines = [f"{self.name}: {self.format}", f"  {self.counts}", *self._contents(), *self._problems()]
        return "\n".join([*lines, self._verdict()])

    @property
    def sides(self) -> list[int]:
        """Every image's shorter side, px."""
        return [min(size) for size in self.sizes]

    def _contents(self) -> list[str]:
        columns = [f"  columns that nothing is read from: {listed(self.unused, 20)}"] if self.unused else []
        if not self.counts.pairs:
            return columns
        return [
            *columns,
            f"  {self.counts.pairs:,} pairs of {self.num_images:,} images over {self.num_prompts:,} prompts"
            f" ({value_range(self.pairs_per_prompt)} pairs a prompt)",
            f"  labels: {counted(self.labels)}",
            f"  images: {counted(self.image_formats)}; {counted(self.image_modes)};"
            f" shorter side {value_range(self.sides)} px",
        ]

    def _problems(self) -> list[str]:
        lines = [f"  ! {note}" for note in self.notes]
        lines += [f"  ! {note}" for note in square_notes(self.sizes, _RESOLUTIONS)]
        if self.num_animated:
            lines.append(f"  ! {self.num_animated:,} images move or have several pages -> the first one is taken")
        bad = ((number, *_BAD.get(kind, _OTHER)) for kind, number in self.counts.bad.items())
        lines += bad_row_lines(bad, self.unusable)
        if self.contradicting:
            first = f"the first: {self.contradicting[0]}"
            lines.append(f"  ! {len(self.contradicting):,} pairs have rows that contradict each other ({first})")
            lines.append("      -> training takes the mean of their labels; one against one is a tie")
        if self.duplicates:
            lines.append(f"  ! {self.duplicates:,} rows repeat a pair -> training uses each pair once")
        if self.long_captions:
            what = f"{self.long_captions:,} pairs have a caption of more than {LONG_CAPTION_WORDS} words"
            lines.append(f"  ! {what} -> CLIP text encoders see the first 77 tokens only")
        return lines

    def _verdict(self) -> str:
        counts = self.counts
        if self.num_usable and not self.unusable:
            ties = f" ({counts.ties:,} ties are left out; data.ties: soft keeps them)" if counts.ties else ""
            return f"Ready to train: {self.num_usable:,} pairs{ties}."
        if self.num_usable:
            what = f"Not ready: {len(self.unusable):,} unusable rows stop a run"
            return f"{what}. Correct them, or train on the other {self.num_usable:,} pairs with data.on_bad_row: skip."
        if counts.pairs:
            what = f"Not ready: all {counts.pairs:,} usable pairs are ties"
            return f"{what}. Keep them as soft labels with data.ties: soft, or label more pairs."
        return "Not ready: no usable pair."


@dataclass(slots=True)
class _Tally:
    """What is gathered over the pairs of one pass; images are checked once each."""

    labels: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    animated: int = 0
    images: set[str] = field(default_factory=set)
    long_captions: int = 0
    # Pair to where it was met first, and each row's vote share for the first of the two images in the order of keys.
    pairs: dict[str, tuple[str, list[float]]] = field(default_factory=dict)

    def add(self, record: KnownPair) -> None:
        self.prompts[record.prompt] += 1
        self.long_captions += len(record.prompt.split()) > LONG_CAPTION_WORDS
        named = {1.0: "image 0 preferred", 0.0: "image 1 preferred", 0.5: "tie"}
        self.labels[named.get(record.label_0, "vote shares in between")] += 1
        keys = [image.key for image in record.images]
        for image in record.images:
            if image.key not in self.images:
                self.images.add(image.key)
                self.formats[image.header.format] += 1
                self.modes[image.header.mode] += 1
                self.sizes.append(image.header.size)
                self.animated += image.header.is_animated
        # As the index joins them: the same pair, whichever image comes first.
        pair_id = content_hash(record.prompt, *sorted(keys))
        share = record.label_0 if keys[0] < keys[1] else 1 - record.label_0
        self.pairs.setdefault(pair_id, (record.source, []))[1].append(share)


def check_pairs(
    path: str | Path, *, split: str = "train", revision: str | None = None, streaming: bool = False
) -> CheckReport:
    """Read all pairs of ``path`` (as ``open_pairs``), decode every image, and say what is there and what is wrong.

    Raises UserError for what makes the data unreadable as a whole: no such path, not a known format, a missing column.
    """
    reader = open_pairs(path, split=split, revision=revision, streaming=streaming, on_bad_row="skip", ties="soft")
    tally = _Tally()
    with (
        image_index(None, reader.identity) as images,  # what was known before is read too: this is the check
        progress(desc=f"checking {path}", total=reader.num_rows, unit="row", mininterval=0.5) as bar,
    ):
        for record, _ in reader.scan_facts(images):
            tally.add(record)
            bar.update(reader.counts.rows - bar.n)
        bar.update(reader.counts.rows - bar.n)
    return _report(reader, tally)


def _report(reader: PairReader, tally: _Tally) -> CheckReport:
    return CheckReport(
        name=reader.name,
        format=reader.format,
        counts=reader.counts,
        labels=tally.labels,
        num_prompts=len(tally.prompts),
        num_images=len(tally.images),
        duplicates=reader.counts.pairs - len(tally.pairs),
        num_usable=sum(math.fsum(votes) / len(votes) != 0.5 for _, votes in tally.pairs.values()),
        contradicting=[source for source, votes in tally.pairs.values() if min(votes) < 0.5 < max(votes)],
        long_captions=tally.long_captions,
        pairs_per_prompt=list(tally.prompts.values()),
        image_formats=tally.formats,
        image_modes=tally.modes,
        sizes=tally.sizes,
        num_animated=tally.animated,
        notes=reader.notes,
        unused=reader.source.unused,
        unusable=reader.skipped,
    )
