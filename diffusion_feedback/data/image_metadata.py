"""Rows of metadata tables that name one image each: the one reader of image folders for all that judges images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..prompts import PROMPT_COLUMNS
from .columns import ColumnForm, missing_columns
from .rows import image_file
from .tabular import columns_of, place_in, read_table

FILE_COLUMNS = ("file_name", "image", "path")
_FORM = ColumnForm("tables of images", [FILE_COLUMNS], ("images/0001.png",))


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of a table, ``where`` it stands there, and its prompts; [""] where no column has one.

    ``name`` is as the table gives it, ``key`` the same for all ways of writing it.
    """

    where: str
    name: str
    file: Path
    prompts: list[str]

    @property
    def key(self) -> str:
        """The name without detours."""
        return os.path.normpath(self.name)

    @property
    def is_there(self) -> bool:
        """Whether the file exists; False for a name that no file can have."""
        return os.path.isfile(self.file)


def names_one_image(metadata: Path) -> bool:
    """Whether a table names one image a row."""
    return any(name in FILE_COLUMNS for name in columns_of(metadata))


def read_image_rows(metadata: Path) -> Iterator[ImageRow]:
    """Every row of ``metadata``. Raises UserError for a row without a name, a prompt that is no text, or a repetition.

    An image may stand in several rows with a prompt each, or have a list of prompts.
    """
    names = columns_of(metadata)
    column = next((name for name in FILE_COLUMNS if name in names), None)
    if column is None:
        raise missing_columns(str(metadata), names, [_FORM], metadata.name)
    seen: dict[tuple[str, str], str] = {}
    for number, cells in read_table(metadata):
        where, name = place_in(metadata, number), cells.get(column)
        file = image_file(name, metadata.parent, where) if isinstance(name, str) else None
        if not isinstance(name, str) or file is None:
            raise UserError(f"{where}: found {name!r}, not the name of a file", f"name the image in column {column!r}")
        row = ImageRow(where, name, file, _prompts_of(cells, where))
        for prompt in row.prompts:
            if (row.key, prompt) in seen:
                problem = f"{where}: {name} stands in {seen[row.key, prompt]} too, with the same prompt"
                raise UserError(problem, "remove one of the two")
            seen[row.key, prompt] = where.removeprefix(f"{metadata}, ")
        yield row


def _prompts_of(cells: Mapping[str, object], where: str) -> list[str]:
    """The prompts of a row: a text, or a list of texts; "" where no column has one."""
    columns = {name.lower(): name for name in cells}
    named = (columns[name] for name in PROMPT_COLUMNS if name in columns)
    cell = next((cells[column] for column in named if cells[column] is not None), "")
    prompts: list[Any] = cell if isinstance(cell, list) and cell else [cell]
    if wrong := [prompt for prompt in prompts if not isinstance(prompt, str)]:
        raise UserError(f"{where}: found {wrong[0]!r}, not a prompt", "give the prompt as text, or a list of texts")
    return [str(prompt).strip() for prompt in prompts]
