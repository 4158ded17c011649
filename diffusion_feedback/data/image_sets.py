"""Images to be judged, with their prompts, from whatever form they stand in: folders, image folders, pairs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..errors import UserError
from ..records import content_hash
from ..types import ImageItem
from .folders import find_twins
from .image_folders import is_image_name, list_images
from .images import decode_image
from .readers import find_source
from .rows import Location, PairSource, match_columns, read_image
from .tables import ParquetSource
from .tabular import find_metadata, read_table

_FILE_COLUMNS = ("file_name", "image", "path")
_PROMPT_COLUMNS = ("prompt", "caption", "text")


@dataclass(frozen=True)
class ImageFile:
    """An image in a file, read when it is needed; an ImageHandle."""

    path: Path

    @cached_property
    def key(self) -> str:
        """Content hash of the bytes. Raises UserError for a file that cannot be read."""
        return content_hash(self._read())

    def open(self) -> Image.Image:
        """Decode to RGB. Raises UserError for a file that is no image, or has changed since its hash was taken."""
        return decode_image(self.read(), str(self.path))

    def read(self) -> bytes:
        """The encoded bytes. Raises UserError for a file that is gone, or has changed since its hash was taken."""
        data = self._read()
        if content_hash(data) != self.key:
            raise UserError(f"{self.path}: the image has changed since the run began", "start the run again")
        return data

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})", "put the image in its place") from error


@dataclass(frozen=True, slots=True)
class PairImage:
    """One image of a row of pairs, read again from its ``location`` when it is opened; an ImageHandle."""

    source: PairSource
    location: Location
    side: int
    name: str
    key: str

    def open(self) -> Image.Image:
        """Decode to RGB. Raises UserError for bytes that are no image, or have changed since their hash was taken."""
        return decode_image(self.read(), self.name)

    def read(self) -> bytes:
        """The encoded bytes. Raises UserError where they have changed since their hash was taken."""
        data = self.source.images(self.location)[self.side]
        if content_hash(data) != self.key:
            raise UserError(f"{self.name}: the image has changed since the run began", "start the run again")
        return data


def encoded_bytes(item: ImageItem) -> bytes:
    """The bytes of an ``item`` of ``open_images``, as they stand on disk. Raises UserError where they have changed."""
    assert isinstance(item.handle, ImageFile | PairImage)
    return item.handle.read()


def files_of_pairs(items: Sequence[ImageItem]) -> set[Path]:
    """The parquet files, in full, that pairs among ``items`` are read from."""
    sources = {id(item.handle.source): item.handle.source for item in items if isinstance(item.handle, PairImage)}
    return {file.resolve() for source in sources.values() if isinstance(source, ParquetSource) for file in source.files}


def open_images(
    path: str | Path, *, prompts: Sequence[str] | None = None, split: str = "train", revision: str | None = None
) -> list[ImageItem]:
    """The images of ``path`` with their prompts, by name; no image is decoded.

    An image folder whose metadata.jsonl or metadata.csv names ``file_name`` and ``prompt`` (``dfb generate`` writes
    such folders); a plain folder of JPEG, PNG or WebP files with the prompt in ``<stem>.txt`` beside each, or in
    ``prompts``, one for each file in the order of the names; or preference pairs in any form that ``open_pairs`` reads,
    labelled or not, both images of a row. A prompt that stands nowhere is "".
    Raises UserError for a folder without images, a broken row, a file that is missing, or prompts of another number.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        metadata = find_metadata(folder)
        if metadata is not None and _names_one_image(metadata):
            items = list(_listed(metadata))
        elif metadata is None and find_twins(folder) is None and (files := list_images(folder).paths):
            return _plain(folder, files, prompts)
        else:
            items = _of_pairs(str(folder), split, revision)
    elif folder.is_file() and is_image_name(folder):
        return _plain(folder.parent, [folder], prompts)
    else:
        items = _of_pairs(str(path), split, revision)
    if prompts is not None:
        raise UserError(f"{path}: names its own prompts", "leave --prompts out, or give a plain folder of images")
    if not items:
        raise UserError(f"{path}: holds no images", "give a folder of images or preference pairs")
    return items


def _names_one_image(metadata: Path) -> bool:
    first = next(read_table(metadata), None)
    return first is not None and any(name in first[1] for name in _FILE_COLUMNS)


def _listed(metadata: Path) -> Iterator[ImageItem]:
    """The rows of a metadata file. Raises UserError for a row without its file or a file that stands in two rows."""
    columns = None
    seen: dict[str, int] = {}
    for number, cells in read_table(metadata):
        where = f"{metadata}, line {number}"
        columns = columns or match_columns({"file": _FILE_COLUMNS}, list(cells), str(metadata))
        name = cells.get(columns["file"])
        if not isinstance(name, str) or not os.path.isfile(metadata.parent / name):  # False for a name that cannot be
            raise UserError(f"{where}: {name!r} is missing", "put the image in its place, or remove the line")
        plain = os.path.normpath(name)
        if plain in seen:
            raise UserError(f"{where}: {name} stands in line {seen[plain]} too", "remove one of the lines")
        seen[plain] = number
        prompt = next((cells[column] for column in _PROMPT_COLUMNS if cells.get(column) is not None), "")
        if not isinstance(prompt, str):
            raise UserError(f"{where}: found {prompt!r}, not a prompt", "give the prompt as text")
        yield ImageItem(name, prompt.strip(), ImageFile(metadata.parent / name))


def _plain(folder: Path, files: Sequence[Path], prompts: Sequence[str] | None) -> list[ImageItem]:
    if prompts is not None and len(prompts) != len(files):
        problem = f"{folder}: {len(files)} images, and {len(prompts)} prompts"
        raise UserError(problem, "give one prompt for each image, in the order of the file names")
    texts = prompts if prompts is not None else [_caption(file) for file in files]
    cells = zip(files, texts, strict=True)
    return [ImageItem(file.relative_to(folder).as_posix(), text.strip(), ImageFile(file)) for file, text in cells]


def _caption(image: Path) -> str:
    file = image.with_suffix(".txt")
    try:
        return file.read_text("utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})", "write the prompt into a file of text") from error


def _of_pairs(name: str, split: str, revision: str | None) -> list[ImageItem]:
    source = find_source(name, split=split, revision=revision, streaming=False)
    items: list[ImageItem] = []
    for row in tqdm(source.rows(), desc=f"reading {name}", total=source.num_rows, unit="row", mininterval=0.5):
        prompt = row.values.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{row.where('prompt')}: found {prompt!r}, not a caption", "mend or remove the row")
        assert row.location is not None
        for side, field in enumerate(("image_0", "image_1")):
            data = read_image(row.values.get(field), row.folder, row.where(field))
            where = f"{row.source}, image {side}"
            handle = PairImage(source, row.location, side, where, content_hash(data))
            items.append(ImageItem(where, prompt.strip(), handle))
    return items
