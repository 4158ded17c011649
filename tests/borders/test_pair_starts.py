"""What a run says of its pairs before it begins, and that a second start says the same without opening an image."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from pair_forms import PairRow, pickapic, save, twins
from PIL import Image

from diffusion_feedback.cli.main import main

MakeRecipe = Callable[..., Path]


def picture(number: int, size: tuple[int, int] = (16, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (20 * number, 90, 255 - 20 * number)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every image that is opened as bytes in memory, as those of data are; pages open the files of samples."""
    seen: list[str] = []
    plain = Image.open

    def watched(*arguments: object, **options: object) -> object:
        if not isinstance(arguments[0], str | Path):
            seen.append("opened")
        return plain(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", watched)
    return seen


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("note:", "  /", "1 bad rows"))]


def test_starts_say_what_is_left_out_and_open_nothing_twice(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], opened: list[str]
) -> None:
    rows = [PairRow(f"p{n}", picture(2 * n), picture(2 * n + 1)) for n in range(5)]
    rows.append(PairRow("wide", picture(3, (160, 20)), picture(4, (8, 8))))
    folder = twins(tmp_path / "set", [*rows, rows[0], PairRow("broken", b"<html>", picture(5))])
    save(folder / "chosen/other.heic", b"x")
    data = {"train": str(folder), "validation": None, "on_bad_row": "skip", "random_flip": True}
    recipe = make_recipe(data=data, training={"max_train_steps": 2})
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    first = told(capsys)
    for part in (
        "passed over 1 of no image ending (1 .heic): other.heic",
        f"note: {folder}: 8 rows, of which 1 bad",
        "it is a web page",
        "1 row repeats a pair: each pair is used once",
        "1 of 12 images is not square: a square from the middle is trained on, which leaves out 87.5% of the area",
        "1 of 12 images is enlarged when trained at 16 px, the smallest from 8 x 8",
    ):
        assert any(part in line for line in first), part
    assert len(opened) >= 16  # each of eight rows; then those of the step whose memory is measured
    opened.clear()
    assert main(["train", "--config", str(recipe)]) == 0
    assert told(capsys)[: len(first)] == first
    assert 0 < len(opened) <= 2 * 12  # as they stand and mirrored, to be encoded
    opened.clear()
    assert main(["train", "--config", str(recipe), "--overwrite"]) == 0
    assert told(capsys)[: len(first)] == first
    assert not opened


@pytest.mark.parametrize("key", ["train", "validation"])
def test_a_list_names_the_data_set_that_is_not_there(
    key: str, make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(data={key: ["a.parquet", {"path": "b"}]})
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 2
    assert "a.parquet: no such file or folder" in capsys.readouterr().err


def test_a_damaged_index_is_said_and_the_run_goes_on(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pickapic(tmp_path / "set", [PairRow(f"p{n}", picture(2 * n), picture(2 * n + 1)) for n in range(5)])
    recipe = make_recipe(data={"train": str(path), "validation": None})
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    assert not told(capsys)
    (file,) = (tmp_path / "cache/index").glob("rows-*.arrow")
    file.write_bytes(file.read_bytes()[:-7])
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    (line,) = told(capsys)
    assert f"note: {file}: the index of images is damaged" in line
    assert "these images are read again" in line
