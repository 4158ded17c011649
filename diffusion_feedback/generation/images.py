"""Prompts and a model to a folder of images with its manifest: resumable, and whole whenever it is killed.

The folder is an imagefolder as ``datasets`` reads it (``load_dataset("imagefolder", data_dir=...)``):
``images/00012-s3.png`` is the image of prompt 12 under seed 3, ``metadata.jsonl`` holds one ``ImageRecord`` a line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..errors import UserError
from ..records import ImageRecord, atomic_write, content_hash

Sampler = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""(prompts, seeds) of equal length to one image each; an image depends on its own prompt and seed alone."""

METADATA = "metadata.jsonl"
IMAGES = "images"

_IMAGE_NAME = re.compile(r"\d{5,}-s\d+\.png")
_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")  # what atomic_write leaves behind when its process is killed


@dataclass(frozen=True, slots=True)
class _Manifest:
    """The rows of ``folder/metadata.jsonl`` by file name, and the writing of them."""

    folder: Path
    rows: dict[str, ImageRecord]

    @property
    def path(self) -> Path:
        return self.folder / METADATA

    def append(self, records: Sequence[ImageRecord]) -> None:
        """Add rows for images that are already in place, down to the disk."""
        self.rows.update((record.file_name, record) for record in records)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(record.to_json() + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, records: Sequence[ImageRecord]) -> None:
        """Replace the whole file by ``records``, in their order."""
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(record.to_json() + "\n" for record in records), "utf-8")
        self.rows.clear()
        self.rows.update((record.file_name, record) for record in records)


def generate(
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    sampler: Sampler,
    model_hash: str,
    settings: Mapping[str, Any],
    batch_size: int,
    overwrite: bool = False,
) -> list[ImageRecord]:
    """Generate one image for each of ``prompts`` under each of ``seeds`` into ``folder``; return the records in order.

    The seed goes to ``sampler`` as it stands, so an image depends neither on its batch nor on what was interrupted; the
    same seed gives the same starting noise under every prompt and every model, as a before/after comparison needs.
    Images that are recorded and in place are kept, so the same call goes on after a kill and ends in the same bytes;
    prompts may be added at the end, and seeds anywhere. ``settings`` must be JSON. Raises UserError where ``folder``
    holds the images of another run, unless ``overwrite`` says to replace them; ValueError for an empty or repeated
    request.
    """
    if not prompts or not seeds or batch_size < 1:
        raise ValueError(f"nothing to do: {len(prompts)} prompts, {len(seeds)} seeds, batch_size {batch_size}")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be distinct and not negative, got {list(seeds)}")
    settings = json.loads(json.dumps(dict(settings)))  # as they come back from the disk: tuples are lists
    wanted = [
        ImageRecord(f"{IMAGES}/{index:05d}-s{seed}.png", prompt, seed, settings, model_hash)
        for index, prompt in enumerate(prompts)
        for seed in sorted(seeds)
    ]
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    if overwrite:
        (folder / METADATA).unlink(missing_ok=True)
    manifest = _resume(folder, wanted)
    with tqdm(total=len(wanted), initial=len(manifest.rows), unit="image", desc="generate") as progress:
        # Batches are cut from the whole request, not from what is left, so that a run that was interrupted hands the
        # sampler the same batches as one that was not: GPU kernels round differently for another batch size.
        for start in range(0, len(wanted), batch_size):
            batch = [record for record in wanted[start : start + batch_size] if record.file_name not in manifest.rows]
            if batch:
                _write_images(folder, batch, sampler)
                manifest.append(batch)
                progress.update(len(batch))
    manifest.rewrite(wanted)
    _sweep(folder, keep={Path(record.file_name).name for record in wanted})
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
    records, _ = _read_rows(folder / METADATA)
    found = [(record, folder / record.file_name) for record in records]
    for record, path in found:
        if not path.is_file():
            raise UserError(f"{folder / METADATA}: {record.file_name} is missing", "run the generation again")
    if not found:
        raise UserError(f"{folder / METADATA}: holds no images", "run the generation again")
    return found


def _write_images(folder: Path, batch: Sequence[ImageRecord], sampler: Sampler) -> None:
    images = sampler([record.prompt for record in batch], [record.seed for record in batch])
    for record, image in zip(batch, images, strict=True):
        with atomic_write(folder / record.file_name) as temporary:
            image.save(temporary, format="PNG")


def _read_rows(path: Path) -> tuple[list[ImageRecord], bool]:
    """The rows of ``path``, and whether a last line was dropped because its writer was killed in the middle of it."""
    *lines, tail = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(ImageRecord.from_json(line.decode()))
        except (KeyError, ValueError, TypeError) as error:
            problem = f"{path}, line {number}: not the record of a generated image ({error!r})"
            raise UserError(problem, "mend or remove the line, or use another folder or --overwrite") from error
    return records, bool(tail)


def _resume(folder: Path, wanted: Sequence[ImageRecord]) -> _Manifest:
    """The manifest of the images of ``wanted`` that are recorded and in place; the file is cut down to these."""
    manifest = _Manifest(folder, {})
    if not manifest.path.exists():
        return manifest
    recorded, truncated = _read_rows(manifest.path)
    requested = {record.file_name: record for record in wanted}
    for record in recorded:
        _check_same_run(folder, record, requested.get(record.file_name))
    kept = {record.file_name: record for record in recorded if (folder / record.file_name).is_file()}
    if truncated or len(kept) < len(recorded):
        manifest.rewrite(list(kept.values()))
    manifest.rows.update(kept)
    return manifest


def _check_same_run(folder: Path, found: ImageRecord, wanted: ImageRecord | None) -> None:
    remedy = "use another folder, or --overwrite to replace its images"
    if wanted is None:
        raise UserError(f"{folder}: holds {found.file_name}, which this run does not ask for", remedy)
    if found.model_hash != wanted.model_hash:
        problem = f"{folder}: holds images of model {found.model_hash!r}, this run is of {wanted.model_hash!r}"
        raise UserError(problem, remedy)
    absent = "unset"
    for key in sorted({*found.settings, *wanted.settings}):
        old, new = found.settings.get(key, absent), wanted.settings.get(key, absent)
        if old != new:
            raise UserError(f"{folder}: holds images made with {key} = {old!r}, this run has {key} = {new!r}", remedy)
    if (found.prompt, found.seed) != (wanted.prompt, wanted.seed):
        problem = f"{folder}: {found.file_name} shows {found.prompt!r}, this run has {wanted.prompt!r} in that place"
        raise UserError(problem, remedy)


def _sweep(folder: Path, keep: set[str]) -> None:
    """Remove what killed writers left behind and images that no row names; files of other names are left alone."""
    for path in (folder / IMAGES).iterdir():
        if _LEFTOVER.fullmatch(path.name) or (_IMAGE_NAME.fullmatch(path.name) and path.name not in keep):
            path.unlink()
    for path in folder.glob(f".{METADATA}.*.tmp"):
        path.unlink()
