"""Pairs in tables: parquet files on this machine, and data sets on the hub through ``datasets``."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError, first_line, is_out_of_memory
from ..foreign import check_whole, reading
from .columns import AS_THEY_ARE, ColumnNames
from .pair_layouts import TableLayout
from .places import HubData, check_regular, stamp_of
from .rows import SIDES, Location, PairRow, Part, read_image

_ROWS_AT_ONCE, _CELLS_AT_ONCE = 32, 4096
_KEPT_BYTES = 256 * 2**20
_OPEN_FILES = 16


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open ``file`` to be read page by page. Raises UserError where it is no parquet file, or its footer is damaged."""
    try:
        check_regular(file)
        # By default whole row groups of encoded images would be held, twice over.
        return pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        if is_out_of_memory(error):  # Arrow's is a kind of ArrowException too, and no fault of the file
            raise
        check_whole(file)
        problem = f"{file}: not a parquet file ({first_line(error)})"
        raise UserError(problem, "write or download the file again") from error


class RowGroups:
    """Row groups of ``files`` for random access from any number of threads; the recently used ones stay in memory.

    A row group is read once whoever asks for it at a time, and a file's footer, which names all of its row groups, is
    parsed once as long as the file stays open. Raises UserError for a file that is damaged, or has changed since
    ``stamps`` (size and time of change of each file) were taken.
    """

    def __init__(self, files: Sequence[Path], stamps: Sequence[tuple[int, int]]) -> None:
        self._files, self._stamps = files, stamps
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()

    def get(self, number: int, group: int, columns: Sequence[str]) -> pa.Table:
        """Row group ``group`` of file ``number``; always requested with the same ``columns``."""
        with self._lock:
            if stamp_of(self._files[number]) != self._stamps[number]:
                problem = f"{self._files[number]}: the images have changed since the run began"
                raise UserError(problem, "start the run again")
            if (number, group) not in self._kept:
                self._kept[number, group] = self._read(number, group, columns)
                while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end((number, group))
            return self._kept[number, group]

    def _read(self, number: int, group: int, columns: Sequence[str]) -> pa.Table:
        if number not in self._open:
            self._open[number] = open_parquet(self._files[number])
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        with reading(f"{self._files[number]}, row group {group}", "parquet", "copy or download the file again"):
            return self._open[number].read_row_group(group, list(columns))


@dataclass(frozen=True)
class ParquetSource:
    """Pairs in parquet files, read in small batches; a location is (file, row group, row in the group)."""

    files: Sequence[Path]
    notes: Sequence[str] = ()
    names: ColumnNames = AS_THEY_ARE

    @cached_property
    def _heads(self) -> list[tuple[TableLayout, int, tuple[int, int]]]:
        """Layout, number of rows, and size and time of change of each file."""
        heads = []
        for file in self.files:
            stamp = stamp_of(file)
            with open_parquet(file) as parquet:
                layout = TableLayout.of_schema(parquet.schema_arrow, str(file), self.names, self._column)
                heads.append((layout, parquet.metadata.num_rows, stamp))
        return heads

    def _column(self, name: str) -> Iterator[object]:
        """All cells of a column that every file has."""
        for file in self.files:
            for _, _, batch in read_batches(file, _CELLS_AT_ONCE, [name]):
                yield from batch.column(0).to_pylist()

    @cached_property
    def _groups(self) -> RowGroups:
        return RowGroups(self.files, [stamp for _, _, stamp in self._heads])

    @property
    def format(self) -> str:
        """The format in words."""
        number = f", {len(self.files)} files" if len(self.files) > 1 else ""
        return f"parquet with {self._heads[0][0].format}{number}"

    @property
    def unused(self) -> Sequence[str]:
        """Columns of the first file that nothing is read from."""
        return self._heads[0][0].unused

    @property
    def fields(self) -> Collection[str]:
        """Our names of the columns of all files."""
        return {field for layout, _, _ in self._heads for field in layout.columns}

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(number for _, number, _ in self._heads)

    def rows(self, is_known: Callable[[Part], bool] | None = None) -> Iterator[PairRow]:
        """Every row of every file. Raises UserError for a file that cannot be read or lacks a column."""
        for number, (file, (layout, num_rows, _)) in enumerate(zip(self.files, self._heads, strict=True)):
            part, position = Part((file,), num_rows), 0
            columns = layout.wanted(without_images=is_known is not None and is_known(part))
            for group, first, batch in read_batches(file, _ROWS_AT_ONCE, columns):
                for in_group, cells in enumerate(batch.to_pylist(), first):
                    where, location = f"{file}, row {position}", (number, group, in_group)
                    yield layout.row(where, cells, location, file.parent, part, position)
                    position += 1

    def images(self, location: Location) -> tuple[bytes, bytes]:
        """The two images at (file, row group, row); recently used row groups are kept in memory."""
        number, group, row = (int(part) for part in location)
        file, columns = self.files[number], self._heads[number][0].columns
        names = [columns[name] for name in SIDES]
        table, where = self._groups.get(number, group, names), f"{file}, row group {group}"
        first, second = (read_image(table.column(name)[row].as_py(), file.parent, where) for name in names)
        return first, second


def read_batches(
    file: Path, size: int, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """The rows of ``file``, at most ``size`` at a time: their row group, the place of the first in it, and the batch.

    Raises UserError naming the file, and the row group where one is damaged.
    """
    with open_parquet(file) as parquet:
        for group in range(parquet.num_row_groups):
            first = 0
            batches = parquet.iter_batches(size, row_groups=[group], columns=columns)
            while (batch := _next_batch(batches, file, group)) is not None:
                yield group, first, batch
                first += len(batch)


def _next_batch(batches: Iterator[pa.RecordBatch], file: Path, group: int) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        problem = f"{file}, row group {group}: damaged ({first_line(error)})"
        raise UserError(problem, "copy or download the file again") from error


@dataclass(frozen=True)
class HubSource:
    """Pairs of a data set on the hub (or of a folder that ``datasets`` reads); a location is (row,).

    The images of a stream cannot be read again.
    """

    hub: HubData
    notes: Sequence[str] = ()
    names: ColumnNames = AS_THEY_ARE

    @property
    def format(self) -> str:
        """The format in words."""
        return f"data set {self.hub.name} through datasets, with {self._layout.format}"

    @property
    def num_rows(self) -> int | None:
        """Rows of the split; None for a stream."""
        return self.hub.num_rows

    @property
    def files(self) -> Sequence[Path]:
        """The files in which ``datasets`` keeps the rows; none for a stream."""
        kept = [] if self.hub.streaming else self.hub.data.cache_files
        return [Path(each["filename"]) for each in kept]

    @property
    def unused(self) -> Sequence[str]:
        """Columns that nothing is read from."""
        return self._layout.unused

    @property
    def fields(self) -> Collection[str]:
        """Our names of the columns."""
        return self._layout.columns.keys()

    @cached_property
    def _layout(self) -> TableLayout:
        values = None if self.hub.streaming else self._column
        layout = TableLayout.of_schema(self.hub.schema, self.hub.where, self.names, values)
        if layout.are_names and not self.hub.is_local:
            problem = (
                f"{self.hub.where}: columns {', '.join(layout.columns[side] for side in SIDES)} are names of files"
            )
            raise UserError(problem, "download the images, and give the table beside them")
        return layout

    def _column(self, name: str) -> Iterator[object]:
        return (cells[name] for _, _, cells in self.hub.rows([name]))

    def rows(self, is_known: Callable[[Part], bool] | None = None) -> Iterator[PairRow]:
        """Every row of the split. Raises UserError where the hub cannot be reached or a column is missing."""
        files, layout = tuple(self.files), self._layout
        part = Part(files, len(self.hub.data)) if files else None
        columns = layout.wanted(without_images=part is not None and is_known is not None and is_known(part))
        for where, number, cells in self.hub.rows(columns):
            yield layout.row(where, cells, None if self.hub.streaming else (number,), None, part, number)

    def images(self, location: Location) -> tuple[bytes, bytes]:
        """The two images of row ``location[0]``."""
        where, columns = f"{self.hub.name}, row {location[0]}", self._layout.columns
        with reading(where, "a row of a data set", "download or write it again"):
            cells = self.hub.data[int(location[0])]
        first, second = (read_image(cells[columns[name]], None, where) for name in SIDES)
        return first, second
