"""Score tables: one row for each sample, prompt and scorer, with the recipe that made the number."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..folders import expand
from ..prompts.rows import read_lines
from ..records import ScoreRecord, atomic_write
from .places import check_dataset

if TYPE_CHECKING:
    from datasets import Dataset

SCHEMA = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("scorer", pa.string(), nullable=False),
        pa.field("recipe_id", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("raw", pa.float64(), nullable=False),
        pa.field("logit_scale", pa.float64()),
        pa.field("prompt_cut", pa.bool_()),
    ]
)


_FIELDS = {"image": "sample", "image_key": "sample_key"}
"""The fields of a record whose columns are named otherwise, as tables have been since there are any."""

_LATER = ("prompt_cut",)
"""Columns that tables of before do not have."""

SCORE_ENDINGS = (".parquet", ".csv", ".jsonl")
"""Endings of score tables, which say their form."""


def write_scores(records: Sequence[ScoreRecord], path: str | Path) -> None:
    """Write ``records`` to ``path``, in the form of its ending, whole or not at all; equal records give equal bytes.

    Numbers in texts have all digits; a logit scale that is not there is an empty cell, or null.
    """
    path = Path(path)
    rows = ({name: _cell(record, name) for name in SCHEMA.names} for record in records)
    try:
        with atomic_write(path) as temporary:
            if path.suffix == ".csv":
                with temporary.open("w", encoding="utf-8", newline="") as file:
                    writer = csv.DictWriter(file, SCHEMA.names, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
            elif path.suffix == ".jsonl":
                with temporary.open("w", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            else:
                pq.write_table(_table(records), temporary, compression="zstd")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})", "give another path") from error


def _cell(record: ScoreRecord, column: str) -> object:
    return getattr(record, _FIELDS.get(column, column))


def _table(records: Sequence[ScoreRecord]) -> pa.Table:
    return pa.table({name: [_cell(record, name) for record in records] for name in SCHEMA.names}, SCHEMA)


def score_dataset(records: Sequence[ScoreRecord]) -> Dataset:
    """``records`` as a ``datasets.Dataset`` with the columns of a score table."""
    import datasets

    return datasets.Dataset(_table(records))


def read_scores(given: str | Path | Dataset) -> list[ScoreRecord]:
    """The rows of a score table, in order: of a file, or of a ``datasets.Dataset`` with its columns.

    Raises UserError naming file, row and column for a file that is no score table, an empty one, a score that is not
    finite, and two different scores of one image by one recipe: neither of them can be believed.
    """
    if not isinstance(given, str | Path):
        check_dataset(given, "`scores`")
        return _records(given.with_format("arrow")[:], "the table of scores")  # the rows that a filter left alone
    path = expand(given)
    if not path.is_file():
        raise UserError(
            f"{path}: {'is a folder' if path.is_dir() else 'no such file'}", "give a table that scoring has written"
        )
    try:
        table = _text_table(path) if path.suffix in (".csv", ".jsonl") else pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a score table ({error})", "write it again by scoring") from error
    return _records(table, str(path))


def _records(table: pa.Table, path: str) -> list[ScoreRecord]:
    for name in _LATER:
        if name not in table.column_names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}", "give a table that scoring has written")
    try:
        rows = table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
    except (pa.ArrowException, ValueError) as error:  # text that is not UTF-8 among the second
        raise UserError(f"{path}: not a score table ({error})", "write it again by scoring") from error
    records = [ScoreRecord(**{_FIELDS.get(name, name): value for name, value in row.items()}) for row in rows]
    if not records:
        raise UserError(f"{path}: holds no scores", "score at least one sample")
    for number, record in enumerate(records):
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                problem = f"{path}, row {number}, column {field.name!r}: found {value} for {record.sample}"
                raise UserError(problem, "score the sample again, or remove the row")
    _check_single(records, path)
    return records


def _text_table(path: Path) -> pa.Table:
    """The rows of a CSV or JSON Lines file; the empty cell of a logit scale is none."""
    numbers = {field.name for field in SCHEMA if field.type == pa.float64()}
    rows = []
    for number, cells in read_lines(path):
        row = dict(cells)
        for name in numbers & row.keys():
            try:
                row[name] = None if row[name] in ("", None) else float(row[name])
            except (TypeError, ValueError) as error:
                problem = f"{path}, line {number}, column {name!r}: found {row[name]!r}, not a number"
                raise UserError(problem, "write it again by scoring") from error
        if isinstance(row.get("prompt_cut"), str):
            row["prompt_cut"] = {"true": True, "false": False}.get(row["prompt_cut"].lower())
        rows.append(row)
    return pa.Table.from_pylist(rows)


def _check_single(records: Sequence[ScoreRecord], path: str) -> None:
    first: dict[tuple[str, str, str], int] = {}
    for number, record in enumerate(records):
        row = first.setdefault((record.sample_key, record.prompt, record.recipe_id), number)
        other = records[row]
        # Rounding differs from one batch or device to the next, so tables that were joined may differ by that much.
        if not all(
            math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3)
            for a, b in ((record.score, other.score), (record.raw, other.raw))
        ):
            problem = (
                f"{path}, row {number}: {record.sample} has the score {record.score} (raw {record.raw}), in row {row}"
            )
            raise UserError(
                f"{problem} {other.score} (raw {other.raw}), both by {record.recipe_id}", "score the sample again"
            )
