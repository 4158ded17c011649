"""Prompts of benchmarks, with their styles, from files of every usual form, a folder, or the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, first_line
from ..prompts import ENDINGS, to_prompt
from ..prompts.rows import Cells, read_rows
from ..records import PromptRecord

_HUB_PREFIX = "hf://datasets/"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(_HUB_PREFIX + r"[\w.-]+/[\w.-]+(/[\w./-]+)?")


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts in order, ``extra["style"]`` naming the style where there is one.

    ``files`` are those that were read, ``read`` all of their prompts: where these are more, repetitions were left out.
    """

    prompts: tuple[PromptRecord, ...]
    files: tuple[Path, ...]
    read: tuple[PromptRecord, ...]

    @property
    def duplicates(self) -> int:
        """How many prompts were left out because they had come before."""
        return len(self.read) - len(self.prompts)


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
    records: list[PromptRecord] = []
    for style, path in named.items():
        rows = list(read_rows(path))
        if not rows:
            raise UserError(f"{path}: holds no prompts", "put one prompt on each line, or one in each row")
        # A file that is given by hand may be the one of a style: photo.json.
        own = style or (path.stem if path.stem in files else "")
        records.extend(_to_prompt(row, where, own, style_columns, style_of) for where, row in rows)
    first = {prompt.prompt: prompt for prompt in reversed(records)}
    kept = [prompt for prompt in records if not unique or first[prompt.prompt] is prompt]
    return PromptSet(tuple(kept), tuple(named.values()), tuple(records))


# --- files -----------------------------------------------------------------------------------------------------------


def _find_files(source: str, files: Mapping[str, str]) -> dict[str, Path]:
    """The file of each style on this machine."""
    path = Path(source).expanduser()
    if path.is_file():
        return {"": path}
    if path.is_dir():
        return _in_folder(path, files)
    is_hub_id = bool(_HUB_ID.fullmatch(source)) and source[0] != "." and path.suffix not in ENDINGS
    if not is_hub_id and not _HUB_FILE.fullmatch(source):
        raise UserError(f"{source}: no such file or folder", "give a file or a folder of prompts, or a hub id")
    owner, name, *rest = source.removeprefix(_HUB_PREFIX).split("/", 2)
    wanted = {"": rest[0]} if rest else dict(files)
    if not wanted:
        raise UserError(f"{source}: which of its files?", f"give `prompts` {_HUB_PREFIX}{owner}/{name}/path/of/file")
    return {style: _download(f"{owner}/{name}", file, list(wanted.values())) for style, file in wanted.items()}


def _in_folder(folder: Path, files: Mapping[str, str]) -> dict[str, Path]:
    if not files:
        raise UserError(f"{folder}: is a folder", "give the file of the prompts")
    places = {style: (folder / file, folder / Path(file).name) for style, file in files.items()}
    by_style = {style: next((path for path in paths if path.is_file()), None) for style, paths in places.items()}
    if missing := [Path(files[style]).name for style, path in by_style.items() if path is None]:
        raise UserError(f"{folder}: {', '.join(missing)} missing", f"put them there: {_names(files.values())}")
    return {style: path for style, path in by_style.items() if path is not None}


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
            "and give it as `prompts`",
        ) from error


def _names(files: Iterable[str]) -> str:
    return ", ".join(Path(file).name for file in files)


# --- rows ------------------------------------------------------------------------------------------------------------


def _to_prompt(
    row: str | Cells, where: str, style: str, style_columns: Sequence[str], style_of: Callable[[str], str] | None
) -> PromptRecord:
    record = to_prompt(row, where)
    columns = {name.lower(): name for name in record.extra}
    named = next((columns[name] for name in style_columns if name in columns), None)
    if not style and named is not None:
        style = record.extra[named]
        if not isinstance(style, str) or not style.strip():
            raise UserError(f"{where}, column {named!r}: found {style!r}", "name the style of every prompt")
    if not style and style_of is not None:
        style = style_of(record.prompt)
    return PromptRecord(record.prompt, {"style": style.strip()} if style else {})
