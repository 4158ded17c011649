"""Preference pairs of images for a run: indexed once for all processes, in passes, encoded ahead."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ...data.findings import square_notes
from ...data.index import PairIndex
from ...data.provenance import judges_of_pairs
from ...data.readers import PairReader, open_pairs
from ...errors import plural
from ...folders import expand
from ...progress import progress
from ...records import PairRecord, Text, content_hash
from ...training.order import EpochOrder
from ...training.sources import FixedBatchSource, UnpairedSource
from ...types.images import PreferenceBatch
from .examples import RunData, check_apart, note_skipped, shares
from .given import Setup

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImagePairs(RunData):
    """The pairs of a run."""

    setup: Setup
    train: PairIndex
    heldout: PairIndex | None
    order: EpochOrder

    @classmethod
    def load(
        cls,
        setup: Setup,
        *,
        resolution: int,
        count_truncated: Callable[[Sequence[str]], int],
        on_pair: Callable[[PairRecord], None] | None = None,
    ) -> ImagePairs:
        """Read training and held-out pairs, and note what is left out, and what a square of ``resolution`` px takes away.

        ``on_pair`` sees every pair as it is read. Raises UserError as the reader does, for held-out pairs that are training
        pairs, and where there are fewer pairs than one step takes.
        """
        train = load_pairs(setup, resolution=resolution, on_pair=on_pair)
        heldout = None
        if setup.data(heldout=True) is not None:
            heldout = load_pairs(setup, resolution=resolution, heldout=True, on_pair=on_pair)
            check_apart("pairs", *([pair.example_id for pair in index.pairs] for index in (train, heldout)))
        if count := count_truncated(sorted({pair.prompt for pair in train.pairs})):
            log.warning("note: %d captions are longer than the text encoder reads; their ends are ignored", count)
        order = EpochOrder(len(train), setup.batch_size, setup.recipe.training.seed, train.times)
        return cls(setup, train, heldout, order)

    def source(self) -> FixedBatchSource | UnpairedSource:
        """The passes of each optimizer step; for objectives on single samples each pair with the prompt of another one."""

        def batches(indices: Sequence[int], partners: Sequence[int], draw: int) -> PreferenceBatch:
            mismatched = [self.train.pairs[partner].prompt for partner in partners]
            return replace(self.train.batch(indices, draw), mismatched=mismatched)

        accumulated, accelerator = self.setup.recipe.training.gradient_accumulation_steps, self.setup.accelerator
        processes, rank = accelerator.num_processes, accelerator.process_index
        passes = FixedBatchSource(self.order, self.train.batch, accumulated, processes, rank)
        return UnpairedSource(passes, batches) if self.setup.objective.learns_from == "labels" else passes

    def labels_hash(self) -> str:
        """Identity of the pairs and labels that the run learns from."""
        times = "" if self.train.times is None else f" {self.train.times}"
        return content_hash(
            *(f"{pair.example_id} {pair.label_0}" for pair in self.train.pairs), *([times] if times else [])
        )

    def prompts(self) -> Iterable[Text]:
        """The captions of the pairs."""
        return (pair.prompt for pair in self.train.pairs)

    def judges(self) -> dict[str, str]:
        """The scorers that the rows name; a stream is not read again for it."""
        if self.setup.recipe.data.streaming:
            return {}
        parts, where = self.setup.parts(heldout=False), self.setup.place(heldout=False)
        return {name: each for part in parts for name, each in judges_of_pairs(part.place, **where).items()}

    def name_of(self, example_id: str) -> str:
        """Where the pair of an id stands, for a message: "pairs.parquet, row 7"."""
        sources = (pair.source for pair in self.train.pairs if pair.example_id == example_id and pair.source)
        return next(sources, f"pair {example_id}")

    def share(self) -> list[int]:
        """This process's share of the pairs that the run will see, in the order of the files."""
        accelerator = self.setup.accelerator
        last = self.max_train_steps
        seen: Iterable[int] = range(len(self.train))
        if self.order.epoch(last - 1) == 0:
            seen = sorted({i for step in range(last) for i in self.order.indices(step)})
        share = list(seen)[accelerator.process_index :: accelerator.num_processes]
        return sorted(share, key=lambda index: (self.train.pairs[index].part, self.train.pairs[index].location or ()))

    def encode_ahead(self, encode: Callable[[PreferenceBatch], object]) -> None:
        """Hand this process's share to ``encode``, a part at a time: a batch holds its images as long as it lives."""
        share = self.share()
        hidden = not self.setup.accelerator.is_main_process
        with progress(total=len(share), desc="encode images", unit="pair", disable=hidden) as bar:
            for start in range(0, len(share), 64):
                chunk = share[start : start + 64]
                encode(self.train.batch(chunk, 0))
                bar.update(len(chunk))


def load_pairs(
    setup: Setup,
    *,
    resolution: int,
    heldout: bool = False,
    on_pair: Callable[[PairRecord], None] | None = None,
) -> PairIndex:
    """The index of the training or the held-out pairs.

    Notes what is left out, and what a square of ``resolution`` px takes away. ``on_pair`` sees every pair as it is
    read. Held-out ties are dropped: they have no side to agree with. Raises UserError as the reader does.
    """
    data, accelerator = setup.recipe.data, setup.accelerator
    parts, ties = setup.parts(heldout=heldout), "drop" if heldout else data.ties
    how: dict[str, Any] = {"streaming": data.streaming, "ties": ties, **setup.reading(heldout=heldout)}
    readers = [open_pairs(part.place, **how) for part in parts]
    times = [part.times for part in parts]
    if on_pair is not None:
        index = PairIndex.build(*readers, times=times, on_pair=on_pair, quiet=not accelerator.is_main_process)
    else:
        index = _build(readers, times, expand(data.cache_dir) / "index", accelerator)
    for note in index.notes:
        log.warning("note: %s", note)
    for line in shares(parts, index.part_sizes, "pairs"):
        log.info(line)
    index = index.head(setup.limit(heldout=heldout))
    _note_left_out(readers, index, resolution)
    return index


def _build(readers: Sequence[PairReader], times: Sequence[float], folder: Path, accelerator: Accelerator) -> PairIndex:
    """One process reads the images; the others then find what it has written, and read where it failed to."""
    index = None
    if accelerator.is_main_process:
        try:
            index = PairIndex.build(*readers, times=times, folder=folder)
        except Exception:
            accelerator.wait_for_everyone()  # the others meet the same, and do not wait for ever
            raise
    accelerator.wait_for_everyone()
    return index if index is not None else PairIndex.build(*readers, times=times, folder=folder, quiet=True)


def _note_left_out(readers: Sequence[PairReader], index: PairIndex, resolution: int) -> None:
    for reader in readers:
        if reader.log.counts.rows > reader.log.counts.usable:
            log.warning("note: %s: %s", reader.log.name, reader.log.counts)
        note_skipped(reader.log.name, [reason for _, reason in reader.log.skipped])
    path = ", ".join(reader.log.name for reader in readers)
    if index.num_duplicates:
        what = f"{plural(index.num_duplicates, 'row repeats', 'rows repeat')} a pair: each pair is used once, however often it stands there"
        log.warning("note: %s: %s", path, what)
    sizes = {key: size for pair in index.pairs for key, size in zip(pair.keys, pair.sizes, strict=True)}
    for note in square_notes(list(sizes.values()), [resolution]):
        log.warning("note: %s: %s", path, note)
