"""Rankings of several images a prompt, as HPDv2, HPDv3 and ImageReward publish them, as pairs of every two."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..prompts.rows import read_rows
from ..prompts.tabular import open_text
from .image_folders import is_image_name
from .rows import MODELS, BadRow, Location, PairRow, Part, read_path

_IMAGES = ("image_path", "file_path", "generations")
_ORDERS: Mapping[str, int] = {"rank": -1, "ranking": -1, "human_preference": 1}
"""Keys of the order, and whether more is better: ranks count from the best, preferences are votes."""
_PREFERRED = ("path1", "path2")
_MODELS = ("model1", "model2")  # beside _PREFERRED: what drew the two
_HEAD = 2**20
_FORMATS_HELP = (
    "give prompt with image_path and rank (HPDv2 test), file_path and human_preference (HPDv2 train), generations and"
    " ranking (ImageReward), or path1 and path2, the first preferred (HPDv3)"
)


def holds_rankings(file: Path) -> bool:
    """Whether a ``.json`` or ``.jsonl`` file names images in the keys of these data sets, by its beginning."""
    if not file.is_file() or file.suffix.lower() not in (".json", ".jsonl"):
        return False
    first = _first_object(file)
    named = [first.get(name) for name in (*_IMAGES, *_PREFERRED)]
    lists = [value if isinstance(value, list) else [value] for value in named if value]
    return any(isinstance(value, str) and is_image_name(value) for values in lists for value in values)


def _first_object(file: Path) -> Mapping[str, object]:
    """The first object of a list or of lines; empty where there is none to be seen. The whole file may be huge."""
    try:
        with open_text(file) as text:
            head = text.read(_HEAD)
        first, _ = json.JSONDecoder().raw_decode(head[head.index("{") :])
    except (UserError, ValueError, RecursionError):
        return {}
    return first if isinstance(first, dict) else {}


@dataclass(frozen=True)
class RankingSource:
    """Every two images of each item of ``file``; a location is (item, path of image 0, path of image 1).

    Images of equal rank are ties. Image paths are relative to the file's folder, or to the one beside it that the
    images were unpacked to.
    """

    file: Path
    fields: Collection[str] = ()

    @property
    def format(self) -> str:
        """The format in words."""
        return f"rankings ({self._keys[0]} and {self._keys[1]}), every two images of a prompt"

    @property
    def files(self) -> Sequence[Path]:
        """The file of the rankings."""
        return [self.file]

    @cached_property
    def _first(self) -> Mapping[str, object]:
        return _first_object(self.file)

    @cached_property
    def _keys(self) -> tuple[str, str]:
        """The keys of images and order. Raises UserError where the file has only one of the two."""
        keys = self._first.keys()
        images = next((name for name in _IMAGES if name in keys), None)
        order = next((name for name in _ORDERS if name in keys), None)
        if images is not None and order is not None:
            return images, order
        if images is None and order is None and keys >= set(_PREFERRED):
            return _PREFERRED
        listed = ", ".join(map(repr, keys)) or "nothing"
        lacks = "order of the images" if images is not None or "path1" in keys or "path2" in keys else "list of images"
        raise UserError(f"{self.file}: no {lacks} among {listed}", _FORMATS_HELP)

    @property
    def unused(self) -> Sequence[str]:
        """Keys that nothing is read from."""
        models = _MODELS if self._keys == _PREFERRED else ()
        return sorted(self._first.keys() - {"prompt", *self._keys, *models})

    @property
    def notes(self) -> Sequence[str]:
        """Where the images are, if not beside the file."""
        return [] if self._root == self.file.parent else [f"{self.file}: images are read from {self._root}"]

    @cached_property
    def num_rows(self) -> int:
        """Pairs of all items."""
        return sum(1 for _ in self.rows())

    @cached_property
    def _root(self) -> Path:
        """The folder that image paths are relative to: the first of the likely ones that has the first image."""
        parent, stem = self.file.parent, self.file.stem
        likely = [parent, parent / stem, parent / "images", parent / f"{stem}_images"]
        names = [name for name in self._paths(self._first) if isinstance(name, str)]
        return next((place for place in likely for name in names[:1] if os.path.isfile(place / name)), parent)

    def _paths(self, cells: Mapping[str, object]) -> list[Any]:
        if self._keys == _PREFERRED:
            return [cells.get(name) for name in _PREFERRED]
        cell = cells.get(self._keys[0])
        return list(cell) if isinstance(cell, list) else []

    def rows(self, is_known: Callable[[Part], bool] | None = None) -> Iterator[PairRow]:
        """Every two images of every item, in the file's order; an item that is not valid is one bad row."""
        columns = {"image_0": self._keys[0], "image_1": self._keys[0], "label_0": self._keys[1], "prompt": "prompt"}
        for item, (where, cells) in enumerate(read_rows(self.file)):
            if isinstance(cells, str):
                raise UserError(f"{where}: found {cells[:60]!r}, not an object", _FORMATS_HELP)
            try:
                paths, order = self._item(cells, where)
            except BadRow as error:
                # to_record raises what stands in place of the prompt.
                yield PairRow(where, {"prompt": error}, columns, None, self._root)
                continue
            for a, b in combinations(range(len(paths)), 2):
                label = 0.5 if order[a] == order[b] else float(order[a] > order[b])
                values = {"prompt": cells.get("prompt"), "image_0": paths[a], "image_1": paths[b], "label_0": label}
                if self._keys == _PREFERRED:
                    values |= {ours: cells.get(theirs) for ours, theirs in zip(MODELS, _MODELS, strict=True)}
                source = f"{where}, images {a} and {b}"
                location = (item, str(self._root / paths[a]), str(self._root / paths[b]))
                yield PairRow(source, values, columns, location, self._root)

    def _item(self, cells: Mapping[str, object], where: str) -> tuple[list[str], list[float]]:
        """Paths of the images, and a number each, more for the better. Raises BadRow naming ``where`` and the key."""
        images, order = self._keys
        if absent := [name for name in (images, order) if name not in cells]:
            raise BadRow("missing", f"{where}: no {absent[0]!r}")
        paths = self._paths(cells)
        if wrong := [path for path in paths if not isinstance(path, str) or not path]:
            raise BadRow("image", f"{where}, key {images!r}: found {wrong[0]!r}, not the path of an image")
        if len(paths) < 2:
            raise BadRow(
                "image", f"{where}, key {images!r}: found {repr(cells[images])[:60]}, not a list of two images or more"
            )
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise BadRow("identical", f"{where}, key {images!r}: {twice} stands twice")
        if self._keys == _PREFERRED:
            return paths, [1.0, 0.0]
        numbers = cells[order]
        if not isinstance(numbers, list) or len(numbers) != len(paths):
            number = len(numbers) if isinstance(numbers, list) else repr(numbers)[:60]
            raise BadRow("label", f"{where}, key {order!r}: found {number} ranks for {len(paths)} images")
        if wrong := [number for number in numbers if not _is_number(number)]:
            raise BadRow("label", f"{where}, key {order!r}: found {wrong[0]!r}, not a number")
        return paths, [_ORDERS[order] * float(number) for number in numbers]

    def ranking_of(self, location: Location) -> int:
        """Which item of the file a pair belongs to."""
        return int(location[0])

    def images(self, location: Location) -> tuple[bytes, bytes]:
        """The two images at the paths in ``location``."""
        first, second = (read_path(Path(str(path)), str(path)) for path in location[1:])
        return first, second


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
