"""Images of a list of prompts: by their places in the file that was read, whatever was left out of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from image_world import all_scenes, exact_scores, render
from PIL import Image

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.prompt_images import PromptImages, find_images
from diffusion_feedback.data.prompt_sets import read_prompt_set
from diffusion_feedback.errors import UserError

# Which scene each line of the file speaks of: 1 and 4 stand again, one of them with space around it.
LINES = [0, 1, 2, 1, 3, 4, 5, 4, 6]


def picture(number: int) -> tuple[str, Image.Image]:
    scenes = all_scenes()
    scene = scenes[(37 * number) % len(scenes)]
    return scene.caption, render(scene, np.random.default_rng(number))


def draw(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number)[1].save(path)


def prompts_file(root: Path, numbers: list[int]) -> str:
    captions = [picture(number)[0] for number in numbers]
    captions[-2] = f"  {captions[-2]} "
    (root / "prompts.txt").write_text("".join(f"{caption}\n" for caption in captions))
    return str(root / "prompts.txt")


def found(root: Path, *, unique: bool = True, numbers: list[int] | None = None) -> PromptImages:
    read = read_prompt_set(prompts_file(root, numbers or LINES), files={}, unique=unique)
    return find_images(root / "images", read.prompts, read.read)


def scores(images: PromptImages) -> list[float]:
    items = [item for own in images.images for item in own]
    return [float(exact_scores([item.handle.open()], [item.prompt])[0]) for item in items]


@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("pattern", ["{:05d}.png", "{}.png", "{:05d}_0.png", "{:05d}-s3.jpg"])
def test_a_prompt_that_stands_twice_shifts_no_picture(pattern: str, unique: bool, tmp_path: Path) -> None:
    for place, number in enumerate(LINES):
        draw(tmp_path / "images" / pattern.format(place), number)
    images = found(tmp_path, unique=unique)
    assert min(scores(images)) > 0.8
    assert (images.missing, images.left) == ((), ())
    assert list(map(len, images.images)) == ([1, 2, 1, 1, 2, 1, 1] if unique else [1] * 9)


@pytest.mark.parametrize("unique", [True, False])
def test_metadata_of_the_same_file(unique: bool, tmp_path: Path) -> None:
    rows = []
    for place, number in enumerate(LINES):
        draw(tmp_path / "images" / "images" / f"{place:05d}-s0.png", number)
        rows.append({"file_name": f"images/{place:05d}-s0.png", "Caption": picture(number)[0]})
    (tmp_path / "images" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = found(tmp_path, unique=unique)
    assert min(scores(images)) > 0.8
    assert list(map(len, images.images)) == ([1, 2, 1, 1, 2, 1, 1] if unique else [1] * 9)


def test_the_figure_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mean over the prompts, computed here without any of the command's code."""
    for place, number in enumerate(LINES):
        draw(tmp_path / "images" / f"{place:05d}.png", number)
    draw(tmp_path / "images" / "00003.png", 20)  # the picture of a repetition is a bad one
    argv = ["benchmark", "pickapic", "--prompts", prompts_file(tmp_path, LINES), "--images", str(tmp_path / "images")]
    argv += ["--scorer", "shapes", "--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache")]
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert "2 prompts stand more than once" in told
    assert "belong to no prompt" not in told
    pictures = [20 if place == 3 else number for place, number in enumerate(LINES)]
    pairs = zip(pictures, LINES, strict=True)
    own = [float(exact_scores([picture(seen)[1]], [picture(number)[0]])[0]) for seen, number in pairs]
    means = [np.mean([score for score, number in zip(own, LINES, strict=True) if number == each]) for each in range(7)]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["scorers"]["shapes"]["overall"]["mean"] == pytest.approx(np.mean(means), abs=1e-6)


def test_seeds_of_each_prompt(tmp_path: Path) -> None:
    for place in range(11):
        for seed in range(2):
            draw(tmp_path / "images" / f"{place}_{seed}.png", place)
    images = found(tmp_path, numbers=list(range(11)))
    assert list(map(len, images.images)) == [2] * 11
    assert min(scores(images)) > 0.8
    (tmp_path / "images" / "7_1.png").unlink()
    (tmp_path / "images" / "9_0.png").unlink()
    (tmp_path / "images" / "9_1.png").unlink()
    draw(tmp_path / "images" / "11_0.png", 0)
    images = found(tmp_path, numbers=list(range(11)))
    assert images.missing == ("00007: 1 of 2 images", "00009.png")
    assert images.left == ("11_0.png",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"{i}.png" for i in range(1, 10)], "numbered from 1 to 9"),
        ([f"{i:05d}.png" for i in range(1, 10)], "numbered from 1 to 9"),
        ([f"{i}_0.png" for i in range(1, 10)], "numbered from 1 to 9"),
        (["0.png", "00000.png"], "both 0.png and 00000.png|both 00000.png and 0.png"),
        (["0.png", "0.webp"], "both 0.png and 0.webp"),
        (["0.png", "0_0.png"], "both 0.png and 0_0.png|both 0_0.png and 0.png"),
        (["0_1.png", "0-s1.png"], "both 0-s1.png and 0_1.png|both 0_1.png and 0-s1.png"),
        (["cat.png"], "holds no image of the benchmark's prompts"),
        ([], "no such folder"),
    ],
)
def test_places_that_cannot_be_told(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        draw(tmp_path / "images" / name, 0)
    with pytest.raises(UserError, match=message):
        found(tmp_path)


def test_what_is_passed_over(tmp_path: Path) -> None:
    for place, number in enumerate(LINES):
        draw(tmp_path / "images" / f"{place}.png", number)
    (tmp_path / "images" / "9.heic").touch()
    draw(tmp_path / "images" / "more" / "0.png", 0)
    draw(tmp_path / "images" / "grid.png", 0)
    images = found(tmp_path)
    assert images.left == ("grid.png",)
    assert "1 .heic" in images.note
    assert "folders that are not read: more" in images.note


def test_one_style_of_a_folder_that_counts_through_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """00000.png may be the first of all styles or of this one: refused, and the folder of the style is taken."""
    for place in range(3):
        draw(tmp_path / "images" / f"{place:05d}.png", place)
        draw(tmp_path / "styles" / "photo" / f"{place:05d}.png", place)
    (tmp_path / "photo.json").write_text(json.dumps([picture(number)[0] for number in range(3)]))
    argv = ["benchmark", "hpsv2", "--prompts", str(tmp_path / "photo.json"), "--scorer", "shapes", "--allow_short"]
    argv += ["--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--images"]
    assert main([*argv, str(tmp_path / "images")]) == 2
    assert "the prompts of photo alone" in capsys.readouterr().err
    assert main([*argv, str(tmp_path / "styles")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["scorers"]["shapes"]["overall"]["mean"] > 0.88
