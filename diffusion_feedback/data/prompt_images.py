"""The images that were made from a list of prompts, found by their place in a folder or by the prompt they name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, plural
from ..records import PromptRecord
from ..types.images import ImageItem
from .image_folders import list_images, natural_order
from .image_handles import ImageFile
from .image_metadata import read_image_rows
from .rows import listed
from .tabular import find_metadata

_PLACE = re.compile(r"(?P<index>\d+)(?:[-_]s?(?P<sample>\d+))?\.\w+")


@dataclass(frozen=True, slots=True)
class PromptImages:
    """``images[i]`` are the images of prompt i, none where it is missing.

    ``missing`` says of each prompt without an image what was looked for, and names the files of other prompts that
    are not there, since means of fewer images are other means; ``left`` are images of no prompt; ``note`` says what
    else was passed over.
    """

    images: tuple[tuple[ImageItem, ...], ...]
    missing: tuple[str, ...]
    left: tuple[str, ...]
    note: str = ""

    @property
    def unused(self) -> int:
        """The number of images of no prompt."""
        return len(self.left)


def find_images(folder: Path, prompts: Sequence[PromptRecord], read: Sequence[PromptRecord] = ()) -> PromptImages:
    """Find the images of ``prompts`` under ``folder``; nothing is decoded.

    ``read`` are the prompts of the file, where ``prompts`` are fewer because repetitions were left out: places count
    these, and a prompt has the images of all of its places. A folder with a metadata table (``file_name``, ``prompt``)
    is matched by prompt; a prompt may have several images, and one that stands twice in ``prompts`` takes an equal share
    of its images each time, in the file's order. Without one, the image of a prompt is ``<style>/00007.png`` with its
    place within its style, counted from 0, or ``00007.png`` with its place among all; with several images a prompt,
    ``00007_0.png``, ``00007_1.png``. Raises UserError for a folder without images, two images in one place, numbers
    that count from 1, an image of two prompts, and one whose metadata names another prompt than the one of its place.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "give a folder of images")
    metadata = find_metadata(folder)
    read = read or prompts
    matched = _by_prompt(metadata, prompts, read) if metadata is not None else _by_place(folder, prompts, read)
    if not any(matched.images):
        where = metadata or folder
        example = matched.missing[0] if matched.missing else "00000.png"
        note = f" ({matched.note})" if matched.note else ""
        raise UserError(f"{where}: holds no image of the benchmark's prompts{note}", f"the first would be {example}")
    return matched


def _places(prompts: Sequence[PromptRecord], is_by_style: bool) -> Iterator[tuple[str, int]]:
    """(style, index within it) of each prompt; ("", index) where the folder is not split by style."""
    counts: dict[str, int] = defaultdict(int)
    for prompt in prompts:
        style = str(prompt.extra.get("style", "")) if is_by_style else ""
        yield style, counts[style]
        counts[style] += 1


def _owners(prompts: Sequence[PromptRecord], read: Sequence[PromptRecord]) -> list[int]:
    """For each of the prompts that were ``read`` its index among ``prompts``, which repetitions are left out of."""
    if len(read) == len(prompts):
        return list(range(len(prompts)))
    index = {record.prompt: number for number, record in enumerate(prompts)}
    return [index[record.prompt] for record in read]


def _by_place(folder: Path, prompts: Sequence[PromptRecord], read: Sequence[PromptRecord]) -> PromptImages:
    styles = {str(prompt.extra.get("style", "")) for prompt in read} - {""}
    is_by_style = any((folder / style).is_dir() for style in styles)
    roots = [folder / style for style in sorted(styles)] if is_by_style else [folder]
    listings = [list_images(root, recursive=False) for root in roots if root.is_dir()]
    files: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    left = []
    for listing in listings:
        style = listing.folder.name if is_by_style else ""
        for name in listing.names:
            full = f"{style}/{name}" if style else name
            match = _PLACE.fullmatch(name)
            if match is None:
                left.append(full)
                continue
            samples = files[style, int(match["index"])]
            if other := [
                samples[own] for own in samples if own == match["sample"] or "" in (own, match["sample"] or "")
            ]:
                raise UserError(f"{listing.folder}: both {Path(other[0]).name} and {name}", "keep one of the two")
            samples[match["sample"] or ""] = full
    places = list(_places(read, is_by_style))
    _check_start(folder, places, set(files))
    images: list[list[ImageItem]] = [[] for _ in prompts]
    missing = []
    most = max((len(files[place]) for place in places if place in files), default=1)
    for owner, (style, index) in zip(_owners(prompts, read), places, strict=True):
        names = natural_order(files.pop((style, index), {}).values())
        images[owner] += [ImageItem(name, prompts[owner].prompt, ImageFile(folder / name)) for name in names]
        if len(names) < most:
            place = f"{style}/{index:05d}" if style else f"{index:05d}"
            missing.append(f"{place}.png" if not names else f"{place}: {len(names)} of {most} images")
    left += [name for samples in files.values() for name in samples.values()]
    notes = "; ".join(listing.note for listing in listings if listing.note)
    return PromptImages(tuple(map(tuple, images)), tuple(missing), tuple(natural_order(left)), notes)


def _check_start(folder: Path, places: Sequence[tuple[str, int]], present: set[tuple[str, int]]) -> None:
    """Raise UserError where the images are numbered from 1: each would be taken for that of the next prompt."""
    for style in {style for style, _ in places}:
        number = 1 + max(index for own, index in places if own == style)
        if (style, number) in present and (style, 0) not in present and number > 1:
            problem = f"{folder / style}: its images are numbered from 1 to {number}"
            raise UserError(problem, "number them from 0, as places in the list of prompts are counted")


def _by_prompt(metadata: Path, prompts: Sequence[PromptRecord], read: Sequence[PromptRecord]) -> PromptImages:
    by_prompt: dict[str, list[str]] = defaultdict(list)
    files: dict[str, Path] = {}
    seen: dict[str, str] = {}
    gone: list[tuple[str, str]] = []
    expected = {place: prompt.prompt for place, prompt in zip(_places(read, True), read, strict=True) if place[0]}
    for row in read_image_rows(metadata):
        prompt = row.prompts[0]
        if not prompt:
            raise UserError(f"{row.where}: no prompt", "name the image and its prompt in every line")
        style, _, base = row.name.rpartition("/")
        match = _PLACE.fullmatch(base)
        place = (style, int(match["index"])) if match else ("", 0)
        if expected.get(place, prompt) != prompt:
            problem = f"{row.where}: {row.name} shows {prompt!r}, the benchmark has {expected[place]!r} in that place"
            raise UserError(problem, "generate the image from the benchmark's prompt")
        if row.key in seen or len(row.prompts) > 1:
            where = f"{row.name} stands in {seen.get(row.key, 'a list of prompts')} too"
            raise UserError(f"{row.where}: {where}", "an image is of one prompt here: remove one of the two")
        seen[row.key] = row.where.rpartition(", ")[2]
        files[row.name] = row.file
        if row.is_there:
            by_prompt[prompt].append(row.name)
        else:
            gone.append((row.name, prompt))
    times: dict[str, int] = defaultdict(int)
    for record in prompts:
        times[record.prompt] += 1
    shares = {text: max(1, len(names) // max(1, times[text])) for text, names in by_prompt.items()}
    images, missing = [], []
    for record in prompts:
        names, share = by_prompt.get(record.prompt, []), shares.get(record.prompt, 1)
        own, by_prompt[record.prompt] = names[:share], names[share:]
        images.append(tuple(ImageItem(name, record.prompt, ImageFile(files[name])) for name in own))
        if not own:
            missing.append(f"an image of {record.prompt!r}")
    # A prompt that keeps some of its images would get another mean without a word.
    named = {record.prompt for record, own in zip(prompts, images, strict=True) if own}
    missing += [f"{name} of {prompt!r}" for name, prompt in gone if prompt in named]
    left = natural_order(name for names in by_prompt.values() for name in names)
    unlisted = [name for name in list_images(metadata.parent).names if name not in seen]
    note = (
        f"{metadata}: does not list {plural(len(unlisted), 'image')} of the folder: {listed(unlisted)}"
        if unlisted
        else ""
    )
    return PromptImages(tuple(images), tuple(missing), tuple(left), note)
