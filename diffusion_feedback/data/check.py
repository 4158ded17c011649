"""What a data set of pairs of images holds, and what is wrong with it, before a training run finds out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..records import content_hash
from .annotators import AnnotatorVotes
from .columns import Columns
from .findings import Votes, shape_of, square_notes
from .image_index import image_index
from .readers import KnownPair, PairReader, open_pairs

if TYPE_CHECKING:
    from .places import Dataset

_PREFERENCES = {1.0: "image 0 preferred", 0.0: "image 1 preferred", 0.5: "tie"}


@dataclass
class CheckReport:
    """What a pass of ``reader`` over pairs of images has met: its log counts the rows, the rest is of the usable ones.

    ``votes`` join those of the same pair, ``annotators`` are those of people who are named. ``labels`` counts image 0 preferred, image 1 preferred, tie, and vote shares in between (soft); ``unused`` are the
    columns that nothing is read from; ``images`` are known by their content; each is counted once, and ``sizes`` lists its width
    and height, px, which are held against the ``resolutions`` of training, px. ``both_ways`` are rows that prefer the other
    one of two images than a row before, under any prompt.
    """

    template: ClassVar[str] = "pairs"
    long_caption_words: ClassVar[int] = 50
    """CLIP's text encoder sees 77 tokens, which is about this many words."""

    reader: PairReader
    votes: Votes = field(default_factory=Votes)
    annotators: AnnotatorVotes = field(default_factory=AnnotatorVotes)
    labels: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    unused: list[str] = field(default_factory=list)
    images: set[str] = field(default_factory=set)
    image_formats: Counter[str] = field(default_factory=Counter)
    image_modes: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    num_animated: int = 0
    long_captions: int = 0
    resolutions: Sequence[int] = (512, 1024)
    directions: dict[int, int] = field(default_factory=dict)
    both_ways: list[str] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        """Whether training takes the data as it is."""
        return self.votes.num_usable > 0 and not self.reader.log.skipped

    @property
    def sides(self) -> list[int]:
        """Every image's shorter side, px."""
        return [min(size) for size in self.sizes]

    @property
    def square_notes(self) -> list[str]:
        """What training on squares of the usual resolutions takes away."""
        return square_notes(self.sizes, self.resolutions)

    @property
    def shapes(self) -> Counter[str]:
        """Images by their aspect ratio."""
        return Counter(map(shape_of, self.sizes))

    def add(self, record: KnownPair) -> None:
        """Take in a usable pair."""
        self.prompts[record.prompt] += 1
        self.long_captions += len(record.prompt.split()) > self.long_caption_words
        self.labels[_PREFERENCES.get(record.label_0, "vote shares in between")] += 1
        keys = [image.key for image in record.images]
        for image in record.images:
            if image.key not in self.images:
                self.images.add(image.key)
                self.image_formats[image.header.format] += 1
                self.image_modes[image.header.mode] += 1
                self.sizes.append(image.header.size)
                self.num_animated += image.header.is_animated
        # As the index joins them: the same pair, whichever image comes first.
        share = record.label_0 if keys[0] < keys[1] else 1 - record.label_0
        example = content_hash(record.prompt, *sorted(keys))
        self.votes.add(example, record.source, share)
        self.annotators.add(example, record.ballot.annotator, share)
        # Under whatever prompt; a number for each pair, as there may be many.
        pair = hash(tuple(sorted(keys)))
        before = self.directions.get(pair, 0)
        self.directions[pair] = before | (share > 0.5) | (share < 0.5) << 1
        if self.directions[pair] == 3 != before:
            self.both_ways.append(record.source)


def check_pairs(
    path: str | Path | Dataset,
    *,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    columns: Columns = None,
    resolutions: Sequence[int] = (512, 1024),
) -> CheckReport:
    """Read all pairs of ``path`` (as ``open_pairs``), decode every image, and say what is there and what is wrong.

    Raises UserError for what makes the data unreadable as a whole: no such path, not a known format, a missing column.
    """
    where: dict[str, Any] = {"split": split, "revision": revision, "streaming": streaming, "columns": columns}
    reader = open_pairs(path, on_bad_row="skip", ties="soft", **where)
    report = CheckReport(reader, resolutions=resolutions)
    with image_index(None, reader.identity) as images:  # what was known before is read too: this is the check
        for record, _ in reader.log.watched(reader.scan_facts(images), "checking", reader.num_rows):
            report.add(record)
    report.unused += reader.source.unused
    return report
