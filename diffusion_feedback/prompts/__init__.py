"""Files of prompts: the one reader for generating, scoring, labelling and judging, of images and of texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import UserError, nearest, shown
from ..folders import expand
from ..records import PromptRecord
from .rows import READERS, Cells, read_rows
from .tabular import check_columns

__all__ = ["ENDINGS", "PROMPT_COLUMNS", "check_prompts", "prompt_column", "read_prompts", "to_prompt"]

PROMPT_COLUMNS = ("prompt", "prompts", "caption", "text")
"""Names that the column of prompts may have, in any case; the first of them that is there is taken."""

ENDINGS = tuple(READERS)
"""Endings of files that prompts are read from."""


def read_prompts(path: Path | str) -> list[PromptRecord]:
    """Read the prompts of a file, in its order.

    ``.txt`` (one a line), ``.json`` (a list of texts or of objects), ``.jsonl``, ``.csv``, ``.tsv`` and ``.parquet``.
    Tables name the prompt as ``PROMPT_COLUMNS`` says, in any case; the other columns go to ``extra``. Space around a
    prompt is left out, blank lines are skipped. Raises UserError naming file and row for a missing file or column, a row
    that is not valid, an empty prompt, or no prompt at all.
    """
    path = expand(path)
    prompts = [to_prompt(row, where) for where, row in read_rows(path)]
    if not prompts:
        raise UserError(f"{path}: holds no prompts", "put one prompt on each line, or one in each row")
    return prompts


def prompt_file(prompts: object) -> Path | None:
    """The file that ``prompts`` name, if any; a text that looks like the name of one is meant as such."""
    is_name = isinstance(prompts, str) and prompts.lower().endswith(ENDINGS) and "\n" not in prompts
    return expand(str(prompts)) if is_name or isinstance(prompts, Path) else None


def to_prompt(row: str | Cells, where: str) -> PromptRecord:
    """The prompt of one row that ``where`` names. Raises UserError where it has none."""
    if isinstance(row, str):
        return PromptRecord(_text(row, where), {})
    column = prompt_column(list(row), where)
    extra = {str(name): value for name, value in row.items() if name != column}
    return PromptRecord(_text(row[column], f"{where}, column {column!r}"), extra)


def check_prompts(prompts: Iterable[object], *, or_turns: bool = False) -> None:
    """Raise UserError for the first of ``prompts``, by its place, that is no text, nor a conversation where these are allowed."""
    for number, prompt in enumerate(prompts):
        turns = prompt if or_turns and isinstance(prompt, Sequence) else [None]
        if not isinstance(prompt, str) and not all(isinstance(turn, Mapping) for turn in turns):
            kind = "None" if prompt is None else f"a {type(prompt).__name__}"
            remedy = 'give a text, or turns such as {"role": "user", "content": "..."}' if or_turns else "give a text"
            raise UserError(f"`prompts`, item {number}: is {kind}", remedy)


def prompt_column(names: Sequence[str], where: str) -> str:
    """Which of the columns ``names`` holds the prompts. Raises UserError naming ``where`` for none, or two of one name."""
    by_name: Mapping[str, str] = {str(name).lower(): name for name in names}
    wanted = [name for name in PROMPT_COLUMNS if name in by_name]
    check_columns([str(name).lower() for name in names if str(name).lower() in wanted], where)
    if not wanted:
        problem = f"{where}: no column {', '.join(map(repr, PROMPT_COLUMNS))}"
        if len(names) == 1 and any(mark in str(names[0]) for mark in ";\t|"):
            raise UserError(f"{problem}; found {names[0]!r}", "separate the cells by commas (.csv) or by tabs (.tsv)")
        raise UserError(problem, f"rename the column of prompts; {nearest('prompt', [str(name) for name in names])}")
    return by_name[wanted[0]]


def _text(prompt: object, where: str) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}: found {shown(prompt)}, not a prompt", "give a prompt of at least one character")
    return prompt.strip()
