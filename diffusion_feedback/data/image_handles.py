"""Images to be judged as they stand on disk: in a file of their own, or in a row of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError
from ..records import content_hash
from ..types.images import ImageItem
from .images import EncodedImage, decode_image
from .places import read_regular, reason
from .rows import Location, PairSource, read_image
from .tables import ParquetSource


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
            return read_regular(self.path)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be read ({reason(error)})", "put the image in its place") from error


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


@dataclass(frozen=True)
class RowImage:
    """The image in ``column`` of a row of a ``datasets.Dataset``, which does not decode it; an ImageHandle."""

    data: Any
    row: int
    column: str

    @property
    def name(self) -> str:
        """Where the image stands."""
        return f"row {self.row}"

    @cached_property
    def key(self) -> str:
        """Content hash of the bytes. Raises UserError for a cell without an image."""
        return content_hash(self.read())

    def open(self) -> Image.Image:
        """Decode to RGB. Raises UserError for bytes that are no image."""
        return decode_image(self.read(), self.name)

    def read(self) -> bytes:
        """The encoded bytes."""
        return read_image(self.data[self.row][self.column], None, f"{self.name}, column {self.column!r}")


def encoded_bytes(item: ImageItem) -> bytes:
    """The encoded bytes of an ``item``, as they stand. Raises UserError where they have changed."""
    assert isinstance(item.handle, ImageFile | PairImage | RowImage | EncodedImage)
    return item.handle.read()


def files_of_pairs(items: Sequence[ImageItem]) -> set[Path]:
    """The parquet files, in full, that pairs among ``items`` are read from."""
    sources = {id(item.handle.source): item.handle.source for item in items if isinstance(item.handle, PairImage)}
    return {file.resolve() for source in sources.values() if isinstance(source, ParquetSource) for file in source.files}
