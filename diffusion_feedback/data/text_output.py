"""Writing texts in TRL's forms, as JSON Lines or parquet, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..foreign import reading
from ..records import Text, TextRecord, atomic_write
from .votes import BOTH_BAD

_DEFAULTS = {"margin": 0.0, "chosen_probability": 1.0, "weight": 1.0}


def to_row(record: TextRecord) -> dict[str, object]:
    """One row in TRL's explicit form: prompt, chosen, rejected; prompt, completion, label; prompt, completion;
    messages; or text. Margin, chosen_probability, weight, user_id, tools and chat_template_kwargs where they say something.
    """
    row: dict[str, Any]
    if record.rejected is not None:
        row = {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected}
    elif record.label is not None:
        row = {"prompt": record.prompt, "completion": record.chosen, "label": record.label}
    elif record.prompt:
        row = {"prompt": record.prompt, "completion": record.chosen}
    else:
        row = {"messages" if record.is_conversational else "text": record.chosen}
    row = {name: _plain(value) for name, value in row.items()}
    row |= {name: value for name, default in _DEFAULTS.items() if (value := getattr(record, name)) != default}
    if record.ballot.annotator:
        row["user_id"] = record.ballot.annotator
    if record.ballot.is_both_bad:
        row[BOTH_BAD] = True
    if record.token_ids is not None:
        row |= dict(zip(("chosen_token_ids", "rejected_token_ids"), map(list, record.token_ids), strict=True))
    others = {name: value for name, value in record.template.items() if name != "tools"}
    if "tools" in record.template:
        row["tools"] = record.template["tools"]
    return row | ({"chat_template_kwargs": others} if others else {})


def _plain(value: Text | bool) -> object:
    return [dict(turn) for turn in value] if isinstance(value, tuple) else value


def each_answer(records: Iterable[TextRecord]) -> Iterator[TextRecord]:
    """One record for each of the assistant's turns, what came before it as its prompt; what has no turns stays as it is.

    Raises UserError for preferences: what is better is a whole completion, not each of its turns.
    """
    for record in records:
        if isinstance(record.chosen, str):
            yield record
            continue
        if record.rejected is not None or record.label is not None:
            problem = f"{record.source}: a preference, and the turns of a completion are not preferred one by one"
            raise UserError(problem, "leave `each_answer` out")
        turns = (*(record.prompt or ()), *record.chosen)
        first = len(turns) - len(record.chosen)
        for number in range(first, len(turns)):
            if turns[number]["role"] == "assistant":
                prompt, answer = turns[:number], turns[number : number + 1]
                yield replace(record, prompt=prompt, chosen=answer)


def write_texts(records: Iterable[TextRecord], path: str | Path) -> int:
    """Write ``records`` to ``path`` (.jsonl or .parquet) in their order, whole or not at all; returns their number.

    Raises UserError for another ending, for no records, where ``path`` cannot be written, and for records that no
    parquet table can hold: of several forms, or with turns that have more than role and content.
    """
    path = Path(path)
    write = {".jsonl": _write_jsonl, ".parquet": _write_parquet}.get(path.suffix)
    if write is None:
        raise UserError(f"{path}: cannot write texts to such a file", "give a name that ends in .jsonl or .parquet")
    try:
        with atomic_write(path) as temporary:
            number = write(map(to_row, _read(records)), temporary)
            if not number:
                raise UserError(f"{path}: no texts to write", "give at least one example")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})", "give another path") from error
    return number


def _read(records: Iterable[TextRecord]) -> Iterator[TextRecord]:
    """``records``, whose reading may fail as writing may: the file that is to blame is another one."""
    with reading("the texts", "rows", "copy or download them again"):
        yield from records


def _write_jsonl(rows: Iterator[dict[str, object]], path: Path) -> int:
    number = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
    return number


def _write_parquet(rows: Iterator[dict[str, object]], path: Path) -> int:
    table = [_flat(row) for row in rows]
    # A column that some rows lack is empty there; what tells the forms apart must be in all rows.
    forms = {tuple(sorted(_FORMS & row.keys())) for row in table}
    if len(forms) > 1:
        listed = " and ".join(sorted(", ".join(form) for form in forms))
        raise UserError(f"examples of several forms ({listed}) in one parquet file", "write them as .jsonl")
    names = list(dict.fromkeys(name for row in table for name in row))
    try:
        columns = [pa.array([row.get(name, _DEFAULTS.get(name)) for row in table]) for name in names]
    except pa.ArrowException as error:
        raise UserError(f"texts and turns in one parquet column ({error})", "write them as .jsonl") from error
    pq.write_table(pa.Table.from_arrays(columns, names), path, compression="zstd")
    return len(table)


_FORMS = frozenset({"chosen", "rejected", "completion", "label", "messages", "text"})


def _flat(row: dict[str, object]) -> dict[str, object]:
    """``row`` with what the chat template reads as JSON text, as tables give every struct the fields of all."""
    for name in ("prompt", "chosen", "rejected", "completion", "messages"):
        turns = row.get(name)
        for turn in turns if isinstance(turns, list) else ():
            if extra := turn.keys() - {"role", "content"}:
                problem = f"column {name!r}: a turn has {', '.join(sorted(extra))} besides role and content"
                raise UserError(problem, "parquet cannot hold that as it is: write .jsonl")
    template = {name: json.dumps(row[name]) for name in ("tools", "chat_template_kwargs") if name in row}
    return row | template
