"""Pairs in folders: images with ``metadata.jsonl`` or ``metadata.csv``, and twin folders chosen/ and rejected/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..prompts.rows import read_table
from .image_folders import list_images, natural_order
from .rows import Location, Row, match_columns, read_image

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
TWINS = (("chosen", "rejected"), ("win", "lose"), ("w", "l"))

_METADATA = {
    "prompt": ("caption", "prompt"),
    "image_0": ("image_0_file_name", "jpg_0_file_name"),
    "image_1": ("image_1_file_name", "jpg_1_file_name"),
    "label_0": ("label_0",),
}
_CAPTION_FILES = ("captions.jsonl", "metadata.jsonl")
_CAPTIONS = {"file": ("file_name",), "prompt": ("caption", "prompt", "text")}


def find_metadata(folder: Path) -> Path | None:
    """The metadata file of an image folder, if there is one."""
    return next((folder / name for name in METADATA_NAMES if (folder / name).is_file()), None)


def find_twins(folder: Path) -> tuple[Path, Path] | None:
    """The folders of chosen and of rejected images under ``folder``, if there are such."""
    pairs = ((folder / chosen, folder / rejected) for chosen, rejected in TWINS)
    return next(((chosen, rejected) for chosen, rejected in pairs if chosen.is_dir() and rejected.is_dir()), None)


@dataclass(frozen=True)
class ImageFolderSource:
    """A folder whose ``metadata`` file names two images and a label a row; a location is the two file names."""

    metadata: Path

    @property
    def format(self) -> str:
        """The format in words."""
        return f"image folder with {self.metadata.name}"

    @cached_property
    def num_rows(self) -> int:
        """Rows of the metadata file."""
        return sum(1 for _ in read_table(self.metadata))

    def rows(self) -> Iterator[Row]:
        """Every row of the metadata file. Raises UserError for a broken line, or a column that the first row lacks."""
        columns: Mapping[str, str] | None = None
        for number, cells in read_table(self.metadata):
            if columns is None:
                columns = match_columns(_METADATA, list(cells), str(self.metadata))
            values = {name: cells.get(column) for name, column in columns.items()}
            location = (str(values["image_0"]), str(values["image_1"]))
            yield Row(f"{self.metadata}, line {number}", values, columns, location, self.metadata.parent)

    def images(self, location: Location) -> tuple[bytes, bytes]:
        """The two images of the file names in ``location``."""
        folder = self.metadata.parent
        first, second = (read_image(str(name), folder, str(self.metadata)) for name in location)
        return first, second


@dataclass(frozen=True)
class TwinFolderSource:
    """Two folders with images of the same stems, chosen and rejected; a location is the two paths.

    Captions stand in ``<stem>.txt`` beside the chosen image, or in ``captions.jsonl`` (``file_name``, ``caption``)
    beside the two folders or in the first.
    """

    chosen: Path
    rejected: Path

    @property
    def format(self) -> str:
        """The format in words."""
        return f"twin folders {self.chosen.name}/ and {self.rejected.name}/"

    @cached_property
    def _sides(self) -> tuple[dict[str, Path], dict[str, Path]]:
        return _images_by_stem(self.chosen), _images_by_stem(self.rejected)

    @property
    def num_rows(self) -> int:
        """Stems that stand in either folder."""
        return len(self._sides[0].keys() | self._sides[1].keys())

    @cached_property
    def _captions(self) -> dict[str, Any]:
        """Captions by stem, from the first captions file that is there."""
        places = [folder / name for folder in (self.chosen.parent, self.chosen) for name in _CAPTION_FILES]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            return {}
        columns: Mapping[str, str] | None = None
        captions: dict[str, Any] = {}
        for _, cells in read_table(path):
            if columns is None:
                columns = match_columns(_CAPTIONS, list(cells), str(path))
            captions[Path(str(cells.get(columns["file"]))).stem] = cells.get(columns["prompt"])
        return captions

    def rows(self) -> Iterator[Row]:
        """Every stem of either folder, in the order of the names; a side that is missing is None."""
        chosen, rejected = self._sides
        columns = {"image_0": self.chosen.name, "image_1": self.rejected.name, "prompt": "caption"}
        for stem in natural_order(chosen.keys() | rejected.keys()):
            first, second = chosen.get(stem), rejected.get(stem)
            values = {"prompt": self._caption(stem), "image_0": first, "image_1": second, "label_0": 1.0}
            location = (str(first), str(second))
            yield Row(str(first or self.chosen / stem), values, columns, location)

    def _caption(self, stem: str) -> Any:
        try:
            return (self.chosen / f"{stem}.txt").read_text("utf-8-sig").strip()
        except FileNotFoundError:
            return self._captions.get(stem)
        except UnicodeDecodeError as error:
            problem = f"{self.chosen / f'{stem}.txt'}: not UTF-8 text (byte {error.start})"
            raise UserError(problem, "save the file as UTF-8") from error

    def images(self, location: Location) -> tuple[bytes, bytes]:
        """The two images at the paths in ``location``."""
        first, second = (read_image(str(path), Path(), str(path)) for path in location)
        return first, second


def _images_by_stem(folder: Path) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for path in list_images(folder, recursive=False).paths:
        if path.stem in images:
            raise UserError(f"{folder}: both {images[path.stem].name} and {path.name}", "keep one of the two")
        images[path.stem] = path
    return images
