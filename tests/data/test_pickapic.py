"""The written parquet: read elsewhere, by plain datasets and pyarrow, the same bytes each time, whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from diffusion_feedback.data.pickapic import write_pickapic
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import PairRecord

MakeRows = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def records(pickapic_rows: MakeRows) -> list[PairRecord]:
    return [
        PairRecord(r["caption"], r["jpg_0"], r["jpg_1"], r["label_0"], 1 / r["num_example_per_prompt"], f"row {i}")
        for i, r in enumerate(pickapic_rows(10))
    ]


def without_source(records: list[PairRecord]) -> list[tuple[Any, ...]]:
    return [(r.prompt, r.image_0, r.image_1, r.label_0, r.weight) for r in records]


def test_round_trip(records: list[PairRecord], tmp_path: Path) -> None:
    records[2] = PairRecord("soft", records[2].image_0, records[2].image_1, 0.3)
    records[3] = PairRecord("tie", records[3].image_0, records[3].image_1, 0.5)
    path = tmp_path / "new" / "pairs.parquet"
    assert write_pickapic(iter(records), path, row_group_size=4) == 10
    assert without_source(list(open_pairs(path, ties="soft"))) == without_source(records)
    assert pq.ParquetFile(path).num_row_groups == 3
    again = tmp_path / "again.parquet"
    write_pickapic(records, again, row_group_size=4)
    assert again.read_bytes() == path.read_bytes()


def test_read_elsewhere_by_others(records: list[PairRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    write_pickapic(records, tmp_path / "a" / "pairs.parquet", extra={"score_0": [i / 2 for i in range(10)]})
    elsewhere = tmp_path / "b" / "moved.parquet"
    elsewhere.parent.mkdir()
    shutil.move(tmp_path / "a" / "pairs.parquet", elsewhere)
    shutil.rmtree(tmp_path / "a")
    table = pq.read_table(elsewhere)
    assert table.column_names[:5] == ["caption", "jpg_0", "jpg_1", "label_0", "label_1"]
    assert table["score_0"].to_pylist() == [i / 2 for i in range(10)]
    data = datasets.load_dataset("parquet", data_files=str(elsewhere), split="train", cache_dir=str(tmp_path / "c"))
    for row, record in zip(data, records, strict=True):
        assert (row["caption"], row["jpg_0"], row["jpg_1"]) == (record.prompt, record.image_0, record.image_1)
        assert row["label_0"] + row["label_1"] == 1
        assert row["has_label"] is row["are_different"] is True
        assert 1 / row["num_example_per_prompt"] == record.weight


def test_nothing_half_written(records: list[PairRecord], tmp_path: Path) -> None:
    def breaks() -> Iterator[PairRecord]:
        yield from records
        raise UserError("row 10: broken")

    path = tmp_path / "pairs.parquet"
    for pairs, error in ((breaks(), UserError), (iter([]), UserError)):
        with pytest.raises(error):
            write_pickapic(pairs, path, row_group_size=2)
    for extra in ({"x": [1]}, {"x": [1] * 11}, {"caption": ["a"] * 10}):
        with pytest.raises(ValueError, match="extra columns"):
            write_pickapic(records, path, extra)
    with pytest.raises(ValueError, match=r"row 7: weight 0.3 is not 1 / num"):
        write_pickapic([PairRecord("p", b"a", b"b", 1.0, 0.3, "row 7")], path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/pairs.parquet: cannot be written"):
        write_pickapic(records, tmp_path / "file" / "pairs.parquet")
