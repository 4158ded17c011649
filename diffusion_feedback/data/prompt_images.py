"""The images that were made from a list of prompts, found by their place in a folder or by the prompt they name."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..records import PromptRecord
from ..types import ImageItem
from .image_folders import list_images
from .image_handles import ImageFile
from .tabular import find_metadata, read_table

_PROMPT_COLUMNS = ("prompt", "caption", "text")
_PLACE = re.compile(r"(?:(?P<style>[^/]+)/)?(?P<index>\d{5,})\.\w+")


@dataclass(frozen=True, slots=True)
class PromptImages:
    """``images[i]`` are the images of prompt i, none where it is missing.

    ``missing`` says of each prompt without an image what was looked for, and names the files of other prompts that
    metadata lists and that are not there; ``unused`` counts images of no prompt.
    """

    images: tuple[tuple[ImageItem, ...], ...]
    missing: tuple[str, ...]
    unused: int


def find_images(folder: Path, prompts: Sequence[PromptRecord]) -> PromptImages:
    """Find the images of ``prompts`` under ``folder``; nothing is decoded.

    A folder with metadata.jsonl or metadata.csv (``file_name``, ``prompt``) is matched by prompt; a prompt may have
    several images, and a prompt that stands twice takes an equal share of its images each time, in the file's order.
    Without one, the image of a prompt is ``<style>/00007.png`` with its place within its style, counted from 0, or
    ``00007.png`` with its place among all. PNG, JPEG and WebP. Raises UserError for a folder without images, two images
    in one place, an image that metadata names twice, and one whose metadata names another prompt than the one of its
    place.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "give a folder of images")
    metadata = find_metadata(folder)
    found = _by_prompt(metadata, prompts) if metadata is not None else _by_place(folder, prompts)
    if not any(found.images):
        where = metadata or folder
        example = found.missing[0] if found.missing else "00000.png"
        raise UserError(f"{where}: holds no image of the benchmark's prompts", f"the first would be {example}")
    return found


def _places(prompts: Sequence[PromptRecord], is_by_style: bool) -> Iterator[tuple[str, int]]:
    """(style, index within it) of each prompt; ("", index) where the folder is not split by style."""
    counts: dict[str, int] = defaultdict(int)
    for prompt in prompts:
        style = str(prompt.extra.get("style", "")) if is_by_style else ""
        yield style, counts[style]
        counts[style] += 1


def _by_place(folder: Path, prompts: Sequence[PromptRecord]) -> PromptImages:
    styles = {str(prompt.extra.get("style", "")) for prompt in prompts} - {""}
    is_by_style = any((folder / style).is_dir() for style in styles)
    files: dict[tuple[str, int], str] = {}
    for root in [folder / style for style in sorted(styles)] if is_by_style else [folder]:
        for name in list_images(root, recursive=False).names if root.is_dir() else ():
            if match := _PLACE.fullmatch(name):
                place = (root.name if is_by_style else "", int(match["index"]))
                if place in files:
                    raise UserError(f"{root}: both {Path(files[place]).name} and {name}", "keep one of the two")
                files[place] = f"{root.name}/{name}" if is_by_style else name
    images, missing = [], []
    for prompt, (style, index) in zip(prompts, _places(prompts, is_by_style), strict=True):
        found = files.pop((style, index), None)
        images.append((ImageItem(found, prompt.prompt, ImageFile(folder / found)),) if found else ())
        if not found:
            missing.append(f"{style}/{index:05d}.png" if style else f"{index:05d}.png")
    return PromptImages(tuple(images), tuple(missing), len(files))


def _by_prompt(metadata: Path, prompts: Sequence[PromptRecord]) -> PromptImages:
    by_prompt: dict[str, list[str]] = defaultdict(list)
    seen: dict[str, int] = {}
    gone: list[tuple[str, str]] = []
    expected = {place: prompt.prompt for place, prompt in zip(_places(prompts, True), prompts, strict=True) if place[0]}
    for number, cells in read_table(metadata):
        where = f"{metadata}, line {number}"
        name, prompt = cells.get("file_name"), next((cells[c] for c in _PROMPT_COLUMNS if c in cells), None)
        if not isinstance(name, str) or not isinstance(prompt, str):
            raise UserError(f"{where}: no file_name or no prompt", "name the image and its prompt in every line")
        match = _PLACE.fullmatch(name)
        place = (match["style"] or "", int(match["index"])) if match else ("", 0)
        if expected.get(place, prompt.strip()) != prompt.strip():
            problem = f"{where}: {name} shows {prompt.strip()!r}, the benchmark has {expected[place]!r} in that place"
            raise UserError(problem, "generate the image from the benchmark's prompt")
        plain = os.path.normpath(name)
        if plain in seen:
            problem = f"{where}: {name} stands in line {seen[plain]} too"
            raise UserError(problem, "an image is of one prompt: remove one of the lines")
        seen[plain] = number
        if os.path.isfile(metadata.parent / name):  # False for a name that cannot be, too
            by_prompt[prompt.strip()].append(name)
        else:
            gone.append((name, prompt.strip()))
    times: dict[str, int] = defaultdict(int)
    for record in prompts:
        times[record.prompt] += 1
    shares = {text: max(1, len(names) // max(1, times[text])) for text, names in by_prompt.items()}
    images, missing = [], []
    for record in prompts:
        names = by_prompt.get(record.prompt, [])
        own, by_prompt[record.prompt] = names[: shares.get(record.prompt, 1)], names[shares.get(record.prompt, 1) :]
        images.append(tuple(ImageItem(name, record.prompt, ImageFile(metadata.parent / name)) for name in own))
        if not own:
            missing.append(f"an image of {record.prompt!r}")
    # A prompt that keeps some of its images would get another mean without a word.
    named = {record.prompt for record, own in zip(prompts, images, strict=True) if own}
    missing += [f"{name} of {prompt!r}" for name, prompt in gone if prompt in named]
    return PromptImages(tuple(images), tuple(missing), sum(map(len, by_prompt.values())))
