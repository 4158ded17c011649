"""Pairs and texts of any form to one file of the field's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.pickapic import write_pickapic
from ..data.places import check_not_inside
from ..data.readers import open_pairs
from ..data.text_output import each_answer, write_texts
from ..data.texts import holds_texts, open_texts
from ..errors import UserError
from ..folders import at_home, expand
from ..progress import progress
from .checking import reward_columns
from .data_settings import ConvertSettings, DataSource
from .outputs import output_file
from .settings import made_of_keywords, shows

if TYPE_CHECKING:
    from ..data.places import Dataset


@dataclass(frozen=True, slots=True)
class Converted:
    """``num`` pairs or examples (``unit``) stand in ``output``; ``notes`` say what was left out or guessed."""

    output: Path
    num: int
    unit: str
    source: str
    notes: Sequence[str]


_KINDS = (ConvertSettings, DataSource)


@shows(*_KINDS)
def convert(path: str | Path | Dataset, output: str | Path, **settings: object) -> Converted:
    """Write the data set ``path`` to the file ``output``: pairs with Pick-a-Pic's columns and the images inside, as
    .parquet; texts with TRL's columns, as .jsonl or .parquet.

    ``path``: a file, glob, folder or hub id, or a ``datasets.Dataset``.
    ``settings`` are the fields of ConvertSettings and DataSource. Raises UserError for data that cannot be read, a bad row unless they
    are skipped, and an output that is there or is one of the inputs.
    """
    given, source = made_of_keywords(settings, *_KINDS)
    path, where, file = at_home(path), asdict(source), expand(output)
    reader: Any
    write: Any
    if is_text := holds_texts(path, **where):
        unit, write, endings = "example", write_texts, [".jsonl", ".parquet"]
        reader = open_texts(path, on_bad_row=given.on_bad_row, **where)
        if rewards := reward_columns(path, where):
            problem = f"{path}: has {' and '.join(rewards)}, for which the forms that are written have no place"
            raise UserError(problem, "train on it as it is: trajectories need no conversion")
    else:
        unit, write, endings = "pair", write_pickapic, [".parquet"]
        reader = open_pairs(path, on_bad_row=given.on_bad_row, ties="soft", **where)
        write = partial(write_pickapic, keep_ballots=reader.has_ballots)
        if given.each_answer:
            raise UserError("`each_answer`: means nothing for images", "leave it out")
    _check_not_input(file, reader.sources if is_text else [reader.source])
    check_not_inside(file, [str(path)] if isinstance(path, str | Path) else [])
    with output_file(file, endings, "convert", overwrite=given.overwrite):
        rows: Any = progress(reader, desc="convert", total=reader.num_rows, unit=unit)
        num = write(each_answer(rows) if given.each_answer else rows, file)
    left_out = [f"left out: {reason}" for _, reason in reader.log.skipped]
    notes = reader.notes if is_text else [f"note: {note}" for note in reader.notes]
    return Converted(file, num, unit, f"{reader.format} ({reader.log.counts})", [*left_out, *notes])


def _check_not_input(output: Path, sources: Sequence[object]) -> None:
    """Raise UserError where ``output`` is one of the files that are read: what is left out of it would be lost."""
    files = [file for source in sources for file in getattr(source, "files", None) or [getattr(source, "file", None)]]
    if output.exists() and any(file is not None and file.exists() and file.samefile(output) for file in files):
        raise UserError(f"{output}: is one of the inputs", "give another name: what is left out would be lost")
