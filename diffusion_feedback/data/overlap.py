"""What two data sets have in common: prompts, and images or completions of the same content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError, plural, shown
from ..records import content_hash
from .columns import Columns
from .image_index import image_index
from .places import name_of_data
from .readers import open_pairs
from .text_pairs import plain_text
from .texts import holds_texts, open_texts

if TYPE_CHECKING:
    from .places import Dataset

_SPLIT = "split="
_EXAMPLES = 2


class _Row(NamedTuple):
    """One usable row: its prompt, the hashes of its images or completions, and where it stands."""

    prompt: str
    contents: Sequence[str]
    source: str


@dataclass
class Overlap:
    """What of the data set ``name`` stands in another one too; ``medium`` is "image" or "completion".

    Of its ``num_prompts`` prompts ``shared_prompts`` do, upper and lower case and blanks aside, in ``num_rows`` of its
    rows; of its ``num_contents`` images or completions ``shared_contents``, byte by byte. ``examples`` name a few rows.
    """

    name: str
    medium: str
    num_prompts: int = 0
    num_contents: int = 0
    shared_prompts: set[str] = field(default_factory=set)
    shared_contents: set[str] = field(default_factory=set)
    num_rows: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """In plain text, a line for each kind."""
        if not self.shared_prompts and not self.shared_contents:
            return f"  against {self.name}: no prompt and no {self.medium} in common"
        lines = []
        if self.shared_prompts:
            of = f"{len(self.shared_prompts):,} of its {plural(self.num_prompts, 'prompt')} {_stand(self.shared_prompts)} here too"
            lines.append(f"  ! against {self.name}: {of}, in {self.num_rows:,} of its rows")
        if self.shared_contents:
            of = f"{len(self.shared_contents):,} of its {plural(self.num_contents, self.medium)} {_stand(self.shared_contents)} here too"
            lines.append(f"  ! against {self.name}: {of}")
        lines += [f"      {example}" for example in self.examples]
        return "\n".join(
            [*lines, "      -> if one is to test what the other has taught, leave these out of one of them"]
        )


def _stand(shared: Sized) -> str:
    return "stands" if len(shared) == 1 else "stand"


def find_overlap(
    path: str | Path | Dataset,
    other: str | Path | Dataset,
    *,
    split: str,
    revision: str | None,
    columns: Columns = None,
) -> Overlap:
    """What of ``other`` stands in ``path`` too: both are read, images as far as their bytes.

    ``other`` may be "split=NAME": another split of ``path``. ``columns`` are those of both. Raises UserError for data that
    cannot be read, and for images against texts.
    """
    is_text = holds_texts(path, split=split, revision=revision, columns=columns)
    name = name_of_data(other)
    if isinstance(other, str) and other.startswith(_SPLIT):
        theirs = _rows(path, is_text, split=other.removeprefix(_SPLIT), revision=revision, columns=columns)
    elif holds_texts(other, split=split, revision=None, columns=columns) != is_text:
        raise UserError(f"{name}: images against texts", "compare data of one kind")
    else:
        theirs = _rows(other, is_text, split=split, revision=None, columns=columns)
    prompts: dict[str, str] = {}
    contents: set[str] = set()
    for row in _rows(path, is_text, split=split, revision=revision, columns=columns):
        prompts.setdefault(_normal(row.prompt), row.source)
        contents.update(row.contents)
    overlap, seen_prompts, seen = Overlap(name, "completion" if is_text else "image"), set[str](), set[str]()
    for row in theirs:
        prompt = _normal(row.prompt)
        seen_prompts.add(prompt)
        seen.update(row.contents)
        overlap.shared_contents.update(each for each in row.contents if each in contents)
        if prompt and prompt in prompts:
            overlap.num_rows += 1
            if prompt not in overlap.shared_prompts and len(overlap.examples) < _EXAMPLES:
                overlap.examples.append(f"{shown(row.prompt)} in {row.source} and in {prompts[prompt]}")
            overlap.shared_prompts.add(prompt)
    overlap.num_prompts, overlap.num_contents = len(seen_prompts), len(seen)
    return overlap


def _rows(
    path: str | Path | Dataset, is_text: bool, *, split: str, revision: str | None, columns: Columns
) -> Iterator[_Row]:
    where: dict[str, Any] = {"split": split, "revision": revision, "columns": columns}
    if is_text:
        texts = open_texts(path, on_bad_row="skip", **where)
        for example in texts.log.watched(texts.scan(), "comparing", texts.num_rows):
            sides = [plain_text(side) for side in (example.chosen, example.rejected) if side is not None]
            prompt = plain_text(example.prompt)
            # Short answers recur under other prompts: the same completion is one of the same prompt.
            yield _Row(prompt, [content_hash(_normal(prompt), side) for side in sides], example.source)
        return
    pairs = open_pairs(path, on_bad_row="skip", ties="soft", decode=False, **where)
    with image_index(None, pairs.identity, decode=False) as index:
        for record, _ in pairs.log.watched(pairs.scan_facts(index), "comparing", pairs.num_rows):
            yield _Row(record.prompt, [image.key for image in record.images], record.source)


def _normal(prompt: str) -> str:
    """``prompt`` in one spelling of cases and blanks."""
    return " ".join(prompt.casefold().split())
