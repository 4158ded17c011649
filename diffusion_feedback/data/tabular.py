"""Tables beside images: which file of a folder is one, its columns, and the place of each of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..prompts.rows import read_lines
from ..prompts.tabular import cell_rows, check_columns
from .image_folders import METADATA_NAMES
from .tables import open_parquet, read_batches

CELLS = (".csv", ".tsv")
LINES = (".jsonl", ".ndjson")
TABLES = (*LINES, *CELLS)
"""Endings of tables of texts; what is packed ends in .gz besides."""

_ROWS_AT_ONCE = 1024


def find_metadata(folder: Path) -> Path | None:
    """The metadata file of an image folder, if there is one; parquet counts where it names files."""
    files = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    named = (
        file for file in files if not _is_parquet(file) or any(name.endswith("file_name") for name in columns_of(file))
    )
    return next(named, None)


def find_votes(folder: Path) -> Path | None:
    """The table of votes of ``folder``, if it has one of that name."""
    names = (f"votes{ending}{packed}" for packed in ("", ".gz") for ending in TABLES)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


def is_table(file: Path) -> bool:
    """Whether ``file`` is a table of texts, packed or not, by its ending."""
    return file.name.lower().removesuffix(".gz").endswith(TABLES)


def is_cells(file: Path) -> bool:
    """Whether the rows of ``file`` are cells below the names of their columns."""
    return file.name.lower().removesuffix(".gz").endswith(CELLS)


def place_in(file: Path, number: int) -> str:
    """Where a row of ``read_table`` stands, for messages."""
    return f"{file}, {'row' if _is_parquet(file) else 'line'} {number}"


def columns_of(file: Path) -> list[str]:
    """The columns of a table: of all of its rows, since a row of JSON Lines may lack what others have."""
    if _is_parquet(file):
        with open_parquet(file) as parquet:
            check_columns(parquet.schema_arrow.names, str(file))
            return list(parquet.schema_arrow.names)
    if is_cells(file):
        return next(cell_rows(file), (0, list[str]()))[1]
    names: dict[str, None] = {}
    for _, cells in read_table(file):
        names.update(dict.fromkeys(cells))
    return list(names)


def read_table(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (line from 1; row from 0 in parquet) and cells of each row of a JSON Lines, CSV or parquet file.

    Raises UserError naming file and row.
    """
    if not _is_parquet(file):
        yield from read_lines(file)
        return
    rows = (cells for _, _, batch in read_batches(file, _ROWS_AT_ONCE) for cells in batch.to_pylist())
    yield from enumerate(rows)
