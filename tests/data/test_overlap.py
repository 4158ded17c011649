"""What two data sets have in common, over every form; and what a check says of contradictions and shapes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from pair_forms import FORMS, PairRow, pickapic, save
from PIL import Image

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main
from diffusion_feedback.data.findings import lost_area, shape_of


def plain(number: int, size: tuple[int, int] = (12, 12)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number, 255 - number, 7)).save(file, "PNG")
    return file.getvalue()


def rows_from(first: int, number: int = 4) -> list[PairRow]:
    return [PairRow(f"A  cat {n}", plain(2 * n), plain(2 * n + 1)) for n in range(first, first + number)]


@pytest.mark.parametrize("form", FORMS)
def test_shared_prompts_and_images_of_every_form(form: str, tmp_path: Path) -> None:
    data = FORMS[form](tmp_path / "data", rows_from(0))
    theirs = [PairRow("a Cat 1 ", plain(90), plain(91)), PairRow("a dog", plain(6), plain(92)), *rows_from(20)]
    other = pickapic(tmp_path / "other", theirs)
    (overlap,) = dfb.check(data, against=other).overlaps
    assert overlap.shared_prompts == {"a cat 1"}
    assert (overlap.num_prompts, overlap.num_rows, overlap.num_contents) == (6, 1, 12)
    assert len(overlap.shared_contents) == 1
    assert "1 of its 6 prompts stands here too, in 1 of its rows" in str(overlap)
    assert "1 of its 12 images stands here too" in str(overlap)
    assert f"'a Cat 1 ' in {other}, row 0" in str(overlap)


def test_splits_of_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, first in (("train", 0), ("validation", 3), ("test", 9)):
        pickapic(tmp_path / "new", rows_from(first)).rename(tmp_path / f"{name}.parquet")
    (tmp_path / "new").rmdir()
    assert main(["data", "check", str(tmp_path), "--against", "split=validation", "split=test"]) == 0
    text = capsys.readouterr().out
    assert "! against split=validation: 1 of its 4 prompts stands here too, in 1 of its rows" in text
    assert "! against split=validation: 2 of its 8 images stand here too" in text
    assert "against split=test: no prompt and no image in common" in text


def test_texts(tmp_path: Path) -> None:
    def written(name: str, rows: list[dict[str, object]]) -> Path:
        return save(tmp_path / name, "\n".join(map(json.dumps, rows)))

    data = written("a.jsonl", [{"prompt": f"p {n}", "chosen": "yes", "rejected": "no"} for n in range(3)])
    turns = [{"role": "user", "content": "P 1"}], [{"role": "assistant", "content": "yes"}]
    other = written("b.jsonl", [{"prompt": turns[0], "completion": turns[1]}])
    (overlap,) = dfb.check(data, against=[other]).overlaps
    assert (overlap.shared_prompts, overlap.num_contents, len(overlap.shared_contents)) == ({"p 1"}, 1, 1)
    alone = written("c.jsonl", [{"prompt": "q", "completion": "yes"}])
    assert "no prompt and no completion in common" in str(dfb.check(data, against=alone))
    with pytest.raises(dfb.UserError, match="images against texts"):
        dfb.check(data, against=pickapic(tmp_path / "images", rows_from(0)))
    with pytest.raises(dfb.UserError, match="`resolution`: means nothing for texts"):
        dfb.check(data, resolution=512)


def test_two_images_preferred_both_ways_under_two_prompts(tmp_path: Path) -> None:
    rows = [
        PairRow("a cat", plain(1), plain(2)),
        PairRow("a dog", plain(2), plain(1)),
        PairRow("x", plain(3), plain(4)),
    ]
    text = str(dfb.check(pickapic(tmp_path, rows)))
    assert "1 time the same two images are preferred one way in one row and the other way in another" in text
    assert "rows that contradict each other" not in text
    rows[1] = PairRow("a cat", plain(2), plain(1))
    text = str(dfb.check(pickapic(tmp_path, rows)))
    assert "1 pair has rows that contradict each other" in text
    assert "the same two images" not in text


@pytest.mark.parametrize(
    ("size", "shape", "lost"),
    [
        ((512, 512), "1:1", 0),
        ((1920, 1080), "16:9", 1 - 9 / 16),
        ((1080, 1920), "9:16", 1 - 9 / 16),
        ((768, 1024), "3:4", 0.25),
        ((1000, 100), "otherwise wide", 0.9),
        ((100, 170), "otherwise tall", 1 - 10 / 17),
    ],
)
def test_shapes(size: tuple[int, int], shape: str, lost: float) -> None:
    assert shape_of(size) == shape
    assert lost_area(size) == pytest.approx(lost)


def test_the_resolution_of_the_training(tmp_path: Path) -> None:
    rows = [PairRow("p", plain(1, (64, 36)), plain(2, (64, 64)))]
    text = str(dfb.check(pickapic(tmp_path, rows), resolution=48))
    assert "1 of 2 images is enlarged when trained at 48 px, the smallest from 64 x 36" in text
    assert "shapes: 1 16:9, 1 1:1" in text
    assert "512 px" not in text


def test_files_that_are_no_images_are_named_in_image_folders(tmp_path: Path) -> None:
    folder = FORMS["metadata.jsonl"](tmp_path, rows_from(0))
    save(folder / "images" / "photo.heic", b"x")
    assert "passed over 1 of no image ending (1 .heic): photo.heic" in str(dfb.check(folder))
