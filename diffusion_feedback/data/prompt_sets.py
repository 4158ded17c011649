"""Prompts of benchmarks, with their styles, from files of every usual form, a folder, or the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..catalog import nearest
from ..errors import UserError, first_line
from ..records import PromptRecord, parse_json
from .folders import read_table

_PROMPT_COLUMNS = ("prompt", "prompts", "caption", "text")
_HUB_PREFIX = "hf://datasets/"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(_HUB_PREFIX + r"[\w.-]+/[\w.-]+(/[\w./-]+)?")

Cells = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts in order, ``extra["style"]`` naming the style where there is one.

    ``files`` are those that were read; ``duplicates`` prompts were left out because they had come before.
    """

    prompts: tuple[PromptRecord, ...]
    files: tuple[Path, ...]
    duplicates: int = 0


def read_prompt_set(
    source: str,
    *,
    files: Mapping[str, str],
    style_columns: Sequence[str] = (),
    style_of: Callable[[str], str] | None = None,
    unique: bool = False,
) -> PromptSet:
    """Read the prompts of a benchmark from ``source``: a file, a folder that holds ``files``, or a hub data set.

    ``files`` maps styles to file names; under the style "" a file's rows name their own style in one of
    ``style_columns``, or ``style_of`` tells it from the prompt. A single file may stand for them all. A hub id is
    ``owner/name``, or ``hf://datasets/owner/name/path/of/file``. Formats: ``.json`` (a list of strings or of objects), ``.jsonl``,
    ``.csv``, ``.tsv``, ``.parquet``, ``.txt`` (one a line). Column names may be of any case. Raises UserError naming
    file and row for what is missing or not valid, and the files to put in place where the hub cannot be reached.
    """
    named = _find_files(source, files)
    found: list[PromptRecord] = []
    for style, path in named.items():
        rows = list(_read(path))
        if not rows:
            raise UserError(f"{path}: holds no prompts", "put one prompt on each line, or one in each row")
        # A file that is given by hand may be the one of a style: photo.json.
        own = style or (path.stem if path.stem in files else "")
        found.extend(_to_prompt(row, where, own, style_columns, style_of) for where, row in rows)
    first = {prompt.prompt: prompt for prompt in reversed(found)}
    kept = [prompt for prompt in found if not unique or first[prompt.prompt] is prompt]
    return PromptSet(tuple(kept), tuple(named.values()), len(found) - len(kept))


# --- files -----------------------------------------------------------------------------------------------------------


def _find_files(source: str, files: Mapping[str, str]) -> dict[str, Path]:
    """The file of each style on this machine."""
    path = Path(source).expanduser()
    if path.is_file():
        return {"": path}
    if path.is_dir():
        return _in_folder(path, files)
    is_hub_id = bool(_HUB_ID.fullmatch(source)) and source[0] != "." and path.suffix not in _READERS
    if not is_hub_id and not _HUB_FILE.fullmatch(source):
        raise UserError(f"{source}: no such file or folder", "give a file or a folder of prompts, or a hub id")
    owner, name, *rest = source.removeprefix(_HUB_PREFIX).split("/", 2)
    wanted = {"": rest[0]} if rest else dict(files)
    if not wanted:
        raise UserError(f"{source}: which of its files?", f"give --prompts {_HUB_PREFIX}{owner}/{name}/path/of/file")
    return {style: _download(f"{owner}/{name}", file, list(wanted.values())) for style, file in wanted.items()}


def _in_folder(folder: Path, files: Mapping[str, str]) -> dict[str, Path]:
    if not files:
        raise UserError(f"{folder}: is a folder", "give the file of the prompts")
    places = {style: (folder / file, folder / Path(file).name) for style, file in files.items()}
    found = {style: next((path for path in paths if path.is_file()), None) for style, paths in places.items()}
    if missing := [Path(files[style]).name for style, path in found.items() if path is None]:
        raise UserError(f"{folder}: {', '.join(missing)} missing", f"put them there: {_names(files.values())}")
    return {style: path for style, path in found.items() if path is not None}


def _download(repository: str, file: str, all_files: Sequence[str]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset"))
    # Its errors of missing files and of no network are OSErrors and ValueErrors too.
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise UserError(
            f"{repository}/{file}: no such file on this machine, and not to be had from the hub ({first_line(error)})",
            f"put {_names(all_files)} from https://huggingface.co/datasets/{repository} into a folder, "
            "and give --prompts FOLDER",
        ) from error


def _names(files: Iterable[str]) -> str:
    return ", ".join(Path(file).name for file in files)


# --- rows ------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Iterator[tuple[str, str | Cells]]:
    """Where each row stands, and the row: a prompt, or cells by column."""
    if path.suffix.lower() not in _READERS:
        problem = f"{path}: cannot read prompts from a file ending in {path.suffix!r}"
        raise UserError(problem, nearest(path.suffix, list(_READERS)))
    try:
        yield from _READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error


def _read_json(path: Path) -> Iterator[tuple[str, str | Cells]]:
    remedy = 'write a JSON list of prompts: ["a cat", "a dog"]'
    found = parse_json(path.read_bytes(), str(path), remedy)
    if not isinstance(found, list):
        kind = "an object" if isinstance(found, dict) else repr(found)[:60]
        raise UserError(f"{path}: holds {kind}, not a list", remedy)
    for number, row in enumerate(found):
        if not isinstance(row, str | dict):
            raise UserError(f"{path}, item {number}: found {repr(row)[:60]}, not a prompt", remedy)
        yield f"{path}, item {number}", row


def _read_lines(path: Path) -> Iterator[tuple[str, str | Cells]]:
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def _read_rows(path: Path) -> Iterator[tuple[str, str | Cells]]:
    for number, row in read_table(path):
        yield f"{path}, line {number}", row


def _read_tsv(path: Path) -> Iterator[tuple[str, str | Cells]]:
    # Not csv: a prompt of PartiPrompts begins with a quotation mark that belongs to it, and no cell is quoted.
    header: list[str] | None = None
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        if header is None:
            header = cells
        elif len(cells) != len(header):
            problem = f"{path}, line {number}: {len(cells)} cells, the header has {len(header)}"
            raise UserError(problem, "separate the cells by tabs, one row a line")
        else:
            yield f"{path}, line {number}", dict(zip(header, cells, strict=True))


def _read_parquet(path: Path) -> Iterator[tuple[str, str | Cells]]:
    try:
        schema = pq.read_schema(path)
        # A table of pairs holds images too, which need not be read for their prompts.
        wanted = [field.name for field in schema if not _is_image(field.type)]
        table = pq.read_table(path, columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a parquet file ({error})", "write it anew, or give another format") from error
    for number, row in enumerate(table.to_pylist()):
        yield f"{path}, row {number}", row


def _is_image(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


_READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, str | Cells]]]] = {
    ".json": _read_json,
    ".jsonl": _read_rows,
    ".csv": _read_rows,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".txt": _read_lines,
}


def _to_prompt(
    row: str | Cells, where: str, style: str, style_columns: Sequence[str], style_of: Callable[[str], str] | None
) -> PromptRecord:
    cells: dict[str, Any] = {"prompt": row} if isinstance(row, str) else {str(k).lower(): v for k, v in row.items()}
    column = next((name for name in _PROMPT_COLUMNS if name in cells), None)
    if column is None:
        problem = f"{where}: no column {', '.join(map(repr, _PROMPT_COLUMNS))}"
        raise UserError(problem, f"rename the column of prompts; {nearest('prompt', list(cells))}")
    prompt = cells[column]
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}: found {prompt!r}, not a prompt", "give a prompt of at least one character")
    prompt = prompt.strip()
    named = next((name for name in style_columns if name in cells), None)
    if not style and named is not None:
        style = cells[named]
        if not isinstance(style, str) or not style.strip():
            raise UserError(f"{where}, column {named!r}: found {style!r}", "name the style of every prompt")
    if not style and style_of is not None:
        style = style_of(prompt)
    return PromptRecord(prompt, {"style": style.strip()} if style else {})
