"""Files of prompts: text, JSON lines, CSV or parquet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..catalog import nearest
from ..errors import UserError
from ..records import PromptRecord, parse_json

PROMPT_COLUMNS = ("prompt", "caption", "text")


def read_prompts(path: Path | str) -> list[PromptRecord]:
    """Read the prompts of a ``.txt`` (one a line), ``.jsonl``, ``.csv`` or ``.parquet`` file, in the file's order.

    Tables name the prompt ``prompt``, ``caption`` or ``text`` (the first of these that is there); the other columns go
    to ``extra``. Blank lines are skipped. Raises UserError naming file and row for a missing file or column, a row that
    is not valid, an empty prompt, or no prompt at all.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], Iterable[PromptRecord]]] = {
        ".txt": _read_lines,
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        problem = f"{path}: cannot read prompts from a file ending in {path.suffix!r}"
        raise UserError(problem, nearest(path.suffix, list(readers)))
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}", "give a file of prompts")
    try:
        prompts = list(readers[path.suffix.lower()](path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    if not prompts:
        raise UserError(f"{path}: holds no prompts", "put one prompt on each line, or one in each row")
    return prompts


def _read_lines(path: Path) -> Iterator[PromptRecord]:
    for line in path.read_text("utf-8-sig").splitlines():
        if line.strip():
            yield PromptRecord(line.strip(), {})


def _read_jsonl(path: Path) -> Iterator[PromptRecord]:
    # Split at newlines alone: splitlines() would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parse_json(line, where, "write one JSON object on each line")
        if not isinstance(row, dict):
            raise UserError(f"{where}: found {line.strip()[:60]!r}", "write one JSON object on each line")
        yield _prompt_of(row, where)


def _read_csv(path: Path) -> Iterator[PromptRecord]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        # Strict: a quotation mark that is never closed would swallow all rows behind it.
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    problem = f"{where}: not {len(reader.fieldnames or [])} cells"
                    raise UserError(problem, "quote the cells that hold commas")
                yield _prompt_of(row, where)
        except csv.Error as error:
            problem = f"{path}, line {reader.reader.line_num}: not CSV ({error})"
            raise UserError(problem, "close every quotation mark, and double those inside a quoted cell") from error


def _read_parquet(path: Path) -> Iterator[PromptRecord]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a parquet file ({error})", "write it anew, or give a .jsonl file") from error
    for number, row in enumerate(table.to_pylist()):
        yield _prompt_of(row, f"{path}, row {number}")


def _prompt_of(row: Mapping[str, Any], where: str) -> PromptRecord:
    column = next((name for name in PROMPT_COLUMNS if name in row), None)
    if column is None:
        problem = f"{where}: no column {', '.join(map(repr, PROMPT_COLUMNS))}"
        raise UserError(problem, f"rename the column of prompts; {nearest('prompt', list(row))}")
    prompt = row[column]
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}, column {column!r}: found {prompt!r}", "give a prompt of at least one character")
    return PromptRecord(prompt.strip(), {name: value for name, value in row.items() if name != column})
