"""Where data comes from, as its rows say: the prompts, and the scorers that made the labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..records import Text, TextRecord
from .columns import Columns
from .readers import open_pairs
from .tables import HubSource, ParquetSource, read_batches
from .texts import open_texts

if TYPE_CHECKING:
    from datasets import Dataset

_NAMES, _RECIPES = "scorers", "recipe_ids"


def prompts_of_pairs(
    data: str | Path | Dataset, *, split: str, revision: str | None, columns: Columns = None
) -> Iterator[str]:
    """The prompts of pairs of images, which are not read themselves. Raises UserError as their reader does."""
    source = open_pairs(data, split=split, revision=revision, columns=columns).source
    for row in source.rows(lambda part: True):
        if isinstance(prompt := row.values.get("prompt"), str):
            yield prompt


def prompts_of_texts(
    data: str | Path | Dataset, *, split: str, revision: str | None, columns: Columns = None
) -> Iterator[Text]:
    """The prompts of texts; of a whole conversation what stands before its first answer. Raises UserError as their reader."""
    for record in open_texts(data, split=split, revision=revision, columns=columns, on_bad_row="skip"):
        yield _prompt_of(record)


def _prompt_of(record: TextRecord) -> Text:
    if record.prompt or isinstance(record.chosen, str):
        return record.prompt
    answers = (place for place, turn in enumerate(record.chosen) if turn.get("role") == "assistant")
    return record.chosen[: next(answers, len(record.chosen))]


def judges_of_pairs(
    data: str | Path | Dataset, *, split: str, revision: str | None, columns: Columns = None
) -> dict[str, str]:
    """The scorers whose labels the pairs of images have, by name their recipe id, "" where that is not recorded.

    Empty where no row names any, as of people's votes. Raises UserError as their reader does.
    """
    source = open_pairs(data, split=split, revision=revision, columns=columns).source
    known: dict[str, str] = {}
    if isinstance(source, ParquetSource | HubSource) and _NAMES in source.unused:
        for row in _rows(source, [name for name in (_NAMES, _RECIPES) if name in source.unused]):
            _add(known, row)
    return known


def _rows(source: ParquetSource | HubSource, columns: list[str]) -> Iterator[Mapping[str, object]]:
    if isinstance(source, HubSource):
        yield from (row for _, _, row in source.hub.rows(columns))
        return
    for file in source.files:
        for _, _, batch in read_batches(file, 4096, columns):
            yield from batch.to_pylist()


def _add(known: dict[str, str], row: Mapping[str, object]) -> None:
    names, recipes = row.get(_NAMES), row.get(_RECIPES)
    if isinstance(names, str):
        names = [names]
    if isinstance(names, list):
        ids = recipes if isinstance(recipes, list) and len(recipes) == len(names) else [""] * len(names)
        known.update((str(name), str(recipe or "")) for name, recipe in zip(names, ids, strict=True) if name)
