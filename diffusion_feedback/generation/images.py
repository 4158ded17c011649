"""Prompts and a model to a folder of images with its manifest: resumable, and whole whenever it is killed.

The folder is an imagefolder as ``datasets`` reads it (``load_dataset("imagefolder", data_dir=...)``):
``images/00012-s3.png`` is the image of prompt 12 under seed 3, ``metadata.jsonl`` holds one ``ImageRecord`` a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from ..errors import UserError
from ..folders import make_folder, sweep_folder
from ..progress import progress
from ..records import ImageRecord, atomic_write, content_hash, parse_json, write_text
from .rows import append_rows, check_origin, read_records, write_rows

Sampler = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""(prompts, seeds) of equal length to one image each; an image depends on its own prompt and seed alone."""

METADATA = "metadata.jsonl"
IMAGES = "images"

_IMAGE_NAME = re.compile(IMAGES + r"/\d{5,}-s\d+\.png")


@dataclass(frozen=True, slots=True)
class _Pending:
    """Images that are about to be written or replaced, by name: those of a killed run may be replaced by the next.

    Images that neither this nor ``metadata.jsonl`` names are somebody's, and are never removed.
    """

    path: Path
    names: set[str]

    @classmethod
    def read(cls, folder: Path) -> _Pending:
        path = folder / ".pending.json"
        if not path.is_file():
            return cls(path, set())
        remedy = "remove the file, and look whether all images in images/ are to be kept"
        names = parse_json(path.read_bytes(), str(path), remedy)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: not a list of file names", remedy)
        return cls(path, set(names))

    def add(self, names: Iterable[str]) -> None:
        """Note ``names`` on the disk before they are touched."""
        new = set(names) - self.names
        if new:
            self.names.update(new)
            write_text(self.path, json.dumps(sorted(self.names)))

    def clear(self, keep: set[str]) -> None:
        """All is in place: remove those images that are not to ``keep``, and the note."""
        for name in self.names - keep:
            if _IMAGE_NAME.fullmatch(name):
                (self.path.parent / name).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def generate_images(
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    sampler: Sampler,
    model_hash: str,
    settings: Mapping[str, object],
    batch_size: int,
    origin: Mapping[str, str] = MappingProxyType({}),
    overwrite: bool = False,
) -> list[ImageRecord]:
    """Generate one image for each of ``prompts`` under each of ``seeds`` into ``folder``; return the records in order.

    The seed goes to ``sampler`` as it stands, so an image depends neither on its batch nor on what was interrupted; the
    same seed gives the same starting noise under every prompt and every model, as a before/after comparison needs.
    Images that are recorded and in place are kept, so the same call goes on after a kill and ends in the same bytes;
    prompts may be added at the end, and seeds anywhere. ``settings`` must be JSON. Raises UserError where ``folder``
    holds the images of another run, or images of which no manifest tells, unless ``overwrite`` says to replace them.
    """
    settings = json.loads(json.dumps(dict(settings)))  # as they come back from the disk: tuples are lists
    wanted = [
        ImageRecord(f"{IMAGES}/{index:05d}-s{seed}.png", prompt, seed, settings, model_hash, origin)
        for index, prompt in enumerate(prompts)
        for seed in sorted(seeds)
    ]
    make_folder(folder / IMAGES)
    pending = _Pending.read(folder)
    if overwrite:
        pending.add(_unrecorded(folder, set()))
        (folder / METADATA).unlink(missing_ok=True)
    there = _resume(folder, wanted)
    _check_unrecorded(folder, there, pending, wanted)
    with progress(total=len(wanted), initial=len(there), unit="image", desc="generate") as bar:
        # Batches are cut from the whole request, not from what is left, so that a run that was interrupted hands the
        # sampler the same batches as one that was not: GPU kernels round differently for another batch size.
        for start in range(0, len(wanted), batch_size):
            batch = [record for record in wanted[start : start + batch_size] if record.file_name not in there]
            if batch:
                pending.add(record.file_name for record in batch)
                images = sampler([record.prompt for record in batch], [record.seed for record in batch])
                for record, image in zip(batch, images, strict=True):
                    with atomic_write(folder / record.file_name) as temporary:
                        image.save(temporary, format="PNG")
                append_rows(folder / METADATA, batch)
                bar.update(len(batch))
    absent = [record.file_name for record in wanted if not (folder / record.file_name).is_file()]
    if absent:
        problem = (
            f"{folder}: {len(absent)} of its images were removed while they were generated; the first: {absent[0]}"
        )
        raise UserError(problem, "run the same command again")
    write_rows(folder / METADATA, wanted)
    pending.clear(keep={record.file_name for record in wanted})
    sweep_folder(folder)
    return wanted


def own_noise(sampler: Sampler) -> Sampler:
    """``sampler`` with each (prompt, seed) started from its own noise, the same under every model.

    Under one bare seed all prompts would share their starting noise, and comparisons prompt by prompt would not be
    independent.
    """

    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        own = [int(content_hash(f"{prompt}/{seed}")[:15], 16) for prompt, seed in zip(prompts, seeds, strict=True)]
        return sampler(prompts, own)

    return sample


def load_generated(folder: Path | str) -> list[tuple[ImageRecord, Path]]:
    """The records of a generated ``folder`` with the paths of their images, by prompt index and seed.

    Raises UserError for a folder without a manifest, a broken row, or an image that is missing.
    """
    folder = Path(folder)
    if not (folder / METADATA).is_file():
        raise UserError(f"{folder}: no {METADATA}", "give a folder of generated images")
    records, _ = _read(folder / METADATA)
    images = [(record, folder / record.file_name) for record in records]
    for record, path in images:
        if not path.is_file():
            raise UserError(f"{folder / METADATA}: {record.file_name} is missing", "run the generation again")
    if not images:
        raise UserError(f"{folder / METADATA}: holds no images", "run the generation again")
    return images


def _read(path: Path) -> tuple[list[ImageRecord], bool]:
    remedy = "correct or remove the line, use another folder, or `overwrite` to draw all images again"
    return read_records(path, ImageRecord, "generated image", remedy)


def _resume(folder: Path, wanted: Sequence[ImageRecord]) -> set[str]:
    """Names of the images of ``wanted`` that are recorded and in place; the manifest is cut down to these."""
    path = folder / METADATA
    if not path.exists():
        return set()
    recorded, truncated = _read(path)
    requested = {record.file_name: record for record in wanted}
    remedy = "use another folder, or `overwrite` to replace its images"
    for record in recorded:
        own = requested.get(record.file_name)
        if own is None:
            raise UserError(f"{folder}: holds {record.file_name}, which this run does not request", remedy)
        check_origin(folder, "images", record, own, remedy)
        if (record.prompt, record.seed) != (own.prompt, own.seed):
            problem = f"{folder}: {record.file_name} shows {record.prompt!r}, this run has {own.prompt!r} in that place"
            raise UserError(problem, remedy)
    kept = {record.file_name: record for record in recorded if (folder / record.file_name).is_file()}
    if truncated or len(kept) < len(recorded):
        write_rows(path, list(kept.values()))
    return set(kept)


def _unrecorded(folder: Path, recorded: set[str]) -> list[str]:
    """Images under names such as ours that are not ``recorded``; files of other names are nobody's business here."""
    names = (f"{IMAGES}/{path.name}" for path in (folder / IMAGES).iterdir())
    return sorted(name for name in names if _IMAGE_NAME.fullmatch(name) and name not in recorded)


def _check_unrecorded(folder: Path, there: set[str], pending: _Pending, wanted: Sequence[ImageRecord]) -> None:
    """Refuse to replace or to keep images of which nobody knows what they are: without rows all of them are such."""
    known = there | pending.names
    if there:  # of this very run, so that what it asks for comes out as it was
        known |= {record.file_name for record in wanted}
    unknown = _unrecorded(folder, known)
    if unknown:
        state = "does not name them" if there else "is empty" if (folder / METADATA).exists() else "is not there"
        problem = f"{folder}: holds {len(unknown)} images, and {METADATA} {state}; the first: {unknown[0]}"
        remedy = f"bring {METADATA} back, move the images away, use another folder, or `overwrite` to replace them"
        raise UserError(problem, remedy)
