"""Folders as benchmarks of images write them, where the prompt stands: GenEval's, T2I-CompBench's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import UserError, plural
from ..prompts import prompt_column
from ..prompts.rows import read_lines
from .image_folders import FolderImages, list_images, natural_order
from .image_metadata import FILE_COLUMNS
from .image_prompts import Pairing

_METADATA = "metadata.jsonl"
_SAMPLES = "samples"
_PROMPT_IN_NAME = re.compile(r"(?P<prompt>.*\s.*)_\d{6}")  # a prompt of one word would look like IMG_000001
_GRID = re.compile(r"(?P<prompt>.*)-grid-\d{4,}")


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """Images with their prompts, names relative to the folder, and a line on what was found and left out."""

    pairs: list[Pairing]
    note: str


def read_geneval(folder: Path) -> FolderLayout | None:
    """``00000/metadata.jsonl`` with ``00000/samples/0000.png``, or one such folder; None for any other folder.

    ``grid.png`` and whatever else lies outside of samples/ is left out. Raises UserError for a prompt that is not there.
    """
    places = [folder] if _is_geneval(folder) else [place for place in _folders(folder) if _is_geneval(place)]
    if not places:
        return None
    pairs: list[Pairing] = []
    for place in places:
        prompt = _geneval_prompt(place / _METADATA)
        root = place.relative_to(folder) / _SAMPLES
        pairs += [((root / name).as_posix(), prompt) for name in list_images(place / _SAMPLES).names]
    taken = {name for name, _ in pairs}
    left = [name for name in list_images(folder).names if name not in taken]
    rest = f"; {plural(len(left), 'image')} outside of {_SAMPLES}/ left out, the first: {left[0]}" if left else ""
    return FolderLayout(pairs, f"{folder}: GenEval's layout, {len(places)} prompts{rest}")


def _is_geneval(folder: Path) -> bool:
    if not (folder / _METADATA).is_file() or not (folder / _SAMPLES).is_dir():
        return False
    first = next(read_lines(folder / _METADATA), None)
    return first is not None and not {name.lower() for name in first[1]} & set(FILE_COLUMNS)


def _geneval_prompt(metadata: Path) -> str:
    rows = list(read_lines(metadata))
    if len(rows) != 1:
        raise UserError(f"{metadata}: {len(rows)} lines", "give the one line of the prompt of this folder")
    cells = rows[0][1]
    prompt = cells[prompt_column(list(cells), f"{metadata}, line 1")]
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{metadata}, line 1: found {prompt!r}, not a prompt", "give the prompt as text")
    return prompt.strip()


def prompts_in_names(images: FolderImages) -> FolderLayout | None:
    """T2I-CompBench's ``a red bench and a blue car_000003.png``; None unless every image but grids is named so."""
    grids = [name for name in images.names if _GRID.fullmatch(PurePath(name).stem)]
    names = [name for name in images.names if name not in set(grids)]
    matches = [_PROMPT_IN_NAME.fullmatch(PurePath(name).stem) for name in names]
    pairs = [(name, match["prompt"].strip()) for name, match in zip(names, matches, strict=True) if match is not None]
    if not names or len(pairs) < len(names):
        return None
    rest = f"; {plural(len(grids), 'grid is', 'grids are')} left out" if grids else ""
    example = f"{pairs[0][0]} -> {pairs[0][1]!r}"
    return FolderLayout(pairs, f"{images.folder}: prompts read from the names of the files, as {example}{rest}")


def _folders(folder: Path) -> Iterator[Path]:
    names = [place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith(".")]
    return (folder / name for name in natural_order(names))
