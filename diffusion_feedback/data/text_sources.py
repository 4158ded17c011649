"""Rows of texts as they stand: JSON and JSON Lines, CSV, parquet, and the hub, one mapping of columns a row."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from ..errors import UserError
from ..foreign import reading
from ..prompts import prompt_column
from ..prompts.rows import read_rows
from ..prompts.tabular import cell_rows, check_columns, width_problem
from ..records import parse_json
from .columns import AS_THEY_ARE, ColumnNames
from .pair_layouts import is_image
from .places import HubData
from .rows import BadRow
from .tables import open_parquet, read_batches

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
CSV_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
KINDS = {"JSON": JSON_SUFFIXES, "parquet": (".parquet",), "CSV": CSV_SUFFIXES}
SUFFIXES = tuple(suffix for suffixes in KINDS.values() for suffix in suffixes)
# Columns that are numbers, and those that are lists, where all cells are texts.
_NUMBERS = frozenset({
    "margin", "weight", "chosen_probability", "score_chosen", "score_rejected", "label", "labels", "reward",
})  # fmt: skip
_LISTS = frozenset({
    "prompt", "chosen", "rejected", "completion", "response", "messages", "conversations", "completions", "history",
    "rewards",
})  # fmt: skip

_ROWS_AT_ONCE = 1024
_REMEDY = "write one JSON object on each line"

Cells = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextRow:
    """One raw row: ``source`` names file and row, ``cells`` are its columns, or why there are none."""

    source: str
    cells: Cells | BadRow


class TextSource(Protocol):
    """Rows in order; may be gone through any number of times."""

    @property
    def storage(self) -> str:
        """How the rows stand, in words."""
        ...

    @property
    def num_rows(self) -> int | None:
        """Number of rows, where it is known without reading them."""
        ...

    @property
    def columns(self) -> frozenset[str]:
        """Names of the columns: of the first usable row, where rows have columns of their own."""
        ...

    def rows(self) -> Iterator[TextRow]:
        """Every row. Raises UserError for what is wrong with a whole file."""
        ...


@dataclass(frozen=True)
class JsonSource:
    """A file with one JSON object a line, or one JSON list of objects; gzip is unpacked on the way."""

    file: Path
    names: ColumnNames = AS_THEY_ARE

    @property
    def storage(self) -> str:
        """How the rows stand."""
        return "JSON list" if self._is_list else "JSON Lines"

    @property
    def num_rows(self) -> int | None:
        """Rows of a list; not known of lines before they are read."""
        return len(self._items) if self._is_list else None

    @cached_property
    def columns(self) -> frozenset[str]:
        """Columns of the first row that is an object; none where there is no such row."""
        return next((frozenset(row.cells) for row in self.rows() if isinstance(row.cells, Mapping)), frozenset())

    @cached_property
    def _is_list(self) -> bool:
        first = next((line for line in self._lines() if line.strip()), b"")
        return first.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")

    @cached_property
    def _items(self) -> list[Any]:
        items: list[Any] = parse_json(b"".join(self._lines()), str(self.file), "write a JSON list of objects")
        return items

    def _lines(self) -> Iterator[bytes]:
        """The lines, unpacked. Raises UserError where they cannot be read."""
        with reading(self.file, "a file of texts", "copy or download the file again"):
            if not self.file.is_file():
                raise FileNotFoundError("no such file")
            is_packed = self.file.suffix.lower() == ".gz"
            with gzip.open(self.file, "rb") if is_packed else self.file.open("rb") as lines:
                yield from lines

    def rows(self) -> Iterator[TextRow]:
        """Every object; a line that is none is a bad row."""
        for row in self._rows():
            yield row if isinstance(row.cells, BadRow) else TextRow(row.source, self.names.cells(row.cells))

    def _rows(self) -> Iterator[TextRow]:
        if self._is_list:
            for number, item in enumerate(self._items):
                yield _json_row(f"{self.file}, item {number}", item)
            return
        for number, line in enumerate(self._lines(), start=1):
            if line.strip():
                source = f"{self.file}, line {number}"
                try:
                    item = parse_json(line, source, _REMEDY)
                except UserError as error:
                    yield TextRow(source, BadRow("json", error.problem))
                else:
                    yield _json_row(source, item)


@dataclass(frozen=True)
class CsvSource:
    """A table of cells between commas (or tabs), under a line with the names of the columns; gzip is unpacked on the way.

    Cells of columns that are numbers elsewhere are read as such, lists (turns) where they are JSON; an empty number is none.
    """

    file: Path
    num_rows: int | None = None
    names: ColumnNames = AS_THEY_ARE

    @property
    def storage(self) -> str:
        """How the rows stand."""
        return "cells between tabs" if ".tsv" in self.file.suffixes[-2:] else "CSV"

    @cached_property
    def columns(self) -> frozenset[str]:
        """The names of the first line. Raises UserError for a name that stands twice."""
        _, names = next(cell_rows(self.file), (0, []))
        return frozenset(self.names.ours(names))

    def rows(self) -> Iterator[TextRow]:
        """Every row; one of another number of cells is a bad row. Raises UserError for what is no table."""
        rows = cell_rows(self.file)
        _, names = next(rows, (0, []))
        for number, cells in rows:
            source = f"{self.file}, line {number}"
            if problem := width_problem(source, cells, names):
                yield TextRow(source, BadRow("json", f"{problem}; quote cells that hold commas"))
            else:
                row = self.names.cells(dict(zip(names, cells, strict=True)))
                yield TextRow(source, {name: _cell(name, str(cell)) for name, cell in row.items()})


def _cell(name: str, cell: str) -> object:
    if name in _NUMBERS:
        try:
            return float(cell) if cell.strip() else None
        except ValueError:
            return cell
    if name in _LISTS and cell.lstrip().startswith(("[", "{")):
        try:
            value = parse_json(cell, name, "")
        except UserError:
            return cell
        is_list = isinstance(value, list) and (
            name in ("rewards", "history") or all(isinstance(x, dict) for x in value)
        )
        return value if is_list else cell
    return cell


def _json_row(source: str, item: object) -> TextRow:
    if isinstance(item, dict):
        return TextRow(source, item)
    return TextRow(source, BadRow("json", f"{source}: found {repr(item)[:60]}, not an object of columns"))


@dataclass(frozen=True)
class ParquetTexts:
    """A parquet file; pictures in it are not read."""

    file: Path
    storage: str = "parquet"
    names: ColumnNames = AS_THEY_ARE

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns and types. Raises UserError where the file is no parquet file."""
        with open_parquet(self.file) as parquet:
            schema = parquet.schema_arrow
        check_columns(schema.names, str(self.file))
        return schema

    @property
    def columns(self) -> frozenset[str]:
        """Names of the columns that hold no pictures."""
        return frozenset(self.names.ours(text_columns(self.schema)))

    @cached_property
    def num_rows(self) -> int:
        """Rows of the file."""
        with open_parquet(self.file) as parquet:
            return int(parquet.metadata.num_rows)

    def rows(self) -> Iterator[TextRow]:
        """Every row. Raises UserError for a damaged file."""
        kept = text_columns(self.schema)
        columns = [name for name in self.schema.names if name in kept]
        position = 0
        for _, _, batch in read_batches(self.file, _ROWS_AT_ONCE, columns):
            for index in range(len(batch)) if (rows := _decoded(batch)) is None else ():
                yield _single_row(f"{self.file}, row {position + index}", batch.slice(index, 1), self.names)
            for index, cells in enumerate(rows or ()):
                yield TextRow(f"{self.file}, row {position + index}", self.names.cells(_present(cells)))
            position += len(batch)


@dataclass(frozen=True)
class HubTexts:
    """A data set on the hub, a folder that ``datasets`` reads, or one that is loaded already; pictures in it are not read."""

    hub: HubData
    names: ColumnNames = AS_THEY_ARE

    @property
    def storage(self) -> str:
        """How the rows stand."""
        return f"data set {self.hub.name} through datasets"

    @property
    def num_rows(self) -> int | None:
        """Rows of the split; None for a stream."""
        return self.hub.num_rows

    @property
    def schema(self) -> pa.Schema:
        """Columns and types. Raises UserError where the hub cannot be reached."""
        return self.hub.schema

    @property
    def columns(self) -> frozenset[str]:
        """Names of the columns that hold no pictures."""
        return frozenset(self.names.ours(text_columns(self.schema)))

    def rows(self) -> Iterator[TextRow]:
        """Every row of the split. Raises UserError where the hub cannot be reached."""
        kept = text_columns(self.schema)
        for where, _, cells in self.hub.rows([name for name in self.schema.names if name in kept]):
            yield TextRow(where, self.names.cells(_present(cells)))


@dataclass(frozen=True)
class PromptRows:
    """A file of prompts alone in a form that ``prompts`` reads; the space around a prompt is its own."""

    file: Path
    storage: str = "a file of prompts"
    num_rows: int | None = None
    columns: frozenset[str] = frozenset({"prompt"})

    def rows(self) -> Iterator[TextRow]:
        """Every row. Raises UserError naming file and row for what is not valid."""
        for where, row in read_rows(self.file):
            prompt = row if isinstance(row, str) else row[prompt_column(list(row), where)]
            yield TextRow(where, {"prompt": prompt})


def text_columns(schema: pa.Schema) -> frozenset[str]:
    """The columns that hold no pictures."""
    return frozenset(field.name for field in schema if not is_image(field.type))


def file_source(file: Path, names: ColumnNames = AS_THEY_ARE) -> TextSource:
    """The source of one file, by its ending. Raises UserError for ``names`` of columns that it does not have."""
    name = file.name.lower()
    kind = CsvSource if name.endswith(CSV_SUFFIXES) else ParquetTexts if name.endswith(".parquet") else JsonSource
    if names.theirs:
        names.check(sorted(kind(file).columns), str(file))
    return kind(file, names=names)


def _decoded(batch: pa.RecordBatch) -> Sequence[dict[str, object]] | None:
    """The rows of ``batch``; None where one of its texts is not UTF-8, which parquet does not check."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        return None
    return rows


def _single_row(source: str, batch: pa.RecordBatch, names: ColumnNames) -> TextRow:
    rows = _decoded(batch)
    if rows is None:
        return TextRow(source, BadRow("text", f"{source}: holds text that is not UTF-8"))
    return TextRow(source, names.cells(_present(rows[0])))


def _present(cells: dict[str, object]) -> dict[str, object]:
    """``cells`` without the empty fields of turns: a column of structs gives every turn the fields of all turns."""
    return {name: _without_none(value) if isinstance(value, list) else value for name, value in cells.items()}


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_none(part) for part in value]
    return value
