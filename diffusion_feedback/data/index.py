"""Random access to more pairs than memory holds: an index without the images, which are read when they are opened."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from tqdm import tqdm

from ..errors import UserError
from ..records import PairRecord, content_hash
from ..types import PreferenceBatch
from .images import decode_image
from .readers import PairReader, ReadCounts
from .rows import Location, PairSource


@dataclass(frozen=True, slots=True)
class IndexedPair:
    """One pair without its images.

    ``keys`` are the images' content hashes, in sorted order, so that a pair is the same whichever image came first;
    ``label_0`` is the vote share of the first of them; ``swapped`` says that the source has them the other way round.
    """

    pair_id: str
    prompt: str
    keys: tuple[str, str]
    label_0: float
    weight: float
    location: Location | None
    swapped: bool
    source: str

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
            raise UserError(f"{pair.source}: the images have changed since the run began", "start the run again")
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
        return decode_image(self.pair.image(self.side), self.source)


class PairIndex:
    """Pairs sorted by their content, so that the order of files and rows never matters; a pair stands in it once."""

    def __init__(
        self, source: PairSource, pairs: Sequence[IndexedPair], counts: ReadCounts, num_duplicates: int
    ) -> None:
        self._source = source
        self._pairs = pairs
        self.counts = counts
        self.num_duplicates = num_duplicates

    @classmethod
    def build(cls, reader: PairReader, *, on_pair: Callable[[PairRecord], None] | None = None) -> PairIndex:
        """Go through ``reader`` once, with a progress bar; ``on_pair`` sees every usable pair as it passes by.

        Rows that repeat a pair are merged: the label is their mean, ``num_duplicates`` counts the rows left out. A pair
        whose rows contradict each other evenly is then a tie, and treated as one. Raises UserError as ``reader`` does.
        """
        votes: dict[str, list[float]] = {}
        pairs: dict[str, IndexedPair] = {}
        prompts: dict[str, str] = {}  # the same few prompts recur; each is held once
        with tqdm(desc=f"reading {reader.name}", total=reader.num_rows, unit="row", mininterval=0.5) as bar:
            for record, location in reader.scan():
                pair = _indexed(record, location)
                votes.setdefault(pair.pair_id, []).append(pair.label_0)
                known = pairs.get(pair.pair_id)
                # Of repeated rows the largest weight counts: like the mean of the labels, whichever comes first.
                weight = pair.weight if known is None else max(pair.weight, known.weight)
                pairs[pair.pair_id] = replace(pair, weight=weight, prompt=prompts.setdefault(pair.prompt, pair.prompt))
                if on_pair is not None:
                    on_pair(record)
                bar.update(reader.counts.rows - bar.n)
            bar.update(reader.counts.rows - bar.n)
        reader.require_pairs()
        merged = [_merged(pairs[key], votes[key]) for key in sorted(pairs)]
        kept = [pair for pair in merged if pair.label_0 != 0.5 or reader.ties != "drop"]
        if not kept:
            problem = f"{reader.name}: 0 usable pairs: the labels of all {len(merged)} pairs contradict each other"
            raise UserError(problem, "keep ties as soft labels with ties: soft, or label more pairs")
        return cls(reader.source, kept, reader.counts, sum(map(len, votes.values())) - len(votes))

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def pairs(self) -> Sequence[IndexedPair]:
        """The pairs without their images, in the order of the index."""
        return self._pairs

    def head(self, number: int) -> PairIndex:
        """The index of the first ``number`` pairs: as they are sorted by hash, a fixed random sample."""
        return PairIndex(self._source, self._pairs[:number], self.counts, self.num_duplicates)

    def batch(self, indices: Sequence[int], draw: int) -> PreferenceBatch:
        """The pairs at ``indices``; no image is read before its handle is opened. ``draw`` is the epoch."""
        pairs = [self._pairs[index] for index in indices]
        readers = [_PairBytes(self._source, pair) for pair in pairs]
        images = [
            [IndexedImage(pair.keys[side], f"{pair.source}, image {pair.keys[side]}", reader, side) for side in (0, 1)]
            for pair, reader in zip(pairs, readers, strict=True)
        ]
        return PreferenceBatch(
            pair_ids=[pair.pair_id for pair in pairs],
            prompts=[pair.prompt for pair in pairs],
            chosen=[sides[pair.chosen] for pair, sides in zip(pairs, images, strict=True)],
            rejected=[sides[1 - pair.chosen] for pair, sides in zip(pairs, images, strict=True)],
            chosen_probability=torch.tensor([max(pair.label_0, 1 - pair.label_0) for pair in pairs]),
            weight=torch.tensor([pair.weight for pair in pairs]),
            draw=draw,
        )


def _indexed(record: PairRecord, location: Location | None) -> IndexedPair:
    first, second = content_hash(record.image_0), content_hash(record.image_1)
    swapped = first > second
    keys = (second, first) if swapped else (first, second)
    # As PairRecord.pair_id, without hashing the images a second time.
    pair_id = content_hash(record.prompt, *keys)
    label_0 = 1 - record.label_0 if swapped else record.label_0
    return IndexedPair(pair_id, record.prompt, keys, label_0, record.weight, location, swapped, record.source)


def _merged(pair: IndexedPair, votes: Sequence[float]) -> IndexedPair:
    return replace(pair, label_0=math.fsum(votes) / len(votes)) if len(votes) > 1 else pair
