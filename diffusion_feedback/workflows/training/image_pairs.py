"""Preference pairs of images for a run: indexed once for all processes, with everything said that was left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from ...config import Recipe
from ...data.index import PairIndex
from ...data.readers import PairReader, open_pairs
from ...data.squares import square_notes
from ...errors import UserError
from ...folders import expand
from ...records import PairRecord

_SHOWN = 20


def load_pairs(
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    resolution: int,
    heldout: bool = False,
    on_pair: Callable[[PairRecord], None] | None = None,
) -> PairIndex | None:
    """The index of the training or the held-out pairs; None where a recipe names no held-out pairs.

    Says what was left out, and what a square of ``resolution`` px takes away. ``on_pair`` sees every pair as it is
    read. Held-out ties are dropped: they have no side to agree with. Raises UserError as the reader does.
    """
    data = recipe.data
    path = data.validation if heldout else data.train
    if path is None:
        return None
    reader = open_pairs(
        path,
        split=data.validation_split if heldout else data.split,
        revision=data.revision,
        streaming=data.streaming,
        on_bad_row=data.on_bad_row,
        ties="drop" if heldout else data.ties,
    )
    if on_pair is not None:
        index = PairIndex.build(reader, on_pair=on_pair, quiet=not accelerator.is_main_process)
    else:
        index = _build(reader, expand(data.cache_dir) / "index", accelerator)
    limit = data.max_validation_pairs if heldout else data.max_train_pairs
    index = index.head(limit) if limit else index
    for line in _notes(path, reader, index, resolution):
        accelerator.print(line)
    return index


def _build(reader: PairReader, folder: Path, accelerator: Accelerator) -> PairIndex:
    """One process looks at the images; the others then find what it has written, and look where it failed to."""
    index = None
    if accelerator.is_main_process:
        try:
            index = PairIndex.build(reader, folder=folder)
        except Exception:
            accelerator.wait_for_everyone()  # the others meet the same, and do not wait for ever
            raise
    accelerator.wait_for_everyone()
    return index if index is not None else PairIndex.build(reader, folder=folder, quiet=True)


def _notes(path: str, reader: PairReader, index: PairIndex, resolution: int) -> list[str]:
    lines = [f"note: {note}" for note in index.notes]
    counts = reader.counts
    if counts.rows > counts.pairs:
        lines.append(f"note: {path}: {counts}")
    if reader.skipped:
        lines.append(f"{len(reader.skipped)} bad rows skipped in {path}; the first of them:")
        lines += [f"  {reason}" for _, reason in reader.skipped[:_SHOWN]]
    if index.num_duplicates:
        what = f"{index.num_duplicates} rows repeat a pair: each pair is used once, however often it stands there"
        lines.append(f"note: {path}: {what}")
    sizes = {key: size for pair in index.pairs for key, size in zip(pair.keys, pair.sizes, strict=True)}
    lines += [f"note: {path}: {note}" for note in square_notes(list(sizes.values()), [resolution])]
    return lines


def check_apart(train: PairIndex, heldout: PairIndex | None) -> None:
    """Raise UserError where a held-out pair is a training pair."""
    if heldout is None:
        return
    shared = {pair.pair_id for pair in train.pairs} & {pair.pair_id for pair in heldout.pairs}
    if shared:
        problem = f"data.validation: {len(shared)} of its {len(heldout)} pairs are training pairs too"
        raise UserError(problem, "give other files or another validation_split")
