"""Rows of files that people bring: text, JSON, JSON Lines, CSV, TSV, parquet; one reader of each, for all rooms."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..catalog import nearest
from ..errors import UserError
from ..foreign import reading
from ..records import parse_json

Cells = Mapping[str, Any]


def read_table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and row of a JSON Lines or CSV file. Raises UserError naming file and line."""
    with open_text(path) as file:
        if path.suffix.lower() == ".csv":
            yield from _csv_rows(file, path)
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _json_row(line, f"{path}, line {number}")


def read_rows(path: Path) -> Iterator[tuple[str, str | Cells]]:
    """Where each row of a file of prompts stands ("file, line 3"), and the row: a text, or cells by column.

    The ending says what the file is. A parquet file's columns of images and of nested values are left out. Raises
    UserError naming file and row for what is missing or not valid.
    """
    if path.suffix.lower() not in READERS:
        problem = f"{path}: cannot read prompts from a file ending in {path.suffix!r}"
        raise UserError(problem, nearest(path.suffix, list(READERS)))
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}", "give a file of prompts")
    yield from READERS[path.suffix.lower()](path)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """``path`` as UTF-8 text, with or without a byte order mark, its line ends as they are.

    Raises UserError for a file that cannot be read, and naming the line and byte that are not UTF-8.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        zeros = max(head[0::2].count(0), head[1::2].count(0))
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or zeros > len(head) // 4:
            raise UserError(f"{path}: not UTF-8 text (it looks like UTF-16)", "save the file as UTF-8")
        with path.open(encoding="utf-8-sig", newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({_first_bad_byte(path)})", "save the file as UTF-8") from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error})", "give a file that can be read"
        ) from error


def _first_bad_byte(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}, byte {error.start}"
    return "at its end"


def _csv_rows(file: TextIO, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Strict: a quotation mark that is never closed would swallow all rows behind it.
    reader = csv.DictReader(file, strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or []]
        check_columns(names, str(path))
        reader.fieldnames = names
        for cells in reader:
            if None in cells or None in cells.values():
                problem = f"{path}, line {reader.line_num}: not {len(names)} cells"
                raise UserError(problem, "quote the cells that hold commas")
            yield reader.line_num, cells
    except csv.Error as error:
        problem = f"{path}, line {reader.reader.line_num}: not CSV ({error})"
        raise UserError(problem, "close every quotation mark, and double those inside a quoted cell") from error


def check_columns(names: Sequence[str], where: str) -> None:
    """Raise UserError for two columns of one name: one of them would be lost."""
    if twice := [name for name, count in Counter(names).items() if count > 1 and name]:
        raise UserError(f"{where}: two columns are named {twice[0]!r}", "give every column a name of its own")


def _json_row(line: str, where: str) -> dict[str, Any]:
    remedy = "write one JSON object on each line"
    row = parse_json(line, where, remedy)
    if not isinstance(row, dict):
        raise UserError(f"{where}: found {line.strip()[:60]!r}", remedy)
    return row


def _read_json(path: Path) -> Iterator[tuple[str, str | Cells]]:
    remedy = 'write a JSON list of prompts: ["a cat", "a dog"], or of objects: [{"prompt": "a cat"}]'
    with open_text(path) as file:
        found = parse_json(file.read(), str(path), remedy)
    if not isinstance(found, list):
        kind = "an object" if isinstance(found, dict) else repr(found)[:60]
        raise UserError(f"{path}: holds {kind}, not a list", remedy)
    for number, row in enumerate(found):
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
    for number, row in read_table(path):
        yield f"{path}, line {number}", row


def _read_tsv(path: Path) -> Iterator[tuple[str, str | Cells]]:
    # Not csv: a prompt of PartiPrompts begins with a quotation mark that belongs to it, and no cell is quoted.
    header: list[str] | None = None
    for where, line in _lines(path):
        cells = line.split("\t")
        if quoted := next(filter(_is_quoted, cells), None):
            problem = f"{where}: {quoted[:60]} is quoted as in CSV, and cells between tabs are read as they stand"
            raise UserError(problem, "save the file as .csv, or without quoting")
        if header is None:
            header = [cell.strip() for cell in cells]
            check_columns(header, where)
        elif len(cells) != len(header):
            problem = f"{where}: {len(cells)} cells, the header has {len(header)}"
            raise UserError(problem, "separate the cells by tabs, one row a line")
        else:
            yield where, dict(zip(header, cells, strict=True))


def is_list_of_texts(path: Path) -> bool:
    """Whether a ``.json`` file begins as a list of plain texts."""
    if path.suffix.lower() != ".json":
        return False
    with open_text(path) as file:
        return re.match(r'\s*\[\s*"', file.read(4096)) is not None


def _is_quoted(cell: str) -> bool:
    """Whether ``cell`` is written as CSV writers do: in quotation marks, those inside doubled."""
    inner = cell[1:-1]
    return len(cell) > 2 and cell[0] == cell[-1] == '"' and '""' in inner and '"' not in inner.replace('""', "")


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
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
"""What reads the rows of a file, by its ending."""
