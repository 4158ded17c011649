"""Random access to more pairs than memory holds: an index without the images, which are read when they are opened."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from ..errors import UserError, plural
from ..records import PairRecord, content_hash
from ..types.images import PreferenceBatch
from .image_index import image_index, inspect
from .images import decode_image
from .readers import KnownPair, PairReader
from .rows import Location, PairSource

Sizes = tuple[tuple[int, int], tuple[int, int]]
"""Width and height of the two images of a pair, px."""


@dataclass(frozen=True, slots=True)
class IndexedPair:
    """One pair without its images.

    ``keys`` are the images' content hashes, in sorted order, so that a pair is the same whichever image came first;
    ``label_0`` is the vote share of the first of them; ``swapped`` says that the source has them the other way round.
    ``sizes`` are (width, height) of the images of ``keys``, px; ``models`` are the names of what drew them, "" where unknown.
    ``has_split``: rows that repeat it do not say the same. ``part`` numbers the data set that it stands in, of several the last; ``times`` is how often it is drawn in an epoch, of
    several the largest.
    """

    example_id: str
    prompt: str
    keys: tuple[str, str]
    label_0: float
    weight: float
    location: Location | None
    swapped: bool
    source: str
    sizes: Sizes
    models: tuple[str, str] = ("", "")
    part: int = 0
    times: float = 1.0
    has_split: bool = False

    @property
    def is_contested(self) -> bool:
        """Whether votes disagree on it; a lone tie is no disagreement."""
        return 0 < self.label_0 < 1 and (self.has_split or self.label_0 != 0.5)

    @property
    def chosen(self) -> int:
        """0 or 1: which of ``keys`` is preferred; 0 for a tie."""
        return 0 if self.label_0 >= 0.5 else 1


class _PairBytes:
    """The two images of one pair, read once for both; lives as long as the batch that it was made for."""

    def __init__(self, source: PairSource, pair: IndexedPair) -> None:
        self._source, self._pair = source, pair
        self._images: tuple[bytes, bytes] | None = None

    def image(self, side: int) -> bytes:
        if self._images is None:
            self._images = self._read()
        return self._images[side]

    def _read(self) -> tuple[bytes, bytes]:
        pair = self._pair
        if pair.location is None:
            problem = f"{pair.source}: a streamed image cannot be read again"
            raise UserError(problem, "set data.cache: true, so that latents are kept as the stream passes by")
        first, second = self._source.images(pair.location)
        images = (second, first) if pair.swapped else (first, second)
        if tuple(content_hash(image) for image in images) != pair.keys:
            # Where the time of change was set back, only the bytes tell.
            remedy = "start the run again; if that does not help, touch the file, so that it is seen as a new one"
            raise UserError(f"{pair.source}: the images have changed since the run began", remedy)
        return images


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """An ImageHandle whose bytes are read only when it is opened."""

    key: str
    source: str
    pair: _PairBytes
    side: int

    def open(self) -> Image.Image:
        """Read and decode to RGB. Raises UserError for bytes that are gone, changed, or not an image."""
        return decode_image(self.read(), self.source)

    def read(self) -> bytes:
        """The encoded bytes. Raises UserError for bytes that are gone or changed."""
        return self.pair.image(self.side)


class PairIndex:
    """Pairs sorted by their content, so that the order of files and rows never matters; a pair stands in it once."""

    def __init__(
        self,
        sources: Sequence[PairSource],
        pairs: Sequence[IndexedPair],
        num_duplicates: int,
        notes: Sequence[str] = (),
        part_sizes: Sequence[int] = (),
    ) -> None:
        self._sources = sources
        self._pairs = pairs
        self.num_duplicates = num_duplicates
        self.notes = notes
        self.part_sizes = part_sizes

    @classmethod
    def build(
        cls,
        *readers: PairReader,
        times: Sequence[float] = (),
        on_pair: Callable[[PairRecord], None] | None = None,
        folder: Path | None = None,
        quiet: bool = False,
    ) -> PairIndex:
        """Go through each of ``readers`` once, with a progress bar unless ``quiet``; ``on_pair`` sees every usable pair.

        ``times`` says for each reader how often its pairs are drawn in an epoch, once where not given. In ``folder`` is
        kept what is known of the images, so that the next time only new ones are read and decoded; not where ``on_pair``
        wants to see them.

        Rows that repeat a pair are merged, in whichever data set they stand: the label is their mean, ``num_duplicates``
        counts the rows left out. A pair whose rows contradict each other evenly is then a tie, and treated as one: ties are
        dropped after rows are joined, in which a tied row is half a vote for either side.
        ``part_sizes`` are the pairs of each reader. Raises UserError as they do.
        """
        votes, pairs, members, notes = _gather(readers, times, on_pair, folder, quiet=quiet)
        merged = [_merged(pairs[key], votes[key]) for key in sorted(pairs)]
        ties = readers[0].ties
        kept = [pair for pair in merged if pair.label_0 != 0.5 or ties != "drop"]
        # Plain ties are counted as the rows that they are.
        plain = {pair.example_id for pair in merged if pair.label_0 == 0.5 and not pair.has_split and ties == "drop"}
        split = len(merged) - len(plain)
        name = ", ".join(reader.log.name for reader in readers)
        if not kept:
            problem = f"{name}: 0 usable pairs: the labels of {plural(split, 'pair')} contradict each other, and no other pair is there"
            raise UserError(problem, "keep ties as soft labels with ties: soft, or label more pairs")
        duplicates = sum(len(each) - 1 for key, each in votes.items() if key not in plain)
        if lost := split - len(kept):
            notes.append(
                f"{name}: {plural(lost, 'pair is', 'pairs are')} left out, with rows that contradict each other evenly (ties: soft"
                " keeps them)"
            )
        ids = {pair.example_id for pair in kept}
        sizes = [len(each & ids) for each in members]
        if both := sum(sizes) - len(ids):
            notes.append(
                f"{name}: {plural(both, 'pair stands', 'pairs stand')} in several of them: labels are joined, and the most repeats"
                " count"
            )
        return cls([reader.source for reader in readers], kept, duplicates, notes, sizes)

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def pairs(self) -> Sequence[IndexedPair]:
        """The pairs without their images, in the order of the index."""
        return self._pairs

    def head(self, number: int | None) -> PairIndex:
        """The index of the first ``number`` pairs, of all for None: as they are sorted by hash, a fixed random sample."""
        return PairIndex(self._sources, self._pairs[:number], self.num_duplicates, self.notes, self.part_sizes)

    @property
    def times(self) -> tuple[float, ...] | None:
        """How often each pair is drawn in an epoch; None where that is once for all."""
        times = tuple(pair.times for pair in self._pairs)
        return None if set(times) <= {1.0} else times

    def images(self, pair: IndexedPair) -> tuple[IndexedImage, IndexedImage]:
        """The images of one of its pairs, in the order of ``keys``; they are read, both at once, when one is opened."""
        reader = _PairBytes(self._sources[pair.part], pair)
        first, second = (
            IndexedImage(key, f"{pair.source}, image {key}", reader, side) for side, key in enumerate(pair.keys)
        )
        return first, second

    def batch(self, indices: Sequence[int], draw: int) -> PreferenceBatch:
        """The pairs at ``indices``; no image is read before its handle is opened. ``draw`` is the epoch."""
        pairs = [self._pairs[index] for index in indices]
        images = [self.images(pair) for pair in pairs]
        return PreferenceBatch(
            example_ids=[pair.example_id for pair in pairs],
            prompts=[pair.prompt for pair in pairs],
            chosen=[sides[pair.chosen] for pair, sides in zip(pairs, images, strict=True)],
            rejected=[sides[1 - pair.chosen] for pair, sides in zip(pairs, images, strict=True)],
            chosen_probability=torch.tensor([max(pair.label_0, 1 - pair.label_0) for pair in pairs]),
            weight=torch.tensor([pair.weight for pair in pairs]),
            draw=draw,
        )


@dataclass(frozen=True, slots=True)
class _Shared:
    """The same few sizes and models recur, as prompts do; each is held once."""

    sizes: dict[Sizes, Sizes]
    models: dict[tuple[str, str], tuple[str, str]]


def _gather(
    readers: Sequence[PairReader],
    times: Sequence[float],
    on_pair: Callable[[PairRecord], None] | None,
    folder: Path | None,
    *,
    quiet: bool,
) -> tuple[dict[str, list[float]], dict[str, IndexedPair], list[set[str]], list[str]]:
    """The labels that rows give each pair, the pairs, those of each reader, and what is to be noted."""
    votes: dict[str, list[float]] = {}
    pairs: dict[str, IndexedPair] = {}
    members: list[set[str]] = []
    notes: list[str] = []
    shared = _Shared({}, {})
    for part, reader in enumerate(readers):
        here: set[str] = set()
        with image_index(folder, reader.identity, decode=reader.decode) as images:
            passing = reader.scan_facts(images) if on_pair is None else _shown(reader, on_pair)
            for known, location in reader.log.watched(passing, "reading", reader.num_rows, hidden=quiet):
                pair = _indexed(known, location, shared, part, times[part] if times else 1.0)
                votes.setdefault(pair.example_id, []).append(pair.label_0)
                before = pairs.get(pair.example_id)
                pairs[pair.example_id] = pair if before is None else _joined(before, pair)
                here.add(pair.example_id)
        reader.require_usable()
        members.append(here)
        notes += [*images.notes, *reader.notes]
    return votes, pairs, members, notes


def _shown(reader: PairReader, on_pair: Callable[[PairRecord], None]) -> Iterator[tuple[KnownPair, Location | None]]:
    """The pairs of ``reader`` with their images, each shown to ``on_pair`` after what is known of it was taken."""
    for record, location in reader.scan_votes():
        first, second = (inspect(data, record.source, decode=False) for data in (record.image_0, record.image_1))
        yield KnownPair(record.prompt, (first, second), record.label_0, record.weight, record.source), location
        if reader.keeps(record):
            on_pair(record)


def _indexed(known: KnownPair, location: Location | None, shared: _Shared, part: int, times: float) -> IndexedPair:
    (first, second), models = known.images, known.models
    swapped = first.key > second.key
    if swapped:
        first, second, models = second, first, (models[1], models[0])
    # As PairRecord.example_id, without hashing the images a second time.
    example_id = content_hash(known.prompt, first.key, second.key)
    label_0 = 1 - known.label_0 if swapped else known.label_0
    sizes = (first.header.size, second.header.size)
    prompt, sizes, models = (
        sys.intern(known.prompt),
        shared.sizes.setdefault(sizes, sizes),
        shared.models.setdefault(models, models),
    )
    return IndexedPair(
        example_id,
        prompt,
        (first.key, second.key),
        label_0,
        known.weight,
        location,
        swapped,
        known.source,
        sizes,
        models,
        part,
        times,
    )


def _joined(before: IndexedPair, pair: IndexedPair) -> IndexedPair:
    """A pair that rows repeat: read where it was met last. Of weights and repeats the largest count, whichever comes first."""
    return replace(pair, weight=max(pair.weight, before.weight), times=max(pair.times, before.times))


def _merged(pair: IndexedPair, votes: Sequence[float]) -> IndexedPair:
    """``pair`` with the mean of its ``votes``; itself where there is one, so that no second copy of all pairs is held."""
    if len(votes) == 1:
        return pair
    return replace(pair, label_0=math.fsum(votes) / len(votes), has_split=min(votes) < max(votes))
