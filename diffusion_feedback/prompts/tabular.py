"""Text files and tables of cells that people bring: UTF-8, CSV and TSV; one reader of each, for prompts and for texts."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TextIO, cast

from ..errors import UserError

_UNCLOSED = "close every quotation mark, and double those inside a quoted cell"


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """``path`` as UTF-8 text, with or without a byte order mark, unpacked where it ends in .gz, its line ends as they are.

    Raises UserError for a file that cannot be read, and naming the line and byte that are not UTF-8.
    """
    try:
        with _opened(path) as file:
            head = file.read(4096)
        zeros = max(head[0::2].count(0), head[1::2].count(0))
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or zeros > len(head) // 4:
            raise UserError(f"{path}: not UTF-8 text (it looks like UTF-16)", "save the file as UTF-8")
        with _opened(path) as file, TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({_first_bad_byte(path)})", "save the file as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})", "give a file that can be read") from error


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _first_bad_byte(path: Path) -> str:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}, byte {error.start}"
    return "at its end"


def check_columns(names: Sequence[str], where: str) -> None:
    """Raise UserError for two columns of one name: one of them would be lost."""
    if twice := [name for name, count in Counter(names).items() if count > 1 and name]:
        raise UserError(f"{where}: two columns are named {twice[0]!r}", "give every column a name of its own")


def cell_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and cells of every row of a CSV or TSV file, the names of its columns first; blank rows are none.

    Rows may have another number of cells than there are names: ``width_problem`` says so. Raises UserError for what is no
    table, and for two columns of one name.
    """
    is_tsv = ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]]
    rows = _csv(path, "\t" if is_tsv else ",") if not is_tsv or _is_quoted_tsv(path) else _plain(path)
    header = True
    for number, cells in rows:
        if header:
            cells = [name.strip() for name in cells]
            check_columns(cells, f"{path}, line {number}" if is_tsv else str(path))
            header = False
        yield number, cells


def width_problem(where: str, cells: Sequence[str], names: Sequence[str]) -> str | None:
    """What is wrong with a row of ``cells`` under ``names``, where their numbers differ."""
    return None if len(cells) == len(names) else f"{where}: {len(cells)} cells, the header has {len(names)}"


def _csv(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    with open_text(path) as file:
        # Strict: a quotation mark that is never closed would swallow all rows behind it.
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            yield from ((reader.line_num, cells) for cells in reader if cells)
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})", _UNCLOSED) from error


def _plain(path: Path) -> Iterator[tuple[int, list[str]]]:
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.rstrip("\r\n").split("\t")


def _is_quoted_tsv(path: Path) -> bool:
    """Whether cells between tabs are quoted as in CSV, and not to be read as they stand.

    A prompt of PartiPrompts begins with a quotation mark that belongs to it, and no cell of that file is quoted; what
    writes tables (pandas, spreadsheets) quotes cells that hold marks, tabs or line ends. So a file is quoted where a cell
    has its inner marks doubled, or where the whole of it is a table only with tabs and line ends inside of cells.
    """
    if any(_is_quoted(cell) for _, cells in _plain(path) for cell in cells):
        return True
    width, spans = 0, False
    try:
        for _, cells in _csv(path, "\t"):
            width = width or len(cells)
            if len(cells) != width:
                return False
            spans = spans or any("\n" in cell or "\t" in cell for cell in cells)
    except UserError:  # its marks are not those of CSV, so they belong to the texts
        return False
    return spans


def _is_quoted(cell: str) -> bool:
    """Whether ``cell`` is written as CSV writers do: in quotation marks, those inside doubled."""
    inner = cell[1:-1]
    return len(cell) > 2 and cell[0] == cell[-1] == '"' and '""' in inner and '"' not in inner.replace('""', "")
