"""Images with their prompts from every form, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pairs_data
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapes_images
from PIL import Image

from diffusion_feedback.data.image_sets import open_images
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import content_hash


def png(path: Path, level: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, 10, 10)).save(path)
    return path


def test_an_image_folder(tmp_path: Path) -> None:
    folder = shapes_images.write_folder(tmp_path / "set", 2, 2)
    items = open_images(folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [(item.name, item.prompt) for item in items] == [(row["file_name"], row["prompt"]) for row in rows]
    assert items[0].handle.key == content_hash((folder / items[0].name).read_bytes())
    assert items[0].handle.open().size == (64, 64)


def test_a_metadata_table_in_csv(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a cat\n")
    assert [(item.name, item.prompt) for item in open_images(tmp_path)] == [("a.png", "a cat")]


def test_a_plain_folder_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "deep/c.webp"):
        png(tmp_path / name)
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / ".hidden").mkdir()
    png(tmp_path / ".hidden" / "d.png")
    found = [(item.name, item.prompt) for item in open_images(tmp_path)]
    assert found == [("a.jpg", "a cat"), ("b.png", ""), ("deep/c.webp", "")]
    given = open_images(tmp_path, prompts=["one", "two", "three"])
    assert [item.prompt for item in given] == ["one", "two", "three"]


def test_both_images_of_pairs(tmp_path: Path) -> None:
    items = open_images(pairs_data.write_pairs(tmp_path / "pairs.parquet", 3))
    assert [item.name.rpartition(", ")[2] for item in items] == ["image 0", "image 1"] * 3
    assert items[0].name.startswith(str(tmp_path / "pairs.parquet"))
    assert items[0].handle.key == content_hash(pairs_data.jpeg(180, 0))
    assert items[3].handle.key == content_hash(pairs_data.jpeg(180, 2))
    assert items[3].handle.open().size == (16, 16)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"file_name": "gone.png", "prompt": "x"}], ["line 1", "gone.png", "missing"]),
        ([{"file_name": "a.png", "prompt": 3}], ["line 1", "found 3"]),
        ([{"file_name": "a.png", "prompt": ["x", 3]}], ["line 1", "found 3"]),
        ([{"file_name": "../a.png", "prompt": "x"}], ["line 1", "leads out of"]),
        ([{"file_name": "a.png", "prompt": "x"}, {"file_name": "./a.png", "prompt": "x"}], ["line 2", "line 1 too"]),
        ([{"file_name": "a" * 300, "prompt": "x"}], ["line 1", "missing"]),
        ([{"file_name": "a\0.png", "prompt": "x"}], ["line 1", "missing"]),
        ([{"file_name": "a.png", "prompt": "\ud83d"}], ["line 1", "not JSON"]),
        ([{"file_name": "a.png", "prompt": "x"}, ["a.png"]], ["line 2"]),
    ],
)
def test_bad_metadata(tmp_path: Path, rows: list[object], words: list[str]) -> None:
    png(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        open_images(tmp_path)
    for word in [*words, "metadata.jsonl"]:
        assert word in str(error.value)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pairs in this folder"):
        open_images(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        open_images(tmp_path / "gone")
    png(tmp_path / "a.png")
    with pytest.raises(UserError, match="1 images, and 2 prompts"):
        open_images(tmp_path, prompts=["one", "two"])
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe caf\xe9")
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8"):
        open_images(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UserError, match=r"a\.txt: the caption cannot be read"):
        open_images(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png"}) + "\n")
    with pytest.raises(UserError, match="names its own prompts"):
        open_images(tmp_path, prompts=["one"])


def test_prompts_of_every_kind_come_whole(tmp_path: Path) -> None:
    """Line breaks, NUL, characters beyond 16 bits, quotation marks: as they stand, but for the space around them."""
    prompts = ["two\nlines", "nul \0 byte", "\U0001f600 e\u0301", 'a "quoted" word, and a comma', "line\u2028separator"]
    (tmp_path / "images").mkdir()
    rows = [{"file_name": f"images/{i}.png", "prompt": f" {prompt}\r\n"} for i, prompt in enumerate(prompts)]
    for row in rows:
        png(tmp_path / row["file_name"])
    for keep_escapes in (True, False):
        lines = [json.dumps(row, ensure_ascii=keep_escapes) + "\r\n" for row in rows]
        (tmp_path / "metadata.jsonl").write_text("\ufeff" + "".join(lines), "utf-8", newline="")
        assert [item.prompt for item in open_images(tmp_path)] == prompts


def test_links_that_lead_nowhere_are_not_passed_over(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "gone.png")
    first, second, third = open_images(tmp_path)
    assert first.handle.key == second.handle.key
    with pytest.raises(UserError, match=r"c\.png: cannot be read"):
        _ = third.handle.key


def test_names_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png")
    try:
        path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(UserError, match=r"\\udcff\.png': the name is not UTF-8"):
        open_images(tmp_path)


def test_an_image_that_changes_is_noticed(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png")
    (item,) = open_images(tmp_path)
    assert item.handle.key == content_hash(path.read_bytes())
    png(path, 200)
    with pytest.raises(UserError, match="has changed"):
        item.handle.open()


def test_a_broken_row_of_pairs_cannot_be_left_out_here(tmp_path: Path) -> None:
    path = pairs_data.write_pairs(tmp_path / "pairs.parquet", 2)
    rows = pq.read_table(path).to_pylist()
    rows[1]["jpg_1"] = None
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(UserError, match=r"row 1, column 'jpg_1': no image") as caught:
        open_images(path)
    assert caught.value.remedy == "correct or remove the row"
