"""One rule of image folders: what is an image, in which order, and what is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from diffusion_feedback.data.folders import find_twins
from diffusion_feedback.data.image_folders import IMAGE_SUFFIXES, list_images, natural_order
from diffusion_feedback.data.image_sets import open_images
from diffusion_feedback.data.images import decode_image
from diffusion_feedback.data.prompt_images import find_images
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import PromptRecord

ENDINGS = [*IMAGE_SUFFIXES, ".PNG", ".Jpg", ".TIFF"]


def save(path: Path, colour: tuple[int, int, int] = (200, 30, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), colour).save(path)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_reader_sees_every_ending(ending: str, tmp_path: Path) -> None:
    """Image sets, images of prompts, twin folders, and single files: the same files, and they decode."""
    one = save(tmp_path / "set" / f"00000{ending}")
    assert list_images(tmp_path / "set").names == [one.name]
    for path in (tmp_path / "set", one):
        (item,) = open_images(path)
        assert item.name == one.name
        assert abs(item.handle.open().getpixel((8, 8))[0] - 200) <= 6  # type: ignore[index]
    found = find_images(tmp_path / "set", [PromptRecord("a cat", {})])
    assert found.images[0][0].name == one.name
    for side, red in (("chosen", 200), ("rejected", 10)):
        save(tmp_path / "twins" / side / f"a{ending}", (red, 30, 60))
    (tmp_path / "twins" / "chosen" / "a.txt").write_text("a cat")
    assert find_twins(tmp_path / "twins") is not None
    (pair,) = open_pairs(tmp_path / "twins")
    assert abs(decode_image(pair.chosen, "x").getpixel((8, 8))[0] - 200) <= 6  # type: ignore[operator, index]


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.png" for i in range(12)],
        [f"{i}.png" for i in range(1, 101)],
        [f"{i:05d}.png" for i in range(12)],
        [f"img{i}.jpg" for i in range(1, 13)],
        [f"{i // 3}_{i % 3}.png" for i in range(36)],
        [f"00{i:03d}-s{i % 4 * 5}.png" for i in range(8)],
        [f"model{i}/{j}.png" for i in (1, 2, 10) for j in range(11)],
        ["a.png", "b.png", "c.jpg"],
        ["1.png", "2.jpg", "10.webp"],
        ["a b 2.png", "a b 10.png"],
    ],
    ids=lambda names: names[-1],
)
def test_numbers_are_counted(names: list[str], tmp_path: Path) -> None:
    assert natural_order(sorted(names)) == names
    assert natural_order(reversed(names)) == names
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path).names == names


def test_what_is_passed_over_is_counted_and_named(tmp_path: Path) -> None:
    for name in ("2.png", "10.png", ".hidden.png", "sub/3.png", ".cache/x.png", "__MACOSX/._2.png", "._2.png"):
        save(tmp_path / name)
    for name in ("2.txt", "notes.txt", "a.heic", "b.HEIC", "c.psd", "metadata.csv", "noending", ".DS_Store"):
        (tmp_path / name).touch()
    found = list_images(tmp_path)
    assert found.names == ["2.png", "10.png", "sub/3.png"]
    assert found.other == ["a.heic", "b.HEIC", "c.psd", "noending", "notes.txt"]
    assert found.hidden == ["._2.png", ".cache", ".hidden.png", "__MACOSX"]
    assert found.note == (
        f"{tmp_path}: passed over 5 of no image ending (2 .heic, 1 .psd, 1 .txt, 1 no ending): a.heic, b.HEIC, c.psd, ...; "
        "4 hidden: ._2.png, .cache, .hidden.png, ..."
    )
    flat = list_images(tmp_path, recursive=False)
    assert (flat.names, flat.subfolders) == (["2.png", "10.png"], ["sub"])
    assert flat.note.endswith("1 in folders that are not read: sub")


def test_links(tmp_path: Path) -> None:
    """A linked folder is read once, a circle of links ends, a link that leads nowhere is not passed over."""
    save(tmp_path / "elsewhere" / "1.png")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "round").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    assert list_images(folder).names == ["gone.png", "linked/1.png"]


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot be read"):
        list_images(tmp_path)


def test_a_clean_folder_says_nothing(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    (tmp_path / "1.txt").touch()
    assert list_images(tmp_path).note == ""
