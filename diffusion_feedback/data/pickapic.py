"""Writing pairs as parquet with Pick-a-Pic's columns, which the field's training scripts read as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..records import PairRecord, atomic_write
from .places import reason
from .votes import BOTH_BAD

if TYPE_CHECKING:
    from datasets import Dataset

SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("are_different", pa.bool_()),
        ("has_label", pa.bool_()),
        ("num_example_per_prompt", pa.int64()),
    ]
)
_BALLOTS = (("user_id", pa.string()), (BOTH_BAD, pa.bool_()))


def write_pickapic(
    pairs: Iterable[PairRecord],
    path: str | Path,
    extra: Mapping[str, Sequence[object]] | None = None,
    *,
    row_group_size: int = 64,
    keep_ballots: bool = False,
) -> int:
    """Write ``pairs`` to the parquet file ``path`` as they come, whole or not at all; returns their number.

    ``extra`` columns hold one value a pair; ``keep_ballots`` adds who voted (user_id), and whether both sides were called
    bad (both_bad). The images' bytes are embedded, and the same pairs give the same file.
    Small row groups, as an image is read back with its whole group. Raises UserError for no pairs or where ``path``
    cannot be written; ValueError for extra columns of another length or name, or a weight that is not 1 / n.
    """
    path = Path(path)
    columns, schema = _columns(extra or {}, _BALLOTS if keep_ballots else ())
    plain = [name for name in schema.names if name not in ("jpg_0", "jpg_1")]
    number = 0
    try:
        with atomic_write(path) as temporary:
            # Neither dictionaries nor statistics make sense for image bytes.
            options = {"compression": "zstd", "use_dictionary": plain, "write_statistics": plain}
            with pq.ParquetWriter(temporary, schema, **options) as writer:
                for table in _tables(pairs, columns, schema, row_group_size):
                    number += len(table)
                    writer.write_table(table)
            if not number:
                raise UserError(f"{path}: no pairs to write", "give at least one pair")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})", "give another path") from error
    return number


def pickapic_dataset(pairs: Iterable[PairRecord], extra: Mapping[str, Sequence[object]]) -> Dataset:
    """``pairs`` as a ``datasets.Dataset`` with the columns of ``write_pickapic``, the images' bytes in memory."""
    import datasets

    columns, schema = _columns(extra)
    return datasets.Dataset(pa.concat_tables(_tables(pairs, columns, schema, 64)))


def read_labels(path: Path) -> Dataset:
    """All columns of the parquet file ``path`` but those of the images."""
    import datasets

    names = [name for name in pq.read_schema(path).names if name not in ("jpg_0", "jpg_1")]
    return datasets.Dataset(pq.read_table(path, columns=names))


def _columns(
    extra: Mapping[str, Sequence[object]], own: Sequence[tuple[str, pa.DataType]] = ()
) -> tuple[dict[str, pa.Array], pa.Schema]:
    columns = {name: pa.array(values) for name, values in extra.items()}
    if clash := set(columns) & set(SCHEMA.names):
        raise ValueError(f"extra columns {sorted(clash)} are Pick-a-Pic's own")
    return columns, pa.schema([*SCHEMA, *own, *(pa.field(name, column.type) for name, column in columns.items())])


def _tables(
    pairs: Iterable[PairRecord], columns: Mapping[str, pa.Array], schema: pa.Schema, size: int
) -> Iterator[pa.Table]:
    """``size`` pairs at a time, with their part of the extra ``columns``, of which there is one value a pair."""
    number = 0
    for group in _groups(pairs, size):
        extras = [column[number : number + len(group)] for column in columns.values()]
        number += len(group)
        if any(len(values) != len(group) for values in extras):
            raise ValueError("extra columns are shorter than the pairs")
        ballots = _ballots(group) if BOTH_BAD in schema.names else []
        yield pa.Table.from_arrays([*_arrays(group), *ballots, *extras], schema=schema)
    if any(len(column) != number for column in columns.values()):
        raise ValueError(f"extra columns are longer than the {number} pairs")


def _groups(pairs: Iterable[PairRecord], size: int) -> Iterator[list[PairRecord]]:
    rest = iter(pairs)
    while True:
        try:
            group = list(islice(rest, size))
        except OSError as error:  # of what is read, not of what is written
            problem = f"{error.filename or 'the pairs'}: cannot be read ({reason(error)})"
            raise UserError(problem, "check the data by itself first") from error
        if not group:
            return
        yield group


def _arrays(group: Sequence[PairRecord]) -> list[pa.Array]:
    """One row group's columns in the order of the schema."""
    rows = [
        (p.prompt, p.image_0, p.image_1, p.label_0, 1 - p.label_0, True, True, _num_example_per_prompt(p))
        for p in group
    ]
    return [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]


def _ballots(group: Sequence[PairRecord]) -> list[pa.Array]:
    values = ([pair.ballot.annotator or None for pair in group], [pair.ballot.is_both_bad for pair in group])
    return [pa.array(column, kind) for column, (_, kind) in zip(values, _BALLOTS, strict=True)]


def _num_example_per_prompt(pair: PairRecord) -> int:
    number = max(1, round(1 / pair.weight))
    if abs(1 / number - pair.weight) > 1e-9:
        raise ValueError(f"{pair.source}: weight {pair.weight} is not 1 / num_example_per_prompt")
    return number
