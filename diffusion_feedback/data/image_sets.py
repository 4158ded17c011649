"""Images to be judged, with their prompts, from whatever form they stand in: folders, image folders, pairs."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UserError, plural
from ..progress import progress
from ..records import PromptRecord, content_hash
from ..types.images import ImageItem
from .captions import caption_beside
from .columns import ColumnNames, Columns, column_names
from .folders import find_twins
from .image_folders import METADATA_NAMES, FolderImages, is_image_name, list_images, natural_order
from .image_handles import ImageFile, PairImage
from .image_layouts import prompts_in_names, read_geneval
from .image_metadata import names_one_image, read_image_rows
from .image_prompts import join_prompts
from .pair_layouts import KNOWN_COLUMNS
from .places import is_glob, is_saved, user_path
from .readers import find_source
from .rows import SIDES, BadRow, PairSource, caption_of, listed, read_image
from .tabular import find_metadata, find_votes, is_table


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images with their prompts in order, and ``notes`` on how both were found and what was passed over.

    ``groups`` are the folders that means are printed for, one for each item; "" where there is one folder alone.
    """

    items: list[ImageItem]
    notes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    @property
    def folders(self) -> dict[tuple[str, str], str]:
        """The group of each (name, prompt)."""
        groups = self.groups or [""] * len(self.items)
        return {(item.name, item.prompt): group for item, group in zip(self.items, groups, strict=True)}


def open_images(path: str | Path, prompts: Sequence[PromptRecord | str] | None = None) -> list[ImageItem]:
    """The images of ``path`` with their prompts, as ``open_image_set`` finds them, without its notes."""
    return open_image_set([str(path)], prompts=prompts).items


def open_image_set(
    paths: Sequence[str],
    *,
    prompts: Sequence[PromptRecord | str] | None = None,
    prompt: str | None = None,
    split: str = "train",
    revision: str | None = None,
    columns: Columns = None,
) -> ImageSet:
    """The images of all ``paths`` with their prompts; no image is decoded.

    A path is an image folder whose metadata.jsonl or metadata.csv names ``file_name`` and ``prompt`` (generated
    images stand so), or a folder of such folders; GenEval's or T2I-CompBench's folders; a plain folder of images
    with the prompt in ``<stem>.txt`` beside each, in ``prompts`` (see ``join_prompts``; for each folder separately), or the one
    ``prompt``; a single image; a glob of any of these; or preference pairs in any form that ``open_pairs`` reads,
    labelled or not, both images of a row, with ``columns`` as there. A prompt that stands nowhere is "". Of several paths, names begin with the
    path. Raises UserError for a path without images, a broken row, a file that is missing, and prompts that do not fit.
    """
    records = None
    if prompts is not None:
        records = [PromptRecord(text, {}) if isinstance(text, str) else text for text in prompts]
    if records is not None and not records:
        raise UserError("no prompts", "give one prompt for each image")
    request = _Request(records, prompt, split, revision, column_names(columns, KNOWN_COLUMNS))
    places = [place for path in paths for place in _expand(path)]
    files = [user_path(place) for place in places if _is_image(place)]
    sets: list[ImageSet] = []
    if files:
        # Neither a glob nor a folder among them, nor prompts that go by the order of names.
        in_order = records is None and places == list(paths) and len(files) == len(places)
        sets.append(_of_files(files, request, in_order=in_order))
    sets += [_open(place, request) for place in places if not _is_image(place)]
    if len(places) > 1 and len(sets) > 1:
        names = [*([""] if files else []), *(place for place in places if not _is_image(place))]
        sets = [_named(one, place) for one, place in zip(sets, names, strict=True)]
    items = [item for one in sets for item in one.items]
    _check_once(items)
    notes = tuple(note for one in sets for note in one.notes if note)
    groups = [group for one in sets for group in one.groups or [""] * len(one.items)]
    return ImageSet(items, notes, tuple(groups))


@dataclass(frozen=True, slots=True)
class _Request:
    """What the caller says besides the path."""

    prompts: Sequence[PromptRecord] | None
    prompt: str | None
    split: str
    revision: str | None
    names: ColumnNames

    @property
    def is_empty(self) -> bool:
        """Whether no prompts are given."""
        return self.prompts is None and self.prompt is None

    def refuse(self, path: str | Path) -> None:
        """Raise UserError where prompts are given for images that have their own."""
        if not self.is_empty:
            name = "prompts" if self.prompts is not None else "prompt"
            raise UserError(f"{path}: names its own prompts", f"leave `{name}` out, or give a plain folder of images")


def _expand(path: str) -> list[str]:
    """``path``, or what a glob of images or folders stands for; globs of pairs are left to their reader."""
    if user_path(path).exists() or not is_glob(path):
        return [path]
    paths = natural_order(glob.glob(str(user_path(path)), recursive=True))
    if not paths and is_image_name(path):
        raise UserError(f"{path}: no file has such a name", "check the path")
    return [path] if not paths or all(name.endswith(".parquet") for name in paths) else paths


def _is_image(path: str) -> bool:
    return is_image_name(path) and not user_path(path).is_dir()


def _named(image_set: ImageSet, place: str) -> ImageSet:
    """``image_set`` with names that begin with the path, as given, so that those of several folders differ."""
    is_pairs = any(isinstance(item.handle, PairImage) for item in image_set.items)
    root = place.rstrip("/")
    if not root or is_pairs:
        return ImageSet(image_set.items, image_set.notes, (root or "single images",) * len(image_set.items))
    items = [replace(item, name=f"{root}/{item.name}") for item in image_set.items]
    return ImageSet(items, image_set.notes, (root,) * len(items))


def _check_once(items: Sequence[ImageItem]) -> None:
    seen: set[tuple[str, str]] = set()
    for item in items:
        # A picture given by its own name and by that of its folder has two names.
        place = os.path.abspath(item.handle.path) if isinstance(item.handle, ImageFile) else item.name
        if (place, item.prompt) in seen:
            raise UserError(f"{item.name}: is given twice", "give every image once")
        seen.add((place, item.prompt))


# --- one path --------------------------------------------------------------------------------------------------------


def _open(path: str, request: _Request) -> ImageSet:
    place = user_path(path)
    if place.is_dir():
        return _of_folder(place, request)
    if not request.is_empty and not place.exists() and not is_glob(path):
        raise UserError(f"{path}: no such file or folder", "check the path; a data set of the hub has its own prompts")
    if (
        place.is_file()
        and not request.names.theirs
        and (is_table(place) or place.name in METADATA_NAMES)
        and names_one_image(place)
    ):
        request.refuse(path)
        return _of_metadata(place)
    return _of_pairs(path, request)


def _of_folder(folder: Path, request: _Request) -> ImageSet:
    metadata = find_metadata(folder)
    if metadata is not None and not request.names.theirs and names_one_image(metadata):
        request.refuse(folder)
        return _of_metadata(metadata)
    if (layout := read_geneval(folder)) is not None:
        request.refuse(folder)
        items = [ImageItem(name, prompt, ImageFile(folder / name)) for name, prompt in layout.pairs]
        if not items:
            raise UserError(f"{layout.note}, and no image", "put the images in their places")
        return ImageSet(items, (layout.note,))
    if all(find(folder) is None for find in (find_metadata, find_votes, find_twins)) and not is_saved(folder):
        contents = list_images(folder)
        if subfolders := _with_metadata(folder):
            request.refuse(folder)
            return _of_subfolders(folder, subfolders, contents)
        if contents.names:
            return _plain(contents, request)
        if not any(folder.rglob("*.parquet")):
            remedy = "give a folder of images, or preference pairs: a parquet file, or a folder in a form of pairs"
            note = f" ({contents.note})" if contents.note else ""
            raise UserError(f"{folder}: no images, and no pairs in this folder{note}", remedy)
    return _of_pairs(str(folder), request)


def _of_pairs(path: str, request: _Request) -> ImageSet:
    request.refuse(path)
    where: dict[str, Any] = {"split": request.split, "revision": request.revision, "names": request.names}
    source = find_source(path, streaming=False, **where)
    if not (items := images_of_pairs(source, path)):
        raise UserError(f"{path}: holds no images", "give a folder of images or preference pairs")
    return ImageSet(items)


def _with_metadata(folder: Path) -> list[Path]:
    """The subfolders that are image folders of their own, such as one for each model."""
    places = [place.parent for name in METADATA_NAMES for place in folder.glob(f"*/{name}") if names_one_image(place)]
    names = natural_order({place.name for place in places if not place.name.startswith(".")})
    return [folder / name for name in names]


def _of_subfolders(folder: Path, subfolders: Sequence[Path], contents: FolderImages) -> ImageSet:
    sets = [_of_metadata(metadata) for place in subfolders if (metadata := find_metadata(place)) is not None]
    items = [
        replace(item, name=f"{place.name}/{item.name}")
        for place, one in zip(subfolders, sets, strict=True)
        for item in one.items
    ]
    inside = {place.name for place in subfolders}
    loose = [name for name in contents.names if name.partition("/")[0] not in inside]
    note = f"{folder}: {len(subfolders)} folders with metadata of their own"
    if loose:
        note += f"; {plural(len(loose), 'image')} outside of them left out, the first: {loose[0]}"
    groups = [place.name for place, one in zip(subfolders, sets, strict=True) for _ in one.items]
    return ImageSet(items, (note, *(n for one in sets for n in one.notes)), tuple(groups if len(sets) > 1 else ()))


def _of_metadata(metadata: Path) -> ImageSet:
    items: list[ImageItem] = []
    for row in read_image_rows(metadata):
        if not row.is_there:
            raise UserError(f"{row.where}: {row.name!r} is missing", "put the image in its place, or remove the line")
        items += [ImageItem(row.name, prompt, ImageFile(row.file)) for prompt in row.prompts]
    if not items:
        raise UserError(f"{metadata}: holds no images", "name an image in each line")
    folder = metadata.parent
    named = {os.path.normpath(item.name) for item in items}
    left = [name for name in list_images(folder).names if os.path.normpath(name) not in named]
    notes = []
    if left:
        notes.append(f"{metadata}: lists {len(named)} images; {len(left)} of the folder are not listed: {listed(left)}")
    if others := [name for name in METADATA_NAMES if name != metadata.name and (folder / name).is_file()]:
        notes.append(f"{folder}: {metadata.name} is read, {others[0]} beside it is not")
    return ImageSet(items, tuple(notes))


def _plain(contents: FolderImages, request: _Request) -> ImageSet:
    folder = contents.folder
    note = ""
    if request.prompts is not None:
        pairs, note = join_prompts(folder, contents.names, request.prompts)
    elif request.prompt is not None:
        pairs = [(name, request.prompt.strip()) for name in contents.names]
    else:
        pairs = [(name, caption_beside(folder / name) or "") for name in contents.names]
        if not any(prompt for _, prompt in pairs) and (layout := prompts_in_names(contents)) is not None:
            pairs, note = layout.pairs, layout.note
    captions = [name for name in contents.names if (folder / name).with_suffix(".txt").is_file()]
    over = ""
    if captions and not request.is_empty:
        over = (
            f"{folder}: the prompts that are given are taken, not those in {len(captions)} .txt files beside the images"
        )
    items = [ImageItem(name, prompt, ImageFile(folder / name)) for name, prompt in pairs]
    tops = [name.partition("/")[0] if "/" in name else "." for name, _ in pairs]
    return ImageSet(items, (contents.note, over, note), tuple(tops) if len(set(tops)) > 1 else ())


def _of_files(files: Sequence[Path], request: _Request, *, in_order: bool) -> ImageSet:
    """Images that are named one by one: ``in_order`` as they are given, else in natural order."""
    if absent := [path for path in files if not os.path.lexists(path)]:
        raise UserError(f"{absent[0]}: no such file or folder", "check the path")
    if len(files) == 1:
        return _plain(FolderImages(files[0].parent, [files[0].name]), request)
    names = [path.as_posix() for path in files]
    names = names if in_order else natural_order(names)
    if len(set(names)) < len(names):
        raise UserError(f"{next(n for n in names if names.count(n) > 1)}: is given twice", "give every image once")
    one = _plain(FolderImages(Path(), names), request)
    return ImageSet(one.items, one.notes)


def images_of_pairs(source: PairSource, name: str) -> list[ImageItem]:
    """The two images of each row of pairs, labelled or not, row by row.

    Raises UserError for a row without a caption or an image.
    """
    items: list[ImageItem] = []
    for row in progress(source.rows(), desc=f"reading {name}", total=source.num_rows, unit="row", mininterval=0.5):
        try:
            prompt = caption_of(row).strip()
            keys = [content_hash(read_image(row.values.get(side), row.folder, row.where(side))) for side in SIDES]
        except BadRow as error:  # whose remedy is that of readers, which can leave rows out
            raise UserError(error.problem, "correct or remove the row") from error
        assert row.location is not None
        for side, key in enumerate(keys):
            where = f"{row.source}, image {side}"
            items.append(ImageItem(where, prompt, PairImage(source, row.location, side, where, key)))
    return items
