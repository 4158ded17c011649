"""Columns that stand beside what a format reads: which of them say more, and must not be dropped in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import shown
from ..records import TextRecord
from .text_cells import TextCells

# Words that a model should have read before its answer, by the names that data sets give them.
PROMPT_LIKE = frozenset({
    "prompt", "prompts", "question", "instruction", "instructions", "input", "inputs", "query", "context", "problem",
    "system", "system_prompt", "system_message", "history", "messages", "conversation", "conversations", "dialogue",
})  # fmt: skip
# Which of two answers is the better one, or whether one is any good.
LABELS = frozenset({"label", "labels", "kto_tag", "preference", "winner"})


def refuse_unread(row: TextCells, record: TextRecord, form: str) -> None:
    """Raise BadRow for a column of ``row`` that was not read though it changes what ``record`` means.

    Words of a prompt are needed unless the record holds them already. A prompt that was only guessed, as what two texts
    share, has no word for another column to be held against. Labels change preferences and completions.
    """
    for column in row.unread():
        name, value = column.strip().lower(), row.cells[column]
        is_guess = record.rejected is not None and isinstance(record.chosen, str) and "prompt" not in row.seen
        if name in PROMPT_LIKE and (is_guess or not _holds(record, value)):
            says = f"found {shown(value)}, which {form} do not read"
            remedy = "name the columns as a known format does, such as prompt, chosen, rejected; or remove this one"
            raise row.bad("unread", column, f"{says}: {remedy}")
        if name in LABELS and record.chosen and (record.prompt or record.is_conversational):
            says = f"found {shown(value)}, which {form} do not read"
            raise row.bad("unread", column, f"{says}: turn the rows as it says, or remove the column")


def _holds(record: TextRecord, value: object) -> bool:
    """Whether all words of ``value``, a text or turns, stand in ``record``."""
    words = list(_words(value))
    sides = [record.prompt, record.chosen, *([record.rejected] if record.rejected is not None else [])]
    texts = [text for side in sides for text in _words(side)]
    return bool(words) and all(any(word in text for text in texts) for word in words)


def _words(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, Mapping):
        yield from _words(value.get("content", value.get("value", str(value))))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _words(item)
    elif value is not None:
        yield str(value)
