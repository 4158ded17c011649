"""The rows of a file that grows while samples are drawn: added down to the disk, read back, and of one run alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import UserError
from ..records import CompletionRecord, ImageRecord, write_text

Row = TypeVar("Row", CompletionRecord, ImageRecord)


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add ``rows`` to the file ``path``, down to the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(row.to_json() + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Replace the whole file ``path`` by ``rows``."""
    write_text(path, "".join(row.to_json() + "\n" for row in rows))


def read_records(path: Path, kind: type[Row], what: str, remedy: str) -> tuple[list[Row], bool]:
    """The rows of ``path``, and whether a last line was dropped because its writer was killed in the middle of it.

    Raises UserError naming the first line that is not the record of a ``what``.
    """
    *lines, tail = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(kind.from_json(line.decode()))
        except (KeyError, ValueError, TypeError) as error:
            fault = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}, line {number}: not the record of a {what}: {fault}", remedy) from error
    return rows, bool(tail)


def check_origin(place: Path, kind: str, row: Row, wanted: Row, remedy: str) -> None:
    """Raise UserError where ``row`` in ``place`` has another model or other settings than ``wanted``; ``kind`` are "images"."""
    if row.model_hash != wanted.model_hash:
        problem = f"{place}: holds {kind} of model {row.model_hash!r}, this run is of {wanted.model_hash!r}"
        raise UserError(problem, remedy)
    for key in sorted({*row.settings, *wanted.settings}):
        old, new = row.settings.get(key, "unset"), wanted.settings.get(key, "unset")
        if old != new:
            problem = f"{place}: holds {kind} made with {key} = {old!r}, this run has {key} = {new!r}"
            raise UserError(problem, remedy)
