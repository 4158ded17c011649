"""From a raw row of any format to a preference pair, or the reason why the row is none."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import UserError
from ..records import Ballot, PairRecord
from .images import ImageHeader, image_header
from .places import read_regular, reason
from .votes import BOTH_BAD, annotator_of, is_true

Location = tuple[int | str, ...]
"""Where a source finds the two images of a row again; each source has its own form."""

Problem = Literal[
    "caption", "label", "image", "identical", "missing", "json", "text", "empty", "turns", "score", "unread"
]

SIDES = ("image_0", "image_1")
MODELS = ("model_0", "model_1")
OPTIONAL_FIELDS = ("label_1", "has_label", "are_different", "num_example_per_prompt", *MODELS)
SKIP_REMEDY = (
    "correct or remove the row; or leave such rows out: data.on_bad_row: skip in a recipe, `on_bad_row` skip elsewhere"
)


class BadRow(UserError):
    """A row that is not a usable pair; ``kind`` sorts the reasons, ``problem`` names file, row and column."""

    def __init__(self, kind: Problem, problem: str) -> None:
        super().__init__(problem, SKIP_REMEDY)
        self.kind: Problem = kind


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a source whose rows hold the images themselves: the same as long as ``files`` are unchanged."""

    files: tuple[Path, ...]
    num_rows: int


@dataclass(frozen=True, slots=True)
class PairRow:
    """One raw row. ``values`` are by our names for the fields, ``columns`` gives the file's names for them.

    Images are bytes, a ``{"bytes", "path"}`` mapping, or the path of a file, relative to ``folder``, where the data set
    has one on this disk; they are read only when needed. A cell that could not be read may be the BadRow that says why. ``location`` is None where the images
    cannot be read again. ``position`` counts the rows of ``part``, which is None where images are files of their own.
    """

    source: str
    values: Mapping[str, Any]
    columns: Mapping[str, str]
    location: Location | None
    folder: Path | None = None
    part: Part | None = None
    position: int = 0

    def where(self, field: str) -> str:
        """File, row and column of ``field``, for messages."""
        return f"{self.source}, column {self.columns.get(field, field)!r}"


class PairSource(Protocol):
    """One format: gives its rows in order, and the images of a row again."""

    @property
    def format(self) -> str:
        """The format in words."""
        ...

    @property
    def num_rows(self) -> int | None:
        """Number of rows, where it is known without reading them."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """The tables that the rows are read from, where they are files on this disk; images of their own are none."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What was passed over, counted and named: one line for each kind."""
        ...

    @property
    def unused(self) -> Sequence[str]:
        """Names of the columns that nothing is read from."""
        ...

    @property
    def fields(self) -> Collection[str]:
        """Our names of what the rows give by columns of their own; empty for what is no table."""
        ...

    def rows(self, is_known: Callable[[Part], bool] | None = None) -> Iterator[PairRow]:
        """Every row, one after the other; without the images' cells in parts of which all is known already.

        Raises UserError for what is wrong with a whole file.
        """
        ...

    def images(self, location: Location) -> tuple[bytes, bytes]:
        """The two images at a row's ``location``. Raises UserError where they are gone."""
        ...


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first few of ``names``, for a message."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def image_file(value: object, folder: Path | None, where: str) -> Path | None:
    """The file that an image cell names, relative to ``folder``; None where the cell holds the image itself.

    A relative name must stay in ``folder``: such a name in a data set from elsewhere could mean anything on this disk.
    Raises BadRow naming ``where``.
    """
    if isinstance(value, Mapping):
        # datasets' to_parquet can leave the bytes out and keep a path that may not exist elsewhere.
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return None
    if value is None or value == "":
        raise BadRow("image", f"{where}: no image")
    if "://" in str(value):
        raise BadRow("image", f"{where}: {value} is an address; download the images, and name their files")
    if os.path.normpath(str(value)).split(os.sep)[0] == "..":
        advice = "give the full path of an image that lies elsewhere"
        raise BadRow("image", f"{where}: {value} leads out of {folder or 'the data set'}; {advice}")
    return (folder or Path()) / str(value)


def is_outside(file: Path, folder: Path) -> bool:
    """Whether ``file``, links followed, does not lie below ``folder``."""
    place = os.path.realpath(folder)
    return os.path.commonpath([place, os.path.realpath(file)]) != place


def read_image(value: Any, folder: Path | None, where: str) -> bytes:
    """The bytes of an image cell; paths are relative to ``folder``. Raises BadRow naming ``where``."""
    file = image_file(value, folder, where)
    if file is not None:
        return read_path(file, where)
    data: bytes = value["bytes"] if isinstance(value, Mapping) else value
    return data


def read_path(file: Path, where: str) -> bytes:
    """The bytes of an image's ``file``. Raises BadRow naming ``where``, for pipes, devices and folders too."""
    try:
        return read_regular(file)
    except (OSError, ValueError) as error:
        raise BadRow("image", f"{where}: cannot read {file} ({reason(error)})") from error


def unlabelled(row: PairRow) -> Literal["unlabelled", "not_different"] | None:
    """Why ``row`` carries no preference by its own account (has_label or are_different is false), or None."""
    if _is_false(row.values.get("has_label")):
        return "unlabelled"
    return "not_different" if _is_false(row.values.get("are_different")) else None


def caption_of(row: PairRow) -> str:
    """The caption of ``row``. Raises BadRow where it has none."""
    prompt = row.values.get("prompt")
    if isinstance(prompt, BadRow):
        raise prompt
    if not isinstance(prompt, str) or not prompt.strip():
        reason = "no caption" if prompt is None else f"found {prompt!r}, not a caption"
        raise BadRow("caption", f"{row.where('prompt')}: {reason if prompt != '' else 'the caption is empty'}")
    return prompt


def check_labels(row: PairRow) -> tuple[str, float, float]:
    """Caption, vote share for image 0, and weight of a labelled ``row``. Raises BadRow."""
    return caption_of(row), _label(row), _weight(row)


def models_of(row: PairRow) -> tuple[str, str]:
    """Names of the models that the two images of ``row`` come from, "" where it does not say."""
    first, second = (row.values.get(name) for name in MODELS)
    return "" if first is None else str(first), "" if second is None else str(second)


def check_different(row: PairRow, is_same: bool) -> None:
    """Raise BadRow where both sides are the same image."""
    if is_same:
        columns = " and ".join(repr(row.columns.get(field, field)) for field in SIDES)
        raise BadRow("identical", f"{row.source}, columns {columns}: both sides are the same image")


def to_record(row: PairRow, *, decode: bool) -> PairRecord:
    """Check a labelled ``row`` and make it a pair; ``decode`` also decodes both images. Raises BadRow."""
    prompt, label_0, weight = check_labels(row)
    images = [read_image(row.values.get(field), row.folder, row.where(field)) for field in SIDES]
    for field, data in zip(SIDES, images, strict=True):
        if not data:
            raise BadRow("image", f"{row.where(field)}: the image is empty (0 bytes)")
        if decode:
            check_image(data, row.where(field))
    check_different(row, images[0] == images[1])
    return PairRecord(prompt, images[0], images[1], label_0, weight, row.source, ballot_of(row))


def ballot_of(row: PairRow) -> Ballot:
    """Who voted in ``row``, where a column says so, and whether both sides are called bad."""
    return Ballot(annotator_of(row.values.get("user_id")), is_true(row.values.get(BOTH_BAD)))


def check_image(data: bytes, where: str) -> ImageHeader:
    """Decode an image, for what it says of itself. Raises BadRow naming ``where``."""
    try:
        return image_header(data, where, decode=True)
    except UserError as error:
        raise BadRow("image", error.problem) from error


def _label(row: PairRow) -> float:
    if isinstance(wrong := row.values.get("label_0"), BadRow):
        raise wrong
    label_0 = _number(row, "label_0")
    if not 0 <= label_0 <= 1:
        raise BadRow("label", f"{row.where('label_0')}: found {row.values.get('label_0')!r}, not a number from 0 to 1")
    if "label_1" in row.values:
        label_1 = _number(row, "label_1")
        if not abs(label_0 + label_1 - 1) < 1e-6:
            reason = f"found {label_1!r} beside {row.columns.get('label_0', 'label_0')!r} {label_0!r}"
            raise BadRow("label", f"{row.where('label_1')}: {reason}; the two must add up to 1")
    return label_0


def _weight(row: PairRow) -> float:
    if "num_example_per_prompt" not in row.values:
        return 1.0
    number = _number(row, "num_example_per_prompt")
    if not (number >= 1 and number.is_integer()):
        value = row.values.get("num_example_per_prompt")
        raise BadRow("label", f"{row.where('num_example_per_prompt')}: found {value!r}, not a whole number from 1 up")
    return 1 / number


def _number(row: PairRow, field: str) -> float:
    """The field as a float; NaN for what is not a number, which then fails the caller's range check."""
    try:
        return float(row.values.get(field))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _is_false(value: object) -> bool:
    return value is not None and str(value).strip().lower() in ("false", "0")  # CSV cells are strings
