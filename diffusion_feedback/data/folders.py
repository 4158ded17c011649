"""Pairs in folders: images with a metadata table, two a row, and twin folders chosen/ and rejected/."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from .captions import CAPTION_FILES, TwinCaptions, stem_of
from .columns import AS_THEY_ARE, ColumnNames
from .image_folders import METADATA_NAMES, FolderImages, list_images, natural_order
from .pair_layouts import TableLayout
from .rows import OPTIONAL_FIELDS, SIDES, Location, PairRow, Part, listed, read_image, read_path
from .tabular import columns_of, is_cells, place_in, read_table

TWINS = (("chosen", "rejected"), ("win", "lose"), ("w", "l"))


def find_twins(folder: Path) -> tuple[Path, Path] | None:
    """The folders of chosen and of rejected images under ``folder``, if there are such."""
    pairs = ((folder / chosen, folder / rejected) for chosen, rejected in TWINS)
    return next(((chosen, rejected) for chosen, rejected in pairs if chosen.is_dir() and rejected.is_dir()), None)


@dataclass(frozen=True)
class ImageFolderSource:
    """A table beside images (``metadata``), which names two of them a row; a location is the two file names.

    ``names`` are a user's own for its columns. A row may lack the key of an optional field though others have it: the
    field then has its default there.
    """

    metadata: Path
    names: ColumnNames = AS_THEY_ARE

    @property
    def format(self) -> str:
        """The format in words."""
        what = self.metadata.name
        return f"image folder with {what}" if what in METADATA_NAMES else f"table with {self._layout.format}"

    @property
    def files(self) -> Sequence[Path]:
        """The metadata table."""
        return [self.metadata]

    @cached_property
    def num_rows(self) -> int:
        """Rows of the metadata table."""
        return sum(1 for _ in read_table(self.metadata))

    @cached_property
    def _layout(self) -> TableLayout:
        file = self.metadata
        values = lambda name: (cells.get(name) for _, cells in read_table(file))  # noqa: E731
        return TableLayout.of(columns_of(file), str(file), self.names, ending=file.name, values=values)

    @property
    def unused(self) -> Sequence[str]:
        """Columns that nothing is read from."""
        return sorted(self._layout.unused)

    @property
    def fields(self) -> Collection[str]:
        """Our names of the columns."""
        return self._layout.columns.keys()

    @property
    def notes(self) -> Sequence[str]:
        """Images beside those that the rows name, and metadata tables beside this one."""
        folder, sides = self.metadata.parent, [self._layout.columns[side] for side in SIDES]
        named = {os.path.normpath(str(cells.get(side))) for _, cells in read_table(self.metadata) for side in sides}
        places = {os.path.dirname(name) for name in named if not name.startswith(("/", ".."))}
        here = [folder / place for place in sorted(places) if (folder / place).is_dir()]
        listings = [list_images(place, recursive=False) for place in here]
        images = [os.path.relpath(path, folder) for each in listings for path in each.paths]
        unnamed = natural_order(name for name in images if name not in named)
        tables = [name for name in METADATA_NAMES if name != self.metadata.name and (folder / name).is_file()]
        for each in listings:
            each.hidden, each.subfolders = [], []  # what lies in other folders was never meant
        others = [each.note for each in listings if each.note]
        left = [(unnamed, f"images that no row of {self.metadata.name} names"), (tables, "other metadata tables")]
        return [f"{folder}: passed over {len(names)} {what}: {listed(names)}" for names, what in left if names] + others

    def rows(self, is_known: Callable[[Part], bool] | None = None) -> Iterator[PairRow]:
        """Every row of the metadata table. Raises UserError for a broken line, or a column that no row has."""
        layout = self._layout
        optional = {layout.columns[field] for field in OPTIONAL_FIELDS if field in layout.columns}
        for number, cells in read_table(self.metadata):
            if is_cells(self.metadata):  # where a cell cannot be missing but only empty
                cells = {name: cell for name, cell in cells.items() if cell != "" or name not in optional}
            location = tuple(str(cells.get(layout.columns[side])) for side in SIDES)
            yield layout.row(place_in(self.metadata, number), cells, location, self.metadata.parent)

    def images(self, location: Location) -> tuple[bytes, bytes]:
        """The two images of the file names in ``location``."""
        folder = self.metadata.parent
        first, second = (read_image(str(name), folder, str(self.metadata)) for name in location)
        return first, second


@dataclass(frozen=True)
class TwinFolderSource:
    """Two folders with images of the same names but for their endings, in the same subfolders, chosen and rejected.

    Captions are those of ``TwinCaptions``. A location is the two paths.
    """

    chosen: Path
    rejected: Path
    unused: Sequence[str] = ()  # tables of captions have many columns of no concern
    fields: Collection[str] = ()

    @property
    def format(self) -> str:
        """The format in words."""
        return f"twin folders {self.chosen.name}/ and {self.rejected.name}/"

    @property
    def files(self) -> Sequence[Path]:
        """The tables of captions."""
        return self._captions.files

    @cached_property
    def _listings(self) -> tuple[FolderImages, FolderImages]:
        first, second = (list_images(side, tables=CAPTION_FILES) for side in (self.chosen, self.rejected))
        return first, second

    @cached_property
    def _sides(self) -> tuple[dict[str, Path], dict[str, Path]]:
        first, second = self._listings
        return _images_by_stem(first), _images_by_stem(second)

    @cached_property
    def _stems(self) -> list[str]:
        return natural_order(self._sides[0].keys() | self._sides[1].keys())

    @property
    def num_rows(self) -> int:
        """Stems that stand in either folder."""
        return len(self._stems)

    @cached_property
    def _captions(self) -> TwinCaptions:
        return TwinCaptions(self.chosen, self.rejected)

    @property
    def notes(self) -> Sequence[str]:
        """Files in either folder that are no images, and captions that name no image."""
        lines = [listing.note for listing in self._listings if listing.note]
        if lost := self._captions.unused(self._stems):
            lines.append(f"{self.chosen.parent}: passed over {len(lost)} captions that name no image: {listed(lost)}")
        return lines

    def rows(self, is_known: Callable[[Part], bool] | None = None) -> Iterator[PairRow]:
        """Every stem of either folder, in natural order; a side that is missing is None."""
        columns = {"image_0": self.chosen.name, "image_1": self.rejected.name, "prompt": "caption"}
        folder = self.chosen.parent
        for stem in self._stems:
            first, second = (side.get(stem) for side in self._sides)
            names = [None if path is None else str(path.relative_to(folder)) for path in (first, second)]
            prompt = self._captions.of(stem, (first, second))
            values = {"prompt": prompt, "image_0": names[0], "image_1": names[1], "label_0": 1.0}
            yield PairRow(str(first or self.chosen / stem), values, columns, (str(first), str(second)), folder)

    def images(self, location: Location) -> tuple[bytes, bytes]:
        """The two images at the paths in ``location``."""
        first, second = (read_path(Path(str(path)), str(path)) for path in location)
        return first, second


def _images_by_stem(listing: FolderImages) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for name, path in zip(listing.names, listing.paths, strict=True):
        known: Any = images.setdefault(stem_of(name), path)
        if known != path:
            problem = f"{listing.folder}: both {known.name} and {path.name}"
            raise UserError(problem, "keep one of the two: one image of this name is chosen, one rejected")
    return images
