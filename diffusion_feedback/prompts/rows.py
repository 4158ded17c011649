"""Rows of files that people bring: text, JSON, JSON Lines, CSV, TSV, parquet; one reader of each, for all packages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError, nearest
from ..foreign import reading
from ..records import parse_json
from .tabular import cell_rows, check_columns, open_text, width_problem

Cells = Mapping[str, Any]


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and row of a JSON Lines, CSV or TSV file, packed or not. Raises UserError naming file and line."""
    if path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_row(line, f"{path}, line {number}")
        return
    rows = cell_rows(path)
    _, names = next(rows, (0, []))
    for number, cells in rows:
        if problem := width_problem(f"{path}, line {number}", cells, names):
            raise UserError(problem, "quote the cells that hold commas, tabs or line ends")
        yield number, dict(zip(names, cells, strict=True))


def read_rows(path: Path) -> Iterator[tuple[str, str | Cells]]:
    """Where each row of a file of prompts stands ("file, line 3"), and the row: a text, or cells by column.

    The ending says what the file is. A parquet file's columns of images and of nested values are left out. Raises
    UserError naming file and row for what is missing or not valid.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}", "give a file of prompts")
    if path.suffix.lower() not in READERS:
        problem = f"{path}: cannot read prompts from a file ending in {path.suffix!r}"
        raise UserError(problem, nearest(path.suffix, list(READERS)))
    yield from READERS[path.suffix.lower()](path)


def _json_row(line: str, where: str) -> dict[str, object]:
    remedy = "write one JSON object on each line"
    row = parse_json(line, where, remedy)
    if not isinstance(row, dict):
        raise UserError(f"{where}: found {line.strip()[:60]!r}", remedy)
    return row


def _read_json(path: Path) -> Iterator[tuple[str, str | Cells]]:
    remedy = 'write a JSON list of prompts: ["a cat", "a dog"], or of objects: [{"prompt": "a cat"}]'
    with open_text(path) as file:
        content = parse_json(file.read(), str(path), remedy)
    if not isinstance(content, list):
        kind = "an object" if isinstance(content, dict) else repr(content)[:60]
        raise UserError(f"{path}: holds {kind}, not a list", remedy)
    for number, row in enumerate(content):
        if not isinstance(row, str | dict):
            raise UserError(f"{path}, item {number}: found {repr(row)[:60]}, not a prompt", remedy)
        yield f"{path}, item {number}", row


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Where each line stands that is not blank, and the line, without its end."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}, line {number}", line.rstrip("\r\n")


def _read_table(path: Path) -> Iterator[tuple[str, str | Cells]]:
    for number, row in read_lines(path):
        yield f"{path}, line {number}", row


def is_list_of_texts(path: Path) -> bool:
    """Whether a ``.json`` file begins as a list of plain texts."""
    if path.suffix.lower() != ".json":
        return False
    with open_text(path) as file:
        return re.match(r'\s*\[\s*"', file.read(4096)) is not None


def _read_parquet(path: Path) -> Iterator[tuple[str, str | Cells]]:
    with reading(path, "a parquet file", "write it again, or give another format"):
        schema = pq.read_schema(path)
        check_columns(schema.names, str(path))
        # A table of pairs holds images too, which need not be read for their prompts.
        wanted = [field.name for field in schema if not _is_image(field.type)]
        if not wanted:
            raise UserError(f"{path}: no column of text among {', '.join(schema.names)}", "give a column of prompts")
        rows = pq.read_table(path, columns=wanted).to_pylist()
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row


def _is_image(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, str | Cells]]]] = {
    ".txt": _lines,
    ".json": _read_json,
    ".jsonl": _read_table,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
}
"""What reads the rows of a file, by its ending."""
