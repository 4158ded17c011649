"""What is known of images stays on disk: nothing is decoded twice, and nothing that has changed is believed."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from PIL import Image

from diffusion_feedback.data import image_index
from diffusion_feedback.data.index import PairIndex
from diffusion_feedback.data.read_log import OnBadRow
from diffusion_feedback.data.readers import PairReader, open_pairs
from diffusion_feedback.errors import UserError

Rows = list[dict[str, Any]]
MakeRows = Callable[..., Rows]
Table = Callable[..., Path]
Write = Callable[[Path, Rows], Path]

FORMS: dict[str, Write] = {}


def form(write: Write) -> Write:
    FORMS[write.__name__] = write
    return write


@form
def parquet(folder: Path, rows: Rows) -> Path:
    return pq_write(folder / "pairs.parquet", rows)


@form
def parquet_with_paths(folder: Path, rows: Rows) -> Path:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("caption", pa.string()), ("label_0", pa.float64()), ("jpg_0", kind), ("jpg_1", kind)])
    cells = [
        {"caption": row["caption"], "label_0": row["label_0"], **sides(folder, n, row)} for n, row in enumerate(rows)
    ]
    return pq_write(folder / "pairs.parquet", cells, schema)


def sides(folder: Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    for side in (0, 1):
        save(folder / f"images/{number}-{side}.png", row[f"jpg_{side}"])
    return {f"jpg_{side}": {"bytes": None, "path": f"images/{number}-{side}.png"} for side in (0, 1)}


@form
def metadata(folder: Path, rows: Rows) -> Path:
    lines = []
    for number, row in enumerate(rows):
        names = {f"image_{side}_file_name": f"images/{number}-{side}.png" for side in (0, 1)}
        sides(folder, number, row)
        lines.append(json.dumps({**names, "prompt": row["caption"], "label_0": row["label_0"]}))
    save(folder / "metadata.jsonl", "\n".join(lines).encode())
    return folder


@form
def twins(folder: Path, rows: Rows) -> Path:
    for number, row in enumerate(rows):
        chosen = 0 if row["label_0"] == 1 else 1
        save(folder / f"chosen/{number}.png", row[f"jpg_{chosen}"])
        save(folder / f"rejected/{number}.jpg", row[f"jpg_{1 - chosen}"])
        save(folder / f"chosen/{number}.txt", row["caption"].encode())
    return folder


@form
def saved(folder: Path, rows: Rows) -> Path:
    features = datasets.Features(
        {"caption": datasets.Value("string"), "label_0": datasets.Value("float64")}
        | {name: datasets.Image(decode=False) for name in ("jpg_0", "jpg_1")}
    )
    cells = [{name: row[name] for name in ("caption", "label_0", "jpg_0", "jpg_1")} for row in rows]
    shutil.rmtree(folder, ignore_errors=True)
    datasets.Dataset.from_list(cells, features=features).save_to_disk(folder)
    return folder


def pq_write(path: Path, rows: Rows, schema: pa.Schema | None = None) -> Path:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=4)
    return path


def save(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_index, "_SEGMENT", 3)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of every image that is decoded and hashed for the index."""
    seen: list[int] = []
    inspect = image_index.inspect

    def watched(data: bytes, where: str, **options: Any) -> Any:
        seen.append(len(data))
        return inspect(data, where, **options)

    monkeypatch.setattr(image_index, "inspect", watched)
    return seen


def start(path: Path, cache: Path, on_bad_row: OnBadRow = "error") -> tuple[list[Any], PairReader, PairIndex]:
    """One start: what the run would learn from, comparable between starts."""
    reader = open_pairs(path, on_bad_row=on_bad_row)
    index = PairIndex.build(reader, folder=cache, quiet=True)
    return list(index.pairs), reader, index


@pytest.mark.parametrize("write", FORMS.values(), ids=FORMS)
def test_a_second_start_looks_at_no_image(
    write: Write, pickapic_rows: MakeRows, tmp_path: Path, looked_at: list[int]
) -> None:
    path, cache = write(tmp_path / "set", pickapic_rows(8)), tmp_path / "index"
    first = start(path, cache)
    assert len(looked_at) == 16
    second = start(path, cache)
    assert len(looked_at) == 16
    assert second[0] == first[0]
    assert second[1].log.counts == first[1].log.counts
    assert second[0] == list(PairIndex.build(open_pairs(path), quiet=True).pairs)  # as without any index
    batch = second[2].batch(range(8), 0)
    assert [handle.open().size for handle in batch.chosen] == [(12, 8)] * 8


@pytest.mark.parametrize("write", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("other_folder", [False, True])
def test_what_has_changed_is_seen(
    write: Write, other_folder: bool, pickapic_rows: MakeRows, tmp_path: Path, looked_at: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Another image, a removed and an added row; and the same after the command was started elsewhere."""
    rows, cache = pickapic_rows(8), tmp_path / "index"
    path = write(tmp_path / "set", rows)
    start(path, cache)
    if other_folder:
        monkeypatch.chdir(tmp_path)
        path = path.relative_to(tmp_path)
        before = len(looked_at)
        start(path, cache)
        assert len(looked_at) == before
    else:
        shutil.rmtree(tmp_path / "set")
    changed = [*pickapic_rows(12)[8:9], *rows[1:7], *pickapic_rows(12)[9:12]]
    path = write(path.parent if path.suffix else path, changed)
    assert start(path, cache)[0] == list(PairIndex.build(open_pairs(path), quiet=True).pairs)
    before = len(looked_at)
    start(path, cache)
    assert len(looked_at) == before


@pytest.mark.parametrize("write", [metadata, twins, parquet_with_paths])
def test_only_the_changed_file_is_looked_at(
    write: Write, pickapic_rows: MakeRows, tmp_path: Path, looked_at: list[int]
) -> None:
    path, cache = write(tmp_path / "set", pickapic_rows(8)), tmp_path / "index"
    keys = {key for pair in start(path, cache)[0] for key in pair.keys}
    image = sorted((tmp_path / "set").rglob("3*.png"))[0]
    image.write_bytes(pickapic_rows(20)[19]["jpg_0"])
    looked_at.clear()
    changed = {key for pair in start(path, cache)[0] for key in pair.keys}
    assert len(looked_at) == 1
    assert len(keys - changed) == len(changed - keys) == 1


@pytest.mark.parametrize("write", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign", "other state"])
def test_a_damaged_index_is_made_again_with_a_word(
    damage: str, write: Write, pickapic_rows: MakeRows, tmp_path: Path, looked_at: list[int]
) -> None:
    path, cache = write(tmp_path / "set", pickapic_rows(4)), tmp_path / "index"
    first = start(path, cache)[0]
    files = sorted(cache.glob("*.arrow"))
    for file in files:
        data = bytearray(file.read_bytes())
        if damage == "flipped":
            data[len(data) // 2] ^= 1
        file.write_bytes({"cut": data[:-9], "empty": b"", "foreign": b"PAR1" * 50}.get(damage, data))
    if damage == "other state":
        files[0].write_bytes(files[-1].read_bytes()) if len(files) > 1 else files[0].unlink()
    looked_at.clear()
    again, _, index = start(path, cache)
    assert again == first
    told = [note for note in index.notes if "is damaged" in note and "read again" in note]
    if damage != "other state":
        assert len(looked_at) == 8
        assert told
    looked_at.clear()
    _, _, index = start(path, cache)
    assert not looked_at
    assert not index.notes


@pytest.mark.parametrize("write", FORMS.values(), ids=FORMS)
def test_bad_images_are_told_alike_at_every_start(
    write: Write, pickapic_rows: MakeRows, tmp_path: Path, looked_at: list[int]
) -> None:
    rows, cache = pickapic_rows(8, label_0=1.0, label_1=0.0), tmp_path / "index"
    rows[2]["jpg_0"] = rows[2]["jpg_0"][:-60]
    rows[4]["jpg_1"] = b""
    rows[5]["jpg_0"] = b"<html>not found</html>"
    path = write(tmp_path / "set", rows)
    first = start(path, cache, "skip")
    number = len(looked_at)
    second = start(path, cache, "skip")
    assert second[0] == first[0]
    assert len(first[0]) == 5
    assert (
        second[1].log.skipped
        == first[1].log.skipped
        == [(source, reason) for source, reason in open_pairs_skipped(path)]
    )
    assert [reason.split(": ", 1)[1].split(" (")[0] for _, reason in first[1].log.skipped] == [
        "broken image", "the image is empty", "not an image of PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF",
    ]  # fmt: skip
    assert "it is a web page" in first[1].log.skipped[2][1]
    assert second[1].log.counts == first[1].log.counts
    assert len(looked_at) == number
    for _ in range(2):
        with pytest.raises(UserError, match=r"broken image[\s\S]*on_bad_row: skip"):
            start(path, cache)
    assert len(looked_at) == number


def open_pairs_skipped(path: Path) -> list[tuple[str, str]]:
    reader = open_pairs(path, on_bad_row="skip")
    list(reader)
    return reader.log.skipped


def test_missing_files_are_seen_when_they_come(pickapic_rows: MakeRows, tmp_path: Path) -> None:
    path, cache = metadata(tmp_path / "set", pickapic_rows(3)), tmp_path / "index"
    (path / "images/1-0.png").rename(path / "away.png")
    assert len(start(path, cache, "skip")[0]) == 2
    assert len(start(path, cache, "skip")[0]) == 2
    (path / "away.png").rename(path / "images/1-0.png")
    assert len(start(path, cache)[0]) == 3
    (path / "images/2-1.png").unlink()
    with pytest.raises(UserError, match=r"line 3, column 'image_1_file_name': cannot read .*2-1.png \(no such file\)"):
        start(path, cache)


@pytest.mark.parametrize("write", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("after", [1, 5, 9])
def test_a_start_that_is_broken_off_leaves_nothing_wrong(
    after: int, write: Write, pickapic_rows: MakeRows, tmp_path: Path, looked_at: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path, cache = write(tmp_path / "set", pickapic_rows(8)), tmp_path / "index"
    with monkeypatch.context() as patch:
        watched = image_index.inspect

        def killed(data: bytes, where: str, **options: Any) -> Any:
            if len(looked_at) == after:
                raise KeyboardInterrupt
            return watched(data, where, **options)

        patch.setattr(image_index, "inspect", killed)
        with pytest.raises(KeyboardInterrupt):
            start(path, cache)
    assert not list(cache.glob(".*")) if cache.exists() else True
    assert start(path, cache)[0] == list(PairIndex.build(open_pairs(path), quiet=True).pairs)
    looked_at.clear()
    start(path, cache)
    assert not looked_at


@pytest.mark.parametrize("write", FORMS.values(), ids=FORMS)
def test_a_start_that_is_killed_has_kept_most(
    write: Write, pickapic_rows: MakeRows, tmp_path: Path, looked_at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after SIGKILL: nothing is written at the end, only what was written on the way is there."""
    path, cache = write(tmp_path / "set", pickapic_rows(8)), tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr(image_index, "_SAVED_EVERY", 0.0)
        patch.setattr(image_index.ImageIndex, "close", lambda self, *, is_whole: None)
        start(path, cache)
    looked_at.clear()
    assert start(path, cache)[0] == list(PairIndex.build(open_pairs(path), quiet=True).pairs)
    assert len(looked_at) - 16 <= 6  # a segment at most; the build without an index looks at all


def test_rows_without_a_preference_are_not_looked_at_though_they_fill_a_segment(
    pickapic_rows: MakeRows, tmp_path: Path, looked_at: list[int]
) -> None:
    rows, cache = pickapic_rows(10), tmp_path / "index"
    for row in rows[2:9]:
        row["has_label"] = False
    path = parquet(tmp_path / "set", rows)
    first = start(path, cache)
    second = start(path, cache)
    assert len(looked_at) == 6
    assert second[0] == first[0]
    assert second[1].log.counts.unlabelled == 7


def test_a_folder_that_cannot_be_written_is_told_and_no_error(pickapic_rows: MakeRows, tmp_path: Path) -> None:
    (tmp_path / "index").write_text("a file")
    pairs, _, index = start(parquet(tmp_path / "set", pickapic_rows(3)), tmp_path / "index")
    assert len(pairs) == 3
    assert len(index.notes) == 1
    assert "cannot be written" in index.notes[0]


def test_a_table_that_is_replaced_while_it_is_read_is_looked_at_again(
    pickapic_rows: MakeRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of the old file must not be believed of the new one."""
    rows, cache = pickapic_rows(8), tmp_path / "index"
    path = parquet(tmp_path / "set", rows[:4])
    with monkeypatch.context() as patch:
        inspect = image_index.inspect

        def replacing(data: bytes, where: str, **options: Any) -> Any:
            parquet(tmp_path / "other", rows[4:]).replace(path)
            return inspect(data, where, **options)

        patch.setattr(image_index, "inspect", replacing)
        start(path, cache)
    assert start(path, cache)[0] == list(PairIndex.build(open_pairs(path), quiet=True).pairs)
    assert {pair.prompt for pair in start(path, cache)[0]} == {row["caption"] for row in rows[4:]}


def test_out_of_memory_is_no_fault_of_an_image(
    pickapic_rows: MakeRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = twins(tmp_path / "set", pickapic_rows(3)), tmp_path / "index"
    with monkeypatch.context() as patch:

        def full(image: Image.Image) -> None:
            raise MemoryError

        patch.setattr("diffusion_feedback.data.images.to_rgb", full)
        with pytest.raises(MemoryError):
            start(path, cache, "skip")
    assert len(start(path, cache)[0]) == 3


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for side, size in (("chosen", (40, 20)), ("rejected", (30, 20))):
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, "JPEG", exif=exif)
        save(tmp_path / side / "a.jpg", buffer.getvalue())
    save(tmp_path / "chosen/a.txt", b"a cat")
    for _ in range(2):
        (pair,) = start(tmp_path, tmp_path / "index")[0]
        assert set(pair.sizes) == {(20, 40), (20, 30)}


def test_the_same_size_and_time_but_other_bytes_are_noticed_when_opened(
    pickapic_rows: MakeRows, tmp_path: Path
) -> None:
    """Nothing but reading can tell; then the run stops rather than learns from another image."""
    path, cache = metadata(tmp_path / "set", pickapic_rows(2)), tmp_path / "index"
    start(path, cache)
    image = path / "images/0-0.png"
    status, data = image.stat(), bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    index = start(path, cache)[2]
    with pytest.raises(UserError, match=r"the images have changed[\s\S]*touch the file"):
        [handle.open() for handle in (*index.batch([0, 1], 0).chosen, *index.batch([0, 1], 0).rejected)]
