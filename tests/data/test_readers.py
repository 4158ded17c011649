"""Every format gives the same pairs, and every bad input names its file, row and column."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion_feedback.data.places import HubData
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.data.tables import HubSource
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import PairRecord

Rows = list[dict[str, Any]]
MakeRows = Callable[..., Rows]
Table = Callable[..., Path]
Picture = Callable[..., bytes]


def as_rows(records: list[PairRecord]) -> list[tuple[str, bytes, bytes, float]]:
    return [(r.prompt, r.image_0, r.image_1, r.label_0) for r in records]


def expected(rows: Rows) -> list[tuple[str, bytes, bytes, float]]:
    return [(r["caption"], r["jpg_0"], r["jpg_1"], r["label_0"]) for r in rows]


# --- formats ---------------------------------------------------------------------------------------------------------


def test_pickapic_file_glob_and_folder(table: Table, pickapic_rows: MakeRows, tmp_path: Path) -> None:
    rows = pickapic_rows(10)
    path = table(rows[:6], "set/train-00000-of-00002.parquet")
    table(rows[6:], "set/train-00001-of-00002.parquet")
    table(pickapic_rows(1), "set/validation-00000-of-00001.parquet")
    reader = open_pairs(path)
    assert as_rows(list(reader)) == expected(rows[:6])
    assert as_rows(list(reader)) == expected(rows[:6])  # again
    assert reader.num_rows == 6
    assert [r.weight for r in reader] == [1, 1 / 2, 1 / 3, 1, 1 / 2, 1 / 3]
    assert next(iter(reader)).source == f"{path}, row 0"
    assert as_rows(list(open_pairs(tmp_path / "set" / "train-*.parquet"))) == expected(rows)
    assert as_rows(list(open_pairs(tmp_path / "set"))) == expected(rows)
    assert len(list(open_pairs(tmp_path / "set", split="validation"))) == 1
    with pytest.raises(UserError, match=r"no parquet files of split 'test'[\s\S]*found splits: train, validation"):
        open_pairs(tmp_path / "set", split="test")


def test_folder_of_unsplit_files_is_read_whole(table: Table, pickapic_rows: MakeRows, tmp_path: Path) -> None:
    rows = pickapic_rows(4)
    table(rows[:2], "set/a.parquet")
    table(rows[2:], "set/b.parquet")
    assert as_rows(list(open_pairs(tmp_path / "set"))) == expected(rows)


def test_struct_images_and_prompt_column(table: Table, pickapic_rows: MakeRows) -> None:
    rows = pickapic_rows(2)
    cells = [
        {"prompt": r["caption"], "label_0": int(r["label_0"])}
        | {side: {"bytes": r[side], "path": None} for side in ("jpg_0", "jpg_1")}
        for r in rows
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("prompt", pa.large_string()), ("label_0", pa.int64()), ("jpg_0", kind), ("jpg_1", kind)])
    assert as_rows(list(open_pairs(table(cells, schema=schema)))) == expected(rows)


def test_struct_with_a_path_only(table: Table, pickapic_rows: MakeRows, tmp_path: Path) -> None:
    row = pickapic_rows(1)[0]
    (tmp_path / "a.png").write_bytes(row["jpg_0"])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("caption", pa.string()), ("label_0", pa.float64()), ("jpg_0", kind), ("jpg_1", pa.binary())])
    good = {**row, "jpg_0": {"bytes": None, "path": "a.png"}}
    assert as_rows(list(open_pairs(table([good], schema=schema)))) == expected([row])
    gone = {**row, "jpg_0": {"bytes": None, "path": "/nowhere/b.png"}}
    with pytest.raises(UserError, match=r"row 0, column 'jpg_0': cannot read /nowhere/b.png \(no such file\)"):
        list(open_pairs(table([gone], schema=schema)))


def test_chosen_rejected(table: Table, pickapic_rows: MakeRows) -> None:
    rows = pickapic_rows(3)
    cells = [{"prompt": r["caption"], "chosen": r["jpg_0"], "rejected": r["jpg_1"]} for r in rows]
    reader = open_pairs(table(cells))
    assert [r.chosen for r in reader] == [r["jpg_0"] for r in rows]
    assert {r.label_0 for r in reader} == {1.0}
    assert reader.format == "parquet with columns prompt, chosen, rejected"


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("place", ["", "train"])
def test_image_folder(kind: str, place: str, pickapic_rows: MakeRows, tmp_path: Path) -> None:
    rows, folder = pickapic_rows(4), tmp_path / "set" / place
    cells = []
    for number, row in enumerate(rows):
        names = {f"image_{side}_file_name": f"images/{number}-{side}.img" for side in (0, 1)}
        for side in (0, 1):
            file = folder / names[f"image_{side}_file_name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(row[f"jpg_{side}"])
        cells.append({**names, "prompt": row["caption"], "label_0": row["label_0"]})
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, cells)) + "\n\n")
    else:
        with (folder / "metadata.csv").open("w", newline="") as table:
            writer = csv.DictWriter(table, list(cells[0]))
            writer.writeheader()
            writer.writerows(cells)
    reader = open_pairs(tmp_path / "set")
    assert as_rows(list(reader)) == expected(rows)
    assert reader.num_rows == 4
    assert reader.format == f"image folder with metadata.{kind}"
    assert as_rows(list(open_pairs(folder / f"metadata.{kind}"))) == expected(rows)


def write_twins(folder: Path, names: tuple[str, str], rows: Rows) -> None:
    for number, row in enumerate(rows):
        for name, column, suffix in zip(names, ("jpg_0", "jpg_1"), (".jpg", ".PNG"), strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{number:03d}{suffix}").write_bytes(row[column])


@pytest.mark.parametrize("names", [("chosen", "rejected"), ("win", "lose"), ("w", "l")])
@pytest.mark.parametrize("captions", ["txt", "captions.jsonl", "metadata.jsonl"])
def test_twin_folders(names: tuple[str, str], captions: str, pickapic_rows: MakeRows, tmp_path: Path) -> None:
    rows = pickapic_rows(3, label_0=1.0)
    write_twins(tmp_path, names, rows)
    if captions == "txt":
        for number, row in enumerate(rows):
            (tmp_path / names[0] / f"{number:03d}.txt").write_text(row["caption"] + "\n")
    else:
        lines = [json.dumps({"file_name": f"{i:03d}.jpg", "text": r["caption"]}) for i, r in enumerate(rows)]
        (tmp_path / captions).write_text("\n".join(lines))
    assert as_rows(list(open_pairs(tmp_path))) == expected(rows)


def test_twin_folders_with_missing_parts(pickapic_rows: MakeRows, tmp_path: Path) -> None:
    write_twins(tmp_path, ("chosen", "rejected"), pickapic_rows(4))
    for number in (0, 1, 2):
        (tmp_path / "chosen" / f"{number:03d}.txt").write_text("a cat" if number else " ")
    (tmp_path / "rejected" / "001.PNG").unlink()
    (tmp_path / "chosen" / "002.jpg").unlink()
    reader = open_pairs(tmp_path, on_bad_row="skip")
    with pytest.raises(UserError, match="0 usable pairs"):
        list(reader)
    reasons = [reason for _, reason in reader.log.skipped]
    assert "000.jpg, column 'caption': the caption is empty" in reasons[0]
    assert "001.jpg, column 'rejected': no image" in reasons[1]
    assert "002, column 'chosen': no image" in reasons[2]
    assert "003.jpg: no caption; write it into chosen/003.txt" in reasons[3]


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_source_on_a_local_folder(
    streaming: bool, table: Table, pickapic_rows: MakeRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = pickapic_rows(3)
    features = datasets.Features(
        {"caption": datasets.Value("string"), "label_0": datasets.Value("float64")}
        | {name: datasets.Image() for name in ("jpg_0", "jpg_1")}
    )
    (tmp_path / "hub").mkdir()
    data = datasets.Dataset.from_list([{name: row[name] for name in features} for row in rows], features=features)
    data.to_parquet(tmp_path / "hub" / "train-00000.parquet")
    source = HubSource(HubData(str(tmp_path / "hub"), "train", streaming=streaming))
    found = list(source.rows())
    assert [row.values["image_0"]["bytes"] for row in found] == [row["jpg_0"] for row in rows]
    assert found[1].source.endswith("split 'train', row 1")
    assert source.num_rows == (None if streaming else 3)
    if streaming:
        assert found[1].location is None
    else:
        assert found[1].location is not None
        assert source.images(found[1].location) == (rows[1]["jpg_0"], rows[1]["jpg_1"])
    with pytest.raises(UserError, match="hub: no such file"):
        list(HubSource(HubData(str(tmp_path / "hub"), "nosuchsplit", streaming=streaming)).rows())


# --- rows that are left out ------------------------------------------------------------------------------------------


def test_unlabelled_and_not_different_rows_are_counted(table: Table, pickapic_rows: MakeRows) -> None:
    rows = pickapic_rows(6)
    rows[0] |= {"has_label": False, "label_0": None, "label_1": None}
    rows[1]["are_different"] = False
    rows[2] |= {"label_0": 0.5, "label_1": 0.5}
    reader = open_pairs(table(rows))
    assert as_rows(list(reader)) == expected(rows[3:])
    counts = reader.log.counts
    assert (counts.rows, counts.usable, counts.unlabelled, counts.not_different, counts.ties) == (6, 3, 1, 1, 1)
    assert next(r.label_0 for r in open_pairs(table(rows), ties="soft")) == 0.5
    assert next(r.label_0 for r in open_pairs(table(rows), ties="first")) == 1.0


def test_only_ties(table: Table, pickapic_rows: MakeRows) -> None:
    path = table(pickapic_rows(5, label_0=0.5, label_1=0.5))
    with pytest.raises(UserError, match=r"0 usable pairs \(5 rows, of which 5 ties\): all labelled[\s\S]*ties: soft"):
        list(open_pairs(path))


def test_no_rows(table: Table, pickapic_rows: MakeRows) -> None:
    schema = pa.Table.from_pylist(pickapic_rows(1)).schema
    with pytest.raises(UserError, match=r"pairs.parquet: 0 usable pairs \(0 rows\)"):
        list(open_pairs(table([], schema=schema)))


BAD_ROWS = [
    ({"caption": ""}, r"column 'caption': the caption is empty"),
    ({"caption": "  "}, r"column 'caption': found '  '"),
    ({"caption": None}, r"column 'caption': no caption"),
    ({"label_0": 1.5}, r"column 'label_0': found 1.5, not a number from 0 to 1"),
    ({"label_0": float("nan")}, r"column 'label_0': found nan"),
    ({"label_0": None}, r"column 'label_0': found None"),
    ({"label_0": 1.0, "label_1": 1.0}, r"column 'label_1': found 1.0 beside 'label_0' 1.0; the two must add up to 1"),
    ({"label_1": None}, r"column 'label_1': found nan"),
    ({"num_example_per_prompt": 0}, r"column 'num_example_per_prompt': found 0, not a whole number"),
    ({"jpg_1": b""}, r"column 'jpg_1': the image is empty"),
    ({"jpg_1": None}, r"column 'jpg_1': no image"),
    ({"jpg_0": b"GIF89a...."}, r"column 'jpg_0': not an image of PNG, JPEG, WebP"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD_ROWS)
def test_bad_rows(changes: dict[str, Any], reason: str, table: Table, pickapic_rows: MakeRows) -> None:
    rows = pickapic_rows(7)
    rows[5] |= changes
    path = table(rows)
    with pytest.raises(UserError, match=rf"pairs.parquet, row 5, {reason}[\s\S]*on_bad_row: skip"):
        list(open_pairs(path))
    reader = open_pairs(path, on_bad_row="skip")
    assert len(list(reader)) == 6
    assert [source for source, _ in reader.log.skipped] == [f"{path}, row 5"]
    assert reader.log.counts.bad.total() == 1


def test_identical_sides_and_truncated_image(table: Table, pickapic_rows: MakeRows) -> None:
    rows = pickapic_rows(2)
    rows[0]["jpg_1"] = rows[0]["jpg_0"]
    rows[1]["jpg_0"] = rows[1]["jpg_0"][:-40]
    path = table(rows)
    reader = open_pairs(path, on_bad_row="skip")
    with pytest.raises(UserError, match="0 usable pairs .*2 bad"):
        list(reader)
    assert "row 0, columns 'jpg_0' and 'jpg_1': both sides are the same image" in reader.log.skipped[0][1]
    assert "row 1, column 'jpg_0': broken image" in reader.log.skipped[1][1]
    # Without decoding, only what is seen from the bytes is found.
    assert len(list(open_pairs(path, on_bad_row="skip", decode=False))) == 1


# --- inputs that are wrong as a whole --------------------------------------------------------------------------------


def test_missing_column_names_the_nearest(table: Table, pickapic_rows: MakeRows) -> None:
    rows = [{("captoin" if k == "caption" else k): v for k, v in row.items()} for row in pickapic_rows(2)]
    with pytest.raises(
        UserError, match=r"pairs.parquet: no column 'prompt', as Pick-a-Pic[\s\S]*`columns` prompt=captoin"
    ):
        list(open_pairs(table(rows)))
    rows = [{"prompt": "a", "chosen": b"x"}]
    with pytest.raises(UserError, match=r"no column 'rejected'.*columns: prompt, chosen\)"):
        list(open_pairs(table(rows)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": 3}, "column 'caption' is of type int64, not text"),
        ({"jpg_0": 3}, "column 'jpg_0' is of type int64, not image bytes"),
        ({"label_0": "left"}, "column 'label_0' is of type string, not a number"),
        ({"has_label": "yes"}, "column 'has_label' is of type string, not true or false"),
    ],
)
def test_wrong_type(changes: dict[str, Any], message: str, table: Table, pickapic_rows: MakeRows) -> None:
    with pytest.raises(UserError, match=f"pairs.parquet: {message}"):
        list(open_pairs(table(pickapic_rows(2, **changes))))


def test_wrong_paths(tmp_path: Path) -> None:
    for path in (tmp_path / "no.parquet", tmp_path / "no", "no/such/data/folder"):
        with pytest.raises(UserError, match=f"{path}: no such file or folder"):
            open_pairs(path)
    with pytest.raises(UserError, match="no pairs in this folder"):
        open_pairs(tmp_path)
    with pytest.raises(UserError, match="no file of .parquet has such a name"):
        open_pairs(tmp_path / "*.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match="x.parquet: not a parquet file"):
        list(open_pairs(tmp_path / "x.parquet"))
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(UserError, match="x.zip: not a file of pairs"):
        open_pairs(tmp_path / "x.zip")


def test_what_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="data/pears: no such file or folder"):
        open_pairs("data/pears")
    assert open_pairs("owner/name", split="test", revision="v1", streaming=True).source == HubSource(
        HubData("owner/name", "test", "v1", True)
    )
    assert open_pairs("hf://datasets/data/pears").source == HubSource(HubData("data/pears", "train"))


def test_damaged_parquet_names_the_row_group(table: Table, pickapic_rows: MakeRows) -> None:
    path = table(pickapic_rows(8))
    start = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(UserError, match="pairs.parquet, row group 1: damaged"):
        list(open_pairs(path))


def test_broken_metadata(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"image_0_file_name": "a", "image_1_file_name": "b", "prompt": "p"}\n')
    with pytest.raises(UserError, match=r"metadata.jsonl: no column 'label_0'.*columns: image_0_file_name"):
        list(open_pairs(tmp_path))
    row = '{"image_0_file_name": "a.png", "image_1_file_name": "b.png", "prompt": "p", "label_0": 1}\n'
    path.write_text(row)
    with pytest.raises(UserError, match="metadata.jsonl, line 1, column 'image_0_file_name': cannot read .*a.png"):
        list(open_pairs(tmp_path))
    path.write_text(row + "{broken\n")
    with pytest.raises(UserError, match="metadata.jsonl, line 2: not JSON"):
        list(open_pairs(tmp_path, on_bad_row="skip"))


def peak_memory(path: Path) -> int:
    """Most bytes held by Arrow and by Python at once during a pass, images and all."""
    before, peak = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for _ in open_pairs(path, decode=False):
        peak = max(peak, pa.total_allocated_bytes() - before)
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak + python_peak


def test_memory_of_a_pass_does_not_grow_with_the_data(table: Table, picture: Picture) -> None:
    noise = picture(0, size=(100, 100))
    rows = [
        {"caption": "p", "jpg_0": noise + i.to_bytes(2), "jpg_1": noise + i.to_bytes(3), "label_0": 1.0}
        for i in range(400)
    ]
    small, large = table(rows[:80], "small.parquet", group=16), table(rows, "large.parquet", group=16)
    assert peak_memory(large) < 1.2 * peak_memory(small)
    assert peak_memory(large) < 400 * 2 * len(noise) / 2


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of git-LFS"), (b"", "an empty file")],
)
def test_what_stands_in_the_place_of_parquet(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(UserError, match=words):
        list(open_pairs(tmp_path / "x.parquet"))
