"""The index: any order of files and rows gives the same pairs, and images are read only when they are opened."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_feedback.data.images import decode_image
from diffusion_feedback.data.index import PairIndex
from diffusion_feedback.data.places import HubData
from diffusion_feedback.data.readers import PairReader, open_pairs
from diffusion_feedback.data.rows import Location
from diffusion_feedback.data.tables import HubSource, ParquetSource
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import PairRecord, content_hash

Rows = list[dict[str, Any]]
MakeRows = Callable[..., Rows]
Table = Callable[..., Path]


def listed(index: PairIndex) -> list[tuple[Any, ...]]:
    batch = index.batch(range(len(index)), 0)
    sides = [[image.key for image in side] for side in (batch.chosen, batch.rejected)]
    numbers = [batch.chosen_probability.tolist(), batch.weight.tolist()]
    return list(zip(batch.example_ids, batch.prompts, *sides, *numbers, strict=True))


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    sides = {"jpg_0": row["jpg_1"], "jpg_1": row["jpg_0"], "label_0": row["label_1"], "label_1": row["label_0"]}
    return row | sides


def test_order_of_rows_files_and_sides_does_not_matter(table: Table, pickapic_rows: MakeRows, tmp_path: Path) -> None:
    rows = pickapic_rows(9)
    rows[3] |= {"label_0": 0.75, "label_1": 0.25}
    one = PairIndex.build(open_pairs(table(rows)))
    mixed = [swapped(row) if number % 2 else row for number, row in enumerate(rows)]
    random.Random(0).shuffle(mixed)
    table(mixed[5:], "other/a.parquet", group=2)
    table(mixed[:5], "other/b.parquet", group=3)
    other = PairIndex.build(open_pairs(tmp_path / "other"))
    assert listed(one) == listed(other)
    assert [pair.example_id for pair in one.pairs] == sorted(pair.example_id for pair in one.pairs)


def test_batch_agrees_with_the_records(table: Table, pickapic_rows: MakeRows) -> None:
    rows = pickapic_rows(9)
    seen: list[PairRecord] = []
    index = PairIndex.build(open_pairs(table(rows)), on_pair=seen.append)
    by_id = {record.example_id: record for record in seen}
    assert len(index) == len(by_id) == 9
    batch = index.batch([4, 0, 8], draw=3)
    assert (len(batch), batch.draw) == (3, 3)
    for example_id, prompt, chosen, rejected in zip(
        batch.example_ids, batch.prompts, batch.chosen, batch.rejected, strict=True
    ):
        record = by_id[example_id]
        assert prompt == record.prompt
        for handle, data in ((chosen, record.chosen), (rejected, record.rejected)):
            assert handle.key == content_hash(data)
            assert np.array_equal(np.asarray(handle.open()), np.asarray(decode_image(data, "")))
    weights = {record.example_id: record.weight for record in seen}
    assert batch.weight.tolist() == pytest.approx([weights[example_id] for example_id in batch.example_ids])
    assert [pair.example_id for pair in index.head(4).pairs] == [pair.example_id for pair in index.pairs[:4]]


def test_repeated_and_contradicting_rows(table: Table, pickapic_rows: MakeRows) -> None:
    a, b, c = pickapic_rows(3)
    c_against = c | {"label_0": c["label_1"], "label_1": c["label_0"]}
    path = table([a, b, swapped(a), a, c, c_against])
    index = PairIndex.build(open_pairs(path))
    assert index.num_duplicates == 3
    assert "1 pair is left out, with rows that contradict each other evenly" in "".join(index.notes)
    assert len(index) == 2  # of c one row says so, one the opposite: a tie
    assert {pair.label_0 for pair in index.pairs} <= {0.0, 1.0}
    soft = PairIndex.build(open_pairs(path, ties="soft"))
    assert sorted(soft.batch([0, 1, 2], 0).chosen_probability.tolist()) == [0.5, 1, 1]
    two_to_one = PairIndex.build(open_pairs(table([c, c_against, c])))
    assert two_to_one.batch([0], 0).chosen_probability.tolist() == pytest.approx([2 / 3])
    assert two_to_one.batch([0], 0).chosen[0].key == content_hash(c["jpg_0"] if c["label_0"] else c["jpg_1"])
    with pytest.raises(UserError, match="the labels of 1 pair contradict each other, and no other pair is there"):
        PairIndex.build(open_pairs(table([c, c_against])))


def test_pairs_that_stand_once_are_not_copied(
    table: Table, pickapic_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[object] = []
    monkeypatch.setattr("diffusion_feedback.data.index.replace", lambda pair, **changes: copied.append(pair) or pair)
    assert len(PairIndex.build(open_pairs(table(pickapic_rows(9))))) == 9
    assert not copied  # of a million pairs a second copy would stand in memory


def test_images_are_read_only_when_opened_and_once_a_pair(
    table: Table, pickapic_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = PairIndex.build(open_pairs(table(pickapic_rows(12), group=3), decode=False))
    reads: list[object] = []
    original = ParquetSource.images

    def images(source: ParquetSource, location: Location) -> tuple[bytes, bytes]:
        reads.append(location)
        return original(source, location)

    monkeypatch.setattr(ParquetSource, "images", images)
    batch = index.batch(range(12), 0)
    assert [handle.key for handle in batch.chosen]
    assert not reads
    for handle in (*batch.chosen, *batch.rejected):
        handle.open()
    assert len(reads) == len(set(reads)) == 12


def test_images_of_folders_are_read_again(pickapic_rows: MakeRows, tmp_path: Path) -> None:
    for number, row in enumerate(pickapic_rows(2)):
        for name, column in (("chosen", "jpg_0"), ("rejected", "jpg_1")):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.jpg").write_bytes(row[column])
        (tmp_path / "chosen" / f"{number}.txt").write_text("a cat")
    index = PairIndex.build(open_pairs(tmp_path))
    batch = index.batch([0, 1], 0)
    assert {handle.key for handle in batch.chosen} == {content_hash(row["jpg_0"]) for row in pickapic_rows(2)}
    assert batch.chosen[0].open().size == (12, 8)
    (tmp_path / "rejected" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot read .*1\.jpg \(no such file\)"):
        [handle.open() for handle in index.batch([0, 1], 0).chosen]


def test_changed_and_missing_files_are_noticed(table: Table, pickapic_rows: MakeRows) -> None:
    path = table(pickapic_rows(2))
    index = PairIndex.build(open_pairs(path))
    rows = pickapic_rows(6)[4:]
    table(rows)
    with pytest.raises(UserError, match="the images have changed since the run began"):
        index.batch([0], 0).chosen[0].open()


def test_streamed_images_say_to_use_the_cache(table: Table, pickapic_rows: MakeRows, tmp_path: Path) -> None:
    table(pickapic_rows(3), "hub/train-00000.parquet")
    source = HubSource(HubData(str(tmp_path / "hub"), "train", streaming=True))
    seen: list[PairRecord] = []
    index = PairIndex.build(PairReader(source, "hub", decode=False), on_pair=seen.append)
    assert len(seen) == len(index) == 3
    with pytest.raises(UserError, match=r"a streamed image cannot be read again[\s\S]*data.cache: true"):
        index.batch([0], 0).rejected[0].open()
