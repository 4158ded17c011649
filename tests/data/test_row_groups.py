"""Reading images of parquet files from several threads: each row group once, each footer once, and never a crash."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from diffusion_feedback.data import tables
from diffusion_feedback.data.tables import ParquetSource
from diffusion_feedback.errors import UserError

Table = Callable[..., Path]
MakeRows = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[object]:
    """How often each row group was read, and each file opened."""
    seen: Counter[object] = Counter()

    class Counting(pq.ParquetFile):  # type: ignore[misc]
        def __init__(self, file: Path, **options: Any) -> None:
            seen[file] += 1
            self.file = file
            super().__init__(file, **options)

        def read_row_group(self, group: int, *arguments: Any, **options: Any) -> Any:
            seen[self.file, group] += 1
            return super().read_row_group(group, *arguments, **options)

    monkeypatch.setattr(tables.pq, "ParquetFile", Counting)
    return seen


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_every_row_group_is_read_once(
    workers: int, table: Table, pickapic_rows: MakeRows, reads: Counter[object]
) -> None:
    rows = pickapic_rows(24)
    source = ParquetSource([table(rows[:12], "a.parquet"), table(rows[12:], "b.parquet")])
    wanted = {(file, row // 4, row % 4): rows[12 * file + row] for file in (0, 1) for row in range(12)}
    with ThreadPoolExecutor(workers) as pool:
        for location, (first, second) in zip(wanted, pool.map(source.images, wanted), strict=True):
            assert (first, second) == (wanted[location]["jpg_0"], wanted[location]["jpg_1"])
    groups = [count for key, count in reads.items() if isinstance(key, tuple)]
    assert groups == [1] * 6
    # Once for columns and number of rows, once to read from: never for each row group.
    assert [reads[file] for file in source.files] == [2, 2]


def test_little_room_and_many_threads_give_the_same_bytes(
    table: Table, pickapic_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pickapic_rows(40)
    source = ParquetSource([table(rows[n : n + 10], f"{n}.parquet", group=2) for n in range(0, 40, 10)])
    monkeypatch.setattr(tables, "_KEPT_BYTES", 1)
    monkeypatch.setattr(tables, "_OPEN_FILES", 1)
    order = [row for row in range(40) for _ in range(5)]
    random.Random(0).shuffle(order)
    locations = [(row // 10, row % 10 // 2, row % 2) for row in order]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.images, locations))
    assert found == [(rows[row]["jpg_0"], rows[row]["jpg_1"]) for row in order]


def test_a_file_that_is_written_again_is_noticed_though_it_is_open(table: Table, pickapic_rows: MakeRows) -> None:
    path = table(pickapic_rows(8))
    source = ParquetSource([path])
    source.images((0, 0, 0))
    table(pickapic_rows(9))
    with pytest.raises(UserError, match=r"pairs.parquet: the images have changed since the run began"):
        source.images((0, 0, 1))
    path.unlink()
    with pytest.raises(UserError, match=r"pairs.parquet: cannot be read \(no such file\)"):
        source.images((0, 1, 0))
